"""What the page of the fleet says that needs a person, and what runs where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.coordinator.pages.fleet_view import FleetQuery, fleet
from edge.coordinator.rollout.states import RolloutEvent
from tests.support.light_fleet import Fleet, ends


def wishes(shown: dict[str, Any]) -> list[str]:
    return [each.kind for each in shown["wishes"] if each.kind != "line"]  # there is no broker here


def test_who_runs_what_a_stopped_rollout_brought_is_said(tmp_path: Path, digits_bundle: Path) -> None:
    light = Fleet(tmp_path, digits_bundle, 4, ends("active"))
    assert light.store is not None
    number = light.start_plan(waves=["50 %", "100 %"], soak=["1 d"])
    light.pass_time(60, 10)
    said = [fleet(light.store, FleetQuery(), light.core.dialogue.line.state, light.now)]
    for order in (RolloutEvent.ABORT, RolloutEvent.REVERT):
        light.core.rollouts.order(number, order, "ann", "", light.now)
        light.pass_time(60, 10)
        said.append(fleet(light.store, FleetQuery(), light.core.dialogue.line.state, light.now))
    assert [wishes(each) for each in said] == [[], ["left-on"], []]
    assert [len(each["left"]) for each in said] == [0, 2, 0]
    assert said[1]["wishes"][-1].why == ", ".join(sorted(name for name, _ in said[1]["left"]))
    light.close()


def test_what_devices_refused_needs_nobody_once_a_person_has_given_it_up(tmp_path: Path, digits_bundle: Path) -> None:
    light = Fleet(tmp_path, digits_bundle, 4, ends("refused", "worse"))
    assert light.store is not None
    bad = light.push()
    light.pass_time(600, 60)
    shown = fleet(light.store, FleetQuery(), light.core.dialogue.line.state, light.now)
    assert wishes(shown) == ["rollout-paused", "targets-failed"]
    assert shown["has_troubled"]
    # It was refused: what ran before runs.
    assert any(each["went_back"] and each["release"] == 1 for each in shown["versions"])
    light.core.rollouts.order(bad, RolloutEvent.ABORT, "ann", "from a hat", light.now)
    light.pass_time(600, 60)
    shown = fleet(light.store, FleetQuery(), light.core.dialogue.line.state, light.now)
    assert (wishes(shown), shown["has_troubled"]) == ([], False)
    light.close()
