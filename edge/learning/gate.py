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

Logits = Callable[[FloatArray], FloatArray]


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
    """The most recent labelled samples, packed, with whether the live head was right *before* it learned each.

    Comparing with that, and not with what the live head says now, keeps it fair: by now the live head has learned them.

    Args:
        capacity: Samples kept.
        shape: Shape of one sample's features.
    """

    def __init__(self, capacity: int, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._kept: deque[tuple[PackedFeatures, LabelArray, npt.NDArray[np.bool_]]] = deque(maxlen=capacity)

    def put(self, features: PackedFeatures, labels: LabelArray, right: npt.NDArray[np.bool_]) -> None:
        """Add a batch; `right (batch,)` says which of them the live head had answered correctly."""
        for i in range(len(features)):
            # Copies: a view would keep the whole batch in memory, and change when its owner writes into it.
            part = PackedFeatures(features.codes[i : i + 1].copy(), features.scales[i : i + 1].copy())
            self._kept.append((part, labels[i : i + 1].copy(), right[i : i + 1].copy()))

    def judge_offered(self, offered: Logits) -> Verdict:
        """Whether an offered head, given as a function from features to logits, may replace the live one."""
        live, other, finite = self._compared(offered)
        if not finite:
            return Verdict(False, "the offered head gives values that are not finite")
        return compare(live, other)

    def judge_live(self, before: Logits) -> Verdict:
        """Whether the live head holds up against the one before it, on labels that came since it went live."""
        live, other, finite = self._compared(before)
        return compare(other, live) if finite else compare(live, live)

    def _compared(self, other: Logits) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], bool]:
        """Where the live head was right, where the other is, and whether all that the other gives is finite."""
        if not self._kept:
            nothing = np.zeros(0, bool)
            return nothing, nothing, True
        packed, labels, right = zip(*self._kept, strict=True)
        codes = np.concatenate([part.codes for part in packed])
        features = PackedFeatures(codes, np.concatenate([part.scales for part in packed])).unpack(self._shape)
        logits = other(features)
        finite = bool(np.isfinite(logits).all())
        return np.concatenate(right), logits.argmax(axis=1) == np.concatenate(labels), finite
