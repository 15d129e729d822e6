"""``.onnx`` of any framework, brought to the operator set that the converter works with and checked against itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
from onnx import helper

from converter.graph.build import OPSET
from converter.load.inputs import BATCH_FREED, Given, with_free_batch
from converter.load.opset import in_our_opset, version_of
from converter.program.programs import onnx_program
from converter.program.reason import reason
from converter.program.tensors import Arrays, Run
from edge.contract.errors import ConversionError
from edge.contract.tensorspec import BATCH, DTYPES, TensorSpec

_TOLERANCE = 1e-4
_MAX_BYTES = (1 << 31) - 1
_DOMAINS = ("", "ai.onnx", "com.microsoft", "com.microsoft.nchwc")


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class OnnxFile:
    """A graph that may be worked on.

    Attributes:
        model: In operator set `OPSET`, every initializer inside.
        inputs: As the graph states them; the first axis of all is ``batch`` where it could be made so.
        notes: What was changed.
    """

    model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...]


def read_onnx(path: Path, given: Given) -> OnnxFile:
    """Read a graph; after this it gives what the file gave.

    Args:
        path: The file; external data are read from its folder.
        given: What the user says about the inputs, and samples to try.

    Raises:
        ConversionError: It is damaged, uses what onnxruntime does not have, or cannot be brought to the operator set.
    """
    model = _read(path)
    notes: list[str] = []
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in weights]  # before IR 4 weights were inputs, too
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    if not inputs:
        raise ConversionError(f"{path} has no input: its output is always the same")
    specs = given.stated([_spec(info) for info in model.graph.input], "the file")
    original = onnx_program(model, str(path))
    if (version := version_of(model)) != OPSET:
        notes.append(f"operator set {version} of the file brought to {OPSET}")
    model = in_our_opset(model, str(path))
    if not any(BATCH in spec.shape for spec in specs):
        specs = with_free_batch(specs, given, original, lambda: _opened(model))
        notes.append(BATCH_FREED)
    for info, spec in zip(model.graph.input, specs, strict=True):
        element = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        info.CopyFrom(helper.make_tensor_value_info(spec.name, element, list(spec.shape)))
    example = given.example(specs, original)
    _check_same(onnx_program(model, "the graph in another operator set")(example), original(example), path)
    return OnnxFile(model=model, inputs=specs, notes=tuple(notes))


def _read(path: Path) -> onnx.ModelProto:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConversionError(f"{path} is larger than the 2 GiB that an ONNX file can have")
        model = onnx.load(path)  # refuses external data outside of the file's folder
        onnx.checker.check_model(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    except ConversionError:
        raise
    except Exception as exc:  # protobuf, the checker and the reader of external data have no common base
        raise ConversionError(f"{path} is not a valid ONNX model: {reason(exc)}") from exc
    strange = sorted({entry.domain for entry in model.opset_import} - set(_DOMAINS))
    used = {node.domain for node in model.graph.node}
    for domain in strange:
        if domain in used:
            raise ConversionError(f"{path} uses operators of the domain {domain!r}, which onnxruntime does not have")
    return model


def _spec(info: onnx.ValueInfoProto) -> TensorSpec:
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise ConversionError(f"the input {info.name} has no known shape; export the model with one")
    try:
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError:
        dtype = "of an unknown type"
    if dtype not in DTYPES:
        raise ConversionError(f"the input {info.name} is {dtype}, expected one of {', '.join(DTYPES)}")
    axes: list[int | str] = []
    for i, dimension in enumerate(tensor.shape.dim):
        if dimension.HasField("dim_value") and dimension.dim_value > 0:
            axes.append(dimension.dim_value)
        else:
            axes.append(BATCH if i == 0 else _axis_name(dimension.dim_param, info.name, i))
    try:
        return TensorSpec.from_json({"name": info.name, "dtype": dtype, "shape": axes})
    except ValueError as exc:
        raise ConversionError(f"the graph's inputs cannot be used: {exc}") from exc


def _axis_name(stated: str, tensor: str, axis: int) -> str:
    """What the file calls the axis; one that it does not name (``?``) is an axis of its own."""
    name = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in stated)
    return (
        name
        if name.strip("_") and not name[0].isdigit() and name != BATCH
        else f"axis_{tensor}_{axis}".replace("/", "_")[:60]
    )


def _opened(model: onnx.ModelProto) -> Run:
    """The graph with nothing that fixes its batch axis at 1."""
    _free_reshapes(model)
    for info in [*model.graph.input, *model.graph.output]:
        dimensions = info.type.tensor_type.shape.dim
        if len(dimensions):
            dimensions[0].dim_param = BATCH
    del model.graph.value_info[:]
    return onnx_program(model, "the graph with a free batch axis")


def _free_reshapes(model: onnx.ModelProto) -> None:
    """Open the batch axis of constant Reshape targets that begin with the batch size 1."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            tensor = constants[node.input[1]]
            shape = onnx.numpy_helper.to_array(tensor).copy()
            if shape.ndim == 1 and len(shape) and shape[0] == 1:
                shape[0] = 0 if (shape == -1).any() else -1  # 0 copies the size, -1 makes it follow from the others
                tensor.CopyFrom(onnx.numpy_helper.from_array(shape, tensor.name))


def _check_same(found: Arrays, wanted: Arrays, path: Path) -> None:
    for name, array in wanted.items():
        if array.shape != found[name].shape or not np.allclose(
            array, found[name], rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
        ):
            raise ConversionError(
                f"{path} gives another {name} in operator set {OPSET}; export it with opset_version={OPSET}"
            )
