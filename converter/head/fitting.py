"""What is done to a head at conversion: corrected for the quantized backbone, and given its training statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.manifest import LinearLayer

# A correction is fitted on one half of the data and judged on the other, so it needs a little of it.
_MIN_SAMPLES = 64
_RIDGE = 1e-2


def correct_for_quantization(
    parameters: Mapping[str, npt.NDArray[np.float32]],
    head: LinearLayer,
    features: npt.NDArray[np.float32],
    wanted: npt.NDArray[np.float32],
) -> tuple[dict[str, npt.NDArray[np.float32]], float]:
    """Move a linear head toward giving, on quantized features, the logits that the float model gave.

    Solves ``min_V |X V - (Z - X W)|^2 + lambda |V|^2`` (ridge regression on the residual) on even samples, with
    ``lambda = 0.01 tr(XᵀX) / d``, and keeps ``W + V`` only if it comes nearer to the float logits on the odd samples.

    Args:
        parameters: The float head.
        head: Names of its weight and bias.
        features: ``(n, d)`` of the quantized backbone.
        wanted: ``(n, n_classes)`` logits of the float model on the same samples.

    Returns:
        The head to ship, and the squared error on the odd samples relative to the float head's (1.0: not changed).
    """
    unchanged = dict(parameters), 1.0
    if len(features) < _MIN_SAMPLES:
        return unchanged
    extended = np.concatenate([features, np.ones((len(features), 1))], axis=1, dtype=np.float64)
    bias = np.zeros(len(parameters[head.weight])) if head.bias is None else parameters[head.bias]
    solution = np.concatenate([parameters[head.weight], bias[:, None]], axis=1, dtype=np.float64).T
    if head.bias is None:
        extended, solution = extended[:, :-1], solution[:-1]
    fit, judge = slice(0, None, 2), slice(1, None, 2)
    gram = extended[fit].T @ extended[fit]
    gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram) + 1e-9
    change = np.linalg.solve(gram, extended[fit].T @ (wanted[fit] - extended[fit] @ solution))

    def error(candidate: npt.NDArray[Any]) -> float:
        return float(np.square(wanted[judge] - extended[judge] @ candidate).mean())

    before, after = error(solution), error(solution + change)
    if not after < before:
        return unchanged
    corrected = (solution + change).T.astype(np.float32)
    n_features = features.shape[1]
    result = {head.weight: np.ascontiguousarray(corrected[:, :n_features])}
    if head.bias is not None:
        result[head.bias] = np.ascontiguousarray(corrected[:, n_features])
    return result, after / before


def training_statistics(
    batches: Iterable[tuple[Mapping[str, npt.NDArray[np.float32]], npt.NDArray[np.float64]]],
) -> tuple[dict[str, npt.NDArray[np.float32]], int]:
    """Mean Gram matrix and moment of what linear layers take, as `edge.learning.statistics` reads them.

    With ``x~ = [x, 1]``: ``gram`` is the upper triangle of ``E[x~ x~ᵀ]`` and ``moment`` is ``E[x~ yᵀ]``
    ``(d + 1, n_outputs)``; both of the shipped, quantized features.

    Args:
        batches: Inputs ``(n, d)`` of each layer, by a prefix for the names of its statistics, and targets
            ``(n, n_outputs)``, one-hot for classes; summed as they come.

    Returns:
        The statistics, and the number of samples behind them.
    """
    grams: dict[str, npt.NDArray[np.float64]] = {}
    moments: dict[str, npt.NDArray[np.float64]] = {}
    count = 0
    for layers, targets in batches:
        count += len(targets)
        for prefix, inputs in layers.items():
            extended = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1, dtype=np.float64)
            grams[prefix] = grams.get(prefix, 0.0) + extended.T @ extended
            moments[prefix] = moments.get(prefix, 0.0) + extended.T @ targets
    statistics: dict[str, npt.NDArray[np.float64]] = {}
    for prefix, gram in grams.items():
        triangle = np.concatenate([row[i:] for i, row in enumerate(gram)])
        statistics |= {f"{prefix}gram": triangle / count, f"{prefix}moment": moments[prefix] / count}
    return {name: array.astype(np.float32) for name, array in statistics.items()}, count


def stable_learning_rate(features: npt.NDArray[np.float32]) -> float:
    """A rate at which a step on one sample does not overshoot: ``1 / E|x~|^2``, at most 0.1.

    The Hessian of softmax cross-entropy in a linear head is at most ``|x~|^2 / 2`` (Böhning 1992), so steps up to
    ``2 / |x~|^2`` never increase a sample's loss. Half of that leaves room for samples larger than the mean.
    """
    flat = features.reshape(len(features), -1).astype(np.float64)
    return min(0.1, 1.0 / float((np.square(flat).sum(axis=1) + 1.0).mean()))
