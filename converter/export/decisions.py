"""Where a model's Python code decides by the values of its inputs, which no trace can follow.

A tracer warns of every tensor that Python takes as a number or a truth, and under a tracer sizes are tensors, too:
``if x.shape[1] > 20`` and ``if x.mean() > 0`` look alike. Here sizes are numbers, as they are when the model runs, and
what was computed from the inputs is followed: only what really depends on a value is found.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.jit._trace import TracerWarning
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

_TAKES_VALUES = frozenset(
    {
        "__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__array__", "item", "tolist",
        "numpy", "equal", "allclose", "is_nonzero",
    }
)  # fmt: skip
# What these give depends on the shape of their argument alone.
_TAKES_SHAPES = frozenset(
    {
        "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
        "new_empty", "new_full", "new_tensor", "size", "stride",
    }
)  # fmt: skip

Place = tuple[str, int]
"""File and line."""


def decisions(model: nn.Module, inputs: Iterable[torch.Tensor]) -> tuple[Place, ...]:
    """Where the model's code, run on these inputs, takes a value that depends on them, in order."""
    inputs = tuple(inputs)
    watch = _Watch(inputs)
    with torch.no_grad(), watch:
        model(*inputs)
    return tuple(dict.fromkeys(watch.places))


def decisions_of(model: nn.Module, inputs: Iterable[torch.Tensor]) -> list[Place]:
    """Those of the user's own code, without a word about what torch warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [place for place in decisions(model, inputs) if is_own(place[0])]


def is_own(file: str) -> bool:
    """Whether this is the user's code, not that of a library."""
    return f"{os.sep}torch{os.sep}" not in file and not file.startswith(sys.prefix)


def takes_number(warning: warnings.WarningMessage) -> bool:
    """Whether a tracer says that Python took a tensor for a number, which may be written down.

    Of one that is gone through, as in ``q, k, v = x``, the number is how often: a graph is wrong at every other size.
    """
    return issubclass(warning.category, TracerWarning) and "Iterating over a tensor" not in str(warning.message)


def described(places: Sequence[Place]) -> str | None:
    """The first place, and whether there are others; None for none."""
    if not places:
        return None
    file, line = places[0]
    return f"{Path(file).name}:{line}{' and elsewhere' if len(set(places)) > 1 else ''}"


class _Watch(TorchFunctionMode):
    def __init__(self, inputs: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.places: list[Place] = []
        self._depending = WeakTensorKeyDictionary(dict.fromkeys(inputs, True))

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        depends = any(tensor in self._depending for tensor in _tensors([args, kwargs]))
        if depends and name in _TAKES_VALUES:
            frame: FrameType = sys._getframe(1)
            self.places.append((frame.f_code.co_filename, frame.f_lineno))
        found = function(*args, **kwargs)
        if depends and name not in _TAKES_SHAPES:
            self._depending.update(dict.fromkeys(_tensors(found), True))
            if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):  # it wrote into the first
                self._depending.update(dict.fromkeys(_tensors(args[:1]), True))
        return found


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _tensors(member)
    elif isinstance(value, tuple | list):
        for member in value:
            yield from _tensors(member)
