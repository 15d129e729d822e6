"""Drift detectors: one number at a time in, an alarm out.

`Adwin` watches errors, where labels come. `FeatureShift` watches features, where they do not, by `PageHinkley`. Each is
a machine around a frozen value, as learners are: `value` is all that it knows, and `load` goes on from one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.learning.statistics import HeadStatistics, Matrix

_PER_ROW = 5
_MIN_WINDOW = 5


@dataclass(frozen=True, eq=False, slots=True)
class Window:
    """What `Adwin` knows.

    Attributes:
        buckets: ``(n, 3)`` size, sum and sum of squared deviations of each bucket, oldest first.
    """

    buckets: Matrix = field(default_factory=lambda: np.zeros((0, 3)))


class Adwin:
    """Adaptive windowing (Bifet and Gavaldà 2007, SDM, algorithm ADWIN2): is the mean of late values higher or lower?

    Keeps a window of values from 0 to 1 in buckets of sizes 1, 2, 4, ..., five of each, so memory grows with the
    logarithm of the window. Whenever two parts of the window differ by more than chance allows, the older part is
    dropped. Each part has five values at least.

    Args:
        delta: Bound on the chance of a false alarm at one check.
    """

    def __init__(self, delta: float = 0.002) -> None:
        self._delta = delta
        # Oldest first: size, sum and sum of squared deviations of each bucket.
        self._buckets: list[tuple[int, float, float]] = []
        self._value: Window | None = None  # of these buckets, where there is one

    @property
    def width(self) -> int:
        """Values in the window."""
        return sum(size for size, _, _ in self._buckets)

    @property
    def mean(self) -> float:
        """Of the window; 0 for an empty one."""
        return sum(total for _, total, _ in self._buckets) / max(1, self.width)

    def add(self, *values: float) -> float:
        """Take values in, and look at the window once they all are.

        Returns:
            0 where nothing changed, else by how much the mean of what is left of the window is above that of before.
        """
        self._value = None
        for value in values:
            self._buckets.append((1, value, 0.0))
            self._compress()
        before = cut = self._cut()
        while cut is not None:
            cut = self._cut()
        return 0.0 if before is None else self.mean - before

    def _compress(self) -> None:
        """Join the two oldest buckets of a size of which there are too many."""
        size, end = 1, len(self._buckets)
        while True:
            start = end
            while start > 0 and self._buckets[start - 1][0] == size:
                start -= 1
            if end - start <= _PER_ROW:
                return
            (n, a, v), (_, b, w) = self._buckets[start : start + 2]
            self._buckets[start : start + 2] = [(2 * n, a + b, v + w + (a - b) ** 2 / (2 * n))]
            size, end = 2 * size, start + 1

    def _cut(self) -> float | None:
        """Drop the oldest bucket if some cut of the window tells two means apart; the mean of before, if one was."""
        width, total, squares = 0, 0.0, 0.0
        for n, part, spread in self._buckets:
            width += n
            total += part
            squares += spread + part * part / n
        if width < 2 * _MIN_WINDOW:
            return None
        variance = max(squares - total * total / width, 0.0) / width
        log = math.log(2.0 * math.log(width) / self._delta)
        n0, sum0 = 0, 0.0
        for size, part, _ in self._buckets[:-1]:
            n0, sum0 = n0 + size, sum0 + part
            n1 = width - n0
            if n0 < _MIN_WINDOW or n1 < _MIN_WINDOW:
                continue
            inverse = 1.0 / (n0 - _MIN_WINDOW + 1) + 1.0 / (n1 - _MIN_WINDOW + 1)
            bound = math.sqrt(2.0 * inverse * variance * log) + 2.0 / 3.0 * inverse * log
            if abs(sum0 / n0 - (total - sum0) / n1) > bound:
                self._buckets.pop(0)
                return total / width
        return None

    def reset(self) -> None:
        """Start with an empty window."""
        self._buckets, self._value = [], None

    @property
    def value(self) -> Window:
        """All that is known."""
        if self._value is None:
            self._value = Window(np.array(self._buckets, np.float64).reshape(-1, 3))
        return self._value

    def load(self, value: Window) -> None:
        """Go on from a window; the one that is there already costs nothing.

        Raises:
            LearningError: It is none.
        """
        if value is self._value:
            return
        buckets = value.buckets
        if buckets.ndim != 2 or buckets.shape[1] != 3 or not np.isfinite(buckets).all() or (buckets[:, 0] < 1).any():
            raise LearningError("the window of the drift detector is not one")
        self._value = value
        self._buckets = [(int(size), total, spread) for size, total, spread in value.buckets.tolist()]


@dataclass(frozen=True, slots=True)
class Excess:
    """What `PageHinkley` knows.

    Attributes:
        n: Values so far.
        mean: Theirs.
        total: Sum of what was above the mean and the tolerance.
        least: The least that it has been.
    """

    n: int = 0
    mean: float = 0.0
    total: float = 0.0
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.n < 0 or not all(map(math.isfinite, (self.mean, self.total, self.least))):
            raise LearningError("the sums of the drift detector are none")


class PageHinkley:
    """The Page-Hinkley test (Page 1954; Hinkley 1971): has the mean of a sequence risen?

    With the running mean ``m_t`` the sum of ``x_t - m_t - tolerance`` is watched; an alarm is a rise of it above its
    minimum by more than `threshold`.

    Args:
        threshold: In the units of the values.
        tolerance: A rise of the mean that does not matter.
        warm_up: Values before the first alarm.

    Attributes:
        value: All that is known.
    """

    def __init__(self, threshold: float, tolerance: float, warm_up: int = 30) -> None:
        self._threshold = threshold
        self._tolerance = tolerance
        self._warm_up = warm_up
        self.value = Excess()

    def reset(self) -> None:
        """Forget all values."""
        self.value = Excess()

    def load(self, value: Excess) -> None:
        """Go on from a value."""
        self.value = value

    def add(self, value: float) -> bool:
        """Take a value in; True for an alarm, after which the test starts anew."""
        known = self.value
        n = known.n + 1
        mean = known.mean + (value - known.mean) / n
        total = known.total + value - mean - self._tolerance
        self.value = Excess(n, mean, total, min(known.least, total))
        if n >= self._warm_up and total - self.value.least > self._threshold:
            self.reset()
            return True
        return False


@dataclass(frozen=True, slots=True)
class Distance:
    """What `FeatureShift` knows: how the distance of late samples has risen and fallen."""

    rise: Excess = Excess()
    fall: Excess = Excess()


class FeatureShift:
    """Whether unlabelled features have moved away from where they were.

    The value that is watched is how far a sample is from the mean that was shipped, ``log(mean_j (x_j - mu_j)² /
    sigma_j²)``: 0 on average, or where features are normal, for samples as in training. It is compared with this
    device's own past, in both directions.

    Args:
        statistics: Shipped, of at least one sample.
    """

    def __init__(self, statistics: HeadStatistics) -> None:
        n = statistics.n_samples
        self._mean: Matrix = statistics.gram[-1, :-1] / n
        variance = np.diag(statistics.gram)[:-1] / n - np.square(self._mean)
        self._scale: Matrix = 1.0 / np.maximum(variance, 1e-3 * max(float(variance.mean()), 1e-12))
        self._tests = (PageHinkley(20.0, 0.1, 60), PageHinkley(20.0, 0.1, 60))

    def add(self, features: npt.NDArray[Any]) -> bool:
        """Take a sample ``(d,)`` in; True for an alarm."""
        distance = float((np.square(features.reshape(-1) - self._mean) * self._scale).mean())
        value = math.log(max(distance, 1e-6))
        alarms = [test.add(sign * value) for test, sign in zip(self._tests, (1.0, -1.0), strict=True)]
        if any(alarms):
            for test in self._tests:
                test.reset()
        return any(alarms)

    @property
    def value(self) -> Distance:
        """All that is known."""
        rise, fall = self._tests
        return Distance(rise.value, fall.value)

    def load(self, value: Distance) -> None:
        """Go on from a value."""
        rise, fall = self._tests
        rise.load(value.rise)
        fall.load(value.fall)


def since_the_change(errors: npt.NDArray[np.float64]) -> int:
    """How many of the last values belong to the new regime: the cut that tells the two means apart best."""
    n = len(errors)
    best, width = 0.0, n
    for late in range(5, n - 4):
        before, after = errors[: n - late], errors[n - late :]
        rise = float(after.mean() - before.mean())
        score = rise * abs(rise) * late * (n - late)
        if score > best:
            best, width = score, late
    return width
