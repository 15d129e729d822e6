"""How much time learning may take: a bucket that fills by so many milliseconds a second, or one for each of several."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
        self.ms_per_s = ms_per_s
        self._left_ms = ms_per_s
        self._together: Sequence[LearningBudget] = (self,)
        self._updated_s: float | None = None
        self._is_warm = False
        self._usual_ms: float | None = None

    @classmethod
    def shared(cls, ms_per_s: float, n: int) -> list[LearningBudget]:
        """Equal shares of one budget. What overflows one of them fills the others: an idle model's time is not lost."""
        shares = [cls(ms_per_s / n) for _ in range(n)]
        for share in shares:
            share._together = shares
        return shares

    def allows(self, now_s: float) -> bool:
        """Whether a step may begin now."""
        if self._updated_s is not None and now_s > self._updated_s:
            _fill(self._together, (now_s - self._updated_s) * sum(share.ms_per_s for share in self._together))
        for share in self._together:
            share._updated_s = now_s
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
        """How long until a step may begin, at most, from when it was last asked; infinite where it is forbidden."""
        if self._left_ms > 0:
            return 0.0
        return -self._left_ms / self.ms_per_s if self.ms_per_s > 0 else math.inf


def _fill(shares: Sequence[LearningBudget], ms: float) -> None:
    """Pour into all that are not full, evenly, until nothing is left or all are full."""
    while ms > 1e-9 and (open_ := [share for share in shares if share._left_ms < share.ms_per_s]):
        part = ms / len(open_)
        for share in open_:
            taken = min(part, share.ms_per_s - share._left_ms)
            share._left_ms += taken
            ms -= taken
