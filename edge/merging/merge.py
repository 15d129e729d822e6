"""From what devices learned to a head for all of them. Values in, a release out; no storage, no network.

Statistics are merged over the union of the classes that any merged device has samples of. Changes are merged into the
current head as it is: rows of added classes that it does not have yet are cut off, because a change says nothing of
where the device's row began. Such a class gets into the head by a merge of statistics or a head that is pushed; until
then it stays with the devices that added it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edge.contract.bundle import Bundle
from edge.contract.training import FloatArray
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.learning.statistics import HeadStatistics
from edge.merging.averaging import Contributed, MergeMemory, merge_changes
from edge.merging.contributions import class_names_of, row_names, trainable_head
from edge.merging.deltas import Delta
from edge.merging.policy import MergePolicy
from edge.merging.screening import screen_statistics
from edge.merging.sums import head_of_sum, shipped_statistics, sums_by_device


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Merge:
    """What became of contributions.

    Attributes:
        release: The merged head; None when nothing but refused statistics came.
        refused: By lineage, why its statistics are not in it.
        memory: For the next merge.
        is_exact: Whether it is a sum of statistics, made anew, in which nothing else is left of earlier merges.
        undecided: Devices that disagree with others, but are too many to be called garbage; they are merged.
    """

    release: HeadRelease | None
    refused: Mapping[str, str] = field(default_factory=dict)
    memory: MergeMemory = field(default_factory=MergeMemory)
    is_exact: bool = False
    undecided: tuple[str, ...] = ()


def merge(
    bundle: Bundle,
    updates: Sequence[tuple[str, HeadUpdate]],
    current: Mapping[str, FloatArray],
    release: int,
    already: Mapping[str, int],
    *,
    policy: MergePolicy | None = None,
    current_names: Sequence[str] = (),
    memory: MergeMemory | None = None,
    rng: np.random.Generator | None = None,
) -> Merge:
    """Merge the newest update of each lineage.

    Statistics are summed, all of them each time, on top of the shipped ones worth `PRIOR_SAMPLES`. Changes are merged
    into the current head, each once. Where both kinds come from one fleet, the statistics decide: they are exact.
    Under noise, which there is for changes only, statistics are refused.

    Args:
        bundle: Of the backbone.
        updates: By device; all have passed `check_update`.
        current: The head of the newest release, or the shipped one.
        release: Counter of that release, 0 for the shipped head.
        already: By lineage, the version of changes that an earlier merge included.
        policy: How; the default one where none is given.
        current_names: Classes of the current head, where it has more than the bundle.
        memory: Of the merge before.
        rng: For noise; needed where the policy asks for any.

    Raises:
        LearningError: There is nothing to merge, or the policy's rule cannot merge it.
    """
    policy = MergePolicy() if policy is None else policy
    memory = MergeMemory() if memory is None else memory
    statistics = [(device, update) for device, update in updates if update.learner == "statistics"]
    refused: dict[str, str] = {}
    if policy.noise_multiplier > 0:
        refused = {update.lineage: "statistics are not merged where noise is asked for" for _, update in statistics}
    elif statistics:
        found, refused, undecided = _merge_statistics(policy, bundle, statistics, already)
        if found is not None:
            return Merge(release=found, refused=refused, memory=memory, is_exact=True, undecided=undecided)
    changes = [(device, u) for device, u in updates if u.learner != "statistics" and u.n_samples > 0]
    if refused and not changes:
        return Merge(release=None, refused=refused, memory=memory)
    names = tuple(current_names) or bundle.manifest.class_names
    contributed = [_contributed(device, update, bundle, current, names, release) for device, update in changes]
    parameters, memory = merge_changes(policy, current, contributed, memory, rng)
    merged = HeadRelease(
        backbone=bundle.manifest.backbone_digest,
        parameters=parameters,
        included={**already, **{update.lineage: update.version for _, update in changes}},
        n_samples=sum(update.n_samples for _, update in changes),
        origin=f"merge of {len(changes)} contributions",
        class_names=names if names != bundle.manifest.class_names else (),
    )
    return Merge(release=merged, refused=refused, memory=memory)


def _contributed(
    device: str,
    update: HeadUpdate,
    bundle: Bundle,
    current: Mapping[str, FloatArray],
    names: Sequence[str],
    release: int,
) -> Contributed:
    """A change as wide as the current head."""
    known, own = bundle.manifest.class_names, class_names_of(update, bundle)
    change, has = dict(update.tensors), {}
    # A row of an added class is a change of the current head's row only if it began there.
    usable = own if update.base_release == release else known
    if tuple(own) != tuple(names):
        for name in row_names(trainable_head(bundle)):
            rows = np.zeros_like(current[name])
            rows[: len(known)] = change[name][: len(known)]
            for i in range(len(known), len(names)):
                if names[i] in usable:
                    rows[i] = change[name][usable.index(names[i])]
            change[name] = rows
            has[name] = np.array([i < len(known) or n in usable for i, n in enumerate(names)])
    delta = Delta(change=change, n_samples=update.n_samples, staleness=max(0, release - update.base_release))
    return Contributed(device=device, delta=delta, has=has)


def shipped_head(bundle: Bundle) -> HeadRelease:
    """The head that the bundle came with, for a fleet of whose merged statistics nothing is to stay."""
    return HeadRelease(
        backbone=bundle.manifest.backbone_digest,
        parameters=bundle.head_parameters(),
        merged=dict(shipped_statistics(bundle).to_tensors()),
        origin="the shipped head",
    )


def _merge_statistics(
    policy: MergePolicy, bundle: Bundle, updates: Sequence[tuple[str, HeadUpdate]], already: Mapping[str, int]
) -> tuple[HeadRelease | None, dict[str, str], tuple[str, ...]]:
    """The release, None if nobody's statistics are left; why those of which lineage are left out; who is undecided."""
    sums, names = sums_by_device(bundle, updates)
    prior = shipped_statistics(bundle)
    is_classifier = trainable_head(bundle).training.is_classifier
    if is_classifier:
        prior = prior.grown(len(names))
    reasons, undecided = _screened(sums, prior, is_classifier) if policy.screen else ({}, ())
    refused = {update.lineage: reasons[device] for device, update in updates if device in reasons}
    chosen = [update for device, update in updates if device not in reasons]
    if not chosen:
        return None, refused, undecided
    total = sum((sums[device] for device in sums if device not in reasons), start=prior)
    release = replace(
        head_of_sum(bundle, total, names),
        included={**already, **{update.lineage: update.version for update in chosen}},
        n_samples=sum(update.n_samples for update in chosen),
        origin=f"merge of {len(chosen)} contributions",
    )
    return release, refused, undecided


def _screened(
    sums: Mapping[str, HeadStatistics], prior: HeadStatistics, is_classifier: bool
) -> tuple[dict[str, str], tuple[str, ...]]:
    """By device, why its statistics are left out; and the devices of which it cannot be said."""
    devices = [device for device, total in sums.items() if total.n_samples > 0]  # the others change nothing
    found = screen_statistics([sums[d] for d in devices], prior if prior.n_samples > 0 else None, is_classifier)
    return {devices[i]: why for i, why in found.refused.items()}, tuple(devices[i] for i in sorted(found.undecided))
