"""What is told under noise: nothing moves it by more than is promised, and the noise is what the promise needs."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError
from edge.contract.projection import Projection
from edge.learning.disclosure import SENSITIVITY, Disclosed, Noise, Sums, gaussians, multiplier, noise_of
from edge.learning.statistics import HeadStatistics
from edge.learning.subspace import Coordinates, Subspace
from tests.edge.learning.conftest import clouds, shipped_statistics

R, K = 16, 10
SEED = bytes(32)


@pytest.fixture
def coordinates(bundle: Bundle) -> Coordinates:
    return Subspace(shipped_statistics(bundle)).coordinates("")


def as_told(sums: Sums) -> np.ndarray:
    """All numbers that get noise, each in units of the deviation of its noise."""
    upper = np.triu_indices(len(sums.gram), 1)
    return np.concatenate(
        [np.diag(sums.gram), math.sqrt(2.0) * sums.gram[upper], sums.moment.ravel(), sums.counts.ravel()]
    )


def told(coordinates: Coordinates, features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return as_told(Disclosed.nothing(R, K).learned(coordinates.of(features), labels, weights).pending)


def test_one_sample_moves_what_is_told_by_no_more_than_the_sensitivity(coordinates: Coordinates) -> None:
    """Whatever the sample is, as far from all others as it may be, and however much its label is trusted."""
    rng = np.random.default_rng(0)
    x, y = clouds(40, 64, K, 3)
    weights = rng.random(40)
    base = told(coordinates, x, y, weights)
    largest = largest_swap = 0.0
    for trial in range(300):
        one, other = rng.normal(0, 10.0 ** rng.uniform(-2, 15), (2, 64)).astype(np.float32)
        if trial % 3 == 0:
            other = -one
        labels, trust = rng.integers(0, K, 2), rng.random(2) ** rng.integers(0, 2)
        with_one = told(coordinates, np.vstack([x, one]), np.append(y, labels[0]), np.append(weights, trust[0]))
        with_other = told(coordinates, np.vstack([x, other]), np.append(y, labels[1]), np.append(weights, trust[1]))
        largest = max(largest, float(np.linalg.norm(with_one - base)))
        largest_swap = max(largest_swap, float(np.linalg.norm(with_one - with_other)))
    assert largest <= math.sqrt(3.0) * (1 + 1e-9)
    assert 0.95 * SENSITIVITY < largest_swap <= SENSITIVITY * (1 + 1e-9), "no more noise than is needed, either"


def test_the_noise_is_what_the_promise_needs() -> None:
    """Its deviation on every number, by its spread over many seeds; and symmetric on the products."""
    deviation, r, k = Noise(2.0).deviation, 3, 2
    drawn = [noise_of(i.to_bytes(32, "big"), r, k, deviation) for i in range(4000)]
    numbers = np.array([as_told(each) for each in drawn]) / deviation
    assert numbers.shape[1] == r * (r + 1) // 2 + (r + 1) * k
    np.testing.assert_allclose(numbers.std(axis=0), 1.0, atol=0.05)
    np.testing.assert_allclose(numbers.mean(axis=0), 0.0, atol=0.08)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(numbers.shape[1])).max() < 0.08
    assert all(np.array_equal(each.gram, each.gram.T) for each in drawn)
    many = gaussians(SEED, 200_001)
    assert len(many) == 200_001
    assert [float((many > x).mean()) for x in (0.0, 1.0, 2.0, 3.0)] == pytest.approx(
        [math.erfc(x / math.sqrt(2)) / 2 for x in (0.0, 1.0, 2.0, 3.0)], abs=2e-3
    )


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-3), (1.0, 1e-5), (4.0, 1e-5), (8.0, 1e-6), (50.0, 1e-5)])
def test_the_deviation_is_the_least_that_is_private(epsilon: float, delta: float) -> None:
    """By the definition: how much likelier, beyond exp(epsilon), what is told is with one sample than with another."""

    def lost(s: float) -> float:
        x = np.linspace(-12 * s, 1 + 12 * s, 400_001)
        with np.errstate(under="ignore"):
            density = np.exp(-(x**2) / (2 * s**2)), np.exp(-((x - 1) ** 2) / (2 * s**2))
        over = np.maximum(density[1] - math.exp(epsilon) * density[0], 0.0)
        return float(over.sum() * (x[1] - x[0]) / (s * math.sqrt(2 * math.pi)))

    least = multiplier(epsilon, delta)
    assert lost(least) == pytest.approx(delta, rel=0.01)
    assert lost(0.98 * least) > delta


def test_a_block_gets_its_noise_once(coordinates: Coordinates) -> None:
    """Who is told again and again cannot take the mean of it: only what is new gets new noise."""
    x, y = clouds(60, 64, K, 1)
    noise, found = Noise(4.0), [Disclosed.nothing(R, K)]
    for i in range(3):
        rows = slice(20 * i, 20 * i + 20)
        more = found[-1].learned(coordinates.of(x[rows]), y[rows], np.ones(20))
        found.append(more.closed(noise, bytes([i]) * 32, 20 * i + 20))
        again = found[-1].closed(noise, bytes([99]) * 32, 99)
        assert again is found[-1], "nothing is pending, so nothing is drawn"
    for i, (before, after) in enumerate(pairwise(found)):
        rows = slice(20 * i, 20 * i + 20)
        new = Sums.of(coordinates.of(x[rows]), y[rows], np.ones(20), K) + noise_of(
            bytes([i]) * 32, R, K, noise.deviation
        )
        np.testing.assert_allclose(as_told(after.told), as_told(before.told) + as_told(new), atol=1e-9)
        assert after.variance == pytest.approx((i + 1) * noise.deviation**2)
    assert (found[-1].n_told, found[-1].n_tellable, found[-1].version) == (60, 60, 60)


def test_everybody_finds_the_same_coordinates(bundle: Bundle) -> None:
    """A device and a coordinator whose libraries round otherwise: one that is mirrored would say the opposite."""
    shipped, rng = shipped_statistics(bundle), np.random.default_rng(0)
    x, _ = clouds(50, 64, K, 2)
    expected = Subspace(shipped).coordinates("").of(x)
    wobble = 1 + 1e-12 * rng.normal(size=shipped.gram.shape)
    other = HeadStatistics(shipped.gram * (wobble + wobble.T) / 2, shipped.moment * (1 + 1e-12))
    np.testing.assert_allclose(Subspace(other).coordinates("").of(x), expected, atol=1e-6)


def test_coordinates_of_projected_features_are_those_of_the_features(bundle: Bundle) -> None:
    projection, x = Projection(64, 40), clouds(20, 64, K, 2)[0]
    subspace = Subspace(shipped_statistics(bundle).projected(projection))
    found = subspace.coordinates("", projection).of(x)
    np.testing.assert_allclose(found, subspace.coordinates("").of(projection.features(x)), atol=1e-5)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-5), (-1.0, 1e-5), (51.0, 1e-5), (math.nan, 1e-5), (1.0, 0.0)])
def test_noise_that_promises_nothing_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Noise(epsilon, delta)
