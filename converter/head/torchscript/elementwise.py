"""Operators that work element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch.nn import functional

from converter.head.torchscript.call import (
    DTYPES,
    OPERATORS,
    Call,
    Operator,
    Value,
    operator,
)

_UNARY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Abs": torch.abs, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal,
    "Neg": torch.neg, "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Erf": torch.erf,
    "Softplus": functional.softplus, "Mish": functional.mish, "HardSwish": functional.hardswish,
    "Not": torch.logical_not, "Sign": torch.sign, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round,
    "Sin": torch.sin, "Cos": torch.cos, "Softsign": functional.softsign, "IsNaN": torch.isnan,
}  # fmt: skip
_BINARY: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Equal": torch.eq, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "And": torch.logical_and,
    "Or": torch.logical_or, "Xor": torch.logical_xor, "Pow": torch.pow,
}  # fmt: skip
_HOST: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b, "Equal": lambda a, b: a == b,
    "Greater": lambda a, b: a > b, "Less": lambda a, b: a < b,
}  # fmt: skip


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Operator:
    return lambda call: function(call.x())


def _binary(op_type: str, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Operator:
    def apply(call: Call) -> Value:
        if call.on_host() and op_type in _HOST:
            return np.asarray(_HOST[op_type](call.host(0).astype(object), call.host(1).astype(object)))
        return function(call.x(0), call.x(1))

    return apply


for _name, _function in _UNARY.items():
    OPERATORS[_name] = _unary(_function)
for _name, _two in _BINARY.items():
    OPERATORS[_name] = _binary(_name, _two)


@operator("Identity", "Dropout")
def _identity(call: Call) -> Value:
    if call.has(2) and bool(np.any(call.host(2))):
        raise call.error("is in training mode; export the model in evaluation mode")
    return call.x() if isinstance(call.values[0], torch.Tensor) else call.host(0)


@operator("Div")
def _div(call: Call) -> Value:
    if call.on_host():
        left, right = call.host(0), call.host(1)
        if "f" in left.dtype.kind + right.dtype.kind:
            return np.asarray(left / right)
        return np.asarray(left.astype(object) // right.astype(object))  # sizes are not negative
    above, below = call.x(0), call.x(1)
    return torch.div(above, below, rounding_mode=None if above.is_floating_point() else "trunc")


@operator("LeakyRelu")
def _leaky_relu(call: Call) -> torch.Tensor:
    return functional.leaky_relu(call.x(), call.at("alpha"))


@operator("Elu")
def _elu(call: Call) -> torch.Tensor:
    return functional.elu(call.x(), call.at("alpha"))


@operator("Celu")
def _celu(call: Call) -> torch.Tensor:
    return functional.celu(call.x(), call.at("alpha"))


@operator("Selu")
def _selu(call: Call) -> torch.Tensor:
    scale: float = call.at("gamma")
    return functional.elu(call.x(), call.at("alpha")) * scale


@operator("Gelu")
def _gelu(call: Call) -> torch.Tensor:
    return functional.gelu(call.x(), approximate=call.at("approximate", "none"))


@operator("HardSigmoid")
def _hard_sigmoid(call: Call) -> torch.Tensor:
    return torch.clamp(call.x() * call.at("alpha") + call.at("beta"), 0.0, 1.0)


@operator("PRelu")
def _prelu(call: Call) -> torch.Tensor:
    return torch.where(call.x() > 0, call.x(), call.x() * call.x(1))


@operator("Clip")
def _clip(call: Call) -> torch.Tensor:
    limits = [None if not call.has(i) else call.x(i) for i in (1, 2)]
    return call.x() if limits == [None, None] else torch.clamp(call.x(), limits[0], limits[1])


@operator("Where")
def _where(call: Call) -> Value:
    if call.on_host():
        return np.where(call.host(0).astype(bool), call.host(1).astype(object), call.host(2).astype(object))
    return torch.where(call.x(0), call.x(1), call.x(2))


@operator("Sum", "Mean", "Max", "Min")
def _variadic(call: Call) -> torch.Tensor:
    two = {"Max": torch.maximum, "Min": torch.minimum}.get(call.node.op_type, torch.add)
    found = call.x()
    for i in range(1, len(call)):
        found = two(found, call.x(i))
    return found / len(call) if call.node.op_type == "Mean" else found


@operator("Cast")
def _cast(call: Call) -> Value:
    to = call.at("to")
    if to not in DTYPES:
        raise call.error(f"to the type {onnx.TensorProto.DataType.Name(to)} is not known")
    if call.on_host():
        if DTYPES[to].is_floating_point or to == onnx.TensorProto.BOOL:
            return call.x().to(DTYPES[to])
        return call.host(0)
    return call.x().to(DTYPES[to])


@operator("CastLike")
def _cast_like(call: Call) -> torch.Tensor:
    return call.x().to(call.x(1).dtype)
