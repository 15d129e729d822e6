"""Merging: arrays in, arrays out, whatever the order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearHead
from edge.learning.merge import Delta, head_of, merge_statistics, weighted_mean
from edge.learning.statistics import HeadStatistics, solve

BASE = {"w": np.array([[1.0, 2.0]], np.float32), "b": np.array([0.5], np.float32)}


def delta(w: float, b: float, n_samples: int, staleness: int = 0) -> Delta:
    change = {"w": np.full((1, 2), w, np.float32), "b": np.full(1, b, np.float32)}
    return Delta(change=change, n_samples=n_samples, staleness=staleness)


def device(seed: int) -> HeadStatistics:
    rng = np.random.default_rng(seed)
    return HeadStatistics.of(rng.normal(size=(20, 3)), rng.integers(0, 2, 20), 2)


def test_weighted_mean_is_federated_averaging() -> None:
    # 10 samples moved the weights by 1, 30 samples by 2: (10 * 1 + 30 * 2) / 40 = 1.75
    merged = weighted_mean(BASE, [delta(1, -1, 10), delta(2, 1, 30)])
    assert merged["w"].tolist() == [[2.75, 3.75]]
    assert merged["b"].tolist() == [1.0]
    assert {array.dtype for array in merged.values()} == {np.dtype(np.float32)}
    assert BASE["w"].tolist() == [[1.0, 2.0]]


def test_a_stale_change_weighs_less() -> None:
    # Three merges late: 40 samples count as 40 / sqrt(1 + 3) = 20.
    assert weighted_mean(BASE, [delta(0, 0, 20), delta(1, 1, 40, staleness=3)])["b"].tolist() == [1.0]
    assert weighted_mean(BASE, [delta(1, 1, 40, staleness=8)])["b"].tolist() == [1.5]


def test_a_device_without_samples_changes_nothing_among_others() -> None:
    alone, joined = weighted_mean(BASE, [delta(1, 1, 5)]), weighted_mean(BASE, [delta(1, 1, 5), delta(9, 9, 0)])
    assert all((alone[name] == joined[name]).all() for name in BASE)


def test_the_order_of_devices_does_not_matter() -> None:
    deltas = [delta(0.1, 7, 3), delta(-2, 1e-3, 11, 2), delta(5, 2, 1), delta(0.3, 0.7, 100)]
    heads = [weighted_mean(BASE, order) for order in itertools.permutations(deltas)]
    totals = [merge_statistics(device(9), map(device, order)) for order in itertools.permutations(range(3))]
    for head in heads:
        np.testing.assert_allclose(head["w"], heads[0]["w"], rtol=1e-6)
    for total in totals:
        np.testing.assert_allclose(total.gram, totals[0].gram, atol=1e-9)


def test_merged_statistics_are_those_of_one_device_that_saw_everything() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(90, 3)), rng.integers(0, 2, 90)
    parts = [HeadStatistics.of(features[i::3], labels[i::3], 2) for i in range(3)]
    merged = merge_statistics(HeadStatistics.empty(3, 2), parts)
    np.testing.assert_allclose(merged.gram, HeadStatistics.of(features, labels, 2).gram, atol=1e-9)
    assert (merge_statistics(parts[0], []).gram == parts[0].gram).all()


def test_the_head_of_statistics_has_the_names_of_the_head() -> None:
    weights, biases = solve(device(0))
    head = head_of(device(0), LinearHead(weight="fc.weight", bias="fc.bias"))
    assert (head["fc.weight"] == weights.astype(np.float32)).all()
    assert (head["fc.bias"] == biases.astype(np.float32)).all()
    assert list(head_of(device(0), LinearHead(weight="w", bias=None))) == ["w"]


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
        weighted_mean(BASE, bad)


def test_refuses_a_merge_that_overflows() -> None:
    base = {"b": np.array([3e38], np.float32)}
    with pytest.raises(LearningError, match="not finite"):
        weighted_mean(base, [Delta(change=base, n_samples=1)])
