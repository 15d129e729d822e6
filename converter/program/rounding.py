"""Sizes that Python multiplies and rounds, for whatever traces a model.

Under a tracer a size is a tensor. ``round(h * 0.375)`` fails with one, ``math.ceil(h / 3)`` becomes a number that stays
in the graph, and the product is one of single precision, where Python's has double: above a whole number instead of at
it. What is traced is compared with the model as it was.
"""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_ARITHMETIC = (
    "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__pow__",
    "__neg__",
)  # fmt: skip

Method = Callable[..., Any]


class _InDouble:
    """Beside each single-precision number that is computed of sizes, the same in double precision."""

    def __init__(self) -> None:
        self._exact = WeakTensorKeyDictionary()

    def computed(self, method: Method) -> Method:
        """A method of tensors that remembers that."""

        def compute(*values: Any) -> Any:
            found = method(*values)
            is_single = isinstance(found, torch.Tensor) and found.ndim == 0 and found.dtype == torch.float32
            if is_single and all(map(self._is_of_sizes, values)):
                self._exact[found] = method(*map(self.exact, values))
            return found

        return compute

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
    numbers_ = _InDouble()

    def whole(function: Callable[[torch.Tensor], torch.Tensor]) -> Method:
        return lambda number: function(numbers_.exact(number)).to(torch.int64)

    def rounded(number: torch.Tensor, digits: int | None = None) -> torch.Tensor:
        if digits is None:  # to the even one of two that are equally near, as Python does
            return torch.round(numbers_.exact(number)).to(torch.int64)
        return torch.round(numbers_.exact(number), decimals=digits)

    methods: dict[str, Method] = {
        "__round__": rounded, "__floor__": whole(torch.floor), "__ceil__": whole(torch.ceil),
        "__trunc__": whole(torch.trunc),
    }  # fmt: skip
    # Methods, and no mode that all functions of torch go through: a tracer's warning names the line that called it.
    methods |= {name: numbers_.computed(getattr(torch.Tensor, name)) for name in _ARITHMETIC}
    before = {name: vars(torch.Tensor)[name] for name in methods if name in vars(torch.Tensor)}
    for name, method in methods.items():
        setattr(torch.Tensor, name, method)
    try:
        yield
    finally:
        for name in methods:
            if name in before:
                setattr(torch.Tensor, name, before[name])
            else:
                delattr(torch.Tensor, name)
