"""How large a packet may be: what the broker announces, and what it does not say but does.

Theory of operation. Brokers have limits that they do not announce: a message beyond one ends the connection, is sent
again on the next one, ends that, and so on for ever. So the packet that was under way when a connection was lost is
suspected; when a connection is lost twice in a row with as large a one under way, packets are at most half as large
from then on. A bad line does the same, and smaller packets suit it, too. After a while without a loss the limit
doubles again; each time that this was too much, the next try takes twice as long.

No clock: times come in, as monotonic seconds.
"""

from __future__ import annotations

import math

FLOOR_BYTES = 2048  # messages have a few hundred bytes: below this something else is wrong
GROW_AFTER_S, LAST_GROW_AFTER_S = 600.0, 86400.0


class PacketLimit:
    """The limit of one connection to one broker.

    Args:
        announced_bytes: Until the broker says something else.
    """

    def __init__(self, announced_bytes: int) -> None:
        self._announced = announced_bytes
        self._learned: int | None = None
        self._suspect = 0
        self._grow_after_s = GROW_AFTER_S
        self._since_s = math.inf  # the connection, or the last change, is that old

    @property
    def value(self) -> int:
        """Largest packet in bytes."""
        return self._announced if self._learned is None else min(self._announced, self._learned)

    @property
    def is_learned(self) -> bool:
        """Whether it is lower than what the broker announces."""
        return self.value < self._announced

    def connected(self, announced_bytes: int, now_s: float) -> None:
        """A connection begins, and the broker has said what it takes."""
        self._announced = announced_bytes
        self._since_s = now_s

    def lost(self, under_way_bytes: int) -> bool:
        """A connection was lost.

        Args:
            under_way_bytes: The largest packet that was sent and not acknowledged, 0 for none.

        Returns:
            Whether the limit is lower now.
        """
        self._since_s = math.inf
        if under_way_bytes <= FLOOR_BYTES or 2 * under_way_bytes <= self._suspect:
            self._suspect = under_way_bytes if under_way_bytes > FLOOR_BYTES else 0
            return False
        if not self._suspect:
            self._suspect = under_way_bytes
            return False
        self.too_large(under_way_bytes)
        return True

    def too_large(self, packet_bytes: int) -> None:
        """The broker did not take a packet of this size."""
        if self._learned is not None:
            self._grow_after_s = min(2 * self._grow_after_s, LAST_GROW_AFTER_S)
        self._learned = max(FLOOR_BYTES, min(packet_bytes, self.value) // 2)
        self._suspect = 0

    def poll(self, now_s: float) -> bool:
        """Whether the limit has grown: call it now and then while connected."""
        if not self.is_learned or now_s - self._since_s < self._grow_after_s:
            return False
        assert self._learned is not None
        # Kept also where it is no limit any more: the next loss remembers that this was tried.
        self._learned, self._since_s = min(self._announced, 2 * self._learned), now_s
        return True
