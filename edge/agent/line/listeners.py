"""Who listens to this device, as far as it was told: coordinators say so, and the broker says when one is gone.

A device that never heard of a coordinator has none; what it says is for whoever reads the broker.
"""

from __future__ import annotations

from edge.channel.messages import Here

_MOST = 16  # coordinators of one fleet


class Listeners:
    """See the module.

    Args:
        is_known: Whether this device had heard of a coordinator before its start.

    Attributes:
        is_known: Whether there is, or was, one.
        is_heard: A coordinator listens, or this fleet has none.
        is_gone: It was said on this connection that none listens any more.
    """

    def __init__(self, *, is_known: bool = False) -> None:
        self._here: dict[str, int] = {}  # by name, the connection
        self.is_known = is_known
        self.is_heard, self.is_gone = not is_known, False

    def __str__(self) -> str:
        return "gone" if self.is_gone else "here" if self.is_known and self.is_heard else "unknown"

    def connected(self) -> None:
        """A connection begins: what was said on the one before is old."""
        self._here.clear()
        self.is_heard, self.is_gone = not self.is_known, False

    def said(self, coordinator: str, message: Here) -> bool:
        """A coordinator says that it listens, or it or the broker that it does so no more.

        Returns:
            Whether that is news; then what was said of late may be lost.
        """
        known = self._here.get(coordinator)
        if message.online:
            if known == message.session or len(self._here) >= _MOST:
                return False
            self._here[coordinator] = message.session
        elif known in (None, message.session):
            self._here.pop(coordinator, None)
        else:
            return False  # of an older connection
        self.is_known = True
        self.is_heard, self.is_gone = bool(self._here), not self._here
        return True

    def cleared(self, coordinator: str) -> None:
        """Somebody took back what a coordinator said: it does not come again."""
        self._here.pop(coordinator, None)
        self.is_known = bool(self._here)
        self.is_heard, self.is_gone = True, False

    def answered(self) -> bool:
        """A coordinator has said something else, so one listens; whether that is news."""
        is_news, self.is_heard, self.is_gone = not self.is_heard, True, False
        return is_news
