"""What goes wrong between a device and its broker, in words: refusals, lost connections, silence.

Most brokers say with a reason code what they refuse (MQTT 5). What one denies without a word (3.1.1, or by its nature)
shows by what does not come back: the device listens to its own ``up/conn``. Pure: times come in as monotonic seconds.
"""

from __future__ import annotations

import math

from edge.channel.messages import Conn
from edge.channel.transport import Connected, Disconnected, Refused

# The same trouble again is told after this, not before.
AGAIN_S = 3600.0
# What was published comes back within this, or not at all.
SILENCE_S = 10.0
# Two that push each other off are back after a minute at the latest: who is not heard for this long is gone.
GONE_S = 300.0
_MAX_TOLD = 100

Told = list[tuple[str, str]]
"""Events, by kind and text."""


class Line:
    """The connection of one device, as its operator wants to know it.

    Args:
        own_conn: Topic of the device's own ``up/conn``.
    """

    def __init__(self, own_conn: str) -> None:
        self._own_conn = own_conn
        self._told_s: dict[str, float] = {}
        self._refused: dict[str, str] = {}  # of this connection, by what
        self._silence_due_s = math.inf
        self._silent = ""
        self._other, self._gone_s = "", math.inf
        self._others: dict[str, int] = {}  # by identity, the first session that was seen of it

    @property
    def troubles(self) -> list[str]:
        """What is wrong now, for ``status``."""
        return [*self._refused.values(), *filter(None, (self._silent, self._other))]

    def connected(self, event: Connected, now_s: float) -> None:
        """A connection begins; what an earlier one was refused may be granted by now."""
        self._refused.clear()
        self._silent = ""
        self._silence_due_s = math.inf if event.tells_reasons else now_s + SILENCE_S

    def disconnected(self, event: Disconnected, now_s: float) -> Told:
        """It ended."""
        self._silence_due_s = math.inf
        return self._tell("broker-lost", event.reason, now_s)

    def refused(self, event: Refused, now_s: float) -> Told:
        """The broker did not take something."""
        if event.action == "subscribe" and event.topic == self._own_conn:
            return []  # only this test wants it: access rules need not grant it
        what = "publishing to" if event.action == "publish" else "the subscription of"
        text = f"the broker refuses {what} {event.topic}: {event.reason}; look at its access rules and limits"
        if len(self._refused) < _MAX_TOLD:
            self._refused[f"{event.action} {event.topic}"] = text
        return self._tell("broker-refused", text, now_s)

    def heard(self, topic: str, message: Conn, own: Conn, now_s: float) -> Told:
        """An ``up/conn`` came back: our own, or that of another device of our name."""
        if topic != self._own_conn or not message.state_id or not message.online:
            return []
        if len(self._others) >= _MAX_TOLD:
            self._others.clear()
        if message.state_id == own.state_id:
            if message.session == own.session:
                self._silence_due_s, self._silent = math.inf, ""
            return []
        # What the broker kept of an earlier life of this device stays as it is; somebody else goes on counting.
        before = self._others.setdefault(message.state_id, message.session)
        if message.session <= before:
            return []
        self._other = (
            f"another device, or another state folder, goes by this name, too ({message.state_id}): they push each "
            f"other off the broker; give each its own --device"
        )
        self._gone_s = now_s + GONE_S
        return self._tell("same-name", self._other, now_s)

    def answered(self) -> None:
        """The coordinator has said something to this device: it hears us."""
        self._silence_due_s, self._silent = math.inf, ""

    def poll(self, now_s: float) -> Told:
        """What is to be told by now."""
        if now_s >= self._gone_s:
            self._other, self._gone_s = "", math.inf
        if now_s < self._silence_due_s:
            return []
        self._silence_due_s = math.inf
        self._silent = (
            f"what this device publishes does not come back, and nobody answers: the broker's access rules do not let "
            f"it publish {self._own_conn}, or do not let it read that; grant both to know"
        )
        return self._tell("broker-silent", self._silent, now_s)

    def _tell(self, kind: str, text: str, now_s: float) -> Told:
        key = f"{kind} {text}"
        if now_s - self._told_s.get(key, -math.inf) < AGAIN_S:
            return []
        if len(self._told_s) >= _MAX_TOLD:
            self._told_s.pop(next(iter(self._told_s)))
        self._told_s[key] = now_s
        return [(kind, text)]
