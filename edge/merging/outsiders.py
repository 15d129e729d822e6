"""What a merge is worth on a device that is not in it: each that is in it is left out in turn.

A device without labels cannot say whether a merge is right there. Those that learned can: the merge of the *others* is
to their samples what the whole merge is to a stranger's. Sufficient statistics are enough to ask. With the samples of a
class normally distributed, as the discriminant takes them, the answers of any linear head on them are, too, so that its
accuracy can be told from their mean and covariance. So the merge of the others is compared with the shipped head, on
those devices that would take it for a picture of their world, since nobody else would trust it without labels, and for
the classes that another device of their world has met.

This finds merges that have nothing to give, whatever the reason: labels without meaning or too few of them, samples
that the shipped head knows already, or worlds that have only their distance from the shipped one in common.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edge.contract.errors import LearningError
from edge.learning.closed_form import PRIOR_SAMPLES
from edge.learning.exchange import Outside
from edge.learning.familiarity import MIN_SAMPLES, Familiarity, covariance_of, means_of
from edge.learning.mixture import KNOWN_FROM, credit_of
from edge.learning.solve import solve
from edge.learning.statistics import HeadStatistics, Matrix
from edge.merging.groups import LARGEST_DISTANCE, apart
from edge.merging.summaries import summary_of

# Devices that are left out in turn at the most, each for the price of a merge; and so many must have something to say.
_ASKED, _LEAST_DEVICES = 16, 2
# Draws of a normal distribution, the same for all heads: two that are alike differ by what they answer, not by luck.
_DRAWS = 512
# Deviations of what chance gives: of 320 streams of 20 to 300 random labels two were beyond, of good ones none within.
_SURE = 3.0

Layer = tuple[Matrix, Matrix]


def worth_outside(
    devices: Sequence[HeadStatistics],
    prior: HeadStatistics,
    shipped: Layer,
    known: HeadStatistics,
    lineages: Sequence[str] = (),
) -> Outside | None:
    """What the merge of some devices is worth on others.

    Args:
        devices: What each contributed, of classes.
        prior: What is merged besides: the shipped statistics, as much as they are worth there.
        shipped: Weights ``(n_outputs, d)`` and biases ``(n_outputs,)`` of the head as shipped.
        known: The shipped statistics; their scale does not matter.
        lineages: Of the devices, to tell by them what each gains; () to tell nobody's.

    Returns:
        None where it cannot be told: nothing was shipped, or too few devices share classes and a world.
    """
    if known.n_samples <= 0:
        return None
    total = sum(devices, start=prior)
    found = [summary_of(each, is_classifier=True) for each in devices]
    summaries = [summary for summary in found if not isinstance(summary, str)]
    between = apart(summaries)
    if between is None or len(summaries) < len(devices):
        return None
    with np.errstate(invalid="ignore"):  # nan for two without a common class
        is_near = (between <= LARGEST_DISTANCE) & ~np.eye(len(devices), dtype=bool)
    counts = np.array([summary.counts for summary in summaries])
    gains, distances, n_asked, each = [], [], 0.0, {}
    for i in range(0, len(devices), max(1, -(-len(devices) // _ASKED))):
        own, others = devices[i], total - devices[i]
        asked = own.seen & (counts[is_near[i]].sum(axis=0) > KNOWN_FROM - 0.5)
        if own.class_counts[asked].sum() < MIN_SAMPLES:
            continue
        try:
            distance = _distance(own, asked, others, known)
            if distance is not None:
                gains.append(accuracy(own, asked, solve(others)) - accuracy(own, asked, shipped))
                distances.append(distance)
                if lineages:
                    each[lineages[i]] = round(gains[-1], 6)
                n_asked += float(own.class_counts[asked].sum())
        except (LearningError, np.linalg.LinAlgError):  # nothing can be solved: nothing can be said
            continue
    if len(gains) < _LEAST_DEVICES:
        return None
    # Two deviations of a mean that could be luck: of n samples, a quarter of them answered otherwise.
    gain = min(*gains, float(np.mean(gains)) - 1.0 / math.sqrt(n_asked))
    return Outside(gain=gain, distance=max(distances), devices=len(gains), each=each)


def worth_shipped(learned: HeadStatistics, shipped: Layer, most: float) -> float:
    """How many samples the shipped statistics are worth in a merge.

    As many as on a device, 20, where the shipped head is right on what was learned hardly more often than a guess: then
    what was shipped is of another world. Else the more the more often it is right, as a device believes labels. Nor is
    it right where labels mean nothing: then there is no other world, and what was shipped is worth all. That depends on
    the sum only, so that a merge in two tiers is the same.

    Args:
        learned: Of classes: the sum of all that is merged.
        shipped: Weights ``(n_outputs, d)`` and biases ``(n_outputs,)`` of the head as shipped.
        most: What they are worth where it is right often, and where nobody can tell.
    """
    if not _tells_apart(learned):
        return most
    try:
        right = accuracy(learned, learned.seen, shipped)
    except np.linalg.LinAlgError:  # numbers that no head can be solved from: whoever solves it says so
        return most
    least = min(most, PRIOR_SAMPLES)
    return least + (most - least) * credit_of(right, 1.0 / len(shipped[1]))


def _tells_apart(learned: HeadStatistics) -> bool:
    """Whether the means of classes lie farther apart than those of labels that mean nothing, surely.

    Of such labels the scatter between classes is in the mean what that within gives by chance, ``(C - 1) / (n - C)`` of
    it, with a relative variance of ``2 / ((C - 1) e)``: traces of Wishart matrices, with ``e = (tr S)² / tr S²`` of the
    scatter of all samples (Box 1954).
    """
    counts, n, n_seen = learned.class_counts, learned.n_samples, int(np.count_nonzero(learned.seen))
    if n_seen < 2 or n <= n_seen:
        return False
    with np.errstate(all="ignore"):  # whoever solves it says that it is not finite
        within = covariance_of(learned) * n
        away = np.where(learned.seen[:, None], means_of(learned) - counts @ means_of(learned) / n, 0.0)
        between = (away.T * counts) @ away
        squares = float(np.square(within + between).sum())
        if not squares > 0.0:  # samples that do not differ
            return False
        free = float(np.trace(within + between)) ** 2 / squares
        luck = 1.0 + _SURE * math.sqrt(2.0 / (free * (n_seen - 1)))
        usual = (n_seen - 1) / (n - n_seen) * float(np.trace(within))
        return bool(float(np.trace(between)) > usual * luck)


def _distance(own: HeadStatistics, asked: np.ndarray, others: HeadStatistics, known: HeadStatistics) -> float | None:
    """Mean squared distance of a device's samples from the others' classes; None if the shipped ones are nearer.

    Nearer as `edge.learning.familiarity.fits_better` has it. Of samples about a mean, the part of the distance that is
    about the mean is the same from everywhere.
    """
    means, counts = means_of(own)[asked], own.class_counts[asked]
    both = (covariance_of(others) + covariance_of(known)) / 2
    nearer = Familiarity(known, both).distances(means) - Familiarity(others, both).distances(means)
    if float(counts @ nearer) <= 0.0:
        return None
    theirs = Familiarity(others)
    return theirs.spread(covariance_of(own)) + float(counts @ theirs.distances(means) / counts.sum())


def accuracy(own: HeadStatistics, asked: np.ndarray, layer: Layer) -> float:
    """How often a head is right about samples with these statistics, each class normally distributed.

    Args:
        own: Of the samples.
        asked: ``(n_classes,)`` the classes that are asked about.
        layer: Weights ``(n_outputs, d)``, biases ``(n_outputs,)``.
    """
    weights, biases = layer
    counts = own.class_counts[asked]
    freedom = max(own.n_samples - np.count_nonzero(own.seen), 1.0) / own.n_samples
    values, axes = np.linalg.eigh(weights @ (covariance_of(own) / freedom) @ weights.T)
    root = axes * np.sqrt(np.maximum(values, 0.0))
    drawn = np.random.default_rng(0).standard_normal((_DRAWS, len(biases))) @ root.T
    centers = means_of(own)[asked] @ weights.T + biases
    right = [(drawn + center).argmax(axis=1) == c for c, center in zip(np.flatnonzero(asked), centers, strict=True)]
    return float(counts @ np.mean(right, axis=1) / counts.sum())
