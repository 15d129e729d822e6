"""Sizes that Python multiplies and rounds, for whatever traces a model.

Under a tracer a size is a tensor. ``round(h * 0.375)`` fails with one, ``math.ceil(h / 3)`` becomes a number that stays
in the graph, and the product is one of single precision, where Python's has double: above a whole number instead of at
it. What is traced is compared with the model as it was.
"""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

_ARITHMETIC = frozenset(
    {
        "__add__", "__radd__", "add", "__sub__", "__rsub__", "sub", "rsub", "__mul__", "__rmul__", "mul",
        "__truediv__", "__rtruediv__", "__rdiv__", "div", "true_divide", "reciprocal", "__pow__", "pow", "__neg__",
        "neg",
    }
)  # fmt: skip


class _InDouble(TorchFunctionMode):
    """Beside each single-precision number that is computed of sizes, the same in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self._exact = WeakTensorKeyDictionary()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See torch."""
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        is_single = isinstance(found, torch.Tensor) and found.ndim == 0 and found.dtype == torch.float32
        if is_single and name in _ARITHMETIC and all(map(self._is_of_sizes, (*args, *kwargs.values()))):
            self._exact[found] = function(*map(self.exact, args), **kwargs)
        return found

    def _is_of_sizes(self, value: object) -> bool:
        if not isinstance(value, torch.Tensor):
            return isinstance(value, numbers.Real)
        return value.ndim == 0 and (value.dtype == torch.int64 or value in self._exact)

    def exact(self, value: Any) -> Any:
        """A number as Python would have it."""
        if not isinstance(value, torch.Tensor):
            return value
        return self._exact[value] if value in self._exact else value.double() if value.dtype == torch.int64 else value


@contextlib.contextmanager
def rounded_sizes() -> Iterator[None]:
    """Within this, ``round``, ``math.floor``, ``math.ceil`` and ``math.trunc`` take tensors of one number."""
    mode = _InDouble()

    def whole(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda number: function(mode.exact(number)).to(torch.int64)

    def rounded(number: torch.Tensor, digits: int | None = None) -> torch.Tensor:
        if digits is None:  # to the even one of two that are equally near, as Python does
            return whole(torch.round)(number)
        return torch.round(mode.exact(number), decimals=digits)

    methods = {
        "__round__": rounded, "__floor__": whole(torch.floor), "__ceil__": whole(torch.ceil),
        "__trunc__": whole(torch.trunc),
    }  # fmt: skip
    before = {name: vars(torch.Tensor)[name] for name in methods if name in vars(torch.Tensor)}
    for name, method in methods.items():
        setattr(torch.Tensor, name, method)
    try:
        with mode:
            yield
    finally:
        for name in methods:
            delattr(torch.Tensor, name)
        for name, method in before.items():
            setattr(torch.Tensor, name, method)
