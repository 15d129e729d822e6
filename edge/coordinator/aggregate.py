"""From what devices learned to a head for all of them. Values in, a release out; no storage, no network.

Classes that devices added are lined up by name. Statistics are merged over the union of classes: those of the bundle
first, then those that any merged device has samples of, in the order of their names. Changes are merged into the
current head as it is: rows of added classes that it does not have yet are cut off, because a change says nothing of
where the device's row began. Such a class gets into the head by a merge of statistics or a head that is pushed; until
then it stays with the devices that added it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.contract.manifest import HeadSpec
from edge.contract.training import FloatArray
from edge.coordinator.merging import Contributed, MergeMemory, merge_changes
from edge.coordinator.policy import MergePolicy
from edge.learning.closed_form import PRIOR_SAMPLES, TRUSTED_PAST
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.learning.merge import Delta, head_of, merge_statistics
from edge.learning.robust import screen_statistics
from edge.learning.statistics import HeadStatistics

# As devices take them.
_LONGEST_NAME = 128


def statistics_of(update: HeadUpdate, bundle: Bundle) -> HeadStatistics:
    """The statistics in an update, of its own classes.

    They may stand for fewer samples than the update names, since samples can count less than one and be forgotten; and
    for `TRUSTED_PAST` more, because a device that saw the world change counts what came since a second time.

    Raises:
        LearningError: They are not of this bundle's head, or not statistics of any samples.
    """
    head = _head(bundle)
    names = class_names_of(update, bundle)
    if not head.is_linear or not (head.training.is_classifier or head.training.is_regression):
        raise LearningError("statistics for a head that is not one linear layer for classes or quantities")
    n_outputs = len(names) if head.training.is_classifier else _n_outputs(bundle)
    found = HeadStatistics.from_tensors(
        update.tensors, head.n_statistics, n_outputs, is_classifier=head.training.is_classifier
    )
    if found.n_samples > update.n_samples * (1 + 1e-3) + TRUSTED_PAST:
        raise LearningError(f"statistics of {found.n_samples:.0f} samples that claim {update.n_samples}")
    return found


def class_names_of(update: HeadUpdate, bundle: Bundle) -> tuple[str, ...]:
    """The classes of an update: those of the bundle, then those that the device added.

    Raises:
        LearningError: They do not begin with those of the bundle, one repeats or is no name, or the head cannot grow.
    """
    known = bundle.manifest.class_names
    names = update.class_names or known
    if names == known:
        return known
    head = _head(bundle)
    if not head.training.is_classifier or head.linear is None:
        raise LearningError("added classes for a head whose last layer is not a linear one of classes")
    if names[: len(known)] != known:
        raise LearningError(f"classes that do not begin with those of the bundle: {', '.join(names)[:200]}")
    if len(set(names)) != len(names) or not all(0 < len(name) <= _LONGEST_NAME for name in names[len(known) :]):
        raise LearningError(f"added classes that repeat, or are not names: {', '.join(names[len(known) :])[:200]}")
    return names


def _head(bundle: Bundle) -> HeadSpec:
    if bundle.manifest.head is None:
        raise LearningError("an update for a bundle that has no trainable head")
    return bundle.manifest.head


def _n_outputs(bundle: Bundle) -> int:
    return bundle.manifest.output(_head(bundle).output).sample_shape[0]


def _row_names(head: HeadSpec) -> tuple[str, ...]:
    """Parameters that have one row for each class."""
    if head.linear is None or not head.training.is_classifier:
        return ()
    return (head.linear.weight,) if head.linear.bias is None else (head.linear.weight, head.linear.bias)


def check_update(update: HeadUpdate, bundle: Bundle) -> None:
    """Raise LearningError unless an update can be merged into this bundle's head."""
    if update.backbone != bundle.manifest.backbone_digest:
        raise LearningError("an update for another backbone")
    if update.learner == "statistics":
        statistics_of(update, bundle)
        return
    head, names = _head(bundle), class_names_of(update, bundle)
    rows = _row_names(head)
    expected = {p.name: (len(names), *p.shape[1:]) if p.name in rows else p.shape for p in head.parameters}
    if {name: array.shape for name, array in update.tensors.items()} != expected:
        raise LearningError(f"a change of other parameters than the head has: expected {expected}")
    if any(array.dtype != np.float32 for array in update.tensors.values()):
        raise LearningError("a change with values that are not float32")


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
    updates: Sequence[HeadUpdate],
    current: Mapping[str, FloatArray],
    release: int,
    already: Mapping[str, int],
) -> HeadRelease:
    """`merge_by` the default policy, of updates that come from one device each.

    Raises:
        LearningError: There is nothing to merge.
    """
    found = merge_by(MergePolicy(), bundle, [(update.lineage, update) for update in updates], current, release, already)
    if found.release is None:
        raise LearningError(f"there is nothing to merge: {'; '.join(found.refused.values())}")
    return found.release


def merge_by(
    policy: MergePolicy,
    bundle: Bundle,
    updates: Sequence[tuple[str, HeadUpdate]],
    current: Mapping[str, FloatArray],
    release: int,
    already: Mapping[str, int],
    *,
    current_names: Sequence[str] = (),
    memory: MergeMemory | None = None,
    rng: np.random.Generator | None = None,
) -> Merge:
    """Merge the newest update of each lineage.

    Statistics are summed, all of them each time, on top of the shipped ones worth `PRIOR_SAMPLES`. Changes are merged
    into the current head, each once. Where both kinds come from one fleet, the statistics decide: they are exact.
    Under noise, which there is for changes only, statistics are refused.

    Args:
        policy: How.
        bundle: Of the backbone.
        updates: By device; all have passed `check_update`.
        current: The head of the newest release, or the shipped one.
        release: Counter of that release, 0 for the shipped head.
        already: By lineage, the version of changes that an earlier merge included.
        current_names: Classes of the current head, where it has more than the bundle.
        memory: Of the merge before.
        rng: For noise; needed where the policy asks for any.

    Raises:
        LearningError: There is nothing to merge, or the policy's rule cannot merge it.
    """
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
        for name in _row_names(_head(bundle)):
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
        merged=dict(_prior(bundle).to_tensors()),
        origin="the shipped head",
    )


def _prior(bundle: Bundle) -> HeadStatistics:
    """The shipped statistics worth `PRIOR_SAMPLES`, or none."""
    head, n_outputs = _head(bundle), _n_outputs(bundle)
    if bundle.has(m.STATISTICS):
        tensors = bundle.tensors(m.STATISTICS)
        shipped = HeadStatistics.from_tensors(
            tensors, head.n_inputs, n_outputs, is_classifier=head.training.is_classifier
        )
        if shipped.n_samples > 0:
            return shipped.projected(head.project()).scaled_to(PRIOR_SAMPLES)
    return HeadStatistics.empty(head.n_statistics, n_outputs)


def _merge_statistics(
    policy: MergePolicy, bundle: Bundle, updates: Sequence[tuple[str, HeadUpdate]], already: Mapping[str, int]
) -> tuple[HeadRelease | None, dict[str, str], tuple[str, ...]]:
    """The release, None if nobody's statistics are left; why those of which lineage are left out; who is undecided."""
    head, known = _head(bundle), bundle.manifest.class_names
    assert head.linear is not None  # check_update
    names = (*known, *sorted({n for _, update in updates for n in class_names_of(update, bundle)} - set(known)))
    is_classifier = head.training.is_classifier
    by_device: dict[str, list[HeadStatistics]] = {}
    for device, update in updates:
        own = statistics_of(update, bundle)
        added = class_names_of(update, bundle)[len(known) :]
        by_device.setdefault(device, []).append(_lined_up(own, added, names) if is_classifier else own)
    prior = _prior(bundle)
    if is_classifier:
        prior = prior.grown(len(names))
    sums = {d: merge_statistics(parts[0], parts[1:]) for d, parts in sorted(by_device.items())}
    reasons, undecided = _screened(sums, prior, is_classifier) if policy.screen else ({}, ())
    refused = {update.lineage: reasons[device] for device, update in updates if device in reasons}
    chosen = [update for device, update in updates if device not in reasons]
    if not chosen:
        return None, refused, undecided
    total = merge_statistics(prior, (sums[device] for device in sums if device not in reasons))
    if is_classifier:  # an added class that nobody has samples of stays with the devices that added it
        kept = [i for i in range(len(names)) if i < len(known) or total.seen[i]]
        total, names = HeadStatistics(total.gram, total.moment[:, kept]), tuple(names[i] for i in kept)
    with np.errstate(over="ignore"):  # found on the next line
        merged = total.to_tensors()
    if not all(np.isfinite(array).all() for array in merged.values()):
        raise LearningError("the sum of these statistics is not finite in float32")
    release = HeadRelease(
        backbone=bundle.manifest.backbone_digest,
        parameters=head_of(
            total, head.linear, "ridge" if head.training.is_regression else "discriminant", head.project()
        ),
        merged=dict(merged),
        included={**already, **{update.lineage: update.version for update in chosen}},
        n_samples=sum(update.n_samples for update in chosen),
        origin=f"merge of {len(chosen)} contributions",
        class_names=names if names != known else (),
    )
    return release, refused, undecided


def _screened(
    sums: Mapping[str, HeadStatistics], prior: HeadStatistics, is_classifier: bool
) -> tuple[dict[str, str], tuple[str, ...]]:
    """By device, why its statistics are left out; and the devices of which it cannot be said."""
    devices = [device for device, total in sums.items() if total.n_samples > 0]  # the others change nothing
    found = screen_statistics([sums[d] for d in devices], prior if prior.n_samples > 0 else None, is_classifier)
    return {devices[i]: why for i, why in found.refused.items()}, tuple(devices[i] for i in sorted(found.undecided))


def _lined_up(statistics: HeadStatistics, added: Sequence[str], wanted: Sequence[str]) -> HeadStatistics:
    """Statistics of the wanted classes; they begin with the bundle's, as the given ones do before the added ones."""
    n_known = statistics.moment.shape[1] - len(added)
    moment = np.zeros((len(statistics.moment), len(wanted)))
    moment[:, [*range(n_known), *(wanted.index(name, n_known) for name in added)]] = statistics.moment
    return HeadStatistics(statistics.gram, moment)
