"""How familiar features look to those who made statistics: by their distance from the nearest class.

The model is the one that the discriminant is solved from (`edge.learning.solve`): every class a normal distribution
about its mean, all with one covariance C, shrunk toward a multiple of the identity. The distance is Mahalanobis's,
``min_c (x - mu_c)ᵀ C⁻¹ (x - mu_c)`` (as for rejecting the unknown: Lee et al. 2018, arXiv:1807.03888).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.learning.solve import SHRINKAGE
from edge.learning.statistics import HeadStatistics, Matrix

# Samples without labels that say whose world this is, and by how many standard errors.
MIN_SAMPLES, _SURE = 16, 5.0


class Familiarity:
    """See the module.

    Args:
        statistics: Of classes.
        covariance: ``(d, d)`` about the class means; their own when None.

    Raises:
        LearningError: No distance can be computed from them.
    """

    def __init__(self, statistics: HeadStatistics, covariance: Matrix | None = None) -> None:
        seen, n = statistics.seen, statistics.n_samples
        if n <= 0 or not seen.any():
            raise LearningError("statistics of no samples know nothing")
        means: Matrix = (statistics.moment[:-1, seen] / statistics.class_counts[seen]).T
        covariance = _covariance(statistics) if covariance is None else covariance
        d = len(covariance)
        average = max(float(np.trace(covariance)) / d, 1e-12)
        covariance = (1.0 - SHRINKAGE) * covariance + SHRINKAGE * average * np.eye(d)
        try:
            factor = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError as exc:
            raise LearningError(f"no distance can be computed from these statistics: {exc}") from exc
        self._whiten: Matrix = np.linalg.inv(factor)
        self._white_means = means @ self._whiten.T

    def _squares(self, features: npt.NDArray[np.float32]) -> Matrix:
        """``(n, classes)`` squared distances."""
        white = features.reshape(len(features), -1).astype(np.float64) @ self._whiten.T
        squares = np.square(white).sum(axis=1)[:, None] - 2.0 * white @ self._white_means.T
        return np.asarray(np.maximum(squares + np.square(self._white_means).sum(axis=1), 0.0))

    def distances(self, features: npt.NDArray[np.float32]) -> Matrix:
        """``(n,)`` squared Mahalanobis distances of features ``(n, d)`` from the nearest class."""
        return np.asarray(self._squares(features).min(axis=1))


def _covariance(statistics: HeadStatistics) -> Matrix:
    """``(d, d)`` about the class means."""
    seen, counts = statistics.seen, statistics.class_counts
    means: Matrix = (statistics.moment[:-1, seen] / counts[seen]).T
    return np.asarray(statistics.gram[:-1, :-1] - (means.T * counts[seen]) @ means) / statistics.n_samples


def fits_better(features: npt.NDArray[np.float32], new: HeadStatistics, old: HeadStatistics) -> bool | None:
    """Whether samples ``(n, d)`` without labels lie nearer to the classes of `new` than to those of `old`.

    Distances are by the covariance of both together: statistics of samples that a network was trained on are so narrow
    that everything else looks far away from them.

    Returns:
        None where there are too few samples, or the difference may be chance.
    """
    if len(features) < MIN_SAMPLES:
        return None
    both = (_covariance(new) + _covariance(old)) / 2
    nearer = Familiarity(old, both).distances(features) - Familiarity(new, both).distances(features)
    error = float(nearer.std(ddof=1)) / math.sqrt(len(nearer))
    if abs(float(nearer.mean())) <= _SURE * error:
        return None
    return bool(nearer.mean() > 0)
