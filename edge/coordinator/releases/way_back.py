"""What devices ran before a rollout, and how they get it again: as a new release of the older bytes."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from edge.contract.clock import Now
from edge.contract.digest import short
from edge.contract.errors import EdgeError
from edge.coordinator.events import Events
from edge.coordinator.records import Model, Release
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.releases.bundles import Bundles
from edge.coordinator.releases.forgotten import forgotten_in
from edge.coordinator.releases.going_back import fates, older_bytes
from edge.coordinator.releases.releases import add_release
from edge.coordinator.releases.wanted import fits
from edge.coordinator.rollout.states import RUNS, TargetState
from edge.coordinator.rollout.step import Rollout, Target
from edge.coordinator.store.store import Store
from edge.merging.groups import is_meant
from edge.merging.merge import shipped_head


class WayBack:
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

    def with_former(self, rollout: Rollout, target: Target) -> Target:
        """What a device runs when it is offered the release: to it a revert goes back."""
        if target.state is not TargetState.OFFERED or target.attempt > 1 or target.former:
            return target
        models = {model.model: model for model in self._store.devices.models(target.device)}
        model = models.get(target.model)
        if model is None:
            return target
        if rollout.kind == "bundle":
            return replace(target, former=self._bundle_before(rollout, model))
        return replace(target, former=self._head_before(rollout, model))

    def _bundle_before(self, rollout: Rollout, model: Model) -> str:
        """The bundle that a model runs, as it names it; where it runs the release's already, the one before that."""
        release, runs = self._store.releases.get(rollout.plan.release), self._store.releases.bundle_named(model.bundle)
        if release is None or runs is None or runs.digest != release.digest:
            return model.bundle
        for other, target in reversed(self._store.rollouts.of_devices(model.device)):
            brought = self._store.releases.get(other.plan.release)
            is_same = brought is not None and brought.digest == release.digest and target.model == model.model
            if is_same and other.id != rollout.id and target.former:
                return target.former
        return model.bundle

    def _head_before(self, rollout: Rollout, model: Model, *, remembers: bool = False) -> str:
        """Digest of the head that a model runs; "" for the one that it came with.

        What it refused, or went back from, it has dealt with and does not run.

        Args:
            rollout: Whose release does not count.
            model: Of a device.
            remembers: Of those that it had, the newest that has nothing in that was forgotten, was not taken back, and
                did not come only by rollouts that never went through.
        """
        tags = self._store.devices.tags(model.device).get(model.device, {})
        brought = {
            other.plan.release: target.state
            for other, target in self._store.rollouts.of_devices(model.device)
            if target.model == model.model and other.id != rollout.id
        }
        releases = self._store.releases.all()
        taken_back = {each.undoes for each in releases} if remembers else set[int]()
        fell = fates(self._store).fell if remembers else frozenset[str]()
        for each in releases:
            if each.counter > model.release or each.kind != "head" or not fits(each, model, is_only=True):
                continue
            if each.counter == rollout.plan.release:
                continue  # it has that already
            if each.counter in taken_back or each.digest in fell:
                continue
            if remembers and forgotten_in(self._store, self._artifacts, each.digest):
                continue
            if each.counter in brought:
                is_live = brought[each.counter] in RUNS
            elif not is_meant(each.devices, model.device, tags):
                continue
            else:
                is_live = each.counter != model.state_release or model.state in ("active", "probation")
            if is_live:
                return each.digest
        return ""

    def restore(self, rollout: Rollout, now: Now) -> set[str]:
        """Make a release of each different older artifact for those that are to go back; the devices to tell.

        What they had is not given again where it came by rollouts that never went through, or was taken back, nor a
        head that has something in that was forgotten since: then it is the newest other one that they had, else what
        they came with.
        """
        waiting = [
            target
            for target in self._store.rollouts.targets(rollout.id)
            if target.state is TargetState.REVERTING and not target.restore
        ]
        to_tell = set[str]()
        if not waiting:
            return to_tell
        release = self._store.releases.get(rollout.plan.release)
        assert release is not None
        gone = self._gone(release.kind, {target.former for target in waiting})
        groups: dict[tuple[str, str], list[Target]] = {}
        for target in waiting:
            why = gone.get(target.former, "")
            former = self._other(rollout, target) if why else target.former
            groups.setdefault((former, why), []).append(target)
        for (former, why), targets in groups.items():
            digest, backbone = self._older(release, former)
            if not digest:
                what = f"the bundle {short(former)}" if release.kind == "bundle" and former else "what they had"
                cure = "; `edge-fleet release add` it, and they go back" if release.kind == "bundle" else ""
                text = f"{rollout.id}: {what} before is not here, and {len(targets)} devices wait for it{cure}{why}"
                self._events.fault("", "no-way-back", text, now, kind=former)
                continue
            older = add_release(
                self._store,
                self._artifacts,
                kind=release.kind,
                digest=digest,
                backbone=backbone,
                devices=sorted({target.device for target in targets}),
                reason=f"rollout {rollout.id} goes back from release {release.counter}{why}",
                now_ms=now.wall_ms,
                model=targets[0].model if release.kind == "bundle" else release.model,
                undoes=release.counter,
                anew=bool(why),
            )
            self._store.rollouts.save(
                rollout,
                rollout,
                [replace(target, restore=older.counter, detail=f"{target.detail}{why}"[:500]) for target in targets],
            )
            to_tell |= {target.device for target in targets}
            self._events.note("", "release", f"{older.counter}: {older.reason}", now)
        return to_tell

    def _gone(self, kind: str, formers: set[str]) -> dict[str, str]:
        """Of heads or bundles that nobody is given again, what to say of it."""
        fell = fates(self._store).fell
        text = (
            f"; not to the {kind} from before, whose own rollout never went through or which was taken back, but to an "
            f"older one"
        )
        if kind == "bundle":
            return {each: text for each in formers if self._file_of(each) in fell}
        why = dict.fromkeys(formers & fell, text)
        for former in formers:
            if devices := forgotten_in(self._store, self._artifacts, former):
                why[former] = (
                    f"; not to the head from before, which has in it what {', '.join(devices[:5])} learned and what "
                    f"was forgotten since, but to the newest without it"
                )
        return why

    def _other(self, rollout: Rollout, target: Target) -> str:
        """The newest head or bundle that a device had and may have again.

        Returns:
            Digest of the head, "" for the one that it came with; a bundle as devices name it, "" where none is known.
        """
        if rollout.kind == "bundle":
            return self._bundle_that_stood(target)
        models = {model.model: model for model in self._store.devices.models(target.device)}
        model = models.get(target.model)
        return "" if model is None else self._head_before(rollout, model, remembers=True)

    def _bundle_that_stood(self, target: Target) -> str:
        """The newest bundle before what a device had before: each rollout that brought one knows what it replaced."""
        fell, former, seen = fates(self._store).fell, target.former, set[str]()
        theirs = [
            (brought.digest, its.former)
            for rollout, its in reversed(self._store.rollouts.of_devices(target.device))
            if its.model == target.model and its.former and rollout.kind == "bundle"
            for brought in [self._store.releases.get(rollout.plan.release)]
            if brought is not None
        ]
        while (digest := self._file_of(former)) in fell and former not in seen:
            seen.add(former)
            former = next((before for each, before in theirs if each == digest and before not in seen), former)
        return former if digest not in fell else self._bundle_at_once(target, fell)

    def _bundle_at_once(self, target: Target, fell: Set[str]) -> str:
        """The newest bundle that stands of those that went to a device with others at once; "" for none."""
        tags = self._store.devices.tags(target.device).get(target.device, {})
        names = {each.digest: each.identity for each in self._store.releases.bundles()}
        for each in self._store.releases.all():
            is_theirs = is_meant(each.devices, target.device, tags) and each.model in ("", target.model)
            if each.kind == "bundle" and is_theirs and each.digest not in fell and each.digest in names:
                return names[each.digest]
        return ""

    def _file_of(self, bundle: str) -> str:
        """Digest of the file of a bundle that devices name so; "" for one that is not known."""
        known = self._store.releases.bundle_named(bundle)
        return "" if known is None else known.digest

    def _older(self, release: Release, former: str) -> tuple[str, str]:
        """Digest and backbone of what a device ran before; "" where it is not here."""
        try:
            if release.kind == "bundle":
                known = self._store.releases.bundle_named(former)
                return ("", "") if known is None else (self._artifacts.get(known.digest).digest, known.backbone)
            if former:
                self._artifacts.get(former)
                return older_bytes(self._artifacts, release.digest, former), release.backbone
            bundle = self._bundles.of(release.backbone)
            if bundle is None:
                return "", ""
            return self._artifacts.put(shipped_head(bundle).encode()).digest, release.backbone
        except EdgeError:
            return "", ""
