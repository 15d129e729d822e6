"""Rules of operators that work element by element, with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx

from converter.graph.build import GraphBuilder
from converter.graph.nodes import attribute
from converter.head.gradient.tape import RULES, Gradients, Rule, Tape, rule
from edge.contract.errors import ConversionError


def _unary(local: Callable[[GraphBuilder, str, str], str]) -> Rule:
    """A rule for ``y = f(x)`` taken element by element: ``dx = dy * local(x, y)``."""

    def apply(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
        return [tape.builder.op("Mul", dy, local(tape.builder, node.input[0], node.output[0]))]

    return apply


@rule("Add", "Sub", "Sum")
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


@rule("Max", "Min")
def _extreme(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """The inputs that are the largest, or the smallest, share the gradient, as in torch."""
    b = tape.builder
    full, y = tape.shape(node.output[0]), node.output[0]
    chosen = [b.op("CastLike", b.op("Equal", name, y), y) for name in node.input]
    share = dy if len(chosen) == 1 else b.op("Div", dy, b.op("Sum", *chosen))
    return [
        tape.unbroadcast(b.op("Mul", share, mask), name, full) if name in tape.active else None
        for name, mask in zip(node.input, chosen, strict=True)
    ]


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
    slope = b.constant(attribute(node, "alpha"))
    positive = b.op("Greater", node.input[0], b.constant(0.0))
    return [b.op("Where", positive, dy, b.op("Mul", dy, slope))]


@rule("Elu")
def _elu(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``y = x`` above zero, ``alpha (exp(x) - 1)`` below: there the slope is ``y + alpha``."""
    b = tape.builder
    alpha = b.constant(attribute(node, "alpha"))
    positive = b.op("Greater", node.input[0], b.constant(0.0))
    return [b.op("Where", positive, dy, b.op("Mul", dy, b.op("Add", node.output[0], alpha)))]


@rule("Relu")
def _relu(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """The slope at zero is zero, as in torch. A product: Where takes onnxruntime several times as long."""
    b = tape.builder
    return [b.op("Mul", dy, b.op("CastLike", b.op("Greater", node.output[0], b.constant(0.0)), dy))]


RULES["Neg"] = lambda tape, _node, dy: [tape.builder.op("Neg", dy)]
RULES["Identity"] = lambda _tape, _node, dy: [dy]
RULES["Exp"] = _unary(lambda _b, _x, y: y)
RULES["Log"] = _unary(lambda b, x, _y: b.op("Reciprocal", x))
RULES["Sqrt"] = _unary(lambda b, _x, y: b.op("Div", b.constant(0.5), y))
RULES["Reciprocal"] = _unary(lambda b, _x, y: b.op("Neg", b.op("Mul", y, y)))
RULES["Tanh"] = _unary(lambda b, _x, y: b.op("Sub", b.constant(1.0), b.op("Mul", y, y)))
RULES["Sigmoid"] = _unary(lambda b, _x, y: b.op("Mul", y, b.op("Sub", b.constant(1.0), y)))
RULES["Softplus"] = _unary(lambda b, x, _y: b.op("Sigmoid", x))
# d erf(x) / dx = 2 / sqrt(pi) exp(-x^2), the factor taken into the exponent
RULES["Erf"] = _unary(
    lambda b, x, _y: b.op("Exp", b.op("Sub", b.constant(math.log(2.0 / math.sqrt(math.pi))), b.op("Mul", x, x)))
)


@rule("Pow")
def _pow(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``y = a^b``: ``da = dy b a^(b - 1)``, ``db = dy y log a``."""
    b = tape.builder
    base, exponent = node.input
    full = tape.shape(node.output[0])
    gradients: list[str | None] = [None, None]
    if base in tape.active:
        if exponent in tape.constants:
            power = tape.value(exponent).astype(b.dtype)
            slope = b.op("Mul", b.constant(power), b.op("Pow", base, b.constant(power - 1)))
        else:
            slope = b.op("Mul", exponent, b.op("Pow", base, b.op("Sub", exponent, b.constant(1.0))))
        gradients[0] = tape.unbroadcast(b.op("Mul", dy, slope), base, full)
    if exponent in tape.active:
        change = b.op("Mul", dy, b.op("Mul", node.output[0], b.op("Log", base)))
        gradients[1] = tape.unbroadcast(change, exponent, full)
    return gradients


@rule("PRelu")
def _prelu(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    b = tape.builder
    x, slope = node.input
    positive, zero = b.op("Greater", x, b.constant(0.0)), b.constant(0.0)
    gradients: list[str | None] = [None, None]
    if x in tape.active:
        gradients[0] = b.op("Where", positive, dy, b.op("Mul", dy, slope))
    if slope in tape.active:
        below = b.op("Where", positive, zero, b.op("Mul", dy, x))
        gradients[1] = tape.unbroadcast(below, slope, tape.shape(node.output[0]))
    return gradients


@rule("Selu")
def _selu(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``y = gamma x`` above zero, ``gamma alpha (exp(x) - 1)`` below: there the slope is ``y + gamma alpha``."""
    b = tape.builder
    alpha = attribute(node, "alpha")
    gamma = attribute(node, "gamma")
    below = b.op("Add", node.output[0], b.constant(gamma * alpha))
    slope = b.op("Where", b.op("Greater", node.input[0], b.constant(0.0)), b.constant(gamma), below)
    return [b.op("Mul", dy, slope)]


@rule("Celu")
def _celu(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``y = x`` above zero, ``alpha (exp(x / alpha) - 1)`` below: there the slope is ``y / alpha + 1``."""
    b = tape.builder
    alpha = b.constant(attribute(node, "alpha"))
    below = b.op("Add", b.op("Div", node.output[0], alpha), b.constant(1.0))
    slope = b.op("Where", b.op("Greater", node.input[0], b.constant(0.0)), b.constant(1.0), below)
    return [b.op("Mul", dy, slope)]


def _within(tape: Tape, value: str, low: float, high: float) -> str:
    """Where ``low < value < high``."""
    b = tape.builder
    return b.op("And", b.op("Greater", value, b.constant(low)), b.op("Less", value, b.constant(high)))


@rule("HardSigmoid")
def _hard_sigmoid(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    b = tape.builder
    slope = b.constant(attribute(node, "alpha"))
    return [b.op("Where", _within(tape, node.output[0], 0.0, 1.0), b.op("Mul", dy, slope), b.constant(0.0))]


@rule("HardSwish")
def _hard_swish(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``y = x max(0, min(1, x / 6 + 1/2))``: between -3 and 3 the slope is ``x / 3 + 1/2``."""
    b = tape.builder
    x, zero = node.input[0], b.constant(0.0)
    inside = b.op("Add", b.op("Div", x, b.constant(3.0)), b.constant(0.5))
    outside = b.op("Where", b.op("Greater", x, zero), b.constant(1.0), zero)
    return [b.op("Mul", dy, b.op("Where", _within(tape, x, -3.0, 3.0), inside, outside))]


@rule("Mish")
def _mish(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``y = x t`` with ``t = tanh(softplus(x))``: the slope is ``t + x (1 - t^2) sigmoid(x)``."""
    b = tape.builder
    x = node.input[0]
    t = b.op("Tanh", b.op("Softplus", x))
    rest = b.op("Mul", b.op("Mul", x, b.op("Sub", b.constant(1.0), b.op("Mul", t, t))), b.op("Sigmoid", x))
    return [b.op("Mul", dy, b.op("Add", t, rest))]


@rule("Clip")
def _clip(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """The limits belong to where the slope is one, as in torch; they are not differentiated themselves."""
    b = tape.builder
    x = node.input[0]
    gradient = dy
    for limit, beyond in zip(node.input[1:], ("Less", "Greater"), strict=False):
        if limit:
            gradient = b.op("Where", b.op(beyond, x, limit), b.constant(0.0), gradient)
    return [gradient, *[None] * (len(node.input) - 1)]


@rule("Where")
def _where(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    b = tape.builder
    condition, yes, no = node.input
    full, zero = tape.shape(node.output[0]), b.constant(0.0)
    gradients: list[str | None] = [None, None, None]
    if yes in tape.active:
        gradients[1] = tape.unbroadcast(b.op("Where", condition, dy, zero), yes, full)
    if no in tape.active:
        gradients[2] = tape.unbroadcast(b.op("Where", condition, zero, dy), no, full)
    return gradients


@rule("Dropout")
def _dropout(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """A trained model's dropout does nothing."""
    if len(node.input) > 2 and node.input[2] and bool(np.any(tape.value(node.input[2]))):
        raise ConversionError(f"Dropout {node.name!r} is in training mode; export the model in evaluation mode")
    return [dy, *[None] * (len(node.input) - 1)]


RULES["Cast"] = lambda tape, node, dy: [tape.builder.op("CastLike", dy, node.input[0])]
RULES["Abs"] = _unary(lambda b, x, _y: b.op("Sign", x))
