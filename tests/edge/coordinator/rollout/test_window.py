"""When a device may activate, by its own clock."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from edge.contract.errors import ConfigError
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.plan import Plan
from edge.coordinator.rollout.states import RolloutState, TargetState
from edge.coordinator.rollout.step import Rollout, Target
from edge.coordinator.rollout.window import Window, offset_min
from edge.coordinator.rollout.words import wants


def at(text: str) -> int:
    """A moment of UTC; 2026-11-29 is a Sunday."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("text", "moment", "ahead_h", "is_open"),
    [
        ("Mon-Fri 02:00-05:00", "2026-11-30T02:00", 0, True),
        ("Mon-Fri 02:00-05:00", "2026-11-30T01:59", 0, False),
        ("Mon-Fri 02:00-05:00", "2026-11-30T05:00", 0, False),
        ("Mon-Fri 02:00-05:00", "2026-11-29T03:00", 0, False),
        ("Mon-Fri 02:00-05:00", "2026-11-29T18:00", 9, True),  # Monday 03:00 in Tokyo
        ("Mon-Fri 02:00-05:00", "2026-11-30T08:00", -5, True),  # 03:00 in New York
        ("Mon-Fri 02:00-05:00", "2026-11-30T03:00", -5, False),  # Sunday evening there
        ("mon, wed-thu 2:00 - 5:00", "2026-12-02T04:59", 0, True),
        ("02:00-05:00", "2026-11-29T03:00", 0, True),
        ("Fri-Sat 22:00-06:00", "2026-11-29T05:59", 0, True),  # begun on Saturday
        ("Fri-Sat 22:00-06:00", "2026-11-29T22:00", 0, False),
        ("Sat-Mon 22:00-06:00", "2026-12-01T05:00", 0, True),
        ("Sat-Mon 22:00-24:00", "2026-11-30T23:59", 0, True),
    ],
)
def test_a_window_is_open_by_the_local_time_of_a_device(text: str, moment: str, ahead_h: int, is_open: bool) -> None:
    assert Window.parse(text).is_open(at(moment), 60 * ahead_h) is is_open


def test_what_is_no_window_is_told_with_what_was_expected() -> None:
    for text in ("night", "Mon-Fri", "25:00-26:00", "02:00-02:00", "02:60-03:00", "Mo-Fr 02:00-05:00", "Mon 2-5", "-"):
        with pytest.raises(ConfigError, match=r'window: expected a window such as "Mon-Fri 02:00-05:00"'):
            plans.of_document({"release": 1, "window": text})


def test_only_activation_waits_for_it() -> None:
    plan = Plan(release=1, window="02:00-05:00")
    going = Rollout(id=1, plan=plan, kind="head", seed="", n_selected=1, state=RolloutState.OPENING, wave=0)
    for state, word in (
        (TargetState.OFFERED, "wait"),
        (TargetState.STAGED, "wait"),
        (TargetState.PROBATION, "now"),
        (TargetState.ACTIVE, "now"),
        (TargetState.SUPERSEDED, "never"),
        (TargetState.WAITING, ""),
    ):
        target = Target(device="d", model="", wave=0, place=0, state=state)
        assert wants(going, target, is_open=plan.is_open(at("2026-11-29T12:00"), 0)) == word
        assert wants(going, target, is_open=plan.is_open(at("2026-11-29T03:00"), 0)) != "wait"


def test_nonsense_for_a_local_time_is_none() -> None:
    for said in (None, "60", 1e3, True, 10**9, -10_000):
        assert offset_min({"utc_offset_min": said}) is None
    assert (offset_min({"utc_offset_min": -210}), offset_min({})) == (-210, None)
