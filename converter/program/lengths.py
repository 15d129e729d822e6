"""``len`` of tensors, for whatever traces a model.

Python makes a plain number of what ``len`` gives, so that a tracer writes down how many samples its example has, as in
``token.expand(len(x), -1, -1)``. Within the modules that hold the model's code ``len`` of a tensor is its first size,
which a tracer follows. What is traced is compared with the model as it was.
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from edge.contract.errors import ConversionError

T = TypeVar("T")


def with_lengths(model: nn.Module, trace: Callable[[], T]) -> T:
    """What a tracer makes of a model, lengths followed; where that fails, as the model has them.

    Args:
        model: What is traced.
        trace: Traces it.

    Raises:
        ConversionError: It fails either way.
    """
    with _followed(model) as followed:
        try:
            return trace()
        except ConversionError:  # a list times a length
            if not followed:
                raise
    return trace()


@contextlib.contextmanager
def _followed(model: nn.Module) -> Iterator[list[Any]]:
    """Within this, ``len`` of a tensor is one where the model's code asks for it; gives those that were asked for."""
    followed: list[Any] = []

    def length(value: Any) -> Any:
        if not (isinstance(value, torch.Tensor) and value.ndim):
            return builtins.len(value)
        followed.append(value.shape[0])
        return followed[-1]

    codes = [names for names in _globals(model) if "len" not in names]
    for names in codes:
        names["len"] = length
    try:
        yield followed
    finally:
        for names in codes:
            del names["len"]


def _globals(model: nn.Module) -> list[dict[str, Any]]:
    """Names known where the model's classes are written, torch's own left out."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__ if "forward" in vars(kind)}
    found = {}
    for kind in kinds:
        names = getattr(vars(kind)["forward"], "__globals__", None)
        if names is not None and not str(names.get("__name__", "")).startswith("torch."):
            found[id(names)] = names
    return [*found.values()]
