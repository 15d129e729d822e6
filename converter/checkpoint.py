"""Self-describing checkpoints: weights, the traced model, an example input and, if given, calibration data.

Everything in the file is a tensor, a text or a list, so it loads with ``torch.load(..., weights_only=True)`` and no
code in it is ever run by Python. The model itself is TorchScript, which the TorchScript interpreter executes.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.jit._trace import TracerWarning

from converter.export.decisions import decisions_of, described, takes_number
from converter.load.checkpoint_file import KEY, VERSION, check_preprocessing, check_samples
from converter.load.dictionaries import BY_NAME, DICTIONARY, takes_dictionary
from converter.load.training_mode import check_keeps_statistics
from converter.program.attention import traceable
from converter.program.lengths import with_lengths
from converter.program.programs import Flat, has_batch, named_outputs, torch_program
from converter.program.rounding import rounded_sizes
from converter.verify.axes import FreeAxis, Probe, agreeing, baked_axes, empty_axes, filled, free_axes
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.files import replace_file
from edge.contract.foreign import foreign, reason
from edge.contract.manifest import check_class_names
from edge.contract.tensorspec import BATCH, AxisRange, TensorSpec

Data = torch.Tensor | np.ndarray[Any, Any]
_FORMS = "give (x, y), (x, None), x, or a dictionary by the names of the inputs, with y or without"
# Numbers of samples at which the stored program is compared with the model.
_BATCHES = (1, 2, 3, 5)


@contextlib.contextmanager
def _without_news_of_torchscript() -> Iterator[None]:
    """That TorchScript is old is no news to whoever saves a checkpoint: it is chosen, see docs/adr/0002."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", r".*torch\.jit\b", category)
        yield


@_without_news_of_torchscript()
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
        class_names: One name per class, all different; None for a model that does not classify.
        calibration: Training samples ``(n, ...)`` (by name for several inputs) and their labels ``(n,)`` or targets
            ``(n, ...)``, as ``(x, y)``; without labels ``(x, None)`` or ``x``; or one dictionary by the names of the
            inputs, with ``y`` or without. The state of a recurrent model may be left out: samples are then one stream.
            A few hundred make an int8 backbone and the statistics that devices start learning from.
        preprocessing: What was done to the raw data, for the people who write the device's input code; JSON-able.
        axes: Shapes of inputs that are not ``(batch, fixed sizes...)``, by name (``input`` for the only one), e.g.
            ``{"state": (2, "batch", 64)}`` or ``{"input": ("batch", "time", 8)}``. What is stored is compared with the
            model at many sizes of free axes and of the batch; a warning says where an axis had to be narrowed.

    Raises:
        ConfigError: The model is none, two classes have one name, or the calibration data are not samples of the
            inputs.
        ConversionError: The model does not run on the example, or TorchScript cannot follow it, or the class names do
            not fit its output, or the preprocessing is not JSON.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"expected save_checkpoint(model, path, ...), got {type(model).__name__} for the model")
    check_preprocessing(preprocessing or {})
    if isinstance(class_names, str):
        raise ConfigError(f"class_names is the text {class_names!r}, expected a list of names")
    names = [str(name) for name in class_names or ()]
    try:
        check_class_names(names)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    if odd := sorted({str(tensor.dtype) for tensor in model.parameters()} - {"torch.float32", "torch.int64"}):
        raise ConversionError(f"parameters of the type {', '.join(odd)}; call model.float() before saving it")
    check_keeps_statistics(model)
    if takes_dictionary(model) in (DICTIONARY, BY_NAME):
        raise ConversionError(
            "forward takes a dictionary of tensors: save the state_dict and convert that with --arch, or give a model "
            "whose forward takes each tensor by itself"
        )
    examples = _named(example_input)
    specs = _specs(model, examples, axes or {})
    was_training = model.training
    model.eval()
    try:
        stored = _stored(model, {name: tensor.clone() for name, tensor in examples.items()}, specs)
    finally:
        model.train(was_training)
    script, specs, outputs = stored.script, stored.specs, stored.outputs
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
        "axes": {name: found.to_json() for name, found in stored.ranges.items()},
        "example_inputs": {spec.name: _first(examples[spec.name], spec) for spec in specs},
        "class_names": names,
        "preprocessing": dict(preprocessing or {}),
        "decides": stored.decides or "",
    }
    if calibration is not None:
        samples, labels = _calibration(calibration, specs, [*outputs.values()])
        document["calibration_x"] = samples
        if labels is not None:
            document["calibration_y"] = labels if labels.is_floating_point() else labels.to(torch.int64)
    with replace_file(Path(path)) as file:
        torch.save(document, file)


def _named(data: Data | Mapping[str, Data]) -> dict[str, torch.Tensor]:
    """By name, in memory of their own: a model may write into what it is given."""
    arrays = data if isinstance(data, Mapping) else {"input": data}
    return {str(name): torch.as_tensor(array).detach().cpu().clone() for name, array in arrays.items()}


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
    if labels is not None and labels.is_floating_point():
        labels = labels.float()
    try:
        check_samples(specs, {n: t.numpy() for n, t in samples.items()}, None if labels is None else labels.numpy())
    except ValueError as exc:
        raise ConfigError(f"calibration: {exc}; {_FORMS}") from exc
    return samples, labels


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


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Stored:
    """What is written down of a model.

    Attributes:
        script: The program.
        outputs: What the model gives on the example, by name.
        specs: Of the inputs; an axis at which the program is right at one size only is fixed.
        ranges: Sizes of free axes that it is to be run at, by name; none for an axis that nothing limits.
        decides: Where the model's code decides by values and the program goes the way of its example; None for nowhere.
    """

    script: torch.jit.ScriptModule
    outputs: dict[str, torch.Tensor]
    specs: list[TensorSpec]
    ranges: dict[str, AxisRange]
    decides: str | None = None


def _stored(model: nn.Module, examples: Mapping[str, torch.Tensor], specs: list[TensorSpec]) -> _Stored:
    """A model as TorchScript that was found to give the same at all sizes of its free axes that were tried.

    A trace goes the way of its example and keeps numbers that Python computes from sizes. Where that shows, or code
    decides by values, the compiler of TorchScript, which keeps both but takes few real models, is tried; else axes are
    narrowed, and the decisions told to whoever converts it.
    """
    shown = {name: tensor.numpy() for name, tensor in examples.items()}
    empty = empty_axes(specs, shown)
    if empty:
        shown = filled(torch_program(model, specs), specs, shown)
        examples = {name: torch.from_numpy(array) for name, array in shown.items()}
    inputs = tuple(examples.values())
    shapes = ", ".join(f"{name} of shape {tuple(t.shape)} and type {t.dtype}" for name, t in examples.items())
    with foreign(f"the model does not run on {shapes}", ConversionError), torch.no_grad():
        found = model(*inputs)
    outputs = named_outputs(found, list(examples))
    if isinstance(model, torch.jit.ScriptModule):  # it is the model itself
        return _Stored(script=model, outputs=outputs, specs=specs, ranges={})
    plain = isinstance(found, torch.Tensor) or (type(found) is tuple and len(outputs) == len(found))
    tried = _copied(model)  # code may keep what it computed for the sizes that it saw
    example = {spec.name: _first(examples[spec.name], spec).numpy() for spec in specs}
    probe = Probe(run=torch_program(tried, specs, list(outputs)), inputs=tuple(specs), example=example)
    axes = free_axes(probe, {}, empty)
    try:
        trace, said = _traced(model if plain else Flat(model), inputs)
    except ConversionError as exc:
        script = _scripted(model, f"the model runs on {shapes}, but {exc}")
        faults = _faults(script, probe, axes, outputs)
        if faults:
            raise ConversionError(f"{exc}; compiled by torch.jit.script, it {next(iter(faults.values()))}") from exc
        return _Stored(script=script, outputs=outputs, specs=specs, ranges=_ranges(axes, only_tried=True))
    faults = _faults(trace, probe, axes, outputs)
    takes_numbers = any(takes_number(w) and f"{os.sep}torch{os.sep}" not in w.filename for w in said)
    decides = described(decisions_of(tried, inputs)) if takes_numbers else None
    if not faults and decides is None:
        _repeat(said)
        return _Stored(script=trace, outputs=outputs, specs=specs, ranges=_ranges(axes, only_tried=takes_numbers))
    compiled: torch.jit.ScriptModule | None = None
    with contextlib.suppress(ConversionError):
        compiled = _scripted(model, f"the trace of the model {next(iter(faults.values()), 'decides by values')}")
    if compiled is not None and not _faults(compiled, probe, axes, outputs):
        return _Stored(script=compiled, outputs=outputs, specs=specs, ranges=_ranges(axes, only_tried=True))
    if BATCH in faults:
        again = named_outputs(tried(*inputs), list(examples))
        if not all(torch.equal(one, again[name]) for name, one in outputs.items()):
            raise ConversionError(
                "the model gives another output for the same input each time: it draws random numbers, as a dropout "
                "does that is on in evaluation, too. Take that out, or tie it to self.training"
            )
        raise ConversionError(
            f"the trace of the model {faults[BATCH]}: its code does something else for another number of samples, or "
            f"computes with NumPy. Compute with tensors instead of Python's numbers and ifs and of NumPy, or give "
            f"TorchScript that torch.jit.script made"
        )
    if decides is not None:
        warnings.warn(
            f"the model decides by values in Python ({decides}), and torch.jit.script does not take it: what is stored "
            f"always goes the way of the example. Compute with tensors (torch.where, torch.clamp), or make the model "
            f"one that torch.jit.script takes",
            stacklevel=4,
        )
    _repeat(said)
    if faults:
        return replace(_narrowed(trace, probe, axes, outputs, faults), decides=decides)
    ranges = _ranges(axes, only_tried=True)
    return _Stored(script=trace, outputs=outputs, specs=specs, ranges=ranges, decides=decides)


def _narrowed(
    trace: torch.jit.ScriptModule,
    probe: Probe,
    axes: tuple[FreeAxis, ...],
    outputs: dict[str, torch.Tensor],
    faults: Mapping[str, str],
) -> _Stored:
    """A trace that is right at some sizes only, with these."""
    run = torch_program(trace, probe.inputs, list(outputs))
    wide, axes = axes, tuple(agreeing(run, probe, axis) for axis in axes)
    if left := _faults(trace, probe, axes, outputs):  # at several other sizes at once
        axes = tuple(axis.fixed() if axis.name in left else axis for axis in axes)
    fixed = {axis.name: axis.size for axis in axes if axis.tried == (axis.size,)}
    narrowed = "; ".join(
        f"{axis.name}: {axis.size if axis.name in fixed else axis.range.describe()}"
        for axis, before in zip(axes, wide, strict=True)
        if axis.tried != before.tried
    )
    warnings.warn(
        f"the trace of the model {next(iter(faults.values()))}: its code computes or decides with sizes in Python. The "
        f"checkpoint takes only sizes at which both agree ({narrowed}); for others, compute with tensors or make the "
        f"model one that torch.jit.script takes",
        stacklevel=5,
    )
    specs = [replace(s, shape=tuple(fixed.get(str(a), a) for a in s.shape)) for s in probe.inputs]
    free = tuple(axis for axis in axes if axis.name not in fixed)
    return _Stored(script=trace, outputs=outputs, specs=specs, ranges=_ranges(free, only_tried=True))


def _ranges(axes: Sequence[FreeAxis], *, only_tried: bool) -> dict[str, AxisRange]:
    found = {axis.name: (axis.only_tried() if only_tried else axis).range for axis in axes}
    return {name: sizes for name, sizes in found.items() if sizes != AxisRange()}


def _faults(
    script: torch.jit.ScriptModule, probe: Probe, axes: tuple[FreeAxis, ...], outputs: Mapping[str, torch.Tensor]
) -> dict[str, str]:
    """What shows that a program is not the model, by axis, that of the batch among them."""
    batch = FreeAxis(name=BATCH, size=1, range=AxisRange(), tried=_BATCHES)
    all_axes = (batch, *axes) if has_batch(probe.inputs) else axes
    return baked_axes(torch_program(script, probe.inputs, list(outputs)), probe, all_axes)


def _traced(
    model: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.jit.ScriptModule, list[warnings.WarningMessage]]:
    """A trace, and the tracer's warnings: code took something of a tensor, such as its size, as a number."""
    with (
        warnings.catch_warnings(record=True) as caught,
        torch.no_grad(),
        traceable(),
        rounded_sizes(),
    ):
        warnings.simplefilter("always")
        trace: torch.jit.ScriptModule = with_lengths(model, lambda: _trace(model, inputs))
    _repeat([warning for warning in caught if not issubclass(warning.category, TracerWarning)])
    return trace, [warning for warning in caught if issubclass(warning.category, TracerWarning)]


def _trace(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.jit.ScriptModule:
    with foreign("torch.jit.trace cannot follow it", ConversionError):
        return torch.jit.trace(model, inputs, check_trace=False)  # type: ignore[no-any-return, no-untyped-call]


def _repeat(said: Sequence[warnings.WarningMessage]) -> None:
    for warning in said:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _scripted(model: nn.Module, why: str) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with foreign("torch.jit.script does not take it", ConversionError):
                script: torch.jit.ScriptModule = torch.jit.script(model)
        except ConversionError as exc:
            raise ConversionError(
                f"{why}; {exc}. Compute sizes by plain arithmetic (+, *, //, round, math.ceil), or save "
                f"the state_dict and name the class with --arch, which has more ways to export"
            ) from exc
    return script


def _copied(model: nn.Module) -> nn.Module:
    try:
        with foreign("the model cannot be copied", ConversionError):
            return copy.deepcopy(model)
    except ConversionError:
        return model


def _first(tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    return tensor.clone() if spec.batch_axis is None else tensor.narrow(spec.batch_axis, 0, 1).clone()
