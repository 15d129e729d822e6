"""Half precision raised to float32, so that a graph can be quantized and trained: weights keep their values exactly."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converter.graph.build import renamed
from converter.graph.names import FreshNames
from converter.graph.nodes import inner_graphs, tensors_of

_HALF, _SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
# Attributes that name an element type.
_TYPES = ("to", "dtype", "output_dtype", "stash_type")


def has_half_weights(model: onnx.ModelProto) -> bool:
    """Whether matrices or kernels are in half precision."""
    return any(tensor.data_type == _HALF and len(tensor.dims) >= 2 for tensor in tensors_of(model.graph))


def in_single_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float32 what was computed in float16; inputs and outputs keep their types.

    Its outputs are nearer to what the weights mean: nothing between the operators is rounded to 16 bits.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph, fresh = found.graph, FreshNames(found.graph)
    made = {name for node in graph.node for name in node.output}
    front, behind, names = [], [], {}
    for info in graph.input:
        if info.type.tensor_type.elem_type == _HALF:
            name = fresh(f"{info.name}.single")
            names[info.name] = name
            front.append(helper.make_node("Cast", [info.name], [name], name=name, to=_SINGLE))
    for info in graph.output:
        if info.type.tensor_type.elem_type == _HALF and info.name in made:
            name = fresh(f"{info.name}.single")
            names[info.name] = name
            behind.append(helper.make_node("Cast", [name], [info.name], name=name, to=_HALF))
    _raise(graph)
    nodes = [*front, *(renamed(node, names) for node in graph.node), *behind]
    del graph.node[:]
    graph.node.extend(nodes)
    return found


def _raise(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for tensor in graph.initializer:
        _raise_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPES and attribute.type == onnx.AttributeProto.INT and attribute.i == _HALF:
                attribute.i = _SINGLE
            elif attribute.type == onnx.AttributeProto.TENSOR:
                _raise_tensor(attribute.t)
        for inner in inner_graphs(node):
            for info in [*inner.input, *inner.output]:
                if info.type.tensor_type.elem_type == _HALF:
                    info.type.tensor_type.elem_type = _SINGLE
            _raise(inner)


def _raise_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == _HALF:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
