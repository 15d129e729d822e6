"""Ranges of activations: a histogram that grows with what it sees, and ways to choose a range from it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Range = tuple[float, float]

BINS = 4096
_SAMPLED = 16384  # elements of one tensor of one batch that go into the histogram; smallest and largest see all
_PERCENTILE = 99.99
_SHRINKS = np.linspace(0.2, 1.0, 41)


class Histogram:
    """Counts over ``[-bound, bound]``, whose bound doubles when a value lies beyond it. Its size never changes.

    Attributes:
        low: Smallest value seen.
        high: Largest value seen.
        counts: ``(BINS,)``.
        bound: Half the width.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0  # ranges always hold 0, so that it is exact
        self.counts = np.zeros(BINS)
        self.bound = 0.0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count the values of one tensor; of a large one evenly spaced ones."""
        flat = values.reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        reach = max(-low, high)
        if not np.isfinite(reach) or reach == 0.0:
            return
        if self.bound == 0.0:
            self.bound = reach
        while reach > self.bound:
            self._widen()
        some = flat[:: max(1, flat.size // _SAMPLED)]
        index = ((some + self.bound) * (BINS / (2 * self.bound))).astype(np.int32)
        self.counts += np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)

    def _widen(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(BINS)
        self.counts[BINS // 4 : 3 * BINS // 4] = merged
        self.bound *= 2

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """``(BINS,)`` the middle of each bin."""
        width = 2 * self.bound / BINS
        return -self.bound + width * (np.arange(BINS, dtype=np.float64) + 0.5)


def activation_range(seen: Histogram, method: str) -> Range:
    """The range to quantize, which holds 0.

    Args:
        seen: What was observed.
        method: ``minmax``; ``percentile`` (99.99, both ends); ``mse``, the range with the least mean squared error; or
            ``entropy``, the one whose quantized distribution has the least Kullback-Leibler divergence from the
            observed one (as in TensorRT: Migacz, 8-bit inference with TensorRT, 2017).
    """
    low, high = seen.low, seen.high
    if method == "minmax" or seen.bound == 0.0:
        return low, high
    if method == "percentile":
        total = np.cumsum(seen.counts) / seen.counts.sum()
        tail = (1 - _PERCENTILE / 100) / 2
        first, last = (int(i) for i in np.searchsorted(total, [tail, 1 - tail]))
        edges = np.linspace(-seen.bound, seen.bound, BINS + 1)
        return max(low, min(0.0, float(edges[first]))), min(high, max(0.0, float(edges[min(last + 1, BINS)])))
    occupied = seen.counts > 0
    values, counts = seen.centers[occupied], seen.counts[occupied]
    cost = _squared_error if method == "mse" else _divergence
    costs = [cost(values, counts, low * shrink, high * shrink) for shrink in _SHRINKS]
    best = float(_SHRINKS[int(np.argmin(costs))])
    return low * best, high * best


def _codes(values: npt.NDArray[np.float64], low: float, high: float) -> tuple[npt.NDArray[np.int64], float, int]:
    step = max((high - low) / 255, 1e-30)
    zero = round(-low / step)
    return np.clip(np.rint(values / step) + zero, 0, 255).astype(np.int64), step, zero


def _squared_error(values: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], low: float, high: float) -> float:
    codes, step, zero = _codes(values, low, high)
    return float((counts * np.square(values - (codes - zero) * step)).sum())


def _divergence(values: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], low: float, high: float) -> float:
    """KL(P || Q): P the observed values clipped to the range, Q each code's mass spread evenly over its bins."""
    codes, _, _ = _codes(values, low, high)
    inside = (values >= low) & (values <= high)
    spread = np.bincount(codes, weights=inside.astype(np.float64), minlength=256)
    p = np.where(inside, counts, 0.0)
    ends = np.flatnonzero(inside)
    if not len(ends):
        return float("inf")
    p[ends[0]] += counts[: ends[0]].sum()
    p[ends[-1]] += counts[ends[-1] + 1 :].sum()
    kept = np.bincount(codes, weights=np.where(inside, counts, 0.0), minlength=256)
    q = np.where(inside, kept[codes] / np.maximum(spread[codes], 1.0), 0.0)
    p, q = p[inside] / p.sum(), q[inside] / max(q.sum(), 1e-30)
    return float((p * np.log(np.maximum(p, 1e-12) / np.maximum(q, 1e-12))).sum())
