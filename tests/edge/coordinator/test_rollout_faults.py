"""Faults of a fleet while releases go out that no other test plays: docs/faults.md says where each number is tested."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.channel.messages import Conn, Desired, Pairs
from edge.channel.transport import Received
from edge.contract.bundle import Bundle
from edge.contract.errors import RolloutError
from edge.coordinator.http.rollout_views import shown
from edge.coordinator.inbox import Inbox
from edge.coordinator.rollout.states import RolloutEvent
from edge.learning.exchange import HeadRelease
from tests.support.fleet import SimulatedFleet
from tests.support.light_fleet import Behaviour, Device, Fleet, ends

Make = Callable[..., Fleet]
OFFLINE = Conn(online=False, session=1, boot=1, ts_ms=0, state_id="a" * 16)


@pytest.fixture(scope="module")
def of_4(tmp_path_factory: pytest.TempPathFactory, digits_bundle: Path) -> Path:
    """The files of a coordinator with four devices that run release 1."""
    folder = tmp_path_factory.mktemp("of-4") / "c"
    fleet = Fleet(folder, digits_bundle, 4, ends("active"))
    assert push(fleet, "first") == 1
    fleet.close()
    return folder


@pytest.fixture
def make(tmp_path: Path, digits_bundle: Path, of_4: Path) -> Iterator[Make]:
    made: list[Fleet] = []

    def new(behaviour: Behaviour | None = None) -> Fleet:
        folder = tmp_path / str(len(made))
        shutil.copytree(of_4, folder)
        names = [f"d{i:03}" for i in range(4)]
        made.append(Fleet(folder, digits_bundle, 4, behaviour or ends("active"), names))
        for device in made[-1].devices.values():
            device.release, device.seq = 1, 10
        return made[-1]

    yield new
    for each in made:
        each.close()


def push(fleet: Fleet, origin: str) -> int:
    """Give all devices a head at once, without a rollout; its number."""
    kept = fleet.core.add_artifact(
        replace(HeadRelease.decode(fleet.head, ""), origin=origin).encode(), Path("/nonexistent")
    )
    release = fleet.core.push(kept["digest"], kept["kind"], kept["backbone"], [], origin, fleet.now)
    fleet.pass_time(20, 10)
    return release.counter


def runs(fleet: Fleet) -> dict[str, int]:
    return {name: device.release for name, device in fleet.devices.items()}


def test_what_goes_to_all_at_once_waits_while_the_whole_fleet_is_paused(make: Make) -> None:
    fleet = make()
    away = fleet.devices.pop("d003")
    assert push(fleet, "before") == 2
    fleet.core.pause_all("ann", "night", fleet.now)
    fleet.devices["d003"] = away
    away.connect()
    fleet.pass_time(60, 10)
    before = {"d000": 2, "d001": 2, "d002": 2, "d003": 1}
    assert runs(fleet) == before, "who comes back meanwhile waits, too"
    assert push(fleet, "meanwhile") == 3
    assert fleet.core.rollback(fleet.now).counter == 4
    fleet.pass_time(600, 300)
    assert runs(fleet) == before
    assert all(device.ready is not None and device.ready.release == 4 for device in fleet.devices.values())
    fleet.core.pause_all("ann", "", fleet.now, paused=False)
    fleet.pass_time(20, 10)
    assert set(runs(fleet).values()) == {4}
    assert push(fleet, "after") == 5
    assert set(runs(fleet).values()) == {5}


def test_a_whole_fleet_that_reconnects_at_once_is_taken_in_and_each_is_told_once(make: Make) -> None:
    """faults: 35. In the middle of a wave: no word is dropped, the operator comes first, and nothing is undone."""
    fleet = make()
    rollout = begun(fleet)
    fleet.pass_time(20, 10)
    before, live = fleet.counts(rollout), runs(fleet)
    assert before == {"active": 2, "waiting": 2}
    said: list[Any] = []
    hear = fleet.core.transport
    fleet.core.transport = lambda event, _: said.append(event)  # type: ignore[method-assign]
    for device in fleet.devices.values():
        last, device.told = device.told[-1:], []
        device.say("up/conn", OFFLINE)
        device.connect()
        if live[device.name] > 1:
            device.state(last[0], "active", "", None)
    fleet.core.transport = hear  # type: ignore[method-assign]
    inbox = Inbox[str](lambda: 0.0)
    for i in range(3000):  # and of 3,000 others
        for event in said:
            other = event.topic.replace("/d00", f"/{i:04}-") if i else event.topic
            inbox.put(replace(event, topic=other))
    inbox.call("an operator")
    assert inbox.take(0.0) == "an operator"
    taken = [event for event in iter(lambda: inbox.take(0.0), None) if isinstance(event, Received)]
    assert (len(taken), inbox.dropped()) == (3000 * len(said), {})
    for event in taken:
        if "/d00" in event.topic:
            fleet.core.transport(event, fleet.now)
    fleet.pass_time(20, 10)
    assert fleet.store is not None
    assert all(each.online for each in fleet.store.devices.all())
    assert (fleet.counts(rollout), runs(fleet)) == (before, live)
    assert max(len(device.told) for device in fleet.devices.values()) <= 2, "for its birth, and for its word"


def test_a_device_that_never_ends_fetching_holds_up_none_but_itself(make: Make) -> None:
    """faults: 36. It has one place of those that fetch at one time, and until its deadline only."""

    def behave(device: Device, desired: Desired) -> list[tuple[str, str, Pairs | None]]:
        if device.name == "d000" and desired.attempt == 1:
            return [("fetching", "1 %", None)]
        return ends("active")(device, desired)

    fleet = make(behave)
    plan = {"pace": {"transfers": 2}, "deadline": {"fetch": "1 h"}, "health": {"pause": [0.5, 3], "quorum": 0.0}}
    rollout = fleet.start_plan(waves=["100 %"], soak=["0 s"], model="off", **plan)
    fleet.pass_time(600, 10)
    assert fleet.counts(rollout) == {"active": 3, "offered": 1}
    fleet.pass_time(3600, 60)
    assert (fleet.state(rollout), fleet.counts(rollout)) == ("completed", {"active": 3, "timed-out": 1})
    fleet.devices["d000"].release = 1
    fleet.core.rollouts.order(rollout, RolloutEvent.RETRY, "ann", "", fleet.now)
    fleet.pass_time(60, 10)
    assert fleet.counts(rollout) == {"active": 4}


def test_going_back_from_where_one_went_back_goes_further_and_ends(make: Make) -> None:
    """faults: 38."""
    fleet = make()
    assert [push(fleet, f"head {n}") for n in (2, 3)] == [2, 3]
    digests = {n: fleet.core.releases.get(n).digest for n in (1, 2, 3)}
    for number, restores in ((4, 2), (5, 1)):
        back = fleet.core.rollback(fleet.now)
        assert (back.counter, back.restores, back.digest) == (number, restores, digests[restores])
        fleet.pass_time(20, 10)
        assert set(runs(fleet).values()) == {number}
    before = fleet.store.releases.all()
    with pytest.raises(RolloutError, match="before release 1 nothing of its kind was pushed"):
        fleet.core.rollback(fleet.now)
    assert fleet.store.releases.all() == before
    forward = fleet.core.rollback(fleet.now, to=3, force=True)  # the way back from going back
    fleet.pass_time(20, 10)
    assert (forward.restores, forward.digest, set(runs(fleet).values())) == (3, digests[3], {forward.counter})
    # The same of a rollout: what was reverted is not reverted again, and what went back can be gone back from.
    rollout = fleet.push()
    fleet.pass_time(60, 10)
    fleet.core.rollouts.order(rollout, RolloutEvent.REVERT, "ann", "worse", fleet.now)
    fleet.pass_time(60, 10)
    assert (fleet.state(rollout), fleet.counts(rollout)) == ("reverted", {"reverted": 4})
    with pytest.raises(RolloutError, match="reverted already: revert changes nothing"):
        fleet.core.rollouts.order(rollout, RolloutEvent.REVERT, "ann", "again", fleet.now)
    assert fleet.core.releases.wanted("d000")[0].release.digest == digests[3]


# How a rollout of four devices, two a wave, comes to each of its states.
WAYS: dict[str, Callable[[Fleet], int]] = {}


def way(state: str) -> Callable[[Callable[[Fleet], int]], Callable[[Fleet], int]]:
    return lambda function: WAYS.setdefault(state, function)


def begun(fleet: Fleet, **plan: Any) -> int:
    return fleet.start_plan(**{"waves": ["50 %", "100 %"], "soak": ["1 d"], "model": "off"} | plan)


@way("draft")
def _(fleet: Fleet) -> int:
    return begun(fleet, start={"approvals": 1})


@way("ready")
def _(fleet: Fleet) -> int:
    return begun(fleet, start={"at": "2099-01-01T00:00:00+00:00"})


@way("opening")
def _(fleet: Fleet) -> int:
    fleet.devices["d000"].behaviour = fleet.devices["d001"].behaviour = ends("probation")
    rollout = begun(fleet)
    fleet.pass_time(20, 10)
    return rollout


@way("soaking")
def _(fleet: Fleet) -> int:
    rollout = begun(fleet)
    fleet.pass_time(20, 10)
    return rollout


@way("held")
def _(fleet: Fleet) -> int:
    for device in fleet.devices.values():
        device.behaviour = ends("active", "", Pairs(compared=64, differ=58))
    rollout = begun(fleet, model={"liars": 0.0}, soak=["0 s"])
    fleet.pass_time(40, 10)
    return rollout


@way("paused")
def _(fleet: Fleet) -> int:
    rollout = WAYS["soaking"](fleet)
    fleet.core.rollouts.order(rollout, RolloutEvent.PAUSE, "ann", "", fleet.now)
    return rollout


@way("completed")
def _(fleet: Fleet) -> int:
    rollout = begun(fleet, soak=["0 s"])
    fleet.pass_time(60, 10)
    return rollout


@way("reverting")
def _(fleet: Fleet) -> int:
    rollout = WAYS["soaking"](fleet)
    fleet.core.rollouts.order(rollout, RolloutEvent.REVERT, "ann", "", fleet.now)
    return rollout


@way("aborted")
def _(fleet: Fleet) -> int:
    rollout = WAYS["soaking"](fleet)
    fleet.core.rollouts.order(rollout, RolloutEvent.ABORT, "ann", "", fleet.now)
    return rollout


@way("reverted")
def _(fleet: Fleet) -> int:
    rollout = WAYS["reverting"](fleet)
    fleet.pass_time(40, 10)
    return rollout


@way("superseded")
def _(fleet: Fleet) -> int:
    rollout = WAYS["soaking"](fleet)
    fleet.core.rollback(fleet.now, to=1)
    return rollout


def asked(event: RolloutEvent) -> Callable[[Fleet, int], Any]:
    return lambda fleet, number: fleet.core.rollouts.order(number, event, "ben", "why", fleet.now)


ORDERS: dict[str, Callable[[Fleet, int], Any]] = {
    **{str(event): asked(event) for event in (RolloutEvent.START, RolloutEvent.PAUSE, RolloutEvent.RESUME)},
    **{str(event): asked(event) for event in (RolloutEvent.RETRY, RolloutEvent.ABORT, RolloutEvent.REVERT)},
    "approve": lambda fleet, number: fleet.core.rollouts.approve(number, "ben", "why", fleet.now),
    "widen": lambda fleet, number: fleet.core.rollouts.widen(number, 1, "ben", "why", fleet.now),
    "exclude d000": lambda fleet, number: fleet.core.rollouts.exclude(number, "d000", "ben", "why", fleet.now),
    "exclude d003": lambda fleet, number: fleet.core.rollouts.exclude(number, "d003", "ben", "why", fleet.now),
    "out of the selection": lambda fleet, _: fleet.core.tag("d003", {"site": "south"}, fleet.now),
}  # fmt: skip


@pytest.mark.parametrize("state", WAYS)
def test_whatever_an_operator_does_at_whatever_stage_is_done_whole_or_refused(make: Make, state: str) -> None:
    """faults: 37. What is refused changes nothing; after what is done, each device runs what its target says."""
    fleet, n_done = None, 0
    for name, order in ORDERS.items():
        if fleet is None:
            fleet = make()
            rollout = WAYS[state](fleet)
            assert fleet.state(rollout) == state
        before, told = fleet.shown(rollout), runs(fleet)
        try:
            order(fleet, rollout)
        except RolloutError:
            assert (fleet.shown(rollout), runs(fleet)) == (before, told), name
            continue
        n_done += 1
        fleet.pass_time(90, 30)
        after = fleet.shown(rollout)
        for target in after["targets"]:
            is_live = fleet.devices[target["device"]].release == after["release"]
            is_said = target["state"] in ("active", "probation")
            assert is_live == is_said or (is_said and after["state"] == "superseded"), (state, name, target)
        assert len(after["targets"]) == 4, name
        passed = [each["event"] for each in after["transitions"] if not each["subject"]].count("pass")
        assert after["wave"] <= passed + 1, "no wave is skipped"
        fleet = None
    assert n_done >= 1


def test_agents_that_learn_refuse_random_numbers_and_the_rollout_stops_at_its_canaries(
    tmp_path: Path, digits_bundle: Path, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    """The same protocol with real agents: what they learned from labels is what judges, and each one's answer stays."""
    names = [f"d{i:02}" for i in range(12)]
    fleet = SimulatedFleet(tmp_path, digits_bundle, names, auto_merge=False, probation_s=1.0)
    try:
        fleet.until("births", lambda: all((d := fleet.device(name)) is not None and d.born for name in names))
        for i, name in enumerate(names):
            fleet.teach(name, digits[0][40 * i : 40 * i + 40], digits[1][40 * i : 40 * i + 40])
        assert fleet.coordinator is not None
        learned = {name: agent.core.status()["samples"] for name, agent in fleet.agents.items()}
        assert set(learned.values()) == {40}
        bundle = Bundle.open(digits_bundle)
        rng = np.random.default_rng(0)
        shipped = bundle.head_parameters()
        noise = {key: rng.normal(size=array.shape).astype(np.float32) for key, array in shipped.items()}
        data = HeadRelease(backbone=bundle.manifest.backbone_digest, parameters=noise, origin="noise").encode()
        kept = fleet.coordinator.add_artifact(data, Path("noise.safetensors"))
        what = (kept["digest"], kept["kind"], kept["backbone"])
        release, rollout = fleet.coordinator.roll_out(*what, [], "noise", fleet.now)
        stopped = ("paused", "reverting", "reverted", "held")
        fleet.until("a stop", lambda: shown(fleet.store, rollout.id)["state"] in stopped)
        fleet.run(3)
        found = shown(fleet.store, rollout.id)
        touched = {each["device"] for each in found["targets"] if each["state"] != "waiting"}
        assert 1 <= len(touched) <= 3, "a quarter of them"
        assert found["reason"].startswith("failures")
        for name, agent in fleet.agents.items():
            assert agent.core.status()["samples"] == learned[name], "nothing that was learned is lost"
            told = fleet.store.devices.known(name)
            assert told is not None
            assert {each.state_release for each in told.models} == ({release.counter} if name in touched else {0})
            assert all(each.state in ("refused", "rolled-back") for each in told.models if name in touched)
    finally:
        fleet.close()
