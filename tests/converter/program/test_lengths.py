"""``len`` of tensors: traces follow it, and the model's code is left as it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from converter.program.lengths import with_lengths
from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign

Forward = Callable[[torch.Tensor], torch.Tensor]
FOLLOWED: tuple[Forward, ...] = (
    lambda x: torch.zeros(1, 1, 3).expand(len(x), -1, -1) + x, lambda x: x.reshape(len(x), -1),
    lambda x: torch.full((len(x), 2), 0.5) + torch.zeros(len(x), 1), lambda x: x.new_ones(len(x), 3) * len(x),
    lambda x: x[: len(x) // 2], lambda x: torch.arange(len(x)).float() / len(x), lambda x: x.sum(0) / len(x),
    lambda x: torch.arange(len(x[0]))[None].repeat(len(x), 1), lambda x: x[-1:].repeat(len(x), 1, len(x.shape)),
    lambda x: x if len(x) > 0 else -x, lambda x: torch.ones(len([x, x]), len("abc"), len(x)),
)  # fmt: skip


class Calling(nn.Module):
    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def traced(model: nn.Module, x: torch.Tensor) -> torch.jit.ScriptModule:
    with warnings.catch_warnings(), foreign("cannot be traced", ConversionError):
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, x, check_trace=False)  # type: ignore[no-any-return, no-untyped-call]


def test_lengths_are_followed() -> None:
    for number, function in enumerate(FOLLOWED):
        model = Calling(function)
        trace = with_lengths(model, lambda model=model: traced(model, torch.randn(2, 4, 3)))  # type: ignore[misc]
        for size in (1, 3, 7):
            x = torch.randn(size, 4, 3)
            torch.testing.assert_close(trace(x), model(x), msg=str(number))
    assert "len" not in globals()


def test_code_that_needs_a_number_has_one() -> None:
    model = Calling(lambda x: x + sum([1.0] * len(x)) + sum(range(len(x))))
    trace = with_lengths(model, lambda: traced(model, torch.randn(2, 4)))
    x = torch.randn(2, 4)
    torch.testing.assert_close(trace(x), model(x))


def test_what_fails_either_way_is_told_once_and_leaves_nothing_behind() -> None:
    tries: list[int] = []

    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tries.append(len(x))
            raise ValueError("no")

    with pytest.raises(ConversionError, match="cannot be traced: no"):
        with_lengths(Failing(), lambda: traced(Failing(), torch.zeros(2, 3)))
    assert [int(size) for size in tries] == [2, 2]
    assert "len" not in globals()
