"""Features as int8: a quarter of the memory, and what is kept of a sample while it waits for its label.

Each sample has its own scale: ``code = round(127 x / max|x|)``, so the error is at most ``max|x| / 254`` per element,
or 6e-39 where that is less (a scale is never subnormal).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False, slots=True)
class PackedFeatures:
    """A batch of features.

    Attributes:
        codes: ``(batch, d)`` int8.
        scales: ``(batch,)`` float32.
    """

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.codes)

    def rows(self, start: int, stop: int) -> PackedFeatures:
        """Some of them."""
        return PackedFeatures(self.codes[start:stop], self.scales[start:stop])

    def chosen(self, which: npt.NDArray[np.bool_]) -> PackedFeatures:
        """Those that are chosen, ``(batch,)``."""
        return PackedFeatures(self.codes[which], self.scales[which])

    def unpack(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """The features again: ``(batch, *shape)`` float32."""
        flat = self.codes * self.scales[:, None]
        return flat.reshape(len(self.codes), *shape).astype(np.float32, copy=False)


def pack(features: npt.NDArray[Any]) -> PackedFeatures:
    """Pack a batch ``(batch, ...)`` of finite features."""
    flat = features.reshape(len(features), math.prod(features.shape[1:]))  # -1 would not do for an empty batch
    largest = np.abs(flat).max(axis=1, initial=0.0)
    scales = np.where(largest > 0, np.maximum(largest / 127.0, _SMALLEST_SCALE), 1.0).astype(np.float32)
    return PackedFeatures(np.rint(flat / scales[:, None]).astype(np.int8), scales)
