"""What goes wrong between the coordinator and its broker, in words: refusals, a lost connection, silence.

Brokers deny without a word: over MQTT 3.1.1, and mosquitto also subscriptions over MQTT 5. So with each connection the
coordinator says something where devices speak and where they listen, and hears itself. What does not come back is told,
unless a device shows that it works: it was heard, or it asks for what only we can have told it of.

Pure: times come in as monotonic seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from edge.channel import topics
from edge.channel.messages import Message, Reply, Request
from edge.channel.transport import Publish, Refused

# What was published comes back within this, or not at all.
SILENCE_S = 10.0
MAX_REFUSED = 100

Way = Literal["up", "dn"]
_WHY: dict[Way, str] = {
    "up": (
        "nothing that devices say arrives: the broker's access rules do not let the coordinator read {up}, "
        "or do not let it publish {probe} to find out"
    ),
    "dn": (
        "nobody answers to what is said to devices: the broker's access rules do not let the coordinator publish {dn}, "
        "or do not let it read {probe} to find out"
    ),
}


class Line:
    """The coordinator's own connection, as its operator wants to know it.

    Args:
        fleet: Its id.
        name: Of the coordinator.
    """

    def __init__(self, fleet: str, name: str) -> None:
        root = f"{topics.ROOT}/{fleet}/+"
        self._ways: dict[Way, str] = {way: topics.coordinator_probe(fleet, way, name) for way in _WHY}
        self._words = {"up": f"{root}/up/#", "dn": f"{root}/dn/#"}
        self._due_s: dict[Way, float] = dict.fromkeys(_WHY, math.inf)
        self._silent: dict[Way, str] = {}
        self._refused: dict[str, str] = {}
        self._lost = ""

    @property
    def troubles(self) -> list[str]:
        """What is wrong now."""
        return [*filter(None, [self._lost]), *self._refused.values(), *self._silent.values()]

    @property
    def next_deadline_s(self) -> float:
        """Call `poll` at this time at the latest."""
        return min(self._due_s.values())

    def connected(self, now_s: float) -> list[Publish]:
        """A connection begins: what to say to hear oneself."""
        self._lost = ""
        self._refused.clear()
        self._silent.clear()
        self._due_s = dict.fromkeys(self._ways, now_s + SILENCE_S)
        return [Publish(topic=topic, payload=b"{}", qos=1) for topic in self._ways.values()]

    def disconnected(self, reason: str) -> None:
        """It ended."""
        self._lost = f"no connection: {reason}"
        self._due_s = dict.fromkeys(self._ways, math.inf)

    def refused(self, event: Refused) -> str:
        """The broker did not take something: that in words; "" for what is asked for this test only."""
        if topics.is_probe(event.topic):
            return ""
        what = "publishing to" if event.action == "publish" else "the subscription of"
        text = f"the broker refuses {what} {event.topic}: {event.reason}; look at its access rules and limits"
        if len(self._refused) < MAX_REFUSED:
            self._refused[f"{event.action} {event.topic}"] = text
        return text

    def heard(self, topic: str) -> bool:
        """A message came.

        Returns:
            Whether it is a coordinator's own, and nothing else is to be done with it.
        """
        if not topics.is_probe(topic):
            self._works("up")
            return False
        for way, own in self._ways.items():
            if topic == own:
                self._works(way)
        return True

    def said(self, message: Message) -> None:
        """A device said something that only who hears us can say."""
        if isinstance(message, Reply) or (isinstance(message, Request) and message.op == "chunks"):
            self._works("dn")

    def _works(self, way: Way) -> None:
        self._due_s[way] = math.inf
        self._silent.pop(way, None)

    def poll(self, now_s: float) -> Sequence[str]:
        """What is to be told by now."""
        for way, due_s in self._due_s.items():
            if now_s >= due_s:
                self._due_s[way] = math.inf
                self._silent[way] = _WHY[way].format(probe=self._ways[way], **self._words)
                return [self._silent[way], *self.poll(now_s)]
        return []
