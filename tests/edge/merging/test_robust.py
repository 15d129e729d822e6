"""Robust rules: what garbage cannot move."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge.contract.errors import LearningError
from edge.merging.deltas import Delta
from edge.merging.robust import coordinate_median, krum, trimmed_mean

BASE = {"w": np.array([[1.0, 2.0]], np.float32), "b": np.array([0.5], np.float32)}


def delta(values: np.ndarray, n_samples: int = 1) -> Delta:
    row = np.asarray(values, np.float32)
    return Delta(change={"w": row[:2].reshape(1, 2), "b": row[2:]}, n_samples=n_samples)


def change(head: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([(head[name].astype(np.float64) - BASE[name]).ravel() for name in BASE])


ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(3)), elements=st.floats(-100, 100, width=32))


@settings(deadline=None)
@given(ROWS, st.data())
def test_trimmed_mean_and_median_are_their_definitions_in_any_order(rows: np.ndarray, data: st.DataObject) -> None:
    trim = data.draw(st.integers(0, (len(rows) - 1) // 2))
    shuffled = data.draw(st.permutations(list(rows)))
    kept = [sorted(column)[trim : len(rows) - trim] for column in rows.astype(np.float64).T.tolist()]
    trimmed, middle = trimmed_mean(BASE, map(delta, shuffled), trim), coordinate_median(BASE, map(delta, shuffled))
    np.testing.assert_allclose(change(trimmed), [np.mean(k) for k in kept], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(change(middle), np.median(rows, axis=0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rule", [coordinate_median, trimmed_mean, krum], ids=lambda rule: rule.__name__)
def test_garbage_does_not_move_the_head_beyond_the_honest_ones(rule: Callable) -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(1.0, 0.1, (7, 3))
    garbage = [[1e30, -1e30, 5.0], [-3e3, 1e3, -1e9]]
    merged = change(rule(BASE, [delta(row) for row in (*garbage, *honest)], 2))
    assert ((merged > honest.min(axis=0) - 1e-6) & (merged < honest.max(axis=0) + 1e-6)).all()


def test_samples_that_a_device_claims_give_it_no_weight() -> None:
    rows = [[1, 1, 1], [2, 2, 2], [9, 9, 9]]
    claims = [delta(row, n) for row, n in zip(rows, (1, 1, 10**9), strict=True)]
    assert change(coordinate_median(BASE, claims)).tolist() == [2, 2, 2]
    assert change(trimmed_mean(BASE, claims, 1)).tolist() == [2, 2, 2]


@pytest.mark.parametrize(("rule", "needed"), [(coordinate_median, 5), (trimmed_mean, 5), (krum, 7)])
def test_needs_enough_devices_for_the_assumed_garbage(rule: Callable, needed: int) -> None:
    rows = [delta(np.full(3, i)) for i in range(needed)]
    rule(BASE, rows, 2)
    with pytest.raises(LearningError, match=f"at least {needed}"):
        rule(BASE, rows[1:], 2)
    with pytest.raises(LearningError):
        rule(BASE, rows, -1)
    with pytest.raises(LearningError):
        rule(BASE, [], 0)
    # What is not finite is one of the two: for the other, two devices fewer are enough.
    unfit = delta(np.array([1.0, np.nan, 1.0]))
    assert (rule(BASE, [*rows[2:], unfit], 2)["w"] == rule(BASE, rows[2:], 1)["w"]).all()
    with pytest.raises(LearningError, match="other parameters"):
        rule(BASE, [*rows, Delta(change={"w": BASE["w"]}, n_samples=1)], 2)


def krum_by_hand(rows: np.ndarray, f: int) -> list[int]:
    """Indices from the least score to the largest."""
    scores = []
    for i, row in enumerate(rows):
        distances = sorted(float(np.sum((row - other) ** 2)) for j, other in enumerate(rows) if j != i)
        scores.append(sum(distances[: len(rows) - f - 2]))
    return list(np.argsort(scores, kind="stable"))


@pytest.mark.parametrize(("f", "n_chosen"), [(0, 1), (1, 1), (2, 1), (2, 4), (3, 6)])
def test_krum_takes_the_changes_closest_to_their_neighbours(f: int, n_chosen: int) -> None:
    rows = np.random.default_rng(f).normal(size=(9, 3)).astype(np.float32)
    expected = rows[krum_by_hand(rows, f)[:n_chosen]].mean(axis=0)
    np.testing.assert_allclose(change(krum(BASE, map(delta, rows), f, n_chosen)), expected, atol=1e-6)


def test_krum_cannot_choose_more_than_the_honest_ones() -> None:
    rows = [delta(np.full(3, i)) for i in range(7)]
    for n_chosen in (0, 6):
        with pytest.raises(LearningError, match="choose"):
            krum(BASE, rows, 2, n_chosen)


def test_a_head_that_would_overflow_is_refused() -> None:
    base = {"w": BASE["w"], "b": np.array([3e38], np.float32)}
    with pytest.raises(LearningError, match="not finite"):
        coordinate_median(base, [delta(np.array([0, 0, 3e38]))])
