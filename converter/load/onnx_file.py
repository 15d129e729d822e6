"""``.onnx`` of any framework: brought to the operator set that the converter works with, or carried as it is.

What stock onnxruntime runs can be shipped. Where the graph cannot be worked on (an operator that the older set does not
have, a first axis that is no batch), it is *carried*: the same graph, checked against the file, without a head and
without quantization.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
from onnx import helper, numpy_helper

from converter.graph.canonical import canonical
from converter.graph.names import name_nodes
from converter.graph.nodes import OPSET, tensors_of
from converter.graph.order import sort_nodes
from converter.graph.raised import has_half_weights, in_single_precision
from converter.load.constants import bind_onnx, constants_in
from converter.load.free_batch import (
    Together,
    fixed_batches,
    freed,
    freed_note,
    has_samples,
    rounds_together,
    state_types,
    sways,
    together,
    with_batch,
    with_outputs,
    works_on_batches,
)
from converter.load.inputs import Given
from converter.load.made_up import Fill, found_fill, same_bits
from converter.load.opset import SEVEN, in_our_opset, in_set_seven, version_of
from converter.load.texts import check_no_text, without_texts
from converter.load.training_mode import in_onnx
from converter.program.beside import near
from converter.program.one_run import OneRun, in_runs
from converter.program.programs import one_run_program, onnx_file_program, onnx_program
from converter.program.tensors import Arrays, Run
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.foreign import foreign
from edge.contract.tensorspec import BATCH, DTYPES, TensorSpec, axis_name
from edge.inference.session import sqnr_db

_MAX_BYTES = (1 << 31) - 1
# Stock onnxruntime has operators of these.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.training", "com.microsoft", "com.microsoft.nchwc")
# IR 4 is the first in which an initializer need not be an input, too.
_IR_OF_FREE_INITIALIZERS = 4
_REAL = 8
_FEW = 4
# Sixteen bits round to 66 dB; a hundred operators one after the other add up to 20 dB.
_MIN_RAISED_DB = 40.0
# Nothing that float32 could show is different.
_SAME_DB = 120.0
_ADVICE = "to have it quantized or trained, export it with a free batch axis (dynamic_axes={'NAME': {0: 'batch'}})"
_ADVICE_FREE = (
    "the first axis is free, but several rows give other outputs than each alone: to have it quantized or trained, let "
    "it compute along the other axes only"
)
# What has as many rows as it finds has no axis of samples.
_FINDS = ("NonMaxSuppression", "NonZero", "Unique", "Compress")
_RANDOM = re.compile(r"Random|Bernoulli|Multinomial|Dropout")


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class OnnxFile:
    """A graph.

    Attributes:
        model: Every initializer inside; none is an input.
        inputs: Where samples can be put together, the axis along which they lie is ``batch``.
        one_run: How samples go into a run that takes a fixed number of them, which the graph states, too; None where
            the number is free, or there is no batch axis.
        of_file: How they go into a run of the file itself; None where the number is free there, too.
        fill: Inputs on which it runs.
        notes: What was changed.
        class_names: None where the file names none.
    """

    model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    one_run: OneRun | None
    of_file: OneRun | None
    fill: Fill | None
    notes: tuple[str, ...]
    class_names: tuple[str, ...] | None = None


def read_onnx(path: Path, given: Given) -> OnnxFile:
    """A graph that may be worked on, in operator set `OPSET`; it gives what the file gives.

    Args:
        path: The file; external data are read from its folder.
        given: What the user says about the inputs, and samples to try.

    Raises:
        ConversionError: It is damaged, uses what onnxruntime does not have, or cannot be worked on.
    """
    model, notes, names = _read(path)
    with foreign(f"{path} is not a valid ONNX model", ConversionError):
        onnx.checker.check_model(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    _fill_sparse(model.graph)
    name_nodes(model.graph)
    notes += _training_notes(model)
    notes += bind_onnx(model, given.options.constants)
    specs = _specs(model, given)
    if not specs:
        raise ConversionError(f"{path} has no input: its output is always the same")
    try:
        original = one_run_program(model, str(path))
    except ConversionError:
        if (version := version_of(model)) >= SEVEN:
            raise
        model = in_set_seven(model, str(path))
        original = one_run_program(model, str(path))
        notes.append(
            f"operator set {version}, which onnxruntime does not run, was read as {SEVEN}: broadcasts written out"
        )
    if (version := version_of(model)) != OPSET:
        notes.append(f"operator set {version} of the file brought to {OPSET}")
    model = in_our_opset(model, str(path))
    if any(BATCH in spec.shape for spec in specs):
        arranged = _stated_free(model, specs, original, lambda found: _given_or_made_up(found, original, given))
    else:
        arranged = _stated_fixed(model, specs, original, _fill(specs, original, given), rewritten=True)
    if arranged is None:
        is_free = any(BATCH in spec.shape for spec in specs)
        raise ConversionError(
            f"no axis of the inputs is one of samples, {_described(specs)}; {_advice(model, is_free=is_free)}"
        )
    model, specs, notes = arranged.model, arranged.fill.specs, notes + arranged.notes
    original = in_runs(original, arranged.of_file)
    example = given.example(specs, original)
    _check_same(onnx_program(model, "the graph in another operator set")(example), original(example), path)
    if given.in_float32 and has_half_weights(model):
        model, note = _raised(model, original, arranged.fill)
        notes.append(note)
    return OnnxFile(
        model=model,
        inputs=specs,
        one_run=arranged.one_run,
        of_file=arranged.of_file,
        fill=None,
        notes=tuple(notes),
        class_names=names,
    )


def carry_onnx(path: Path, given: Given) -> OnnxFile:
    """A graph as its file has it; after this it is known where its samples lie, if anywhere.

    Args:
        path: The file; external data are read from its folder.
        given: What the user says about the inputs, and samples to try.

    Raises:
        ConversionError: onnxruntime does not run it, or it has inputs or outputs that a bundle cannot state, or what it
            gives is a matter of chance.
    """
    model, notes, names = _read(path)
    changed = bool(notes)
    notes += _training_notes(model)
    notes += bind_onnx(model, given.options.constants)
    specs = _specs(model, given)
    constants = constants_in(model, given.options.constants)
    # Of texts and maps the tensors behind them are compared, which the file itself does not give.
    original = one_run_program(model, str(path), constants) if changed else onnx_file_program(path, constants)
    stated_free = any(BATCH in spec.shape for spec in specs)
    fault: ConversionError | None = None
    if stated_free:
        try:
            arranged = _stated_free(model, specs, original, lambda found: _fill(found, original, given))
        except ConversionError as exc:  # it does not run on one sample, then on two; perhaps on other sizes
            arranged, fault = None, exc
    else:
        fill = _fill(specs, original, given)
        arranged = _stated_fixed(model, specs, original, fill, rewritten=False)
    if arranged is not None and arranged.of_file is None and not works_on_batches(original, arranged.fill):
        arranged = None
    if arranged is None and stated_free:
        specs = tuple(_without_batch(spec) for spec in specs)
        try:
            fill = _fill(specs, original, given)
        except ConversionError as exc:
            raise fault or exc from exc
        notes.append("the first axis is free, but not one of samples")
    if arranged is None:
        if fill.real is not None:  # samples were put together to find out; it takes one
            fill = Fill(specs=specs, real=given.real(specs, 1))
        _check_repeatable(model, original, fill)
        notes.append("no axis is one of samples: the model is given whole tensors and cannot be quantized")
        return OnnxFile(
            model=model, inputs=specs, one_run=None, of_file=None, fill=fill, notes=tuple(notes), class_names=names
        )
    _check_repeatable(model, in_runs(original, arranged.of_file), arranged.fill)
    notes += arranged.notes
    return OnnxFile(
        model=arranged.model,
        inputs=arranged.fill.specs,
        one_run=arranged.one_run,
        of_file=arranged.of_file,
        fill=arranged.fill,
        notes=tuple(notes),
        class_names=names,
    )


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Arranged:
    """Where the samples of a graph lie.

    Attributes:
        model: It says so of itself.
        of_file: How samples go into a run of the file, None where their number is free there.
        one_run: How they go into a run of `model`.
        fill: Inputs on which it runs; its specs have the batch axis.
        notes: What was changed.
    """

    model: onnx.ModelProto
    of_file: OneRun | None
    one_run: OneRun | None
    fill: Fill
    notes: list[str]


def _stated_free(
    model: onnx.ModelProto, specs: tuple[TensorSpec, ...], run: Run, filled: Callable[[tuple[TensorSpec, ...]], Fill]
) -> _Arranged | None:
    """Where the samples of a graph lie that says that their number is free; None where several are no samples.

    Raises:
        ConversionError: It does not run.
    """
    hidden = _with_hidden_batch(specs)
    fault: ConversionError | ConfigError | None = None
    for found in [hidden, specs] if hidden != specs else [specs]:
        try:
            fill = filled(found)
            verdict = together(run, fill)
        except (ConfigError, ConversionError) as exc:
            fault = fault or exc
            continue
        if verdict is Together.SAME:
            if why := sways(run, None, run, fill):
                note = f"the batch axis, free in the file, is fixed at 1: samples change each other's answers ({why})"
                return _one_at_once(model, found, run, fill, f"{note}; devices give one sample at once")
            state_types(model, found)
            return _Arranged(model=model, of_file=None, one_run=None, fill=fill, notes=[])
        if verdict is Together.OTHER and (by := rounds_together(model, run, fill)):
            note = f"the batch axis, free in the file, is fixed at 1: {by} takes one scale for all samples of a run"
            return _one_at_once(model, found, run, fill, f"{note}; devices give one sample at once")
        if verdict is Together.ONE_AT_ONCE and not _of_several_names(model):
            return _freed(model, found, run, fill) or _one_at_once(model, found, run, fill, _fixed_note(1))
    if fault is not None:
        raise fault
    return None


def _freed(model: onnx.ModelProto, specs: tuple[TensorSpec, ...], run: Run, fill: Fill) -> _Arranged | None:
    """A graph that takes one sample at once because of an input that states no batch axis: a state ``(4, 1, 64)``."""
    ones = {s.name: [i for i, axis in enumerate(s.shape) if axis == 1] for s in specs if BATCH not in s.shape}
    for place in range(max(map(len, ones.values()), default=0)):
        more = {name: found[min(place, len(found) - 1)] for name, found in ones.items() if found}
        axes = {spec.name: axis for spec in specs if (axis := spec.batch_axis) is not None} | more
        many = replace(fill, specs=with_batch(specs, OneRun(size=1, axes=axes)))
        how = with_outputs(OneRun(size=1, axes=axes), run, many)
        if (opened := freed(model, how, run, many)) is not None:
            state_types(opened, many.specs)
            return _Arranged(model=opened, of_file=how, one_run=None, fill=many, notes=[freed_note(1)])
    return None


def _one_at_once(model: onnx.ModelProto, specs: tuple[TensorSpec, ...], run: Run, fill: Fill, note: str) -> _Arranged:
    axes = {spec.name: axis for spec in specs if (axis := spec.batch_axis) is not None}
    return _fixed(model, with_outputs(OneRun(size=1, axes=axes), run, fill), run, fill, note)


def _fixed(model: onnx.ModelProto, how: OneRun, run: Run, fill: Fill, note: str) -> _Arranged:
    state_types(model, fill.specs)
    (taken,) = how.runs(fill.draw(how.size))
    how.state(model, {name: array.ndim for name, array in run(taken).items()})
    return _Arranged(model=model, of_file=how, one_run=how, fill=fill, notes=[note])


def _stated_fixed(
    model: onnx.ModelProto, specs: tuple[TensorSpec, ...], run: Run, fill: Fill, *, rewritten: bool
) -> _Arranged | None:
    """Where the samples of a graph lie that takes a fixed number, None where there are none.

    Args:
        model: The graph.
        specs: As the file states them.
        run: The file.
        fill: Inputs on which it runs.
        rewritten: Whether the graph may be written anew, if it is not free as it stands.
    """
    fixed: _Arranged | None = None
    for inputs in fixed_batches(specs):
        many = replace(fill, specs=with_batch(specs, inputs))
        try:
            how = with_outputs(inputs, run, many)
            opened = freed(model, how, run, many)
            if opened is None and rewritten:  # initial states and sizes that are written down may go
                opened = freed(canonical(model), how, run, many)
        except ConversionError:
            continue
        if opened is not None:
            state_types(opened, many.specs)
            return _Arranged(model=opened, of_file=how, one_run=None, fill=many, notes=[freed_note(how.size)])
        if fixed is None and has_samples(run, how, many):
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            fixed = _fixed(copy, how, run, many, _fixed_note(how.size))
    return fixed


def _with_hidden_batch(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """An axis without a name, where the first is fixed, may be that of the samples: a state ``(2, ?, 128)``."""
    found = []
    for spec in specs:
        free = [i for i, axis in enumerate(spec.shape) if isinstance(axis, str)]
        hidden = BATCH not in spec.shape and len(free) == 1 and spec.shape[free[0]] == axis_name("", spec.name, free[0])
        shape = tuple(BATCH if hidden and i == free[0] else axis for i, axis in enumerate(spec.shape))
        found.append(replace(spec, shape=shape))
    return tuple(found)


def _read(path: Path) -> tuple[onnx.ModelProto, list[str], tuple[str, ...] | None]:
    """The file whole, its nodes in running order, its initializers no inputs; what was changed; names of classes."""
    with foreign(f"{path} is not a valid ONNX model", ConversionError):
        if path.stat().st_size > _MAX_BYTES:
            raise ConversionError(f"{path} is larger than the 2 GiB that an ONNX file can have")
        model = onnx.load(path, load_external_data=False)
        _check_external(model, path)
        onnx.load_external_data_for_model(model, str(path.parent))  # refuses data outside of the file's folder
    own = {_text(function.domain) for function in model.functions}
    for domain, name in sorted(_operators(model.graph)):
        if domain not in _DOMAINS and domain not in own:
            raise ConversionError(
                f"{path} uses the operator {name} of the domain {domain!r}, which onnxruntime does not have"
            )
    if not model.graph.node and not model.graph.output:
        raise ConversionError(f"{path} is not a valid ONNX model: it has no output")
    for info in model.graph.input:
        check_no_text(info)
        kind = info.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            what = (kind or "").removesuffix("_type").replace("_", " ")
            raise ConversionError(f"{info.name} is of the type {what}; inputs and outputs must be tensors")
    notes, names = without_texts(model)
    if sort_nodes(model.graph):
        notes.append("nodes of the file were not in an order in which they can run; they were sorted")
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [info for info in model.graph.input if info.name not in weights]  # before IR 4 weights were inputs, too
    if len(inputs) < len(model.graph.input):
        model.ir_version = max(model.ir_version, _IR_OF_FREE_INITIALIZERS)
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    return model, notes, names


def _check_external(model: onnx.ModelProto, path: Path) -> None:
    """Raise ConversionError where the file and its external data are too large together: before they are read."""
    size = path.stat().st_size
    for tensor in tensors_of(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            told = {entry.key: entry.value for entry in tensor.external_data}
            file = path.parent / told.get("location", "")
            rest = file.stat().st_size - int(told.get("offset", 0)) if file.is_file() else 0
            size += min(int(told["length"]), rest) if told.get("length") else rest
    if size > _MAX_BYTES:
        raise ConversionError(
            f"{path} has {size / (1 << 30):.1f} GiB of weights with its external data; a graph can have 2 GiB, and the "
            f"devices of a profile less: choose a smaller model"
        )


def _operators(graph: onnx.GraphProto) -> set[tuple[str, str]]:
    """Domain and name of every operator, those inside branches and bodies included."""
    found = set()
    for node in graph.node:
        found.add((_text(node.domain), _text(node.op_type)))
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
                found |= _operators(inner)
    return found


def _text(name: str | bytes) -> str:
    """A name of a file that may be damaged: what is no UTF-8 comes as bytes."""
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def _fill_sparse(graph: onnx.GraphProto) -> None:
    """Put ordinary initializers in the place of sparse ones."""
    for sparse in graph.sparse_initializer:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        whole = np.zeros(tuple(sparse.dims), values.dtype)
        if indices.ndim == 1:
            whole.reshape(-1)[indices] = values
        else:
            whole[tuple(indices.T)] = values
        graph.initializer.append(numpy_helper.from_array(whole, sparse.values.name))
    del graph.sparse_initializer[:]


def _specs(model: onnx.ModelProto, given: Given) -> tuple[TensorSpec, ...]:
    return given.stated(_stated(model), "the file") if model.graph.input else ()


def _stated(model: onnx.ModelProto) -> list[TensorSpec]:
    """The inputs as the file has them; an axis with the name of another input's first one is the batch axis, too.

    Where first axes have several names, one that another axis of an input has as well is none of samples.
    """
    batch, others = _first_names(model), set[str]()
    if len(batch) > 1:
        others = {axis.dim_param for info in model.graph.input for axis in info.type.tensor_type.shape.dim[1:]}
    return [_spec(info, batch - others, others) for info in model.graph.input]


def _of_several_names(model: onnx.ModelProto) -> bool:
    """Whether the file calls first axes by different names: then they need not be one, and that of samples."""
    return len(_first_names(model)) > 1


def _first_names(model: onnx.ModelProto) -> set[str]:
    axes = [info.type.tensor_type.shape.dim for info in model.graph.input]
    return {each[0].dim_param for each in axes if each and each[0].dim_param.strip("_?")}


def _fill(specs: tuple[TensorSpec, ...], run: Run, given: Given) -> Fill:
    """Inputs on which the graph runs: real ones, where they are given, else made up."""
    fixed = [] if any(BATCH in spec.shape for spec in specs) else fixed_batches(specs)
    many = with_batch(specs, fixed[0]) if fixed else specs
    try:
        real = given.real(many, _REAL)
    except ConfigError:
        if many == specs:
            raise
        real = given.real(specs, _REAL)
    return found_fill(specs, run, given.sizes) if real is None else Fill(specs=specs, real=real)


def _given_or_made_up(specs: tuple[TensorSpec, ...], run: Run, given: Given) -> Fill:
    """The same, where what integers mean must not be guessed."""
    real = given.real(specs, _REAL)
    return Fill(specs=specs, real=given.example(specs, run) if real is None else real)


def _spec(info: onnx.ValueInfoProto, batch: Container[str], others: Container[str]) -> TensorSpec:
    tensor = info.type.tensor_type
    dtype = _dtype(tensor.elem_type)
    if dtype not in DTYPES:
        raise ConversionError(f"the input {info.name} is {dtype}, expected one of {', '.join(DTYPES)}")
    if not info.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise ConversionError(f"the input {info.name} has no known shape; export the model with one")
    axes: list[int | str] = []
    for i, dimension in enumerate(tensor.shape.dim):
        if dimension.HasField("dim_value") and dimension.dim_value >= 0:
            axes.append(dimension.dim_value)
        else:
            is_first = i == 0 and dimension.dim_param not in others
            is_batch = is_first or (dimension.dim_param in batch and BATCH not in axes)
            axes.append(BATCH if is_batch else axis_name(dimension.dim_param, info.name, i))
    try:
        return TensorSpec.from_json({"name": info.name, "dtype": dtype, "shape": axes})
    except ValueError as exc:
        raise ConversionError(f"the graph's inputs cannot be used: {exc}") from exc


def _dtype(element: int) -> str:
    """The numpy name of an element type, or ONNX's own where numpy has none."""
    try:
        return str(helper.tensor_dtype_to_np_dtype(element))
    except KeyError:
        return "of an unknown type"


def _without_batch(spec: TensorSpec) -> TensorSpec:
    shape = tuple(axis_name("", spec.name, i) if axis == BATCH else axis for i, axis in enumerate(spec.shape))
    return replace(spec, shape=shape)


def _advice(model: onnx.ModelProto, *, is_free: bool) -> str:
    """What to do about a graph without an axis of samples; `is_free`: whether the first one is free all the same."""
    used = {name for _, name in _operators(model.graph)}
    finds = next((name for name in _FINDS if name in used), None)
    if finds is None:
        return _ADVICE_FREE if is_free else _ADVICE
    return (
        f"{finds} gives as many rows as it finds, so that an output has no such axis: to have it quantized or judged "
        f"sample by sample, let the model end in front of it, and do the rest on the device"
    )


def _described(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.describe()}" for spec in specs)


def _fixed_note(size: int) -> str:
    return f"the batch axis is fixed at {size}; devices give {'one sample' if size == 1 else f'{size} samples'} at once"


def _training_notes(model: onnx.ModelProto) -> list[str]:
    if not in_onnx(model):
        return []
    return [
        "the file was exported in training mode: BatchNormalization normalizes over all that it is given at once, so "
        "that a sample alone gives something else, a constant where it is a vector. Call model.eval() before the "
        "export, with training=TrainingMode.EVAL"
    ]


def _check_repeatable(model: onnx.ModelProto, run: Run, fill: Fill) -> None:
    """Raise ConversionError where the same inputs give other outputs when they are given again."""
    inputs = fill.draw()
    one, other = run(inputs), run(inputs)
    differs = next((name for name in one if not same_bits(one[name], other[name])), None)
    if differs is not None:
        random = sorted({name for _, name in _operators(model.graph) if _RANDOM.search(name)})
        by = f", by {' and '.join(random)}" if random else ""
        raise ConversionError(f"{differs} is a matter of chance{by}: there is nothing that a device could be held to")


def _raised(model: onnx.ModelProto, original: Run, fill: Fill) -> tuple[onnx.ModelProto, str]:
    """The graph in float32, if its outputs are those of the file but for the rounding; and what is to be said of it."""
    raised, few = in_single_precision(model), fill.draw(_FEW)
    try:
        found, wanted = onnx_program(raised, "the graph in float32")(few), original(few)
        ratios = [sqnr_db(array, found[name]) for name, array in wanted.items() if array.dtype.kind == "f"]
        same = all(np.array_equal(array, found[name]) for name, array in wanted.items() if array.dtype.kind != "f")
    except (ConversionError, ValueError) as exc:
        return model, f"weights in half precision stay so: {exc}"
    ratio = min(ratios, default=200.0) if same else -200.0
    if not ratio >= _MIN_RAISED_DB:
        return model, (
            f"weights in half precision stay so: in float32 the outputs would be others ({ratio:.0f} dB, at least "
            f"{_MIN_RAISED_DB:.0f} dB)"
        )
    rounds = "" if ratio >= _SAME_DB else ", for it rounds between its operators"
    return raised, (
        f"weights in half precision were raised to float32, which keeps their values, to be worked on; the outputs are "
        f"those of the file to {ratio:.0f} dB{rounds}"
    )


def _check_same(found: Arrays, wanted: Arrays, path: Path) -> None:
    for name, array in wanted.items():
        if array.shape != found[name].shape or not near(array, found[name]):
            raise ConversionError(
                f"{path} gives another {name} in operator set {OPSET}; export it with opset_version={OPSET}"
            )
