"""Evidence: hardly ever wrong however often one looks, and soon right where there is a gain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edge.contract.errors import LearningError
from edge.learning.evidence import ALPHA, Evidence

Gains = Callable[[np.random.Generator, int], np.ndarray]

NULLS: dict[str, Gains] = {
    "as often better as worse": lambda rng, n: rng.choice([-1.0, 1.0], n),
    "mostly the same": lambda rng, n: rng.choice([-1.0, 0.0, 1.0], n, p=[0.05, 0.9, 0.05]),
    "often a bit better, seldom much worse": lambda rng, n: rng.choice([-1.0, 0.1], n, p=[1 / 11, 10 / 11]),
    "seldom much better": lambda rng, n: rng.choice([-0.1, 0.9], n, p=[0.9, 0.1]),
    "small": lambda rng, n: rng.normal(0, 0.05, n).clip(-1, 1),
}


def crossing(gains: np.ndarray, alpha: float) -> int | None:
    """After how many gains the evidence first is strong enough, looked at after each."""
    evidence = Evidence()
    for i, gain in enumerate(gains):
        evidence.add(float(gain))
        if evidence.exceeds(alpha):
            return i + 1
    return None


@pytest.mark.parametrize("null", NULLS)
def test_a_head_that_is_no_better_is_hardly_ever_preferred(null: str) -> None:
    runs, n, alpha = 300, 300, 0.1
    wrong = sum(crossing(NULLS[null](np.random.default_rng(seed), n), alpha) is not None for seed in range(runs))
    # Ville: at most alpha; three standard deviations of a binomial on top.
    assert wrong <= runs * alpha + 3 * np.sqrt(runs * alpha * (1 - alpha))


def test_a_head_that_is_worse_is_never_preferred() -> None:
    for seed in range(50):
        gains = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], 500, p=[0.2, 0.7, 0.1])
        assert crossing(gains, ALPHA) is None


@pytest.mark.parametrize(("better", "worse", "within"), [(0.6, 0.0, 20), (0.4, 0.05, 45), (0.2, 0.05, 180)])
def test_a_real_gain_is_found_soon(better: float, worse: float, within: int) -> None:
    found = []
    for seed in range(20):
        p = [worse, 1 - better - worse, better]
        found.append(crossing(np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], 1000, p=p), ALPHA))
    assert all(n is not None for n in found)
    assert np.median([n for n in found if n is not None]) <= within


def test_one_sample_proves_nothing() -> None:
    evidence = Evidence()
    evidence.add(1.0)
    assert not evidence.exceeds(ALPHA)
    assert evidence.log_wealth > 0
    assert evidence.n == 1


def test_a_total_loss_leaves_something() -> None:
    evidence = Evidence()
    for gain in [1.0] * 200 + [-1.0] * 5:
        evidence.add(gain)
    assert np.isfinite(evidence.log_wealth)
    lost = Evidence()
    for _ in range(2000):
        lost.add(-1.0)
    assert np.isfinite(lost.log_wealth)
    assert lost.log_wealth < 0
    assert not lost.exceeds(0.9)


def test_nothing_is_staked_on_a_head_that_has_been_worse_lately() -> None:
    evidence = Evidence()
    for _ in range(50):
        evidence.add(-0.5)
    before = evidence.log_wealth
    evidence.add(-1.0)
    assert evidence.log_wealth == before
    assert before > -3.0  # what is lost until then is little


def test_the_mean_is_of_late_gains() -> None:
    evidence = Evidence()
    for gain in [0.0] * 500 + [0.5] * 400:
        evidence.add(gain)
    assert evidence.mean == pytest.approx(0.5, abs=0.01)


def test_a_restored_one_goes_on_the_same() -> None:
    gains = np.random.default_rng(0).uniform(-1, 1, 60)
    for cut in (0, 1, 30):
        first, second = Evidence(), Evidence()
        for gain in gains[:cut]:
            first.add(float(gain))
        second.restore(first.state())
        for gain in gains[cut:]:
            first.add(float(gain))
            second.add(float(gain))
        assert first.state()["evidence"].tobytes() == second.state()["evidence"].tobytes()
    first.reset()
    assert first.state()["evidence"].tolist() == Evidence().state()["evidence"].tolist()


def test_refuses_what_is_no_evidence_and_nothing_changes() -> None:
    evidence = Evidence()
    evidence.add(0.3)
    before = evidence.state()["evidence"].tolist()
    for bad in ({}, {"evidence": np.zeros(3)}, {"evidence": np.full(4, np.nan)}, {"evidence": np.zeros((4, 1))}):
        with pytest.raises(LearningError):
            evidence.restore(bad)
        assert evidence.state()["evidence"].tolist() == before
