"""A convolution of one pixel, of which only the mean over all places is taken, as a linear layer of that mean.

The mean of ``W x + b`` over places is ``W mean(x) + b``: the same sums, once instead of for every place. So a head that
ends in a mean of class scores, as fully convolutional networks have it, is one that learners of linear layers take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import onnx
from onnx import helper, numpy_helper

from converter.graph.build import reads, upstream
from converter.graph.nodes import attribute

Shapes = Mapping[str, tuple[int | str, ...]]
Weights = Mapping[str, onnx.TensorProto]


def means_first(
    nodes: Sequence[onnx.NodeProto], weights: Weights, shapes: Shapes, uses: Counter[str], outputs: Sequence[str]
) -> list[onnx.NodeProto]:
    """The nodes with ``Gemm(Flatten(GlobalAveragePool(x)), W, b)`` in place of such convolutions.

    Args:
        nodes: Of a graph, in running order.
        weights: Its initializers by name; W becomes ``(n_out, n_in)`` in place, without torch's axes of 1.
        shapes: Of its values, as far as they are known.
        uses: How often each value is read.
        outputs: Of the graph.
    """
    found = list(nodes)
    for conv in nodes:
        if not _is_of_one_pixel(conv, weights, uses):
            continue
        weight = weights[conv.input[1]]
        n_out, n_in = weight.dims[:2]
        chain = _to_scores(conv, found, weights, shapes, n_out)
        if not chain:
            continue
        pooled, features = f"{conv.output[0]}/pooled", f"{conv.output[0]}/mean"
        instead = [
            helper.make_node("GlobalAveragePool", [conv.input[0]], [pooled], name=pooled),
            helper.make_node("Flatten", [pooled], [features], name=features, axis=1),
            helper.make_node("Gemm", [features, *conv.input[1:]], [chain[-1].output[0]], name=conv.name, transB=1),
        ]
        gone = {id(node) for node in (conv, *chain)}
        last = next(i for i, node in enumerate(found) if node is chain[-1])
        made = [*found[:last], *instead, *found[last + 1 :]]
        made = upstream([node for node in made if id(node) not in gone], outputs)
        inside = {name for node in (conv, *chain[:-1]) for name in node.output}
        if inside.isdisjoint(outputs) and inside.isdisjoint(name for node in made for name in reads(node)):
            found = made
            flat = numpy_helper.to_array(weight).reshape(n_out, n_in)
            weight.CopyFrom(numpy_helper.from_array(flat, weight.name))
    return found


def _to_scores(
    conv: onnx.NodeProto, nodes: Sequence[onnx.NodeProto], weights: Weights, shapes: Shapes, n_out: int
) -> list[onnx.NodeProto]:
    """From the mean of what a convolution gives to its scores ``(batch, n_out)``; none where they lead elsewhere."""
    chain: list[onnx.NodeProto] = []
    value = conv.output[0]
    while not chain or len(shapes.get(value, ())) > 2:
        readers = [node for node in nodes if value in reads(node) and node.op_type != "Shape"]
        if len(readers) != 1 or readers[0].input[0] != value:
            return []
        if not (_drops_ones(readers[0]) if chain else _is_of_all_places(readers[0], weights, shapes)):
            return []
        chain.append(readers[0])
        value = readers[0].output[0]
    return chain if shapes.get(value, ())[1:] == (n_out,) else []


def _is_of_one_pixel(node: onnx.NodeProto, weights: Weights, uses: Counter[str]) -> bool:
    """Whether it is a convolution that sees one place at a time, and all of them, with weights of its own."""
    own = list(node.input[1:])
    if node.op_type != "Conv" or not all(name in weights and uses[name] == 1 for name in own):
        return False
    kernel = list(weights[own[0]].dims)[2:]
    return (
        bool(kernel)
        and set(kernel) == {1}
        and attribute(node, "group") == 1
        and attribute(node, "auto_pad") in ("NOTSET", "VALID")
        and not any(attribute(node, "pads", ()))
        and set(attribute(node, "strides", (1,))) == {1}
    )


def _is_of_all_places(node: onnx.NodeProto, weights: Weights, shapes: Shapes) -> bool:
    """Whether it takes the mean over all axes behind that of the channels."""
    rank = len(shapes.get(node.input[0], ()))
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type != "ReduceMean" or rank < 3 or len(node.input) < 2 or node.input[1] not in weights:
        return False
    return sorted(int(axis) % rank for axis in numpy_helper.to_array(weights[node.input[1]])) == list(range(2, rank))


def _drops_ones(node: onnx.NodeProto) -> bool:
    """Whether it can do nothing to ``(batch, n, 1, 1)`` but leave ones out: its shape then says whether it does."""
    return node.op_type in ("Flatten", "Reshape", "Squeeze") or (
        node.op_type == "Gather" and attribute(node, "axis") > 1
    )
