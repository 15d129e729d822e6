"""The operators of `converter.export.symbolics` for torch.export's exporter, in a module that is slow to import.

They are written behind its decompositions, where types were promoted already, but for numbers of Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnxscript import ir, opset18
from onnxscript.function_libs.torch_lib.ops import core

from converter.export import symbolics


def _node(kind: str, *inputs: Any, value: Any = None, **attributes: int) -> Any:
    add = getattr(opset18, kind)
    return add(*inputs, **attributes) if value is None else add(value=ir.tensor(np.asarray(value)))


def _translated(of_floats: symbolics.Op, of_whole: symbolics.Op) -> Callable[..., Any]:
    def translation(x: Any, y: Any) -> Any:
        numbers = [isinstance(value, int | float) for value in (x, y)]
        array = y if numbers[0] else x
        is_float = array.dtype.is_floating_point()
        if any(numbers):
            x, y = (v if v is array else symbolics.number(_node, v, array) for v in (x, y))
        return (of_floats if is_float else of_whole)(_node, x, y)

    return translation


_floor_divide = _translated(symbolics.floor_divide, symbolics.floor_divide_whole)
_remainder = _translated(symbolics.remainder, symbolics.remainder_whole)


def _div_of(x: Any, y: Any, rounding_mode: str | None = None) -> Any:
    return _floor_divide(x, y) if rounding_mode == "floor" else core.aten_div_mode(x, y, rounding_mode)


def _with_index(torchs: Callable[..., Any], place: int) -> Callable[..., Any]:
    """As torch's own, of which the argument at this place holds numbers of rows."""

    def translation(*arguments: Any, **named: Any) -> Any:
        guarded = symbolics.index(_node, arguments[place])
        guarded.shape = arguments[place].shape  # torch's own ask for it
        return torchs(*arguments[:place], guarded, *arguments[place + 1 :], **named)

    return translation


def _one_hot_of(numbers: Any, count: int) -> Any:
    return symbolics.one_hot(_node, numbers, count)


_aten = torch.ops.aten
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    **dict.fromkeys((_aten.div.Tensor_mode, _aten.div.Scalar_mode), _div_of),
    **dict.fromkeys((_aten.floor_divide.default, _aten.floor_divide.Scalar), _floor_divide),
    **dict.fromkeys((_aten.remainder.Tensor, _aten.remainder.Scalar, _aten.remainder.Scalar_Tensor), _remainder),
    _aten.atan2.default: lambda y, x: symbolics.atan2(_node, y, x),
    _aten.log_sigmoid.default: lambda x: symbolics.log_sigmoid(_node, x),
    _aten.softplus.default: lambda x, beta=1.0, threshold=20.0: symbolics.softplus(_node, x, beta, threshold),
    **dict.fromkeys(
        (_aten.embedding_bag.padding_idx, _aten._embedding_bag.default, _aten._embedding_bag_forward_only.default),
        _with_index(core.aten_embedding_bag_padding_idx, 1),
    ),
    _aten.embedding.default: _with_index(core.aten_embedding, 1),
    _aten.gather.default: _with_index(core.aten_gather, 2),
    _aten.index_select.default: _with_index(core.aten_index_select, 2),
    _aten.one_hot.default: _one_hot_of,
    _aten.scatter.src: _with_index(core.aten_scatter_src, 2),
    _aten.scatter.value: _with_index(core.aten_scatter_value, 2),
    _aten.scatter_add.default: _with_index(core.aten_scatter_add, 2),
}
"""Given to ``torch.onnx.export(dynamo=True)``: operators, and what writes them."""
