"""Who listens to this device, as far as it was told: coordinators say so, and the broker says when one is gone.

A device that never heard of a coordinator has none; what it says is for whoever reads the broker.
"""

from __future__ import annotations

from edge.channel.messages import Here

_MOST = 16  # coordinators of one fleet


class Listeners:
    """See the module.

    Attributes:
        is_heard: A coordinator listens, or this fleet has none.
        is_gone: It was said on this connection that none listens any more.
    """

    def __init__(self) -> None:
        self._here: dict[str, int] = {}  # by name, the connection
        self._is_known = False  # there is, or was, one
        self.is_heard, self.is_gone = True, False

    def __str__(self) -> str:
        return "gone" if self.is_gone else "here" if self._is_known and self.is_heard else "unknown"

    def connected(self) -> None:
        """A connection begins: what was said on the one before is old."""
        self._here.clear()
        self.is_heard, self.is_gone = not self._is_known, False

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
        self._is_known = True
        self.is_heard, self.is_gone = bool(self._here), not self._here
        return True

    def answered(self) -> bool:
        """A coordinator has said something else, so one listens; whether that is news."""
        is_news, self.is_heard, self.is_gone = not self.is_heard, True, False
        return is_news
