"""What the page of a rollout says of its waves."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.channel.messages import Conn
from edge.coordinator.pages.rollout_view import _helps, _wave, rollout
from edge.coordinator.rollout.states import RolloutEvent
from tests.support.light_fleet import Fleet


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


def test_whom_a_rollout_waits_for_is_said_not_to_be_there(tmp_path: Path, digits_bundle: Path) -> None:
    light = Fleet(tmp_path, digits_bundle, 4, lambda _, __: [])
    assert light.store is not None
    number = light.start_plan(waves=["100 %"])
    light.pass_time(60, 10)
    light.devices["d001"].say("up/conn", Conn(online=False, session=1, boot=1, ts_ms=0))
    light.deliver()
    shown = rollout(light.store, number, light.core.dialogue.line.state, light.now)
    assert {each["state"] for each in shown["targets"]} == {"offered"}
    away = {each["device"]: each["away"] for each in shown["targets"]}
    assert away["d001"] in ("offline", "not-known")  # no line to a broker here
    light.close()
