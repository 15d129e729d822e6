"""Rules of sums, means, largest values, norms and softmax along axes."""

from __future__ import annotations

import math

import onnx

from converter.graph.nodes import attribute
from converter.head.gradient.tape import Gradients, Tape, rule


@rule("Softmax")
def _softmax(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``dx = y (dy - sum(dy y))`` along the axis."""
    b = tape.builder
    y = node.output[0]
    axes = b.ints(attribute(node, "axis"))
    return [b.op("Mul", y, b.op("Sub", dy, b.op("ReduceSum", b.op("Mul", dy, y), axes, keepdims=1)))]


@rule("LogSoftmax")
def _log_softmax(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``dx = dy - exp(y) sum(dy)`` along the axis."""
    b = tape.builder
    total = b.op("ReduceSum", dy, b.ints(attribute(node, "axis")), keepdims=1)
    return [b.op("Sub", dy, b.op("Mul", b.op("Exp", node.output[0]), total))]


@rule("ReduceMean", "ReduceSum")
def _reduce(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """Spread the gradient over the reduced axes (divided by their size for the mean)."""
    b = tape.builder
    x = node.input[0]
    given = node.input[1] if len(node.input) > 1 else ""
    if not given and attribute(node, "noop_with_empty_axes"):
        return [dy, *[None] * (len(node.input) - 1)]
    axes = given or b.ints(*range(len(tape.shape(x))))
    share = dy
    if node.op_type == "ReduceMean":
        share = b.op("Div", dy, _count(tape, node))
    kept = share if attribute(node, "keepdims") else b.op("Unsqueeze", share, axes)
    return [b.op("Expand", kept, b.op("Shape", x)), *[None] * (len(node.input) - 1)]


def _count(tape: Tape, node: onnx.NodeProto) -> str:
    """How many values each mean is taken of: a constant where these axes are fixed."""
    b = tape.builder
    x = node.input[0]
    shape = tape.shape(x)
    if len(node.input) > 1 and node.input[1] in tape.constants:
        sizes = [shape[axis] for axis in tape.value(node.input[1])]
        if sizes and all(isinstance(size, int) for size in sizes):
            return b.constant(float(math.prod(int(size) for size in sizes)))
    return b.op("CastLike", b.op("Div", b.op("Size", x), b.op("Size", node.output[0])), x)


def _reduced(tape: Tape, node: onnx.NodeProto, value: str) -> tuple[str, str]:
    """A value of the shape of the output with the reduced axes as ones, and these axes."""
    b = tape.builder
    given = node.input[1] if len(node.input) > 1 else ""
    axes = given or b.ints(*range(len(tape.shape(node.input[0]))))
    return (value if attribute(node, "keepdims") else b.op("Unsqueeze", value, axes)), axes


@rule("ReduceMax")
def _reduce_max(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """The largest values share the gradient equally, as in torch."""
    b = tape.builder
    x = node.input[0]
    (largest, axes), (kept, _) = _reduced(tape, node, node.output[0]), _reduced(tape, node, dy)
    is_largest = b.op("CastLike", b.op("Equal", x, largest), x)
    share = b.op("Div", kept, b.op("ReduceSum", is_largest, axes, keepdims=1))
    return [b.op("Mul", is_largest, share), *[None] * (len(node.input) - 1)]


@rule("ReduceL2")
def _reduce_l2(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``y = |x|``: ``dx = dy x / y``, and zero where y is."""
    b = tape.builder
    x, zero = node.input[0], b.constant(0.0)
    (norm, _), (kept, _) = _reduced(tape, node, node.output[0]), _reduced(tape, node, dy)
    is_zero = b.op("Equal", norm, zero)
    direction = b.op("Div", x, b.op("Where", is_zero, b.constant(1.0), norm))
    return [b.op("Mul", kept, direction), *[None] * (len(node.input) - 1)]
