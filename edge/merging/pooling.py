"""A site among sites: what its devices learned as one contribution, and what the others have learned beside it.

Statistics add, so that a sum of sums is the sum: a fleet that is merged in two tiers gets the head that one merge of
all its devices gives. So is a mean of means, each with its number of samples, where all changes start from one head.
What comes from above is the sum of all; without what this site had in it, it is what is known *elsewhere*, and the site
goes on from there as it does from the shipped statistics: it adds what its own devices have by now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.learning.statistics import HeadStatistics, upper_triangle
from edge.merging.contributions import class_names_of, n_outputs_of, row_names, statistics_of, trainable_head
from edge.merging.deltas import Delta, mean_change
from edge.merging.noised import divided, pool
from edge.merging.sums import lined_up, shipped_statistics, sums_by_device

# A class of which less is left of a difference of sums in float32 has no samples.
_NO_SAMPLES = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Elsewhere:
    """What the rest of a fleet has learned, as a site begins with it.

    Attributes:
        statistics: Of the classes `names`, with the shipped ones as much as they are worth above.
        names: Of the classes; those of the bundle come first.
        included: By lineage of the other sites and devices, the version that is in it.
        n_samples: Labelled samples behind it.
    """

    statistics: HeadStatistics
    names: tuple[str, ...]
    included: Mapping[str, int] = field(default_factory=dict)
    n_samples: int = 0


def pooled(
    bundle: Bundle,
    updates: Sequence[tuple[str, HeadUpdate]],
    *,
    lineage: str,
    version: int,
    state_id: str = "",
    base_release: int = 0,
) -> HeadUpdate:
    """The contributions of a site's devices as one.

    Args:
        bundle: Of the backbone.
        updates: By device: all of statistics, or all of changes that start from one head.
        lineage: Of the site.
        version: Of what is in it; goes up.
        state_id: Of the site's state.
        base_release: Of changes, the counter above of the head that they start from.

    Raises:
        LearningError: There are none, or they are of both kinds.
    """
    kinds = {update.learner for _, update in updates}
    if len(kinds) != 1:
        raise LearningError("expected contributions of one kind")
    if kinds == {"statistics"}:
        plain, noised = divided(updates)
        sums, names = sums_by_device(bundle, plain, [name for _, each in noised for name in each.class_names])
        total = sum(sums.values(), start=HeadStatistics.empty(*_shape(bundle, names)))
        if noised:  # brought to what samples can have here: above they are a site's sums as all others
            total = total + pool(bundle, shipped_statistics(bundle, 1.0), noised, names).statistics
        # Not in float32, as a device sends it: a sum of many is not to be rounded on its way into the next sum.
        tensors: dict[str, npt.NDArray[Any]] = {"gram": upper_triangle(total.gram), "moment": total.moment}
    else:
        tensors, names = _mean(bundle, [update for _, update in updates])
    known = bundle.manifest.class_names
    return HeadUpdate(
        learner=kinds.pop(),
        backbone=bundle.manifest.backbone_digest,
        lineage=lineage,
        version=version,
        n_samples=sum(update.n_samples for _, update in updates),
        base_release=base_release,
        tensors=tensors,
        class_names=names if names != known else (),
        model=updates[0][1].model,
        state_id=state_id,
        parts={update.lineage: update.version for _, update in updates},
    )


def _shape(bundle: Bundle, names: Sequence[str]) -> tuple[int, int]:
    head = trainable_head(bundle)
    return head.n_statistics, len(names) if head.training.is_classifier else n_outputs_of(bundle)


def _mean(bundle: Bundle, updates: Sequence[HeadUpdate]) -> tuple[dict[str, npt.NDArray[Any]], tuple[str, ...]]:
    """The mean of changes by samples. Rows of classes that not all of them have stay with the devices."""
    every = [class_names_of(update, bundle) for update in updates]
    names = every[0] if len(set(every)) == 1 else bundle.manifest.class_names
    rows = row_names(trainable_head(bundle))
    cut = [
        {name: array[: len(names)] if name in rows else array for name, array in update.tensors.items()}
        for update in updates
    ]
    deltas = [Delta(change=change, n_samples=u.n_samples) for change, u in zip(cut, updates, strict=True)]
    mean = mean_change({name: np.zeros_like(array) for name, array in cut[0].items()}, deltas)
    return {name: array.astype(np.float32) for name, array in mean.items()}, names


def elsewhere(bundle: Bundle, release: HeadRelease, lineage: str, own: HeadUpdate | None) -> Elsewhere:
    """What a merge from above has beside what this site had in it.

    Args:
        bundle: Of the backbone.
        release: The merge.
        lineage: Of the site.
        own: What the site had in it; None for nothing.

    Raises:
        LearningError: It is no merge of statistics of this head, or not one that has `own` in it.
    """
    if not release.merged:
        raise LearningError("the merge has no statistics")
    if release.included.get(lineage, -1) != (-1 if own is None else own.version):
        raise LearningError("the merge has another contribution of this site in it")
    is_classifier = trainable_head(bundle).training.is_classifier
    names = release.class_names or bundle.manifest.class_names
    n_features, n_outputs = _shape(bundle, names)
    total = HeadStatistics.from_tensors(release.merged, n_features, n_outputs, is_classifier=is_classifier)
    if own is not None:
        mine = statistics_of(own, bundle)
        if is_classifier:
            added = class_names_of(own, bundle)[len(bundle.manifest.class_names) :]
            if not set(added) <= set(names):
                raise LearningError(f"the merge lacks the class {sorted(set(added) - set(names))[0]!r} of this site")
            mine = lined_up(mine, added, names)
        total = _without_rounding(total - mine, is_classifier=is_classifier)
    return Elsewhere(
        statistics=total,
        names=tuple(names),
        included={each: version for each, version in release.included.items() if each != lineage},
        n_samples=max(0, release.n_samples - (0 if own is None else own.n_samples)),
    )


def _without_rounding(left: HeadStatistics, *, is_classifier: bool) -> HeadStatistics:
    """A difference of sums in float32: what rounding leaves of nothing is nothing."""
    if left.n_samples < _NO_SAMPLES:
        return left * 0.0
    gram, moment = left.gram.copy(), left.moment.copy()
    np.fill_diagonal(gram, np.maximum(np.diag(gram), 0.0))
    if is_classifier:
        moment[:, left.class_counts < _NO_SAMPLES] = 0.0
    return HeadStatistics(gram, moment)
