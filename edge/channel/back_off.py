"""How long to wait before the next attempt to connect: never at once, and each client at a time of its own.

A broker that restarts loses all of its clients in one moment. Whoever had a connection waits longer, so that they come
back over seconds and not in one: with `STORM_S` 1,000 clients are about 220 a second. Who never had one comes soon.
A broker that starts slowly is away for minutes: until `MANY` attempts, some 5 minutes, nobody waits longer than
`SLOW_S`, so that all are back half a minute after it listens.
"""

from __future__ import annotations

from collections.abc import Callable

FLOOR_S, FIRST_S, STORM_S, SLOW_S, LAST_S = 0.5, 1.0, 5.0, 25.0, 60.0
MANY = 25
GOOD_CONNECTION_S = 30.0  # a shorter one does not reset the back-off: two clients with one id would chase each other


class BackOff:
    """See the module.

    Args:
        uniform: Draws a number between two.
    """

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self._failures = -1
        self._had_one = False

    def wait_s(self, *, was_connected: bool, lasted_s: float) -> float:
        """Seconds to wait after a connection, or an attempt, that ended."""
        self._had_one |= was_connected
        is_new = was_connected and lasted_s > GOOD_CONNECTION_S
        first_s = STORM_S if self._had_one else FIRST_S
        self._failures = 0 if is_new else self._failures + 1
        last_s = SLOW_S if self._failures < MANY else LAST_S
        ceiling_s = min(last_s, first_s * 2 ** min(self._failures, 10))
        return self._uniform(FLOOR_S, ceiling_s)
