"""Samples that wait for their labels, side by side in a few large arrays.

Small arrays of each sample's own, kept among what every answer asks for and gives back, took twice the bytes and let
the heap break up: 17,000 answers of a small model cost 20 to 50 MiB instead of 9.
"""

from __future__ import annotations

import numpy as np

from edge.contract.training import FloatArray
from edge.learning.packing import PackedFeatures

_MOST_ROWS, _MOST_BYTES = 256, 1 << 20


class Shelf:
    """Samples of one shape, by the number of their place. It grows as it is filled, and keeps what it has.

    Args:
        n_features: Of each sample.
        n_outputs: Of each answer.
    """

    def __init__(self, n_features: int, n_outputs: int) -> None:
        self._n_features, self._n_outputs = n_features, n_outputs
        self._rows = max(1, min(_MOST_ROWS, _MOST_BYTES // (n_features + 4 * n_outputs + 4)))
        self._codes: list[np.ndarray[tuple[int, int], np.dtype[np.int8]]] = []  # each (rows, n_features)
        self._numbers: list[np.ndarray[tuple[int, int], np.dtype[np.float32]]] = []  # scale and answer
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._codes) * self._rows - len(self._free)

    def put(self, features: PackedFeatures, answer: FloatArray) -> int:
        """Keep a copy of a sample ``(1, n_features)`` and its answer ``(n_outputs,)``; the number of its place."""
        if not self._free:
            begin = len(self._codes) * self._rows
            self._codes.append(np.empty((self._rows, self._n_features), np.int8))
            self._numbers.append(np.empty((self._rows, 1 + self._n_outputs), np.float32))
            self._free = list(range(begin + self._rows - 1, begin - 1, -1))
        place = self._free.pop()
        block, row = divmod(place, self._rows)
        self._codes[block][row] = features.codes[0]
        numbers = self._numbers[block][row]
        numbers[0], numbers[1:] = features.scales[0], answer
        return place

    def see(self, place: int) -> tuple[PackedFeatures, FloatArray]:
        """What was put there."""
        block, row = divmod(place, self._rows)
        numbers = self._numbers[block][row]
        return PackedFeatures(self._codes[block][row : row + 1].copy(), numbers[:1].copy()), numbers[1:].copy()

    def clear(self, place: int) -> None:
        """Let another sample have this place."""
        self._free.append(place)
