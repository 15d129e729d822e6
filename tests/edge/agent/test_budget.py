"""The time that learning may take."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from edge.agent.device.allowance import Allowance
from edge.agent.device.budget import LearningBudget
from edge.contract.profile import load_profile


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


@pytest.mark.parametrize(
    ("limits", "spent_ms", "again_s"),
    [
        ({"max_load_per_core": -1.0}, 0.0, 5.0),  # paused: when it is looked at the next time
        ({"budget_ms_per_s": 10.0}, 60.0, 5.0),  # 50 ms over
        ({"budget_ms_per_s": 10.0}, 10.1, 0.05),
        ({"budget_ms_per_s": 0.0}, 0.0, math.inf),
    ],
)
def test_labels_that_wait_are_not_looked_at_before_they_may_be_learned(
    limits: dict[str, float], spent_ms: float, again_s: float
) -> None:
    """A device that is too hot to learn shall not look 20 times a second whether it still is."""
    usual = {"max_temperature_c": math.inf, "min_battery_percent": 0.0, "max_load_per_core": math.inf}
    allowance = Allowance(replace(load_profile("raspberry-pi-5").learning, **usual | limits))  # type: ignore[arg-type]
    allowance.allows(100.0)
    allowance.spend(2000.0)  # the first step
    if spent_ms:
        allowance.spend(spent_ms)
        assert not allowance.allows(100.0)
    assert allowance.next_deadline_s == pytest.approx(100.0 + again_s)


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


def test_a_shared_budget_gives_equal_shares_and_what_one_does_not_use_to_the_others() -> None:
    shares = LearningBudget.shared(100.0, 4)
    for share in shares:
        share.spend(1.0)  # the first step is not charged
    assert [share.ms_per_s for share in shares] == [25.0] * 4

    def learned(busy: list[LearningBudget], seconds: int) -> list[float]:
        """Milliseconds that each took in steps of 1 ms while it might."""
        spent = [0.0] * len(busy)
        for step in range(seconds * 100):
            for i, share in enumerate(busy):
                while share.allows(start + step / 100):
                    share.spend(1.0)
                    spent[i] += 1.0
        return spent

    start = 0.0
    assert learned(shares, 20) == pytest.approx([525.0] * 4, abs=10), "all at once: a quarter each"
    start = 100.0
    alone = learned(shares[:1], 20)
    assert alone == pytest.approx([25.0 + 2000.0], abs=30), "one alone: all of it"
    start = 200.0
    one, two = learned(shares[:2], 20)
    assert one == pytest.approx(1025.0, abs=30)
    assert two == pytest.approx(1025.0, abs=30)
    # Nobody can take what another needs: it has its share from the first moment on.
    start = 300.0
    learned(shares[:1], 5)
    start = 305.0
    one, other = learned([shares[0], shares[3]], 10)
    assert other >= 500.0
    (single,) = LearningBudget.shared(0.0, 1)
    assert not single.allows(0.0)
