"""What a broker ends the connection at, again and again: one that says no by hanging up (RabbitMQ, of what is denied).

Theory of operation. What was asked first and is not answered when the broker hangs up soon after the connection began
is suspected. Answers may be late, so after two such ends one message at a time is sent; what then was asked first, and
is the same as the time before, is left out, so that the rest of the conversation can take place. After a while it is
tried again, since rights are changed; each time that this was no good, the next try takes twice as long. A bad line is
no such case: there the connection lasts, or no end of it is heard.

No clock: times come in, as monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

SOON_S = 10.0
CAREFUL_AFTER, TIMES = 2, 2
FIRST_BAR_S, LAST_BAR_S = 600.0, 86400.0
MAX_BARRED = 100


@dataclass(slots=True)
class _Bar:
    until_s: float
    lasts_s: float


class Culprits:
    """See the module. What is asked is known by a text, such as ``publish some/topic``."""

    def __init__(self) -> None:
        self._suspect, self._count, self._in_a_row = "", 0, 0
        self._bars: dict[str, _Bar] = {}

    def ended(self, first: str, lasted_s: float, now_s: float) -> bool:
        """The broker has hung up.

        Args:
            first: What it had not answered of all that was asked, the first; "" for nothing.
            lasted_s: Seconds since the connection began.
            now_s: The time.

        Returns:
            Whether this is left out from now on.
        """
        if not first or lasted_s > SOON_S:
            self._suspect, self._count, self._in_a_row = "", 0, 0
            return False
        was_careful = self.is_careful
        self._in_a_row += 1
        self._count = self._count + 1 if first == self._suspect else 1
        self._suspect = first
        known = self._bars.get(first)
        if self._count < (TIMES if known is None else 1) or not was_careful:
            return False
        lasts_s = FIRST_BAR_S if known is None else min(2 * known.lasts_s, LAST_BAR_S)
        if known is None and len(self._bars) >= MAX_BARRED:
            self._bars.pop(next(iter(self._bars)))
        self._bars[first] = _Bar(now_s + lasts_s, lasts_s)
        self._suspect, self._count, self._in_a_row = "", 0, 0
        return True

    @property
    def is_careful(self) -> bool:
        """Whether one message at a time is to be sent when a connection begins."""
        return self._in_a_row >= CAREFUL_AFTER

    def is_barred(self, what: str, now_s: float) -> bool:
        """Whether this is left out now."""
        bar = self._bars.get(what)
        return bar is not None and now_s < bar.until_s

    def answered(self, what: str) -> None:
        """The broker has taken it after all."""
        self._bars.pop(what, None)
