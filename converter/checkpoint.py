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
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.files import replace_file
from edge.contract.foreign import foreign, reason
from edge.contract.tensorspec import BATCH, TensorSpec

KEY = "edgeloop_checkpoint"
VERSION = 2

Data = torch.Tensor | np.ndarray[Any, Any]
_FORMS = "give (x, y), (x, None), x, or a dictionary by the names of the inputs, with y or without"


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
    calibration: tuple[Data | Mapping[str, Data], Data | None] | Data | Mapping[str, Data] | None = None,
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
        calibration: Training samples ``(n, ...)`` (by name for several inputs) and their labels ``(n,)`` or targets
            ``(n, ...)``, as ``(x, y)``; without labels ``(x, None)`` or ``x``; or one dictionary by the names of the
            inputs, with ``y`` or without. The state of a recurrent model may be left out: samples are then one stream.
            A few hundred make an int8 backbone and the statistics that devices start learning from.
        preprocessing: What was done to the raw data, for the people who write the device's input code; JSON-able.
        axes: Shapes of inputs that are not ``(batch, fixed sizes...)``, by name (``input`` for the only one), e.g.
            ``{"state": (2, "batch", 64)}`` or ``{"input": ("batch", "time", 8)}``.

    Raises:
        ConfigError: The calibration data are of another form, or are not samples of the inputs.
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
        samples, labels = _calibration(calibration, specs, [*outputs.values()])
        document["calibration_x"] = samples
        if labels is not None:
            document["calibration_y"] = labels.float() if labels.is_floating_point() else labels.to(torch.int64)
    with replace_file(Path(path)) as file:
        torch.save(document, file)


def _named(data: Data | Mapping[str, Data]) -> dict[str, torch.Tensor]:
    arrays = data if isinstance(data, Mapping) else {"input": data}
    return {str(name): torch.as_tensor(array).detach().cpu() for name, array in arrays.items()}


def _calibration(
    given: object, specs: Sequence[TensorSpec], outputs: Sequence[torch.Tensor]
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Samples by input name, of its type, and their labels; raises ConfigError when that is not what was given."""
    names = [spec.name for spec in specs]
    x, y = given, None
    if isinstance(given, tuple | list):
        if len(given) != 2:
            raise ConfigError(f"calibration is a {type(given).__name__} of {len(given)}: {_FORMS}")
        x, y = given
    elif isinstance(given, Mapping) and "y" not in names:
        x, y = {name: array for name, array in given.items() if name != "y"}, given.get("y")
    arrays = {str(name): array for name, array in x.items()} if isinstance(x, Mapping) else {names[0]: x}
    if not isinstance(x, Mapping) and len(names) > 1:
        raise ConfigError(f"calibration: the model takes {', '.join(names)}: give samples as a dictionary of these")
    if len(names) == 1 and set(arrays) == {"x"}:  # as in an .npz
        arrays = {names[0]: arrays["x"]}
    samples = {
        spec.name: _as_taken(_tensor(arrays[spec.name], spec.name), spec) for spec in specs if spec.name in arrays
    }
    missing = [spec for spec in specs if spec.name not in samples and not _may_be_passed_on(spec, outputs)]
    if set(arrays) - set(names) or missing or not samples:
        came = ", ".join(arrays) or "none"
        raise ConfigError(f"calibration: samples named {came}, expected {', '.join(names)}: {_FORMS}")
    labels = None if y is None else _tensor(y, "y", listed=True)
    try:
        check_samples(
            specs, {n: t.numpy() for n, t in samples.items()}, None if labels is None else labels.float().numpy()
        )
    except ValueError as exc:
        raise ConfigError(f"calibration: {exc}; {_FORMS}") from exc
    return samples, labels


def check_samples(
    specs: Sequence[TensorSpec], x: Mapping[str, np.ndarray[Any, Any]], y: np.ndarray[Any, Any] | None
) -> None:
    """Raise ValueError unless samples fit the inputs that they are given for, with as many of each, and of labels."""
    counts = {}
    for spec in specs:
        if spec.name in x:
            spec.check(x[spec.name])
            if spec.batch_axis is not None:
                counts[spec.name] = x[spec.name].shape[spec.batch_axis]
    count = next(iter(counts.values()), 1)
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{name} {number}" for name, number in counts.items())
        raise ValueError(f"different numbers of samples: {each}")
    if y is not None and (y.ndim == 0 or len(y) != count):
        raise ValueError(f"y of the shape {y.shape} for {count} samples, expected one y for each")


def _tensor(array: object, name: str, *, listed: bool = False) -> torch.Tensor:
    """A copy of an array of numbers; a list of them only where `listed`."""
    if not (isinstance(array, torch.Tensor | np.ndarray) or (listed and isinstance(array, list | tuple))):
        raise ConfigError(f"calibration: {name} is {type(array).__name__}, expected a tensor or an array: {_FORMS}")
    try:
        tensor = torch.as_tensor(array).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError) as exc:
        raise ConfigError(f"calibration: {name} cannot be used: {reason(exc)}") from exc
    if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided:
        raise ConfigError(f"calibration: {name} is not a plain tensor of numbers ({tensor.layout}, {tensor.dtype})")
    return tensor


def _as_taken(tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """In the type that the model takes, where no value changes but by rounding."""
    cast = tensor.to(getattr(torch, spec.dtype))
    if cast.is_floating_point() or (not tensor.is_floating_point() and torch.equal(cast.to(tensor.dtype), tensor)):
        return cast
    raise ConfigError(f"calibration: {spec.name} is {str(tensor.dtype)[6:]}, expected {spec.dtype}")


def _may_be_passed_on(spec: TensorSpec, outputs: Sequence[torch.Tensor]) -> bool:
    """Whether an output can be this input for the next sample: data need not hold such states."""
    return spec.dtype.startswith("float") and any(
        str(output.dtype)[6:] == spec.dtype
        and output.ndim == len(spec.shape)
        and all(size == axis or not isinstance(axis, int) for size, axis in zip(output.shape, spec.shape, strict=True))
        for output in outputs
    )


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
