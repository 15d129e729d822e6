"""A fixed random map of long features to shorter ones: the statistics of a linear head grow with the square of them.

``z = R x`` with ``R (k, d)`` of entries ``+-1 / sqrt(k)`` keeps lengths and angles nearly (Johnson and Lindenstrauss
1984; with signs: Achlioptas 2003). A head on z is one on x: ``W z = (W R) x``. R follows from k, d and a seed alone, by
bits of a generator whose stream never changes (NumPy's NEP 19), so statistics of all devices of a fleet add.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

# What a learner of statistics remembers at the most, in bytes for each (features + 1)²; see `StatisticsLearner`.
BYTES_PER_SQUARE = 62
# Shorter than this a projection is of little use.
_SHORTEST = 64


def projected_length(n_features: int, max_state_mb: float) -> int | None:
    """To how many numbers features must be shortened for statistics to fit the memory; None where they fit.

    Args:
        n_features: Length of what the linear layer takes.
        max_state_mb: Memory for a learner, MiB.
    """
    most = math.isqrt(int(max_state_mb * 2**20) // BYTES_PER_SQUARE) - 1
    return None if n_features <= most else max(_SHORTEST, most)


class Projection:
    """See the module.

    Args:
        n_features: d.
        n_projected: k.
        seed: Another one is another map; that of statistics is 0.

    Attributes:
        n_projected: k.
    """

    def __init__(self, n_features: int, n_projected: int, seed: int = 0) -> None:
        self.n_projected = n_projected
        count = n_features * n_projected
        raw = np.random.PCG64(seed).random_raw(-(-count // 64))
        signs = np.unpackbits(np.asarray(raw).astype("<u8").view(np.uint8))[:count]
        scale = np.float32(1.0 / math.sqrt(n_projected))
        self._matrix: npt.NDArray[np.float32] = np.where(signs, scale, -scale).reshape(n_projected, n_features)

    def features(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """``(batch, k)`` for features ``(batch, d)``."""
        # Row by row: the product of a batch rounds differently from those of its rows, and a restart must not.
        return np.stack([self._matrix @ row for row in x.astype(np.float32)]) if len(x) else x[:, : len(self._matrix)]

    def lifted(self, weights: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Weights ``(n, d)`` that give for x what the weights ``(n, k)`` give for its projection."""
        return np.asarray(weights.astype(np.float32) @ self._matrix, np.float64)

    def inward(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The same in float64."""
        return np.asarray(weights @ self._matrix.astype(np.float64))

    def gram(self, gram: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """``(k + 1, k + 1)`` Gram matrix of ``[z, 1]`` from that of ``[x, 1]``."""
        return self.moment(self.moment(gram).T)

    def moment(self, moment: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """``(k + 1, n)`` sums of ``[z, 1]`` times something, from those ``(d + 1, n)`` of ``[x, 1]`` times the same."""
        return np.concatenate([self._matrix.astype(np.float64) @ moment[:-1], moment[-1:]])
