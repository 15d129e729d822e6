"""Weights: a state_dict, out of what training loops wrap around it, into the model that it belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from converter.load.architecture import suggestions
from converter.program.reason import reason
from edge.contract.errors import ConversionError

# Keys under which training loops put the weights, and prefixes that wrappers put before their names.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_MAX_DEPTH = 4
_ROWS = 24


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Weights:
    """A state_dict as it was found.

    Attributes:
        tensors: By name.
        hyper_parameters: What a Lightning checkpoint says that the model was made with.
        notes: For the report.
    """

    tensors: dict[str, torch.Tensor]
    hyper_parameters: Mapping[str, Any]
    notes: tuple[str, ...]


def unwrapped(document: Any, what: str) -> Weights:
    """The weights in a document.

    Raises:
        ConversionError: There are none.
    """
    hyper_parameters: Mapping[str, Any] = {}
    notes: list[str] = []
    for _ in range(_MAX_DEPTH):
        if not isinstance(document, dict):
            break
        if isinstance(document.get("hyper_parameters"), dict):
            hyper_parameters = {str(key): value for key, value in document["hyper_parameters"].items()}
        inner = [key for key in _WRAPPERS if isinstance(document.get(key), dict)]
        if not inner:
            break
        others = f"; it also holds {', '.join(inner[1:])}" if inner[1:] else ""
        notes.append(f"weights taken from {inner[0]!r} of the checkpoint{others}")
        document = document[inner[0]]
    if not isinstance(document, dict) or not document:
        raise ConversionError(f"{what} holds {type(document).__name__}, expected a state_dict")
    strange = [key for key, value in document.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if strange:
        raise ConversionError(f"{what} is not a state_dict: {strange[0]!r} is not a tensor")
    tensors = dict(document)
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    return Weights(tensors=tensors, hyper_parameters=hyper_parameters, notes=tuple(notes))


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    """Raise ConversionError unless the tensor is plain and has memory for all that its shape promises."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ConversionError(
            f"{name} is not a plain tensor ({tensor.layout}, {tensor.dtype}, on {tensor.device}); save the dense float "
            f"weights"
        )
    held = tensor.untyped_storage().nbytes()
    if math.prod(tensor.shape) * tensor.element_size() > held:
        raise ConversionError(
            f"{name} has the shape {tuple(tensor.shape)}, but the file holds {held} bytes for it: it is damaged"
        )


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], what: str) -> None:
    """Put the weights into the model, without the prefixes that wrappers put before their names.

    Raises:
        ConversionError: They do not fit; the message lists how.
    """
    expected = model.state_dict()
    weights = _without_prefixes(weights, expected)
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    wrong = [key for key in expected if key in weights and expected[key].shape != weights[key].shape]
    if not (missing or unexpected or wrong):
        try:
            model.load_state_dict(dict(weights))
        except Exception as exc:  # tensors that cannot be copied: sparse, quantized, on no device
            raise ConversionError(f"the weights in {what} cannot be put into the model: {reason(exc)}") from exc
        return
    lines = [f"the weights in {what} do not fit the model:"]
    for key in missing[:8]:
        near = get_close_matches(key, unexpected, n=1)
        lines.append(f"  missing    {key}" + (f"   (the file has {near[0]})" if near else ""))
    for key in unexpected[:8]:
        near = get_close_matches(key, missing, n=1)
        lines.append(f"  unexpected {key}" + (f"   (the model has {near[0]})" if near else ""))
    lines += [
        f"  {key}: {tuple(weights[key].shape)} in the file, {tuple(expected[key].shape)} in the model"
        for key in wrong[:8]
    ]
    left = sum(max(0, len(keys) - 8) for keys in (missing, unexpected, wrong))
    raise ConversionError("\n".join([*lines, *([f"  ... and {left} more"] if left else [])]))


def _without_prefixes(weights: Mapping[str, torch.Tensor], expected: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Take off the prefixes of wrappers such as DataParallel, while no name is one that the model knows."""
    weights = dict(weights)
    while not weights.keys() & expected.keys():
        prefix = next((item for item in _PREFIXES if any(key.startswith(item) for key in weights)), None)
        if prefix is None:
            break
        # What a Lightning module keeps beside its model (losses, metrics) has another prefix and no place in it.
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
    return weights


def how_to_name_the_architecture(weights: Mapping[str, torch.Tensor], path: Path) -> str:
    """What to tell a user who gave weights only: what they are, and the command to type."""
    width = min(60, max(map(len, weights)))
    rows = [f"  {name:<{width}} {tuple(t.shape)!s:<20} {t.dtype}" for name, t in list(weights.items())[:_ROWS]]
    more = [f"  ... and {len(weights) - _ROWS} more"] if len(weights) > _ROWS else []
    near = suggestions(_without_known_prefixes(weights), [path.parent, Path()])
    commands = [f"  edge-convert {path} --arch {arch}" for arch in near[:3] or ["FILE.py:CLASS"]]
    total = sum(math.prod(tensor.shape) for tensor in weights.values())
    return "\n".join(
        [
            f"{path} holds weights only ({len(weights)} tensors, {total} numbers), not the model that they belong to:",
            *rows,
            *more,
            "Name its class" + (", which looks like it is here:" if near else ":"),
            *commands,
        ]
    )


def _without_known_prefixes(weights: Mapping[str, Any]) -> list[str]:
    names = list(weights)
    while prefix := next((item for item in _PREFIXES if all(name.startswith(item) for name in names)), None):
        names = [name.removeprefix(prefix) for name in names]
    return names
