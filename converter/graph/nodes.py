"""One view of a node: its attributes as Python values, the graphs inside it, and whether it is a linear layer.

The table of operators is ONNX's own, ``onnx.defs``, in operator set `OPSET`: what a node does not state has the value
that stands there. Operators of other domains have no entry; of them only what is stated is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import onnx.defs
from onnx import helper

OPSET = 18


def attribute(node: onnx.NodeProto, name: str, otherwise: Any = None) -> Any:
    """An attribute: as the node states it, else as the operator is defined, else `otherwise`. Texts are str."""
    for item in node.attribute:
        if item.name == name:
            return _value(item)
    return _defaults(node.op_type, node.domain).get(name, otherwise)


def stated(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes that a node itself states."""
    return {item.name: _value(item) for item in node.attribute}


@cache
def _defaults(op_type: str, domain: str) -> Mapping[str, Any]:
    if not onnx.defs.has(op_type, OPSET, domain):
        return {}
    known = onnx.defs.get_schema(op_type, OPSET, domain).attributes
    return {name: _value(entry.default_value) for name, entry in known.items() if entry.default_value.name}


def _value(item: onnx.AttributeProto) -> Any:
    found = helper.get_attribute_value(item)
    if item.type == onnx.AttributeProto.STRING:
        return found.decode(errors="replace")
    if item.type == onnx.AttributeProto.STRINGS:
        return [text.decode(errors="replace") for text in found]
    return found


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The branches of an If, the body of a Loop or Scan."""
    for item in node.attribute:
        if item.type == onnx.AttributeProto.GRAPH:
            yield item.g
        yield from item.graphs


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers and constants of a graph, those of branches and bodies included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
        for inner in inner_graphs(node):
            yield from tensors_of(inner)


@dataclass(frozen=True, slots=True)
class Linear:
    """``y = x W' (+ b)``, by the names of the values.

    Attributes:
        input: x.
        weight: W.
        bias: b, or None.
        transposed: W is ``(n_out, n_in)``, else ``(n_in, n_out)``.
    """

    input: str
    weight: str
    bias: str | None
    transposed: bool


def linear(node: onnx.NodeProto) -> Linear | None:
    """A MatMul, or a Gemm that scales nothing and does not transpose its input; None for all else.

    Whether W is constant and how many axes x has, the node does not say.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm") or len(node.input) < 2:
        return None
    if node.op_type == "MatMul":
        return Linear(node.input[0], node.input[1], None, transposed=False)
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    scales = attribute(node, "alpha") != 1.0 or (bias is not None and attribute(node, "beta") != 1.0)
    if scales or attribute(node, "transA"):
        return None
    return Linear(node.input[0], node.input[1], bias, transposed=bool(attribute(node, "transB")))
