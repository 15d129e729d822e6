"""Sizes of which Python made whole numbers, in graphs that torch's exporter made of TorchScript.

``x[:, : int(x.shape[1] * 0.75)]`` comes out without the ``int``: an index of floating point, which no runtime takes.
Whatever such a number is needed for, it was made whole by ``int``, which cuts off as a cast does.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import onnx
from onnx import TensorProto, helper

# Inputs that are whole numbers, by operator.
_INDICES = {
    "ConstantOfShape": (0,), "Expand": (1,), "Gather": (1,), "Pad": (1, 3), "Reshape": (1,), "Resize": (3,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Tile": (1,), "TopK": (1,), "Unsqueeze": (1,),
}  # fmt: skip
# What these give is of the type of their first input.
_OF_FIRST = (
    "Abs", "Add", "Ceil", "Concat", "Div", "Floor", "Gather", "Identity", "Max", "Min", "Mod", "Mul", "Neg", "Pow",
    "Reshape", "Round", "Slice", "Sqrt", "Squeeze", "Sub", "Unsqueeze",
)  # fmt: skip
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)


def cast_indices(graph: onnx.GraphProto, types: MutableMapping[str, int] | None = None) -> None:
    """Cut such numbers off where they are needed, in place.

    Args:
        graph: As the exporter made it, nodes in running order.
        types: Of values from outside of it, as far as they are known.
    """
    types = {} if types is None else types
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        places = _INDICES.get(node.op_type, ())
        if node.op_type == "Concat" and any(types.get(name) == TensorProto.INT64 for name in node.input):
            places = tuple(range(len(node.input)))
        for place in places:
            name = node.input[place] if place < len(node.input) else ""
            if types.get(name) in _FLOATS:
                whole = f"{name}/whole"
                if whole not in types:
                    nodes.append(helper.make_node("Cast", [name], [whole], name=whole, to=TensorProto.INT64))
                    types[whole] = TensorProto.INT64
                node.input[place] = whole
        nodes.append(node)
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                cast_indices(inner, dict(types))
        types.update(dict.fromkeys(node.output, _type_of(node, types)))
    del graph.node[:]
    graph.node.extend(nodes)


def _type_of(node: onnx.NodeProto, types: MutableMapping[str, int]) -> int:
    """Of what a node gives; `UNDEFINED` where that is not known."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type in ("Shape", "Size"):
        return TensorProto.INT64
    if node.op_type == "Cast":
        return int(attributes["to"].i)
    if node.op_type == "Constant" and "value" in attributes:
        return int(attributes["value"].t.data_type)
    return types.get(node.input[0], TensorProto.UNDEFINED) if node.op_type in _OF_FIRST else TensorProto.UNDEFINED
