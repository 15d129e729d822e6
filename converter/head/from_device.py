"""A head that a device learned, back into the PyTorch model that it was converted from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edge.contract.errors import BundleError, ConversionError
from edge.learning.exchange import HeadRelease


def load_head_into(model: nn.Module, path: str | Path) -> list[str]:
    """Set the parameters of a model to those of a head that was learned on a device.

    Args:
        model: The model as it was converted: its parameters have the names that the head's have.
        path: What `OnDeviceModel.export_head` or ``edge-agent export`` wrote.

    Returns:
        Names of the parameters that were set.

    Raises:
        BundleError: The file cannot be read, or is no head.
        ConversionError: The model has no such parameters, or of another shape; nothing changed.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as exc:
        raise BundleError(f"{path} cannot be read: {exc.strerror}") from exc
    release = HeadRelease.decode(data, str(path))
    if not isinstance(model, nn.Module):
        raise ConversionError(f"expected the model, a torch.nn.Module, got {type(model).__name__}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, array in release.parameters.items():
        if name not in parameters:
            raise ConversionError(
                f"the model has no parameter {name}; it has {', '.join(list(parameters)[:8]) or 'none'}. Give the "
                f"model that the bundle was converted from"
            )
        shape = tuple(parameters[name].shape)
        if shape[: array.ndim] != array.shape or any(size != 1 for size in shape[array.ndim :]):  # of one pixel
            added = f", with the classes {', '.join(release.class_names)}" if release.class_names else ""
            raise ConversionError(
                f"{name}: the head has the shape {array.shape}{added}, the model {shape}; give it a layer of that shape"
            )
    with torch.no_grad():
        for name, array in release.parameters.items():
            parameters[name].copy_(torch.from_numpy(array.copy()).reshape(parameters[name].shape))
    return list(release.parameters)
