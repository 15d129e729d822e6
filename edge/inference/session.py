"""What the rest of the house sees of a runtime: features from samples, logits from features and a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.contract.manifest import SIGMOID, SOFTMAX

FloatArray = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]


class Session(Protocol):
    """A bundle loaded into a runtime."""

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], parameters: Mapping[str, FloatArray]) -> Arrays:
        """Run the whole model: inputs by name to all outputs by name, with the given head (empty without one)."""
        ...

    def predict(
        self, inputs: Mapping[str, npt.NDArray[Any]], parameters: Mapping[str, FloatArray]
    ) -> tuple[FloatArray, FloatArray]:
        """Features ``(batch, ...)`` and logits ``(batch, n_classes)`` in one run, for a bundle with a head."""
        ...

    def logits(self, features: FloatArray, parameters: Mapping[str, FloatArray]) -> FloatArray:
        """Run the head alone: ``(batch, *features)`` to ``(batch, n_classes)`` float32."""
        ...


def activated(logits: FloatArray, activation: str) -> FloatArray:
    """What a model gives for logits ``(batch, n_outputs)``, see `edge.contract.manifest.HeadSpec.activation`."""
    if activation == SOFTMAX:
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(shares / shares.sum(axis=-1, keepdims=True), np.float32)
    if activation == SIGMOID:
        return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits), np.float32)
    return logits


def unactivated(values: FloatArray, activation: str) -> FloatArray:
    """Logits of what a model gives: `activated` of them gives it again."""
    if not activation:
        return values
    smallest = np.finfo(np.float32).tiny
    logits = np.log(np.maximum(values, smallest))
    return logits if activation == SOFTMAX else np.asarray(logits - np.log(np.maximum(1.0 - values, smallest)))


def sqnr_db(reference: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """Signal to quantization noise ratio in dB: ``10 log10(sum r^2 / sum (r - f)^2)``, capped at 200.

    >>> round(sqnr_db(np.array([1.0, 1.0]), np.array([1.1, 0.9])))
    20
    """
    reference = reference.astype(np.float64)
    noise = float(np.sum((reference - found) ** 2))
    signal = float(np.sum(reference**2))
    if not np.isfinite(noise):
        return float("-inf")
    if noise <= signal * 1e-20:
        return 200.0
    return 10.0 * float(np.log10(max(signal, 1e-300) / noise))
