"""Merging what devices learned: arrays in, arrays out. No network, no storage, no log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearHead
from edge.contract.training import FloatArray, Parameters
from edge.learning.statistics import HeadStatistics, solve


def merge_statistics(prior: HeadStatistics, contributions: Iterable[HeadStatistics]) -> HeadStatistics:
    """The sum: exact, whatever the split among devices and the order of arrival."""
    total = prior
    for contribution in contributions:
        total = total + contribution
    return total


def head_of(statistics: HeadStatistics, head: LinearHead) -> Parameters:
    """The linear head that statistics determine, under its parameter names."""
    weights, biases = solve(statistics)
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


def weighted_mean(base: Mapping[str, FloatArray], deltas: Iterable[Delta]) -> Parameters:
    """Add the mean of the changes, weighted by samples, to a head; one pass, constant memory in devices.

    FedAvg (McMahan et al. 2017, arXiv:1602.05629, algorithm 1) on the head; stale changes are damped by
    ``1 / sqrt(1 + staleness)`` as in FedBuff (Nguyen et al. 2022, arXiv:2106.06639, section 5).

    Raises:
        LearningError: No samples in all or a negative number, other parameters than the base, or values that are not
            finite, before or after.
    """
    total = {name: np.zeros(array.shape, np.float64) for name, array in base.items()}
    weight_sum = 0.0
    for delta in deltas:
        if {n: a.shape for n, a in delta.change.items()} != {n: a.shape for n, a in base.items()}:
            raise LearningError("a change has other parameters than the head that it is to be added to")
        if not all(np.isfinite(array).all() for array in delta.change.values()):
            raise LearningError("a change with values that are not finite")
        if delta.n_samples < 0 or delta.staleness < 0:
            raise LearningError("a change with a negative number of samples or merges")
        weight = delta.n_samples / np.sqrt(1.0 + delta.staleness)
        weight_sum += weight
        for name, array in delta.change.items():
            total[name] += weight * array
    if weight_sum <= 0:
        raise LearningError("there are no samples behind the changes to merge")
    with np.errstate(over="ignore"):  # found on the next line
        merged = {name: (base[name] + total[name] / weight_sum).astype(np.float32) for name in base}
    if not all(np.isfinite(array).all() for array in merged.values()):
        raise LearningError("the merged head has values that are not finite")
    return merged
