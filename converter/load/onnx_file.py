"""``.onnx`` of any framework: brought to the operator set that the converter works with, or carried as it is.

What stock onnxruntime runs can be shipped. Where the graph cannot be worked on (an operator that the older set does not
have, a first axis that is no batch), it is *carried*: the same graph, checked against the file, without a head and
without quantization.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
from onnx import helper, numpy_helper

from converter.graph.build import OPSET
from converter.graph.canonical import canonical
from converter.graph.names import name_nodes
from converter.graph.order import sort_nodes
from converter.load.constants import bind_onnx, constants_in
from converter.load.free_batch import fixed_batch, freed, in_groups, near, state_types, with_batch, works_on_batches
from converter.load.inputs import BATCH_FREED, Given
from converter.load.made_up import Fill, found_fill, same_bits
from converter.load.opset import in_our_opset, version_of
from converter.program.programs import onnx_file_program, onnx_program
from converter.program.tensors import Arrays, Run
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.foreign import foreign
from edge.contract.tensorspec import BATCH, DTYPES, TensorSpec, axis_name

_MAX_BYTES = (1 << 31) - 1
# Stock onnxruntime has operators of these.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.training", "com.microsoft", "com.microsoft.nchwc")
# IR 4 is the first in which an initializer need not be an input, too.
_IR_OF_FREE_INITIALIZERS = 4
_REAL = 8
_ORDERS = 3
_ADVICE = "to have it quantized or trained, export it with a free batch axis (dynamic_axes={'NAME': {0: 'batch'}})"
_RANDOM = re.compile(r"Random|Bernoulli|Multinomial|Dropout")


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class OnnxFile:
    """A graph.

    Attributes:
        model: Every initializer inside; none is an input.
        inputs: As the graph states them; the first axis of all is ``batch`` where samples can be put together.
        batch: So many samples the graph takes at once; None where the number is free, or there is no batch axis.
        fill: Inputs on which it runs.
        notes: What was changed.
    """

    model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    batch: int | None
    fill: Fill | None
    notes: tuple[str, ...]


def read_onnx(path: Path, given: Given) -> OnnxFile:
    """A graph that may be worked on, in operator set `OPSET`; it gives what the file gives.

    Args:
        path: The file; external data are read from its folder.
        given: What the user says about the inputs, and samples to try.

    Raises:
        ConversionError: It is damaged, uses what onnxruntime does not have, or cannot be worked on.
    """
    model, notes = _read(path)
    with foreign(f"{path} is not a valid ONNX model", ConversionError):
        onnx.checker.check_model(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    _fill_sparse(model.graph)
    name_nodes(model.graph)
    notes += bind_onnx(model, given.plan.constants)
    specs = _specs(model, given)
    if not specs:
        raise ConversionError(f"{path} has no input: its output is always the same")
    original = onnx_program(model, str(path))
    if (version := version_of(model)) != OPSET:
        notes.append(f"operator set {version} of the file brought to {OPSET}")
    model = in_our_opset(model, str(path))
    batch = None
    if not any(BATCH in spec.shape for spec in specs):
        batch = fixed_batch(specs)
        if batch is None:
            raise ConversionError(f"no axis of the inputs is one of samples, {_described(specs)}; {_ADVICE}")
        fill = _fill(specs, original, given)
        specs = with_batch(specs)
        many = replace(fill, specs=specs)
        opened = freed(model, batch, original, many)
        if opened is None:  # initial states and sizes that are written down for so many samples may go
            opened = freed(canonical(model), batch, original, many)
        if opened is None:
            raise ConversionError(f"it works on {_samples(batch)} at once only; {_ADVICE}")
        model, batch = opened, None
        notes.append(BATCH_FREED if batch == 1 else _freed_note(fixed_batch(fill.specs)))
    state_types(model, specs)
    example = given.example(specs, original)
    _check_same(onnx_program(model, "the graph in another operator set")(example), original(example), path)
    return OnnxFile(model=model, inputs=specs, batch=batch, fill=None, notes=tuple(notes))


def carry_onnx(path: Path, given: Given) -> OnnxFile:
    """A graph as its file has it; after this it is known what its first axes are.

    Args:
        path: The file; external data are read from its folder.
        given: What the user says about the inputs, and samples to try.

    Raises:
        ConversionError: onnxruntime does not run it, or it has inputs or outputs that a bundle cannot state, or what it
            gives is a matter of chance.
    """
    model, notes = _read(path)
    notes += bind_onnx(model, given.plan.constants)
    specs = _specs(model, given)
    original = onnx_file_program(path, constants_in(model, given.plan.constants))
    fill = _fill(specs, original, given)
    _check_repeatable(model, original, fill)
    batch = None
    if any(BATCH in spec.shape for spec in specs):
        if not works_on_batches(original, fill):
            specs = tuple(_without_batch(spec) for spec in specs)
            axes = {axis for spec in specs for axis in spec.shape if isinstance(axis, str)}
            fill = replace(fill, specs=specs, sizes={**dict.fromkeys(axes, 3), **fill.sizes})
            notes.append("the first axis is free, but not one of samples: several give other outputs than each alone")
    elif (size := fixed_batch(specs)) is not None:
        many = replace(fill, specs=with_batch(specs))
        opened = freed(model, size, original, many)
        if opened is not None:
            model, specs, fill = opened, many.specs, many
            state_types(model, specs)
            notes.append(_freed_note(size))
        elif _has_samples(original, size, many):
            batch, specs, fill = size, many.specs, many
            notes.append(f"the batch axis is fixed at {size}; devices give {_samples(size)} at once")
    if batch is None and not any(BATCH in spec.shape for spec in specs):
        notes.append("no axis is one of samples; the model is given whole tensors")
    return OnnxFile(model=model, inputs=specs, batch=batch, fill=fill, notes=tuple(notes))


def _read(path: Path) -> tuple[onnx.ModelProto, list[str]]:
    """The file whole, its nodes in running order, its initializers no inputs; and what was changed."""
    with foreign(f"{path} is not a valid ONNX model", ConversionError):
        if path.stat().st_size > _MAX_BYTES:
            raise ConversionError(f"{path} is larger than the 2 GiB that an ONNX file can have")
        model = onnx.load(path)  # refuses external data outside of the file's folder
    own = {_text(function.domain) for function in model.functions}
    for domain, name in sorted(_operators(model.graph)):
        if domain not in _DOMAINS and domain not in own:
            raise ConversionError(
                f"{path} uses the operator {name} of the domain {domain!r}, which onnxruntime does not have"
            )
    if not model.graph.node and not model.graph.output:
        raise ConversionError(f"{path} is not a valid ONNX model: it has no output")
    for info in [*model.graph.input, *model.graph.output]:
        kind = info.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            what = (kind or "").removesuffix("_type").replace("_", " ")
            raise ConversionError(f"{info.name} is of the type {what}; inputs and outputs must be tensors")
    notes = []
    if sort_nodes(model.graph):
        notes.append("nodes of the file were not in an order in which they can run; they were sorted")
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [info for info in model.graph.input if info.name not in weights]  # before IR 4 weights were inputs, too
    if len(inputs) < len(model.graph.input):
        model.ir_version = max(model.ir_version, _IR_OF_FREE_INITIALIZERS)
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    return model, notes


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
    """The inputs as the file has them; an axis with the name of another input's first one is the batch axis, too."""
    first = {info.type.tensor_type.shape.dim[0].dim_param for info in model.graph.input if _rank(info)}
    batch = {name for name in first if name.strip("_?")}
    return [_spec(info, batch) for info in model.graph.input]


def _rank(info: onnx.ValueInfoProto) -> int:
    return len(info.type.tensor_type.shape.dim)


def _fill(specs: tuple[TensorSpec, ...], run: Run, given: Given) -> Fill:
    """Inputs on which the graph runs: real ones, where they are given, else made up."""
    try:
        real = given.real(specs, _REAL)
    except ConfigError:
        if fixed_batch(specs) is None:
            raise
        real = given.real(with_batch(specs), _REAL)
    return found_fill(specs, run, given.sizes) if real is None else Fill(specs=specs, real=real)


def _spec(info: onnx.ValueInfoProto, batch: Container[str]) -> TensorSpec:
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
            is_batch = i == 0 or (dimension.dim_param in batch and BATCH not in axes)
            axes.append(BATCH if is_batch else axis_name(dimension.dim_param, info.name, i))
    try:
        return TensorSpec.from_json({"name": info.name, "dtype": dtype, "shape": axes})
    except ValueError as exc:
        raise ConversionError(f"the graph's inputs cannot be used: {exc}") from exc


def _dtype(element: int) -> str:
    """The numpy name of an element type, or ONNX's own where numpy has none."""
    if element == onnx.TensorProto.STRING:
        return "text"
    try:
        return str(helper.tensor_dtype_to_np_dtype(element))
    except KeyError:
        return "of an unknown type"


def _without_batch(spec: TensorSpec) -> TensorSpec:
    shape = tuple(axis_name("", spec.name, i) if axis == BATCH else axis for i, axis in enumerate(spec.shape))
    return replace(spec, shape=shape)


def _described(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.describe()}" for spec in specs)


def _samples(count: int | None) -> str:
    return "one sample" if count == 1 else f"{count} samples"


def _freed_note(size: int | None) -> str:
    return f"the batch axis, fixed at {size} in the file, was made free; several samples give what each gives alone"


def _check_repeatable(model: onnx.ModelProto, run: Run, fill: Fill) -> None:
    """Raise ConversionError where the same inputs give other outputs when they are given again."""
    inputs = fill.draw()
    one, other = run(inputs), run(inputs)
    differs = next((name for name in one if not same_bits(one[name], other[name])), None)
    if differs is not None:
        random = sorted({name for _, name in _operators(model.graph) if _RANDOM.search(name)})
        by = f", by {' and '.join(random)}" if random else ""
        raise ConversionError(f"{differs} is a matter of chance{by}: there is nothing that a device could be held to")


def _has_samples(run: Run, size: int, many: Fill) -> bool:
    """Whether the first axis, which cannot be made free, is one of samples: in another order they give the same."""
    try:
        for seed in range(_ORDERS):
            samples = many.draw(size, seed)
            found = in_groups(run, samples, many.specs, size)
            turned = {name: np.roll(array, 1, axis=0) for name, array in samples.items()}
            again = in_groups(run, turned, many.specs, size)
            if found is None or again is None:
                return False
            if not all(near(np.roll(array, 1, axis=0), again[name]) for name, array in found.items()):
                return False
    except ConversionError:
        return False
    return True


def _check_same(found: Arrays, wanted: Arrays, path: Path) -> None:
    for name, array in wanted.items():
        if array.shape != found[name].shape or not near(array, found[name]):
            raise ConversionError(
                f"{path} gives another {name} in operator set {OPSET}; export it with opset_version={OPSET}"
            )
