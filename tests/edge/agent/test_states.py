"""The table of a slot's states: every pair of state and event."""

from __future__ import annotations

import itertools

import pytest

from edge.agent.slots.states import TRANSITIONS, SlotEvent, SlotState, transition
from edge.contract.errors import RolloutError

PAIRS = list(itertools.product(SlotState, SlotEvent))


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_every_pair_is_in_the_table_or_raises_and_the_table_stays(state: SlotState, event: SlotEvent) -> None:
    before = dict(TRANSITIONS)
    if (state, event) in TRANSITIONS:
        assert transition(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(RolloutError, match=state.value):
            transition(state, event)
    assert before == TRANSITIONS


def test_the_table_is_what_was_decided() -> None:
    ways = {(str(state), str(event)): str(after) for (state, event), after in TRANSITIONS.items()}
    offers = {state for state, event in ways if event == "offer received"}
    assert offers == {str(state) for state in SlotState} - {"activating"}
    assert {after for (_, event), after in ways.items() if event == "offer received"} == {"offered"}
    assert {key: after for key, after in ways.items() if key[1] != "offer received"} == {
        ("offered", "fetch started"): "fetching",
        ("offered", "refused"): "refused",
        ("fetching", "digest verified"): "verified",
        ("fetching", "failed"): "failed",
        ("verified", "trial passed"): "staged",
        ("verified", "refused"): "refused",
        ("verified", "failed"): "failed",
        ("verified", "held"): "held",
        ("held", "trial passed"): "staged",
        ("held", "refused"): "refused",
        ("staged", "activation started"): "activating",
        ("activating", "activated"): "probation",
        ("activating", "failed"): "failed",
        ("probation", "probation passed"): "active",
        ("probation", "rolled back"): "rolled-back",
        ("active", "rolled back"): "rolled-back",
        # A fleet gives a release up: what is live is not touched by it.
        ("offered", "withdrawn"): "idle",
        ("fetching", "withdrawn"): "idle",
        ("verified", "withdrawn"): "idle",
        ("staged", "withdrawn"): "idle",
        ("held", "withdrawn"): "idle",
    }


def test_every_state_is_reached_and_a_head_is_active_only_after_probation() -> None:
    assert set(TRANSITIONS.values()) | {SlotState.IDLE} == set(SlotState)
    assert {state for (state, _), after in TRANSITIONS.items() if after is SlotState.ACTIVE} == {SlotState.PROBATION}
    assert {state for (state, _), after in TRANSITIONS.items() if after is SlotState.ACTIVATING} == {SlotState.STAGED}
