"""One form for constants, linear and recurrent layers, whatever framework wrote the graph.

What is computed from constants or from fixed sizes alone, the parameters apart, becomes an initializer: exporters leave
shapes and slices to be computed, and shape inference gives up on them.

``MatMul(x, W) (+ b)``, ``MatMul(x, Transpose(W))`` and every ``Gemm`` on constant weights become
``Gemm(x, W, b, transB=1)`` with ``alpha = beta = 1`` and ``W (n_out, n_in)``, as torch stores it, where x has two axes.
So a head is recognized as linear and its parameters have the shape that learners expect. So is a mean of what a
convolution of one pixel gives, see `converter.graph.means`.

Every node has a name of its own.

Recurrent layers that begin with zeros are not given them, which means the same: exporters compute them from the batch
size, with as many operators as the rest of a small network has.
"""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converter.graph.build import IR_VERSION, infer_shapes, reads, upstream, used_initializers
from converter.graph.means import means_first
from converter.graph.names import name_nodes
from converter.graph.nodes import attribute, linear
from converter.graph.sizes import fold_sizes
from converter.program.programs import onnx_program

_RECURRENT = {"LSTM", "GRU", "RNN"}
_INITIAL_STATES = (5, 6)  # positions among the inputs of a recurrent layer
_MOVES = {"Slice", "Gather", "Expand", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Cast"}


def canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite constants, linear and recurrent layers; the function computed stays the same."""
    found = _folded(model)
    fold_sizes(found)
    graph = found.graph
    name_nodes(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    shapes = infer_shapes(found)
    for node in graph.node:
        _state_pads(node, weights, shapes)
    uses = Counter(name for node in graph.node for name in reads(node))
    uses.update(info.name for info in graph.output)
    for node in graph.node:
        _take_in_factors(node, weights, uses)
    turned = {
        node.output[0]: node.input[0] for node in graph.node if _turns(node, weights) and uses[node.output[0]] == 1
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        made_by = nodes[-1] if nodes else None
        if node.op_type == "MatMul" and node.input[1] in turned and _fits(node, shapes, uses):
            inputs = [node.input[0], turned[node.input[1]]]
            nodes.append(helper.make_node("Gemm", inputs, list(node.output), name=node.name, transB=1))
        elif _is_linear(node, weights, shapes, uses):
            nodes.append(_as_gemm(node, weights))
        elif node.op_type == "Add" and made_by is not None and _adds_bias(node, made_by, weights, uses):
            bias = next(name for name in node.input if name not in made_by.output)
            made_by.input.append(bias)
            made_by.output[0] = node.output[0]
        else:
            nodes.append(node)
    _drop_zero_states(nodes, weights)
    outputs = [info.name for info in graph.output]
    nodes = means_first(upstream(nodes, outputs), weights, shapes, uses, outputs)
    for node in nodes:  # where it stood in somebody's source, which can be longer than the weights
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    kept = used_initializers(nodes, graph.initializer, graph.output)
    for values, new in ((graph.node, nodes), (graph.initializer, kept)):
        del values[:]
        values.extend(new)
    return found


def _state_pads(
    node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], shapes: dict[str, tuple[int | str, ...]]
) -> None:
    """Put numbers in the place of ``auto_pad`` where the sizes are fixed: not every kernel and no gradient knows it."""
    if node.op_type not in ("Conv", "MaxPool", "AveragePool") or (mode := attribute(node, "auto_pad")) == "NOTSET":
        return
    space = shapes.get(node.input[0], ())[2:]
    kernel = attribute(node, "kernel_shape") or (
        list(weights[node.input[1]].dims)[2:] if node.input[1] in weights else []
    )
    if not kernel or len(kernel) != len(space) or not all(isinstance(size, int) for size in space):
        return
    ones = [1] * len(kernel)
    begins, ends = [], []
    for size, k, stride, dilation in zip(
        map(int, space), kernel, attribute(node, "strides", ones), attribute(node, "dilations", ones), strict=True
    ):
        wanted = (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size
        total = 0 if mode == "VALID" else max(0, wanted)
        begins.append(total // 2 if mode != "SAME_LOWER" else total - total // 2)
        ends.append(total - begins[-1])
    kept = [item for item in node.attribute if item.name not in ("auto_pad", "pads")]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("pads", [*begins, *ends])])


def _drop_zero_states(nodes: list[onnx.NodeProto], weights: dict[str, onnx.TensorProto]) -> None:
    zeros: set[str] = set()

    def is_zero(name: str) -> bool:
        return name in zeros or (name in weights and not numpy_helper.to_array(weights[name]).any())

    for node in nodes:
        if node.op_type == "ConstantOfShape":
            value = attribute(node, "value")
            if value is None or not numpy_helper.to_array(value).any():
                zeros.update(node.output)
        elif node.op_type in _MOVES and is_zero(node.input[0]):
            zeros.update(node.output)
        elif node.op_type in _RECURRENT:
            for i, name in enumerate(node.input):
                if i in _INITIAL_STATES and is_zero(name):
                    node.input[i] = ""
            while not node.input[-1]:
                node.input.pop()


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which what follows from ``Constant`` nodes alone is computed, by onnxruntime."""
    found = deepcopy(model)
    graph = found.graph
    fixed: set[str] = set()
    constant: list[onnx.NodeProto] = []
    other: list[onnx.NodeProto] = []
    for node in graph.node:
        names = reads(node)
        is_fixed = (node.op_type == "Constant" or bool(names)) and fixed.issuperset(names)
        (constant if is_fixed and not node.op_type.startswith("Random") else other).append(node)
        if constant and constant[-1] is node:
            fixed.update(node.output)
    outputs = {info.name for info in graph.output}
    wanted = sorted(fixed & {name for node in other for name in reads(node)} - outputs)
    if fixed & outputs or not wanted:
        return found
    values = [onnx.ValueInfoProto(name=name) for name in wanted]
    part = helper.make_model(
        helper.make_graph(constant, "constants", [], values), opset_imports=model.opset_import, ir_version=IR_VERSION
    )
    for name, array in onnx_program(part, "the constants")({}).items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    del graph.node[:]
    graph.node.extend(other)
    return found


def _turns(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    """Whether it transposes a matrix, as torch writes a linear layer without a bias."""
    return node.op_type == "Transpose" and node.input[0] in weights and len(weights[node.input[0]].dims) == 2


def _fits(node: onnx.NodeProto, shapes: dict[str, tuple[int | str, ...]], uses: Counter[str]) -> bool:
    """Whether it is the product of a value with two axes and of a matrix that nobody else reads."""
    return len(shapes.get(node.input[0], ())) == 2 and uses[node.input[1]] == 1


def _take_in_factors(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], uses: Counter[str]) -> None:
    """Multiply the constants of a Gemm by its alpha and beta, in place, where nothing else reads them."""
    if node.op_type != "Gemm":
        return
    for place, name in ((1, "alpha"), (2, "beta")):
        factor = attribute(node, name, 1.0)
        tensor = weights.get(node.input[place]) if len(node.input) > place else None
        if factor == 1.0 or tensor is None or uses[tensor.name] != 1 or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
        kept = [item for item in node.attribute if item.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)


def _is_linear(
    node: onnx.NodeProto,
    weights: dict[str, onnx.TensorProto],
    shapes: dict[str, tuple[int | str, ...]],
    uses: Counter[str],
) -> bool:
    layer = linear(node)
    if layer is None or layer.weight not in weights or not _fits(node, shapes, uses):
        return False
    weight = weights[layer.weight]
    is_float = weight.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    if not is_float or len(weight.dims) != 2:
        return False
    return layer.bias is None or len(shapes.get(layer.bias, (0, 0))) == 1


def _as_gemm(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> onnx.NodeProto:
    if not attribute(node, "transB", 0):
        tensor = weights[node.input[1]]
        turned = numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(tensor).T), tensor.name)
        tensor.CopyFrom(turned)
    inputs = [name for name in node.input if name]
    return helper.make_node("Gemm", inputs, list(node.output), name=node.name, transB=1)


def _adds_bias(
    node: onnx.NodeProto, made_by: onnx.NodeProto, weights: dict[str, onnx.TensorProto], uses: Counter[str]
) -> bool:
    """Whether the node adds a constant for each output of the linear layer before it, which nobody else reads."""
    layer = linear(made_by)
    if layer is None or not layer.transposed or layer.bias is not None or layer.weight not in weights:
        return False
    others = [name for name in node.input if name != made_by.output[0]]
    if len(others) != 1 or others[0] not in weights or uses[made_by.output[0]] != 1:
        return False
    return list(weights[others[0]].dims) == [weights[layer.weight].dims[0]]
