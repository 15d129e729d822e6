"""A device's change of a head, and the mean of many: arrays in, arrays out.

FedAvg (McMahan et al. 2017, arXiv:1602.05629, algorithm 1) is ``apply_change(base, mean_change(base, deltas))``; every
device is folded in as it comes, so generators are welcome and memory does not grow with the fleet. FedProx (Li et al.
2020, arXiv:1812.06127) has no rule here: its term is part of the device's training step
(`edge.contract.recipe.TrainingRecipe.proximal`), and what comes out is averaged like any other change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray, Parameters

# Changes that are added up in float32 before their sum is added to that of all: it is off by some 1e-7 of its terms.
_TOGETHER = 32
# A change or a head in float64, by parameter name.
Change = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Delta:
    """A device's change of a head.

    Attributes:
        change: Difference to the head that it started from, by parameter name.
        n_samples: Labelled samples behind it.
        staleness: Merges that have happened since that head was current; 0 for none.
    """

    change: Mapping[str, FloatArray]
    n_samples: int
    staleness: int = 0

    @property
    def is_finite(self) -> bool:
        """Whether all values are finite."""
        return all(bool(np.isfinite(array).all()) for array in self.change.values())

    @property
    def norm(self) -> float:
        """Euclidean norm over all parameters together; does not overflow for finite float32 values."""
        return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in self.change.values()))

    def check(self, base: Mapping[str, npt.NDArray[Any]], finite: bool = True) -> None:
        """Raise LearningError unless this is a change of a head with these parameters.

        Args:
            base: The head, by parameter name.
            finite: Whether to refuse values that are not finite.
        """
        mine = self.change
        if mine.keys() != base.keys() or any(mine[name].shape != array.shape for name, array in base.items()):
            raise LearningError("a change has other parameters than the head that it is to be added to")
        if self.n_samples < 0 or self.staleness < 0:
            raise LearningError("a change with a negative number of samples or merges")
        if finite and not self.is_finite:
            raise LearningError("a change with values that are not finite")

    def clipped(self, largest_norm: float) -> Delta:
        """The same direction, at most this long: ``change * min(1, largest_norm / norm)``.

        Raises:
            LearningError: The limit is not a number from zero up.
        """
        if not 0 <= largest_norm < math.inf:
            raise LearningError(f"a norm cannot be limited to {largest_norm}")
        norm = self.norm
        if norm <= largest_norm:
            return self
        factor = largest_norm / norm
        return replace(self, change={n: (a * np.float64(factor)).astype(np.float32) for n, a in self.change.items()})


def mean_change(base: Mapping[str, FloatArray], deltas: Iterable[Delta]) -> Change:
    """The mean of the changes, weighted by samples; one pass, memory for some heads whatever the number of devices.

    Stale changes are damped by ``1 / sqrt(1 + staleness)`` as in FedBuff (Nguyen et al. 2022, arXiv:2106.06639,
    section 5). This is the pseudo-gradient, with the sign of a change, that `edge.merging.server_optimizers` take.

    Args:
        base: The head that is changed, for its names and shapes.
        deltas: Of one or more devices, with samples.

    Raises:
        LearningError: No samples in all or a negative number, other parameters than the base, or values that are not
            finite.
    """
    size = sum(array.size for array in base.values())
    total, together = np.zeros(size, np.float64), np.empty((_TOGETHER, size), np.float32)
    weight_sum = 0.0
    left = iter(deltas)
    while some := list(islice(left, _TOGETHER)):
        for delta in some:
            delta.check(base, finite=False)
        weights = np.array([delta.n_samples / math.sqrt(1.0 + delta.staleness) for delta in some])
        weight_sum += float(weights.sum())
        rows = rows_of(base, some, together)
        with np.errstate(over="ignore", invalid="ignore"):  # found on the next line: what is not finite stays so
            found = weights.astype(np.float32) @ rows
        if not np.isfinite(found).all():
            for delta in some:
                delta.check(base)
            found = weights @ rows.astype(np.float64)
        total += found
    if weight_sum <= 0:
        raise LearningError("there are no samples behind the changes to merge")
    return named(base, total / weight_sum)


def rows_of(base: Mapping[str, FloatArray], deltas: Sequence[Delta], rows: FloatArray | None = None) -> FloatArray:
    """Changes as float32 ``(n_deltas, n_parameters)``, the parameters of a head one after the other.

    Args:
        base: The head, for the order of its parameters.
        deltas: With the same parameters.
        rows: Of the same width and at least as many rows, to be written over; None for new ones.
    """
    if rows is None:
        rows = np.empty((len(deltas), sum(array.size for array in base.values())), np.float32)
    for row, delta in zip(rows, deltas, strict=False):
        np.concatenate([np.ravel(delta.change[name]) for name in base], out=row, casting="same_kind")
    return rows[: len(deltas)]


def named(base: Mapping[str, FloatArray], change: npt.NDArray[np.float64]) -> Change:
    """A change of all parameters, one after the other, by their names."""
    ends = np.cumsum([array.size for array in base.values()])[:-1]
    parts = np.split(change, ends)
    return {name: part.reshape(base[name].shape) for name, part in zip(base, parts, strict=True)}


def apply_change(base: Mapping[str, FloatArray], change: Mapping[str, npt.NDArray[Any]]) -> Parameters:
    """The changed head as float32.

    Raises:
        LearningError: It has values that are not finite.
    """
    with np.errstate(over="ignore"):  # found on the next line
        merged = {name: (base[name] + change[name]).astype(np.float32) for name in base}
    if not all(np.isfinite(array).all() for array in merged.values()):
        raise LearningError("the merged head has values that are not finite")
    return merged
