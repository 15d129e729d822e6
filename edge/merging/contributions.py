"""What a device sent, and whether it can be merged into a bundle's head."""

from __future__ import annotations

import numpy as np

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.contract.manifest import HeadSpec
from edge.learning.closed_form import TRUSTED_PAST
from edge.learning.exchange import HeadUpdate
from edge.learning.statistics import HeadStatistics
from edge.learning.subspace import frame_of, n_coordinates
from edge.merging.noised import sums_of

# As devices take them.
_LONGEST_NAME = 128


def check_update(update: HeadUpdate, bundle: Bundle) -> None:
    """Raise LearningError unless an update can be merged into this bundle's head."""
    if update.backbone != bundle.manifest.backbone_digest:
        raise LearningError("an update for another backbone")
    head, names = trainable_head(bundle), class_names_of(update, bundle)
    if update.noised is not None:
        is_known = bundle.has(m.STATISTICS) and "gram" in bundle.tensors(m.STATISTICS)
        if update.learner != "statistics" or not (head.training.is_classifier and head.is_linear and is_known):
            raise LearningError("what was told under noise is not of a linear head whose statistics were shipped")
        r = n_coordinates(head.n_statistics, len(bundle.manifest.class_names))
        sums_of(update, update.noised, frame_of(bundle.tensors(m.STATISTICS)), r, len(names))
        return
    if update.learner == "statistics":
        statistics_of(update, bundle)
        return
    rows = row_names(head)
    expected = {p.name: (len(names), *p.shape[1:]) if p.name in rows else p.shape for p in head.parameters}
    if {name: array.shape for name, array in update.tensors.items()} != expected:
        raise LearningError(f"a change of other parameters than the head has: expected {expected}")
    if any(array.dtype != np.float32 for array in update.tensors.values()):
        raise LearningError("a change with values that are not float32")


def statistics_of(update: HeadUpdate, bundle: Bundle) -> HeadStatistics:
    """The statistics in an update, of its own classes.

    They may stand for fewer samples than the update names, since samples can count less than one and be forgotten; and
    for `TRUSTED_PAST` more of each device, because one that saw the world change counts what came since a second time.

    Raises:
        LearningError: They are not of this bundle's head, or not statistics of any samples.
    """
    head = trainable_head(bundle)
    names = class_names_of(update, bundle)
    if not head.is_linear or not (head.training.is_classifier or head.training.is_regression):
        raise LearningError("statistics for a head that is not one linear layer for classes or quantities")
    n_outputs = len(names) if head.training.is_classifier else n_outputs_of(bundle)
    found = HeadStatistics.from_tensors(
        update.tensors, head.n_statistics, n_outputs, is_classifier=head.training.is_classifier
    )
    if found.n_samples > update.n_samples * (1 + 1e-3) + TRUSTED_PAST * max(1, len(update.parts)):
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
    head = trainable_head(bundle)
    if not head.training.is_classifier or head.linear is None:
        raise LearningError("added classes for a head whose last layer is not a linear one of classes")
    if names[: len(known)] != known:
        raise LearningError(f"classes that do not begin with those of the bundle: {', '.join(names)[:200]}")
    if len(set(names)) != len(names) or not all(0 < len(name) <= _LONGEST_NAME for name in names[len(known) :]):
        raise LearningError(f"added classes that repeat, or are not names: {', '.join(names[len(known) :])[:200]}")
    return names


def trainable_head(bundle: Bundle) -> HeadSpec:
    """The head that updates are for.

    Raises:
        LearningError: There is none.
    """
    if bundle.manifest.head is None:
        raise LearningError("an update for a bundle that has no trainable head")
    return bundle.manifest.head


def n_outputs_of(bundle: Bundle) -> int:
    """Length of its output."""
    return bundle.manifest.output(trainable_head(bundle).output).sample_shape[0]


def row_names(head: HeadSpec) -> tuple[str, ...]:
    """Parameters that have one row for each class."""
    if head.linear is None or not head.training.is_classifier:
        return ()
    return (head.linear.weight,) if head.linear.bias is None else (head.linear.weight, head.linear.bias)
