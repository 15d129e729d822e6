"""Preconditioning for SGD on the linear layer that takes the features: whiten those, by statistics that were shipped.

Gradient descent on ``W' = W L⁻¹`` with inputs ``x' = L (x - mu)``, where ``L = s S^(-1/2)`` for the covariance S, moves
W by ``P g`` with ``P = L L = s² S⁻¹``: the preconditioned step ``W <- W - eta P g`` without a matrix in the training
graph, for any executor. Where the layer is the whole head s is 1; as ``E|x'|² = d``, a rate of ``eta / (d + 1)`` then
does not depend on the scale of the features. Where other layers follow, s makes ``E|x'|²`` that of what the last one
takes, so that one rate suits both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.manifest import LinearLayer
from edge.contract.training import FloatArray, Parameters
from edge.learning.statistics import HeadStatistics, Matrix

SHRINKAGE = 0.1
# What it remembers: the way in, and the way back.
BYTES_PER_FEATURE_PAIR = 8


class Whitening:
    """The way into whitened coordinates and back, for one linear layer of a head.

    Without a bias nothing can be centred: then mu is zero and S the second moment.

    Args:
        statistics: Of the layer's inputs, at least one sample.
        layer: Names of the weight and the bias.
        last: Statistics of what the last layer takes, where that is another one.

    Attributes:
        energy: ``E|x~|²`` of what the last layer takes, with ``x~ = [x, 1]``; a rate is to be divided by it.
    """

    def __init__(self, statistics: HeadStatistics, layer: LinearLayer, last: HeadStatistics | None = None) -> None:
        self._layer = layer
        n = statistics.n_samples
        mean = statistics.gram[-1, :-1] / n
        self._mean: Matrix = mean if layer.bias is not None else np.zeros_like(mean)
        covariance = statistics.gram[:-1, :-1] / n - np.outer(self._mean, self._mean)
        average = max(float(np.trace(covariance)) / len(covariance), 1e-12)
        covariance *= 1.0 - SHRINKAGE
        covariance[np.diag_indices_from(covariance)] += SHRINKAGE * average
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, 1e-3 * SHRINKAGE * average)
        self.energy = len(mean) + 1.0 if last is None else float(np.trace(last.gram)) / last.n_samples
        scales = np.sqrt(values * len(mean) / max(self.energy - 1.0, 1e-12))
        into = (vectors / scales) @ vectors.T
        self._into: FloatArray = into.astype(np.float32)
        self._shift: FloatArray = -(self._mean @ into).astype(np.float32)
        self._back: FloatArray = ((vectors * scales) @ vectors.T).astype(np.float32)

    def features(self, x: FloatArray) -> FloatArray:
        """``(batch, d)`` whitened."""
        return np.asarray(x @ self._into + self._shift)

    def whitened(self, parameters: Mapping[str, FloatArray]) -> Parameters:
        """The head for whitened features that answers as this one does for plain ones."""
        return self._moved(parameters, self._back, self._mean)

    def plain(self, parameters: Mapping[str, FloatArray]) -> Parameters:
        """The head for plain features that answers as this one does for whitened ones."""
        return self._moved(parameters, self._into, self._shift)

    def _moved(self, parameters: Mapping[str, FloatArray], matrix: FloatArray, shift: npt.NDArray[Any]) -> Parameters:
        layer, found = self._layer, dict(parameters)
        weight = parameters[layer.weight]
        found[layer.weight] = weight @ matrix
        if layer.bias is not None:
            found[layer.bias] = (parameters[layer.bias] + weight @ shift).astype(np.float32)
        return found
