"""What the page of a rollout says of its waves."""

from __future__ import annotations

import pytest

from edge.coordinator.pages.rollout_view import _helps, _wave
from edge.coordinator.rollout.states import RolloutEvent


@pytest.mark.parametrize(
    ("state", "wave", "words"),
    [
        ("opening", 2, ["over", "open", "to-come"]),
        ("held", 2, ["over", "open", "to-come"]),
        ("draft", 0, ["to-come", "to-come", "to-come"]),
        ("completed", 3, ["over", "over", "over"]),
        ("superseded", 2, ["over", "over", "not-opened"]),
        ("aborted", 1, ["over", "not-opened", "not-opened"]),
        ("reverted", 3, ["over", "over", "over"]),
    ],
)
def test_no_wave_of_a_rollout_that_has_ended_is_open_or_to_come(state: str, wave: int, words: list[str]) -> None:
    found = {"state": state, "wave": wave, "targets": [], "looks": []}
    assert [_wave(found, number)["state"] for number in (1, 2, 3)] == words


@pytest.mark.parametrize(
    ("state", "targets", "helps"),
    [
        ("aborted", ["superseded", "superseded"], False),
        ("aborted", ["superseded", "active"], True),
        ("completed", ["failed"], False),
        ("completed", ["probation"], True),
        ("opening", ["offered"], True),
    ],
)
def test_after_the_end_only_what_a_device_has_can_be_taken_back(state: str, targets: list[str], helps: bool) -> None:
    found = {"state": state, "targets": [{"state": each} for each in targets], "evaluation": None}
    assert _helps(found, RolloutEvent.REVERT) is helps
