"""Lifted features: what their statistics are, and heads on them beside plain ones."""

from __future__ import annotations

import numpy as np
import pytest

from edge.learning.lift import LONGEST, WAVES, Lift
from edge.learning.lifted import SHRINKAGE
from edge.learning.solve import Factor, solve
from edge.learning.statistics import HeadStatistics


def normal(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of three classes, normal with one covariance that is not round."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).normal(size=(d, d)) / np.sqrt(d)
    means = 4.0 + np.random.default_rng(2).normal(size=(3, d))
    labels = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    return means[labels] + rng.normal(size=(n, d)) @ mixing, labels


def test_statistics_in_closed_form_are_those_of_many_lifted_samples() -> None:
    features, labels = normal(40_000, 6, 0)
    known = HeadStatistics.of(features, labels, 4)
    lift = Lift(known)
    found, drawn = lift.statistics(known), HeadStatistics.of(lift.features(features), labels, 4)
    assert found.gram.shape == (2 * WAVES + 1, 2 * WAVES + 1)
    n = known.n_samples
    # As far as 40,000 samples say: each entry is a mean of numbers from -1 to 1.
    assert np.abs(found.gram - drawn.gram).max() / n < 5 / np.sqrt(n)
    assert np.abs(found.moment - drawn.moment).max() / n < 5 / np.sqrt(n)
    np.testing.assert_allclose(found.class_counts, known.class_counts)
    np.testing.assert_allclose(found.gram, found.gram.T)
    assert np.linalg.eigvalsh(found.gram).min() > -1e-6 * n
    # They scale with the number of samples, as sums do, and do not care about classes without any.
    np.testing.assert_allclose(lift.statistics(known * 0.5).gram, found.gram * 0.5, atol=1e-9 * n)
    assert not found.moment[:, 3].any()


def test_a_curved_border_is_drawn_that_no_plain_head_draws() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(1200, 8))
    labels = (np.square(features[:, :2]).sum(axis=1) > 1.4).astype(np.int64)  # inside and outside of a circle
    features[:, 2:] *= 0.3
    train, test = slice(0, 800), slice(800, None)
    plain = HeadStatistics.of(features[train], labels[train], 2)
    lift = Lift(plain)

    def right(statistics: HeadStatistics, x: np.ndarray) -> float:
        weights, biases = solve(statistics)
        return float(((x @ weights.T + biases).argmax(axis=1) == labels[test]).mean())

    lifted = HeadStatistics.of(lift.features(features[train]), labels[train], 2)
    assert right(plain, features[test]) < 0.65
    assert right(lifted, lift.features(features[test])) > 0.9


def test_a_map_follows_from_the_statistics_alone_and_does_not_care_where_features_lie() -> None:
    features, labels = normal(200, LONGEST, 4)
    here, again, there = (Lift(HeadStatistics.of(x, labels, 3)) for x in (features, features, 1000.0 + 50.0 * features))
    first = here.features(features)
    assert (again.features(features) == first).all()
    np.testing.assert_allclose(there.features(1000.0 + 50.0 * features), first, atol=2e-3)
    assert first.dtype == np.float32
    with pytest.raises(ValueError, match="193 features cannot be lifted"):
        Lift(HeadStatistics.of(np.ones((3, LONGEST + 1)), labels[:3], 3))


def test_features_that_never_change_are_lifted_to_finite_numbers() -> None:
    known = HeadStatistics.of(np.full((5, 4), 3.0), np.array([0, 1, 2, 0, 1]), 3)
    lift = Lift(known)
    assert np.isfinite(lift.features(np.array([[3.0, 3.0, 3.0, 3.0], [1e9, -1e9, 0.0, 5.0]]))).all()
    assert np.isfinite(lift.statistics(known).gram).all()


@pytest.mark.parametrize("d", [6, LONGEST])
def test_single_precision_is_enough_for_lifted_samples_over_a_whole_block(d: int) -> None:
    features, labels = normal(40 + WAVES, d, 5)
    lift = Lift(HeadStatistics.of(features, labels, 3))
    phi = lift.features(features).astype(np.float64)
    begun = HeadStatistics.of(phi[:40], labels[:40], 3)
    single, double = (Factor(begun, "discriminant", SHRINKAGE, precision=each) for each in (np.float32, np.float64))
    starts = [*range(40, 100), *range(100, 40 + WAVES, 16)]  # one by one at first, and then together
    for start, stop in zip(starts, [*starts[1:], 40 + WAVES], strict=True):
        rows = slice(start, stop)
        for factor in (single, double):
            factor.add(phi[rows], np.eye(3)[labels[rows]], labels[rows].tolist(), [1.0] * (stop - start))
    (weights, biases), (exact, exact_biases) = single.head(), double.head()
    error = (weights - exact) @ phi.T + (biases - exact_biases)[:, None]
    assert np.abs(error).max() < 1e-3 * np.abs(exact @ phi.T + exact_biases[:, None]).max()
