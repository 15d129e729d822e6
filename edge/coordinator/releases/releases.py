"""Releases: what an operator pushes, who should run what, and going back.

A release is never changed. Its counter is above all that this database and any device have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from edge.contract.clock import Now
from edge.contract.digest import short
from edge.contract.errors import BundleError, EdgeError, RolloutError
from edge.contract.names import MAX_NAME_CHARS, is_model_name
from edge.coordinator.events import Events
from edge.coordinator.records import Device, Model, Release, as_dict
from edge.coordinator.releases.artifacts import Artifact, ArtifactStore
from edge.coordinator.releases.bundles import Bundles
from edge.coordinator.releases.checks import mismatch
from edge.coordinator.releases.differences import contents, difference
from edge.coordinator.releases.forgotten import check_remembers, forgotten_in
from edge.coordinator.releases.wanted import Targeted, Wanted, wanted
from edge.coordinator.rollout.states import DESIRED
from edge.coordinator.rollout.window import offset_min
from edge.coordinator.rollout.words import is_on_its_way, wants
from edge.coordinator.store.store import Store
from edge.coordinator.turns import PAUSED
from edge.learning.exchange import HeadRelease
from edge.merging.groups import ALL_DEVICES, EVERYBODY, is_meant
from edge.merging.policy import BY_TAG

# A device must not be able to use the counters up: what it says from here on counts for nothing.
MAX_COUNTER = 2**48
# Setting of the fleet: a backup was restored, and devices have not been heard since.
RESTORED = "restored"
# The same: what devices knew then.
KNOWN_THEN = "known-after-restore"


def add_release(
    store: Store,
    artifacts: ArtifactStore,
    *,
    kind: str,
    digest: str,
    backbone: str,
    devices: Sequence[str],
    reason: str,
    now_ms: int,
    model: str = "",
    name: str = "",
    notes: str = "",
    file: str = "",
    restores: int = 0,
    undoes: int = 0,
    anew: bool = False,
) -> Release:
    """Make a release, with a counter one above the highest that this database or any device has seen.

    After yesterday's backup was restored the devices know higher ones, and would ignore anything below.

    Raises:
        RolloutError: A backup was restored, and nobody can know yet what devices know; or it is a head that has
            something in that was forgotten.
    """
    if kind == "head":
        check_remembers(store, artifacts, digest, f"the head {file or short(digest)}")
    with store.transaction():
        if store.rollouts.setting(RESTORED):
            raise RolloutError(
                "the database was restored from a backup, and devices have not said yet which releases they know: "
                "they do once the coordinator is connected to the broker; try again in a few seconds"
            )
        known_then = int(store.rollouts.setting(KNOWN_THEN) or 0)
        highest = max(store.releases.highest(), store.devices.highest_release(MAX_COUNTER), known_then)
        release = Release(
            counter=highest + 1,
            kind=kind,
            digest=digest,
            backbone=backbone,
            devices=tuple(devices),
            reason=reason,
            created_ms=now_ms,
            model=model,
            name=name,
            notes=notes,
            file=file,
            restores=restores,
            undoes=undoes,
            anew=anew,
        )
        store.releases.add(release)
    return release


@dataclass(frozen=True, kw_only=True, slots=True)
class Brought:
    """What became of a release that a rollout brought.

    Attributes:
        rollout: The newest one of it.
        select: Whom its plan meant.
        is_completed: Whether one of them went through all waves.
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
    What a rollout brought is gone back to only where it went through all waves.

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
        raise RolloutError(f"there is no release{_as(model)} to go back from")
    undone = undone_or_none
    place = undone.restores or undone.counter
    if (found := brought.get(undone.counter)) is not None and not found.devices:
        raise RolloutError(
            f"no device runs release {undone.counter}, the newest: rollout {found.rollout} has brought it to none, so "
            f"there is nothing to go back from. `edge-fleet rollout status {found.rollout}` shows why; --to "
            f"names a release to have again all the same"
        )
    original = by_counter.get(place, undone)
    before = next(
        (
            each
            for each in releases
            if each.counter < place and _is_alike(each, undone) and _had(each, undone, original, brought)
        ),
        None,
    )
    if before is None:
        raise RolloutError(
            f"before release {place} nothing of its kind was pushed to the same devices; name with --to which release "
            f"they should have again (`edge-fleet release list`), or push the file that they came with"
        )
    return undone, by_counter.get(before.restores, before)


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


class Releases:
    """See the module.

    Args:
        store: The database.
        artifacts: Files by digest.
        bundles: Those that are known.
        events: For what people should see.
    """

    def __init__(self, store: Store, artifacts: ArtifactStore, bundles: Bundles, events: Events) -> None:
        self._store = store
        self._artifacts = artifacts
        self._bundles = bundles
        self._events = events

    def push(
        self,
        digest: str,
        kind: str,
        backbone: str,
        devices: Sequence[str],
        reason: str,
        now: Now,
        *,
        model: str = "",
        name: str = "",
        notes: str = "",
        file: str = "",
        force: bool = False,
        at_once: bool = True,
        undoes: int = 0,
    ) -> Release:
        """Make an artifact what a model of devices should run.

        Args:
            digest: Of the artifact.
            kind: ``head`` or ``bundle``.
            backbone: That it belongs to.
            devices: Names or tags; none for all, also those to come.
            reason: For people.
            now: The time.
            model: Name of the model; "" for that of the bundle, or, if no device has one of that name, for the only one
                that there is; for a head for those with its backbone.
            name: Of the release.
            notes: On it.
            file: That the artifact came as.
            force: Whether applications on these devices may be given other inputs, outputs or classes.
            at_once: Whether they all run it from now on; else it is for nobody until a rollout brings it.
            undoes: The release that it takes back; 0 for none.

        Raises:
            RolloutError: An unknown device, or no device could take it.
            BundleError: It is not like what it would take the place of.
        """
        known = {each.id for each in self._store.devices.all()}
        unknown = [device for device in devices if device not in known and not device.startswith(BY_TAG)]
        if unknown:
            raise RolloutError(f"unknown device {unknown[0]}; `edge-fleet devices` lists them")
        if model and not is_model_name(model):
            raise RolloutError(f"model {model[:80]!r}: expected 1 to {MAX_NAME_CHARS} characters that can be shown")
        self._artifacts.get(digest)
        tags = self._store.devices.tags()
        chosen = {device for device in known if is_meant(devices or EVERYBODY, device, tags.get(device, {}))}
        served = [each for each in self._store.devices.models() if each.device in chosen]
        if kind == "head" and not any(each.backbone == backbone and model in ("", each.model) for each in served):
            raise RolloutError(f"no device runs the backbone {short(backbone)} that this head belongs to{_as(model)}")
        if kind == "bundle":
            model = self._model_of(digest, model, {each.model for each in served})
            if not force:
                self._check_like(file or short(digest), digest, [each for each in served if each.model == model])
        release = add_release(
            self._store,
            self._artifacts,
            kind=kind,
            digest=digest,
            backbone=backbone,
            devices=devices or [ALL_DEVICES] if at_once else (),
            reason=reason,
            now_ms=now.wall_ms,
            model=model,
            name=name,
            notes=notes,
            file=file,
            undoes=undoes,
        )
        what = f"{release.counter}: {self._called(kind, digest)}{_as(model)}, {name or reason}"
        self._events.note("", "release", what, now, model)
        return release

    def _called(self, kind: str, digest: str) -> str:
        """For people: a bundle by the id that it has everywhere, a head by that of its file."""
        known = {each.digest: each.identity for each in self._store.releases.bundles()} if kind == "bundle" else {}
        return f"{kind} {short(known.get(digest, '') or digest)}"

    def _check_like(self, name: str, digest: str, running: Sequence[Model]) -> None:
        """Raise BundleError where applications would see something else than from what runs."""
        new = self._bundles.get(digest)
        for model in {(each.bundle, each.backbone): each for each in running}.values():
            try:
                before = self._bundles.of_model(model)
            except EdgeError:  # what is damaged here is told where it is needed
                continue
            if before is not None and (why := mismatch(new.manifest, before.manifest)):
                raise BundleError(f"{name} is not like what {model.device} runs: {why}; --force pushes it all the same")

    def rollback(self, now: Now, *, to: int = 0, model: str = "", reason: str = "") -> Release:
        """Push older bytes again: to those whom the release that is undone was meant for, under a new number.

        Args:
            now: The time.
            to: The release whose bytes they are; 0 for the one before the newest.
            model: The model whose newest release is to be undone; "" for the newest of all.
            reason: For people; "" for one that says what was done.

        Raises:
            RolloutError: There is nothing to go back to, its bytes are gone, or somebody had some of it forgotten.
        """
        brought = self._brought()
        undone, wanted = goes_back_to(self._store.releases.all(), to, model, brought)
        self._check_remembers(wanted, undone, brought)
        is_last = not to or self._is_last(undone, wanted, model, brought)
        digest = self._artifacts.get(wanted.digest).digest
        if wanted.kind == "head":
            digest = older_bytes(self._artifacts, undone.digest, digest)
        reached = undone.devices or (brought[undone.counter].devices if undone.counter in brought else ())
        release = add_release(
            self._store,
            self._artifacts,
            kind=wanted.kind,
            digest=digest,
            backbone=wanted.backbone,
            devices=reached or [ALL_DEVICES],
            reason=reason or f"back from release {undone.counter} to {wanted.counter}",
            now_ms=now.wall_ms,
            model=wanted.model,
            name=wanted.name,
            notes=wanted.notes,
            file=wanted.file,
            restores=wanted.restores or wanted.counter,
            undoes=undone.counter,
            anew=not is_last,
        )
        what = f"{release.counter}: {self._called(release.kind, release.digest)}{_as(wanted.model)}, {release.reason}"
        self._events.note("", "release", what, now, wanted.model)
        return release

    def _is_last(self, undone: Release, wanted: Release, model: str, brought: Mapping[int, Brought]) -> bool:
        """Whether these are the bytes from before the release that is undone, so that what devices kept will do."""
        try:
            found = goes_back_to(self._store.releases.all(), 0, model, brought)
        except RolloutError:
            return False
        return (found[0].counter, found[1].digest) == (undone.counter, wanted.digest)

    def _check_remembers(self, release: Release, undone: Release, brought: Mapping[int, Brought]) -> None:
        """Raise RolloutError where a head has something in that was forgotten, and name the newest that has not."""
        if release.kind != "head" or not forgotten_in(self._store, self._artifacts, release.digest):
            return
        releases = self._store.releases.all()
        gone = {release.digest, undone.digest} | {
            e.digest for e in releases if e.counter in {r.undoes for r in releases}
        }
        newest = next(
            (
                each.counter
                for each in releases
                if _is_alike(each, release)
                and each.digest not in gone
                and (each.devices or (each.counter in brought and brought[each.counter].is_completed))
                and not forgotten_in(self._store, self._artifacts, each.digest)
            ),
            0,
        )
        cure = f"the newest other one without it is release {newest}: --to {newest}" if newest else ""
        check_remembers(self._store, self._artifacts, release.digest, f"release {release.counter}", cure)

    def _brought(self) -> dict[int, Brought]:
        """By release, what became of those that rollouts brought."""
        completed, running = self._store.rollouts.completed(), dict[int, set[str]]()
        for rollout, target in self._store.rollouts.of_devices():
            if target.state in DESIRED:
                running.setdefault(rollout.plan.release, set()).add(target.device)
        found: dict[int, Brought] = {}
        for rollout in self._store.rollouts.all():  # newest first
            counter = rollout.plan.release
            first = found.get(counter)
            found[counter] = Brought(
                rollout=rollout.id if first is None else first.rollout,
                select=rollout.plan.select,
                is_completed=rollout.id in completed or (first is not None and first.is_completed),
                devices=tuple(sorted(running.get(counter, ()))),
            )
        return found

    def _model_of(self, digest: str, model: str, served: set[str]) -> str:
        """The model that a bundle is for, of those that the chosen devices have.

        Raises:
            RolloutError: None of them.
        """
        own = next((each.name for each in self._store.releases.bundles() if each.digest == digest), "")
        name = model or own
        if name in served or not served:
            return name
        if not model and len(served) == 1:
            return next(iter(served))
        raise RolloutError(
            f"no device has a model {name!r}, there are {', '.join(map(repr, sorted(served)))}; say with --model which "
            f"one the bundle is for"
        )

    def get(self, counter: int) -> Release:
        """A release.

        Raises:
            RolloutError: There is none of that number.
        """
        found = self._store.releases.get(counter)
        if found is None:
            raise RolloutError(f"there is no release {counter}; `edge-fleet release list` shows them")
        return found

    def artifact(self, counter: int) -> Artifact:
        """The bytes of a release.

        Raises:
            RolloutError: There is no such release, or its bytes are missing or changed on disk.
        """
        return self._artifacts.get(self.get(counter).digest)

    def show(self, counter: int) -> dict[str, Any]:
        """A release, what is in it, and where those devices stand that should run it."""
        release = self.get(counter)
        found = contents(release, self.artifact(counter))
        standing = [
            {
                "device": device.id,
                "model": each.model.model,
                "state": each.model.state if each.model.state_release == counter else "waiting",
                "detail": each.model.state_detail if each.model.state_release == counter else "",
            }
            for device, wanted in self.wanted_by_all()
            for each in wanted
            if each.release.counter == counter
        ]
        return {**as_dict(release), "contents": dict(found.facts), "standing": standing}

    def difference(self, one: int, other: int) -> dict[str, Any]:
        """What two releases have and have not in common, see `edge.coordinator.releases.differences`."""
        pair = [(self.get(each), contents(self.get(each), self.artifact(each))) for each in (one, other)]
        return difference(pair[0], pair[1])

    def wanted(self, device: str, now: Now | None = None) -> list[Wanted]:
        """What the models of a device should run, and whether now, where the time is given."""
        with self._store.transaction():
            known = self._store.devices.known(device)
            if known is None or not known.device.born:
                return []
            is_halted = self._is_halted()
            targeted = self._targeted([known.device], now, device, is_halted=is_halted).get(device, [])
            tags = self._store.devices.tags(device).get(device, {})
            return wanted(self._store.releases.all(), known, tags, targeted, is_halted=is_halted)

    def _is_halted(self) -> bool:
        """Whether the whole fleet is paused."""
        return bool(self._store.rollouts.setting(PAUSED))

    def _targeted(
        self, devices: Iterable[Device], now: Now | None, device: str | None = None, *, is_halted: bool
    ) -> dict[str, list[Targeted]]:
        """By device, what rollouts have for it."""
        ahead_min = {each.id: offset_min(each.hardware) or 0 for each in devices}
        found: dict[str, list[Targeted]] = {}
        known: dict[int, Release | None] = {}
        for rollout, target in self._store.rollouts.of_devices(device):
            is_open = now is None or rollout.plan.is_open(now.wall_ms, ahead_min.get(target.device, 0))
            activate = wants(rollout, target, is_halted=is_halted, is_open=is_open)
            counter = rollout.plan.release
            if counter not in known:
                known[counter] = self._store.releases.get(counter)
            if activate and (release := known[counter]) is not None:
                each = Targeted(release, target.model, activate, target.attempt, is_on_its_way(target))
                found.setdefault(target.device, []).append(each)
        return found

    def standing(self, device: str) -> list[dict[str, Any]]:
        """By model of a device, which release it should run, and whether it has dealt with that."""
        return [
            {
                "model": each.model.model,
                "release": each.release.counter,
                "name": each.release.name,
                "is_dealt_with": each.model.release >= each.release.counter,
            }
            for each in self.wanted(device)
        ]

    def wanted_by_all(self, now: Now | None = None, only: Set[str] | None = None) -> list[tuple[Device, list[Wanted]]]:
        """What the models of all devices, or `only` of these, should run, see `wanted`."""
        with self._store.transaction():
            names = [each.id for each in self._store.devices.all()] if only is None else sorted(only)
            known = self._store.devices.known_of(names)
            releases, tags = self._store.releases.all(), self._store.devices.tags()
            is_halted = self._is_halted()
            targeted = self._targeted([each.device for each in known.values()], now, is_halted=is_halted)
        return [
            (each.device, wanted(releases, each, tags.get(name, {}), targeted.get(name, []), is_halted=is_halted))
            for name in names
            for each in [known.get(name)]
            if each is not None
        ]


def _as(model: str) -> str:
    """A model, behind what is said of a release; nothing where its backbone decides."""
    return f" for the model {model!r}" if model else ""
