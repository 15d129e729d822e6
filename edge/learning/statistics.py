"""Sufficient statistics of a linear head: they add, so merging devices is adding matrices.

With ``x~ = [x, 1]`` and one-hot labels ``y``, the statistics are the Gram matrix ``G = sum x~ x~ᵀ`` and the moment
``M = sum x~ yᵀ``. Both sums do not care about order, batches or devices, and a device can be subtracted again.

From them `solve` computes the linear discriminant with a shared covariance (streaming LDA: Hayes and Kanan 2020,
arXiv:1909.01520; shrinkage as in Ledoit and Wolf 2004 with a fixed intensity): with class means ``mu_c`` and the
within-class covariance ``S``, ``logit_c(x) = x S⁻¹ mu_c - mu_cᵀ S⁻¹ mu_c / 2``, all classes equally likely beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError

Matrix = npt.NDArray[np.float64]

# Share of the covariance that is replaced by a multiple of the identity. 0.01 to 0.05 gave the same accuracy within
# half a point on digits turned by 90 degrees (benchmarks/merge_heads.py).
SHRINKAGE = 0.02
# Logit of a class that has never been seen; the mean logit of the others is 0, so it is never the largest.
UNSEEN_LOGIT = -1e4
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class HeadStatistics:
    """Statistics of labelled features.

    Attributes:
        gram: ``(d + 1, d + 1)`` float64, symmetric; the last row holds the sum of the features and the count.
        moment: ``(d + 1, n_classes)`` float64; the last row holds the count of each class.
    """

    gram: Matrix
    moment: Matrix

    @classmethod
    def empty(cls, n_features: int, n_classes: int) -> HeadStatistics:
        """Statistics of no samples."""
        return cls(np.zeros((n_features + 1, n_features + 1)), np.zeros((n_features + 1, n_classes)))

    @classmethod
    def of(cls, features: npt.NDArray[Any], labels: npt.NDArray[Any], n_classes: int) -> HeadStatistics:
        """Statistics of a batch.

        Args:
            features: ``(batch, d)`` real.
            labels: ``(batch,)`` integers in ``[0, n_classes)``.
            n_classes: Number of classes.
        """
        extended = np.concatenate([features, np.ones((len(features), 1))], axis=1, dtype=np.float64)
        one_hot = np.zeros((len(labels), n_classes))
        one_hot[np.arange(len(labels)), labels] = 1.0
        return cls(extended.T @ extended, extended.T @ one_hot)

    @property
    def n_samples(self) -> float:
        """How many samples, or pseudo-samples, these statistics stand for."""
        return float(self.gram[-1, -1])

    @property
    def class_counts(self) -> Matrix:
        """``(n_classes,)`` samples of each class."""
        counts: Matrix = self.moment[-1]
        return counts

    @property
    def seen(self) -> npt.NDArray[np.bool_]:
        """``(n_classes,)`` whether there are samples of the class; what rounding leaves of a difference is none."""
        counted: npt.NDArray[np.bool_] = self.class_counts > 1e-9
        return counted

    def __add__(self, other: HeadStatistics) -> HeadStatistics:
        self._check_same_shape(other)
        return HeadStatistics(self.gram + other.gram, self.moment + other.moment)

    def __sub__(self, other: HeadStatistics) -> HeadStatistics:
        self._check_same_shape(other)
        return HeadStatistics(self.gram - other.gram, self.moment - other.moment)

    def _check_same_shape(self, other: HeadStatistics) -> None:
        if self.moment.shape != other.moment.shape:
            raise LearningError(f"statistics of shape {self.moment.shape} and {other.moment.shape} cannot be combined")

    def scaled_to(self, n_samples: float) -> HeadStatistics:
        """The same distribution, worth another number of samples."""
        factor = n_samples / self.n_samples
        return HeadStatistics(self.gram * factor, self.moment * factor)

    def to_tensors(self, prefix: str = "") -> dict[str, npt.NDArray[np.float32]]:
        """As stored and sent: the Gram matrix as its upper triangle, float32."""
        rows, columns = np.triu_indices(len(self.gram))
        return {
            f"{prefix}gram": self.gram[rows, columns].astype(np.float32),
            f"{prefix}moment": self.moment.astype(np.float32),
        }

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, npt.NDArray[Any]], n_features: int, n_classes: int, prefix: str = ""
    ) -> HeadStatistics:
        """Read what `to_tensors` wrote.

        Raises:
            LearningError: Missing, of another shape or type, not finite in float32, or not statistics of any samples
                (a negative count, or a sum of squares below zero).
        """
        side = n_features + 1
        triangle, moment = tensors.get(f"{prefix}gram"), tensors.get(f"{prefix}moment")
        if triangle is None or moment is None:
            raise LearningError("statistics need a gram and a moment")
        if triangle.shape != (side * (side + 1) // 2,) or moment.shape != (side, n_classes):
            raise LearningError(
                f"statistics of shape {triangle.shape} and {moment.shape} are not of {n_features} features "
                f"and {n_classes} classes"
            )
        if triangle.dtype.kind != "f" or moment.dtype.kind != "f":
            raise LearningError(f"statistics of type {triangle.dtype} and {moment.dtype}, expected float32")
        if not ((np.abs(triangle) <= _LARGEST).all() and (np.abs(moment) <= _LARGEST).all()):
            raise LearningError("statistics with values that are not finite")
        rows, columns = np.triu_indices(side)
        gram = np.zeros((side, side))
        gram[rows, columns] = gram[columns, rows] = triangle
        if (np.diag(gram) < 0).any() or (moment[-1] < 0).any():
            raise LearningError("statistics with a negative count or sum of squares")
        if abs(moment[-1].sum() - gram[-1, -1]) > 1e-3 * max(1.0, gram[-1, -1]):
            raise LearningError("statistics whose class counts do not sum to their number of samples")
        return cls(gram, moment.astype(np.float64))


def solve(statistics: HeadStatistics, shrinkage: float = SHRINKAGE) -> tuple[Matrix, Matrix]:
    """The linear discriminant that the statistics determine.

    Args:
        statistics: Of at least one sample.
        shrinkage: In ``(0, 1]``; see the module.

    Returns:
        Weights ``(n_classes, d)`` and biases ``(n_classes,)``, float64 and finite in float32, less their mean over the
        seen classes: that moves all logits alike, and keeps them small where the features are far from zero. A class
        without samples gets weights of zero and a bias of `UNSEEN_LOGIT`: the best seen class is above the mean, which
        is zero, whatever the features are.

    Raises:
        LearningError: No samples, or sums that no samples have.
    """
    counts = statistics.class_counts
    total = statistics.n_samples
    seen = statistics.seen
    if total <= 0 or not seen.any():
        raise LearningError("there are no samples to solve a head from")
    with np.errstate(all="ignore"):  # what overflows is found below
        means = np.zeros((len(counts), len(statistics.gram) - 1))
        means[seen] = (statistics.moment[:-1, seen] / counts[seen]).T
        covariance = (statistics.gram[:-1, :-1] - (means.T * counts) @ means) / total
        average = float(np.trace(covariance)) / len(covariance)
        covariance = (1.0 - shrinkage) * covariance
        # The tiny constant keeps the matrix invertible when all features are constant.
        covariance[np.diag_indices_from(covariance)] += shrinkage * max(average, 0.0) + 1e-9
        weights: Matrix = np.zeros_like(means)
        biases: Matrix = np.full(len(counts), UNSEEN_LOGIT)
        middle = means[seen].mean(axis=0)
        try:
            weights[seen] = np.linalg.solve(covariance, (means[seen] - middle).T).T
        except np.linalg.LinAlgError as exc:
            raise LearningError(f"no head can be solved from these statistics: {exc}") from exc
        # mu_c S⁻¹ mu_c - m S⁻¹ m = (mu_c - m) S⁻¹ (mu_c + m)
        squares = np.sum(weights[seen] * (means[seen] + middle), axis=1)
        biases[seen] = -0.5 * (squares - squares.mean())
    if not ((np.abs(weights) <= _LARGEST).all() and (np.abs(biases) <= _LARGEST).all()):
        raise LearningError("the head solved from these statistics is not finite")
    return weights, biases
