"""What is compared of the statistics of devices: class means, scatter, energy; and the unit of distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge.learning.statistics import HeadStatistics, Matrix

# Share of the within-class covariance that is replaced by a multiple of the identity before distances are measured.
_SHRINKAGE = 0.1
# Relative to the sum of squares: a scatter up to this is what rounding leaves of sums stored as float32, and says
# nothing; eigenvalues down to minus the other are taken for rounding, too, and no farther.
_NO_SCATTER, _LEAST_EIGENVALUE = 1e-6, 1e-5


@dataclass(frozen=True, eq=False, slots=True)
class Summary:
    """What the comparison needs of one device.

    Attributes:
        counts: ``(n_classes,)``; of quantities there is one group.
        means: ``(n_classes, d)``, zero for a class without samples.
        scatter: ``(d, d)`` within classes.
        energy: Mean of ``|x|²``.
    """

    counts: Matrix
    means: Matrix
    scatter: Matrix
    energy: float

    @property
    def n_samples(self) -> float:
        """How many samples these are."""
        return float(self.counts.sum())

    @property
    def has_scatter(self) -> bool:
        """Whether samples of one class differ by more than rounding."""
        return float(np.trace(self.scatter)) > _NO_SCATTER * self.energy * self.n_samples


def summary_of(statistics: HeadStatistics, is_classifier: bool) -> Summary | str:
    """Of sums that samples can have; otherwise why they cannot."""
    gram, moment, n = statistics.gram, statistics.moment, statistics.n_samples
    if not (np.isfinite(gram).all() and np.isfinite(moment).all()):
        return "its sums are not finite"
    sums = moment if is_classifier else gram[:, -1:]
    squares, counts = np.diag(gram)[:-1], sums[-1]
    if (squares < 0).any() or (counts < 0).any():
        return "it has a negative count or sum of squares"
    seen = counts > 1e-9
    if n <= 0 or not seen.any():
        return "it has no samples"
    # Relative to the largest value that Cauchy and Schwarz allow; sent as float32, sums are right to about 1e-7.
    scale = np.sqrt(np.append(squares, n))
    if (np.abs(gram - gram.T) > 1e-4 * np.outer(scale, scale)).any():
        return "its Gram matrix is not symmetric"
    if (np.abs(sums.sum(axis=1) - gram[:, -1]) > 1e-4 * scale * np.sqrt(n)).any():
        return "its sums by class are not those of its Gram matrix"
    means = np.where(seen, sums[:-1] / np.where(seen, counts, 1.0), 0.0).T
    counts = np.where(seen, counts, 0.0)
    scatter = gram[:-1, :-1] - (means.T * counts) @ means
    total = float(squares.sum())
    try:  # exists if and only if there is no eigenvalue below what is added
        np.linalg.cholesky(scatter + (_LEAST_EIGENVALUE * total + 1e-300) * np.eye(len(squares)))
    except np.linalg.LinAlgError:
        return "no samples have these sums: the scatter within classes has negative eigenvalues"
    return Summary(counts, means, scatter, total / n)


def pooled_root(summaries: Sequence[Summary]) -> Matrix:
    """Cholesky factor of the pooled within-class covariance, shrunk toward a multiple of the identity.

    Some of the devices have scatter. Where that is so small against the sums that rounding leaves eigenvalues below
    zero, as much is added as `summary_of` lets pass.
    """
    n_samples = sum(s.n_samples for s in summaries)
    covariance = np.sum([s.scatter for s in summaries], axis=0) / n_samples
    average = float(np.trace(covariance)) / len(covariance)
    covariance = (1.0 - _SHRINKAGE) * covariance
    diagonal = np.diag_indices_from(covariance)
    covariance[diagonal] += _SHRINKAGE * max(average, 0.0) + 1e-300
    try:
        root: Matrix = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        covariance[diagonal] += _LEAST_EIGENVALUE * sum(s.energy * s.n_samples for s in summaries) / n_samples
        root = np.linalg.cholesky(covariance)
    return root
