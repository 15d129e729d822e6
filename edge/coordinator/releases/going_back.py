"""Going back: which release a rollback undoes, which one comes again, and what devices are given in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from edge.contract.digest import short
from edge.contract.errors import EdgeError, RolloutError
from edge.coordinator.records import Release
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.releases.forgotten import check_release, forgotten_in
from edge.coordinator.rollout.states import DESIRED, TAKEN_BACK
from edge.coordinator.store.store import Store
from edge.learning.exchange import HeadRelease
from edge.merging.groups import ALL_DEVICES


@dataclass(frozen=True, kw_only=True, slots=True)
class Brought:
    """What became of a release that a rollout brought.

    Attributes:
        rollout: The newest one of it.
        select: Whom its plan meant.
        is_completed: Whether one of them went through all waves, and nobody took it back since.
        is_taken_back: Whether somebody had the newest of them reverted.
        devices: That run it.
    """

    rollout: int
    select: str
    is_completed: bool
    is_taken_back: bool
    devices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Back:
    """What a rollback does.

    Attributes:
        undone: The release that it undoes.
        wanted: The one whose bytes come again.
        devices: Who gets them; `ALL_DEVICES` for all, also those to come.
    """

    undone: Release
    wanted: Release
    devices: tuple[str, ...]


def goes_back_to(releases: Sequence[Release], to: int, model: str, brought: Mapping[int, Brought]) -> Back:
    """The release that a rollback undoes, the one whose bytes come again, and for whom.

    One that restores another stands where that one stands: going back twice goes back further, and not forth again. So
    does what a revert of a rollout made: after it a rollback means all that ran what was there before that rollout, and
    not the last group that was brought back. What a rollout brought is gone back to only where it went through all
    waves; what somebody went back from only by name.

    Args:
        releases: All, newest first.
        to: The one to go back to; 0 for the one before.
        model: Of which model the newest release is to be undone; "" for the newest of all.
        brought: Of those that a rollout brought, what became of them.

    Raises:
        RolloutError: There is nothing to go back to.
    """
    by_counter = {each.counter: each for each in releases}
    if to and to not in by_counter:
        raise RolloutError(f"there is no release {to}; `edge-fleet release list` shows them")
    found = (
        each
        for each in releases
        if model in ("", each.model) and _is_given(each, brought) and (not to or is_alike(each, by_counter[to]))
    )
    undone = next(found, None)
    if undone is None:
        raise RolloutError(f"there is no release{for_model(model)} to go back from")
    gone = undone_by_rollbacks(releases, brought)
    stands = _stands_for(undone, releases, brought, gone)
    if to:
        wanted, devices = by_counter[to], _reached(undone, stands, releases, brought)
        if {each.digest for each in (*_together(undone, releases), stands or undone)} == {wanted.digest}:
            raise RolloutError(f"release {undone.counter} is the newest of its kind, and has the bytes of {to} already")
        return Back(undone=undone, wanted=wanted, devices=devices)
    own = brought.get(undone.counter)
    if own is not None and not own.devices:
        raise RolloutError(
            f"no device runs release {undone.counter}, the newest: rollout {own.rollout} has brought it to none, so "
            f"there is nothing to go back from. `edge-fleet rollout status {own.rollout}` shows why; --to "
            f"names a release to have again all the same"
        )
    before = None if stands is None else _before(stands, undone, releases, brought, gone)
    if before is None:
        place = undone.undoes if stands is None else stands.counter
        revert = ""
        if own is not None and stands is undone and not own.is_taken_back:
            revert = f"take it back by `edge-fleet rollout revert {own.rollout}`, "
        raise RolloutError(
            f"before release {place} nothing of its kind was pushed to the same devices; {revert}name with --to which "
            f"release they should have again (`edge-fleet release list`), or push the file that they came with"
        )
    wanted = by_counter.get(before.restores, before)
    return Back(undone=undone, wanted=wanted, devices=_reached(undone, stands, releases, brought))


def is_way_back(release: Release) -> bool:
    """Whether it brings older bytes back after a rollout: nobody chose them, as in a rollback."""
    return bool(release.undoes) and not release.restores


def _is_given(release: Release, brought: Mapping[int, Brought]) -> bool:
    """Whether devices were given a release, so that it can be gone back from.

    Not where it is the way back of single ones that were taken out of a rollout which goes on.
    """
    if is_way_back(release) and release.devices:
        taken = brought.get(release.undoes)
        return taken is None or taken.is_taken_back
    return bool(release.devices) or release.counter in brought


def _stands_for(
    release: Release, releases: Sequence[Release], brought: Mapping[int, Brought], gone: Set[int]
) -> Release | None:
    """The release in whose place one stands: what it restores, else itself; None where nothing stood there."""
    by_counter = {each.counter: each for each in releases}
    if not is_way_back(release):
        return by_counter.get(release.restores, release)
    taken = by_counter.get(release.undoes)
    return None if taken is None else _before(taken, taken, releases, brought, gone)


def _before(
    place: Release, undone: Release, releases: Sequence[Release], brought: Mapping[int, Brought], gone: Set[int]
) -> Release | None:
    """The newest release below a place that those had for whom one is undone, and that nobody went back from."""
    return next(
        (
            each
            for each in releases
            if each.counter < place.counter
            and each.counter not in gone
            and not is_way_back(each)
            and is_alike(each, place)
            and (_had(each, place, brought) or (not is_way_back(undone) and _same_devices(each, undone)))
        ),
        None,
    )


def undone_by_rollbacks(releases: Sequence[Release], brought: Mapping[int, Brought]) -> set[int]:
    """Counters of those that a rollback undid, and none brought again; releases are newest first.

    What a reverted rollout brought is none of them: its state says so. Nor is what somebody left for a newer one.
    """
    by_counter, found = {each.counter: each for each in releases}, set[int]()
    for each in reversed(releases):
        if not each.undoes or (is_way_back(each) and each.devices):
            continue
        undone = by_counter.get(each.undoes)
        stands = None if undone is None else _stands_for(undone, releases, brought, found)
        if stands is None or each.restores < stands.counter:
            found |= {each.undoes} if stands is None else {each.undoes, stands.counter}
        found.discard(each.restores)
    return found


def _same_devices(one: Release, other: Release) -> bool:
    return bool(one.devices) and one.devices == other.devices


def _had(before: Release, original: Release, brought: Mapping[int, Brought]) -> bool:
    """Whether those that a release was meant for had another one before.

    Args:
        before: That one.
        original: The release.
        brought: See `goes_back_to`.
    """
    if _same_devices(before, original):
        return True
    by_rollout, earlier = brought.get(original.counter), brought.get(before.counter)
    if earlier is not None:
        return earlier.is_completed and earlier.select in ("", None if by_rollout is None else by_rollout.select)
    return by_rollout is not None and before.devices == (ALL_DEVICES,)


def _together(undone: Release, releases: Sequence[Release]) -> list[Release]:
    """What one revert made, of which a release is one; else that alone."""
    if not is_way_back(undone):
        return [undone]
    return [each for each in releases if is_way_back(each) and each.undoes == undone.undoes]


def _reached(
    undone: Release, stands: Release | None, releases: Sequence[Release], brought: Mapping[int, Brought]
) -> tuple[str, ...]:
    """For whom going back from a release is."""
    together = _together(undone, releases)
    if is_way_back(undone) and stands is not None:
        together.append(stands)
    found = set[str]()
    for each in together:
        found.update(each.devices or (brought[each.counter].devices if each.counter in brought else ()))
    if ALL_DEVICES in found or not found:
        return (ALL_DEVICES,)
    return undone.devices if found == set(undone.devices) else tuple(sorted(found))


def is_alike(one: Release, other: Release) -> bool:
    """Whether they are for the same slot: one would take the place of the other."""
    same = one.kind == other.kind and one.model == other.model
    return same and (one.kind == "bundle" or one.backbone == other.backbone)


def older_bytes(artifacts: ArtifactStore, undone: str, older: str) -> str:
    """The artifact that brings an older head back in the place of another one.

    A merge competes with what a device has: it would leave a head that replaced everything where it is. Then it comes
    back as a head that replaces, too.

    Args:
        artifacts: Files by digest.
        undone: Digest of the head that is to go.
        older: Digest of the one that is to be there again.

    Returns:
        The digest of what to push.

    Raises:
        EdgeError: The older one is missing or changed on disk.
    """
    before = HeadRelease.decode(artifacts.get(older).path.read_bytes(), short(older))
    try:
        is_to_replace = not HeadRelease.decode(artifacts.get(undone).path.read_bytes(), short(undone)).competes
    except EdgeError:  # what is to go need not be here
        is_to_replace = True
    if before.competes and is_to_replace:
        return artifacts.put(replace(before, is_rival=False).encode()).digest
    return older


def is_last(
    releases: Sequence[Release], undone: Release, wanted: Release, model: str, brought: Mapping[int, Brought]
) -> bool:
    """Whether these are the bytes from before the release that is undone, so that what devices kept will do."""
    try:
        found = goes_back_to(releases, 0, model, brought)
    except RolloutError:
        return False
    return (found.undone.counter, found.wanted.digest) == (undone.counter, wanted.digest)


def check_remembers(
    store: Store, artifacts: ArtifactStore, release: Release, undone: Release, brought: Mapping[int, Brought]
) -> None:
    """Raise RolloutError where a head has something in that was forgotten, and name the newest that has not."""
    if release.kind != "head" or not forgotten_in(store, artifacts, release.digest):
        return
    releases = store.releases.all()
    gone = {release.digest, undone.digest} | {e.digest for e in releases if e.counter in {r.undoes for r in releases}}
    newest = next(
        (
            each.counter
            for each in releases
            if is_alike(each, release)
            and each.digest not in gone
            and (each.devices or (each.counter in brought and brought[each.counter].is_completed))
            and not forgotten_in(store, artifacts, each.digest)
        ),
        0,
    )
    cure = f"the newest other one without it is release {newest}: --to {newest}" if newest else ""
    if not newest and not forgotten_in(store, artifacts, undone.digest):
        cure = f"release {undone.counter}, the newest, is without it"
    check_release(store, artifacts, release, cure)


def brought_by_rollouts(store: Store) -> dict[int, Brought]:
    """By release, what became of those that rollouts brought."""
    completed, running = store.rollouts.completed(), dict[int, set[str]]()
    for rollout, target in store.rollouts.of_devices():
        if target.state in DESIRED:
            running.setdefault(rollout.plan.release, set()).add(target.device)
    found: dict[int, Brought] = {}
    for rollout in store.rollouts.all():  # newest first
        counter = rollout.plan.release
        first = found.get(counter)
        found[counter] = Brought(
            rollout=rollout.id if first is None else first.rollout,
            select=rollout.plan.select,
            is_completed=(rollout.id in completed and rollout.state not in TAKEN_BACK)
            or (first is not None and first.is_completed),
            is_taken_back=rollout.state in TAKEN_BACK if first is None else first.is_taken_back,
            devices=tuple(sorted(running.get(counter, ()))),
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Fates:
    """What became of what was released.

    A release stands that went to all at once, or through all waves of a rollout, and that nobody took back since. One
    fell that only rollouts brought none of which went through, or that a revert or a rollback took back.

    Attributes:
        standing: Counters of releases that stand.
        fallen: Of those that fell.
        stood: Digests of files of which a release stands.
        fell: Of those of which releases fell, and none stands: nobody is given them again who did not name them.
    """

    standing: frozenset[int]
    fallen: frozenset[int]
    stood: frozenset[str]
    fell: frozenset[str]


def fates(store: Store) -> Fates:
    """What became of all that was released."""
    brought, releases = brought_by_rollouts(store), store.releases.all()
    gone, standing, fallen = undone_by_rollbacks(releases, brought), set[int](), set[int]()
    for each in releases:
        own = brought.get(each.counter)
        if each.counter in gone or (own is not None and not own.is_completed):
            fallen.add(each.counter)
        elif own is not None or (each.devices and not is_way_back(each)):  # what a revert made nobody chose
            standing.add(each.counter)
    stood = frozenset(each.digest for each in releases if each.counter in standing)
    fell = frozenset(each.digest for each in releases if each.counter in fallen) - stood
    return Fates(standing=frozenset(standing), fallen=frozenset(fallen), stood=stood, fell=fell)


def for_model(model: str) -> str:
    """A model, behind what is said of a release; nothing where its backbone decides."""
    return f" for the model {model!r}" if model else ""
