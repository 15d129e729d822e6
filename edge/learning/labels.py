"""Labels come late: a bounded ring keeps what is needed to learn from a sample until its label names it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.learning.learner import State, take
from edge.learning.packing import PackedFeatures

MAX_ID_LENGTH = 128


@dataclass(frozen=True, eq=False, slots=True)
class Remembered:
    """A sample that waits for its label: features, predicted class, and when it was seen (seconds)."""

    features: PackedFeatures
    prediction: int
    seen_s: float


class LabelRing:
    """Joins labels to samples by sample id.

    The oldest samples make room for new ones, and a sample that is older than `expiry_s` is no longer joined. A label
    is joined once; a repeated one is unknown.

    Args:
        capacity: Samples kept at most.
        expiry_s: How long a label may be late.
    """

    def __init__(self, capacity: int, expiry_s: float) -> None:
        self._capacity = capacity
        self._expiry_s = expiry_s
        self._waiting: OrderedDict[str, Remembered] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, sample_id: str, sample: Remembered) -> None:
        """Remember a sample; the same id again replaces the older one."""
        self._waiting.pop(sample_id, None)
        self._waiting[sample_id] = sample
        while len(self._waiting) > self._capacity:
            self._waiting.popitem(last=False)

    def join(self, sample_id: str, now_s: float) -> Remembered | None:
        """The sample that this label is for; None when it is unknown, already labelled or expired."""
        found = self._waiting.pop(sample_id, None)
        if found is None or now_s - found.seen_s > self._expiry_s:
            return None
        return found

    def state(self, now_s: float) -> State:
        """All waiting samples; ages instead of times, since a clock starts anew after a restart."""
        kept = [(key, item) for key, item in self._waiting.items() if now_s - item.seen_s <= self._expiry_s]
        ids = "\n".join(key for key, _ in kept).encode()
        width = self._width()
        return {
            "ring.ids": np.frombuffer(ids, np.uint8),
            "ring.codes": np.array([item.features.codes[0] for _, item in kept], np.int8).reshape(len(kept), width),
            "ring.scales": np.array([item.features.scales[0] for _, item in kept], np.float32),
            "ring.predictions": np.array([item.prediction for _, item in kept], np.int64),
            "ring.ages_s": np.array([now_s - item.seen_s for _, item in kept], np.float64),
        }

    def _width(self) -> int:
        first = next(iter(self._waiting.values()), None)
        return 0 if first is None else first.features.codes.shape[1]

    def restore(self, state: Mapping[str, npt.NDArray[Any]], now_s: float) -> None:
        """Take back what `state` gave."""
        text = take(state, "ring.ids").tobytes().decode()
        for i, key in enumerate(text.split("\n") if text else []):
            features = PackedFeatures(take(state, "ring.codes")[i : i + 1], take(state, "ring.scales")[i : i + 1])
            seen_s = now_s - float(take(state, "ring.ages_s")[i])
            self.put(key, Remembered(features, int(take(state, "ring.predictions")[i]), seen_s))
