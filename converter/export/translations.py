"""The operators of `converter.export.symbolics` for torch.export's exporter, in a module that is slow to import.

They are written behind its decompositions, where types were promoted already, but for numbers of Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops.core import aten_div_mode

from converter.export import symbolics


def _node(kind: str, *inputs: Any, value: Any = None, **attributes: int) -> Any:
    add = getattr(opset18, kind)
    return add(value_float=float(value)) if value is not None else add(*inputs, **attributes)


def _translated(of_floats: symbolics.Op, of_whole: symbolics.Op) -> Callable[..., Any]:
    def translation(x: Any, y: Any) -> Any:
        numbers = [isinstance(value, int | float) for value in (x, y)]
        array = y if numbers[0] else x
        is_float = array.dtype.is_floating_point()
        if any(numbers):
            x, y = (_node("CastLike", _node("Constant", value=v), array) if v is not array else v for v in (x, y))
        return (of_floats if is_float else of_whole)(_node, x, y)

    return translation


_floor_divide = _translated(symbolics.floor_divide, symbolics.floor_divide_whole)
_remainder = _translated(symbolics.remainder, symbolics.remainder_whole)


def _div_of(x: Any, y: Any, rounding_mode: str | None = None) -> Any:
    return _floor_divide(x, y) if rounding_mode == "floor" else aten_div_mode(x, y, rounding_mode)


_aten = torch.ops.aten
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    **dict.fromkeys((_aten.div.Tensor_mode, _aten.div.Scalar_mode), _div_of),
    **dict.fromkeys((_aten.floor_divide.default, _aten.floor_divide.Scalar), _floor_divide),
    **dict.fromkeys((_aten.remainder.Tensor, _aten.remainder.Scalar, _aten.remainder.Scalar_Tensor), _remainder),
    _aten.atan2.default: lambda y, x: symbolics.atan2(_node, y, x),
    _aten.log_sigmoid.default: lambda x: symbolics.log_sigmoid(_node, x),
    _aten.softplus.default: lambda x, beta=1.0, threshold=20.0: symbolics.softplus(_node, x, beta, threshold),
}
"""Given to ``torch.onnx.export(dynamo=True)``: operators, and what writes them."""
