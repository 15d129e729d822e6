"""Loading: from options to the model that everything is compared with, and its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import torch

from converter.data.samples import Samples, SampleStream
from converter.data.stream import open_samples
from converter.data.streams import is_contradicted, open_remembered, remembered
from converter.data.subset import random_samples
from converter.export.preprocessing import Preprocessing, parse_preprocessing
from converter.load.constants import constants_in
from converter.load.inputs import Given, check_can_be_made_up, samples_given
from converter.load.load import load_source
from converter.load.made_up import Fill
from converter.load.source import Source
from converter.load.states import axes_of_caches, find_states, may_be_states
from converter.load.training_mode import check_keeps_statistics
from converter.plan import ModelOptions
from converter.program.one_run import in_runs
from converter.program.programs import (
    onnx_file_program,
    onnx_program,
    output_shapes,
    output_specs,
    resized,
    torch_program,
)
from converter.program.tensors import Array, Arrays, Run, batch_size
from converter.verify.axes import FreeAxis, Probe, empty_axes, filled, free_axes
from converter.verify.division import divided
from converter.verify.original import Original
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.manifest import StatePair, check_class_names
from edge.contract.tensorspec import BATCH, DTYPES, TensorSpec, axis_name
from edge.inference.session import sqnr_db
from edge.inference.streams import zeros

RANDOM_SAMPLES = 256
_FREE_SIZE = 64
# The same sums in another order, by several threads, are nearer than this.
_REPEATED_DB = 90.0
_CARRIED_SAMPLES = 4


def load_original(options: ModelOptions, carried: str = "", *, in_float32: bool = True) -> Original:
    """Load the model and its data; after this it runs on them.

    Args:
        options: What the user said about the model.
        carried: Why an ONNX model is to be carried as its file has it; "" to work on it.
        in_float32: See `converter.load.inputs.Given`.

    Raises:
        ConfigError: An option or a file of samples is wrong or does not fit the model.
        ConversionError: The model cannot be loaded or does not run.
    """
    preprocessing = None if options.preprocess is None else parse_preprocessing(options.preprocess)
    given = Given(options=options, real=partial(_real, options, preprocessing), in_float32=in_float32)
    source = load_source(given, carried)
    _check_types(source)
    inputs, example = source.inputs, source.example
    if preprocessing is not None:
        inputs = (preprocessing.raw_input(inputs[0]), *inputs[1:])
        example = _first(options, inputs, 1) or _raw(source, inputs[0])
    run = _carried_program(source, options) if carried else _repeatable(_runner(source, preprocessing), example)
    axes: tuple[FreeAxis, ...] = ()
    if carried:
        specs = carried_outputs(source, run)
    else:
        multiples = {axis: step for option in options.inputs for axis, step in option.multiples.items()}
        if empty := empty_axes(inputs, example):
            example = filled(run, inputs, example)
            source = replace(source, example=resized(source.example, source.inputs, _sizes(inputs, example)))
        may_be_empty = empty | axes_of_caches(inputs)
        axes = free_axes(Probe(run=run, inputs=inputs, example=example), multiples, may_be_empty)
        if any(sizes.most is not None for sizes in source.ranges.values()):
            axes = tuple(axis if axis.range.most is not None else axis.only_tried() for axis in axes)
        specs = output_specs(run, inputs, example, {axis.name: axis.other for axis in axes})
    only = {axis.name for axis in axes if axis.range.most == axis.range.least}
    states = find_states(options.states, inputs, specs, options.answer)
    stream, measured, names = _streams(options, source, inputs, states, run)
    notes: tuple[str, ...] = ()
    if options.states is None and stream is not None and is_contradicted(stream, inputs, states, run):
        pairs = ", ".join(f"{pair.input}={pair.output}" for pair in states)
        notes = (
            f"{pairs} is no state: each sample has its own, which is no answer to the one before (--state {pairs})",
        )
        states = ()
    data = None
    if measured is not None:
        data = divided(stream, measured if options.evaluation is not None else None, inputs)
        samples = data.samples
    elif source.fill is not None:
        size = 1 if source.one_run is None else source.one_run.size
        samples = Samples(source.fill.draw(_CARRIED_SAMPLES * size), None)
    else:
        shown = example
        if options.example is None:
            check_can_be_made_up(inputs if preprocessing is None else inputs[1:])
        else:
            shown = _first(options, inputs, RANDOM_SAMPLES) or example
        samples = random_samples(inputs, shown, RANDOM_SAMPLES, real=options.example is not None)
    try:
        check_class_names(names or ())
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    original = Original(
        source=source,
        preprocessing=preprocessing,
        inputs=inputs,
        example=example,
        axes=axes,
        outputs=specs,
        run=run,
        stream=stream,
        calibration=None if data is None else data.calibration,
        samples=samples,
        real=data is not None,
        origin="" if data is None else data.origin,
        class_names=names,
        states=states,
        findings=() if data is None else data.findings,
        notes=(*notes, *(() if data is None else data.notes)),
    )
    return original.with_fixed({axis: f"the model takes no other size of {axis}" for axis in only}, options)


def _sizes(inputs: Sequence[TensorSpec], example: Arrays) -> dict[str, int]:
    return {axis: example[s.name].shape[i] for s in inputs for i, axis in enumerate(s.shape) if isinstance(axis, str)}


def _streams(
    options: ModelOptions, source: Source, inputs: Sequence[TensorSpec], states: Sequence[StatePair], run: Run
) -> tuple[SampleStream | None, SampleStream | None, tuple[str, ...] | None]:
    """What to calibrate on, what to measure on, and the names of the classes: as given, of the model, of the data."""
    names = options.class_names or source.class_names
    stream = None
    if options.calibration is not None:
        stream = open_remembered(options.calibration, "--calibrate", inputs, states, run, names)
    elif source.samples is not None:
        stream = remembered(source.samples, "the checkpoint's calibration data", inputs, states, run)
    names = names or (None if stream is None else stream.class_names)
    if options.evaluation is None:
        return stream, stream, names
    measured = open_remembered(options.evaluation, "--evaluate", inputs, states, run, names)
    return stream, measured, names or measured.class_names


def _repeatable(run: Run, example: Arrays) -> Run:
    """The same program, which gives the same outputs when it is given the same once more.

    Raises:
        ConversionError: It does not.
    """
    one, other = run(example), run(example)
    for name, array in one.items():
        if array.shape == other[name].shape and np.array_equal(array, other[name], equal_nan=array.dtype.kind == "f"):
            continue
        same_kind = array.dtype.kind == "f" and array.shape == other[name].shape
        if same_kind and sqnr_db(array, other[name]) >= _REPEATED_DB:
            continue
        raise ConversionError(
            f"the model gives another {name} each time it is given the same input: it draws random numbers (dropout or "
            f"noise in forward), or remembers in itself what it was given before. Give it what it needs as inputs"
        )
    return run


def _carried_program(source: Source, options: ModelOptions) -> Run:
    assert isinstance(source.model, onnx.ModelProto)
    return in_runs(onnx_file_program(options.source, constants_in(source.model, options.constants)), source.of_file)


def _first(options: ModelOptions, inputs: tuple[TensorSpec, ...], count: int) -> Arrays | None:
    """At most so many of the first real samples that the user gave, None without data."""
    for option, value in samples_given(options):
        try:
            return next(iter(open_samples(value, option, inputs).batches(count))).x
        except ConfigError:
            states = may_be_states(options.states, inputs)  # which data need not have
            if not 0 < len(states) < len(inputs):
                raise
            given = [spec for spec in inputs if spec not in states]
            x = next(iter(open_samples(value, option, given).batches(count))).x
            return {**x, **{spec.name: zeros(spec, batch_size(x, given)) for spec in states}}
    return None


def _real(
    options: ModelOptions, preprocessing: Preprocessing | None, inputs: tuple[TensorSpec, ...], count: int
) -> Arrays | None:
    """The same, as the model takes them, behind the preprocessing."""
    if preprocessing is None:
        return _first(options, inputs, count)
    found = _first(options, (preprocessing.raw_input(inputs[0]), *inputs[1:]), count)
    if found is not None:
        name = inputs[0].name
        with torch.inference_mode():
            found[name] = preprocessing.module(inputs[0])(
                torch.from_numpy(np.require(found[name], requirements=["C", "W"]))
            ).numpy()
    return found


def _raw(source: Source, raw: TensorSpec) -> Arrays:
    """The source's example with made-up values in front of the preprocessing."""
    own = source.inputs[0]
    sizes = {axis: source.example[own.name].shape[i] for i, axis in enumerate(own.shape)}
    shape = tuple(size if isinstance(size, int) else sizes.get(size, _FREE_SIZE) for size in raw.shape)
    rng = np.random.default_rng(0)
    made = rng.standard_normal(shape) if raw.dtype.startswith("float") else rng.integers(0, 256, shape)
    return {**source.example, raw.name: made.astype(raw.dtype)}


def carried_outputs(source: Source, run: Run) -> tuple[TensorSpec, ...]:
    """Names, types and axes of what a carried model gives: as onnxruntime infers them, else free.

    Raises:
        ConversionError: An output is of a type that a bundle cannot state.
    """
    assert isinstance(source.model, onnx.ModelProto)
    assert source.fill is not None
    how, stated = source.one_run, output_shapes(source.model)
    count = 3 * (1 if how is None else how.size)
    one, few = run(source.fill.draw()), run(source.fill.draw(count, seed=1))
    others = [found for fill in source.fill.variants() if (found := _given(run, fill)) is not None]
    specs = []
    for name, array in one.items():
        if str(array.dtype) not in DTYPES:
            raise ConversionError(f"the output {name} is {array.dtype}, expected one of {', '.join(DTYPES)}")
        grown = [i for i, pair in enumerate(zip(array.shape, few[name].shape, strict=False)) if pair == (1, count)]
        batch = grown[0] if grown and source.fill.has_batch else None
        known = stated[name] if how is None or how.axes.get(name, 0) is not None else [None, *stated[name]]
        axes: list[int | str] = []
        for i, size in enumerate(array.shape):
            is_known = i < len(known) and known[i] == size == few[name].shape[i]
            is_known = is_known and all(found[name].shape[i : i + 1] == (size,) for found in others)
            axes.append(BATCH if i == batch else size if is_known else axis_name("", name, i))
        specs.append(TensorSpec(name=name, dtype=str(array.dtype), shape=tuple(axes)))
    return tuple(specs)


def _given(run: Run, fill: Fill) -> Arrays | None:
    """What a program gives on made-up inputs, None where it does not run on them."""
    try:
        return run(fill.draw())
    except ConversionError:
        return None


def _check_types(source: Source) -> None:
    if isinstance(source.model, onnx.ModelProto):
        return
    odd = {str(value.dtype) for value in source.model.parameters() if value.dtype not in (torch.float32, torch.int64)}
    if odd:
        raise ConversionError(f"parameters of the type {', '.join(sorted(odd))}; call model.float() before saving it")
    check_keeps_statistics(source.model)


def _runner(source: Source, preprocessing: Preprocessing | None) -> Run:
    if isinstance(source.model, onnx.ModelProto):
        model = onnx_program(source.model, "the model")
    else:
        program = torch_program(source.model, source.inputs, source.output_names)

        def model(batch: Mapping[str, Array]) -> Arrays:
            source.check_sizes(batch)
            return program(batch)

    if preprocessing is None:
        return model
    module = preprocessing.module(source.inputs[0])

    def run(batch: Arrays) -> Arrays:
        name = source.inputs[0].name
        with torch.inference_mode():
            prepared = module(torch.from_numpy(np.ascontiguousarray(batch[name])))
        return model({**batch, name: prepared.numpy()})

    return run  # type: ignore[return-value]
