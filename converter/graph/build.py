"""Small tools on ONNX graphs: building nodes, reachability, cutting a graph in two.

Works on protobufs and returns new models; nothing here changes its input.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from converter.graph.nodes import OPSET, inner_graphs
from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign

_OTHER_FLOATS = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
# Opset 18 needs IR version 8; onnxruntime refuses IR versions newer than itself, so the oldest that does is written.
IR_VERSION = 8
# Smaller constants are not worth a name that says less.
_SHARED_BYTES = 256


class GraphBuilder:
    """Appends nodes under fresh names.

    Attributes:
        nodes: The nodes so far, in an order in which they can run.
    """

    def __init__(self, prefix: str, dtype: npt.DTypeLike = np.float32) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.dtype = np.dtype(dtype)
        self._prefix = prefix
        self._count = 0
        self._constants: dict[tuple[Any, ...], str] = {}
        self._initializers: list[onnx.TensorProto] = []

    @property
    def initializers(self) -> list[onnx.TensorProto]:
        """The constants so far."""
        return self._initializers

    def fresh(self, hint: str) -> str:
        """A name that nobody has."""
        self._count += 1
        return f"{self._prefix}{hint}_{self._count}"

    def op(self, op_type: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        name = output or self.fresh(op_type)
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> str:
        """A constant; equal ones are stored once. Numbers take the builder's float type unless told otherwise."""
        array = np.asarray(value, dtype=dtype or self.dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self.fresh("constant")
            self._initializers.append(numpy_helper.from_array(array, name))
            self._constants[key] = name
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """A constant list of int64, as axes and shapes are given."""
        return self.constant(list(values), np.int64)


def make_model(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto],
) -> onnx.ModelProto:
    """A checked model of opset 18, with version 1 of whatever other operator domains the nodes are from."""
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    domains = sorted({node.domain for node in nodes} - {"", "ai.onnx"})
    opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    model.producer_name = "edgeloop"
    onnx.checker.check_model(model)
    return model


def tensor_info(name: str, shape: Sequence[int | str], dtype: npt.DTypeLike = np.float32) -> onnx.ValueInfoProto:
    """A typed input or output; a text is a free axis, e.g. ``("batch", 10)``."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))


def shape_of(info: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Axis sizes of a typed value; a free axis is its name, an unknown one is ``?``."""
    return tuple(
        axis.dim_value if axis.HasField("dim_value") else (axis.dim_param or "?")
        for axis in info.type.tensor_type.shape.dim
    )


def inferred_types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Types and shapes of the inputs, the outputs and all values between them, as far as they can be known.

    Raises:
        ConversionError: They do not go together.
    """
    with foreign("the graph has types that do not go together", ConversionError):
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=False, data_prop=True).graph
    return {info.name: info for info in [*inferred.input, *inferred.value_info, *inferred.output]}


def multiplications(model: onnx.ModelProto) -> int:
    """Multiply-accumulate operations of convolutions and matrix products with constant weights, for one sample.

    A free axis counts as 1. A convolution multiplies each weight once for each output pixel.
    """
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes = infer_shapes(model)
    total = 0
    for node in model.graph.node:
        weight = next((sizes[name] for name in node.input if len(sizes.get(name, ())) >= 2), None)
        if weight is None or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        output = [size if isinstance(size, int) else 1 for size in shapes.get(node.output[0], ())]
        repeated = output[2:] if node.op_type.startswith("Conv") else output[1:-1]
        total += math.prod(weight) * math.prod(repeated)
    return total


def infer_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """Shapes of all values whose shape can be known, by name."""
    shapes: dict[str, tuple[int | str, ...]] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for name, info in inferred_types(model).items():
        if info.type.tensor_type.HasField("shape"):
            shapes[name] = shape_of(info)
    return shapes


def other_floats(model: onnx.ModelProto) -> str:
    """The float types but float32 that matrices and kernels of a graph have, in words; "" where there are none."""
    kinds = {
        str(onnx.TensorProto.DataType.Name(tensor.data_type)).lower().replace("double", "float64")
        for tensor in model.graph.initializer
        if len(tensor.dims) >= 2 and tensor.data_type in _OTHER_FLOATS
    }
    return " and ".join(sorted(kinds))


def type_of(info: onnx.ValueInfoProto) -> np.dtype[Any]:
    """Element type of a typed value."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))


def renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of a node in which values have other names, those that its branches or its body capture included."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for values in (copy.input, copy.output):
        for i, name in enumerate(values):
            values[i] = names.get(name, name)
    for graph in inner_graphs(copy):
        _rename_captured(graph, names)
    return copy


def _rename_captured(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    own = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    captured = {old: new for old, new in names.items() if old not in own}
    for node in graph.node:
        node.CopyFrom(renamed(node, captured))
    for info in graph.output:
        info.name = captured.get(info.name, info.name)


def share_equal(model: onnx.ModelProto) -> None:
    """Keep equal constants once, in place: what quantizes one layer after another writes a shared weight many times."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    names: dict[str, str] = {}
    outputs, kept = {info.name for info in model.graph.output}, []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.nbytes >= _SHARED_BYTES and tensor.name not in outputs:
            same = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(array.tobytes()).digest())
            names[tensor.name] = first.setdefault(same, tensor.name)
        if names.get(tensor.name, tensor.name) == tensor.name:
            kept.append(tensor)
    if len(kept) == len(model.graph.initializer):
        return
    nodes = [renamed(node, names) for node in model.graph.node]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)


def reads(node: onnx.NodeProto) -> list[str]:
    """Names of all values that a node needs, those that the branches of an If or the body of a Loop take included."""
    names = [name for name in node.input if name]
    for graph in inner_graphs(node):
        inside = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
        for inner in graph.node:
            names += [name for name in reads(inner) if name not in inside]
            inside.update(inner.output)
        names += [info.name for info in graph.output if info.name not in inside]
    return names


def downstream(nodes: Iterable[onnx.NodeProto], sources: Iterable[str]) -> set[str]:
    """Names of all values that depend on one of the sources, the sources included. Nodes must be in running order."""
    reached = set(sources)
    for node in nodes:
        if any(name in reached for name in reads(node)):
            reached.update(node.output)
    return reached


def upstream(nodes: Sequence[onnx.NodeProto], targets: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that the targets need, in running order."""
    needed = set(targets)
    kept = []
    for node in reversed(nodes):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(reads(node))
    return kept[::-1]


def used_initializers(
    nodes: Iterable[onnx.NodeProto], initializers: Iterable[onnx.TensorProto], outputs: Iterable[onnx.ValueInfoProto]
) -> list[onnx.TensorProto]:
    """The initializers that these nodes read, and those that are outputs themselves."""
    names = {name for node in nodes for name in reads(node)} | {info.name for info in outputs}
    return [tensor for tensor in initializers if tensor.name in names]
