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
from edge.learning.closed_form import PRIOR_SAMPLES, grown
from edge.learning.exchange import HeadRelease, HeadUpdate, Outside
from edge.learning.statistics import HeadStatistics
from edge.merging.averaging import Contributed, MergeMemory, merge_changes
from edge.merging.contributions import class_names_of, n_outputs_of, row_names, trainable_head
from edge.merging.deltas import Delta
from edge.merging.noised import divided, pool
from edge.merging.outsiders import Layer, worth_outside, worth_shipped
from edge.merging.policy import MergePolicy
from edge.merging.pooling import Elsewhere
from edge.merging.screening import Screening, screen_statistics
from edge.merging.sums import head_of_sum, lined_up, shipped_statistics, sums_by_device


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Merge:
    """What became of contributions.

    Attributes:
        release: The merged head; None when there is nothing to make one of.
        refused: By lineage, why its statistics are garbage.
        set_aside: By lineage, in what its device has a world of its own: it keeps what it learned to itself.
        waiting: By lineage, what it lacks to be merged.
        why_not: What the merge lacks, where that is why there is no release.
        memory: For the next merge.
        is_exact: Whether it is a sum of statistics, made anew, in which nothing else is left of earlier merges.
        undecided: Devices that disagree with others, but are too many to be called garbage; they are merged.
    """

    release: HeadRelease | None
    refused: Mapping[str, str] = field(default_factory=dict)
    set_aside: Mapping[str, str] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    why_not: str = ""
    memory: MergeMemory = field(default_factory=MergeMemory)
    is_exact: bool = False
    undecided: tuple[str, ...] = ()

    @property
    def left_out(self) -> dict[str, str]:
        """By lineage, why its statistics were looked at and are not in it."""
        return {**self.refused, **self.set_aside}


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
    elsewhere: Elsewhere | None = None,
) -> Merge:
    """Merge the newest update of each lineage.

    Statistics are summed, all of them each time, on top of the shipped ones. Changes are merged
    into the current head, each once. Where both kinds come from one fleet, the statistics decide: they are exact.
    Under noise, which there is for changes only, statistics are refused. A contribution of few samples waits, and so do
    all while they are few together.

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
        elsewhere: At a site, what the rest of the fleet has learned, in place of the shipped statistics.

    Raises:
        LearningError: There is nothing to merge, or the policy's rule cannot merge it.
    """
    policy = MergePolicy() if policy is None else policy
    memory = MergeMemory() if memory is None else memory
    waiting = {
        update.lineage: f"{update.n_samples} labelled samples, {policy.min_samples} are needed (--min-samples)"
        for _, update in updates
        if update.n_samples < policy.min_samples
    }
    updates = [(device, update) for device, update in updates if update.lineage not in waiting]
    n_samples = sum(update.n_samples for _, update in updates) + (0 if elsewhere is None else elsewhere.n_samples)
    if n_samples < policy.min_merge_samples and (updates or waiting):
        why = f"{n_samples} labelled samples to merge, {policy.min_merge_samples} are needed (--min-merge-samples)"
        return Merge(release=None, memory=memory, waiting=waiting, why_not=why)
    statistics, noised = divided([each for each in updates if each[1].learner == "statistics"])
    refused: dict[str, str] = {}
    set_aside: dict[str, str] = {}
    if policy.noise_multiplier > 0:
        why = "statistics are not merged where noise is asked for"
        refused = {update.lineage: why for _, update in (*statistics, *noised)}
    elif statistics or noised or elsewhere is not None:
        found = _merge_statistics(policy, bundle, statistics, noised, already, elsewhere)
        waiting |= found.waiting
        if found.release is not None:
            return replace(found, memory=memory, waiting=waiting)
        refused, set_aside = dict(found.refused), dict(found.set_aside)
    changes = [(device, u) for device, u in updates if u.learner != "statistics" and u.n_samples > 0]
    if (refused or set_aside) and not changes:
        return Merge(release=None, refused=refused, set_aside=set_aside, memory=memory, waiting=waiting)
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
    return Merge(release=merged, refused=refused, set_aside=set_aside, memory=memory, waiting=waiting)


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


def _shipped_layer(bundle: Bundle, n_classes: int) -> Layer | None:
    """Of as many classes as statistics have; None for projected features: the shipped head is not of those."""
    head = trainable_head(bundle)
    if head.projection is not None or head.linear is None or head.linear.bias is None:
        return None
    shipped = grown(bundle.head_parameters(), head.linear, n_classes - n_outputs_of(bundle))
    return shipped[head.linear.weight].astype(np.float64), shipped[head.linear.bias].astype(np.float64)


def _worth_outside(bundle: Bundle, devices: Mapping[str, HeadStatistics], prior: HeadStatistics) -> Outside | None:
    """By lineage, of statistics of the same classes."""
    n_classes = prior.moment.shape[1]
    layer = _shipped_layer(bundle, n_classes)
    if layer is None:
        return None
    known = shipped_statistics(bundle, 1.0).grown(n_classes)
    return worth_outside(list(devices.values()), prior, layer, known, list(devices))


def _prior(bundle: Bundle, shipped: HeadStatistics, learned: HeadStatistics) -> HeadStatistics:
    """The shipped statistics with the weight that they have beside what was learned, at most the given one."""
    layer = _shipped_layer(bundle, learned.moment.shape[1])
    if layer is None or shipped.n_samples <= 0:
        return shipped
    return shipped.scaled_to(worth_shipped(learned, layer, shipped.n_samples))


def shipped_head(bundle: Bundle) -> HeadRelease:
    """The head that the bundle came with, and statistics as a device begins with them.

    For a fleet of whose merged statistics nothing is to stay.
    """
    return HeadRelease(
        backbone=bundle.manifest.backbone_digest,
        parameters=bundle.head_parameters(),
        merged=dict(shipped_statistics(bundle, PRIOR_SAMPLES).to_tensors()),
        origin="the shipped head",
    )


def _merge_statistics(
    policy: MergePolicy,
    bundle: Bundle,
    updates: Sequence[tuple[str, HeadUpdate]],
    noised: Sequence[tuple[str, HeadUpdate]],
    already: Mapping[str, int],
    elsewhere: Elsewhere | None,
) -> Merge:
    """The sum, without a release if nobody's statistics are left.

    What was told under noise is not screened: it looks like no samples, and like nobody else's. So it is merged where
    the policy says so.
    """
    unscreened: dict[str, str] = {}
    if not policy.merge_noised:
        unscreened = {u.lineage: f"{u.noised.text}; such are merged with --merge-noised" for _, u in noised if u.noised}
        noised = []
    known_names, is_classifier = bundle.manifest.class_names, trainable_head(bundle).training.is_classifier
    given = known_names if elsewhere is None else elsewhere.names
    sums, names = sums_by_device(bundle, updates, {*given, *(name for _, each in noised for name in each.class_names)})
    prior = shipped_statistics(bundle, policy.prior_samples) if elsewhere is None else elsewhere.statistics
    if is_classifier:
        prior = lined_up(prior, given[len(known_names) :], names)
    devices = [device for device, total in sums.items() if total.n_samples > 0]  # the others change nothing
    screened = Screening({}, {}, {})
    if policy.screen:
        known = prior if prior.n_samples > 0 else None
        screened = screen_statistics([sums[device] for device in devices], known, is_classifier)
    out = {devices[i] for i in screened.left_out}
    chosen = [update for device, update in updates if device not in out]
    pooled = pool(bundle, shipped_statistics(bundle, 1.0), noised, names) if noised else None
    told = [each for _, each in noised if pooled is not None and each.lineage in pooled.lineages]
    release = None
    if chosen or told or elsewhere is not None:
        others: Mapping[str, int] = {} if elsewhere is None else elsewhere.included
        newest = {device: update.lineage for device, update in updates}
        summed = {newest[device]: total for device, total in sums.items() if device not in out and total.n_samples > 0}
        nothing = HeadStatistics.empty(len(prior.gram) - 1, prior.moment.shape[1])
        learned = sum(summed.values(), start=nothing if pooled is None else pooled.statistics)
        if elsewhere is None and is_classifier:
            prior = _prior(bundle, prior, learned)
        merged = (*chosen, *told)
        under_noise = "" if pooled is None else f", {len(told)} of them under noise, worth {pooled.worth:.0%}"
        release = replace(
            head_of_sum(bundle, prior + learned, names),
            outside=_worth_outside(bundle, summed, prior) if is_classifier else None,
            included={**already, **others, **{update.lineage: update.version for update in merged}},
            n_samples=sum(update.n_samples for update in merged) + (0 if elsewhere is None else elsewhere.n_samples),
            origin=f"merge of {len(merged) + len(others)} contributions{under_noise}",
        )

    def by_lineage(reasons: Mapping[int, str]) -> dict[str, str]:
        found = {devices[i]: why for i, why in reasons.items()}
        return {update.lineage: found[device] for device, update in updates if device in found}

    return Merge(
        release=release,
        refused=by_lineage(screened.refused) | unscreened,
        set_aside=by_lineage(screened.set_aside),
        waiting={} if pooled is None else pooled.waiting,
        is_exact=True,
        undecided=tuple(devices[i] for i in sorted(screened.undecided)),
    )
