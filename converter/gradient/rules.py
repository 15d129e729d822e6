"""One differentiation rule per operator.

A rule is given the node, the name of the gradient of its output, and a `Tape` to append nodes to; it returns one
gradient name per input, or None where the input gets none. Notation: ``y = f(x)``, ``dy`` is the gradient of the loss
with respect to y. Formulas are the usual vector-Jacobian products (Griewank and Walther, *Evaluating Derivatives*,
2008, chapter 3); each is checked against float64 finite differences and torch autograd in
``tests/converter/gradient``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from converter.graph import GraphBuilder
from edge.contract.errors import ConversionError

Shape = tuple[int | str, ...]
Gradients = Sequence[str | None]
Rule = Callable[["Tape", onnx.NodeProto, str], Gradients]

RULES: dict[str, Rule] = {}


@dataclass(frozen=True, kw_only=True)
class Tape:
    """What a rule may use: the builder, the shapes of the forward values, and which values need a gradient."""

    builder: GraphBuilder
    shapes: Mapping[str, Shape]
    active: frozenset[str]

    def shape(self, name: str) -> Shape:
        """Shape of a forward value.

        Raises:
            ConversionError: It cannot be known from the graph.
        """
        if name not in self.shapes:
            raise ConversionError(f"the shape of {name!r} in the head is not known; export the model with fixed axes")
        return self.shapes[name]

    def unbroadcast(self, gradient: str, name: str, full: Shape) -> str:
        """Sum a gradient of shape `full` over the axes along which `name` was broadcast."""
        shape = self.shape(name)
        missing = len(full) - len(shape)
        axes = list(range(missing))
        axes += [missing + i for i, size in enumerate(shape) if size == 1 and full[missing + i] != 1]
        if not axes:
            return gradient
        if len(axes) == missing:
            return self.builder.op("ReduceSum", gradient, self.builder.ints(*axes), keepdims=0)
        total = self.builder.op("ReduceSum", gradient, self.builder.ints(*axes), keepdims=1)
        if missing:
            total = self.builder.op("Squeeze", total, self.builder.ints(*range(missing)))
        return total


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute of a node, or its default."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Register a rule for some operators."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            RULES[op_type] = function
        return function

    return register


def _unary(local: Callable[[GraphBuilder, str, str], str]) -> Rule:
    """A rule for ``y = f(x)`` taken element by element: ``dx = dy * local(x, y)``."""

    def apply(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
        return [tape.builder.op("Mul", dy, local(tape.builder, node.input[0], node.output[0]))]

    return apply


@rule("Gemm")
def _gemm(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``Y = alpha A' B' + beta C`` where ``'`` is an optional transposition."""
    b = tape.builder
    left, right = node.input[0], node.input[1]
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    trans_a, trans_b = int(attribute(node, "transA", 0)), int(attribute(node, "transB", 0))
    gradients: list[str | None] = [None, None]
    if left in tape.active:
        if trans_a:
            gradients[0] = b.op("Gemm", right, dy, transA=trans_b, transB=1, alpha=alpha)
        else:
            gradients[0] = b.op("Gemm", dy, right, transB=1 - trans_b, alpha=alpha)
    if right in tape.active:
        if trans_b:
            gradients[1] = b.op("Gemm", dy, left, transA=1, transB=trans_a, alpha=alpha)
        else:
            gradients[1] = b.op("Gemm", left, dy, transA=1 - trans_a, alpha=alpha)
    if len(node.input) > 2 and node.input[2]:
        bias = node.input[2]
        if bias in tape.active:
            scaled = dy if beta == 1.0 else b.op("Mul", dy, b.constant(beta))
            gradients.append(tape.unbroadcast(scaled, bias, tape.shape(node.output[0])))
        else:
            gradients.append(None)
    return gradients


@rule("MatMul")
def _matmul(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``Y = A B`` over the last two axes: ``dA = dY Bᵀ``, ``dB = Aᵀ dY``, summed over broadcast batch axes."""
    b = tape.builder
    left, right = node.input
    left_shape, right_shape = tape.shape(left), tape.shape(right)
    if len(left_shape) < 2 or len(right_shape) < 2:
        raise ConversionError(f"MatMul {node.name!r} with a one-dimensional operand cannot be trained; use two axes")

    def transposed(name: str, rank: int) -> str:
        return b.op("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])

    def reduced(gradient: str, name: str) -> str:
        batch = tape.shape(node.output[0])[:-2]
        return tape.unbroadcast(gradient, name, (*batch, *tape.shape(name)[-2:]))

    gradients: list[str | None] = [None, None]
    if left in tape.active:
        gradients[0] = reduced(b.op("MatMul", dy, transposed(right, len(right_shape))), left)
    if right in tape.active:
        if len(right_shape) == 2 and len(left_shape) > 2:
            # A shared matrix: fold the batch axes into the rows, so that one product sums over them.
            rows = b.op("Reshape", left, b.ints(-1, int(left_shape[-1])))
            flat = b.op("Reshape", dy, b.ints(-1, int(right_shape[-1])))
            gradients[1] = b.op("Gemm", rows, flat, transA=1)
        else:
            gradients[1] = reduced(b.op("MatMul", transposed(left, len(left_shape)), dy), right)
    return gradients


@rule("Add", "Sub")
def _add(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    full = tape.shape(node.output[0])
    gradients: list[str | None] = []
    for position, name in enumerate(node.input):
        if name not in tape.active:
            gradients.append(None)
            continue
        gradient = tape.unbroadcast(dy, name, full)
        if node.op_type == "Sub" and position == 1:
            gradient = tape.builder.op("Neg", gradient)
        gradients.append(gradient)
    return gradients


@rule("Mul")
def _mul(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    full = tape.shape(node.output[0])
    return [
        tape.unbroadcast(tape.builder.op("Mul", dy, other), name, full) if name in tape.active else None
        for name, other in (tuple(node.input), tuple(node.input)[::-1])
    ]


@rule("Div")
def _div(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``y = a / b``: ``da = dy / b``, ``db = -dy * y / b``."""
    b = tape.builder
    above, below = node.input
    full = tape.shape(node.output[0])
    over = b.op("Div", dy, below)
    gradients: list[str | None] = [None, None]
    if above in tape.active:
        gradients[0] = tape.unbroadcast(over, above, full)
    if below in tape.active:
        gradients[1] = tape.unbroadcast(b.op("Neg", b.op("Mul", over, node.output[0])), below, full)
    return gradients


@rule("LeakyRelu")
def _leaky_relu(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    b = tape.builder
    slope = b.constant(float(attribute(node, "alpha", 0.01)))
    positive = b.op("Greater", node.input[0], b.constant(0.0))
    return [b.op("Where", positive, dy, b.op("Mul", dy, slope))]


@rule("Elu")
def _elu(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``y = x`` above zero, ``alpha (exp(x) - 1)`` below: there the slope is ``y + alpha``."""
    b = tape.builder
    alpha = b.constant(float(attribute(node, "alpha", 1.0)))
    positive = b.op("Greater", node.input[0], b.constant(0.0))
    return [b.op("Where", positive, dy, b.op("Mul", dy, b.op("Add", node.output[0], alpha)))]


@rule("Relu")
def _relu(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """The slope at zero is zero, as in torch."""
    b = tape.builder
    return [b.op("Where", b.op("Greater", node.output[0], b.constant(0.0)), dy, b.constant(0.0))]


RULES["Neg"] = lambda tape, _node, dy: [tape.builder.op("Neg", dy)]
RULES["Identity"] = lambda _tape, _node, dy: [dy]
RULES["Exp"] = _unary(lambda _b, _x, y: y)
RULES["Log"] = _unary(lambda b, x, _y: b.op("Reciprocal", x))
RULES["Sqrt"] = _unary(lambda b, _x, y: b.op("Div", b.constant(0.5), y))
RULES["Reciprocal"] = _unary(lambda b, _x, y: b.op("Neg", b.op("Mul", y, y)))
RULES["Tanh"] = _unary(lambda b, _x, y: b.op("Sub", b.constant(1.0), b.op("Mul", y, y)))
RULES["Sigmoid"] = _unary(lambda b, _x, y: b.op("Mul", y, b.op("Sub", b.constant(1.0), y)))
RULES["Softplus"] = _unary(lambda b, x, _y: b.op("Sigmoid", x))
# d erf(x) / dx = 2 / sqrt(pi) exp(-x^2)
RULES["Erf"] = _unary(
    lambda b, x, _y: b.op("Mul", b.constant(2.0 / math.sqrt(math.pi)), b.op("Exp", b.op("Neg", b.op("Mul", x, x))))
)


@rule("Softmax")
def _softmax(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``dx = y (dy - sum(dy y))`` along the axis."""
    b = tape.builder
    y = node.output[0]
    axes = b.ints(int(attribute(node, "axis", -1)))
    return [b.op("Mul", y, b.op("Sub", dy, b.op("ReduceSum", b.op("Mul", dy, y), axes, keepdims=1)))]


@rule("LogSoftmax")
def _log_softmax(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``dx = dy - exp(y) sum(dy)`` along the axis."""
    b = tape.builder
    total = b.op("ReduceSum", dy, b.ints(int(attribute(node, "axis", -1))), keepdims=1)
    return [b.op("Sub", dy, b.op("Mul", b.op("Exp", node.output[0]), total))]


@rule("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def _reshape(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """The gradient takes the shape of the input again; the second input, where there is one, is not differentiated."""
    b = tape.builder
    return [b.op("Reshape", dy, b.op("Shape", node.input[0])), *[None] * (len(node.input) - 1)]


@rule("Transpose")
def _transpose(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    rank = len(tape.shape(node.input[0]))
    order = list(attribute(node, "perm", range(rank)[::-1]))
    return [tape.builder.op("Transpose", dy, perm=[order.index(axis) for axis in range(rank)])]


@rule("ReduceMean", "ReduceSum")
def _reduce(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """Spread the gradient over the reduced axes (divided by their size for the mean)."""
    b = tape.builder
    x = node.input[0]
    given = node.input[1] if len(node.input) > 1 else ""
    if not given and int(attribute(node, "noop_with_empty_axes", 0)):
        return [dy, *[None] * (len(node.input) - 1)]
    axes = given or b.ints(*range(len(tape.shape(x))))
    kept = dy if int(attribute(node, "keepdims", 1)) else b.op("Unsqueeze", dy, axes)
    spread = b.op("Expand", kept, b.op("Shape", x))
    if node.op_type == "ReduceMean":
        count = b.op("Div", b.op("Size", x), b.op("Size", node.output[0]))
        spread = b.op("Div", spread, b.op("CastLike", count, spread))
    return [spread, *[None] * (len(node.input) - 1)]
