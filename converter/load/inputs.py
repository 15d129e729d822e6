"""What a model takes: as the user, the file or the data say, or as it follows from the layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from torch import nn

from converter.data.fit import LABELS
from converter.data.peek import peek_shapes
from converter.load.constants import array_of, bound, parameters_of
from converter.load.dictionaries import PERHAPS, entries_read, takes_dictionary, with_entries
from converter.plan import InputOption, ModelOptions
from converter.program.programs import resized, torch_program
from converter.program.tensors import Arrays, Run, of_whole_range
from edge.contract.errors import ConfigError, ConversionError, EdgeError
from edge.contract.foreign import foreign, reason
from edge.contract.tensorspec import BATCH, DTYPES, TensorSpec

# Tried in this order where neither the user nor data say how large a free axis is: small ones are quick, and networks
# for images halve their input five times or have windows of 7.
_MADE_UP_SIZES = (16, 32, 64, 128, 224, 256, 320, 512, 640)
_MAX_BYTES = 1 << 28
# Sizes that networks for images and signals are usually made for.
_USUAL_SIZES = (8, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 100, 112, 128, 160, 192, 224, 227, 240, 256, 299, 320)
_MAX_SIZE = 320
# Samples on which bytes and floats are told apart.
_TOLD_APART = 64
_TIME, _PAST = "time", "past"
_Headers = Mapping[str, tuple[tuple[int, ...], str]]  # shapes and types of arrays by name
_ASK = (
    "give it without the batch axis, e.g. --input-shape 3,224,224, or give --calibrate with real samples, which have it"
)


class NoValuesError(ConversionError):
    """No values can be made up for an input: the user has to give some."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Inputs:
    """What a model takes.

    Attributes:
        specs: Names, types and axes, in order.
        example: One sample.
        note: Where this comes from.
        model: The model, which has the constants in it.
    """

    specs: tuple[TensorSpec, ...]
    example: Arrays
    note: str
    model: nn.Module | onnx.ModelProto


def samples_given(given: ModelOptions) -> Iterator[tuple[str, str]]:
    """Option and value of everything that holds samples, the one to be tried first in front."""
    options = (("--example", given.example), ("--calibrate", given.calibration), ("--evaluate", given.evaluation))
    yield from ((option, value) for option, value in options if value is not None)


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Given:
    """What the user gave about the inputs: what they are, and samples of them.

    Attributes:
        options: As they were given.
        real: Gives at most so many real samples of inputs with these specs, at least one; None where no data are given.
        in_float32: Weights of 16 bits are worked on as float32: something is to be quantized.
    """

    options: ModelOptions
    real: Callable[[tuple[TensorSpec, ...], int], Arrays | None] = lambda _specs, _count: None
    in_float32: bool = True

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes that the user stated for free axes."""
        return {axis: size for option in self.options.inputs for axis, size in option.sizes.items()}

    def files(self) -> Iterator[tuple[str, str]]:
        """Option and value of what may hold samples, the likeliest first, where no preprocessing stands between."""
        if self.options.preprocess is None:
            yield from samples_given(self.options)

    def stated(self, specs: Sequence[TensorSpec], where: str) -> tuple[TensorSpec, ...]:
        """Inputs that a file states, with what the user says about their free axes: names, or sizes that fix them.

        Args:
            specs: As the file states them.
            where: What states them, for messages.

        Raises:
            ConfigError: The user names another input, or says what contradicts the file.
        """
        told = {option.name or specs[0].name: option for option in self.options.inputs}
        names = [spec.name for spec in specs]
        unknown = [name for name in told if name not in names]
        if unknown or (len(specs) > 1 and any(not option.name for option in self.options.inputs)):
            raise ConfigError(
                f"--input {unknown[0] if unknown else '-shape'}: {where} says that the model takes "
                f"{', '.join(map(_describe, specs))}; use these names"
            )
        return tuple(_merged(spec, told[spec.name], where) if spec.name in told else spec for spec in specs)

    def example(self, specs: Sequence[TensorSpec], run: Run | None = None, count: int = 1) -> Arrays:
        """Samples to run a model on: real ones where there are any, else made up.

        Args:
            specs: What it takes.
            run: It, to try other sizes of free axes where nobody stated them.
            count: How many; real ones are repeated where there are fewer.

        Raises:
            ConfigError: They would not fit into memory, or the data are not what the model takes.
            ConversionError: No values can be made up for an input, or the model runs on none of the sizes.
        """
        real = self.real(tuple(specs), count)
        if real is not None:
            return resized(real, specs, {BATCH: count})
        free = {axis for spec in specs for axis in spec.shape if isinstance(axis, str)} - {BATCH, *self.sizes}
        fault: ConversionError | None = None
        multiples = {axis: step for option in self.options.inputs for axis, step in option.multiples.items()}
        for size in _MADE_UP_SIZES if free and run is not None else _MADE_UP_SIZES[:1]:
            whole = {axis: -(-size // multiples.get(axis, 1)) * multiples.get(axis, 1) for axis in free}
            made = made_up(specs, {**whole, **self.sizes, BATCH: count})
            if run is None:
                return made
            try:
                run(made)
            except ConversionError as exc:
                fault = fault or exc
            else:
                return made
        assert fault is not None
        if free:
            axis = sorted(free)[0]
            raise ConversionError(
                f"{fault}; nor on larger ones, up to {_MADE_UP_SIZES[-1]}. Say how large free axes are, e.g. "
                f"--input {_option(specs, axis)}, or give --example or --calibrate with real samples"
            ) from fault
        raise fault


def _merged(spec: TensorSpec, told: InputOption, where: str) -> TensorSpec:
    """What the file states, with the names and sizes that the user gives to its free axes."""
    fits = len(told.shape) == len(spec.shape) and told.dtype in (None, spec.dtype)
    axes: list[int | str] = []
    for i, (stated, wanted) in enumerate(zip(spec.shape, told.shape, strict=False)):
        may_be_freed = i == 0 and stated == 1 and wanted == BATCH  # whether it can be, is found out later
        fits = fits and (isinstance(stated, str) or wanted == stated or may_be_freed)
        axes.append(stated if may_be_freed else wanted)
    if not fits:
        given = TensorSpec(name=spec.name, dtype=told.dtype or spec.dtype, shape=told.shape)
        raise ConfigError(f"--input {_describe(given)}: {where} says that the model takes {_describe(spec)}")
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=tuple(axes))


def _option(specs: Sequence[TensorSpec], axis: str) -> str:
    spec = next(spec for spec in specs if axis in spec.shape)
    return f"{spec.name}={','.join(f'{a}@SIZE' if a == axis else str(a) for a in spec.shape)}"


def stated(
    model: nn.Module | onnx.ModelProto, specs: tuple[TensorSpec, ...], given: Given, where: str, run: Run
) -> Inputs:
    """Inputs that a file states, see `Given.stated`, which were merged already, and an example that `run` takes."""
    note = f"input {', '.join(map(_describe, specs))} from {where}"
    return Inputs(specs=specs, example=given.example(specs, run), note=note, model=model)


def determine_inputs(model: nn.Module, given: Given) -> Inputs:
    """Inputs of a model of which nothing is known but itself.

    Raises:
        ConfigError: What the user stated cannot be made.
        ConversionError: They do not follow from the model; the message says what to give.
    """
    model, entries = with_entries_of(model, given)
    parameters, most = parameters_of(model)
    open_ = [parameter for parameter in parameters if parameter.name not in given.options.constants]
    names, options = [parameter.name for parameter in open_ if not parameter.optional], given.options.inputs
    if options:
        usual = tuple(
            TensorSpec(name=option.name or "input", dtype=option.dtype or "float32", shape=option.shape)
            for option in options
        )
        if options[0].name and names and len(usual) != len(names) and len(usual) > most - len(given.options.constants):
            raise ConfigError(f"--input: {len(usual)} inputs given, but forward takes {', '.join(names)}")
        types = {} if any(option.dtype for option in options) else _types_in_files(given, [spec.name for spec in usual])
        own = tuple(replace(spec, dtype=types.get(spec.name, spec.dtype)) for spec in usual)
        return _told_apart(model, usual, own, given, "as given")
    for option, value in given.files():
        shapes = {name: kind for name, kind in peek_shapes(value).items() if name not in given.options.constants}
        # A model that can tell its loss is given labels for that, and works without.
        named = [p.name for p in open_ if p.name in shapes and not (p.optional and p.name in LABELS)]
        arrays = set(shapes) - ({*LABELS} - {*names})
        if entries:
            found = {name: shapes[name] for name in entries if name in shapes}
        elif set(names) <= set(named) and len(named) > 1:
            found = {name: shapes[name] for name in named}
        elif len(names) <= 1 and (arrays == {"x"} or (len(arrays) == 1 and arrays == set(named))):
            found = {"input": shapes[arrays.pop()]}
        else:
            continue
        return _as_in_file(model, found, given, f"as in {option} {value}")
    if len(names) > 1:
        commands = " ".join(f"--input {name}={BATCH},SIZE" for name in names)
        raise ConversionError(
            f"the model takes {len(names)} inputs: give the axes of each, e.g. {commands}, or --calibrate with an .npz "
            f"that has an array for each: {', '.join(names)}"
        )
    return _inferred(model, given)


def _tried(model: nn.Module, specs: tuple[TensorSpec, ...], given: Given, note: str) -> Inputs:
    constants = given.options.constants
    model = bound(model, [spec.name for spec in specs], constants)
    example = given.example(specs, torch_program(model, specs))
    always = "".join(f", {name} always {constant.value}" for name, constant in constants.items())
    note = f"input {', '.join(map(_describe, specs))} {note}{always}"
    return Inputs(specs=specs, example=example, note=note, model=model)


def _as_in_file(model: nn.Module, arrays: _Headers, given: Given, note: str) -> Inputs:
    """Inputs like these arrays, by shape and type, samples first; what is there once is the same for all samples.

    Bytes are pixels, which devices have as floats: unless the model computes something else with the one than with the
    other. So with a single input of whole numbers of any type.
    """
    own, alone = _specs_of(arrays), len(arrays) == 1 and not _takes_tokens(model)
    usual = tuple(replace(s, dtype="float32") if alone or s.dtype in ("uint8", "float64") else s for s in own)
    return _told_apart(model, usual, own, given, note)


def _specs_of(arrays: _Headers) -> tuple[TensorSpec, ...]:
    """What these arrays are samples of, by shape and type; what is there once is the same for all samples."""
    count = max((shape[0] for shape, _ in arrays.values() if shape), default=1)
    found = []
    for name, (shape, dtype) in arrays.items():
        once = not shape or (shape == (1,) and count > 1)
        exact = dtype if dtype in DTYPES and dtype != "float16" else "float32"
        axes = tuple(size or _PAST for size in (shape if once else shape[1:]))  # what is empty will not stay so
        found.append(TensorSpec(name=name, dtype=exact, shape=axes if once else (BATCH, *axes)))
    return tuple(found)


def with_entries_of(model: nn.Module, given: Given) -> tuple[nn.Module, tuple[str, ...]]:
    """The model with the entries of the dictionary that it takes as inputs, and their names; as it is, without one.

    Raises:
        ConversionError: It takes a dictionary, and nobody says what is in it.
    """
    how, options = takes_dictionary(model), given.options
    named = [option.name for option in options.inputs if option.name]
    if how is None or (how == PERHAPS and options.inputs and len(named) < 2):
        return model, ()
    if named:
        entries = (*named, *options.constants)
        return with_entries(model, entries), entries
    for _, value in given.files():
        shapes = {n: kind for n, kind in peek_shapes(value).items() if kind[1] in DTYPES and n not in options.constants}
        usual = {"x", *(parameter.name for parameter in parameters_of(model)[0])}
        if not shapes or (how == PERHAPS and set(shapes) - {*LABELS} <= usual):
            continue
        samples = _samples(given, shapes)
        constants = {name: torch.from_numpy(array_of(name, c, c.dtype)) for name, c in options.constants.items()}
        entries_ = None if samples is None else entries_read(model, {**samples, **constants})
        if entries_ is None and how != PERHAPS:
            entries_ = tuple(name for name in shapes if name not in LABELS)  # what is missing the model says itself
        if entries_:
            entries_ = tuple(dict.fromkeys((*entries_, *constants)))
            return with_entries(model, entries_), entries_
    if how == PERHAPS:
        return model, ()
    raise ConversionError(
        "forward takes a dictionary of tensors: give --calibrate or --example with an .npz that has an array for each "
        "entry, or --input NAME=AXES for each"
    )


def _samples(given: Given, shapes: _Headers) -> dict[str, torch.Tensor] | None:
    """Two of the samples that a file holds, all arrays; None where they cannot be read."""
    try:
        found = given.real(_specs_of(shapes), 2)
    except ConfigError:
        return None
    return None if found is None else {name: torch.from_numpy(array) for name, array in found.items()}


def _types_in_files(given: Given, names: Sequence[str]) -> dict[str, str]:
    """Types of the arrays that hold these inputs, whole numbers and double precision, where there are data."""
    for _, value in given.files():
        arrays = {name: dtype for name, (_, dtype) in peek_shapes(value).items() if name != "y"}
        if len(names) == 1 and len(arrays) == 1:
            arrays = {names[0]: next(iter(arrays.values()))}
        return {name: dtype for name, dtype in arrays.items() if dtype in DTYPES and dtype != "float16"}
    return {}


def _told_apart(
    model: nn.Module, usual: tuple[TensorSpec, ...], own: tuple[TensorSpec, ...], given: Given, note: str
) -> Inputs:
    """Inputs of the usual types, or of the data's own where the model computes something else with the usual.

    It may do so for values that no sample has: bytes wrap, and floats have no whole numbers beyond 2^24.
    """
    if own == usual:
        return _tried(model, usual, given, note)
    types = ", ".join(dict.fromkeys(b.dtype for a, b in zip(usual, own, strict=True) if a != b))
    try:
        exactly = _tried(model, own, given, note)
        samples = given.real(own, _TOLD_APART) or exactly.example
        wanted = torch_program(exactly.model, own)(samples)
    except EdgeError:  # a convolution takes no bytes
        return _tried(model, usual, given, f"{note}, where it is {types}, which the model does not take")
    try:
        inputs = _tried(model, usual, given, f"{note}, where it is {types}, with which the model computes the same")
        found = torch_program(inputs.model, usual)({s.name: samples[s.name].astype(s.dtype) for s in usual})
    except EdgeError:
        return exactly
    if not _are_same(wanted, found):
        return exactly
    for others in of_whole_range(samples):
        try:
            wanted = torch_program(exactly.model, own)(others)
            found = torch_program(inputs.model, usual)({s.name: others[s.name].astype(s.dtype) for s in usual})
        except EdgeError:  # numbers of categories
            continue
        if not _are_same(wanted, found):
            return exactly
    return inputs


def _are_same(wanted: Arrays, found: Arrays) -> bool:
    return all(np.allclose(array, found[name], rtol=1e-4, atol=1e-5, equal_nan=True) for name, array in wanted.items())


def _takes_tokens(model: nn.Module) -> bool:
    return (_first_layer(model) or ("", model, ""))[2] == "Embedding"


def made_up(specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> Arrays:
    """Samples for each input: standard normal floats, uint8 from 0 to 255; free axes have the sizes given.

    Raises:
        ConfigError: They would not fit into memory.
        ConversionError: There is an input of another type: what its numbers mean nobody has said.
    """
    check_can_be_made_up(specs)
    rng = np.random.default_rng(0)
    made: Arrays = {}
    for spec in specs:
        shape = tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)
        if math.prod(shape) * np.dtype(spec.dtype).itemsize > _MAX_BYTES:
            raise ConfigError(f"one sample of {_describe(spec)} would take more than {_MAX_BYTES >> 20} MiB")
        values = rng.integers(0, 256, shape) if spec.dtype == "uint8" else rng.standard_normal(shape)
        made[spec.name] = np.asarray(values, spec.dtype)
    return made


def check_can_be_made_up(specs: Sequence[TensorSpec]) -> None:
    """Raise ConversionError when there is an input whose numbers mean what nobody has said: tokens, lengths, masks."""
    for spec in specs:
        if not spec.dtype.startswith("float") and spec.dtype != "uint8":
            raise NoValuesError(
                f"the model takes {spec.name} as {spec.dtype}, for which no values can be made up: give --calibrate "
                f"with real samples, --example with one at least, or, if it is always the same, --constant "
                f"{spec.name}=VALUE"
            )


def _inferred(model: nn.Module, given: Given) -> Inputs:
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
    model = bound(model, [spec.name], given.options.constants)
    run = torch_program(model, (spec,))
    example = given.example((spec,), run)
    try:
        run(example)
    except ConversionError as exc:
        raise ConversionError(
            f"the model does not run on {_describe(spec)}, which its first layer, {name or kind}, suggests "
            f"({reason(exc.__cause__ or exc)}); {_ASK}"
        ) from exc
    return Inputs(specs=(spec,), example=example, note=f"input {_describe(spec)} {where}", model=model)


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
        with foreign("the model cannot be copied", ConversionError):
            probe = model if device == "cpu" else copy.deepcopy(model).to(device)
    except ConversionError:  # then the user must say
        return None, ""

    def fits(size: int) -> bool:
        try:
            with torch.inference_mode(), foreign("the model does not run", ConversionError):
                probe(torch.zeros(1, channels, *[size] * n_axes, device=device))
        except ConversionError:  # the wrong size, or code that needs values
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


def _spec(shape: tuple[int | str, ...], dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name="input", dtype=dtype, shape=shape)


def _describe(spec: TensorSpec) -> str:
    return f"{'' if spec.name == 'input' else spec.name + ' '}{spec.describe()} {spec.dtype}"
