"""Rollouts at work: a real coordinator, real messages, and 200 light devices that answer as an agent does."""

from __future__ import annotations

import itertools
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event as sqlalchemy_event

from edge.channel.messages import Conn, Desired, Pairs
from edge.contract.clock import Now
from edge.contract.errors import ConflictError, RolloutError
from edge.coordinator.devices.admission import Decision
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.states import RolloutEvent
from edge.learning.exchange import HeadRelease
from tests.support.light_fleet import Behaviour, Device, Fleet, ends

E = RolloutEvent
Make = Callable[..., Fleet]


@pytest.fixture(scope="module")
def of_200(tmp_path_factory: pytest.TempPathFactory, digits_bundle: Path) -> tuple[Path, list[str]]:
    """The files of a coordinator that 200 devices have introduced themselves to."""
    folder = tmp_path_factory.mktemp("of-200") / "c"
    fleet = Fleet(folder, digits_bundle, 200, ends("active"))
    fleet.close()
    return folder, list(fleet.devices)


@pytest.fixture
def make(tmp_path: Path, digits_bundle: Path, of_200: tuple[Path, list[str]]) -> Iterator[Make]:
    made: list[Fleet] = []

    def new(n: int, behaviour: Behaviour) -> Fleet:
        folder, known = tmp_path / str(len(made)), None
        if n == 200:
            shutil.copytree(of_200[0], folder)
            known = of_200[1]
        made.append(Fleet(folder, digits_bundle, n, behaviour, known))
        return made[-1]

    yield new
    for each in made:
        each.close()


def gains(mean: float, liars: float = 0.0, n_pairs: int = 320) -> Behaviour:
    """Devices with true gains around a mean, and sums of that many pairs; some say the opposite of what is true."""
    rng = np.random.default_rng(7)

    def behave(_: Device, __: Desired) -> list[tuple[str, str, Pairs | None]]:
        gain = float(np.clip(rng.normal(mean, 0.04), -0.4, 0.4))
        differ = 0.06 + abs(gain)
        new, old, _ = rng.multinomial(n_pairs, [(differ + gain) / 2, (differ - gain) / 2, 1 - differ])
        if rng.random() < liars:
            new, old = (n_pairs, 0) if mean < 0 else (0, n_pairs)
        sums = Pairs(
            labelled=n_pairs, only_new=float(new), only_old=float(old), compared=n_pairs, differ=int(new + old)
        )
        return [("probation", "", None), ("active", "probation: accuracy", sums)]

    return behave


def test_good_release_reaches_all_of_200_devices(make: Make) -> None:
    fleet = make(200, gains(0.05, liars=0.10))
    rollout = fleet.push()
    fleet.pass_time(600, 300)
    assert fleet.touched == 10
    fleet.pass_time(6 * 86_400, 43_200)
    found = fleet.shown(rollout)
    assert (found["state"], found["counts"], fleet.touched) == ("completed", {"active": 200}, 200)
    assert [look["decision"] for look in found["looks"]] == ["pass"] * 3
    assert all(target["pairs"]["labelled"] == 320 for target in found["targets"])


# What is bad in itself: test_rollouts_of_agents.py has it, with agents that judge.
BAD = {
    "crashes after activation": (ends("rolled-back", "prediction failed"), "reverted", "failures"),
    "silent after activation": (ends("probation"), "reverted", "failures"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_release_touches_at_most_one_in_twenty_and_stops_by_itself(make: Make, kind: str) -> None:
    behaviour, state, code = BAD[kind]
    fleet = make(200, behaviour)
    rollout = fleet.push()
    fleet.pass_time(600, 300)
    fleet.pass_time(2 * 86_400, 43_200)
    found = fleet.shown(rollout)
    assert fleet.touched <= 10
    assert (found["state"], found["reason"].partition(":")[0]) == (state, code)


def test_without_labels_it_holds_after_the_canaries_and_a_person_decides(make: Make) -> None:
    fleet = make(200, ends("active", "", Pairs(compared=320, differ=20)))
    rollout = fleet.push()
    fleet.pass_time(600, 300)
    fleet.pass_time(2 * 86_400, 43_200)
    found = fleet.shown(rollout)
    assert (found["state"], fleet.touched) == ("held", 50)
    assert found["reason"] == "few-judges: 0 of 50 canaries have labels, 30 needed; answers agree on 93.8%"
    fleet.core.rollouts.order(rollout, E.ABORT, "ann", "no", fleet.now)
    fleet.pass_time(86_400, 43_200)
    assert (fleet.state(rollout), fleet.touched) == ("aborted", 50)


def test_soaks_of_seconds_last_so_long_and_not_until_somebody_looks_again(make: Make) -> None:
    fleet = make(3, ends("active"))
    fleet.pass_time(12, 1)
    rollout = fleet.start_plan(soak=["3 s", "2 s"])
    seen = []
    while fleet.state(rollout) != "completed":
        fleet.pass_time(0.5, 0.5)
        seen.append(fleet.touched)
        assert len(seen) < 40
    assert 6 <= seen.count(1) <= 9, "three seconds, and what telling takes"


def test_revert_brings_the_older_bytes_back_as_a_new_release(make: Make) -> None:
    fleet = make(4, ends("active"))
    first = fleet.push()
    fleet.pass_time(40, 10)
    assert fleet.state(first) == "completed"
    digest = fleet.core.releases.wanted("d000")[0].release.digest
    fleet.head = replace(HeadRelease.decode(fleet.head, ""), origin="another").encode()
    second = fleet.push()
    fleet.pass_time(40, 10)
    assert [fleet.state(each) for each in (first, second)] == ["superseded", "completed"]
    assert fleet.core.releases.wanted("d000")[0].release.digest != digest
    fleet.core.rollouts.order(second, E.REVERT, "ann", "worse", fleet.now)
    fleet.pass_time(40, 10)
    assert (fleet.state(second), fleet.counts(second)) == ("reverted", {"reverted": 4})
    release = fleet.core.releases.wanted("d000")[0].release
    assert (release.counter, release.digest) == (3, digest)
    assert {device.release for device in fleet.devices.values()} == {3}


def test_before_the_first_push_there_are_the_bytes_that_devices_came_with_and_a_rollback_says_how_to_have_them(
    make: Make,
) -> None:
    fleet = make(4, ends("active"))
    first = fleet.push()
    fleet.pass_time(40, 10)
    with pytest.raises(RolloutError, match="before release 1 nothing of its kind was pushed") as refused:
        fleet.core.rollback(fleet.now)
    told = re.search(r"`edge-fleet rollout revert (\d+)`", str(refused.value))
    assert told is not None
    fleet.core.rollouts.order(int(told[1]), E.REVERT, "ann", "worse", fleet.now)
    fleet.pass_time(40, 10)
    assert fleet.counts(first) == {"reverted": 4}
    with pytest.raises(RolloutError) as refused:
        fleet.core.rollback(fleet.now)
    assert "revert" not in str(refused.value), "it was reverted already"


def test_rollback_ends_a_rollout_and_reaches_those_whom_it_reached(make: Make) -> None:
    fleet = make(4, ends("active"))
    fleet.push()
    fleet.pass_time(40, 10)
    fleet.head = replace(HeadRelease.decode(fleet.head, ""), origin="another").encode()
    second = fleet.start_plan(waves=["50 %", "100 %"], soak=["1 d"])
    fleet.pass_time(40, 10)
    release = fleet.core.rollback(fleet.now)
    fleet.pass_time(40, 10)
    assert (fleet.state(second), fleet.counts(second)) == ("superseded", {"active": 2, "superseded": 2})
    assert sorted(device.release for device in fleet.devices.values()) == [1, 1, release.counter, release.counter]


def test_a_rollout_whose_devices_are_given_a_newer_release_says_so_and_waits_for_none(make: Make) -> None:
    fleet = make(4, ends("active"))
    plan = {"waves": ["50 %", "100 %"], "soak": ["1 d"], "model": "off"}
    going = fleet.start_plan(**plan)
    fleet.pass_time(40, 10)
    assert fleet.counts(going) == {"active": 2, "waiting": 2}
    kept = fleet.core.add_artifact(fleet.head, Path("/nonexistent"))
    fleet.core.push(kept["digest"], kept["kind"], kept["backbone"], [], "merge of 4 devices", fleet.now)  # as a merge
    fleet.pass_time(70, 10)
    shown = fleet.shown(going)
    assert (shown["state"], fleet.counts(going)) == ("paused", {"active": 2, "waiting": 2})
    assert "are given release 2 (merge of 4 devices)" in shown["reason"]
    fleet.core.rollouts.order(going, E.REVERT, "ann", "", fleet.now)  # those that have it can still be brought back
    fleet.pass_time(70, 10)
    assert fleet.state(going) == "reverted"
    draft = fleet.start_plan(**plan, start={"approvals": 1})
    fleet.core.push(kept["digest"], kept["kind"], kept["backbone"], [], "merge", fleet.now)
    with pytest.raises(RolloutError, match="cannot begin any more: overtaken: "):
        fleet.core.rollouts.approve(draft, "bob", "", fleet.now)


def test_a_last_wave_that_runs_it_is_not_stopped_by_what_comes_after(make: Make) -> None:
    fleet = make(3, ends("active"))
    rollout = fleet.start_plan(waves=["100 %"], soak=[], model="off")
    fleet.pass_time(20, 10)
    kept = fleet.core.add_artifact(fleet.head, Path("/nonexistent"))
    fleet.core.push(kept["digest"], kept["kind"], kept["backbone"], [], "merge of 3 devices", fleet.now)
    fleet.pass_time(130, 10)
    assert (fleet.state(rollout), fleet.counts(rollout)) == ("completed", {"active": 3})


def test_who_comes_after_a_rollout_and_a_merge_is_given_the_merge_and_counts_as_no_failure(make: Make) -> None:
    fleet = make(4, ends("active"))
    away = {name: fleet.devices.pop(name) for name in ("d002", "d003")}
    for device in away.values():
        device.say("up/conn", Conn(online=False, session=1, boot=1, ts_ms=0, state_id="a" * 16))
    fleet.pass_time(2 * 86_400, 43_200)
    for device in fleet.devices.values():
        device.connect()
    rollout = fleet.start_plan(waves=["100 %"], soak=[], model="off", health={"quorum": 0.0})
    fleet.pass_time(200, 50)
    assert (fleet.state(rollout), fleet.counts(rollout)) == ("completed", {"active": 2, "absent": 2})
    kept = fleet.core.add_artifact(fleet.head, Path("/nonexistent"))
    fleet.core.push(kept["digest"], kept["kind"], kept["backbone"], [], "merge of 2 devices", fleet.now)
    fleet.devices |= away
    for device in away.values():
        device.connect()
    fleet.pass_time(300, 50)
    assert {device.release for device in fleet.devices.values()} == {2}
    fleet.pass_time(2 * 86_400, 21_600)
    assert (fleet.state(rollout), fleet.counts(rollout)) == ("completed", {"active": 2, "superseded": 2})


def test_going_back_passes_by_what_never_lived(make: Make) -> None:
    fleet = make(4, ends("active"))
    merged = HeadRelease.decode(fleet.head, "")
    fleet.head = replace(merged, included={"a": 1}, origin="merge").encode()
    kept = fleet.core.add_artifact(fleet.head, Path("/nonexistent"))
    fleet.core.push(kept["digest"], kept["kind"], kept["backbone"], [], "merge", fleet.now)
    fleet.pass_time(40, 10)
    assert {device.release for device in fleet.devices.values()} == {1}
    fleet.head = replace(merged, origin="bad").encode()
    for device in fleet.devices.values():
        device.behaviour = ends("refused", "worse")
    bad = fleet.push()
    fleet.pass_time(40, 10)
    assert fleet.counts(bad) == {"refused": 1, "waiting": 3}
    with pytest.raises(RolloutError, match=r"no device runs release 2, the newest: rollout 1 has brought it to none"):
        fleet.core.rollback(fleet.now)
    fleet.head = replace(merged, origin="good").encode()
    for device in fleet.devices.values():
        device.behaviour = ends("active")
    good = fleet.push()
    fleet.pass_time(40, 10)
    assert fleet.state(good) == "completed"
    # Whoever refused the bad one ran the merge all the while.
    assert {target.former for target in fleet.store.rollouts.targets(good)} == {kept["digest"]}
    # Where the good one replaced everything, so does what is to be there again, though a merge competes else.
    back = fleet.core.rollback(fleet.now)
    assert (back.counter, back.restores, set(back.devices)) == (4, 1, set(fleet.devices))
    data = (fleet.folder / "artifacts" / back.digest).read_bytes()
    assert HeadRelease.decode(data, "").is_rival is False
    assert back.digest != kept["digest"]
    third = fleet.push()
    fleet.pass_time(40, 10)
    fleet.core.rollouts.order(third, E.REVERT, "ann", "", fleet.now)
    fleet.pass_time(40, 10)
    assert fleet.counts(third) == {"reverted": 4}
    assert fleet.core.releases.wanted("d000")[0].release.digest == back.digest


def another(fleet: Fleet, name: str) -> None:
    """From now on the fleet's head is this one."""
    fleet.head = replace(HeadRelease.decode(fleet.head, ""), origin=name).encode()


def completes(fleet: Fleet, name: str) -> tuple[int, str]:
    """A head of its own goes through all waves: its rollout, and its digest."""
    another(fleet, name)
    rollout = fleet.push()
    fleet.pass_time(40, 10)
    assert fleet.state(rollout) == "completed"
    return rollout, fleet.core.releases.wanted("d000")[0].release.digest


@pytest.mark.parametrize("way", ["revert", "rollback"])
def test_a_rollback_passes_by_what_was_taken_back(make: Make, way: str) -> None:
    fleet = make(4, ends("active"))
    _, first = completes(fleet, "first")
    bad, _ = completes(fleet, "bad")
    if way == "revert":
        fleet.core.rollouts.order(bad, E.REVERT, "ann", "worse", fleet.now)
    else:
        fleet.core.rollback(fleet.now)
    fleet.pass_time(40, 10)
    assert fleet.core.releases.wanted("d000")[0].release.digest == first
    completes(fleet, "third")
    if way == "revert":
        with pytest.raises(RolloutError, match=r"it was taken back: rollout 2 is reverted, worse\. --force"):
            fleet.core.rollback(fleet.now, to=2)
    assert fleet.core.rollback(fleet.now).digest == first
    fleet.pass_time(40, 10)
    with pytest.raises(RolloutError, match="before release 1 nothing"):  # and further back there is none
        fleet.core.rollback(fleet.now)
    if way == "rollback":  # who names what was undone has it again, and then it is what was before
        with pytest.raises(
            RolloutError, match=r"it was taken back by release 3 \(back from release 2 to 1\)\. --force"
        ):
            fleet.core.rollback(fleet.now, to=2)
        fleet.core.rollback(fleet.now, to=2, force=True)
        fleet.pass_time(40, 10)
        completes(fleet, "fourth")
        assert fleet.core.rollback(fleet.now).restores == 2


@pytest.mark.parametrize("end", ["paused", "aborted"])
def test_a_revert_passes_by_a_head_whose_own_rollout_never_went_through(make: Make, end: str) -> None:
    fleet = make(4, ends("active"))
    _, first = completes(fleet, "first")
    another(fleet, "stopped")
    stopped = fleet.start_plan(waves=["50 %", "100 %"], soak=["1 d"], supersede=True)
    fleet.pass_time(40, 10)
    fleet.core.rollouts.order(stopped, E.PAUSE if end == "paused" else E.ABORT, "ann", "worse", fleet.now)
    assert (fleet.state(stopped), fleet.counts(stopped)["active"]) == (end, 2)
    last, _ = completes(fleet, "last")
    fleet.core.rollouts.order(last, E.REVERT, "ann", "worse, too", fleet.now)
    fleet.pass_time(40, 10)
    assert (fleet.state(last), fleet.counts(last)) == ("reverted", {"reverted": 4})
    assert {fleet.core.releases.wanted(name)[0].release.digest for name in fleet.devices} == {first}
    assert fleet.store is not None
    said = [each for each in fleet.store.releases.all() if "whose own rollout never went through" in each.reason]
    assert [len(each.devices) for each in said] == [2], "two of them ran it"


@pytest.mark.parametrize("is_completed", [True, False])
def test_who_is_quarantined_goes_on_with_what_it_runs_also_when_it_is_approved_again(
    make: Make, is_completed: bool
) -> None:
    fleet = make(4, ends("active"))
    rollout = fleet.push() if is_completed else fleet.start_plan(waves=["50 %", "100 %"], soak=["1 d"])
    fleet.pass_time(60, 15)
    assert (fleet.state(rollout) == "completed") is is_completed
    runs = next(target for target in fleet.store.rollouts.targets(rollout) if target.state == "active")
    wanted = fleet.core.releases.wanted(runs.device)[0].release.counter
    newest = fleet.store.releases.all()[0].counter
    for order in (Decision.QUARANTINE, Decision.APPROVE):
        fleet.core.decide(runs.device, order, "ann", "odd", fleet.now)
        fleet.pass_time(60, 15)
        assert fleet.store.releases.all()[0].counter == newest  # no older bytes were made a release for it
    assert {each.release.counter for each in fleet.core.releases.wanted(runs.device)} <= {wanted}
    after = fleet.push()  # what comes next it is given again
    fleet.pass_time(600, 15)
    assert {t["device"]: t["state"] for t in fleet.shown(after)["targets"]}[runs.device] in ("active", "waiting")
    with pytest.raises(RolloutError, match="not paused"):
        fleet.core.pause_all("ann", "", fleet.now, paused=False)


def test_pause_abort_and_exclude_take_back_what_is_not_live(make: Make) -> None:
    fleet = make(8, ends("active"))
    fleet.core.pause_all("ann", "night", fleet.now)
    rollout = fleet.push()
    fleet.pass_time(60, 15)
    assert (fleet.touched, fleet.counts(rollout)) == (0, {"waiting": 8})
    fleet.core.pause_all("ann", "", fleet.now, paused=False)
    fleet.pass_time(1, 1)
    fleet.core.rollouts.order(rollout, E.PAUSE, "ann", "", fleet.now)
    fleet.pass_time(60, 15)
    assert fleet.counts(rollout) == {"active": 2, "waiting": 6}
    fleet.core.rollouts.order(rollout, E.RESUME, "ann", "seen", fleet.now)
    fleet.pass_time(60, 15)
    assert fleet.counts(rollout) == {"active": 8}
    second = fleet.start_plan(waves=["50 %", "100 %"], soak=["1 d"])
    fleet.core.rollouts.order(second, E.PAUSE, "ann", "", fleet.now)
    fleet.core.rollouts.order(second, E.RESUME, "ann", "x", fleet.now)
    fleet.pass_time(60, 15)
    assert fleet.counts(second) == {"active": 4, "waiting": 4}
    out = next(t["device"] for t in fleet.shown(second)["targets"] if t["state"] == "active")
    fleet.core.rollouts.exclude(second, out, "ann", "odd", fleet.now)
    fleet.pass_time(60, 15)
    assert fleet.counts(second) == {"active": 3, "reverted": 1, "waiting": 4}
    with pytest.raises(RolloutError, match="there is no rollout 99"):
        fleet.shown(99)


def test_what_a_push_ends_says_which_release_took_its_place(make: Make) -> None:
    fleet = make(4, ends("active"))
    older = fleet.start_plan(waves=["50 %", "100 %"], soak=["10 d"])
    fleet.pass_time(20, 10)
    newer = fleet.push()
    release = fleet.shown(newer)["release"]
    assert fleet.shown(older)["reason"] == f"release {release} takes its place"  # edge-fleet push says so


def test_what_others_have_to_approve_begins_with_the_last_of_them(make: Make) -> None:
    fleet = make(4, ends("active"))
    older = fleet.start_plan(waves=["50 %", "100 %"], soak=["10 d"])
    fleet.pass_time(20, 10)
    with pytest.raises(RolloutError, match="--supersede"):
        fleet.start_plan(start={"approvals": 2})
    rollout = fleet.start_plan(start={"approvals": 2}, supersede=True)
    fleet.pass_time(60, 20)
    assert (fleet.state(rollout), fleet.counts(rollout), fleet.state(older)) == ("draft", {"waiting": 4}, "soaking")
    approve, order = fleet.core.rollouts.approve, fleet.core.rollouts.order
    with pytest.raises(RolloutError, match="begins when others have approved it"):
        order(rollout, E.START, "ann", "", fleet.now)
    for who, why in (("ann", "its author cannot approve"), ("", "nobody cannot approve")):
        with pytest.raises(RolloutError, match=why):
            approve(rollout, who, "", fleet.now)
    seen = fleet.shown(rollout)["version"]
    assert approve(rollout, "ben", "read it", fleet.now, version=seen).state == "draft"
    with pytest.raises(ConflictError, match=rf"has version {seen + 1} by now, and not {seen}: it is draft"):
        approve(rollout, "cem", "", fleet.now, version=seen)
    with pytest.raises(RolloutError, match="they did already"):
        approve(rollout, "ben", "", fleet.now)
    with pytest.raises(RolloutError, match="--supersede"):
        approve(rollout, "cem", "", fleet.now)
    assert fleet.shown(rollout)["approvals"] == {"needed": 2, "by": ["ben"]}
    approve(rollout, "cem", "me too", fleet.now, supersede=True)
    fleet.pass_time(60, 10)
    found = fleet.shown(rollout)
    assert (found["state"], found["approvals"]["by"], fleet.state(older)) == ("completed", ["ben", "cem"], "superseded")
    with pytest.raises(RolloutError, match=r"release 1 is older than what d000, .* had since: make a new one"):
        fleet.core.rollouts.start(plans.of_document({"release": 1}), "ann", fleet.now, supersede=True)
    with pytest.raises(RolloutError, match=r"release 1 is older than what d000"):
        fleet.core.rollouts.plan(plans.of_document({"release": 1}), fleet.now)
    with pytest.raises(RolloutError, match="it waits for no approval"):
        approve(rollout, "dee", "", fleet.now)


def test_a_wave_that_is_held_is_widened(make: Make) -> None:
    fleet = make(20, ends("active", "", Pairs(compared=64, differ=58)))
    rollout = fleet.start_plan(waves=["20 %", "50 %", "100 %"], soak=["0 s"])
    fleet.pass_time(60, 10)
    assert (fleet.state(rollout), fleet.counts(rollout)) == ("held", {"active": 4, "waiting": 16})
    for device in fleet.devices.values():
        device.behaviour = ends("active", "", Pairs(labelled=64, only_new=3, only_old=3, compared=64, differ=6))
    seen = fleet.shown(rollout)["version"]
    fleet.core.rollouts.widen(rollout, 2, "ann", "more canaries", fleet.now, version=seen)
    assert fleet.state(rollout) == "opening"
    fleet.pass_time(20, 10)
    found = fleet.shown(rollout)
    assert [target["wave"] for target in found["targets"]] == [1] * 6 + [2] * 4 + [3] * 10
    assert found["counts"]["active"] >= 6
    with pytest.raises(ConflictError):
        fleet.core.rollouts.widen(rollout, 2, "ann", "", fleet.now, version=seen)
    with pytest.raises(ConflictError):
        fleet.core.rollouts.order(rollout, E.ABORT, "ann", "", fleet.now, version=seen)
    fleet.core.rollouts.order(rollout, E.ABORT, "ann", "", fleet.now)
    with pytest.raises(RolloutError, match="that is aborted cannot take widen"):
        fleet.core.rollouts.widen(rollout, 2, "ann", "", fleet.now)


def test_a_database_locked_for_two_minutes_and_an_artifact_taken_away_heal(make: Make) -> None:
    """faults: 33, 34. What devices say meanwhile is lost; they say it again when they are told what to run."""
    fleet = make(4, ends("active"))
    assert fleet.store is not None
    rollout = fleet.start_plan(waves=["50 %", "100 %"], soak=["0 s"])
    fleet.pass_time(5, 5)
    with fleet.store._database._engine.connect() as connection:  # the two minutes are the fleet's clock
        connection.exec_driver_sql("PRAGMA busy_timeout=0")
    other = sqlite3.connect(fleet.folder / "db.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for device in fleet.devices.values():
        device.connect()
    fleet.pass_time(120, 20)
    other.execute("ROLLBACK")
    other.close()
    assert fleet.touched <= 2, "nothing more went out while nothing could be written"
    digest = fleet.core.releases.get(1).digest
    file, away = fleet.folder / "artifacts" / digest, fleet.folder / "away"
    file.rename(away)
    fleet.core.dialogue._artifacts.doubt(digest)
    fleet.devices["late"] = Device(fleet, "late", ends("active"))
    for device in fleet.devices.values():  # they connect again, and say where they stand
        device.connect()
        if device.told and device.release:
            device.state(device.told[-1], "active", "probation: accuracy", None)
    fleet.pass_time(60, 20)
    assert fleet.state(rollout) == "opening"
    assert any(row.name == "artifact-missing" for row in fleet.store.events.newest(50))
    away.rename(file)
    for device in fleet.devices.values():
        device.connect()
    fleet.pass_time(60, 20)
    assert (fleet.state(rollout), fleet.counts(rollout)) == ("completed", {"active": 5})


def test_a_staged_release_is_withdrawn_where_the_rollout_is_aborted(make: Make) -> None:
    fleet = make(2, ends("active"))
    rollout = fleet.start_plan(waves=["100 %"], pace={"transfers": 1})
    fleet.now = Now(fleet.now.s + 1, fleet.now.wall_ms + 1000)
    fleet.core.tick(fleet.now)  # offered, and what was sent is lost
    fleet.core.rollouts.order(rollout, E.PAUSE, "ann", "", fleet.now)
    fleet.pass_time(120)
    assert fleet.counts(rollout) == {"staged": 1, "waiting": 1}
    fleet.core.rollouts.order(rollout, E.ABORT, "ann", "", fleet.now)
    fleet.pass_time(120)
    assert fleet.touched == 0
    assert fleet.counts(rollout) == {"superseded": 2}
    assert all(device.ready is None for device in fleet.devices.values())
    assert [d.activate for device in fleet.devices.values() for d in device.told][-1] == "never"


def test_a_second_rollout_on_the_same_devices_is_refused_or_takes_its_place(make: Make) -> None:
    fleet = make(4, ends("probation"))
    first = fleet.push()
    fleet.pass_time(60)
    with pytest.raises(RolloutError, match=r"is under way on the same devices.*--supersede"):
        fleet.start_plan()
    second = fleet.start_plan(supersede=True)
    assert fleet.state(first) == "superseded"
    fleet.pass_time(60)
    assert fleet.counts(second)["probation"] == 1
    third = fleet.push()
    assert [fleet.state(each) for each in (second, third)] == ["superseded", "ready"]
    with pytest.raises(RolloutError, match=r"this head would go to nobody now: there is no device of id = \"nobody\""):
        fleet.start_plan(select='id = "nobody"')
    with pytest.raises(RolloutError, match="no release 99"):
        fleet.core.rollouts.plan(plans.of_document({"release": 99}), fleet.now)


def test_who_runs_a_release_already_is_waited_for_by_no_further_rollout_of_it(make: Make) -> None:
    """It went to some, and now to all; they take no notice of what they have."""
    fleet = make(6, gains(0.05))
    first = fleet.start_plan(select='id in ("d000", "d001", "d002")')
    fleet.pass_time(600)
    assert fleet.counts(first) == {"active": 3}
    plan = plans.of_document({"release": fleet.shown(first)["release"]})
    second = fleet.core.rollouts.start(plan, "ann", fleet.now, supersede=True).id
    fleet.pass_time(600)
    assert (fleet.state(second), fleet.counts(second)) == ("completed", {"active": 6})


def test_devices_that_come_later_get_it_last_and_re_flashed_ones_again(make: Make) -> None:
    fleet = make(3, ends("active"))
    rollout = fleet.push()
    fleet.pass_time(40, 10)
    fleet.devices["late"] = Device(fleet, "late", ends("active"))
    fleet.devices["late"].connect()
    fleet.pass_time(40, 10)
    assert fleet.counts(rollout) == {"active": 4}
    anew = Device(fleet, "d000", ends("active"))
    fleet.devices["d000"] = anew
    anew.connect()
    fleet.pass_time(40, 10)
    assert anew.release == 1


def test_forecast_says_who_and_what_gates_will_see(make: Make) -> None:
    fleet = make(200, ends("active"))
    kept = fleet.core.add_artifact(fleet.head, Path("/nonexistent"))
    fleet.core.releases.push(kept["digest"], kept["kind"], kept["backbone"], [], "t", fleet.now, at_once=False)
    found = fleet.core.rollouts.plan(plans.of_document({"release": 1, "select": 'id ~ "d0*"'}), fleet.now)
    assert [(w["devices"], w["cumulative"], w["gate"]) for w in found["waves"]] == [
        (10, 10, "screen"), (15, 25, "screen"), (25, 50, "model"), (50, 100, "screen"),
    ]  # fmt: skip
    assert found["bytes"] == 100 * len(fleet.head)
    fleet.pass_time(60, 15)
    assert fleet.touched == 0, "a plan changes nothing"


def test_a_made_up_sum_of_pairs_is_not_counted(make: Make) -> None:
    fleet = make(1, ends("active", "", Pairs(labelled=10, only_new=4000.0, compared=1, differ=5)))
    rollout = fleet.push()
    fleet.pass_time(120)
    assert fleet.shown(rollout)["targets"][0]["pairs"]["only_new"] == 0


def test_who_did_what_and_why_is_kept(make: Make) -> None:
    fleet = make(8, ends("failed", "disk full"))
    rollout = fleet.push(who="ann")
    fleet.pass_time(40, 10)
    found = fleet.shown(rollout)
    assert (found["author"], found["state"]) == ("ann", "paused")
    moved = [(m["before"], m["event"], m["now"], m["who"]) for m in found["transitions"] if not m["subject"]]
    assert moved == [
        ("draft", "start", "ready", "ann"),
        ("ready", "due", "opening", ""),
        ("opening", "stop", "paused", ""),
    ]
    assert "disk full" in found["transitions"][-1]["why"]
    # Events of one moment come in the order in which one follows from the other.
    fleet.core.rollouts.order(rollout, E.RESUME, "bob", "a broken card", fleet.now)
    assert fleet.store is not None
    said = [each.detail for each in fleet.store.events.newest(100, name="rollout")[::-1]]
    assert said[:2] == [f"{rollout}: release 1 to 8 devices", f"{rollout}: draft -> ready"]
    assert said[-2:] == [
        f"{rollout}: resume by bob: a broken card",
        f"{rollout}: paused -> opening, a broken card",
    ]


class Killed(BaseException):
    """``kill -9`` between two writes."""


@pytest.mark.parametrize("behaviour", ["good", "bad"])
def test_killed_at_any_write_it_comes_to_the_same_end(
    make: Make, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """faults: 31. The process dies before the commit of each step, from the start to the end, and another goes on."""
    plan: dict[str, Any] = {"waves": ["50 %", "100 %"], "soak": ["1 min"]}
    do = ends("active") if behaviour == "good" else ends("failed", "NaN")
    wanted = ({"active": 2}, "completed") if behaviour == "good" else ({"failed": 1, "waiting": 1}, "paused")
    for at in itertools.count(1):
        fleet = make(2, do)
        rollout = fleet.start_plan(**plan)
        steps, is_step = 0, False
        assert fleet.store is not None
        save, engine = fleet.store.rollouts.save, fleet.store._database._engine

        def saves(*arguments: Any) -> bool:
            nonlocal is_step
            is_step = True
            return save(*arguments)  # noqa: B023  # called before the next turn

        def dies(_: Any) -> None:
            nonlocal steps, is_step
            steps, is_step = steps + is_step, False
            if steps == at:  # noqa: B023
                raise Killed

        monkeypatch.setattr(fleet.store.rollouts, "save", saves)
        sqlalchemy_event.listen(engine, "commit", dies)
        try:
            fleet.pass_time(300, 30)
            killed = False
        except Killed:
            killed = True
        sqlalchemy_event.remove(engine, "commit", dies)
        if killed:
            fleet.start()
            for device in fleet.devices.values():  # and says once more where it stands, as on each connection
                device.connect()
                if device.told and device.release:
                    for state, detail, pairs in do(device, device.told[-1])[-1:]:
                        device.state(device.told[-1], state, detail, pairs)
            fleet.pass_time(300, 30)
        assert (fleet.counts(rollout), fleet.state(rollout)) == wanted, f"killed at commit {at}"
        events = [m["event"] for m in fleet.shown(rollout)["transitions"] if not m["subject"]]
        assert events.count("pass") == (2 if behaviour == "good" else 0), "no wave is skipped"
        fleet.close()
        if not killed:
            break
    assert at > 3


def test_what_a_database_does_not_take_now_is_done_later(make: Make) -> None:
    """faults: 33, 51."""
    fleet = make(3, ends("active"))
    rollout = fleet.push()
    with sqlite3.connect(fleet.folder / "db.sqlite") as other:
        other.execute("DROP TABLE look")  # whatever is wrong with it
        other.execute("CREATE TABLE look (id INTEGER PRIMARY KEY)")
    fleet.pass_time(40, 10)
    with sqlite3.connect(fleet.folder / "db.sqlite") as other:
        other.execute("DROP TABLE look")
        other.execute(
            "CREATE TABLE look (id INTEGER PRIMARY KEY, rollout INTEGER, wave INTEGER, number INTEGER, decision TEXT, "
            "code TEXT, detail TEXT, at_ms INTEGER)"
        )
    fleet.pass_time(40, 10)
    assert (fleet.state(rollout), fleet.counts(rollout)) == ("completed", {"active": 3})
