"""What the page of the fleet says that needs a person, and what runs where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.coordinator.pages import render
from edge.coordinator.pages.fleet_view import FleetQuery, fleet
from edge.coordinator.pages.texts import text
from edge.coordinator.records import Alert
from edge.coordinator.rollout.states import RolloutEvent
from edge.learning.trial import OVERTAKEN
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


def test_who_was_overtaken_needs_nobody_and_all_that_runs_adds_up(tmp_path: Path, digits_bundle: Path) -> None:
    light = Fleet(tmp_path, digits_bundle, 30, ends("active"))
    assert light.store is not None
    went_back = {"d003": OVERTAKEN, "d004": "accuracy 0.5 against 0.9 on 32 recent labels"}
    for i, name in enumerate(sorted(light.devices)):
        known = light.store.devices.known(name)
        assert known is not None
        (model,) = known.models
        said = (
            {"state": "rolled-back", "state_release": 7, "state_detail": went_back[name]} if name in went_back else {}
        )
        own = replace(model, head=f"{i:064x}", release=7, **said)  # each has learned, so each has its own head
        light.store.devices.keep(replace(known, models=(own,)), known)
    shown = fleet(light.store, FleetQuery(), light.core.dialogue.line.state, light.now)
    assert [(each.kind, each.subject) for each in shown["wishes"] if each.kind != "line"] == [
        ("slot-rolled-back", "d004")
    ]
    assert [(len(each["heads"]), each["n"], each["went_back"]) for each in shown["versions"]] == [
        (28, 28, False), (2, 2, True)
    ]  # fmt: skip
    assert sum(each["n"] for each in shown["versions"]) + shown["more_versions"] == shown["total"]
    page = render.fragments("fleet.html", shown | {"line": light.core.dialogue.line.state, "live": "", "can": False})
    assert "28 different ones" in page["live_versions"]
    light.close()


def test_of_few_late_labels_no_share_is_made() -> None:
    heads = [("shipped", [0.6, 0.79, 5.0]), ("statistics", [0.4, 0.79, 16.0]), ("merged", [0.0, 0.0, 0.0])]
    said = render._ENVIRONMENT.globals["parts"].heads(heads)  # type: ignore[attr-defined]
    assert "5 late labels, too few for a share" in said
    assert "right on 79 % of late labels lately, 16 in all" in said
    assert "not judged: no late labels" in said


def test_the_same_of_many_devices_is_said_once_and_hides_nothing_else(tmp_path: Path, digits_bundle: Path) -> None:
    light = Fleet(tmp_path, digits_bundle, 12, ends("active"))
    assert light.store is not None
    names = sorted(light.devices)
    for name in names[:9]:
        light.core.events.fault(name, "model-fault", "it broke", light.now)
    light.core.events.fault("", "merge-failed", "no room", light.now)
    for i, name in enumerate(names):
        rule = "hot" if i < 3 else "drift"
        is_on: dict[str, Any] = {"state": "firing", "since_ms": 1, "seen_ms": 1}
        light.store.alerts.add(Alert(rule=rule, kind="drift", subject=f"{name} digits", detail="x", **is_on))
    shown = fleet(light.store, FleetQuery(), light.core.dialogue.line.state, light.now)
    found = [each for each in shown["wishes"] if each.kind != "line"]
    said = [(text(f"wish.{each.kind}", subject=each.subject), each.why) for each in found]
    assert said == [
        ("drift: 9 devices", ", ".join(f"{name} digits" for name in names[3:8]) + " and 4 more"),
        *((f"hot: {name} digits", "x") for name in names[2::-1]),
        ("A merge failed", "no room"),
        ("9 devices: a model failed", f"{', '.join(names[:5])} and 4 more"),
    ]
    light.close()


def test_versions_that_devices_name_do_not_fill_the_page(tmp_path: Path, digits_bundle: Path) -> None:
    light = Fleet(tmp_path, digits_bundle, 30, ends("active"))
    assert light.store is not None
    for i, name in enumerate(sorted(light.devices)):
        known = light.store.devices.known(name)
        assert known is not None
        device = replace(known.device, agent_version="1.0" if i < 5 else f"0.{i}")
        light.store.devices.keep(replace(known, device=device), known)
    shown = fleet(light.store, FleetQuery(), light.core.dialogue.line.state, light.now)
    assert shown["agents"][0] == ("1.0", 5)
    assert len(shown["agents"]) < 26
    assert sum(n for _, n in shown["agents"]) + shown["more_agents"] == 30
    light.close()
