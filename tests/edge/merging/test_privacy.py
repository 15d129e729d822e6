"""The Gaussian mechanism, and the accountant against published numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.errors import LearningError
from edge.merging.deltas import Delta
from edge.merging.privacy import ORDERS, PrivacyAccountant, private_mean, renyi_divergence

BASE = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}


def delta(value: float, n_samples: int = 1) -> Delta:
    change = {name: np.full(array.shape, value, np.float32) for name, array in BASE.items()}
    return Delta(change=change, n_samples=n_samples)


def flat(change: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in change.values()])


def mean(
    deltas: list[Delta], noise: float = 0.0, seed: int = 0, norm: float = 1.0, expected: float = 4.0
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = private_mean(BASE, deltas, largest_norm=norm, noise_multiplier=noise, n_expected=expected, rng=rng)
    assert {name: array.shape for name, array in found.items()} == {name: array.shape for name, array in BASE.items()}
    return flat(found)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), max_size=5), st.floats(-(2.0**120), 2.0**120, width=32))
def test_one_device_moves_the_sum_by_at_most_the_norm(values: list[float], joined: float) -> None:
    without, with_it = mean([delta(v) for v in values]), mean([delta(v) for v in values] + [delta(joined, 10**6)])
    assert np.linalg.norm(with_it - without) * 4.0 <= 1.0 + 1e-6


def test_short_changes_are_averaged_over_the_expected_number() -> None:
    np.testing.assert_allclose(mean([delta(0.1), delta(0.2, 99)]), 0.3 / 4)


def test_the_noise_is_that_of_the_mechanism() -> None:
    found = np.concatenate([mean([], noise=2.0, seed=seed, norm=3.0) for seed in range(2000)]) * 4.0
    assert found.std() == pytest.approx(2.0 * 3.0, rel=0.03)
    assert abs(found.mean()) < 0.2
    assert (mean([], noise=2.0, seed=1) == mean([], noise=2.0, seed=1)).all()


def test_a_change_that_is_not_finite_counts_as_zero() -> None:
    assert (mean([delta(0.1), delta(np.nan), delta(np.inf)]) == mean([delta(0.1)])).all()


def test_refuses_other_parameters_and_settings_out_of_range() -> None:
    with pytest.raises(LearningError):
        mean([Delta(change={"w": BASE["w"]}, n_samples=1)])
    for options in ({"noise": -1.0}, {"norm": 0.0}, {"norm": math.inf}, {"expected": 0.0}, {"noise": math.nan}):
        with pytest.raises(ValueError, match="expected"):
            mean([], **options)


def test_the_tutorial_of_tensorflow_privacy() -> None:
    # MNIST: 60,000 images, batches of 256, noise 1.1, 60 epochs, delta 1e-5: epsilon 3.01 by the conversion of Mironov
    # 2017, R(a) + log(1 / delta) / (a - 1), and less by the better one.
    accountant = PrivacyAccountant()
    accountant.spend(1.1, 256 / 60_000, rounds=60 * 60_000 // 256)
    classical = (accountant.divergences + math.log(1e5) / (np.array(ORDERS) - 1)).min()
    assert classical == pytest.approx(3.01, abs=0.01)
    assert accountant.epsilon(1e-5) == pytest.approx(2.597, abs=0.005)


def test_everybody_in_every_round_is_the_plain_gaussian_mechanism() -> None:
    for order in (2, 7, 100):
        assert renyi_divergence(order, 1.7, 1.0) == order / (2 * 1.7**2)
        # the general formula comes to the same
        assert renyi_divergence(order, 1.7, 1.0 - 1e-12) == pytest.approx(order / (2 * 1.7**2), rel=1e-6)


def test_order_two_of_the_sampled_mechanism_by_hand() -> None:
    # (1 - q)² + 2 q (1 - q) + q² exp(1 / z²)
    q, z = 0.1, 0.8
    assert renyi_divergence(2, z, q) == pytest.approx(
        math.log((1 - q) ** 2 + 2 * q * (1 - q) + q**2 * math.exp(1 / z**2))
    )


def test_the_sampled_divergence_is_that_of_its_definition() -> None:
    # log(E over N(0, z²) of (density of the mixture / density)^a) / (a - 1), by numerical integration.
    q, z, order = 0.05, 1.3, 6
    x = np.linspace(-15, 25, 400_001)
    density = np.exp(-(x**2) / (2 * z**2)) / (z * math.sqrt(2 * math.pi))
    ratio = 1 - q + q * np.exp((2 * x - 1) / (2 * z**2))
    moment = float(np.sum(density * ratio**order) * (x[1] - x[0]))
    assert renyi_divergence(order, z, q) == pytest.approx(math.log(moment) / (order - 1), rel=1e-6)


@pytest.mark.parametrize(("noise", "delta_"), [(1.0, 1e-5), (4.0, 1e-6), (20.0, 1e-5)])
def test_epsilon_is_above_the_exact_one_of_a_single_round_and_not_far(noise: float, delta_: float) -> None:
    # Balle and Wang 2018, arXiv:1805.06530, theorem 8: delta = Phi(1/2z - eps z) - exp(eps) Phi(-1/2z - eps z).
    def normal(t: float) -> float:
        return 0.5 * math.erfc(-t / math.sqrt(2))

    low, high = 0.0, 100.0
    for _ in range(100):
        e = (low + high) / 2
        d = normal(0.5 / noise - e * noise) - math.exp(e) * normal(-0.5 / noise - e * noise)
        low, high = (e, high) if d > delta_ else (low, e)
    accountant = PrivacyAccountant()
    accountant.spend(noise)
    assert high < accountant.epsilon(delta_) < 1.15 * high


def test_rounds_add_up() -> None:
    one, other, none = PrivacyAccountant(), PrivacyAccountant(), PrivacyAccountant()
    one.spend(1.0, 0.01, rounds=3)
    for _ in range(3):
        other.spend(1.0, 0.01)
    none.spend(1.0, 0.01, rounds=0)
    none.spend(1.0, 0.0, rounds=5)
    assert one.epsilon(1e-5) == pytest.approx(other.epsilon(1e-5))
    assert none.epsilon(1e-5) == 0.0
    other.spend(1.0, 0.01)
    assert other.epsilon(1e-5) > one.epsilon(1e-5)
    none.spend(0.0, 0.5)
    assert none.epsilon(1e-5) == math.inf


@settings(max_examples=50, deadline=None)
@given(st.floats(0.5, 5), st.floats(0.001, 1), st.integers(1, 1000))
def test_more_noise_and_rarer_sampling_never_cost_more(noise: float, rate: float, rounds: int) -> None:
    def epsilon(z: float, q: float) -> float:
        accountant = PrivacyAccountant()
        accountant.spend(z, q, rounds)
        return accountant.epsilon(1e-5)

    assert epsilon(noise * 1.5, rate) <= epsilon(noise, rate)
    assert epsilon(noise, rate / 2) <= epsilon(noise, rate) * (1 + 1e-9)
    assert epsilon(noise, rate) <= epsilon(noise, 1.0) * (1 + 1e-9)


def test_goes_on_after_a_restart() -> None:
    one, other = PrivacyAccountant(), PrivacyAccountant()
    one.spend(1.0, 0.1, 10)
    state = one.state()
    other.restore(state)
    assert other.epsilon(1e-6) == one.epsilon(1e-6)
    for bad in (
        {},
        {**state, "orders": state["orders"][1:]},
        {**state, "divergences": -state["divergences"]},
        {**state, "divergences": state["divergences"] * np.nan},
    ):
        with pytest.raises(LearningError):
            other.restore(bad)
    assert other.epsilon(1e-6) == one.epsilon(1e-6)


def test_refuses_numbers_out_of_range() -> None:
    accountant = PrivacyAccountant()
    for arguments in ((-1.0, 0.1, 1), (1.0, 1.1, 1), (1.0, 0.1, -1), (math.nan, 0.1, 1)):
        with pytest.raises(ValueError, match="expected"):
            accountant.spend(*arguments)
    for delta_ in (0.0, 1.0):
        with pytest.raises(ValueError, match="delta"):
            accountant.epsilon(delta_)
