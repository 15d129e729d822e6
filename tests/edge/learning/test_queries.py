"""Asking for labels: within the budget, the uncertain first."""

from __future__ import annotations

import numpy as np
import pytest

from edge.learning.queries import LabelRequests


@pytest.mark.parametrize("budget", [0.02, 0.1, 0.3])
def test_the_budget_is_kept(budget: float) -> None:
    rng = np.random.default_rng(0)
    requests = LabelRequests(budget)
    asked = np.array([requests.wants(confidence) for confidence in rng.uniform(0.2, 1.0, 3000)])
    assert asked.mean() <= budget * 1.05 + 0.01
    assert asked.mean() > budget * 0.5
    windows = asked[:3000].reshape(-1, 300).mean(axis=1)
    assert windows.max() <= 2 * budget + 0.02  # and nowhere in a flood


def test_even_if_all_are_uncertain() -> None:
    requests = LabelRequests(0.1)
    assert np.mean([requests.wants(0.1) for _ in range(2000)]) <= 0.11


def test_the_uncertain_are_asked_for_first() -> None:
    rng = np.random.default_rng(1)
    requests = LabelRequests(0.2)
    confidences = rng.uniform(0.2, 1.0, 3000)
    asked = np.array([requests.wants(confidence) for confidence in confidences])
    late = np.arange(3000) >= 1500
    assert confidences[asked & late].mean() < confidences[~asked & late].mean() - 0.25
    assert asked[late].mean() > 0.15


def test_requests_do_not_dry_up_where_all_is_certain() -> None:
    requests = LabelRequests(0.1)
    assert sum(requests.wants(0.99) for _ in range(1000)) > 20


def test_nothing_is_asked_for_without_a_budget_nor_of_what_is_certain() -> None:
    nothing, requests = LabelRequests(0.0), LabelRequests(1.0)
    assert not any(nothing.wants(0.0) for _ in range(100))
    assert not any(requests.wants(1.0) for _ in range(100))


def test_waking_makes_curious_again() -> None:
    asleep, awake = LabelRequests(0.5), LabelRequests(0.5)
    for requests in (asleep, awake):
        for _ in range(60):
            requests.wants(0.0)  # each lowers the threshold
    awake.wake()
    assert not asleep.wants(0.95)
    assert awake.wants(0.95)
