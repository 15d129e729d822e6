"""The few directions of feature space in which a device tells under noise where its samples lie.

Noise grows with the numbers that are told, so they are few: `LEAST` to `MOST` coordinates instead of all features. They
follow from the shipped statistics alone, which everybody has: where the classes lie apart, and where samples vary most,
in units of the covariance within classes. They are found by orthogonal iteration from fixed starting vectors (Halko,
Martinsson and Tropp 2011, arXiv:0909.4061, algorithm 4.4), with QR factors whose diagonal is positive: a device and a
coordinator whose libraries round otherwise find the same directions, and none of them mirrored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.projection import Projection
from edge.learning.compression import digest_of
from edge.learning.draws import Draws
from edge.learning.solve import SHRINKAGE
from edge.learning.statistics import HeadStatistics, Matrix

LEAST, MOST = 16, 32
# What of the choice of directions is by how much samples vary, and by nothing: else is how far classes lie apart.
_OF_SPREAD, _OF_ANY = 0.05, 1e-3
_ITERATIONS = 6
# Share of the mean of x² that is added to the covariance at least: what rounding to float32 leaves of sums, and more
# where that is not enough.
_ROUNDING, _MORE = 1e-5, 10.0
_TINY = 1e-12


@dataclass(frozen=True, eq=False, slots=True)
class Coordinates:
    """Where samples lie, as far as it is told: from features to points of the unit ball.

    Attributes:
        inward: ``(r, n_features)``.
        offset: ``(r,)``.
        frame: Digest of the statistics that it follows from.
    """

    inward: Matrix
    offset: Matrix
    frame: str

    def of(self, features: npt.NDArray[Any]) -> Matrix:
        """``(n, r)`` for features ``(n, n_features)``; a point outside the unit ball is moved onto it."""
        found: Matrix = features.astype(np.float64) @ self.inward.T - self.offset
        lengths = np.sqrt(np.square(found).sum(axis=1, keepdims=True))
        return np.asarray(found / np.maximum(lengths, 1.0))


class Subspace:
    """See the module.

    Args:
        shipped: Statistics of classes, of at least one sample; of projected features where devices project.

    Attributes:
        middle: ``(d,)`` of all shipped samples.
        covariance: ``(d, d)`` within classes, shrunk as where heads are solved.
        means: ``(n_classes, d)`` of the shipped classes; the middle of all for one without samples.
        centres: ``(n_classes, r)`` the same in coordinates.
        outward: ``(d, r)``: a step in coordinates as one in features.
        within: Variance of each coordinate within the shipped classes.
    """

    def __init__(self, shipped: HeadStatistics) -> None:
        counts, seen = shipped.class_counts, shipped.seen
        d, n = len(shipped.moment) - 1, shipped.n_samples
        self.middle: Matrix = shipped.gram[-1, :-1] / n
        self.means = np.where(seen[:, None], shipped.moment[:-1].T / np.where(seen, counts, 1.0)[:, None], self.middle)
        scatter = (shipped.gram[:-1, :-1] - (self.means.T * (counts * seen)) @ self.means) / n
        squares = float(np.trace(shipped.gram[:-1, :-1])) / (n * d)
        least = max(SHRINKAGE * float(np.trace(scatter)) / d, _ROUNDING * squares) + _TINY
        self.covariance, root = _positive((1.0 - SHRINKAGE) * scatter, least)
        whitening = np.linalg.inv(root)
        apart = (self.means - self.middle) @ whitening.T * np.sqrt(counts * seen / n)[:, None]
        spread = root.T @ root
        choice = _unit(apart.T @ apart) + _OF_SPREAD * _unit(spread) + _OF_ANY * np.eye(d) / d
        directions = _leading(choice, n_coordinates(d, len(counts)))
        # Mean square of a sample in these coordinates: within classes it is 1 for each but for what was shrunk.
        usual = np.trace(directions.T @ (whitening @ scatter @ whitening.T + apart.T @ apart) @ directions)
        length = float(np.sqrt(max(float(usual), _TINY)))
        self._inward: Matrix = directions.T @ whitening / length
        self.outward: Matrix = root @ directions * length
        self.within = 1.0 / length**2
        self.centres: Matrix = (self.means - self.middle) @ self._inward.T

    def coordinates(self, frame: str, projection: Projection | None = None) -> Coordinates:
        """The way from plain features, which may have to be projected first, to coordinates."""
        offset = self._inward @ self.middle
        if projection is None:
            return Coordinates(self._inward, offset, frame)
        return Coordinates(projection.inward(self._inward), offset, frame)

    def lifted(self, counts: Matrix, centres: Matrix, within: Matrix) -> HeadStatistics:
        """Statistics of features of samples whose coordinates are known; in all else they are as shipped.

        Args:
            counts: ``(n_classes,)``, 0 or more; further classes than shipped begin at the middle.
            centres: ``(n_classes, r)`` where each class lies.
            within: ``(r, r)`` scatter within classes, positive definite.
        """
        more = len(counts) - len(self.means)
        means = np.concatenate([self.means, np.repeat(self.middle[None], more, axis=0)])
        begun = np.pad(self.centres, ((0, more), (0, 0)))
        means = means + (centres - begun) @ self.outward.T
        n = float(counts.sum())
        scatter = n * self.covariance + self.outward @ (within - n * self.within * np.eye(len(within))) @ self.outward.T
        sums = means.T * counts
        gram, moment = np.empty((len(sums) + 1, len(sums) + 1)), np.empty((len(sums) + 1, len(counts)))
        gram[:-1, :-1] = (scatter + scatter.T) / 2 + sums @ means
        gram[:-1, -1] = gram[-1, :-1] = sums.sum(axis=1)
        gram[-1, -1] = n
        moment[:-1], moment[-1] = sums, counts
        return HeadStatistics(gram, moment)


def n_coordinates(n_features: int, n_classes: int) -> int:
    """How many there are, of so many shipped classes."""
    return min(n_features, max(LEAST, min(n_classes - 1, MOST)))


def frame_of(tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """Digest of shipped statistics, by which two know that they mean the same coordinates."""
    return digest_of({name: tensors[name] for name in ("gram", "moment")})


def _positive(matrix: Matrix, least: float) -> tuple[Matrix, Matrix]:
    """A symmetric matrix with as much on its diagonal as it takes to be positive definite, and its Cholesky factor."""
    while True:
        found = matrix + least * np.eye(len(matrix))
        try:
            return found, np.asarray(np.linalg.cholesky(found), np.float64)
        except np.linalg.LinAlgError:
            least *= _MORE


def _unit(matrix: Matrix) -> Matrix:
    return matrix / max(float(np.trace(matrix)), _TINY)


def _leading(matrix: Matrix, r: int) -> Matrix:
    """``(d, r)`` orthonormal, near the leading eigenvectors of a symmetric matrix ``(d, d)``."""
    found = _orthonormal(_signs(len(matrix), r))
    for _ in range(_ITERATIONS):
        found = _orthonormal(matrix @ found)
    return found


def _signs(rows: int, columns: int) -> Matrix:
    return 1.0 - 2.0 * Draws([0]).bits(rows * columns).astype(np.float64).reshape(rows, columns)


def _orthonormal(columns: Matrix) -> Matrix:
    q, upper = np.linalg.qr(columns)
    return np.asarray(q * np.where(np.diag(upper) < 0, -1.0, 1.0))
