"""Operators that torch's tracing exporter writes otherwise than torch computes them, written right.

Seen in torch 2.13: ``//`` and ``>>`` round towards zero, so that -1 // 3 is 0; atan2(0, x) is 0 for x < 0, and
atan2(0, 0) is not a number; logsigmoid(-60) is minus infinity; softplus has no threshold. On data of one sign nothing
of that shows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.onnx import symbolic_helper, utils

from converter.graph.nodes import OPSET


@contextlib.contextmanager
def right_symbolics() -> Iterator[None]:
    """Within this, the exporter writes them so."""
    for name, symbolic in _SYMBOLICS.items():
        utils.register_custom_op_symbolic(name, symbolic, OPSET)
    try:
        yield
    finally:
        for name in _SYMBOLICS:
            utils.unregister_custom_op_symbolic(name, OPSET)


def _number(g: Any, value: float, like: Any) -> Any:
    return g.op("CastLike", g.op("Constant", value_t=torch.tensor(value)), like)


def _floor_divide(g: Any, x: Any, y: Any) -> Any:
    """Rounded down."""
    found = g.op("Div", x, y)
    if symbolic_helper._is_fp(x) or symbolic_helper._is_fp(y):
        return g.op("Floor", found)
    left = g.op("Sub", x, g.op("Mul", found, y))  # ONNX rounds towards zero: a rest has the sign of x
    zero = _number(g, 0, left)
    differs = g.op("Xor", g.op("Less", left, zero), g.op("Less", y, _number(g, 0, y)))
    less = g.op("And", g.op("Not", g.op("Equal", left, zero)), differs)
    return g.op("Sub", found, g.op("CastLike", less, found))


def _shift_right(g: Any, x: Any, bits: Any) -> Any:
    """Divided by 2 ** bits, and rounded down."""
    two = g.op("Constant", value_t=torch.tensor(2.0))
    power = g.op("Pow", two, g.op("CastLike", bits, two))
    return _floor_divide(g, x, g.op("CastLike", power, x))


def _atan2(g: Any, y: Any, x: Any) -> Any:
    """The angle of (x, y); the sign of a zero counts, as in IEEE 754."""
    zero, one, pi = (_number(g, value, y) for value in (0.0, 1.0, math.pi))
    angle = g.op("Atan", g.op("Where", g.op("Equal", y, zero), y, g.op("Div", y, x)))
    is_below = g.op("Less", g.op("Div", one, y), zero)
    is_left = g.op("Less", g.op("Div", one, x), zero)
    turned = g.op("Where", is_below, g.op("Sub", angle, pi), g.op("Add", angle, pi))
    return g.op("Where", is_left, turned, angle)


def _log_sigmoid(g: Any, x: Any) -> Any:
    return g.op("Neg", g.op("Softplus", g.op("Neg", x)))


def _softplus(g: Any, x: Any, beta: Any, threshold: Any) -> Any:
    """log(1 + exp(beta x)) / beta, and x itself where beta x is above the threshold."""
    factor, most = (symbolic_helper._maybe_get_const(value, "f") for value in (beta, threshold))
    scaled = x if factor == 1 else g.op("Mul", x, _number(g, factor, x))
    found = g.op("Softplus", scaled)
    found = found if factor == 1 else g.op("Div", found, _number(g, factor, x))
    if most >= _EXACT_FROM:
        return found
    return g.op("Where", g.op("Greater", scaled, _number(g, most, x)), x, found)


# From there on both are the same number in single precision.
_EXACT_FROM = 17

_SYMBOLICS: dict[str, Callable[..., Any]] = {
    "aten::floor_divide": _floor_divide,
    "aten::__rshift_": _shift_right,
    "aten::atan2": _atan2,
    "aten::log_sigmoid": _log_sigmoid,
    "aten::softplus": _softplus,
}
