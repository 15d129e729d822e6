"""Sigmoids near the outputs, written out where a model needs their small values.

onnxruntime's Sigmoid is a quotient of polynomials that is off by up to 1.7e-7 everywhere (against float64): of a share
of 1e-8 nothing is left, and its logarithm is -inf. ``1 / (1 + exp(-x))`` has all digits of float32, at four operators
for one.
"""

from __future__ import annotations

from copy import deepcopy

import onnx

from converter.graph.build import GraphBuilder
from converter.graph.links import Links

# What hands a value's relative error on; a sum of products loses what is small in what is large.
_ELEMENTWISE = {
    "Abs", "Add", "Cast", "Clip", "Concat", "Div", "Exp", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "Identity", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Reshape", "Slice", "Split", "Sqrt", "Squeeze",
    "Sub", "Sum", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


def with_sigmoids_written_out(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy in which sigmoids between the last sums and the outputs have all digits; None where there are none.

    Args:
        model: Of operator set 18, float32.
    """
    found = deepcopy(model)
    graph = found.graph
    links = Links(graph)
    sigmoids = _near_outputs(links)
    if not sigmoids:
        return None
    builder = GraphBuilder("written_out_")
    gone: set[str] = set()
    for node in graph.node:
        if node.output and node.output[0] in gone:
            continue
        if node.op_type != "Sigmoid" or node.output[0] not in sigmoids:
            builder.nodes.append(node)
            continue
        negative = builder.op("Neg", node.input[0])
        reader = links.only_reader(node.output[0])
        if reader is not None and reader.op_type == "Log":  # torch's logsigmoid
            builder.op("Neg", builder.op("Softplus", negative), output=reader.output[0])
            gone.add(reader.output[0])
        else:
            one = builder.constant(1.0)
            builder.op("Div", one, builder.op("Add", one, builder.op("Exp", negative)), output=node.output[0])
    nodes = [deepcopy(node) for node in builder.nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(builder.initializers)
    return found


def _near_outputs(links: Links) -> set[str]:
    """The values of these sigmoids."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(links.outputs)
    while waiting:
        name = waiting.pop()
        node = links.made_by.get(name)
        if name in seen or node is None:
            continue
        seen.add(name)
        if node.op_type == "Sigmoid":
            found.add(name)
        elif node.op_type in _ELEMENTWISE:
            waiting += node.input
    return found
