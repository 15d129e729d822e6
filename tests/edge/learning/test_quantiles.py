"""Medians and percentiles are those of numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.learning.quantiles import median, percentile

NUMBERS = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20)


@given(NUMBERS)
def test_median(numbers: list[float]) -> None:
    assert float(median(np.array(numbers))) == float(np.median(numbers))


def test_median_of_each_column() -> None:
    rows = np.array([[1.0, 9.0], [3.0, 0.0], [2.0, 4.0], [8.0, 4.0]])
    assert median(rows).tolist() == [2.5, 4.0]


@given(NUMBERS, st.floats(0.0, 100.0))
def test_percentile(numbers: list[float], percent: float) -> None:
    assert percentile(numbers, percent) == pytest.approx(float(np.percentile(numbers, percent)), rel=1e-9, abs=1e-5)
