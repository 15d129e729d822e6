"""Merging what devices learned: arrays in, arrays out. No network, no storage, no log.

Statistics add (`merge_statistics`) and can be taken out again (`unlearn`). Changes of heads are averaged
(`weighted_mean`); every device is folded in as it comes, so generators are welcome and memory does not grow with the
fleet. Other rules for changes: `edge.learning.robust` for fleets with garbage in them, `edge.learning.buffered` for
devices that come when they come, `edge.learning.server_optimizers` for an adaptive step with the mean,
`edge.learning.privacy` for a mean that tells little about any one device. FedProx (Li et al. 2020, arXiv:1812.06127)
has no rule here: its term is part of the device's training step (`edge.contract.recipe.TrainingRecipe.proximal`), and
what comes out is averaged like any other change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.contract.projection import Projection
from edge.contract.training import FloatArray, Parameters
from edge.learning.solve import Method, solve
from edge.learning.statistics import HeadStatistics

# A change or a head in float64, by parameter name.
Change = dict[str, npt.NDArray[np.float64]]

# Relative to the total before: what rounding leaves of a difference of float64 sums, and of sums stored as float32.
_ROUNDING, _ROUNDING_STORED = 1e-9, 1e-6


def merge_statistics(prior: HeadStatistics, contributions: Iterable[HeadStatistics]) -> HeadStatistics:
    """The sum: exact, whatever the split among devices and the order of arrival."""
    total = prior
    for contribution in contributions:
        total = total + contribution
    return total


def unlearn(total: HeadStatistics, contribution: HeadStatistics, is_classifier: bool = True) -> HeadStatistics:
    """Take a device out of a sum; what is left is, within rounding, the sum without that device.

    A class that no other device has samples of becomes unseen: what rounding leaves of its sums is set to zero.

    Args:
        total: A sum with the contribution in it.
        contribution: What the device gave, the very version that was added.
        is_classifier: Whether the last row of the moment counts classes; otherwise only samples are counted.

    Raises:
        LearningError: The contribution is not part of the total: a count or a sum of squares would be negative.
    """
    left = total - contribution
    before, after = np.diag(total.gram), np.diag(left.gram)
    if is_classifier:
        before, after = np.append(before, total.class_counts), np.append(after, left.class_counts)
    if (after < -_ROUNDING_STORED * before).any():
        raise LearningError("these statistics are not part of the sum that they are to be taken out of")
    if left.n_samples <= _ROUNDING * total.n_samples:
        return left * 0.0
    gram, moment = left.gram.copy(), left.moment
    gram[np.diag_indices_from(gram)] = np.maximum(np.diag(gram), 0.0)
    if is_classifier:
        moment = np.where(left.class_counts <= _ROUNDING * total.class_counts, 0.0, moment)
    return HeadStatistics(gram, moment)


def head_of(
    statistics: HeadStatistics,
    head: LinearLayer,
    method: Method = "discriminant",
    projection: Projection | None = None,
) -> Parameters:
    """The linear head that statistics, of features that were perhaps projected, determine, by its parameter names.

    Raises:
        LearningError: As `edge.learning.solve.solve`, or the head for plain features is not finite.
    """
    weights, biases = solve(statistics, method)
    if projection is not None:
        with np.errstate(over="ignore", invalid="ignore"):  # found below
            weights = projection.lifted(weights)
        if not np.isfinite(weights).all():
            raise LearningError("the head solved from these statistics is not finite")
    parameters = {head.weight: weights.astype(np.float32)}
    if head.bias is not None:
        parameters[head.bias] = biases.astype(np.float32)
    return parameters


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
    section 5). This is the pseudo-gradient, with the sign of a change, that `edge.learning.server_optimizers` take.

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


def weighted_mean(base: Mapping[str, FloatArray], deltas: Iterable[Delta]) -> Parameters:
    """Add the mean of the changes to a head: FedAvg (McMahan et al. 2017, arXiv:1602.05629, algorithm 1) on the head.

    Raises:
        LearningError: As `mean_change`, or the merged head is not finite.
    """
    return apply_change(base, mean_change(base, deltas))
