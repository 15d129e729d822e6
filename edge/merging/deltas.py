"""A device's change of a head, and the mean of many: arrays in, arrays out.

FedAvg (McMahan et al. 2017, arXiv:1602.05629, algorithm 1) is ``apply_change(base, mean_change(base, deltas))``; every
device is folded in as it comes, so generators are welcome and memory does not grow with the fleet. FedProx (Li et al.
2020, arXiv:1812.06127) has no rule here: its term is part of the device's training step
(`edge.contract.recipe.TrainingRecipe.proximal`), and what comes out is averaged like any other change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray, Parameters

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
        if {n: a.shape for n, a in self.change.items()} != {n: a.shape for n, a in base.items()}:
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
    """The mean of the changes, weighted by samples; one pass, memory for two heads whatever the number of devices.

    Stale changes are damped by ``1 / sqrt(1 + staleness)`` as in FedBuff (Nguyen et al. 2022, arXiv:2106.06639,
    section 5). This is the pseudo-gradient, with the sign of a change, that `edge.merging.server_optimizers` take.

    Args:
        base: The head that is changed, for its names and shapes.
        deltas: Of one or more devices, with samples.

    Raises:
        LearningError: No samples in all or a negative number, other parameters than the base, or values that are not
            finite.
    """
    total = {name: np.zeros(array.shape, np.float64) for name, array in base.items()}
    weight_sum = 0.0
    for delta in deltas:
        delta.check(base)
        weight = delta.n_samples / math.sqrt(1.0 + delta.staleness)
        weight_sum += weight
        for name, array in delta.change.items():
            total[name] += weight * array
    if weight_sum <= 0:
        raise LearningError("there are no samples behind the changes to merge")
    return {name: array / weight_sum for name, array in total.items()}


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
