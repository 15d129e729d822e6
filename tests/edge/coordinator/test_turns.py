"""A merge beside a rollout: it waits, and goes out when that has ended, whatever the rollout came to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.contract.errors import RolloutError
from edge.coordinator.pages.fleet_view import FleetQuery
from edge.coordinator.pages.fleet_view import fleet as fleet_page
from edge.coordinator.pages.learning_view import learning
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.states import UNDER_WAY, RolloutEvent, RolloutState
from edge.coordinator.turns import Turns, in_the_way
from tests.support.contributions import Make, policy_of
from tests.support.light_fleet import Fleet, ends

E = RolloutEvent
PLAN: dict[str, Any] = {"waves": ["50 %", "100 %"], "soak": ["3 d"], "model": "off"}
DAY_S = 86_400.0


class Learner:
    """Lets devices of a fleet learn on."""

    def __init__(self, fleet: Fleet, update: Make) -> None:
        self.fleet, self.update, self.seed = fleet, update, 0

    def learn(self, *devices: str) -> None:
        """Each device sends more than it sent before."""
        self.seed += 1
        for i, device in enumerate(devices):
            update = self.update(i, n=60 + 20 * self.seed, lineage=f"l-{device}")
            self.fleet.core.learning.take(device, update.encode(), self.fleet.now)

    def merges(self) -> list[str]:
        """Reasons of releases that were merged, oldest first."""
        assert self.fleet.store is not None
        return [each.reason for each in self.fleet.store.releases.all()[::-1] if "merge" in each.reason]

    def waits(self) -> list[str]:
        """What was told of merges that wait."""
        assert self.fleet.store is not None
        return [each.detail for each in self.fleet.store.events.newest(100, name="merge-waits")[::-1]]


NewFleet = Callable[..., tuple[Fleet, Learner]]


@pytest.fixture
def new(tmp_path: Path, digits_bundle: Path, statistics_update: Make) -> Iterator[NewFleet]:
    made: list[Fleet] = []

    def make(n: int = 4, **options: Any) -> tuple[Fleet, Learner]:
        options = {"auto_merge": True, "merge_delay_s": 0.0, "policy": policy_of()} | options
        folder = tmp_path / str(len(made))
        made.append(Fleet(folder, digits_bundle, n, ends("active"), **options))
        return made[-1], Learner(made[-1], statistics_update)

    yield make
    for each in made:
        each.close()


def test_a_merge_waits_for_a_rollout_and_the_newest_goes_out_when_it_has_ended(new: NewFleet) -> None:
    """Restarts in between change nothing; of what comes while it waits all is in the one merge."""
    fleet, learner = new()
    going = fleet.start_plan(**PLAN)
    fleet.pass_time(40, 10)
    began_ms = fleet.now.wall_ms
    for _ in range(2):
        learner.learn("d000", "d001", "d002")
        fleet.pass_time(1200, 600)
        fleet.start()  # as after kill -9
    assert (learner.merges(), fleet.state(going)) == ([], "soaking")
    (told,) = learner.waits()
    assert told.startswith(f"for rollout {going} of release 1 (soaking), whose devices it would be given before")
    assert began_ms < fleet.shown(going)["merge_waits_since_ms"] <= began_ms + 600_000
    assert [
        (each.rollout, each.since_ms > began_ms) for each in learning(fleet.store, fleet.core.releases)["queue"]
    ] == [(going, True)]
    learner.learn("d003")
    fleet.pass_time(3.5 * DAY_S, DAY_S)
    fleet.pass_time(40, 10)
    assert (fleet.state(going), fleet.counts(going)) == ("completed", {"active": 4})
    assert learner.merges() == [f"merge of 4 devices, {3 * 100 + 120} labelled samples"], "one place, the newest in it"
    assert {device.release for device in fleet.devices.values()} == {2}
    assert fleet.shown(going)["merge_waits_since_ms"] == 0
    assert Turns(fleet.store).waiting() == []
    learner.learn("d000")
    fleet.pass_time(60, 10)
    assert len(learner.merges()) == 2, "and the next one waits for nothing"


@pytest.mark.parametrize("end", ["abort", "revert", "resume"])
def test_it_goes_out_after_whatever_a_person_makes_of_the_rollout(new: NewFleet, end: str) -> None:
    fleet, learner = new()
    going = fleet.start_plan(**PLAN)
    fleet.pass_time(40, 10)
    fleet.core.rollouts.order(going, E.PAUSE, "ann", "looks odd", fleet.now)
    learner.learn(*fleet.devices)
    fleet.pass_time(7200, 3600)
    assert (fleet.state(going), learner.merges()) == ("paused", [])
    wishes = [
        wish.kind for wish in fleet_page(fleet.store, FleetQuery(), fleet.core.dialogue.line.state, fleet.now)["wishes"]
    ]
    assert "merge-waits" not in wishes
    fleet.pass_time(DAY_S, DAY_S / 4)
    found = fleet_page(fleet.store, FleetQuery(), fleet.core.dialogue.line.state, fleet.now)["wishes"]
    assert [(w.subject, w.why) for w in found if w.kind == "merge-waits"] == [(str(going), "paused: looks odd")]
    fleet.core.rollouts.order(going, RolloutEvent(end), "ann", "seen", fleet.now)
    if end == "resume":
        fleet.pass_time(3 * DAY_S, DAY_S / 2)
    if end == "revert":
        assert in_the_way(fleet.store, fleet.backbone), "those that go back are not overtaken, either"
    fleet.pass_time(600, 20)
    assert fleet.state(going) == {"abort": "aborted", "revert": "reverted", "resume": "completed"}[end]
    assert learner.merges() == ["merge of 4 devices, 320 labelled samples"]
    newest = fleet.store.releases.all()[0].counter
    assert {device.release for device in fleet.devices.values()} == {newest}
    if end == "revert":
        assert fleet.counts(going)["reverted"] == 2, "they have the older bytes before the merge"


def test_a_merge_waits_in_every_state_in_which_another_rollout_would_be_in_the_way(new: NewFleet) -> None:
    fleet, _ = new(2)
    number = fleet.start_plan(**PLAN)
    for state in RolloutState:
        before = fleet.store.rollouts.get(number)
        assert before is not None
        now = replace(before, state=state, before=state, version=before.version + 1)  # whichever way led there
        fleet.store.rollouts.save(now, before, ())
        assert [each.id for each in in_the_way(fleet.store, fleet.backbone)] == [number] * (state in UNDER_WAY), state
        assert in_the_way(fleet.store, "another") == []


def test_a_draft_is_not_overtaken_before_others_have_approved_it(new: NewFleet) -> None:
    fleet, learner = new()
    draft = fleet.start_plan(**PLAN | {"soak": ["0 s"]}, start={"approvals": 1})
    learner.learn(*fleet.devices)
    fleet.pass_time(2 * DAY_S, DAY_S / 4)
    assert learner.merges() == []
    wishes = [
        wish.kind for wish in fleet_page(fleet.store, FleetQuery(), fleet.core.dialogue.line.state, fleet.now)["wishes"]
    ]
    assert "merge-waits" in wishes
    fleet.core.rollouts.approve(draft, "ben", "read it", fleet.now)
    fleet.pass_time(120, 10)
    assert (fleet.counts(draft), len(learner.merges())) == ({"active": 4}, 1)


def test_a_bundle_that_devices_wait_for_is_not_overtaken_by_a_merge_of_what_they_run(new: NewFleet) -> None:
    fleet, learner = new()
    kept = fleet.core.add_artifact(fleet.bundle_path.read_bytes(), fleet.bundle_path)
    release = fleet.core.push(kept["digest"], "bundle", kept["backbone"], [], "t", fleet.now, at_once=False)
    made = plans.of_document({"release": release.counter, **PLAN})
    going = fleet.core.rollouts.start(made, "ann", fleet.now).id
    fleet.pass_time(40, 10)
    learner.learn(*fleet.devices)
    fleet.pass_time(DAY_S, DAY_S / 4)
    assert (learner.merges(), fleet.state(going)) == ([], "soaking")
    with pytest.raises(RolloutError, match="would overtake rollout 1"):
        fleet.core.merge_now(fleet.now)
    assert fleet.core.merge_now(fleet.now, supersede=True, who="ann")
    fleet.pass_time(60, 10)
    assert fleet.state(going) == "superseded"


def test_a_merge_by_hand_says_what_it_would_overtake_and_needs_the_word(new: NewFleet) -> None:
    fleet, learner = new(auto_merge=False)
    assert fleet.core.merge_now(fleet.now) == []
    going = fleet.start_plan(**PLAN)
    fleet.pass_time(40, 10)
    assert fleet.core.merge_now(fleet.now) == [], "nothing is new, so nothing is in the way of it"
    learner.learn(*fleet.devices)
    with pytest.raises(RolloutError, match=rf"would overtake rollout {going} of release 1 \(soaking\).*--supersede"):
        fleet.core.merge_now(fleet.now)
    assert (fleet.state(going), learner.merges()) == ("soaking", [])
    (merged,) = fleet.core.merge_now(fleet.now, supersede=True, who="ann")
    found = fleet.shown(going)
    assert (found["state"], found["reason"]) == ("superseded", f"release {merged.counter} takes its place")
    assert found["transitions"][-1]["who"] == "ann" or "ann" in {m["who"] for m in found["transitions"]}
    fleet.pass_time(60, 10)
    fleet.core.rollouts.order(going2 := fleet.start_plan(**PLAN), E.PAUSE, "ann", "", fleet.now)
    fleet.core.rollouts.order(going2, E.RESUME, "ann", "x", fleet.now)
    fleet.pass_time(40, 10)
    fleet.core.rollouts.order(going2, E.REVERT, "ann", "", fleet.now)
    learner.learn(*fleet.devices)
    with pytest.raises(RolloutError, match="brings older bytes back on the same devices"):
        fleet.core.merge_now(fleet.now, supersede=True)


def test_forgetting_waits_too_and_says_so_and_a_merge_with_nothing_left_waits_no_more(new: NewFleet) -> None:
    fleet, learner = new()
    learner.learn(*fleet.devices)
    fleet.pass_time(20, 10)
    assert len(learner.merges()) == 1
    going = fleet.start_plan(**PLAN)
    fleet.pass_time(40, 10)
    assert fleet.core.forget("d000", fleet.now)["merge"] == "waits"
    fleet.pass_time(600, 300)
    assert len(learner.merges()) == 1
    assert [each.rollout for each in Turns(fleet.store).waiting()] == [going]
    fleet.core.rollouts.order(going, E.ABORT, "ann", "", fleet.now)
    fleet.pass_time(60, 10)
    assert "without what was forgotten" in fleet.store.releases.all()[0].reason
    # What waits only for a contribution that is forgotten waits for nothing.
    going = fleet.start_plan(**PLAN, supersede=True)
    fleet.pass_time(40, 10)
    learner.learn("late")
    fleet.pass_time(60, 10)
    assert Turns(fleet.store).waiting()
    fleet.core.forget("late", fleet.now)
    fleet.start()
    fleet.pass_time(60, 10)
    assert Turns(fleet.store).waiting() == []


def test_the_pause_of_the_whole_fleet_holds_merges_back(new: NewFleet) -> None:
    fleet, learner = new()
    fleet.core.pause_all("ann", "night", fleet.now)
    learner.learn(*fleet.devices)
    fleet.pass_time(600, 300)
    assert learner.merges() == []
    assert learner.waits() == ["the whole fleet is paused; it is made when that is over, of what came by then"]
    fleet.core.pause_all("ann", "", fleet.now, paused=False)
    fleet.pass_time(60, 10)
    assert len(learner.merges()) == 1
