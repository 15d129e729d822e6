"""How much time learning may take: a bucket that fills by so many milliseconds a second."""

from __future__ import annotations


class LearningBudget:
    """A token bucket of milliseconds, at most one second's worth.

    Args:
        ms_per_s: Milliseconds of learning allowed in each second; 0 forbids learning.
    """

    def __init__(self, ms_per_s: float) -> None:
        self._rate = ms_per_s
        self._left_ms = ms_per_s
        self._updated_s: float | None = None

    def allows(self, now_s: float) -> bool:
        """Whether a step may begin now."""
        if self._updated_s is not None:
            self._left_ms = min(self._rate, self._left_ms + (now_s - self._updated_s) * self._rate)
        self._updated_s = now_s
        return self._left_ms > 0

    def spend(self, ms: float) -> None:
        """A step took this long; it may have taken more than was left."""
        self._left_ms -= ms
