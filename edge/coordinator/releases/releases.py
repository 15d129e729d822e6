"""Releases: what an operator pushes, who should run what, and going back.

A release is never changed. Its counter is above all that this database and any device have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any

from edge.contract.clock import Now
from edge.contract.digest import short
from edge.contract.errors import BundleError, EdgeError, RolloutError
from edge.contract.names import MAX_NAME_CHARS, is_model_name
from edge.coordinator.events import Events
from edge.coordinator.records import Device, Model, Release, as_dict, is_merge
from edge.coordinator.releases.artifacts import Artifact, ArtifactStore
from edge.coordinator.releases.bundles import Bundles
from edge.coordinator.releases.checks import mismatch
from edge.coordinator.releases.differences import contents, difference
from edge.coordinator.releases.forgotten import check_head
from edge.coordinator.releases.going_back import (
    Back,
    brought_by_rollouts,
    check_remembers,
    fates,
    for_model,
    goes_back_to,
    is_last,
    older_bytes,
)
from edge.coordinator.releases.wanted import Targeted, Wanted, wanted
from edge.coordinator.releases.worth import check_worth, judged_worse
from edge.coordinator.rollout.states import RUNS
from edge.coordinator.rollout.window import offset_min
from edge.coordinator.rollout.words import is_on_its_way, wants
from edge.coordinator.store.store import Store
from edge.coordinator.turns import PAUSED
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
        check_head(store, artifacts, digest, f"the head {file or short(digest)}")
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
        anew: bool = False,
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
            force: Whether applications on these devices may be given other inputs, outputs or classes, or a head that
                devices judged worse.
            at_once: Whether they all run it from now on; else it is for nobody until a rollout brings it.
            undoes: The release that it takes back; 0 for none.
            anew: Devices are to have this very head, see `edge.coordinator.records.Release`.

        Raises:
            RolloutError: An unknown device, no device could take it, or devices judged it worse.
            BundleError: It is not like what it would take the place of.
        """
        known = {each.id for each in self._store.devices.all()}
        unknown = [device for device in devices if device not in known and not device.startswith(BY_TAG)]
        if unknown:
            raise RolloutError(f"unknown device {unknown[0][:80]}; `edge-fleet devices` lists them")
        if model and not is_model_name(model):
            raise RolloutError(f"model {model[:80]!r}: expected 1 to {MAX_NAME_CHARS} characters that can be shown")
        self._artifacts.get(digest)
        if not force and (why := judged_worse(self._store, digest)):
            raise RolloutError(f"{file or short(digest)}: {why}; --force pushes it all the same")
        tags = self._store.devices.tags()
        chosen = {device for device in known if is_meant(devices or EVERYBODY, device, tags.get(device, {}))}
        served = [each for each in self._store.devices.models() if each.device in chosen]
        if kind == "head" and not any(each.backbone == backbone and model in ("", each.model) for each in served):
            whose = f"none of {', '.join(devices)[:200]}" if devices else "no device"
            raise RolloutError(
                f"{whose} runs the backbone {short(backbone)} that this head belongs to{for_model(model)}"
            )
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
            anew=anew,
        )
        what = f"{release.counter}: {self.called(kind, digest)}{for_model(model)}, {name or reason}"
        self._events.note("", "release", what, now, model)
        return release

    def called(self, kind: str, digest: str) -> str:
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

    def rollback(self, now: Now, *, to: int = 0, model: str = "", reason: str = "", force: bool = False) -> Release:
        """Push older bytes again: to those whom the release that is undone was meant for, under a new number.

        Args:
            now: The time.
            to: The release whose bytes they are; 0 for the one before the newest.
            model: The model whose newest release is to be undone; "" for the newest of all.
            reason: For people; "" for one that says what was done.
            force: Whether also to what devices judged worse, or what never went through a rollout of its own.

        Raises:
            RolloutError: There is nothing to go back to, its bytes are gone, something speaks against it, or somebody
                had some of it forgotten.
        """
        back = self.back(to=to, model=model, force=force)
        undone, wanted, brought = back.undone, back.wanted, brought_by_rollouts(self._store)
        is_before = not to or is_last(self._store.releases.all(), undone, wanted, model, brought)
        digest = self._artifacts.get(wanted.digest).digest
        if wanted.kind == "head":
            digest = older_bytes(self._artifacts, undone.digest, digest)
        release = add_release(
            self._store,
            self._artifacts,
            kind=wanted.kind,
            digest=digest,
            backbone=wanted.backbone,
            devices=back.devices,
            reason=reason or f"back from release {undone.counter} to {wanted.counter}",
            now_ms=now.wall_ms,
            model=wanted.model,
            name=wanted.name,
            notes=wanted.notes,
            file=wanted.file,
            restores=wanted.restores or wanted.counter,
            undoes=undone.counter,
            anew=not is_before or bool(undone.undoes),  # what was before one that went back is what it went back from
        )
        called = self.called(release.kind, release.digest)
        what = f"{release.counter}: {called}{for_model(wanted.model)}, {release.reason}"
        self._events.note("", "release", what, now, wanted.model)
        return release

    def back(self, *, to: int = 0, model: str = "", force: bool = False) -> Back:
        """What `rollback` would do; raises RolloutError where that would refuse."""
        brought = brought_by_rollouts(self._store)
        back = goes_back_to(self._store.releases.all(), to, model, brought)
        check_remembers(self._store, self._artifacts, back.wanted, back.undone, brought)
        if not force:
            check_worth(self._store, back.wanted)
        return back

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

    def is_anew(self, wanted: Wanted) -> bool:
        """Whether a device is to have the very head of a release that takes another one back, and not what it kept.

        So it is where it kept a head that fell, see `edge.coordinator.releases.going_back.Fates`: a canary of a rollout
        that was stopped had one before what is taken back now. Merges that came since left it where it was.
        """
        release, model = wanted.release, wanted.model
        if release.anew or not release.undoes or release.kind != "head":
            return release.anew
        tags = self._store.devices.tags(model.device).get(model.device, {})
        brought = {
            rollout.plan.release
            for rollout, target in self._store.rollouts.of_devices(model.device)
            if target.model == model.model and target.state in RUNS and rollout.plan.use != "compete"
        }
        had = next(
            (
                each
                for each in self._store.releases.all()
                if each.counter < release.undoes
                and each.kind == "head"
                and not is_merge(each)
                and (each.counter in brought or is_meant(each.devices, model.device, tags))
            ),
            None,
        )
        return had is not None and had.digest in fates(self._store).fell

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
