"""Self-describing checkpoints: weights, the traced model, an example input and, if given, calibration data.

Everything in the file is a tensor, a text or a list, so it loads with ``torch.load(..., weights_only=True)`` and no
code in it is ever run by Python. The model itself is TorchScript, which the TorchScript interpreter executes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from converter.reason import reason
from edge.contract import strictjson
from edge.contract.errors import ConversionError
from edge.contract.files import replace_file

KEY = "edgeloop_checkpoint"
VERSION = 1


def trace(model: nn.Module, example_input: torch.Tensor) -> torch.jit.ScriptModule:
    """TorchScript of a model by tracing; a model that is TorchScript already is returned as it is.

    Raises:
        ConversionError: The model does not run on the example input.
    """
    if isinstance(model, torch.jit.ScriptModule):
        return model
    try:
        with torch.no_grad():
            return torch.jit.trace(model, example_input, check_trace=False)  # type: ignore[no-any-return, no-untyped-call]
    except Exception as exc:  # the model is the user's code: it may raise anything
        raise ConversionError(
            f"the model does not run on an input of shape {tuple(example_input.shape)} and type "
            f"{example_input.dtype}: {reason(exc)}"
        ) from exc


def check_preprocessing(preprocessing: Mapping[str, Any]) -> None:
    """Raise ConversionError unless it can stand in a manifest: texts, finite numbers, lists and objects."""
    try:
        strictjson.dumps(dict(preprocessing))
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConversionError(f"preprocessing must be plain JSON: {reason(exc)}") from exc


def save_checkpoint(
    model: nn.Module,
    path: str | Path,
    *,
    example_input: torch.Tensor,
    class_names: Sequence[str],
    calibration: tuple[torch.Tensor | np.ndarray[Any, Any], torch.Tensor | np.ndarray[Any, Any]] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint that ``edge-convert`` can use without any option.

    Args:
        model: The trained model; it is put into evaluation mode for the trace and back.
        path: Where to write, usually ``model.pth``.
        example_input: A batch ``(n, ...)``, n >= 1, of the shape and type that the model takes.
        class_names: One name per output.
        calibration: Training samples ``(n, ...)`` and their labels ``(n,)``: a few hundred make an int8 backbone and
            the statistics that devices start learning from.
        preprocessing: What was done to the raw data, for the people who write the device's input code; JSON-able.

    Raises:
        ConversionError: The model does not run on the example, or the class names do not fit its output, or the
            preprocessing is not JSON.
    """
    check_preprocessing(preprocessing or {})
    was_training = model.training
    model.eval()
    try:
        script = trace(model, example_input)
        with torch.no_grad():
            output = model(example_input)
    finally:
        model.train(was_training)
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or output.shape[1] != len(class_names):
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ConversionError(f"{len(class_names)} class names, but the model's output is {found}")
    archive = io.BytesIO()
    torch.jit.save(script, archive)
    document: dict[str, Any] = {
        KEY: VERSION,
        "state_dict": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        "torchscript": torch.frombuffer(bytearray(archive.getvalue()), dtype=torch.uint8),
        "example_input": example_input.detach().cpu()[:1].clone(),
        "class_names": [str(name) for name in class_names],
        "preprocessing": dict(preprocessing or {}),
    }
    if calibration is not None:
        samples, labels = (torch.as_tensor(part).detach().cpu() for part in calibration)
        document |= {"calibration_x": samples.clone(), "calibration_y": labels.clone().to(torch.int64)}
    with replace_file(Path(path)) as file:
        torch.save(document, file)
