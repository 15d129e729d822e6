"""Whether a head that somebody offers may replace the live one, judged on recent labelled samples of this device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.contract.training import FloatArray, LabelArray
from edge.learning.packing import PackedFeatures

# One-sided 95 % point of the normal distribution.
Z_95 = 1.645
# A merged head knows what other devices saw; it may cost this much on the little that one device saw lately.
TOLERATED_LOSS = 0.05
MIN_SAMPLES = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer: whether to accept, and the numbers it rests on, for people."""

    accepted: bool
    reason: str


def compare(live_right: npt.NDArray[np.bool_], offered_right: npt.NDArray[np.bool_]) -> Verdict:
    """Compare two heads on the same labelled samples.

    Refuses when the offered head is worse by more than `TOLERATED_LOSS` even at the favourable end of the 95 %
    confidence interval of the paired difference. With fewer than `MIN_SAMPLES` samples there is nothing to refuse on.

    Args:
        live_right: ``(n,)`` whether the live head was right.
        offered_right: ``(n,)`` the same for the offered head.
    """
    n = len(live_right)
    if n < MIN_SAMPLES:
        return Verdict(True, f"not judged: {n} recent labels, {MIN_SAMPLES} needed")
    difference = offered_right.astype(np.float64) - live_right
    mean = float(difference.mean())
    upper = mean + Z_95 * float(difference.std(ddof=1)) / math.sqrt(n)
    numbers = f"accuracy {offered_right.mean():.3f} against {live_right.mean():.3f} on {n} recent labels"
    if upper < -TOLERATED_LOSS:
        return Verdict(False, f"worse: {numbers}")
    return Verdict(True, numbers)


class Reserve:
    """The most recent labelled samples, packed.

    Args:
        capacity: Samples kept.
        shape: Shape of one sample's features.
    """

    def __init__(self, capacity: int, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._kept: deque[tuple[PackedFeatures, LabelArray]] = deque(maxlen=capacity)

    def put(self, features: PackedFeatures, labels: LabelArray) -> None:
        """Add a batch."""
        for i in range(len(features)):
            part = PackedFeatures(features.codes[i : i + 1], features.scales[i : i + 1])
            self._kept.append((part, labels[i : i + 1]))

    def judge(self, live: Callable[[FloatArray], FloatArray], offered: Callable[[FloatArray], FloatArray]) -> Verdict:
        """Compare two heads, each given as a function from features to logits ``(n, n_classes)``."""
        if not self._kept:
            return compare(np.zeros(0, bool), np.zeros(0, bool))
        packed = PackedFeatures(
            np.concatenate([part.codes for part, _ in self._kept]),
            np.concatenate([part.scales for part, _ in self._kept]),
        )
        labels = np.concatenate([label for _, label in self._kept])
        features = packed.unpack(self._shape)
        offered_logits = offered(features)
        if not np.isfinite(offered_logits).all():
            return Verdict(False, "the offered head gives values that are not finite")
        return compare(live(features).argmax(axis=1) == labels, offered_logits.argmax(axis=1) == labels)
