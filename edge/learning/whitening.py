"""Preconditioning for SGD on a linear layer: whiten what it takes, by statistics that were shipped.

Gradient descent on ``W' = W L⁻¹`` with inputs ``x' = L (x - mu)``, where ``L = S^(-1/2)`` for the covariance S, moves W
by ``P g`` with ``P = L L = S⁻¹``: the preconditioned step ``W <- W - eta P g`` without a matrix in the training graph,
for any executor. As ``E|x'|² = d``, a rate of ``eta / (d + 1)`` does not depend on the scale of the features.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge.contract.manifest import LinearHead
from edge.contract.training import FloatArray, Parameters
from edge.learning.statistics import HeadStatistics, Matrix

SHRINKAGE = 0.1


class Whitening:
    """The way into whitened coordinates and back, for one linear layer.

    Without a bias nothing can be centred: then mu is zero and S the second moment.

    Args:
        statistics: Of the layer's inputs, at least one sample.
        head: Names of the weight and the bias.
    """

    def __init__(self, statistics: HeadStatistics, head: LinearHead) -> None:
        self._head = head
        n = statistics.n_samples
        mean = statistics.gram[-1, :-1] / n
        self._mean: Matrix = mean if head.bias is not None else np.zeros_like(mean)
        covariance = statistics.gram[:-1, :-1] / n - np.outer(self._mean, self._mean)
        average = max(float(np.trace(covariance)) / len(covariance), 1e-12)
        covariance *= 1.0 - SHRINKAGE
        covariance[np.diag_indices_from(covariance)] += SHRINKAGE * average
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, 1e-3 * SHRINKAGE * average)
        self._into: Matrix = (vectors / np.sqrt(values)) @ vectors.T
        self._back: Matrix = (vectors * np.sqrt(values)) @ vectors.T
        self._shift = -(self._mean @ self._into)
        self._into_f4 = self._into.astype(np.float32)
        self._shift_f4 = self._shift.astype(np.float32)

    def features(self, x: FloatArray) -> FloatArray:
        """``(batch, d)`` whitened."""
        return np.asarray(x @ self._into_f4 + self._shift_f4)

    def whitened(self, parameters: Mapping[str, FloatArray]) -> Parameters:
        """The layer for whitened features that answers as this one does for plain ones."""
        weight = parameters[self._head.weight].astype(np.float64)
        found = {self._head.weight: (weight @ self._back).astype(np.float32)}
        if self._head.bias is not None:
            found[self._head.bias] = (parameters[self._head.bias] + weight @ self._mean).astype(np.float32)
        return found

    def plain(self, parameters: Mapping[str, FloatArray]) -> Parameters:
        """The layer for plain features that answers as this one does for whitened ones."""
        weight = parameters[self._head.weight].astype(np.float64)
        found = {self._head.weight: (weight @ self._into).astype(np.float32)}
        if self._head.bias is not None:
            found[self._head.bias] = (parameters[self._head.bias] + weight @ self._shift).astype(np.float32)
        return found
