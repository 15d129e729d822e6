"""Samples of none of the known classes, by how far known ones are."""

from __future__ import annotations

import numpy as np
import pytest

from edge.learning.familiarity import Familiarity
from edge.learning.novelty import Distances, calibrated
from edge.learning.statistics import HeadStatistics

K, D = 5, 12
MEANS = np.random.default_rng(1).normal(0, 2.5, (K, D))


def draw(classes: tuple[int, ...], n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n)
    return (MEANS[labels] + rng.normal(0, 1, (n, D))).astype(np.float32), labels


def of(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> HeadStatistics:
    return HeadStatistics.of_targets(x, np.eye(K)[y], weights)


def test_each_sample_is_measured_as_if_it_had_not_come() -> None:
    x, y = draw((0, 1, 2), 40, 2)
    y[7] = 3  # the only one of its class
    trust = np.random.default_rng(0).uniform(0.2, 1, 40).astype(np.float32)
    trust[5] = 0.0
    found = Familiarity(of(x, y, trust)).distances_without(x, y, trust)
    left = [np.delete(np.arange(40), i) for i in range(40)]
    expected = [Familiarity(of(x[r], y[r], trust[r])).distances(x[i : i + 1])[0] for i, r in enumerate(left)]
    np.testing.assert_allclose(found, expected, rtol=0.03)
    assert (found > 1.2 * Familiarity(of(x, y, trust)).distances(x)).mean() > 0.8, "they were in it"


def test_known_samples_are_rejected_as_seldom_as_was_asked_and_unknown_ones_often() -> None:
    known, unknown = (0, 1, 2), (3, 4)
    shares = []
    for seed in range(20):
        x, y = draw(known, 60, seed)
        trust = np.ones(60, np.float32)
        measure = Distances(of(x, y, trust))
        found = calibrated(measure, measure.without(x, y, trust), 0.1, "these")
        assert found is not None
        near, other, far = draw(known, 200, 90 + seed)[0], draw(unknown, 200, seed)[0], 50 + x
        shares.append([(found.of(samples) > 1).mean() for samples in (near, other, far)])
    wrongly, rightly, far_off = np.mean(shares, axis=0)
    assert wrongly == pytest.approx(0.1, abs=0.03)
    assert rightly > 0.9
    assert far_off == 1.0


def test_too_few_samples_for_a_share_and_equal_ones_say_nothing() -> None:
    x, y = draw((0, 1), 19, 3)
    trust = np.ones(19, np.float32)
    measure = Distances(of(x, y, trust))
    distances = measure.without(x, y, trust)
    assert calibrated(measure, distances, 0.05, "") is not None
    assert calibrated(measure, distances[1:], 0.05, "") is None
    assert calibrated(measure, distances[:0], 0.5, "") is None
    assert calibrated(measure, np.ones((50, 2)), 0.05, "") is None
    assert calibrated(measure, np.full((50, 2), np.inf), 0.05, "") is None
