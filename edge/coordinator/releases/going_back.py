"""Going back: which release a rollback undoes, which one comes again, and what devices are given in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        devices: That run it.
    """

    rollout: int
    select: str
    is_completed: bool
    devices: tuple[str, ...]


def goes_back_to(
    releases: Sequence[Release], to: int, model: str, brought: Mapping[int, Brought]
) -> tuple[Release, Release]:
    """The release that a rollback undoes, and the one whose bytes come again.

    One that restores another stands where that one stands: going back twice goes back further, and not forth again.
    What a rollout brought is gone back to only where it went through all waves; what somebody went back from only by
    name.

    Args:
        releases: All, newest first.
        to: The one to go back to; 0 for the one before.
        model: Of which model the newest release is to be undone; "" for the newest of all.
        brought: Of those that a rollout brought, what became of them.

    Raises:
        RolloutError: There is nothing to go back to.
    """
    by_counter = {each.counter: each for each in releases}
    if to:
        if to not in by_counter:
            raise RolloutError(f"there is no release {to}; `edge-fleet release list` shows them")
        wanted = by_counter[to]
        undone = next(each for each in releases if _is_alike(each, wanted) and model in ("", each.model))
        if undone.digest == wanted.digest:
            raise RolloutError(f"release {undone.counter} is the newest of its kind, and has the bytes of {to} already")
        return undone, wanted
    undone_or_none = next((each for each in releases if model in ("", each.model)), None)
    if undone_or_none is None:
        raise RolloutError(f"there is no release{for_model(model)} to go back from")
    undone = undone_or_none
    place = undone.restores or undone.counter
    if (found := brought.get(undone.counter)) is not None and not found.devices:
        raise RolloutError(
            f"no device runs release {undone.counter}, the newest: rollout {found.rollout} has brought it to none, so "
            f"there is nothing to go back from. `edge-fleet rollout status {found.rollout}` shows why; --to "
            f"names a release to have again all the same"
        )
    original, undone_before = by_counter.get(place, undone), _undone(releases)
    before = next(
        (
            each
            for each in releases
            if each.counter < place
            and each.counter not in undone_before
            and _is_alike(each, undone)
            and _had(each, undone, original, brought)
        ),
        None,
    )
    if before is None:
        raise RolloutError(
            f"before release {place} nothing of its kind was pushed to the same devices; name with --to which release "
            f"they should have again (`edge-fleet release list`), or push the file that they came with"
        )
    return undone, by_counter.get(before.restores, before)


def _undone(releases: Sequence[Release]) -> set[int]:
    """Counters of those that a rollback undid, and none brought again; releases are newest first."""
    found = set[int]()
    for each in reversed(releases):
        if each.restores:
            found = (found | {each.undoes}) - {each.restores}
    return found


def _had(before: Release, undone: Release, original: Release, brought: Mapping[int, Brought]) -> bool:
    """Whether those that a release was meant for had another one before.

    Args:
        before: That one.
        undone: The release.
        original: The one that it restores; else itself.
        brought: See `goes_back_to`.
    """
    if before.devices and before.devices == undone.devices:
        return True
    by_rollout, earlier = brought.get(original.counter), brought.get(before.counter)
    if by_rollout is None:
        return False
    if earlier is not None:
        return earlier.is_completed and earlier.select in ("", by_rollout.select)
    return before.devices == (ALL_DEVICES,)


def _is_alike(one: Release, other: Release) -> bool:
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
    return (found[0].counter, found[1].digest) == (undone.counter, wanted.digest)


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
            if _is_alike(each, release)
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
            devices=tuple(sorted(running.get(counter, ()))),
        )
    return found


def never_stood(store: Store) -> set[str]:
    """Digests of heads that only rollouts brought, none of which went through all waves and was not taken back."""
    brought = brought_by_rollouts(store)
    stood, tried = set[str](), set[str]()
    for each in store.releases.all():
        if each.counter in brought:
            (stood if brought[each.counter].is_completed else tried).add(each.digest)
        elif each.devices and (each.restores or not each.undoes):  # else the way back of a rollout: nobody chose it
            stood.add(each.digest)
    return tried - stood


def for_model(model: str) -> str:
    """A model, behind what is said of a release; nothing where its backbone decides."""
    return f" for the model {model!r}" if model else ""
