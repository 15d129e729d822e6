"""The clock of plans: how long coordinators of this fleet have run and heard devices.

It stands still while no device can be heard, and no clock that is wrong changes it: nobody is late by either.
"""

from __future__ import annotations

from collections.abc import Callable

from edge.contract.clock import Now
from edge.coordinator.store.store import Store
from edge.coordinator.turns import RUN_CLOCK

# Between two writes, while nobody watches it.
KEEP_S = 60.0


class RunClock:
    """See the module.

    Args:
        store: Keeps it over restarts.
        hears: Whether what devices say arrives.
    """

    def __init__(self, store: Store, hears: Callable[[], bool]) -> None:
        self._store, self._hears = store, hears
        self._run_s = float(store.rollouts.setting(RUN_CLOCK) or 0.0)
        self._kept_s = self._run_s
        self._seen_s: float | None = None  # monotonic

    def s(self, now: Now, *, is_watched: bool = False) -> float:
        """Seconds by now; kept now and then.

        Args:
            now: The time.
            is_watched: Whether people look at something that is counted by it: then it is kept each time.
        """
        if self._seen_s is not None and self._hears():
            self._run_s += max(now.s - self._seen_s, 0.0)
        self._seen_s = now.s
        if self._run_s - self._kept_s >= (0.0 if is_watched else KEEP_S):
            self.keep()
        return self._run_s

    def keep(self) -> None:
        """Write it down."""
        if self._run_s != self._kept_s:
            self._kept_s = self._run_s
            self._store.rollouts.set(RUN_CLOCK, repr(self._run_s))
