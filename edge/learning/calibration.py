"""Honest probabilities: logits are divided by a temperature that was fitted on labelled samples of this device.

Temperature scaling (Guo et al. 2017, arXiv:1706.04599): it does not change which class is answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.learning.task import Scores, Targets, Task

# Standard deviation of log T before anything is known; in samples it is worth a few.
_SPREAD = 1.0
_LOW, _HIGH = math.log(0.02), math.log(500.0)


def fit_temperature(outputs: npt.NDArray[np.float32], targets: Targets, task: Task) -> float:
    """The temperature that makes these answers most likely.

    Minimizes the sum of the losses of ``outputs / T`` plus ``(log T)² / 2``, which is worth little against a few dozen
    samples and keeps T near 1 without them. Golden-section search on log T, where the sum is unimodal in practice.

    Args:
        outputs: ``(n, n_outputs)``, each given before its label was learned.
        targets: As `Task.check` gives them.
        task: A classifying one.
    """
    finite = np.isfinite(outputs).all(axis=1)
    outputs, targets = outputs[finite], targets[finite]
    if len(outputs) == 0 or task.is_regression:
        return 1.0

    losses_at = _class_losses(outputs, targets) if task.is_classifier else lambda s: task.losses(outputs * s, targets)

    def cost(log_t: float) -> float:
        losses = losses_at(math.exp(-log_t))
        return float(np.add.reduce(np.minimum(losses, 50.0))) + (log_t / _SPREAD) ** 2 / 2.0

    low, high = _LOW, _HIGH
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    cost_a, cost_b = cost(a), cost(b)
    for _ in range(24):
        if cost_a < cost_b:
            high, b, cost_b = b, a, cost_a
            a = high - ratio * (high - low)
            cost_a = cost(a)
        else:
            low, a, cost_a = a, b, cost_b
            b = low + ratio * (high - low)
            cost_b = cost(b)
    return math.exp((low + high) / 2.0)


def _class_losses(outputs: npt.NDArray[np.float32], targets: Targets) -> Callable[[float], Scores]:
    """Gives the cross-entropies ``(n,)`` of outputs times a number: what is the same for all numbers is done once."""
    shifted = outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True)
    told = shifted[np.arange(len(shifted)), targets]
    room = np.empty_like(shifted)

    def losses(scale: float) -> Scores:
        np.exp(np.multiply(shifted, scale, out=room), out=room)
        return np.asarray(np.log(np.add.reduce(room, axis=1)) - told * scale)

    return losses


def probabilities(outputs: npt.NDArray[np.float32], temperature: float, task: Task) -> Scores:
    """``(n, n_outputs)`` probabilities of the classes, or of each yes; quantities come back as they are."""
    scaled = outputs.astype(np.float64) / (1.0 if task.is_regression else temperature)
    if task.is_regression:
        return scaled
    return softmax(scaled) if task.is_classifier else logistic(scaled)


def softmax(logits: npt.NDArray[Any]) -> Scores:
    """Probabilities of classes along the last axis, without overflow."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def logistic(logits: npt.NDArray[Any]) -> Scores:
    """Probabilities of yes, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(logits.astype(np.float64) / 2.0)))
