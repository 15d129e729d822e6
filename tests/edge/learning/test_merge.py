"""Merging: arrays in, arrays out, whatever the order."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.learning.merge import Delta, apply_change, head_of, mean_change, merge_statistics, unlearn, weighted_mean
from edge.learning.solve import solve
from edge.learning.statistics import HeadStatistics

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
    head = head_of(device(0), LinearLayer(weight="fc.weight", bias="fc.bias", input="features"))
    assert (head["fc.weight"] == weights.astype(np.float32)).all()
    assert (head["fc.bias"] == biases.astype(np.float32)).all()
    assert list(head_of(device(0), LinearLayer(weight="w", bias=None, input="features"))) == ["w"]


def test_the_head_is_solved_by_the_method_that_is_asked_for() -> None:
    head = LinearLayer(weight="w", bias="b", input="features")
    for method in ("discriminant", "ridge", "means"):
        assert (head_of(device(0), head, method)["w"] == solve(device(0), method)[0].astype(np.float32)).all()
    assert (head_of(device(0), head)["w"] == head_of(device(0), head, "discriminant")["w"]).all()


# Unlearning


@settings(deadline=None)
@given(st.integers(1, 6), st.data(), st.booleans())
def test_unlearning_is_never_having_had_the_device(n_devices: int, data: st.DataObject, as_sent: bool) -> None:
    parts = [device(seed) for seed in range(n_devices)]
    if as_sent:
        parts = [HeadStatistics.from_tensors(part.to_tensors(), 3, 2) for part in parts]
    gone = data.draw(st.integers(0, n_devices - 1))
    prior = device(99).scaled_to(20.0)
    found = unlearn(merge_statistics(prior, parts), parts[gone])
    expected = merge_statistics(prior, parts[:gone] + parts[gone + 1 :])
    np.testing.assert_allclose(found.gram, expected.gram, atol=1e-10)
    np.testing.assert_allclose(found.moment, expected.moment, atol=1e-10)
    for one, other in zip(solve(found), solve(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-8)


def test_a_class_that_only_the_unlearned_device_had_is_unseen_again() -> None:
    rng = np.random.default_rng(1)
    others = HeadStatistics.of(rng.normal(size=(20, 3)), rng.integers(0, 2, 20), 3) * (1 / 3)
    more = [HeadStatistics.of(rng.normal(size=(3, 3)), np.full(3, 2), 3) * w for w in (0.1, 0.7)]
    others = others + more[0] + more[1] - more[1] - more[0]
    only = HeadStatistics.of(rng.normal(size=(7, 3)) * 1e3, np.full(7, 2), 3) * 0.1
    assert ((others + only - only).moment[:, 2] != 0).any()  # this is what rounding leaves
    left = unlearn(others + only, only)
    assert left.seen.tolist() == [True, True, False]
    assert (left.moment[:, 2] == 0).all()
    nothing = unlearn(others + only, others + only)
    assert not nothing.gram.any()
    assert not nothing.moment.any()


def test_unlearning_from_a_sum_that_was_stored_in_float32() -> None:
    # n x² of the second feature is 0 without the device, and rounding must not leave it below.
    rng = np.random.default_rng(2)
    one, other = rng.normal(size=(2, 50, 2))
    one[:, 1] = 0.0
    parts = [HeadStatistics.of(x * 1e3, np.arange(50) % 2, 2) for x in (one, other)]
    stored = HeadStatistics.from_tensors((parts[0] + parts[1]).to_tensors(), 2, 2)
    left = unlearn(stored, parts[1])
    assert (np.diag(left.gram) >= 0).all()
    np.testing.assert_allclose(left.gram, parts[0].gram, atol=1e-6 * np.abs(stored.gram).max())


def test_refuses_to_unlearn_what_is_not_in_the_sum() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3))
    total = HeadStatistics.of(x, np.zeros(20, int), 2)
    for other in (
        HeadStatistics.of(rng.normal(size=(21, 3)), np.zeros(21, int), 2),
        HeadStatistics.of(x[:5], np.ones(5, int), 2),
        HeadStatistics.of(100 * x[:5], np.zeros(5, int), 2),
        HeadStatistics.of(x, np.zeros(20, int), 3),
    ):
        with pytest.raises(LearningError):
            unlearn(total, other)


def test_unlearning_quantities_below_zero() -> None:
    rng = np.random.default_rng(0)
    parts = [HeadStatistics.of_targets(rng.normal(size=(9, 3)), -rng.random((9, 2)), np.ones(9)) for _ in range(2)]
    left = unlearn(parts[0] + parts[1], parts[1], is_classifier=False)
    np.testing.assert_allclose(left.moment, parts[0].moment, atol=1e-12)


# Changes


def test_devices_are_folded_in_as_they_come() -> None:
    alive = 0

    def coming():
        nonlocal alive
        for i in range(5):
            alive = i
            yield delta(i, -i, 1)

    assert weighted_mean(BASE, coming())["b"].tolist() == [0.5 - 2.0]
    assert alive == 4


def test_the_mean_change_is_what_the_weighted_mean_adds() -> None:
    deltas = [delta(0.25, 7, 3), delta(-2, 1, 11, 2)]
    change = mean_change(BASE, deltas)
    assert {array.dtype for array in change.values()} == {np.dtype(np.float64)}
    added, merged = apply_change(BASE, change), weighted_mean(BASE, deltas)
    assert all((added[name] == merged[name]).all() for name in BASE)


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
        weighted_mean(BASE, bad)


def test_refuses_a_merge_that_overflows() -> None:
    base = {"b": np.array([3e38], np.float32)}
    with pytest.raises(LearningError, match="not finite"):
        weighted_mean(base, [Delta(change=base, n_samples=1)])
