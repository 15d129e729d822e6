"""How much time learning may take: a bucket that fills by so many milliseconds a second."""

from __future__ import annotations

import math

# Beyond so many times the usual step is none; how fast the usual one follows.
_OUTLIER, _FOLLOW = 4.0, 0.2


class LearningBudget:
    """A token bucket of milliseconds, at most one second's worth.

    The first step opens sessions and imports modules: it takes many times as long as those that follow, and is not
    charged. Nor is what goes beyond four times the usual step: a card that stalls for seconds once is no learning.

    Args:
        ms_per_s: Milliseconds of learning allowed in each second; 0 forbids learning.
    """

    def __init__(self, ms_per_s: float) -> None:
        self._rate = ms_per_s
        self._left_ms = ms_per_s
        self._updated_s: float | None = None
        self._is_warm = False
        self._usual_ms: float | None = None

    def allows(self, now_s: float) -> bool:
        """Whether a step may begin now."""
        if self._updated_s is not None:
            self._left_ms = min(self._rate, self._left_ms + (now_s - self._updated_s) * self._rate)
        self._updated_s = now_s
        return self._left_ms > 0

    def spend(self, ms: float) -> None:
        """A step took this long; it may have taken more than was left."""
        if not self._is_warm:
            self._is_warm = True
            return
        usual_ms = ms if self._usual_ms is None else self._usual_ms
        charged_ms = min(ms, _OUTLIER * usual_ms)
        self._usual_ms = usual_ms + _FOLLOW * (charged_ms - usual_ms)
        self._left_ms -= charged_ms

    @property
    def wait_s(self) -> float:
        """How long until a step may begin, from when it was last asked; infinite where learning is forbidden."""
        if self._left_ms > 0:
            return 0.0
        return -self._left_ms / self._rate if self._rate > 0 else math.inf
