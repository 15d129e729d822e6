"""One merge: from what devices sent for a backbone to the heads that are pushed, group by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.contract.errors import EdgeError, LearningError
from edge.contract.training import FloatArray
from edge.coordinator.devices.sites import Sites
from edge.coordinator.events import Events
from edge.coordinator.learning.holdout import Head, Holdout
from edge.coordinator.learning.release_policy import ReleasePolicy
from edge.coordinator.records import Contribution, Refused, Release
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.releases.bundles import Bundles
from edge.coordinator.releases.releases import add_release
from edge.coordinator.rollout.plan import Plan
from edge.coordinator.rollout.states import ENDED, TAKEN_BACK
from edge.coordinator.selection import for_devices
from edge.coordinator.store.store import Store
from edge.coordinator.upstream.pools import Pools
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.merging.averaging import account_of
from edge.merging.contributions import check_update
from edge.merging.groups import ALL_DEVICES, EVERYBODY, groups
from edge.merging.merge import Merge, merge, shipped_head
from edge.merging.policy import MergePolicy


class Merges:
    """See the module.

    Args:
        policy: How contributions are merged.
        store: The database.
        artifacts: Files by digest.
        bundles: Those that are known.
        events: For what people should see.
        rng: For noise; nobody may foresee it.
        release_policy: How heads go out, and what they must be worth.
        holdout: On which they are tested first; None for none.
        roll_out: Begins the rollout of a head by a plan.
        sites: Whose devices are in whose contribution.
        pools: At a site, what is known of the rest of the fleet; else None.
    """

    def __init__(
        self,
        policy: MergePolicy,
        store: Store,
        artifacts: ArtifactStore,
        bundles: Bundles,
        events: Events,
        rng: np.random.Generator | None,
        release_policy: ReleasePolicy | None = None,
        holdout: Holdout | None = None,
        roll_out: Callable[[Plan, Now], object] | None = None,
        sites: Sites | None = None,
        pools: Pools | None = None,
    ) -> None:
        self._sites, self._pools = sites, pools
        self._release_policy = release_policy or ReleasePolicy()
        self._holdout = holdout
        self._roll_out = roll_out
        self._policy = policy
        self._store = store
        self._artifacts = artifacts
        self._bundles = bundles
        self._events = events
        self._rng = rng
        self._why_not: dict[str, list[str]] = {}

    def why_not(self, backbone: str) -> Sequence[str]:
        """What the last merge of a backbone lacked."""
        return self._why_not.get(backbone, ())

    def make(
        self, backbone: str, now: Now, is_due: Callable[[tuple[str, ...]], bool] = lambda _: True
    ) -> list[Release]:
        """Merge group by group, and push each head to those that it is meant for.

        Args:
            backbone: Of the heads.
            now: The time.
            is_due: Whether a group's turn has come; where something is to be forgotten all have it.
        """
        self._why_not[backbone] = []
        bundle = self._bundles.of(backbone)
        if bundle is None:
            return []
        gathered = self._gather(backbone, bundle, now)
        rows = {update.lineage: row for row, update in gathered}
        contributions = [(row.device, update) for row, update in gathered]
        parts = groups(bundle, contributions, self._policy.merge_by, self._store.devices.tags())
        is_pending = backbone in self._store.contributions.to_be_unlearned()
        later = {} if is_pending else {group: part for group, part in parts.items() if not is_due(group)}
        parts = {group: part for group, part in parts.items() if group not in later}
        merges: dict[tuple[str, ...], Merge] = {}
        if is_pending and EVERYBODY not in parts:  # whoever is in no group any more has what is to be forgotten
            merges[EVERYBODY] = Merge(release=shipped_head(bundle), is_exact=True)
        for meant_for, part in parts.items():
            found = self._merge_group(bundle, meant_for, part, is_pending, now)
            if found is not None:
                merges[meant_for] = found
        of_later = {update.lineage for part in later.values() for _, update in part}
        refused = self._store.contributions.refused(backbone)
        left_out = [each for each in refused if each.lineage in of_later]  # what was said of these still holds
        releases = []
        for i, (meant_for, found) in enumerate(merges.items()):
            looked_at = [rows[update.lineage] for _, update in parts.get(meant_for, ())]
            kept, was_left_out = self._left_out(backbone, found, looked_at, now)
            left_out += kept
            self._why_not[backbone] += self._tell_who_waits(found, rows, now)
            # A change is not in a sum of statistics.
            out = {**found.left_out, **found.waiting}
            used = [r for r in looked_at if r.lineage not in out and (r.learner == "statistics") == found.is_exact]
            is_anew = found.is_exact or not is_pending
            if not is_anew:  # there is no sum of others, and what devices have still contains what was forgotten
                used = []
            published = found if is_anew else Merge(release=shipped_head(bundle), is_exact=True)
            is_news = is_pending or was_left_out or any(row.version > row.merged_version for row in used)
            is_news |= self._pools is not None and self._pools.is_news(backbone)
            if is_news or self._is_new_group(backbone, meant_for):
                is_last = i == len(merges) - 1
                releases += self._publish(bundle, meant_for, published, used, is_pending, is_last, now)
        self._store.contributions.refuse(backbone, left_out)  # only now: a merge that fails looks at them again
        return releases

    def _merge_group(
        self, bundle: Bundle, meant_for: tuple[str, ...], part: list[tuple[str, HeadUpdate]], is_pending: bool, now: Now
    ) -> Merge | None:
        """What becomes of the contributions of one group; None when they cannot be merged."""
        backbone = bundle.manifest.backbone_digest
        current, counter, names = self._current_head(backbone, bundle, meant_for)
        gone = self._never_arrived()
        rows = [each for each in self._store.contributions.all(backbone) if each.merged_version >= 0]
        before = [each for each in rows if each.merged_release not in gone]
        try:
            return merge(
                bundle,
                part,
                current,
                counter,
                # Statistics are all summed anew: what is in this merge, only this merge says.
                {each.lineage: each.merged_version for each in before if each.learner == "delta"},
                policy=self._policy,
                current_names=names,
                memory=self._store.contributions.memory(backbone),
                rng=self._rng,
                elsewhere=None if self._pools is None else self._pools.elsewhere(bundle),
            )
        except LearningError as exc:  # the same numbers fail again: it waits for others
            if is_pending and not any(update.learner == "statistics" for _, update in part):
                return Merge(release=None)
            self._events.fault("", "merge-failed", _of(meant_for) + str(exc), now, kind=str(exc))
            return None

    def _is_new_group(self, backbone: str, meant_for: tuple[str, ...]) -> bool:
        """Whether groups are made, and this one was never given a head."""
        heads = [each for each in self._store.releases.all() if each.kind == "head" and each.backbone == backbone]
        return bool(self._policy.merge_by) and all(each.devices != meant_for for each in heads)

    def _tell_who_waits(self, found: Merge, rows: dict[str, Contribution], now: Now) -> list[str]:
        """Say what contributions and the merge lack."""
        for lineage, why in found.waiting.items():
            self._events.fault(rows[lineage].device, "merge-waits", why, now, kind=why)
        if found.why_not:
            self._events.fault("", "merge-waits", found.why_not, now, kind=found.why_not)
        told = [f"{rows[lineage].device}: {why}" for lineage, why in found.waiting.items()]
        return told + ([found.why_not] if found.why_not else [])

    def inside(self, backbone: str, bundle: Bundle, now: Now) -> list[tuple[Contribution, HeadUpdate]]:
        """What this site gives the coordinator above: what its own merges have in, and changes."""
        out = {(each.device, each.lineage): each.version for each in self._store.contributions.refused(backbone)}
        return [
            (row, update)
            for row, update in self._gather(backbone, bundle, now, changes=True)
            if row.n_samples >= self._policy.min_samples
            and (row.learner == "delta" or row.merged_version >= 0)
            and out.get((row.device, row.lineage)) != row.version
        ]

    def _gather(
        self, backbone: str, bundle: Bundle, now: Now, *, changes: bool | None = None
    ) -> list[tuple[Contribution, HeadUpdate]]:
        """What can be merged: the newest of each lineage, of changes those that no merge has in.

        At a site changes are no part of that where it is not said: they are averaged once, above.
        """
        changes = self._pools is None if changes is None else changes
        newest: dict[str, Contribution] = {}
        outside = self._store.devices.not_approved()
        inside = [row for row in self._store.contributions.all(backbone) if row.device not in outside]
        if self._sites is not None:
            inside = self._sites.counted(backbone, inside, now)
        if self._pools is not None:
            inside = [each for each in inside if self._pools.counts(each, now)]
        inside = [each for each in inside if changes or each.learner == "statistics"]
        for row in sorted(inside, key=lambda row: row.version):
            if row.lineage in newest:
                other = newest[row.lineage].device
                detail = f"it has a copy of the state folder of {other}; only one of them is counted"
                self._events.note(row.device, "copied-state", detail, now)
            newest[row.lineage] = row
        found, gone = [], self._never_arrived()
        for row in newest.values():
            is_in = row.version <= row.merged_version or row.base_release < row.merged_release
            if row.learner == "delta" and is_in and row.merged_release not in gone:
                # A change is added once; statistics are summed anew each time. One that starts from before the last
                # merge contains what was merged then: the device sends another once it has the merged head.
                continue
            try:
                update = HeadUpdate.decode(self._artifacts.get(row.digest).path.read_bytes(), row.device)
                check_update(update, bundle)
            except EdgeError as exc:
                self._events.fault(row.device, "contribution-refused", str(exc), now, kind=row.digest)
                continue
            found.append((row, update))
        return found

    def _test(self, bundle: Bundle, meant_for: tuple[str, ...], found: HeadRelease, now: Now) -> tuple[bool, str]:
        """Test a candidate on the coordinator's own holdout, where there is one.

        Returns:
            Whether it may go out, and the numbers.
        """
        asked = self._release_policy.of_group(meant_for).min_gain
        if self._holdout is None:
            return True, ""
        parameters, counter, names = self._current_head(bundle.manifest.backbone_digest, bundle, meant_for)
        try:
            candidate = Head(found.parameters, found.class_names)
            tested = self._holdout.test(bundle, Head(parameters, names), candidate)
        except EdgeError as exc:
            kind = bundle.manifest.backbone_digest
            self._events.fault("", "not-evaluated", f"{_of(meant_for)}{exc}", now, kind=kind)
            return not asked, f"not tested: {exc}"
        before = f"release {counter}" if counter else "the shipped head"
        text = f"{tested.text} ({before}): gain {100 * tested.gain:+.2f} points, ±{196 * tested.error:.2f}"
        return tested.gain >= asked, f"{text}; {100 * asked:+.2f} asked for"

    def _lost(self, backbone: str, meant_for: tuple[str, ...], found: Merge, text: str, reason: str, now: Now) -> None:
        """A candidate does not go out; what noise it cost is spent all the same."""
        before = self._store.contributions.memory(backbone)
        self._store.contributions.remember(backbone, replace(found.memory, optimizer=before.optimizer))
        self._events.note("", "candidate-lost", f"{reason}: {text}: it is not released", now)
        self._why_not.setdefault(backbone, []).append(f"{_of(meant_for)}{text}: it is not released")

    def _never_arrived(self) -> set[int]:
        """Releases whose rollout was ended before it was through: what was merged into them is in no head."""
        completed, rollouts = self._store.rollouts.completed(), self._store.rollouts.all()
        by_release = {each.plan.release: each for each in rollouts[::-1]}
        return {counter for counter, each in by_release.items() if each.state in ENDED and each.id not in completed}

    def _publish(
        self,
        bundle: Bundle,
        meant_for: tuple[str, ...],
        found: Merge,
        used: list[Contribution],
        is_pending: bool,
        is_last: bool,
        now: Now,
    ) -> list[Release]:
        if found.release is None:
            return []
        backbone = bundle.manifest.backbone_digest
        before = self._store.contributions.memory(backbone)
        n_devices = len({row.device for row in used})
        with_above = self._pools is not None and self._pools.knows(backbone)
        whose = f"{n_devices} device{'' if n_devices == 1 else 's'}{' and of the fleet above' if with_above else ''}"
        reason = f"{_of(meant_for)}merge of {whose}, {found.release.n_samples} labelled samples"
        if is_pending:
            reason = f"{reason if used else 'the shipped head'}, without what was forgotten"
        may_go, tested = self._test(bundle, meant_for, found.release, now)
        if not may_go and not is_pending:  # what is to be forgotten must go, whatever that costs
            self._lost(backbone, meant_for, found, tested, reason, now)
            return []
        digest = self._artifacts.put(found.release.encode()).digest
        has_plan = bool(self._release_policy.plan) and not is_pending
        with self._store.transaction():  # the release, what it merged, and what the merge after must know
            release = add_release(
                self._store,
                self._artifacts,
                kind="head",
                digest=digest,
                backbone=backbone,
                devices=() if has_plan else meant_for,
                reason=reason,
                now_ms=now.wall_ms,
                notes=tested,
            )
            self._store.contributions.merged(used, release.counter)
            if self._pools is not None:
                self._pools.merged(backbone, release.counter)
            self._store.contributions.remember(backbone, found.memory)
            if found.is_exact and is_last:
                self._store.contributions.unlearned(backbone)
            if has_plan:
                select = for_devices([each for each in meant_for if each != ALL_DEVICES])
                plan = self._release_policy.plan_of(release.counter, select)
                assert plan is not None
                assert self._roll_out is not None
                self._roll_out(plan, now)
        self._events.note("", "release", f"{release.counter}: {reason}{f'; {tested}' if tested else ''}", now)
        if found.memory.account not in (b"", before.account):
            delta = self._policy.privacy_delta
            epsilon = account_of(found.memory).epsilon(delta)
            detail = f"all merges with noise so far: epsilon {epsilon:.3g} at delta {delta:g}, of any one device"
            self._events.note("", "privacy", detail, now)
        return [release]

    def _left_out(self, backbone: str, found: Merge, used: list[Contribution], now: Now) -> tuple[list[Refused], bool]:
        """Report what a merge left out.

        Returns:
            It, and whether something is left out now that the merge before had in.
        """
        if found.undecided:
            detail = f"{', '.join(found.undecided)} disagree with others but are no minority: merged all the same"
            self._events.note("", "screening-undecided", detail, now)
        before = {(each.device, each.lineage): each.reason for each in self._store.contributions.refused(backbone)}
        left_out, was_in = [], False
        for row in used:
            if (reason := found.left_out.get(row.lineage)) is not None:
                left_out.append(
                    Refused(
                        device=row.device, lineage=row.lineage, backbone=backbone, version=row.version, reason=reason
                    )
                )
                if before.get((row.device, row.lineage)) != reason:
                    name = "left-out" if row.lineage in found.refused else "another-world"
                    self._events.note(row.device, name, f"{row.n_samples} samples not merged: {reason}", now)
                    was_in |= row.merged_version >= 0
        return left_out, was_in

    def _current_head(
        self, backbone: str, bundle: Bundle, meant_for: tuple[str, ...]
    ) -> tuple[dict[str, FloatArray], int, tuple[str, ...]]:
        """The head that these were last given, its release counter, and its classes where some were added."""
        named = {each.model for each in self._store.devices.models() if each.backbone == backbone}
        selects = {"", for_devices([each for each in meant_for if each != ALL_DEVICES])}
        completed = self._store.rollouts.completed()
        through = {
            each.plan.release
            for each in self._store.rollouts.all()
            if each.id in completed and each.state not in TAKEN_BACK and each.plan.select in selects
        }
        for each in self._store.releases.all():
            is_of_all = each.model == "" or named <= {each.model}
            is_meant = each.devices in ((ALL_DEVICES,), meant_for) or each.counter in through
            is_theirs = is_meant and is_of_all
            if each.kind == "head" and each.backbone == backbone and is_theirs:
                data = self._artifacts.get(each.digest).path.read_bytes()
                release = HeadRelease.decode(data, "the current head")
                return release.parameters, each.counter, release.class_names
        return bundle.head_parameters(), 0, ()


def _of(meant_for: tuple[str, ...]) -> str:
    """A group, before what is said of it."""
    return "" if meant_for == EVERYBODY else f"{', '.join(meant_for)}: "
