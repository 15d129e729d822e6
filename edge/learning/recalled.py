"""Samples as they may have been in training, drawn from the statistics that were shipped.

A head with hidden layers that learns labels of one class forgets the others: nothing says what they look like. A linear
one has the sums of them. So what SGD replays before the first label are samples drawn from these sums: around the mean
of each class, with the common covariance, and named as the shipped head names them. They have places in the replay
buffer like any others, and give way as labels come.

Pure: values in, values out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge.contract.training import FloatArray
from edge.learning.draws import Draws
from edge.learning.familiarity import covariance_of, means_of
from edge.learning.statistics import HeadStatistics

# Of each class (20 were no better, and hold back worlds that have changed), and of all together:
PER_CLASS, MOST = 5, 4096


def recalled(
    statistics: HeadStatistics, answer: Callable[[FloatArray], FloatArray], draws: Draws
) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Samples of the classes that there are statistics of, those that the shipped head does not name so left out.

    Args:
        statistics: Of the features.
        answer: Outputs ``(n, n_classes)`` of the shipped head for features ``(n, d)``.
        draws: Random signs: each sample is the mean and the root of the covariance times ``d`` of them, which has
            that covariance, and is nearly normal along any direction that many features share in.

    Returns:
        Features ``(n, d)`` float32 and labels ``(n,)``, one class after another.
    """
    classes = np.flatnonzero(statistics.seen)
    labels = np.repeat(classes, min(PER_CLASS, max(MOST // max(len(classes), 1), 1)))[:MOST]
    means, covariance = means_of(statistics), covariance_of(statistics)
    values, vectors = np.linalg.eigh(covariance)
    root = ((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T).astype(np.float32)
    signs = draws.bits(len(labels) * len(root)).reshape(len(labels), len(root)) * np.float32(2.0) - np.float32(1.0)
    features = means[labels].astype(np.float32) + signs @ root
    outputs = answer(features)
    kept = np.isfinite(features).all(axis=1) & (outputs.argmax(axis=1) == labels)
    return features[kept], labels[kept]
