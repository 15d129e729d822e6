"""The mean of changes: arrays in, arrays out, whatever the order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.errors import LearningError
from edge.contract.training import Parameters
from edge.merging.deltas import Delta, apply_change, mean_change

BASE = {"w": np.array([[1.0, 2.0]], np.float32), "b": np.array([0.5], np.float32)}


def delta(w: float, b: float, n_samples: int, staleness: int = 0) -> Delta:
    change = {"w": np.full((1, 2), w, np.float32), "b": np.full(1, b, np.float32)}
    return Delta(change=change, n_samples=n_samples, staleness=staleness)


def averaged(base: Parameters, deltas: Iterable[Delta]) -> Parameters:
    return apply_change(base, mean_change(base, deltas))


def test_mean_is_federated_averaging() -> None:
    # 10 samples moved the weights by 1, 30 samples by 2: (10 * 1 + 30 * 2) / 40 = 1.75
    merged = averaged(BASE, [delta(1, -1, 10), delta(2, 1, 30)])
    assert merged["w"].tolist() == [[2.75, 3.75]]
    assert merged["b"].tolist() == [1.0]
    assert {array.dtype for array in merged.values()} == {np.dtype(np.float32)}
    assert BASE["w"].tolist() == [[1.0, 2.0]]


def test_a_stale_change_weighs_less() -> None:
    # Three merges late: 40 samples count as 40 / sqrt(1 + 3) = 20.
    assert averaged(BASE, [delta(0, 0, 20), delta(1, 1, 40, staleness=3)])["b"].tolist() == [1.0]
    assert averaged(BASE, [delta(1, 1, 40, staleness=8)])["b"].tolist() == [1.5]


def test_a_device_without_samples_changes_nothing_among_others() -> None:
    alone, joined = averaged(BASE, [delta(1, 1, 5)]), averaged(BASE, [delta(1, 1, 5), delta(9, 9, 0)])
    assert all((alone[name] == joined[name]).all() for name in BASE)


def test_the_order_of_devices_does_not_matter() -> None:
    deltas = [delta(0.1, 7, 3), delta(-2, 1e-3, 11, 2), delta(5, 2, 1), delta(0.3, 0.7, 100)]
    heads = [averaged(BASE, order) for order in itertools.permutations(deltas)]
    for head in heads:
        np.testing.assert_allclose(head["w"], heads[0]["w"], rtol=1e-6)


def test_devices_are_folded_in_as_they_come() -> None:
    alive = 0

    def coming():
        nonlocal alive
        for i in range(5):
            alive = i
            yield delta(i, -i, 1)

    assert averaged(BASE, coming())["b"].tolist() == [0.5 - 2.0]
    assert alive == 4


@settings(deadline=None)
@given(st.floats(-(2.0**127), 2.0**127, width=32), st.floats(0, 1e6))
def test_clipping_keeps_the_direction_and_limits_the_norm(value: float, limit: float) -> None:
    given_, clipped = delta(value, value, 4, 2), delta(value, value, 4, 2).clipped(limit)
    assert clipped.norm <= limit * (1 + 1e-6) + 1e-44
    assert (clipped.n_samples, clipped.staleness) == (4, 2)
    assert given_.norm == pytest.approx(math.sqrt(3) * abs(value))
    if given_.norm <= limit:
        assert all((clipped.change[name] == given_.change[name]).all() for name in BASE)
    else:
        assert clipped.norm == pytest.approx(limit, rel=1e-5, abs=1e-40)
        assert np.sign(clipped.change["b"][0]) in (0, np.sign(value))
    with pytest.raises(LearningError, match="limited"):
        given_.clipped(math.nan)


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [delta(1, 1, 0)],
        [delta(1, 1, 0), delta(2, 2, 0)],
        [delta(np.nan, 1, 5)],
        [delta(1, 1, 5), delta(1, np.inf, 5)],
        [delta(1, 1, 5), delta(1, 1, -4)],
        [delta(1, 1, 5, staleness=-1)],
        [Delta(change={"w": BASE["w"]}, n_samples=5)],
        [Delta(change={"w": BASE["b"], "b": BASE["b"]}, n_samples=5)],
        [Delta(change={**BASE, "c": BASE["b"]}, n_samples=5)],
    ],
    ids=repr,
)
def test_refuses_changes_that_cannot_be_merged(bad: list[Delta]) -> None:
    with pytest.raises(LearningError):
        averaged(BASE, bad)


def test_changes_whose_weighted_sum_is_too_large_for_float32_have_a_mean() -> None:
    deltas = [Delta(change={"b": np.array([value], np.float32)}, n_samples=10**6) for value in (1e38, 3e38, -1e38)]
    assert averaged({"b": np.zeros(1, np.float32)}, deltas)["b"] == pytest.approx(1e38)


def test_what_is_not_finite_is_found_in_any_place() -> None:
    good = delta(1, 1, 5)
    for place in (0, 40, 99):
        with pytest.raises(LearningError, match="not finite"):
            averaged(BASE, [*[good] * place, delta(1, -np.inf, 5), *[good] * (99 - place)])


def test_refuses_a_merge_that_overflows() -> None:
    base = {"b": np.array([3e38], np.float32)}
    with pytest.raises(LearningError, match="not finite"):
        averaged(base, [Delta(change=base, n_samples=1)])
