"""Which devices' statistics should not be summed: those that no samples can have, and those of other samples.

A median of sums of different classes means nothing, so `screen_statistics` finds devices whose sums no samples can
have, or whose samples look like nobody else's; the others are summed as ever. It finds garbage, not a patient attacker:
who sends plausible statistics that are slightly wrong is not found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.learning.statistics import HeadStatistics, Matrix
from edge.merging.labels import MEDIAN_VARIANCE, labels_are_right, mislabelled, tied
from edge.merging.summaries import Summary, pooled_root, summary_of

# Half-width, in robust standard deviations, of what passes as like the others.
_DEVIATIONS = 6.0
# A median absolute deviation times this is the standard deviation of a normal distribution.
_TO_STANDARD_DEVIATION = 1.4826
# Energies per sample within this factor of the median are like the others, however alike those are.
_ENERGY_FACTOR = 4.0
# The same for squared distances of means, and for numbers of samples.
_DISTANCE_FACTOR = 8.0
_COUNT_FACTOR = 100.0
# Where a class mean lies between its class (0.5) and another (-0.5): shuffled labels are at 0, swapped ones at -0.5.
_LEAST_MARGIN = 0.2
# By how much a device with one sample in all may fall below that: so many standard deviations, which are one over the
# distance between the classes, and at least a fixed number, because single samples are not distributed normally (of
# turned digits about 3 % are nearer to another class).
_MARGIN_DEVIATIONS = 3.0
_MARGIN_ALLOWANCE = 0.375


@dataclass(frozen=True, slots=True)
class Screening:
    """What was found in the statistics of devices.

    Attributes:
        refused: By index, why it is garbage.
        set_aside: By index, in what its world is another than that of most devices, though its labels are right.
        undecided: By index, in what it differs from others that are too few to say that it is wrong.
    """

    refused: Mapping[int, str]
    set_aside: Mapping[int, str]
    undecided: Mapping[int, str]

    @property
    def left_out(self) -> Mapping[int, str]:
        """Whose statistics should not be summed with the others'."""
        return {**self.refused, **self.set_aside}


def screen_statistics(
    contributions: Sequence[HeadStatistics], prior: HeadStatistics | None = None, is_classifier: bool = True
) -> Screening:
    """Devices whose statistics should not be summed, with the reason.

    Four questions, each asked of those that passed the one before:

    1. Can any samples have these sums? Finite, counts from zero up, the sum over classes in the moment equal to the sum
       in the Gram matrix, and the within-class scatter ``G - sum_c n_c mu_c mu_cᵀ`` without a negative eigenvalue.
       Finds random matrices, flipped signs and damaged bytes.
    2. Are they of the same size? The mean of ``|x|²`` is compared with the median device's, by its deviation. Finds
       another scale and zeros. More than a hundred times the samples of the median device is refused too, unless
       numbers of samples differ that much in this fleet.
    3. Do the labels mean what other devices mean by them? Two things are asked that a camera of its own does not
       change. Do the classes lie apart at all? By the ratio of variances between and within classes (Anderson 2001,
       Austral Ecology 26), in units of the pooled covariance, compared with the median device's. Finds shuffled labels
       and features of noise. And is the order of the class means about their middle the one that other devices' means
       have, or does another naming fit? Finds permuted and swapped classes.
    4. Is it the world of the others? Within-class scatter, distance of the mean, and class means in place: each closest
       to other devices' mean of the same class, after an allowance for few samples. The reference is the coordinate
       median over the *other* devices that have the class; the worst device goes first, then all are asked again,
       because a bad one spoils its neighbours' reference. Whoever fails here is *set aside* where three classes or more
       show that its labels are right: it has a world of its own. Else it is refused.

    A device may have any subset of the classes. What nobody else has cannot be compared and passes. Statistics without
    scatter, of one sample a class or of identical ones, are not screened as if they had some: such a device is not
    asked how widely its samples are spread, and where no device has any, there is no unit for distances, and only the
    first two questions are asked. These and the fourth work while the garbage is in the minority in the fleet, the
    third while it is, for each class, among the devices that have it. Where nobody can say who is right, devices are
    undecided instead of refused: two that swapped a pair of labels against two that did not, two that disagree, three
    that all do. Where most devices have a world of their own, none is set aside.

    Args:
        contributions: One of each device, of one head.
        prior: The shipped statistics: one more voice on the mean of ``|x|²`` and nothing else, since what devices see
            now may be far from what the backbone was trained on.
        is_classifier: Whether the outputs are classes; of quantities nothing is asked about labels.

    Returns:
        Who is refused, set aside and undecided. A device without samples is refused.

    Raises:
        LearningError: The contributions are of different shapes.
    """
    shapes = {(s.gram.shape, s.moment.shape) for s in (*contributions, *(() if prior is None else (prior,)))}
    if len(shapes) > 1:
        raise LearningError("statistics of different heads cannot be compared")
    impossible: dict[int, str] = {}
    left: dict[int, Summary] = {}
    for i, statistics in enumerate(contributions):
        found = summary_of(statistics, is_classifier)
        if isinstance(found, str):
            impossible[i] = found
        else:
            left[i] = found
    n_possible = len(left)
    shipped = None if prior is None else summary_of(prior, is_classifier)
    garbage = _unlike_the_others(left, shipped if isinstance(shipped, Summary) else None)
    left = {i: summary for i, summary in left.items() if i not in garbage}
    wrong, undecided = mislabelled(left) if is_classifier else ({}, {})
    garbage |= wrong
    if 2 * len(garbage) >= n_possible:
        return Screening(impossible, {}, garbage | undecided)
    left = {i: summary for i, summary in left.items() if i not in garbage and i not in undecided}
    elsewhere, disagreeing = _elsewhere(left, is_classifier)
    if 2 * len(garbage | elsewhere) >= n_possible or 2 * len(elsewhere) >= len(left):
        return Screening(impossible | garbage, {}, undecided | elsewhere | disagreeing)
    here = {i: summary for i, summary in left.items() if i not in elsewhere}
    own = {i for i in elsewhere if is_classifier and labels_are_right(left[i], here)}
    garbage |= {i: why for i, why in elsewhere.items() if i not in own}
    return Screening(impossible | garbage, {i: elsewhere[i] for i in sorted(own)}, undecided | disagreeing)


def _elsewhere(summaries: Mapping[int, Summary], is_classifier: bool) -> tuple[dict[int, str], dict[int, str]]:
    """Devices in another place than the others; and those of which it cannot be said."""
    found: dict[int, str] = {}
    left = dict(summaries)
    while strangers := _other_kind(left):
        for i in strangers:
            found[i] = "its samples are spread otherwise, or lie elsewhere, than those of other devices"
            del left[i]
    disagreeing, undecided = _disagreeing(left) if is_classifier else ({}, {})
    return found | disagreeing, undecided


def _unlike_the_others(summaries: Mapping[int, Summary], shipped: Summary | None) -> dict[int, str]:
    """Devices with another energy or far more samples than the others."""
    if not summaries:
        return {}
    voices = [*summaries.values(), *([] if shipped is None else [shipped])]
    energies = _logs([s.energy for s in voices])
    counts = _logs([s.n_samples for s in summaries.values()])
    reasons = {}
    for k, i in enumerate(summaries):
        if abs(energies[k] - np.median(energies)) > _half_width(energies, _ENERGY_FACTOR):
            reasons[i] = "its samples are much larger or smaller than those of other devices"
        elif counts[k] - np.median(counts) > _half_width(counts, _COUNT_FACTOR):
            reasons[i] = "it claims far more samples than other devices"
    return reasons


def _other_kind(summaries: Mapping[int, Summary]) -> list[int]:
    """Devices whose scatter is much larger than others', or whose mean is much farther from the median one."""
    devices = list(summaries.values())
    if len(devices) < 3 or not any(s.has_scatter for s in devices):
        return []
    root = pooled_root(devices)
    inverse = np.linalg.inv(root)
    precision = inverse.T @ inverse
    d = len(root)
    means = np.array([s.counts @ s.means / s.n_samples for s in devices])
    noise = np.array([d / s.n_samples for s in devices])
    distances = np.square((means - np.median(means, axis=0)) @ inverse.T).sum(axis=1)
    far = _excess(distances, noise) > 0
    wide = np.zeros(len(devices), bool)
    scattered = np.array([s.has_scatter for s in devices])
    if scattered.sum() > 2:
        freedom = [max(s.n_samples - np.count_nonzero(s.counts), 1.0) for s in devices]
        spreads = _logs([float(np.sum(s.scatter * precision)) / f for s, f in zip(devices, freedom, strict=True)])
        spreads = spreads[scattered]
        wide[scattered] = spreads - np.median(spreads) > _half_width(spreads, _ENERGY_FACTOR)
    return [i for i, is_far, is_wide in zip(summaries, far, wide, strict=True) if is_far or is_wide]


def _logs(values: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.log(np.maximum(values, 1e-300))


def _half_width(logs: npt.NDArray[np.float64], factor: float) -> float:
    """How far from their median logarithms may lie: some robust standard deviations, at least a factor."""
    spread = float(np.median(np.abs(logs - np.median(logs))))
    return max(_DEVIATIONS * _TO_STANDARD_DEVIATION * spread, float(np.log(factor)))


def _excess(distances: npt.NDArray[np.float64], noise: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """By how much the logarithms of squared distances are beyond what passes; negative for those that pass.

    Args:
        distances: ``(n,)``.
        noise: ``(n,)`` squared distance that so few samples may have by chance; allowed on top of the median.
    """
    ratios = _logs(distances) - _logs(np.median(distances) + noise)
    found: npt.NDArray[np.float64] = ratios - _half_width(_logs(distances), _DISTANCE_FACTOR)
    return found


def _disagreeing(summaries: Mapping[int, Summary]) -> tuple[dict[int, str], dict[int, str]]:
    """Devices whose class means are not those of other devices; and those for which there is no majority that says so.

    The worst are removed first. There is no majority for a class of which as many devices were removed as remain.
    """
    devices = list(summaries.values())
    if len(devices) < 2 or not any(s.has_scatter for s in devices):
        return {}, {}
    index = np.array(list(summaries))
    counts = np.array([s.counts for s in devices])
    means = np.array([s.means for s in devices]) @ np.linalg.inv(pooled_root(devices)).T
    here = np.ones(len(index), bool)
    reasons: dict[int, str] = {}
    while True:
        margins, depths, excess = _agreement(means[here], counts[here])
        if (margins < 0).any():
            worst = int(np.argmax(np.where(margins < 0, depths, -np.inf)))
            reason = "its class means are not closest to other devices' means of the same classes"
        elif (excess > 0).any():
            worst = int(np.argmax(excess))
            reason = "its class means are far from other devices' means of the same classes"
        else:
            break
        removed = np.flatnonzero(here)[worst]
        reasons[int(index[removed])] = reason
        here[removed] = False
    undecided = tied(index, counts, here, reasons)
    return reasons, undecided


def _agreement(means: Matrix, counts: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """How well each device's class means agree with the others'.

    Args:
        means: ``(n_devices, n_classes, d)`` in units of the pooled covariance.
        counts: ``(n_devices, n_classes)``.

    Returns:
        ``(n_devices,)`` margins, the mean over a device's samples of where its class mean lies between its own class
        (0.5) and the most similar other one (-0.5), above `_LEAST_MARGIN` less what so few samples allow, infinite
        where nothing can be compared; ``(n_devices,)`` depths, how many standard deviations beyond the middle of the
        two; and ``(n_devices,)`` the `_excess` of the distance to its own classes.
    """
    n_devices, n_classes, d = means.shape
    has = counts > 0
    references = np.full(means.shape, np.nan)  # of device i: medians over the devices other than i
    typical = np.ones(n_classes)
    for c in np.flatnonzero(has.any(axis=0)):
        references[:, c] = _medians_of_others(means[:, c], has[:, c])
        typical[c] = np.median(counts[has[:, c], c])
    known = np.isfinite(references[:, :, 0])
    margins, distances, noise = np.full(n_devices, np.inf), np.full(n_devices, np.nan), np.full(n_devices, np.nan)
    depths = np.full(n_devices, -np.inf)
    for i in range(n_devices):
        own = np.flatnonzero(has[i] & known[i])
        if not len(own):
            continue
        weights = counts[i, own] / counts[i, own].sum()
        differences = means[i, own] - references[i, own]
        distances[i] = weights @ np.square(differences).sum(axis=1)
        noise[i] = weights @ (d / counts[i, own] + d / typical[own])
        ways = references[i, own, None] - references[i, known[i]]  # (own, known, d), zero for the class itself
        lengths = np.square(ways).sum(axis=2)
        along = np.einsum("od,okd->ok", differences, ways)
        is_other = own[:, None] != np.flatnonzero(known[i])
        if is_other.any():
            position = np.where(is_other, 0.5 + along / np.where(lengths > 0, lengths, np.inf), np.inf)
            nearest = position.argmin(axis=1)[:, None]
            margins[i] = weights @ np.take_along_axis(position, nearest, axis=1)[:, 0]
            apart = np.sqrt(np.take_along_axis(lengths, nearest, axis=1)[:, 0])
            allowed = np.maximum(_MARGIN_ALLOWANCE, _MARGIN_DEVIATIONS / np.maximum(apart, 1e-9))
            others = np.maximum(has[:, own].sum(axis=0) - 1, 1) * typical[own] / MEDIAN_VARIANCE
            depths[i] = -weights @ (np.take_along_axis(position, nearest, axis=1)[:, 0] * apart)
            few = np.sqrt(np.square(weights * allowed) @ (1.0 / counts[i, own] + 1.0 / others))
            margins[i] -= _LEAST_MARGIN - few
    excess = np.full(n_devices, -np.inf)
    compared = np.isfinite(distances)
    if compared.sum() > 2:
        excess[compared] = _excess(distances[compared], noise[compared])
    return margins, depths, excess


def _medians_of_others(values: Matrix, has: npt.NDArray[np.bool_]) -> Matrix:
    """``(n, d)``: for each device the coordinate median over the others that have a value; nan where none has."""
    found = np.full(values.shape, np.nan)
    n = int(has.sum())
    order = np.argsort(values[has], axis=0, kind="stable")
    ordered = np.take_along_axis(values[has], order, axis=0)
    found[~has] = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    if n > 1:
        ranks = np.argsort(order, axis=0)
        picked = [np.take_along_axis(ordered, k + (k >= ranks), axis=0) for k in ((n - 2) // 2, (n - 1) // 2)]
        found[has] = (picked[0] + picked[1]) / 2
    return found
