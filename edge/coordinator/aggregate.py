"""From what devices learned to a head for all of them. Values in, a release out; no storage, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.contract.manifest import HeadSpec
from edge.contract.training import FloatArray
from edge.learning.closed_form import PRIOR_SAMPLES
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.learning.merge import Delta, head_of, merge_statistics, weighted_mean
from edge.learning.statistics import HeadStatistics


def statistics_of(update: HeadUpdate, bundle: Bundle) -> HeadStatistics:
    """The statistics in an update.

    Raises:
        LearningError: They are not of this bundle's head, or not statistics of any samples.
    """
    head = _head(bundle)
    if head.linear is None or len(head.features.sample_shape) != 1:
        raise LearningError("statistics for a head that is not one linear layer")
    n_features, n_classes = head.features.sample_shape[0], len(bundle.manifest.class_names)
    found = HeadStatistics.from_tensors(update.tensors, n_features, n_classes)
    if abs(found.n_samples - update.n_samples) > 1e-3 * max(1, update.n_samples):
        raise LearningError(f"statistics of {found.n_samples:.0f} samples that claim {update.n_samples}")
    return found


def _head(bundle: Bundle) -> HeadSpec:
    if bundle.manifest.head is None:
        raise LearningError("an update for a bundle that has no trainable head")
    return bundle.manifest.head


def check_update(update: HeadUpdate, bundle: Bundle) -> None:
    """Raise LearningError unless an update can be merged into this bundle's head."""
    if update.backbone != bundle.manifest.backbone_digest:
        raise LearningError("an update for another backbone")
    if update.learner == "statistics":
        statistics_of(update, bundle)
        return
    expected = {spec.name: spec.shape for spec in _head(bundle).parameters}
    if {name: array.shape for name, array in update.tensors.items()} != expected:
        raise LearningError(f"a change of other parameters than the head has: expected {expected}")


def merge(
    bundle: Bundle,
    updates: Sequence[HeadUpdate],
    current: Mapping[str, FloatArray],
    release: int,
    already: Mapping[str, int],
) -> HeadRelease:
    """Merge the newest update of each lineage.

    Statistics are summed, all of them each time, on top of the shipped ones worth `PRIOR_SAMPLES`. Deltas are averaged
    onto the current head, each once. Where both kinds come from one fleet, the statistics decide: they are exact.

    Args:
        bundle: Of the backbone.
        updates: All have passed `check_update`.
        current: The head of the newest release, or the shipped one.
        release: Counter of that release, 0 for the shipped head.
        already: By lineage, the version that an earlier merge included.

    Raises:
        LearningError: There is nothing to merge.
    """
    statistics = [update for update in updates if update.learner == "statistics"]
    included = dict(already)
    if statistics:
        head = _head(bundle)
        assert head.linear is not None  # check_update
        n_features, n_classes = head.features.sample_shape[0], len(bundle.manifest.class_names)
        prior = HeadStatistics.empty(n_features, n_classes)
        if bundle.has(m.STATISTICS):
            shipped = HeadStatistics.from_tensors(bundle.tensors(m.STATISTICS), n_features, n_classes)
            prior = shipped.scaled_to(PRIOR_SAMPLES)
        total = merge_statistics(prior, (statistics_of(update, bundle) for update in statistics))
        included |= {update.lineage: update.version for update in statistics}
        parameters, tensors, chosen = head_of(total, head.linear), dict(total.to_tensors()), statistics
    else:
        chosen = [update for update in updates if update.n_samples > 0]
        deltas = (
            Delta(
                change=dict(update.tensors), n_samples=update.n_samples, staleness=max(0, release - update.base_release)
            )
            for update in chosen
        )
        parameters, tensors = weighted_mean(current, deltas), {}
        included |= {update.lineage: update.version for update in chosen}
    return HeadRelease(
        backbone=bundle.manifest.backbone_digest,
        parameters=parameters,
        merged=tensors,
        included=included,
        n_samples=sum(update.n_samples for update in chosen),
        origin=f"merge of {len(chosen)} contributions",
    )
