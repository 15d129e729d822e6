"""Sufficient statistics of a linear head: they add, so merging devices is adding matrices.

With ``x~ = [x, 1]``, targets ``y`` (one-hot for classes) and sample weights ``w``, the statistics are the Gram matrix
``G = sum w x~ x~ᵀ`` and the moment ``M = sum w x~ yᵀ``. Both sums do not care about order, batches or devices, and a
device can be subtracted again. `edge.learning.solve` computes heads from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.projection import Projection

Matrix = npt.NDArray[np.float64]

# Up to this side a matrix is unpacked by a table of places, four times as fast as row by row (sums of a thousand). They
# are below 2^16.
_SMALL = 256
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class HeadStatistics:
    """Statistics of labelled features.

    Attributes:
        gram: ``(d + 1, d + 1)`` float64, symmetric; the last row holds the sum of the features and the count.
        moment: ``(d + 1, n_outputs)`` float64; of classes, the last row holds the count of each.
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
        one_hot = np.zeros((len(labels), n_classes))
        one_hot[np.arange(len(labels)), labels] = 1.0
        return cls.of_targets(features, one_hot, np.ones(len(labels)))

    @classmethod
    def of_targets(
        cls, features: npt.NDArray[Any], targets: npt.NDArray[Any], weights: npt.NDArray[Any]
    ) -> HeadStatistics:
        """Statistics of a batch: features ``(batch, d)``, targets ``(batch, n_outputs)``, weights ``(batch,)``."""
        extended = np.concatenate([features, np.ones((len(features), 1))], axis=1, dtype=np.float64)
        roots = np.sqrt(weights, dtype=np.float64)[:, None]
        rooted = extended * roots  # times itself: symmetric to the last digit, in half the time
        return cls(rooted.T @ rooted, rooted.T @ (targets * roots))

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

    def __mul__(self, factor: float) -> HeadStatistics:
        return HeadStatistics(self.gram * factor, self.moment * factor)

    def scaled_to(self, n_samples: float) -> HeadStatistics:
        """The same distribution, worth another number of samples."""
        return self * (n_samples / self.n_samples)

    def grown(self, n_classes: int) -> HeadStatistics:
        """The same with further classes, of which there are no samples."""
        more = n_classes - self.moment.shape[1]
        return HeadStatistics(self.gram, np.pad(self.moment, ((0, 0), (0, more))))

    def projected(self, projection: Projection | None) -> HeadStatistics:
        """Statistics of the projected features; as they are without a projection."""
        if projection is None:
            return self
        return HeadStatistics(projection.gram(self.gram), projection.moment(self.moment))

    def to_tensors(self, prefix: str = "") -> dict[str, npt.NDArray[np.float32]]:
        """As stored and sent: the Gram matrix as its upper triangle, float32."""
        return {
            f"{prefix}gram": upper_triangle(self.gram).astype(np.float32),
            f"{prefix}moment": self.moment.astype(np.float32),
        }

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, npt.NDArray[Any]],
        n_features: int,
        n_classes: int,
        prefix: str = "",
        is_classifier: bool = True,
    ) -> HeadStatistics:
        """Read what `to_tensors` wrote.

        Args:
            tensors: By name.
            n_features: Length d of a sample.
            n_classes: Or number of outputs.
            prefix: Of the names.
            is_classifier: Whether each sample has one class, so that the counts of the classes sum to that of samples.

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
        gram = of_triangle(triangle.astype(np.float64), side)
        if (np.diag(gram) < 0).any() or (is_classifier and (moment[-1] < 0).any()):
            raise LearningError("statistics with a negative count or sum of squares")
        if is_classifier and abs(moment[-1].sum() - gram[-1, -1]) > 1e-3 * max(1.0, gram[-1, -1]):
            raise LearningError("statistics whose class counts do not sum to their number of samples")
        return cls(gram, moment.astype(np.float64))


@dataclass(frozen=True, eq=False, slots=True)
class PackedStatistics:
    """Statistics that only wait to be used again: half of the memory, or in float32, as they are sent, a quarter.

    Attributes:
        triangle: ``((d + 1) (d + 2) / 2,)``, the upper triangle of the Gram matrix; float32, or float64 where further
            samples are added to it.
        moment: ``(d + 1, n_outputs)`` of the same type.
        scale: What both are multiplied with.
    """

    triangle: npt.NDArray[Any]
    moment: npt.NDArray[Any]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.scale < math.inf:
            raise LearningError(f"statistics cannot be scaled by {self.scale}")

    @classmethod
    def empty(cls, n_features: int, n_outputs: int, dtype: npt.DTypeLike = np.float32) -> PackedStatistics:
        """Statistics of no samples."""
        side = n_features + 1
        return cls(np.zeros(side * (side + 1) // 2, dtype), np.zeros((side, n_outputs), dtype))

    @classmethod
    def of(cls, statistics: HeadStatistics, scale: float = 1.0) -> PackedStatistics:
        """``scale * statistics``, rounded to float32 before it is scaled."""
        tensors = statistics.to_tensors()
        return cls(tensors["gram"], tensors["moment"], scale)

    def __mul__(self, factor: float) -> PackedStatistics:
        return PackedStatistics(self.triangle, self.moment, self.scale * factor)

    def plus(self, statistics: HeadStatistics) -> PackedStatistics:
        """The sum, in float64."""
        triangle, moment = self._scaled()
        triangle += upper_triangle(statistics.gram)
        moment += statistics.moment
        return PackedStatistics(triangle, moment)

    def is_same(self, other: PackedStatistics) -> bool:
        """Whether all numbers are the same."""
        pairs = (self.triangle, other.triangle), (self.moment, other.moment)
        return self.scale == other.scale and all(np.array_equal(mine, its) for mine, its in pairs)

    def rounded(self, gain: float) -> PackedStatistics:
        """The same as it is sent: divided by a gain in float32, which is its scale."""
        triangle, moment = (self * (1.0 / gain))._scaled()
        return PackedStatistics(triangle.astype(np.float32), moment.astype(np.float32), gain)

    @property
    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Without the scale, as `HeadStatistics.from_tensors` reads them."""
        return {"gram": self.triangle, "moment": self.moment}

    def grown(self, n_classes: int) -> PackedStatistics:
        """See `HeadStatistics.grown`."""
        more = n_classes - self.moment.shape[1]
        return PackedStatistics(self.triangle, np.pad(self.moment, ((0, 0), (0, more))), self.scale)

    @property
    def n_samples(self) -> float:
        """See `HeadStatistics.n_samples`."""
        return float(self.triangle[-1]) * self.scale

    def _scaled(self) -> tuple[Matrix, Matrix]:
        """Triangle and moment in float64, for whoever asks to keep."""
        return self.triangle * np.float64(self.scale), self.moment * np.float64(self.scale)

    def unpack(self) -> HeadStatistics:
        """In float64."""
        triangle, moment = self._scaled()
        return HeadStatistics(of_triangle(triangle, len(moment)), moment)


def difference(base: PackedStatistics, own: PackedStatistics, included: PackedStatistics) -> HeadStatistics:
    """``base + own - included`` in float64; beside the result one triangle at a time."""
    triangle, moment = base._scaled()
    more = own._scaled()
    triangle += more[0]
    moment += more[1]
    more = included._scaled()
    triangle -= more[0]
    moment -= more[1]
    return HeadStatistics(of_triangle(triangle, len(moment)), moment)


def upper_triangle(matrix: Matrix) -> Matrix:
    """``(n (n + 1) / 2,)``: row by row, from the diagonal on."""
    return np.concatenate([row[i:] for i, row in enumerate(matrix)])


def of_triangle(triangle: Matrix, n: int) -> Matrix:
    """The symmetric matrix ``(n, n)`` with this upper triangle."""
    if n <= _SMALL:
        whole: Matrix = triangle.take(_places(n).astype(np.intp))  # a quarter of the time of other types
        return whole
    matrix = np.empty((n, n))
    start = 0
    for i in range(n):
        matrix[i, i:] = matrix[i:, i] = triangle[start : start + n - i]
        start += n - i
    return matrix


@cache
def _places(n: int) -> npt.NDArray[np.uint16]:
    """``(n, n)`` where each value of a symmetric matrix stands in its upper triangle."""
    places, upper = np.empty((n, n), np.uint16), np.triu_indices(n)
    places[upper] = places.T[upper] = np.arange(n * (n + 1) // 2)
    return places
