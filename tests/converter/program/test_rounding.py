"""Sizes that Python multiplies and rounds are traced as Python computes them, at every size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch.jit._trace import TracerWarning

from converter.program.rounding import rounded_sizes

ROUNDED: dict[str, Callable[[int], int]] = {
    "round": lambda n: round(n * 0.375),
    "a half to the even one": lambda n: round(n * 0.5),
    "round of what is only nearly a half": lambda n: round(0.7 * n / 1.4),
    "floor": lambda n: math.floor(n * 0.7),
    "a double above a whole number": lambda n: math.ceil(n * 0.1),
    "ceil of a quotient": lambda n: math.ceil((n - 1) / 3) + 1,
    "trunc": lambda n: math.trunc((n - 9) / 4) + 3,
    "floor of a power": lambda n: math.floor((2.2 * n + 1) ** 0.5),
    "of a quotient turned around": lambda n: math.ceil(100 / n),
}


def test_what_is_traced_of_one_size_is_right_at_all() -> None:
    for name, rounded in ROUNDED.items():

        def model(x: torch.Tensor, rounded: Callable[[int], int] = rounded) -> torch.Tensor:
            return x.new_ones(rounded(x.shape[0]))

        with warnings.catch_warnings(), rounded_sizes():
            warnings.simplefilter("ignore")
            trace = torch.jit.trace(model, (torch.zeros(20),), check_trace=False)
        for n in range(1, 400):
            assert len(trace(torch.zeros(n))) == rounded(n), (name, n)


def test_tensors_are_left_as_they_were() -> None:
    names = ("__round__", "__floor__", "__ceil__", "__trunc__", "__mul__", "__rsub__", "__truediv__")
    before = [vars(torch.Tensor).get(name) for name in names]
    with rounded_sizes():
        assert math.floor(torch.tensor(2.5)) == round(torch.tensor(2.5)) == 2  # type: ignore[call-overload]
        assert round(torch.tensor(0.126), 2) == torch.tensor(0.13)  # type: ignore[call-overload]
        x = torch.arange(3) * 0.5  # no size: as it always was
        assert x.dtype == torch.float32
    assert [vars(torch.Tensor).get(name) for name in names] == before


def test_a_warning_of_the_tracer_names_the_line_of_the_model() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x[: int(x.shape[0] * 0.5)] if x.sum() > 0 else x

    with warnings.catch_warnings(record=True) as caught, rounded_sizes():
        warnings.simplefilter("always")
        torch.jit.trace(model, (torch.ones(20),), check_trace=False)
    places = [warning.filename for warning in caught if issubclass(warning.category, TracerWarning)]
    assert places == [__file__, __file__]
