"""Operators that torch's exporters write otherwise than torch computes them, written right.

Seen in torch 2.13: ``//`` and ``>>`` round towards zero, so that -1 // 3 is 0; of floats, ``//`` and ``%`` are made of
a quotient that was rounded, so that 0.3 // 0.1 is 3; atan2(0, x) is 0 or -pi for x < 0, and atan2(0, 0) is not a
number; logsigmoid(-200) is minus infinity; softplus has no threshold; a category of -1 is the last one, and is none of
a one-hot vector. On data of one sign, or with many digits, nothing of that shows.

Each is written here, and given to the tracing exporter by `right_symbolics`; `converter.export.translations` gives them
to torch.export's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch.onnx import symbolic_helper, symbolic_opset9, symbolic_opset11, symbolic_opset16, utils
from torch.onnx.symbolic_opset10 import div as _torchs_div

from converter.graph.nodes import OPSET

Op = Callable[..., Any]
"""Adds a node: its type, its inputs and its attributes, which are whole numbers."""

_ALL_BUT_SIGN = np.int64(np.iinfo(np.int64).max)
# What gives numbers that the graph itself counted, and what passes them on.
_COUNTS, _PASSES_ON = {"onnx::Range", "onnx::Constant"}, {"onnx::Cast", "onnx::Expand", "onnx::Unsqueeze"}


def number(op: Op, value: float, like: Any) -> Any:
    """A constant of the type of another value."""
    return op("CastLike", op("Constant", value=np.float32(value)), like)


def _rest(op: Op, x: Any, y: Any) -> tuple[Any, Any]:
    """What is left of floats, exactly, with the sign of x; and where that has another sign than y."""
    rest = op("Mod", x, y, fmod=1)
    zero = number(op, 0, rest)
    differs = op("Xor", op("Less", rest, zero), op("Less", y, zero))
    return rest, op("And", op("Not", op("Equal", rest, zero)), differs)


def floor_divide(op: Op, x: Any, y: Any) -> Any:
    """Of floats, rounded down as torch's ``div_floor_floating`` does it."""
    rest, differs = _rest(op, x, y)
    found = op("Sub", op("Div", op("Sub", x, rest), y), op("CastLike", differs, rest))
    return op("Where", op("Equal", y, number(op, 0, y)), op("Div", x, y), op("Round", found))


def floor_divide_whole(op: Op, x: Any, y: Any) -> Any:
    """Of whole numbers, rounded down."""
    found = op("Div", x, y)
    left = op("Sub", x, op("Mul", found, y))  # ONNX rounds towards zero: a rest has the sign of x
    zero = number(op, 0, left)
    differs = op("Xor", op("Less", left, zero), op("Less", y, number(op, 0, y)))
    less = op("And", op("Not", op("Equal", left, zero)), differs)
    return op("Sub", found, op("CastLike", less, found))


def remainder(op: Op, x: Any, y: Any) -> Any:
    """Of floats, with the sign of y."""
    rest, differs = _rest(op, x, y)
    return op("Where", differs, op("Add", rest, y), rest)


def remainder_whole(op: Op, x: Any, y: Any) -> Any:
    """Of whole numbers, with the sign of y."""
    return op("Mod", x, y, fmod=0)


def _shift_right(op: Op, x: Any, bits: Any) -> Any:
    """Divided by 2 ** bits, and rounded down."""
    two = op("Constant", value=np.float32(2.0))
    power = op("Pow", two, op("CastLike", bits, two))
    return floor_divide_whole(op, x, op("CastLike", power, x))


def atan2(op: Op, y: Any, x: Any) -> Any:
    """The angle of (x, y); the sign of a zero counts, as in IEEE 754."""
    zero, one, pi = (number(op, value, y) for value in (0.0, 1.0, math.pi))
    angle = op("Atan", op("Where", op("Equal", y, zero), y, op("Div", y, x)))
    is_below = op("Less", op("Div", one, y), zero)
    is_left = op("Less", op("Div", one, x), zero)
    turned = op("Where", is_below, op("Sub", angle, pi), op("Add", angle, pi))
    return op("Where", is_left, turned, angle)


def log_sigmoid(op: Op, x: Any) -> Any:
    """Finite however small x is."""
    return op("Neg", op("Softplus", op("Neg", x)))


def index(op: Op, numbers: Any) -> Any:
    """Numbers of rows as torch takes them, from 0 on: ONNX counts negative ones from the end.

    Without its sign, -1 is 2^63 - 1, which every runtime refuses, see `edge.inference.out_of_bounds`.
    """
    return op("BitwiseAnd", op("Cast", numbers, to=TensorProto.INT64), op("Constant", value=_ALL_BUT_SIGN))


def one_hot(op: Op, numbers: Any, count: int) -> Any:
    """As whole numbers; a category that is none is refused, of which ONNX makes zeros."""
    known = op("Gather", op("Constant", value=np.arange(count)), index(op, numbers), axis=0)
    return op("OneHot", known, op("Constant", value=np.int64(count)), op("Constant", value=np.arange(2)), axis=-1)


# From there on both are the same number in single precision.
_EXACT_FROM = 17


def softplus(op: Op, x: Any, factor: float, most: float) -> Any:
    """log(1 + exp(factor x)) / factor, and x itself where factor x is above the threshold."""
    scaled = x if factor == 1 else op("Mul", x, number(op, factor, x))
    found = op("Softplus", scaled)
    found = found if factor == 1 else op("Div", found, number(op, factor, x))
    if most >= _EXACT_FROM:
        return found
    return op("Where", op("Greater", scaled, number(op, most, x)), x, found)


@contextlib.contextmanager
def right_symbolics() -> Iterator[None]:
    """Within this, the tracing exporter writes them so."""
    for name, symbolic in _SYMBOLICS.items():
        utils.register_custom_op_symbolic(name, symbolic, OPSET)
    try:
        yield
    finally:
        for name in _SYMBOLICS:
            utils.unregister_custom_op_symbolic(name, OPSET)


def _nodes_of(g: Any) -> Op:
    def op(kind: str, *inputs: Any, value: Any = None, **attributes: int) -> Any:
        if value is not None:
            return g.op(kind, value_t=torch.from_numpy(np.asarray(value)))
        return g.op(kind, *inputs, **{f"{name}_i": number for name, number in attributes.items()})

    return op


def _by_kind(of_floats: Op, of_whole: Op) -> Callable[..., Any]:
    """Of two arguments, of which one may be a float of Python: with it, whole numbers are in single precision."""

    def symbolic(g: Any, x: Any, y: Any) -> Any:
        op = _nodes_of(g)
        if symbolic_helper._is_fp(x):
            return of_floats(op, x, op("CastLike", y, x))
        if not symbolic_helper._is_fp(y):
            return of_whole(op, x, y)
        if symbolic_helper._is_onnx_constant(y):
            y = op("Cast", y, to=TensorProto.FLOAT)
        return of_floats(op, op("CastLike", x, y), y)

    return symbolic


def _div(g: Any, x: Any, y: Any, *mode: Any) -> Any:
    """As torch's own, but for what is rounded down."""
    if mode and symbolic_helper._maybe_get_const(mode[0], "s") == "floor":
        return _SYMBOLICS["aten::floor_divide"](g, x, y)
    return _torchs_div(g, x, y, *mode)


def _softplus_of(g: Any, x: Any, beta: Any, threshold: Any) -> Any:
    factor, most = (symbolic_helper._maybe_get_const(value, "f") for value in (beta, threshold))
    return softplus(_nodes_of(g), x, factor, most)


def _index(g: Any, numbers: Any) -> Any:
    """As `index`, without a node where the graph counted itself."""
    made = numbers.node()
    while made.kind() in _PASSES_ON:
        made = next(made.inputs()).node()
    return numbers if made.kind() in _COUNTS else index(_nodes_of(g), numbers)


def _with_index(symbolic: Callable[..., Any], place: int) -> Callable[..., Any]:
    """As torch's own, of which the argument at this place holds numbers of rows."""

    def guarded(g: Any, *arguments: Any) -> Any:
        return symbolic(g, *arguments[:place], _index(g, arguments[place]), *arguments[place + 1 :])

    return guarded


def _one_hot_of(g: Any, numbers: Any, count: Any) -> Any:
    known = symbolic_helper._maybe_get_const(count, "i")
    if isinstance(known, int) and known > 0:
        return one_hot(_nodes_of(g), numbers, known)
    return symbolic_opset9.one_hot(g, numbers, count)


_SYMBOLICS: dict[str, Callable[..., Any]] = {
    "aten::div": _div,
    "aten::floor_divide": _by_kind(floor_divide, floor_divide_whole),
    "aten::remainder": _by_kind(remainder, remainder_whole),
    "aten::__rshift_": lambda g, x, bits: _shift_right(_nodes_of(g), x, bits),
    "aten::atan2": lambda g, y, x: atan2(_nodes_of(g), y, x),
    "aten::log_sigmoid": lambda g, x: log_sigmoid(_nodes_of(g), x),
    "aten::softplus": _softplus_of,
    "aten::embedding": _with_index(symbolic_opset9.embedding, 1),
    "aten::embedding_bag": _with_index(symbolic_opset11.embedding_bag, 1),
    "aten::gather": _with_index(symbolic_opset11.gather, 2),
    "aten::index_select": _with_index(symbolic_opset9.index_select, 2),
    "aten::one_hot": _one_hot_of,
    "aten::scatter": _with_index(symbolic_opset11.scatter, 2),
    "aten::scatter_add": _with_index(symbolic_opset16.scatter_add, 2),
}
