"""Samples as they may have been in training, drawn from the statistics that were shipped.

SGD that learns labels of one class forgets the others: nothing says what they look like, where the statistics have the
sums of them. So what it replays before the first label are samples drawn from these sums: around the mean of each
class, with the common covariance, and named as the shipped head names them. They have places in the replay buffer like
any others, and give way as labels come.

Others are drawn that nobody learns (`imagined`): who answers the class of the day for them has forgotten theirs
(`edge.learning.mixture.apart`).

Pure: values in, values out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge.contract.training import FloatArray
from edge.learning.draws import Draws
from edge.learning.familiarity import covariance_of, means_of
from edge.learning.statistics import HeadStatistics, Matrix

# Of each class (20 and 5 were no better, and hold back worlds that have changed), and of all together:
PER_CLASS, MOST = 2, 4096
# Of those that nobody learns: of each class, and of all together, as every expert answers them with a label.
IMAGINED, MOST_IMAGINED = 16, 64
# Shares of the mean variance, so that a covariance without full rank, rounded, has a root: the first one that does.
_RIDGES = (1e-6, 1e-4, 1e-2, 1.0)
# Random signs of which a number is the sum, where that is not too many in all.
_SIGNS, _MOST_SIGNS = 8, 1 << 22
_SEED = 7919

Samples = tuple[FloatArray, npt.NDArray[np.int64]]


def recalled(statistics: HeadStatistics, answer: Callable[[FloatArray], FloatArray], draws: Draws) -> Samples:
    """Samples of the classes that there are statistics of, those that the shipped head does not name so left out.

    Args:
        statistics: Of the features.
        answer: Outputs ``(n, n_classes)`` of the shipped head for features ``(n, d)``.
        draws: Random signs.

    Returns:
        Features ``(n, d)`` float32 and labels ``(n,)``, one class after another.
    """
    classes = np.flatnonzero(statistics.seen)
    labels = np.repeat(classes, min(PER_CLASS, max(MOST // max(len(classes), 1), 1)))[:MOST]
    features = _drawn(statistics, labels, draws)
    kept = np.isfinite(features).all(axis=1) & (answer(features).argmax(axis=1) == labels)
    return features[kept], labels[kept]


def imagined(statistics: HeadStatistics) -> Samples:
    """Samples of the classes that there are statistics of, always the same; of many classes some."""
    classes = np.flatnonzero(statistics.seen)
    chosen = classes[np.unique(np.linspace(0, len(classes) - 1, min(len(classes), MOST_IMAGINED)).astype(np.int64))]
    labels = np.repeat(chosen, min(IMAGINED, MOST_IMAGINED // max(len(chosen), 1)))
    features = _drawn(statistics, labels, Draws((_SEED,)))
    kept = np.isfinite(features).all(axis=1)
    return features[kept], labels[kept]


def _drawn(statistics: HeadStatistics, labels: npt.NDArray[np.int64], draws: Draws) -> FloatArray:
    """``(n, d)`` around the means of their classes: sums of signs, nearly normal, times a root of the covariance."""
    means, root = means_of(statistics), _root(covariance_of(statistics))
    shape = len(labels), len(root)
    signs = max(1, min(_SIGNS, _MOST_SIGNS // max(math.prod(shape), 1)))
    sums = draws.bits(math.prod(shape) * signs).reshape(*shape, signs).sum(axis=2, dtype=np.float64)
    return np.asarray(means[labels] + (2.0 * sums - signs) / math.sqrt(signs) @ root.T, np.float32)


def _root(covariance: Matrix) -> Matrix:
    """``(d, d)`` lower triangular, times its transpose the covariance; of one that is none, of its variances."""
    variances = np.maximum(np.diag(covariance), 0.0)
    mean = max(float(variances.mean()), 1e-30)
    for ridge in _RIDGES:
        try:
            return np.asarray(np.linalg.cholesky(covariance + ridge * mean * np.eye(len(covariance))), np.float64)
        except np.linalg.LinAlgError:
            continue
    return np.diag(np.sqrt(variances))
