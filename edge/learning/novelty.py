"""Whether a sample is of none of the classes that are known: how far it lies from all of them.

Two squared distances are measured, as `edge.learning.familiarity` has them: from the nearest class, and how much nearer
that is than the middle of all samples (relative Mahalanobis distance: Ren et al. 2021, arXiv:2106.09022). The first
finds what is like nothing that came before, the second what is like a known class and none of them. Each is put in
standard deviations of known samples above their median, and the larger one counts.

How much is too much is not assumed but counted: on samples whose class is known, each measured from statistics without
itself, at most a stated share may be farther away (conformal prediction: Vovk et al. 2005; of n samples the
``ceil((n + 1) (1 - share))``-th smallest). Too few samples for the share cannot say it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.contract.training import FloatArray
from edge.learning.familiarity import Familiarity
from edge.learning.quantiles import median
from edge.learning.statistics import HeadStatistics, Matrix

# Deviations of known samples that are no more than this are no unit.
_LEAST = 1e-9


class Distances:
    """Measures the two distances from what statistics say of the known classes.

    Args:
        statistics: Of classes.

    Raises:
        LearningError: No distance can be computed from them.
    """

    def __init__(self, statistics: HeadStatistics) -> None:
        self._classes = Familiarity(statistics)
        self._all = Familiarity(HeadStatistics(statistics.gram, statistics.moment.sum(axis=1, keepdims=True)))

    def of(self, features: FloatArray) -> Matrix:
        """``(n, 2)`` squared distances of features ``(n, d)`` from the nearest class and from the middle of all."""
        return np.stack([self._classes.distances(features), self._all.distances(features)], axis=1)

    def without(self, features: FloatArray, labels: npt.NDArray[np.int64], weights: npt.NDArray[np.float32]) -> Matrix:
        """The same of labelled samples that are in the statistics, each as if it were not."""
        near = self._classes.distances_without(features, labels, weights)
        return np.stack([near, self._all.distances_without(features, np.zeros_like(labels), weights)], axis=1)


@dataclass(frozen=True, eq=False, slots=True)
class Novelty:
    """How samples are judged.

    Attributes:
        known: Measures the distances.
        usual: ``(2,)`` medians of known samples, of the distance and of how much nearer it is.
        unit: ``(2,)`` their standard deviations.
        threshold: In these, beyond which a sample is of none of the classes.
        basis: In words, what that was counted on.
    """

    known: Distances
    usual: Matrix
    unit: Matrix
    threshold: float
    basis: str

    def of(self, features: FloatArray) -> Matrix:
        """``(n,)`` novelty of features ``(n, d)`` in units of the threshold: above 1 is none of the classes."""
        found = _scores(self.known.of(features), self.usual, self.unit)
        return np.asarray(np.maximum(found, 0.0) / self.threshold)


def calibrated(known: Distances, distances: Matrix, share: float, basis: str) -> Novelty | None:
    """How samples are judged so that at most a share of known ones is rejected.

    Args:
        known: Measures.
        distances: ``(n, 2)`` of known samples.
        share: Above 0, at most a half.
        basis: In words, what these are.

    Returns:
        None where they are too few to say, or too much alike.
    """
    rank = math.ceil((len(distances) + 1) * (1.0 - share) - 1e-9)
    if rank > len(distances) or not np.isfinite(distances).all():
        return None
    both = _measures(distances)
    usual, unit = median(both), both.std(axis=0)
    if (unit <= _LEAST).any():
        return None
    scores = np.sort(_scores(distances, usual, unit))
    return Novelty(known, usual, unit, max(float(scores[rank - 1]), _LEAST), basis)


def _measures(distances: Matrix) -> Matrix:
    return np.stack([distances[:, 0], distances[:, 0] - distances[:, 1]], axis=1)


def _scores(distances: Matrix, usual: Matrix, unit: Matrix) -> Matrix:
    """``(n,)``."""
    return np.asarray(((_measures(distances) - usual) / unit).max(axis=1))
