"""What was forgotten comes back by no way: not by a rollback, a push, a rollout, or the way back of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.contract.errors import RolloutError
from edge.coordinator.records import Release
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.states import RolloutEvent
from edge.learning.exchange import HeadRelease
from tests.support.contributions import Make, bundle, policy_of, statistics_update
from tests.support.light_fleet import Fleet, ends

NewFleet = Callable[..., Fleet]
__all__ = ["bundle", "statistics_update"]


@pytest.fixture
def new(tmp_path: Path, digits_bundle: Path) -> Iterator[NewFleet]:
    made: list[Fleet] = []

    def make(n: int = 3, **options: Any) -> Fleet:
        options = {"policy": policy_of(screen=False), **options}
        made.append(Fleet(tmp_path / str(len(made)), digits_bundle, n, ends("active"), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def merge(fleet: Fleet, make: Make, *names: int) -> Release:
    """A merge of what these devices learned, with all devices."""
    for i in names:
        fleet.core.learning.take(f"d{i:03}", make(i).encode(), fleet.now)
    (release,) = fleet.core.merge_now(fleet.now, supersede=True)
    fleet.pass_time(20, 5)
    return release


def releases(fleet: Fleet) -> list[Release]:
    """Newest first."""
    assert fleet.store is not None
    return list(fleet.store.releases.all())


def included(fleet: Fleet, release: Release) -> dict[str, int]:
    return fleet.core.receipts.included(release)


def running(fleet: Fleet) -> set[int]:
    return {device.release for device in fleet.devices.values()}


def test_no_way_of_giving_a_head_gives_one_that_has_something_forgotten_in(
    new: NewFleet, statistics_update: Make
) -> None:
    fleet = new()
    had = merge(fleet, statistics_update, 0, 1)
    kept = fleet.core.releases.artifact(had.counter).path.read_bytes()
    # One that was made before, and that nobody was given yet.
    what = (had.digest, "head", had.backbone)
    added = fleet.core.push(*what, [], "added", fleet.now, at_once=False)
    fleet.core.forget("d000", fleet.now)
    without = merge(fleet, statistics_update)
    rival = replace(HeadRelease.decode(kept, ""), is_rival=True)
    fleet.core.add_artifact(rival.encode(), Path("head"))
    before = releases(fleet)

    def start() -> None:
        fleet.core.rollouts.start(plans.of_document({"release": added.counter}), "ann", fleet.now)

    ways: dict[str, Callable[[], object]] = {
        "rollback": lambda: fleet.core.rollback(fleet.now),
        "rollback --to": lambda: fleet.core.rollback(fleet.now, to=had.counter),
        "rollback --plan": fleet.core.releases.back,
        "rollback --plan --to --force": lambda: fleet.core.releases.back(to=had.counter, force=True),
        "push": lambda: fleet.core.roll_out(*what, [], "again", fleet.now),
        "push --force": lambda: fleet.core.roll_out(*what, [], "again", fleet.now, force=True),
        "push --all-at-once": lambda: fleet.core.push(*what, [], "again", fleet.now),
        "push to one": lambda: fleet.core.push(*what, ["d001"], "again", fleet.now),
        "release add": lambda: fleet.core.push(*what, [], "again", fleet.now, at_once=False),
        "rollout start": start,
        "rollout plan": lambda: fleet.core.rollouts.plan(plans.of_document({"release": added.counter}), fleet.now),
        "from above": lambda: fleet.core.release_merge(rival, "release 3 of the fleet above", fleet.now),
    }
    for name, way in ways.items():
        with pytest.raises(RolloutError, match="what d000 learned, which was forgotten since: nobody is given it"):
            way()
        assert releases(fleet) == before, f"{name} made nothing"
    # What has nothing of it in is given as ever.
    assert fleet.core.push(without.digest, *what[1:], [], "again", fleet.now).counter == without.counter + 1


def test_a_rollback_that_is_refused_names_the_newest_head_that_has_it_not_in(
    new: NewFleet, statistics_update: Make
) -> None:
    fleet = new()
    first = merge(fleet, statistics_update, 0)
    had = merge(fleet, statistics_update, 1)
    fleet.core.forget("d001", fleet.now)
    merge(fleet, statistics_update, 2)
    with pytest.raises(RolloutError, match=f"newest other one without it is release {first.counter}: --to 1$"):
        fleet.core.rollback(fleet.now, to=had.counter)
    assert fleet.core.rollback(fleet.now, to=first.counter).digest == first.digest
    fleet.core.forget("d000", fleet.now)
    newest = merge(fleet, statistics_update)
    with pytest.raises(RolloutError, match=f"again; release {newest.counter}, the newest, is without it"):
        fleet.core.rollback(fleet.now)


@pytest.mark.parametrize("has_another", [True, False])
def test_a_revert_goes_past_what_was_forgotten_to_the_newest_head_without_it(
    new: NewFleet, statistics_update: Make, has_another: bool
) -> None:
    fleet = new()
    if has_another:  # that has nothing of it in, and one after it that was taken back
        other = merge(fleet, statistics_update, 1)
        bad = replace(HeadRelease.decode(fleet.head, ""), origin="bad").encode()
        kept = fleet.core.add_artifact(bad, Path("bad"))
        fleet.core.push(kept["digest"], "head", kept["backbone"], [], "bad", fleet.now)
        fleet.pass_time(20, 5)
        fleet.core.rollback(fleet.now)
        fleet.pass_time(20, 5)
    had = merge(fleet, statistics_update, 0)
    number = fleet.push()
    fleet.pass_time(40, 10)
    assert fleet.state(number) == "completed"
    fleet.core.forget("d000", fleet.now)  # and no merge without it comes first
    fleet.core.rollouts.order(number, RolloutEvent.REVERT, "ann", "worse", fleet.now)
    fleet.pass_time(40, 10)
    back = releases(fleet)[0]
    assert (fleet.state(number), fleet.counts(number)) == ("reverted", {"reverted": 3})
    assert running(fleet) == {back.counter}
    assert back.digest != had.digest
    head = HeadRelease.decode(fleet.core.releases.artifact(back.counter).path.read_bytes(), "")
    shipped = HeadRelease.decode(fleet.head, "").parameters
    is_shipped = all((head.parameters[name] == array).all() for name, array in shipped.items())
    assert is_shipped is not has_another
    if has_another:
        assert set(head.included) == set(included(fleet, other))
    assert "has in it what d000 learned" in back.reason
    # Devices must not take up what they kept of the time before either.
    assert all(device.told[-1].anew and device.told[-1].undoes for device in fleet.devices.values())


def test_forgetting_ends_rollouts_of_heads_that_have_it_in_and_waits_for_no_other_of_them(
    new: NewFleet, statistics_update: Make
) -> None:
    fleet = new(auto_merge=True, merge_delay_s=1e6)
    had = merge(fleet, statistics_update, 0, 1)
    rollout = fleet.core.roll_out(had.digest, "head", had.backbone, [], "again", fleet.now, force=True)[1]
    fleet.core.rollouts.order(rollout.id, RolloutEvent.PAUSE, "ann", "", fleet.now)
    done = fleet.core.forget("d000", fleet.now)
    assert (done["ended"], done["merge"]) == ([rollout.id], "now")
    assert fleet.state(rollout.id) == "aborted"
    assert "has in it what d000 learned" in fleet.shown(rollout.id)["reason"]
    fleet.pass_time(20, 5)
    newest = releases(fleet)[0]
    assert len(included(fleet, newest)) == 1
    assert running(fleet) == {newest.counter}
    # One of another head goes on, and the merge waits for it as ever.
    other = fleet.push()
    fleet.core.rollouts.order(other, RolloutEvent.PAUSE, "ann", "", fleet.now)
    done = fleet.core.forget("d001", fleet.now)
    assert (done["ended"], done["merge"], fleet.state(other)) == ([], "waits", "paused")


def test_after_a_rollback_a_push_that_is_undone_too_does_not_bring_back_what_was_undone_first(new: NewFleet) -> None:
    fleet, made = new(), []
    for origin in ("good", "bad"):
        kept = fleet.core.add_artifact(replace(HeadRelease.decode(fleet.head, ""), origin=origin).encode(), Path("h"))
        made.append(fleet.core.push(kept["digest"], "head", kept["backbone"], [], origin, fleet.now))
    first = fleet.core.rollback(fleet.now)
    kept = fleet.core.add_artifact(replace(HeadRelease.decode(fleet.head, ""), origin="bad, too").encode(), Path("h"))
    fleet.core.push(kept["digest"], "head", kept["backbone"], [], "bad, too", fleet.now)
    second = fleet.core.rollback(fleet.now)
    assert (first.digest, second.digest, second.restores) == (made[0].digest, made[0].digest, made[0].counter)
    with pytest.raises(RolloutError, match="before release 1 nothing"):  # going back twice goes back further
        fleet.core.rollback(fleet.now)
