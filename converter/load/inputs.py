"""What a model takes: as the user, the file or the data say, or as it follows from the layers."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from converter.data.peek import peek_shapes
from converter.plan import ConversionPlan
from converter.program.reason import reason
from converter.program.tensors import Arrays, Run
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.tensorspec import BATCH, TensorSpec

FREE_SIZE = 16
BATCH_FREED = "the batch axis, fixed at 1 in the file, was made free; two samples give what each gives alone"
_MAX_BYTES = 1 << 28
# Sizes that networks for images and signals are usually made for.
_USUAL_SIZES = (8, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 100, 112, 128, 160, 192, 224, 227, 240, 256, 299, 320)
_MAX_SIZE = 320
_TIME = "time"
_ASK = (
    "give it without the batch axis, e.g. --input-shape 3,224,224, or give --calibrate with real samples, which have it"
)


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Inputs:
    """What a model takes.

    Attributes:
        specs: Names, types and axes, in order.
        example: One sample.
        note: Where this comes from.
    """

    specs: tuple[TensorSpec, ...]
    example: Arrays
    note: str


def as_given(plan: ConversionPlan) -> tuple[TensorSpec, ...]:
    """The inputs as the user stated them; none when the user did not."""
    return tuple(
        TensorSpec(name=option.name or "input", dtype=option.dtype or "float32", shape=option.shape)
        for option in plan.inputs
    )


def sizes_given(plan: ConversionPlan) -> dict[str, int]:
    """Sizes to try for free axes."""
    return {axis: size for option in plan.inputs for axis, size in option.sizes.items()}


def stated(specs: tuple[TensorSpec, ...], plan: ConversionPlan, where: str) -> Inputs:
    """Inputs that the file states; what the user states, too, must agree.

    Raises:
        ConfigError: It does not.
    """
    given = as_given(plan)
    if len(given) == 1 == len(specs) and plan.inputs[0].name == "":
        given = (TensorSpec(name=specs[0].name, dtype=plan.inputs[0].dtype or specs[0].dtype, shape=given[0].shape),)
    if given and given != specs:
        raise ConfigError(
            f"--input {', '.join(map(_describe, given))}: {where} says that the model takes "
            f"{', '.join(map(_describe, specs))}"
        )
    described = ", ".join(map(_describe, specs))
    return Inputs(specs=specs, example=example_of(specs, sizes_given(plan)), note=f"input {described} from {where}")


def with_free_batch(
    specs: tuple[TensorSpec, ...], sizes: Mapping[str, int], alone: Run, together: Callable[[], Run]
) -> tuple[TensorSpec, ...]:
    """Inputs whose batch axis, which the file fixes at 1, is free, if the model works on several samples at once.

    Args:
        specs: As the file states them.
        sizes: To try for free axes.
        alone: The model as it is.
        together: Makes a model that may work on any batch.

    Raises:
        ConversionError: It does not, or gives other outputs than for each sample alone.
    """
    advice = "export the model with a free batch axis (dynamic_axes={'NAME': {0: 'batch'}}, or dynamic_shapes)"
    if not all(spec.shape and spec.shape[0] == 1 for spec in specs):
        raise ConversionError(f"the input {specs[0].name} has the fixed shape {specs[0].describe()}; {advice}")
    free = tuple(TensorSpec(name=spec.name, dtype=spec.dtype, shape=(BATCH, *spec.shape[1:])) for spec in specs)
    first = example_of(free, sizes)
    second = {name: np.ascontiguousarray(array[..., ::-1]) for name, array in first.items()}
    try:
        found = together()({name: np.concatenate([first[name], second[name]]) for name in first})
    except ConversionError as exc:
        raise ConversionError(f"the model works on a batch of 1 only; {advice}") from exc
    for i, sample in enumerate((first, second)):
        for name, wanted in alone(sample).items():
            got = found[name][i : i + 1]
            if got.shape != wanted.shape or not np.allclose(got, wanted, rtol=1e-4, atol=1e-4, equal_nan=True):
                raise ConversionError(f"the model gives another {name} for two samples than for each alone; {advice}")
    return free


def determine_inputs(model: nn.Module, plan: ConversionPlan) -> Inputs:
    """Inputs of a model of which nothing is known but itself.

    Raises:
        ConfigError: What the user stated cannot be made.
        ConversionError: They do not follow from the model; the message says what to give.
    """
    names = _parameter_names(model)
    specs = as_given(plan)
    if specs:
        if plan.inputs[0].name and names and len(specs) != len(names) and len(specs) > _most(model):
            raise ConfigError(f"--input: {len(specs)} inputs given, but forward takes {', '.join(names)}")
        return Inputs(
            specs=specs,
            example=example_of(specs, sizes_given(plan)),
            note=f"input {', '.join(map(_describe, specs))} as given",
        )
    if len(names) > 1:
        commands = " ".join(f"--input {name}={BATCH},SIZE" for name in names)
        raise ConversionError(f"the model takes {len(names)} inputs: give the axes of each, e.g. {commands}")
    for option, value in (("--calibrate", plan.calibration), ("--evaluate", plan.evaluation)):
        shapes = {} if value is None or plan.preprocess is not None else peek_shapes(value)
        if set(shapes) - {"y"} == {"x"}:
            shape, dtype = shapes["x"]
            tokens = dtype.startswith("int") and (_first_layer(model) or ("", model, ""))[2] == "Embedding"
            spec = _spec((BATCH, *shape[1:]), dtype if tokens else "float32")
            return Inputs(
                specs=(spec,), example=example_of((spec,), {}), note=f"input {_describe(spec)} as in {option} {value}"
            )
    return _inferred(model)


def example_of(specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> Arrays:
    """One sample for each input: standard normal floats, zeros for integers; free axes have the sizes given.

    Raises:
        ConfigError: It would not fit into memory.
    """
    rng = np.random.default_rng(0)
    made: Arrays = {}
    for spec in specs:
        shape = tuple(
            size if isinstance(size, int) else 1 if size == BATCH else sizes.get(size, FREE_SIZE) for size in spec.shape
        )
        if math.prod(shape) * np.dtype(spec.dtype).itemsize > _MAX_BYTES:
            raise ConfigError(f"one sample of {_describe(spec)} would take more than {_MAX_BYTES >> 20} MiB")
        values = rng.standard_normal(shape) if spec.dtype.startswith("float") else np.zeros(shape)
        made[spec.name] = values.astype(spec.dtype)
    return made


def _inferred(model: nn.Module) -> Inputs:
    """An input that the first layer, and the layers behind it, determine."""
    first = _first_layer(model)
    if first is None:
        raise ConversionError(f"the model has no layer with parameters that its input shape could follow from; {_ASK}")
    name, layer, kind = first
    weights = dict(layer.named_parameters(recurse=False))
    where = f"inferred from the first layer, {name or kind}"
    spec: TensorSpec | None = None
    if kind == "Linear":
        spec = _spec((BATCH, weights["weight"].shape[1]))
    elif kind in ("LSTM", "GRU", "RNN"):
        if not getattr(layer, "batch_first", True):
            raise ConversionError(f"the first layer, {name or kind}, puts time before the batch; {_ASK}")
        spec = _spec((BATCH, _TIME, weights["weight_ih_l0"].shape[1]))
    elif kind == "Embedding":
        spec = _spec((BATCH, _TIME), "int64")
    elif kind in ("Conv1d", "Conv2d"):
        channels = weights["weight"].shape[1] * int(getattr(layer, "groups", 1))
        spec, how = _of_convolution(model, channels, int(kind[4]))
        where += how
    if spec is None:
        raise ConversionError(f"the input shape does not follow from the first layer ({name or kind}, {kind}); {_ASK}")
    example = example_of((spec,), {})
    try:
        with torch.inference_mode():
            model(*(torch.from_numpy(array) for array in example.values()))
    except Exception as exc:  # the model is the user's code
        raise ConversionError(
            f"the model does not run on {_describe(spec)}, which its first layer, {name or kind}, suggests "
            f"({reason(exc)}); {_ASK}"
        ) from exc
    return Inputs(specs=(spec,), example=example, note=f"input {_describe(spec)} {where}")


def _first_layer(model: nn.Module) -> tuple[str, nn.Module, str] | None:
    """Name, module and class name of the first layer that has parameters."""
    for name, layer in model.named_modules():
        if list(layer.parameters(recurse=False)):
            return name, layer, str(getattr(layer, "original_name", type(layer).__name__))
    return None


def _of_convolution(model: nn.Module, channels: int, n_axes: int) -> tuple[TensorSpec | None, str]:
    """The only size of a square image or of a signal that fits, when the layers behind allow just one."""
    device = "cpu" if isinstance(model, torch.jit.ScriptModule) else "meta"  # TorchScript holds its constants fast
    try:
        probe = model if device == "cpu" else copy.deepcopy(model).to(device)
    except Exception:  # noqa: BLE001  # models that cannot be copied: then the user must say
        return None, ""

    def fits(size: int) -> bool:
        try:
            with torch.inference_mode():
                probe(torch.zeros(1, channels, *[size] * n_axes, device=device))
        except Exception:  # noqa: BLE001  # the wrong size, or code that needs values
            return False
        return True

    found = _first_two(fits, _USUAL_SIZES)
    if not found and device == "meta":
        found = _first_two(fits, [size for size in range(1, _MAX_SIZE + 1) if size not in _USUAL_SIZES])
    if len(found) != 1:
        return None, ""
    return _spec((BATCH, channels, *found * n_axes)), ", and the only size that fits the layers behind it"


def _first_two(fits: Callable[[int], bool], sizes: Sequence[int]) -> list[int]:
    found: list[int] = []
    for size in sizes:
        if fits(size):
            found.append(size)
            if len(found) == 2:
                break
    return found


def _parameter_names(model: nn.Module) -> list[str]:
    """Names of the inputs that the model needs; none when its signature does not say."""
    if isinstance(model, torch.jit.ScriptModule):
        arguments = model.forward.schema.arguments[1:]  # type: ignore[attr-defined]
        return [argument.name for argument in arguments if not argument.has_default_value()]
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD and p.default is p.empty]


def _most(model: nn.Module) -> float:
    """The largest number of inputs that the model takes."""
    if isinstance(model, torch.jit.ScriptModule):
        return len(model.forward.schema.arguments) - 1  # type: ignore[attr-defined]
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return math.inf
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return math.inf
    return sum(p.kind == p.POSITIONAL_OR_KEYWORD for p in parameters)


def _spec(shape: tuple[int | str, ...], dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name="input", dtype=dtype, shape=shape)


def _describe(spec: TensorSpec) -> str:
    return f"{'' if spec.name == 'input' else spec.name + ' '}{spec.describe()} {spec.dtype}"
