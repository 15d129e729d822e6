"""Self-describing checkpoints: weights, the traced model, an example input and, if given, calibration data.

Everything in the file is a tensor, a text or a list, so it loads with ``torch.load(..., weights_only=True)`` and no
code in it is ever run by Python. The model itself is TorchScript, which the TorchScript interpreter executes.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from converter.program.attention import traceable
from converter.program.programs import Flat, named_outputs
from edge.contract import strictjson
from edge.contract.errors import ConversionError
from edge.contract.files import replace_file
from edge.contract.foreign import foreign, reason
from edge.contract.tensorspec import BATCH, TensorSpec

KEY = "edgeloop_checkpoint"
VERSION = 2

Data = torch.Tensor | np.ndarray[Any, Any]


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
    example_input: Data | Mapping[str, Data],
    class_names: Sequence[str] | None = None,
    calibration: tuple[Data | Mapping[str, Data], Data | None] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    axes: Mapping[str, Sequence[int | str]] | None = None,
) -> None:
    """Write a checkpoint that ``edge-convert`` can use without any option.

    Args:
        model: The trained model; it is put into evaluation mode for the trace and back.
        path: Where to write, usually ``model.pth``.
        example_input: A batch ``(n, ...)``, n >= 1, of the shape and type that the model takes; for several inputs, one
            for each by name, in the order of ``forward``.
        class_names: One name per class; None for a model that does not classify.
        calibration: Training samples ``(n, ...)`` (by name for several inputs) and their labels ``(n,)``, targets, or
            None: a few hundred make an int8 backbone and the statistics that devices start learning from.
        preprocessing: What was done to the raw data, for the people who write the device's input code; JSON-able.
        axes: Shapes of inputs that are not ``(batch, fixed sizes...)``, by name (``input`` for the only one), e.g.
            ``{"state": (2, "batch", 64)}`` or ``{"input": ("batch", "time", 8)}``.

    Raises:
        ConversionError: The model does not run on the example, or the class names do not fit its output, or the
            preprocessing is not JSON.
    """
    check_preprocessing(preprocessing or {})
    examples = _named(example_input)
    specs = _specs(model, examples, axes or {})
    was_training = model.training
    model.eval()
    try:
        script, outputs = _traced(model, examples)
    finally:
        model.train(was_training)
    if class_names is not None and not any(
        tensor.ndim == 2 and tensor.shape[1] == len(class_names) for tensor in outputs.values()
    ):
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in outputs.items())
        raise ConversionError(f"{len(class_names)} class names, but the model's output is {found}")
    archive = io.BytesIO()
    torch.jit.save(script, archive)
    document: dict[str, Any] = {
        KEY: VERSION,
        "state_dict": {name: tensor.detach().cpu() for name, tensor in script.state_dict().items()},
        "torchscript": torch.frombuffer(bytearray(archive.getvalue()), dtype=torch.uint8),
        "inputs": [spec.to_json() for spec in specs],
        "outputs": list(outputs),
        "example_inputs": {spec.name: _first(examples[spec.name], spec) for spec in specs},
        "class_names": [str(name) for name in class_names or ()],
        "preprocessing": dict(preprocessing or {}),
    }
    if calibration is not None:
        samples, labels = _named(calibration[0]), calibration[1]
        if list(samples) != list(examples):
            raise ConversionError(f"calibration samples {', '.join(samples)}, expected {', '.join(examples)}")
        document["calibration_x"] = {name: array.clone() for name, array in samples.items()}
        if labels is not None:
            targets = torch.as_tensor(labels).detach().cpu().clone()
            document["calibration_y"] = targets.float() if targets.is_floating_point() else targets.to(torch.int64)
    with replace_file(Path(path)) as file:
        torch.save(document, file)


def _named(data: Data | Mapping[str, Data]) -> dict[str, torch.Tensor]:
    arrays = data if isinstance(data, Mapping) else {"input": data}
    return {str(name): torch.as_tensor(array).detach().cpu() for name, array in arrays.items()}


def _specs(
    model: nn.Module, examples: Mapping[str, torch.Tensor], axes: Mapping[str, Sequence[int | str]]
) -> list[TensorSpec]:
    if len(examples) > 1 and not isinstance(model, torch.jit.ScriptModule):
        names = list(inspect.signature(model.forward).parameters)[: len(examples)]
        if set(names) == set(examples) and names != list(examples):
            raise ConversionError(f"example inputs {', '.join(examples)}: give them in the order {', '.join(names)}")
    if unknown := set(axes) - set(examples):
        raise ConversionError(f"axes of {sorted(unknown)[0]}, which is not an input ({', '.join(examples)})")
    specs = []
    for name, tensor in examples.items():
        shape = list(axes.get(name, (BATCH, *tensor.shape[1:])))
        try:
            spec = TensorSpec.from_json({"name": name, "dtype": str(tensor.dtype)[6:], "shape": shape})
            spec.check(tensor.numpy())
        except (ValueError, TypeError) as exc:
            raise ConversionError(f"the example input cannot be used: {exc}") from exc
        specs.append(spec)
    return specs


def _traced(
    model: nn.Module, examples: Mapping[str, torch.Tensor]
) -> tuple[torch.jit.ScriptModule, dict[str, torch.Tensor]]:
    """TorchScript of a model, and what it returns by name; one that is TorchScript already stays as it is."""
    inputs = tuple(examples.values())
    shapes = ", ".join(f"{name} of shape {tuple(t.shape)} and type {t.dtype}" for name, t in examples.items())
    with foreign(f"the model does not run on {shapes}", ConversionError), torch.no_grad(), traceable():
        found = model(*inputs)
        outputs = named_outputs(found, list(examples))
        if isinstance(model, torch.jit.ScriptModule):
            return model, outputs
        plain = isinstance(found, torch.Tensor) or (type(found) is tuple and len(outputs) == len(found))
        traced = torch.jit.trace(model if plain else Flat(model), inputs, check_trace=False)  # type: ignore[no-untyped-call]
        return traced, outputs


def _first(tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    return tensor.clone() if spec.batch_axis is None else tensor.narrow(spec.batch_axis, 0, 1).clone()
