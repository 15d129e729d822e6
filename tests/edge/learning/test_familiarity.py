"""Samples without labels say whose world they are of."""

from __future__ import annotations

import numpy as np
import pytest

from edge.contract.errors import LearningError
from edge.learning.familiarity import MIN_SAMPLES, Familiarity, fits_better
from edge.learning.statistics import HeadStatistics

K, D = 4, 12
HOME, AWAY = (np.random.default_rng(seed).normal(0, 2, (K, D)) for seed in (1, 2))


def draw(where: np.ndarray, n: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, n)
    return (where[labels] + rng.normal(0, spread, (n, D))).astype(np.float32), labels


def of(where: np.ndarray, n: int = 300, spread: float = 1.0) -> HeadStatistics:
    return HeadStatistics.of(*draw(where, n, 9, spread), K)


def test_distance_is_small_at_home_and_does_not_depend_on_how_many_samples_there_were() -> None:
    near, far = draw(HOME, 50, 3)[0], draw(AWAY, 50, 3)[0]
    found = Familiarity(of(HOME))
    assert np.median(found.distances(near)) == pytest.approx(D, rel=0.3)  # chi-square of D degrees of freedom
    assert found.distances(far).min() > np.median(found.distances(near))
    scaled = Familiarity(of(HOME).scaled_to(1.0))
    np.testing.assert_allclose(scaled.distances(near), found.distances(near), rtol=1e-6)


def test_samples_fit_the_world_that_they_are_of() -> None:
    old, new = of(HOME).scaled_to(1.0), of(HOME).scaled_to(20.0) + of(AWAY)
    assert fits_better(draw(AWAY, 64, 4)[0], new, old) is True
    assert fits_better(draw(HOME, 64, 4)[0], new, old) is False


def test_narrow_statistics_do_not_make_everything_else_look_like_the_others() -> None:
    narrow, wide = of(HOME, spread=0.3), of(AWAY, spread=2.0)
    assert fits_better(draw(HOME, 64, 4)[0], wide, narrow) is False


def test_few_samples_and_samples_between_the_worlds_say_nothing() -> None:
    assert fits_better(draw(AWAY, MIN_SAMPLES - 1, 4)[0], of(AWAY), of(HOME)) is None
    assert fits_better(draw((HOME + AWAY) / 2, 32, 4)[0], of(AWAY), of(HOME)) is None


def test_statistics_of_no_samples_are_refused() -> None:
    with pytest.raises(LearningError):
        Familiarity(HeadStatistics.empty(D, K))
