"""Sums of statistics: exact, whatever the split among devices and the order of arrival.

Classes that devices added are lined up by name: those of the bundle first, then those that any device named, in the
order of their names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.learning.solve import Method, head_of
from edge.learning.statistics import HeadStatistics
from edge.merging.contributions import class_names_of, n_outputs_of, statistics_of, trainable_head


def shipped_statistics(bundle: Bundle, n_samples: float) -> HeadStatistics:
    """The shipped statistics worth so many samples, or none."""
    head, n_outputs = trainable_head(bundle), n_outputs_of(bundle)
    if bundle.has(m.STATISTICS):
        tensors = bundle.tensors(m.STATISTICS)
        shipped = HeadStatistics.from_tensors(
            tensors, head.n_inputs, n_outputs, is_classifier=head.training.is_classifier
        )
        if shipped.n_samples > 0:
            return shipped.projected(head.project()).scaled_to(n_samples)
    return HeadStatistics.empty(head.n_statistics, n_outputs)


def sums_by_device(
    bundle: Bundle, updates: Sequence[tuple[str, HeadUpdate]], also: Collection[str] = ()
) -> tuple[dict[str, HeadStatistics], tuple[str, ...]]:
    """What each device sent, its lineages added up.

    Args:
        bundle: Of the backbone.
        updates: Of statistics, by device; all have passed `check_update`.
        also: Further classes, which none of them need have.

    Returns:
        By device, in their order, statistics of the classes that come second: the union of all devices'.
    """
    known = bundle.manifest.class_names
    added = {name for _, update in updates for name in class_names_of(update, bundle)} | set(also)
    names = (*known, *sorted(added - set(known)))
    found: dict[str, HeadStatistics] = {}
    for device, update in sorted(updates, key=lambda update: update[0]):
        own = statistics_of(update, bundle)
        if trainable_head(bundle).training.is_classifier:
            own = lined_up(own, class_names_of(update, bundle)[len(known) :], names)
        found[device] = found[device] + own if device in found else own
    return found, names


def lined_up(statistics: HeadStatistics, added: Sequence[str], wanted: Sequence[str]) -> HeadStatistics:
    """Statistics of the wanted classes; they begin with the bundle's, as the given ones do before the added ones."""
    n_known = statistics.moment.shape[1] - len(added)
    moment = np.zeros((len(statistics.moment), len(wanted)))
    moment[:, [*range(n_known), *(wanted.index(name, n_known) for name in added)]] = statistics.moment
    return HeadStatistics(statistics.gram, moment)


def head_of_sum(bundle: Bundle, total: HeadStatistics, names: Sequence[str]) -> HeadRelease:
    """The head that a sum determines. An added class without samples is left to the devices that added it.

    Args:
        bundle: Of the backbone.
        total: The sum.
        names: Of its classes.

    Raises:
        LearningError: No head can be solved from it, or it is not finite.
    """
    head, known = trainable_head(bundle), bundle.manifest.class_names
    assert head.linear is not None  # `check_update`
    if head.training.is_classifier:
        kept = [i for i in range(len(names)) if i < len(known) or total.seen[i]]
        total, names = HeadStatistics(total.gram, total.moment[:, kept]), [names[i] for i in kept]
    with np.errstate(over="ignore"):  # found on the next line
        merged = total.to_tensors()
    if not all(np.isfinite(array).all() for array in merged.values()):
        raise LearningError("the sum of these statistics is not finite in float32")
    method: Method = "ridge" if head.training.is_regression else "discriminant"
    return HeadRelease(
        backbone=bundle.manifest.backbone_digest,
        parameters=head_of(total, head.linear, method, head.project()),
        merged=dict(merged),
        class_names=tuple(names) if tuple(names) != known else (),
    )
