"""Sketches of samples: enough of their features to tell which samples of a fleet are alike.

A sketch is ``R (x - m)`` with the features x, the mean m of what this device saw lately and a fixed random map R to
`LENGTH` numbers, scaled to its largest one and rounded to int8. The cosine of two sketches is nearly that of the
centred features (Johnson and Lindenstrauss 1984). R follows from the digest of the backbone, so all devices of one
backbone map alike, and sketches of two backbones are not comparable.

m takes away what all samples of one device have in common, its light above all. The features are not whitened: on ten
real cameras that made sketches of one class less alike (docs/learning.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.projection import Projection

LENGTH = 64
# Samples whose mean says what is usual on a device; with fewer nobody can tell what is particular of one.
USUAL, LEAST_USUAL = 64, 8

Codes = npt.NDArray[np.int8]


class Sketcher:
    """See the module.

    Args:
        n_features: Length d of a sample's features.
        backbone: Digest of what they come from, in hexadecimal.
    """

    def __init__(self, n_features: int, backbone: str) -> None:
        self._projection = Projection(n_features, LENGTH, seed=int(backbone[:16], 16))

    def sketches(self, features: npt.NDArray[Any], usual: npt.NDArray[Any]) -> Codes:
        """Sketches of samples.

        Args:
            features: ``(n, d)``, finite.
            usual: ``(m, d)``, what this device saw lately; m is 1 or more.

        Returns:
            ``(n, LENGTH)``; zeros for a sample that is the mean.
        """
        mapped = self._projection.features(features - usual.mean(axis=0, dtype=np.float64))
        largest = np.abs(mapped).max(axis=1, initial=0.0, keepdims=True)
        return np.rint(mapped * (127.0 / np.where(largest > 0, largest, 1.0))).astype(np.int8)


def cosines(codes: Codes, others: Codes) -> npt.NDArray[np.float32]:
    """``(n, m)`` how alike sketches ``(n, LENGTH)`` and ``(m, LENGTH)`` are, -1 to 1; 0 with one of zeros."""
    return _unit(codes) @ _unit(others).T


def _unit(codes: Codes) -> npt.NDArray[np.float32]:
    found = codes.astype(np.float32)
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(norms > 0, norms, 1.0), np.float32)
