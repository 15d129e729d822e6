"""What devices told of their samples under noise, added up and brought to statistics that samples can have.

Sums of coordinates (`edge.learning.disclosure`) add as statistics do, and so does the variance of their noise, which is
known. The sum is no statistics yet: counts may be negative, and the scatter within classes need not be positive
definite. Three steps bring it to the nearest that is both likely and possible, and take nothing for knowledge that
noise alone would give:

* counts: the nearest that are from 0 up and sum to the number of samples, which is told without noise;
* class means: how far they lie from where the shipped ones do, shrunk all together by the share that noise explains
  (James and Stein 1961, in the positive part, less two standard deviations of what noise gives);
* the scatter within classes likewise toward the shipped one (Ledoit and Wolf 2004, with the noise for the variance),
  then its eigenvalues are raised to a tenth of the shipped ones.

What comes out counts as so many samples as the share of the means that is not noise: where noise covers everything it
counts nothing, and who sent what it learned as it is counts alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.learning.disclosure import Sums
from edge.learning.exchange import HeadUpdate, Noised
from edge.learning.quantiles import median
from edge.learning.statistics import HeadStatistics, Matrix, of_triangle
from edge.learning.subspace import Subspace, frame_of

# No eigenvalue of the scatter is less than this share of the shipped one.
_LEAST_EIGENVALUE = 0.1
# Standard deviations of what noise gives that are taken for noise.
_SURE = 2.0
# Beyond so many standard deviations of its own noise nobody tells what samples can have.
_FARTHEST = 8.0
# So many times the samples of the median device nobody has, as where statistics are screened.
_COUNT_FACTOR = 100.0


@dataclass(frozen=True, eq=False, slots=True)
class Pooled:
    """What devices told under noise.

    Attributes:
        statistics: Of all that is in; of the classes that were asked for.
        lineages: That are in.
        waiting: By lineage, why it is not: its noise would cover more than it tells, or it tells of too many samples.
        worth: Of its samples, the share that it counts as.
    """

    statistics: HeadStatistics
    lineages: tuple[str, ...]
    waiting: dict[str, str]
    worth: float


def divided(
    updates: Sequence[tuple[str, HeadUpdate]],
) -> tuple[list[tuple[str, HeadUpdate]], list[tuple[str, HeadUpdate]]]:
    """Contributions as they are, and those with noise."""
    return [each for each in updates if each[1].noised is None], [each for each in updates if each[1].noised]


def sums_of(update: HeadUpdate, noised: Noised, frame: str, r: int, n_classes: int) -> Sums:
    """The sums in an update.

    Args:
        update: It.
        noised: How much noise it says is on it.
        frame: Digest of the shipped statistics here.
        r: Coordinates that follow from them.
        n_classes: Of the update.

    Raises:
        LearningError: They are not of this bundle's head, or nothing that so many samples and such noise give.
    """
    if noised.frame != frame:
        raise LearningError("what was told under noise is in the coordinates of other shipped statistics than ours")
    shapes = {"products": (r * (r + 1) // 2,), "points": (r, n_classes), "counts": (n_classes,)}
    if {name: array.shape for name, array in update.tensors.items()} != shapes:
        raise LearningError(f"what was told under noise is not of {r} coordinates and {n_classes} classes")
    if any(array.dtype != np.float32 for array in update.tensors.values()):
        raise LearningError("what was told under noise is not in float32")
    products, points, counts = (update.tensors[name].astype(np.float64) for name in shapes)
    found, deviation = Sums(of_triangle(products, r), points, counts), math.sqrt(noised.variance)
    for what, array, most in (
        ("counts", counts, update.n_samples),
        ("points", np.sqrt(np.square(points).sum(axis=0)), update.n_samples),
        ("products", np.sqrt(np.square(found.gram).sum()), update.n_samples),
    ):
        n = {"counts": 1, "points": r, "products": r * r}[what]
        if not (np.abs(array) <= most + deviation * (math.sqrt(n) + _FARTHEST)).all():
            raise LearningError(f"what was told under noise has {what} that {update.n_samples} samples do not give")
    return found


def pool(
    bundle: Bundle, shipped: HeadStatistics, updates: Sequence[tuple[str, HeadUpdate]], names: Sequence[str]
) -> Pooled:
    """Add up what devices told under noise.

    Args:
        bundle: Of the backbone.
        shipped: Its statistics, projected where devices project.
        updates: By device, with noise on them; all have passed the check.
        names: Of the classes to come out; those of the bundle come first.

    Raises:
        LearningError: One of them is not of this bundle's head.
    """
    if not shipped.n_samples > 0:
        raise LearningError("what was told under noise is in coordinates of statistics that were not shipped")
    known, subspace = bundle.manifest.class_names, Subspace(shipped)
    frame, found = frame_of(bundle.tensors(m.STATISTICS)), []
    most = _COUNT_FACTOR * float(median(np.array([update.n_samples for _, update in updates])))
    waiting = {u.lineage: "it claims far more samples than other devices" for _, u in updates if u.n_samples > most}
    for device, update in updates:
        if update.lineage in waiting:
            continue
        assert update.noised is not None
        own = update.class_names or known
        sums = sums_of(update, update.noised, frame, subspace.outward.shape[1], len(own))
        columns = [names.index(name) for name in own]
        wide = Sums.empty(subspace.outward.shape[1], len(names))
        wide.moment[:, columns], wide.counts[columns] = sums.moment, sums.counts
        found.append((device, update, Sums(sums.gram, wide.moment, wide.counts), update.noised.variance))
    # Whose noise is much for what it tells comes last, and all from where another one would only add noise stay out.
    found.sort(key=lambda each: (each[3] / each[1].n_samples, each[0]))
    n = np.cumsum([update.n_samples for _, update, _, _ in found])
    variance = np.cumsum([each for _, _, _, each in found])
    last = int(np.argmax(n**2 / variance))
    total = sum((sums for _, _, sums, _ in found[1 : last + 1]), start=found[0][2])
    statistics, worth = likely(total, float(n[last]), float(variance[last]), subspace)
    return Pooled(
        statistics,
        tuple(update.lineage for _, update, _, _ in found[: last + 1]),
        waiting | {u.lineage: "the noise on it would cover more than it tells" for _, u, _, _ in found[last + 1 :]},
        worth,
    )


def likely(sums: Sums, n: float, variance: float, subspace: Subspace) -> tuple[HeadStatistics, float]:
    """Statistics that samples can have, near sums with noise; see the module.

    Args:
        sums: Of coordinates, with noise.
        n: Samples in them.
        variance: Of the noise on each number.
        subspace: Of the coordinates.

    Returns:
        The statistics, and what share of the samples they count as.
    """
    r, n_classes = sums.shape
    counts = _on_simplex(sums.counts, n)
    shipped = np.pad(subspace.centres, ((0, n_classes - len(subspace.centres)), (0, 0)))
    # Each number of this is noise of the points, and that of the count times where the class was.
    away = sums.moment.T - sums.counts[:, None] * shipped
    noise = variance * (1.0 + float(np.square(shipped).mean()))
    share = _not_noise(float(np.square(away).sum()), noise, r * n_classes)
    steps = share * away / np.maximum(counts, _SURE * math.sqrt(variance) + 1e-9)[:, None]
    lengths = np.sqrt(np.square(steps).sum(axis=1, keepdims=True))
    centres = shipped + steps / np.maximum(lengths / 2.0, 1.0)  # two points of the ball are no farther apart
    usual = n * subspace.within * np.eye(r)
    rest = sums.gram - (centres.T * counts) @ centres - usual
    # Off the diagonal the variance is half, and each number stands twice.
    kept = _not_noise(float(np.square(rest).sum()), variance, r * (r + 1) // 2)
    values, vectors = np.linalg.eigh(usual + kept * rest)
    raised = np.maximum(values, _LEAST_EIGENVALUE * n * subspace.within)
    return subspace.lifted(counts, centres, (vectors * raised) @ vectors.T) * share, share


def _not_noise(squares: float, variance: float, n: int) -> float:
    """Of a sum of n squares the share that is not noise, as far as that is sure."""
    if squares <= 0:
        return 0.0
    return max(0.0, 1.0 - variance * (n + _SURE * math.sqrt(2.0 * n)) / squares)


def _on_simplex(counts: Matrix, n: float) -> Matrix:
    """The nearest numbers from 0 up with this sum (Held, Wolfe and Crowder 1974)."""
    ordered = np.sort(counts)[::-1]
    over = (np.cumsum(ordered) - n) / np.arange(1, len(ordered) + 1)
    return np.asarray(np.maximum(counts - over[np.flatnonzero(ordered > over)[-1]], 0.0))
