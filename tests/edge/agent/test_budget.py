"""The time that learning may take."""

from __future__ import annotations

import pytest

from edge.agent.budget import LearningBudget


def warm(ms_per_s: float) -> LearningBudget:
    """A budget whose first step was made."""
    budget = LearningBudget(ms_per_s)
    budget.spend(2000.0)
    return budget


def test_the_first_step_is_not_charged_and_one_that_stalls_is_charged_as_a_long_one() -> None:
    budget = warm(10.0)
    assert budget.allows(0.0)
    assert budget.wait_s == 0.0
    budget.spend(1.0)
    budget.spend(5000.0)  # the card stalled: charged 4 ms
    assert budget.allows(0.0)
    for second in range(1, 60):  # but steps that are always slow are paid for
        if budget.allows(float(second)):
            budget.spend(100.0)
    assert not budget.allows(60.0)


def test_begins_with_one_seconds_worth_and_fills_again() -> None:
    budget = warm(100.0)
    assert budget.allows(0.0)
    budget.spend(100.0)
    assert not budget.allows(0.0)
    assert budget.allows(0.5)
    budget.spend(49.0)
    assert budget.allows(0.5)


def test_never_holds_more_than_one_seconds_worth() -> None:
    budget = warm(100.0)
    budget.allows(0.0)
    assert budget.allows(1e6)
    budget.spend(101.0)
    assert not budget.allows(1e6)


def test_a_step_that_took_too_long_is_paid_back() -> None:
    budget = warm(10.0)
    budget.allows(0.0)
    budget.spend(60.0)  # 50 over: five seconds
    assert budget.wait_s == pytest.approx(5.0)
    assert not budget.allows(4.9)
    assert budget.allows(5.1)


def test_no_budget_forbids_learning() -> None:
    budget = LearningBudget(0.0)
    assert not any(budget.allows(float(s)) for s in range(100))


def test_over_a_minute_learning_takes_its_share() -> None:
    budget = LearningBudget(200.0)
    steps = 0
    for tick in range(6000):
        if budget.allows(tick * 0.01):
            budget.spend(7.0)
            steps += 1
    assert steps * 7.0 == pytest.approx(60 * 200.0, rel=0.03)
