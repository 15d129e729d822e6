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
from edge.learning.exchange import Outside
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
        if statistics.n_samples <= 0 or not statistics.seen.any():
            raise LearningError("statistics of no samples know nothing")
        means = means_of(statistics)[statistics.seen]
        self._seen, self._n_samples = statistics.seen, statistics.n_samples
        self._counts = statistics.class_counts[statistics.seen]
        self._classes = np.cumsum(statistics.seen) - 1
        covariance = covariance_of(statistics) if covariance is None else covariance
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
        white = features.reshape(len(features), len(self._whiten)).astype(np.float64) @ self._whiten.T
        squares = np.square(white).sum(axis=1)[:, None] - 2.0 * white @ self._white_means.T
        return np.asarray(np.maximum(squares + np.square(self._white_means).sum(axis=1), 0.0))

    def distances(self, features: npt.NDArray[np.float32]) -> Matrix:
        """``(n,)`` squared Mahalanobis distances of features ``(n, d)`` from the nearest class."""
        return np.asarray(self._squares(features).min(axis=1))

    def distances_without(
        self, features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], weights: npt.NDArray[np.float32]
    ) -> Matrix:
        """The same for labelled samples ``(n, d)`` that are in the statistics, each as if it were not.

        Without a sample of weight w its class has the mean ``mu - w/(n_c - w) delta``, with delta the sample less mu,
        and the scatter is less by ``w n_c/(n_c - w) delta deltaᵀ``: one rank, whose inverse is known (Sherman and
        Morrison 1950). Who was the only one of its class is as far as the next one.
        """
        rows, own = np.arange(len(features)), np.maximum(self._classes[labels], 0)
        white = features.reshape(len(features), len(self._whiten)).astype(np.float64) @ self._whiten.T
        delta = white - self._white_means[own]
        squares = self._squares(features)
        counts = self._counts[own]
        w = np.where(self._seen[labels], weights.astype(np.float64), 0.0)  # of a class that is not there, nor is it
        left = np.maximum(counts - w, 1e-9)
        share = (1.0 - SHRINKAGE) / self._n_samples * w * counts / left
        q = squares[rows, own]
        rest = np.maximum(1.0 - share * q, 1e-9)
        along = np.einsum("nd,nd->n", delta, white)[:, None] - delta @ self._white_means.T
        found = squares + (share / rest)[:, None] * np.square(along)
        found[rows, own] = np.where(counts - w > 1e-6, np.square(counts / left) * q / rest, np.inf)
        return np.asarray(found.min(axis=1)) * (1.0 - w / self._n_samples)

    def spread(self, covariance: Matrix) -> float:
        """Mean squared distance from their middle of samples with a covariance ``(d, d)``."""
        return float(np.sum((self._whiten @ covariance) * self._whiten))


def means_of(statistics: HeadStatistics) -> Matrix:
    """``(n_classes, d)``, zero for a class without samples."""
    means: Matrix = np.where(statistics.seen, statistics.moment[:-1] / np.maximum(statistics.class_counts, 1e-9), 0.0).T
    return means


def covariance_of(statistics: HeadStatistics) -> Matrix:
    """``(d, d)`` about the class means."""
    means, counts = means_of(statistics), statistics.class_counts
    return np.asarray(statistics.gram[:-1, :-1] - (means.T * counts) @ means) / statistics.n_samples


def fits_better(features: npt.NDArray[np.float32], new: HeadStatistics, old: HeadStatistics) -> bool | None:
    """Whether samples ``(n, d)`` without labels lie nearer to the classes of `new` than to those of `old`.

    Distances are by the covariance of both together: statistics of samples that a network was trained on are so narrow
    that everything else looks far away from them.

    Returns:
        None where there are too few samples, or the difference may be chance.
    """
    if len(features) < MIN_SAMPLES:
        return None
    both = (covariance_of(new) + covariance_of(old)) / 2
    nearer = Familiarity(old, both).distances(features) - Familiarity(new, both).distances(features)
    error = float(nearer.std(ddof=1)) / math.sqrt(len(nearer))
    if abs(float(nearer.mean())) <= _SURE * error:
        return None
    return bool(nearer.mean() > 0)


def fits(
    features: npt.NDArray[np.float32],
    new: HeadStatistics,
    old: HeadStatistics,
    outside: Outside | None,
    *,
    labelled: bool,
) -> bool | None:
    """Whether a merge is a picture of the world that samples ``(n, d)`` are of.

    They have to look like those of the merge rather than like the shipped ones. Where no labels can correct what is
    said then, they have to look so no less than the samples of its own devices do to the others, and on each of these
    the others' merge has to be better than the shipped head.

    Args:
        features: Of the samples.
        new: Statistics of the merge.
        old: Those that were shipped.
        outside: What the merge is worth on devices that are not in it.
        labelled: Whether there are labels to correct it.

    Returns:
        None where nobody can tell.
    """
    if outside is not None and outside.gain <= 0.0:
        return False
    nearer = fits_better(features, new, old)
    if not nearer or labelled:
        return nearer
    if outside is None or float(Familiarity(new).distances(features).mean()) > outside.distance:
        return None
    return True
