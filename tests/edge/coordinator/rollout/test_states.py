"""The two tables: every pair of state and event, and what the design says of each."""

from __future__ import annotations

import itertools

import pytest

from edge.contract.errors import RolloutError
from edge.coordinator.rollout.states import (
    BEFORE,
    ENDED,
    FAILURES,
    NEXT,
    ROLLOUTS,
    STOPPED,
    TARGETS,
    RolloutEvent,
    RolloutState,
    TargetEvent,
    TargetState,
    after,
    target_after,
)

# As in the design, line by line; "-" raises, "." changes nothing, "=" is the state itself. Only that a person resumes a
# draft whose head devices could not judge is ours.
DESIGN = """
draft      ready - - - - - - ready - aborted - - -
ready      . opening - - - - paused . - aborted - superseded -
opening    . . soaking . stopped . paused . opening aborted reverting superseded .
soaking    . . . next stopped held paused . opening aborted reverting superseded opening
held       . . . next stopped . paused next opening aborted reverting superseded opening
paused     . . . . . . . before paused aborted reverting superseded .
completed  . . . . stopped . paused . completed - reverting superseded -
reverting  - . reverted . . . - . reverting - . - -
aborted    - - . . . . - - - . reverting . -
"""


def test_every_pair_of_a_rollout_is_as_the_design_says_or_raises() -> None:
    rows = {row.split()[0]: row.split()[1:] for row in DESIGN.strip().splitlines()}
    for state, event in itertools.product(RolloutState, RolloutEvent):
        cell = ROLLOUTS[state, event]
        if state in rows:
            assert cell == rows[state][list(RolloutEvent).index(event)], (state, event)
        if cell == "-":
            with pytest.raises(RolloutError, match=f"{state} cannot take {event}"):
                after(state, event)
        else:
            assert after(state, event) == (state if cell == "." else cell)
            assert cell in {".", NEXT, STOPPED, BEFORE, *RolloutState}


def test_what_has_ended_stays_ended_but_for_the_way_back() -> None:
    for state, event in itertools.product(ENDED, RolloutEvent):
        changes = ROLLOUTS[state, event] not in (".", "-")
        assert changes == (event == "revert" and state in ("aborted", "superseded"))


def test_every_pair_of_a_target_is_in_its_table_or_raises() -> None:
    assert set(TARGETS) == set(itertools.product(map(str, TargetState), map(str, TargetEvent)))
    for state, event in itertools.product(TargetState, TargetEvent):
        if TARGETS[state, event] == "-":
            with pytest.raises(RolloutError, match=f"{state} cannot take {event}"):
                target_after(state, event)
        else:
            found = target_after(state, event)
            assert found is (state if TARGETS[state, event] == "." else TargetState(TARGETS[state, event]))


def test_the_target_table_is_what_was_decided() -> None:
    def ways(event: str) -> dict[str, str]:
        return {state: to for (state, each), to in TARGETS.items() if each == event and to not in ".-"}

    assert ways("retry") == dict.fromkeys(FAILURES, "offered")
    assert ways("deadline") == {
        "offered": "timed-out", "staged": "timed-out", "probation": "timed-out", "reverting": "failed",
    }  # fmt: skip
    assert ways("abort") == dict.fromkeys(("waiting", "absent", "offered", "staged"), "superseded")
    assert ways("revert") == dict.fromkeys(("waiting", "absent", "offered", "staged"), "superseded") | dict.fromkeys(
        ("probation", "active"), "reverting"
    )
    assert ways("absent") == {"waiting": "absent", "offered": "absent"}
    assert ways("rolled-back")["active"] == "rolled-back"
    late = {"refused", "failed", "rolled-back", "timed-out", "superseded"}
    assert late <= set(ways("active")), "a late word corrects what was thought"
    assert {to for (_, event), to in TARGETS.items() if event == "active"} == {"active", "."}


def test_every_state_is_reached() -> None:
    assert set(TARGETS.values()) - {".", "-"} == set(TargetState)
    found = set(ROLLOUTS.values()) - {".", "-", NEXT, STOPPED, BEFORE}
    assert found == set(RolloutState) - {"draft"}
