"""What was held, reverted, rolled back or stopped comes back by no way that does not name it and say ``--force``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.channel.messages import Conn, Desired, Pairs
from edge.contract.bundle import Bundle, write_bundle
from edge.contract.errors import RolloutError
from edge.coordinator.records import KeptCheckpoint, Model, Release
from edge.coordinator.releases.going_back import fates
from edge.coordinator.releases.leftover import left, leftovers
from edge.coordinator.rollout.states import RolloutEvent, RolloutState
from edge.coordinator.rollout.step import Rollout, Target
from edge.learning.exchange import HeadRelease
from tests.support.light_fleet import Device, Fleet, ends

Make = Callable[[], Fleet]
Bring = Callable[[Fleet, str], tuple[str, str, str]]


@pytest.fixture
def make(tmp_path: Path, digits_bundle: Path) -> Iterator[Make]:
    made: list[Fleet] = []

    def new() -> Fleet:
        made.append(Fleet(tmp_path / str(len(made)), digits_bundle, 4, ends("active")))
        for device in made[-1].devices.values():
            _comes(device)
        return made[-1]

    yield new
    for each in made:
        each.close()


def _comes(device: Device) -> None:
    """It runs the bundle of the fleet."""
    device.bundle = Bundle.open(device.fleet.bundle_path).digest
    device.connect()


def head(fleet: Fleet, name: str) -> tuple[str, str, str]:
    """A head of that name, as it was taken in."""
    kept = fleet.core.add_artifact(replace(HeadRelease.decode(fleet.head, ""), origin=name).encode(), Path(name))
    return kept["digest"], kept["kind"], kept["backbone"]


def bundle(fleet: Fleet, name: str) -> tuple[str, str, str]:
    """The bundle of the fleet under another name."""
    opened, path = Bundle.open(fleet.bundle_path), fleet.folder / f"{name}.edge"
    blobs = {role: opened.read(role) for role in opened.manifest.members}
    write_bundle(path, replace(opened.manifest, created_by=name), blobs)
    kept = fleet.core.add_artifact(path.read_bytes(), path)
    return kept["digest"], kept["kind"], kept["backbone"]


def ordered(fleet: Fleet, number: int, event: RolloutEvent) -> None:
    fleet.core.rollouts.order(number, event, "ann", "worse", fleet.now)
    fleet.pass_time(40, 10)


def completes(fleet: Fleet, what: tuple[str, str, str]) -> int:
    number = _starts(fleet, what, waves=["100 %"], soak=["0 s"])
    assert fleet.state(number) == "completed"
    return number


def _starts(fleet: Fleet, what: tuple[str, str, str], **plan: Any) -> int:
    release = fleet.core.push(*what, [], "test", fleet.now, at_once=False)
    made = fleet.plan(release=release.counter, model="off", **({"health": {"quorum": 0.0}} | plan))
    number = fleet.core.rollouts.start(made, "ann", fleet.now, supersede=True).id
    fleet.pass_time(60, 10)
    return number


def _canaries(fleet: Fleet, what: tuple[str, str, str]) -> int:
    """It is live on half of the fleet, and soaks."""
    number = _starts(fleet, what, waves=["50 %", "100 %"], soak=["1 d"])
    assert 1 <= fleet.counts(number)["active"] <= 2
    return number


def _at_once(fleet: Fleet, what: tuple[str, str, str]) -> None:
    fleet.core.push(*what, [], "bad", fleet.now)
    fleet.pass_time(40, 10)
    fleet.core.rollback(fleet.now)


FALLS: dict[str, Callable[[Fleet, tuple[str, str, str]], object]] = {
    "paused": lambda fleet, what: ordered(fleet, _canaries(fleet, what), RolloutEvent.PAUSE),
    "aborted": lambda fleet, what: ordered(fleet, _canaries(fleet, what), RolloutEvent.ABORT),
    "reverted while it soaked": lambda fleet, what: ordered(fleet, _canaries(fleet, what), RolloutEvent.REVERT),
    "reverted": lambda fleet, what: ordered(fleet, completes(fleet, what), RolloutEvent.REVERT),
    "rolled back": lambda fleet, what: (completes(fleet, what), fleet.core.rollback(fleet.now)),
    "rolled back, all at once": _at_once,
}
RUN_BY_CANARIES = ("paused", "aborted")


def digests(fleet: Fleet) -> set[str]:
    """Of what devices should run."""
    fleet.pass_time(60, 10)
    return {wanted(fleet, name) for name in fleet.devices}


def wanted(fleet: Fleet, name: str) -> str:
    """Digest of what a device should run; "" for what it came with."""
    return next((each.release.digest for each in fleet.core.releases.wanted(name)), "")


@pytest.mark.parametrize(
    ("fall", "bring"),
    [*((fall, head) for fall in FALLS), ("paused", bundle), ("reverted", bundle), ("rolled back", bundle)],
)
def test_what_fell_comes_back_by_no_way(make: Make, fall: str, bring: Bring) -> None:
    fleet = make()
    first = bring(fleet, "first")
    completes(fleet, first)
    away = _leaves(fleet, "d003")
    bad = bring(fleet, "bad")
    FALLS[fall](fleet, bad)
    assert fleet.store is not None
    assert bad[0] in fates(fleet.store).fell
    number = next(each.counter for each in fleet.store.releases.all() if each.digest == bad[0])

    # A device that comes later, and one that was away.
    fleet.devices |= {"d003": away, "late": Device(fleet, "late", ends("active"))}
    away.connect()
    _comes(fleet.devices["late"])
    fleet.pass_time(120, 10)
    assert bad[0] not in (wanted(fleet, "late"), wanted(fleet, "d003"))

    # By name, and by another number of the same file.
    again = fleet.core.push(*bad, [], "again", fleet.now, at_once=False)
    for to in (number, again.counter):
        with pytest.raises(RolloutError, match=r"would go to all at once, and it .* --force|has the bytes of"):
            fleet.core.rollback(fleet.now, to=to)

    # By a revert and by a rollback of what came after it.
    for back in ("revert", "rollback"):
        after = completes(fleet, bring(fleet, f"after it, {back}"))
        if back == "revert":
            ordered(fleet, after, RolloutEvent.REVERT)
        else:
            fleet.core.rollback(fleet.now)
        assert bad[0] not in digests(fleet), back
        assert wanted(fleet, "d000") == first[0]
    assert fleet.core.rollback(fleet.now, to=number, force=True).digest == bad[0], "who names it has it"


@pytest.mark.parametrize("fall", RUN_BY_CANARIES)
def test_a_device_that_kept_what_fell_is_told_to_have_the_very_head_of_a_rollback(make: Make, fall: str) -> None:
    """What it was before the release that is undone is not what the others were."""
    fleet = make()
    completes(fleet, head(fleet, "first"))
    FALLS[fall](fleet, head(fleet, "bad"))
    canaries = {name for name, device in fleet.devices.items() if device.release == 2}
    completes(fleet, head(fleet, "third"))
    fleet.core.rollback(fleet.now)
    fleet.pass_time(40, 10)
    assert {name for name, device in fleet.devices.items() if device.told[-1].anew} == canaries
    assert len(canaries) == 2


def test_a_rollback_after_a_revert_means_all_that_ran_what_was_there_before_it(make: Make) -> None:
    """A revert makes a release for each group; the newest of them is no more than that."""
    fleet = make()
    zeroth, first = head(fleet, "zeroth"), head(fleet, "first")
    completes(fleet, zeroth)
    completes(fleet, first)
    FALLS["aborted"](fleet, head(fleet, "held"))  # two run it, so that the revert of the next makes two groups
    number = completes(fleet, head(fleet, "third"))
    out = fleet.core.rollouts
    out.exclude(number, "d003", "ann", "odd", fleet.now)
    fleet.pass_time(60, 10)
    assert fleet.core.releases.back().undone.counter == 4, "not what brought a single one back"
    ordered(fleet, number, RolloutEvent.REVERT)
    assert fleet.store is not None
    groups = [each.devices for each in fleet.store.releases.all() if each.undoes]
    assert sorted(name for names in groups for name in names) == sorted(fleet.devices)
    assert len(groups) > 1
    back = fleet.core.releases.back()
    assert (back.wanted.counter, sorted(back.devices)) == (1, sorted(fleet.devices))
    for to in (0, 1):
        assert fleet.core.releases.back(to=to) == back
    with pytest.raises(RolloutError, match="has the bytes of 2 already"):
        fleet.core.releases.back(to=2)
    fleet.core.rollback(fleet.now)
    assert digests(fleet) == {zeroth[0]}
    with pytest.raises(RolloutError, match="before release 1 nothing"):
        fleet.core.rollback(fleet.now)


def test_who_goes_back_twice_does_not_answer_with_what_was_undone_first(make: Make) -> None:
    fleet = make()
    for name in ("first", "second", "third"):
        completes(fleet, head(fleet, name))
    told = []
    for _ in range(2):
        fleet.core.rollback(fleet.now)
        fleet.pass_time(40, 10)
        told.append({device.told[-1].anew for device in fleet.devices.values()})
    assert told == [{False}, {True}], "what it kept of the time before the first rollback is the third"


def test_a_late_word_brings_nothing_back_that_was_reverted_meanwhile(make: Make) -> None:
    """A device has activated the release before it hears that it is taken back."""
    fleet = make()
    completes(fleet, head(fleet, "first"))
    before = fleet.devices["d000"].told[-1].digest
    number = _canaries(fleet, head(fleet, "bad"))
    assert fleet.store is not None
    waits = next(each for each in fleet.store.rollouts.targets(number) if each.state == "waiting")
    ordered(fleet, number, RolloutEvent.REVERT)
    assert fleet.state(number) == "reverted"
    device, bad = fleet.devices[waits.device], fleet.shown(number)["release"]
    _set(fleet, number, replace(waits, state=type(waits.state).SUPERSEDED, former=before))  # offered, and taken back
    desired = replace(device.told[-1], release=bad, digest="f" * 64)
    device.release = bad
    device.state(desired, "active", "probation: accuracy", Pairs())
    fleet.pass_time(40, 10)
    assert fleet.counts(number) == {"reverted": 3, "superseded": 1}
    assert device.told[-1].digest == before
    assert device.release > bad


def _leaves(fleet: Fleet, name: str) -> Device:
    """A device that is away for long enough that nobody waits for it."""
    device = fleet.devices.pop(name)
    device.say("up/conn", Conn(online=False, session=1, boot=1, ts_ms=0, state_id="a" * 16))
    fleet.pass_time(2 * 86_400, 43_200)
    for each in fleet.devices.values():
        each.connect()
    return device


def _set(fleet: Fleet, number: int, target: Target) -> None:
    assert fleet.store is not None
    rollout = fleet.store.rollouts.get(number)
    assert rollout is not None
    assert fleet.store.rollouts.save(rollout, rollout, [target])


def test_while_it_goes_back_nobody_is_offered_the_release_again(make: Make) -> None:
    fleet = make()
    completes(fleet, head(fleet, "first"))

    def fails(device: Device, desired: Desired) -> list[tuple[str, str, Pairs | None]]:
        return ends("failed" if desired.undoes or device.name == "d000" else "active")(device, desired)

    for device in fleet.devices.values():
        device.behaviour = fails
    number = _starts(fleet, head(fleet, "bad"), waves=["100 %"], soak=["0 s"], health={"pause": [1.0, 9]})
    assert fleet.counts(number) == {"active": 3, "failed": 1}
    fleet.core.rollouts.order(number, RolloutEvent.REVERT, "ann", "worse", fleet.now)
    with pytest.raises(RolloutError, match="has no failed device to try again"):
        fleet.core.rollouts.order(number, RolloutEvent.RETRY, "ann", "", fleet.now)
    assert fleet.counts(number) == {"reverting": 3, "failed": 1}


def test_a_revert_leaves_those_alone_that_run_what_a_newer_rollout_brought(make: Make) -> None:
    fleet = make()
    completes(fleet, head(fleet, "first"))
    aborted = _canaries(fleet, head(fleet, "second"))
    ordered(fleet, aborted, RolloutEvent.ABORT)
    third = head(fleet, "third")
    completes(fleet, third)
    with pytest.raises(RolloutError, match="no device runs release 2 of rollout 2 any more"):
        fleet.core.rollouts.order(aborted, RolloutEvent.REVERT, "ann", "", fleet.now)
    assert digests(fleet) == {third[0]}


def test_who_runs_what_was_stopped_is_known_and_taken_back_also_after_a_newer_one_was_stopped(make: Make) -> None:
    fleet = make()
    first = head(fleet, "first")
    completes(fleet, first)
    assert fleet.store is not None
    older = _canaries(fleet, head(fleet, "bad"))
    assert leftovers(fleet.store) == {}, "it is under way"
    runs = {each.key for each in fleet.store.rollouts.targets(older) if each.state == "active"}
    fleet.core.rollouts.order(older, RolloutEvent.PAUSE, "ann", "", fleet.now)
    assert leftovers(fleet.store).keys() == runs
    newer = _starts(fleet, head(fleet, "next"), start={"at": "2030-01-01T00:00:00Z"})
    assert fleet.state(older) == "superseded"
    assert {each.id for each in leftovers(fleet.store).values()} == {older}
    with pytest.raises(RolloutError, match=rf"rollout {newer} \(ready\) brings release 3 to the same devices"):
        fleet.core.rollouts.order(older, RolloutEvent.REVERT, "ann", "", fleet.now)
    ordered(fleet, newer, RolloutEvent.ABORT)
    assert leftovers(fleet.store).keys() == runs
    ordered(fleet, older, RolloutEvent.REVERT)
    assert leftovers(fleet.store) == {}
    assert (fleet.counts(older)["reverted"], digests(fleet)) == (2, {first[0]})


def test_a_merge_leaves_what_fell_where_it_is_so_it_is_shown_and_taken_back_as_before(make: Make) -> None:
    """What competes joins what is there."""
    fleet = make()
    first = head(fleet, "first")
    completes(fleet, first)
    number = _canaries(fleet, head(fleet, "bad"))
    ordered(fleet, number, RolloutEvent.ABORT)
    assert fleet.store is not None
    runs = leftovers(fleet.store).keys()
    fleet.core.push(*head(fleet, "merge"), [], "merge of 2 devices", fleet.now)
    fleet.pass_time(60, 10)
    assert leftovers(fleet.store).keys() == runs
    last = completes(fleet, head(fleet, "last"))
    assert leftovers(fleet.store) == {}
    fleet.core.push(*head(fleet, "merge, too"), [], "merge of 3 devices", fleet.now)
    fleet.pass_time(60, 10)
    assert leftovers(fleet.store) == {}, "it went with what took its place"
    fleet.core.rollouts.order(last, RolloutEvent.REVERT, "ann", "", fleet.now)
    fleet.pass_time(60, 10)
    assert leftovers(fleet.store) == {}
    assert {(name, "digits") for name, device in fleet.devices.items() if device.told[-1].anew} == runs


@pytest.mark.parametrize(
    ("own", "newest", "state", "stays"),
    [
        ("pushed", "pushed", "active", True),
        ("pushed", "next", "active", False),
        ("pushed", "next", "refused", True),
        ("pushed", "merge", "active", True),
        ("merge", "merge, too", "active", False),
        ("merge", "next", "probation", False),
        ("pushed", "bundle", "active", False),
        ("bundle", "next", "active", True),
        ("bundle", "merge", "active", True),
        ("of another backbone", "merge", "active", False),
        ("pushed", "way back", "active", False),
    ],
)
def test_what_stays_of_what_a_stopped_rollout_brought(own: str, newest: str, state: str, stays: bool) -> None:
    def release(name: str, counter: int) -> Release:
        is_merge = name.startswith("merge")
        return Release(
            counter=counter, kind="bundle" if name == "bundle" else "head", digest=name, devices=(), created_ms=0,
            backbone="other" if "another" in name else "b", reason="merge of 3 devices" if is_merge else "by hand",
            file="" if is_merge or name == "way back" else name, undoes=7 if name == "way back" else 0,
        )  # fmt: skip

    newer = 3 if newest == own else 5
    releases = {3: release(own, 3), newer: release(newest, newer)}
    stopped = Rollout(
        id=1, plan=Fleet.plan(release=3), kind=releases[3].kind, seed="", n_selected=1, state=RolloutState.ABORTED
    )
    model = Model(device="cam", model="m", backbone="b", release=newer, state=state, state_release=newer)
    assert bool(left([(stopped, ("cam", "m"))], [model], releases)) is stays


def test_a_checkpoint_that_was_made_with_what_fell_is_taken_up_with_force_only(make: Make) -> None:
    fleet = make()
    completes(fleet, head(fleet, "first"))
    number = completes(fleet, head(fleet, "bad"))
    ordered(fleet, number, RolloutEvent.REVERT)
    assert fleet.store is not None
    newest: Release = fleet.store.releases.all()[0]
    for i, counter in enumerate((2, newest.counter)):
        kept = KeptCheckpoint(
            device="d000", model="digits", digest=f"{i}" * 64, backbone=fleet.backbone, lineage="l", learners="",
            samples=9, release=counter, made_ms=i, received_ms=i, has_samples=True, sealed_to="", size_bytes=1,
        )  # fmt: skip
        fleet.store.checkpoints.keep(kept)
    with pytest.raises(RolloutError, match=r"made with the head of release 2, which .* or say --force"):
        fleet.core.checkpoints.restore("d000", "d000", fleet.now, digest="0")
    assert fleet.core.checkpoints.restore("d000", "d000", fleet.now, digest="0", force=True).state == "open"
    assert fleet.core.checkpoints.restore("d000", "d000", fleet.now, digest="1").state == "open"
