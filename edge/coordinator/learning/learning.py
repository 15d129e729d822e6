"""What the fleet learned: contributions that come in, when they are merged, and what is forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from edge.contract.clock import Now
from edge.contract.errors import EdgeError, LearningError, RolloutError
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.devices.sites import Sites
from edge.coordinator.events import Events
from edge.coordinator.learning.merges import Merges
from edge.coordinator.learning.receipts import Receipts
from edge.coordinator.learning.release_policy import group_of
from edge.coordinator.records import DECOMMISSIONED, Contribution, Forgotten, Release
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.releases.bundles import Bundles
from edge.coordinator.rollout.states import RolloutState
from edge.coordinator.store.store import Store
from edge.coordinator.turns import Turns, in_the_way, named
from edge.learning.exchange import HeadUpdate
from edge.merging.contributions import check_update
from edge.merging.policy import BY_TAG

# When a merge that something unforeseen ended is tried again: a full disk or a locked database may be over by then.
MERGE_AGAIN_S = 600.0
PLAN_AGAIN_S = 60.0
# When one that waits for a rollout looks again.
TURN_AGAIN_S = 5.0


def owner_of(known: Iterable[Contribution], device: str, state_id: str) -> str | None:
    """Whose a lineage is, if neither this device's nor that of the state folder that this device shows to have.

    Every merged head names the lineages in it, so whoever names one proves nothing; of its state folder a device tells
    nobody but the coordinator.

    Args:
        known: What is known of that lineage.
        device: Who names it.
        state_id: Of the folder that it shows.
    """
    owners = list(known)
    if any(each.device == device or (state_id and each.state_id == state_id) for each in owners):
        return None
    return owners[0].device if owners else None


def newer(known: Contribution | None, one: Contribution) -> Contribution | None:
    """A contribution in place of what is known of its lineage; None when it is not news.

    A change against a newer head replaces one of the same version against an older head.
    """
    if known is None:
        return one
    if (known.version, known.base_release) >= (one.version, one.base_release):
        return None
    return replace(one, merged_version=known.merged_version, merged_release=known.merged_release)


class Unwanted(LearningError):  # noqa: N818  # what it is, and not what goes wrong
    """A contribution that a person has decided not to take: that it comes is no fault of anybody."""


class Learning:
    """See the module.

    Args:
        config: Whether, and when, to merge.
        store: The database.
        artifacts: Files by digest.
        bundles: Those that are known.
        merges: That are made.
        events: For what people should see.
        receipts: Of what is forgotten.
        sites: Whose devices are in whose contribution.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        store: Store,
        artifacts: ArtifactStore,
        bundles: Bundles,
        merges: Merges,
        events: Events,
        receipts: Receipts,
        sites: Sites,
    ) -> None:
        self._sites = sites
        self._receipts = receipts
        self._config = config
        self._store = store
        self._artifacts = artifacts
        self._bundles = bundles
        self._merges = merges
        self._events = events
        self._turns = Turns(store)
        self._due_s: dict[str, float] = {}  # by backbone
        self._next_plan_s = -math.inf
        self._is_to_plan = True

    def take(self, device: str, data: bytes, now: Now) -> None:
        """Keep what a device learned; durable when this returns, and only then it is acknowledged.

        Raises:
            BundleError: It is damaged.
            LearningError: It cannot be merged, or it is another's.
            Unwanted: A person decided that it is not to be taken.
        """
        update = HeadUpdate.decode(data, f"the contribution of {device}")
        if self._store.contributions.is_forgotten(update.lineage, update.state_id):
            raise Unwanted("an operator had this forgotten; the device may contribute again with an empty state folder")
        sender = self._store.devices.get(device)
        if sender is not None and sender.admission == DECOMMISSIONED:
            raise Unwanted("this device was decommissioned; nothing of it is taken any more")
        known = self._store.contributions.of_lineage(update.lineage)
        owner = owner_of(known, device, update.state_id)
        if owner is not None and not self._store.checkpoints.was_given(update.lineage, device):
            raise LearningError(
                f"what was learned is that of {owner}, under whose name it came first; a device that takes over the "
                f"state folder of another must have it whole"
            )
        try:
            bundle = self._bundles.of(update.backbone)
        except EdgeError as exc:  # the bundle is at fault and not the device, and merging checks again
            self._events.fault("", "bundle-unusable", f"{update.backbone[:12]}: {exc}", now, kind=update.backbone)
        else:
            if bundle is not None:
                check_update(update, bundle)
            else:
                detail = f"{update.backbone[:12]}: kept; push or register its bundle to merge it"
                self._events.note(device, "unknown-backbone", detail, now)
        self._sites.check(device, update, now)
        contribution = Contribution(
            device=device,
            lineage=update.lineage,
            backbone=update.backbone,
            learner=update.learner,
            version=update.version,
            n_samples=update.n_samples,
            base_release=update.base_release,
            digest=self._artifacts.put(data).digest,
            received_ms=now.wall_ms,
            model=update.model,
            state_id=update.state_id,
            noise="" if update.noised is None else update.noised.text,
        )
        if self._keep(contribution, update.parts):
            self._sites.kept(device, update.parts, now)
            detail = f"{update.n_samples} samples, {', '.join(filter(None, (update.learner, contribution.noise)))}"
            self._events.note(device, "contribution", detail, now, update.model)
            self.plan_soon()

    def _keep(self, one: Contribution, parts: Mapping[str, int]) -> bool:
        with self._store.transaction():
            before = self._store.contributions.get(one.device, one.lineage, one.backbone)
            kept = newer(before, one)
            if kept is not None:
                self._store.contributions.keep(kept)
                if parts or self._sites.is_site(one.device):
                    self._store.parts.keep(kept, parts)
        if before is not None:  # what nobody needs any more: of a device that is forgotten nothing may stay
            self._remove((one if kept is None else before).digest)
        return kept is not None

    def _remove(self, digest: str) -> None:
        if not (self._store.contributions.has_artifact(digest) or self._store.releases.has_artifact(digest)):
            self._artifacts.remove(digest)

    # Merging

    @property
    def next_deadline_s(self) -> float:
        """When the next merge is due."""
        return min(self._due_s.values(), default=math.inf)

    def plan_soon(self) -> None:
        """Something came that may be merged: look at the next tick."""
        self._is_to_plan = True

    def tick(self, now: Now) -> list[Release]:
        """Plan what is to be merged, and merge what is due."""
        if self._is_to_plan and now.s >= self._next_plan_s:
            self._next_plan_s = now.s + PLAN_AGAIN_S  # should it fail
            with self._events.survived("", "fault", "planning merges", now):
                self._plan(now)
                self._turns.keep_only(self._due_s)
                self._is_to_plan, self._next_plan_s = False, -math.inf
        due = [backbone for backbone, due_s in self._due_s.items() if now.s >= due_s]
        return [release for backbone in due for release in self._merge_due(backbone, now)]

    def _merge_due(self, backbone: str, now: Now) -> list[Release]:
        """Merge the groups whose turn it is by the policy, unless a rollout is in the way."""
        left_s: dict[tuple[str, ...], float] = {}
        with self._events.survived("", "fault", "looking which groups are due", now):
            left_s = self._left_s(backbone, now)
        again_s = min((each for each in left_s.values() if each > 0), default=math.inf)
        if left_s and min(left_s.values()) > 0:
            self._turns.keep_only(self._due_s.keys() - {backbone})
            releases = []
            self._due_s.pop(backbone, None)
        elif not self._has_turn(backbone, now):
            return []
        else:
            releases = self._merge(backbone, now, left_s)
        if again_s < math.inf:
            self._due_s[backbone] = min(now.s + again_s, self._due_s.get(backbone, math.inf))
        return releases

    def _left_s(self, backbone: str, now: Now) -> dict[tuple[str, ...], float]:
        """By group with contributions, how long it has to wait by the policy; empty where none can wait."""
        policy, merge_by = self._config.release_policy, self._config.policy.merge_by
        if not policy.is_by_group or backbone in self._store.contributions.to_be_unlearned():
            return {}
        tags = self._store.devices.tags()
        groups: dict[tuple[str, ...], list[Contribution]] = {}
        for row in self._store.contributions.all(backbone):
            groups.setdefault(group_of(merge_by, tags.get(row.device, {})), []).append(row)
        made = {each.counter: each.created_ms for each in self._store.releases.all()}
        return {
            group: policy.of_group(group).left_s(
                rows, max((made.get(row.merged_release, 0) for row in rows), default=0), now.wall_ms
            )
            for group, rows in groups.items()
        }

    def _has_turn(self, backbone: str, now: Now) -> bool:
        """Whether nothing is in the way of a merge that is due; where it waits that is told."""
        must_wait, why = True, ""
        self._due_s[backbone] = now.s + TURN_AGAIN_S
        with self._events.survived("", "fault", "looking whether a merge has to wait", now):
            must_wait, why = self._turns.must_wait(backbone, now)
        if why:
            self._events.note("", "merge-waits", why, now)
        return not must_wait

    def merge_now(self, now: Now, *, supersede: bool = False) -> list[Release]:
        """Merge everything that is new, or without what was forgotten.

        Args:
            now: The time.
            supersede: Also where rollouts are under way, which the caller ends.

        Raises:
            RolloutError: There is something new, but too little of it, or devices of a rollout would be given it.
        """
        contributions = self._store.contributions.all() if self._config.policy.merge_by else self._fresh()
        backbones = {each.backbone for each in contributions} | self._store.contributions.to_be_unlearned()
        overtaken = {each.id: each for backbone in sorted(backbones) for each in in_the_way(self._store, backbone)}
        reverting = [each for each in overtaken.values() if each.state is RolloutState.REVERTING]
        if reverting:
            raise RolloutError(f"{named(reverting)} brings older bytes back on the same devices: wait until it is done")
        if overtaken and not supersede:
            raise RolloutError(
                f"a merge would overtake {named(list(overtaken.values()))}: its devices would be given the merge, and "
                f"take the release no more. Wait: a merge goes out by itself when that has ended (serve --merge); or "
                f"give --supersede, which ends the rollout"
            )
        releases = [release for backbone in sorted(backbones) for release in self._merge(backbone, now)]
        why_not = [why for backbone in sorted(backbones) for why in self._merges.why_not(backbone)]
        if why_not and not releases:
            raise RolloutError(f"nothing is merged yet: {'; '.join(why_not)}")
        return releases

    def merge_soon(self, backbone: str, now: Now) -> None:
        """Something came from above that the devices here should have: merge at the next tick."""
        self._due_s[backbone] = now.s

    def regroup(self, device: str, keys: Iterable[str], now: Now) -> None:
        """Tags of a device changed: groups by one of them are merged anew."""
        if not self._config.auto_merge or self._config.policy.merge_by not in {BY_TAG + key for key in keys}:
            return
        for backbone in {each.backbone for each in self._store.devices.models(device)}:
            if self._store.releases.bundle_of(backbone):
                self._due_s.setdefault(backbone, now.s + self._config.merge_delay_s)

    def _plan(self, now: Now) -> None:
        """Set when to merge: soon when every device that is there has sent something new, else after the delay."""
        if not self._config.auto_merge:
            return
        for backbone in self._store.contributions.to_be_unlearned():
            if self._store.releases.bundle_of(backbone) is not None:
                self._due_s[backbone] = now.s
        fresh: dict[str, set[str]] = {}
        for each in self._fresh():
            fresh.setdefault(each.backbone, set()).add(each.device)
        for backbone, devices in fresh.items():
            if len(devices) < self._config.min_devices or self._store.releases.bundle_of(backbone) is None:
                continue
            there = {each.id for each in self._store.devices.all() if each.online}
            online = there & {each.device for each in self._store.devices.models() if each.backbone == backbone}
            due_s = now.s if online and online <= devices else now.s + self._config.merge_delay_s
            self._due_s[backbone] = min(due_s, self._due_s.get(backbone, math.inf))

    def _fresh(self) -> list[Contribution]:
        """What no merge has looked at yet."""
        refused = {
            (each.device, each.lineage, each.backbone): each.version for each in self._store.contributions.refused()
        }
        outside = self._store.devices.not_approved()
        return [
            each
            for each in self._store.contributions.all()
            if each.version > max(each.merged_version, refused.get((each.device, each.lineage, each.backbone), -1))
            and each.device not in outside
        ]

    def _merge(
        self, backbone: str, now: Now, left_s: Mapping[tuple[str, ...], float] = MappingProxyType({})
    ) -> list[Release]:
        """Merge; without a release, and the contributions as they were, when that cannot be done."""
        self._due_s.pop(backbone, None)
        try:
            return self._merges.make(backbone, now, lambda group: left_s.get(group, 0.0) <= 0.0)
        except Exception as exc:  # noqa: BLE001  # as `Events.survived`, and it is tried again
            self._events.unforeseen("", "merge-failed", f"merging for {backbone[:12]}", exc, now)
            if self._config.auto_merge:
                self._due_s[backbone] = now.s + MERGE_AGAIN_S
        return []

    # Forgetting

    def forget(self, device: str, now: Now, end: Callable[[str, Now], list[int]]) -> dict[str, Any]:
        """Delete what a device contributed; the next merge is made without it, and nothing of it is taken again.

        Args:
            device: The device.
            now: The time.
            end: Ends rollouts of heads that have it in; their numbers.

        Returns:
            ``device``, ``statistics`` and ``changes`` (contributions deleted), ``samples`` behind them,
            ``merged_statistics`` and ``merged_changes`` (those that an earlier merge included), ``copies`` (other
            devices with a copy of its state folder, deleted too), ``receipt`` (its number), ``ended`` (rollouts) and
            ``merge``: ``now``, ``waits`` (for a rollout), ``asked`` (for `merge_now`) or ``none`` (there is nothing to
            merge anew) and ``contributed``: whether it ever did.

        Raises:
            RolloutError: Nothing is known of the device.
        """
        with self._store.transaction():
            rows = self._delete(device, now.wall_ms)
            self._take_no_more(device, now.wall_ms)
            if not rows and self._store.devices.get(device) is None:
                raise RolloutError(
                    f"nothing that {device[:80]} learned is here, and no such device is known; `edge-fleet devices` "
                    f"lists those that were seen"
                )
            receipt = self._receipts.begin(device, rows, now)
            ended = end(device, now)
        for row in rows:
            self._remove(row.digest)
        kinds = {kind: [row for row in rows if row.learner == kind] for kind in ("statistics", "delta")}
        pending = {row.backbone for row in rows} & self._store.contributions.to_be_unlearned()
        when = "waits" if any(in_the_way(self._store, backbone) for backbone in pending) else "now"
        n_samples = sum(row.n_samples for row in rows)
        self._events.note(device, "forgotten", f"{len(rows)} contributions, {n_samples} labelled samples", now)
        self.plan_soon()
        return {
            "device": device,
            "statistics": len(kinds["statistics"]),
            "changes": len(kinds["delta"]),
            "samples": n_samples,
            "merged_statistics": sum(row.merged_version >= 0 for row in kinds["statistics"]),
            "merged_changes": sum(row.merged_version >= 0 for row in kinds["delta"]),
            "copies": sorted({row.device for row in rows} - {device}),
            "contributed": self._receipts.get(receipt).statement["contributed"],
            "merge": (when if self._config.auto_merge else "asked") if pending else "none",
            "receipt": receipt,
            "ended": ended,
        }

    def _delete(self, device: str, now_ms: int) -> list[Contribution]:
        """Delete all that a device contributed, and take nothing of its lineages any more.

        A copy of its state folder on another device, or under another name, is deleted with it; so is
        what a device learned that went on from a checkpoint of it. Where
        changes of it were merged, the server optimizer begins anew: its memory has them in.

        Returns:
            What was deleted.
        """
        kept = self._store.contributions
        with self._store.transaction():
            contributions = kept.all()
            known = self._store.devices.get(device)
            folder = "" if known is None else known.state_id
            theirs = [each for each in contributions if each.device == device or (folder and each.state_id == folder)]
            folders = {(each.lineage, each.backbone, each.state_id) for each in theirs}
            lineages = {each.lineage for each in theirs}
            rows = [
                each
                for each in contributions
                if (each.lineage, each.backbone, each.state_id) in folders
                or (each.lineage in lineages and self._store.checkpoints.was_given(each.lineage, each.device))
            ]
            for lineage, backbone in {(each.lineage, each.backbone) for each in theirs}:
                parts = [each for each in rows if (each.lineage, each.backbone) == (lineage, backbone)]
                pending = any(each.learner == "statistics" and each.merged_version >= 0 for each in parts)
                kept.forget(Forgotten(lineage=lineage, backbone=backbone, device=device, pending=pending, at_ms=now_ms))
                kept.take_back(lineage, backbone)
                if any(each.learner == "delta" and each.merged_version >= 0 for each in parts):
                    kept.begin_optimizer_anew(backbone)
            kept.delete(rows)
        return rows

    def _take_no_more(self, device: str, now_ms: int) -> None:
        """Take nothing of what a device has by now and did not contribute yet: of its checkpoints, and its folder."""
        kept = self._store.contributions
        of_checkpoints = {(each.lineage, each.backbone) for each in self._store.checkpoints.of(device)}
        known = self._store.devices.get(device)
        folder = set() if known is None or not known.state_id else {(known.state_id, "")}
        for lineage, backbone in of_checkpoints | folder:
            if not kept.is_forgotten(lineage):
                kept.forget(Forgotten(lineage=lineage, backbone=backbone, device=device, pending=False, at_ms=now_ms))
