"""What goes wrong between the coordinator and its broker, in words: refusals, a lost connection, silence.

Brokers deny without a word: over MQTT 3.1.1, and mosquitto also subscriptions over MQTT 5. So with each connection the
coordinator says something where devices speak and where they listen, and hears itself. What does not come back is told,
unless a device shows that it works: it was heard, or it asks for what only we can have told it of.

Pure: times come in as monotonic seconds, and as the wall clock where people are told since when.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from edge.channel import topics
from edge.channel.codec import encode
from edge.channel.messages import Here, Message, Reply, Request
from edge.channel.transport import Publish, Refused
from edge.contract.clock import Now
from edge.coordinator.records import Device

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


# How a device is, by what was heard of it; the best first. What it said before the line was lost says how it was then.
ONLINE, SILENT, OFFLINE, NOT_KNOWN, UNKNOWN = "online", "silent", "offline", "not-known", "unknown"
CONDITIONS = (ONLINE, SILENT, OFFLINE, NOT_KNOWN, UNKNOWN)


@dataclass(frozen=True, kw_only=True, slots=True)
class LineState:
    """How the line to the broker is now; a value, so that other threads may read it.

    Attributes:
        address: Of the broker, without a login; "" where nobody said it.
        is_connected: Whether there is a connection.
        hears: Whether what devices say arrives.
        since_ms: Wall clock since when it hears, or does not; 0: since this coordinator began.
        troubles: What is wrong, in words.
    """

    address: str = ""
    is_connected: bool = False
    hears: bool = False
    since_ms: int = 0
    troubles: tuple[str, ...] = ()

    @property
    def says(self) -> str:
        """For people who look at devices or ask for something: since when none is heard, and why; else ""."""
        if self.hears:
            return ""
        at = f"{datetime.fromtimestamp(self.since_ms / 1000, UTC):%H:%M:%S} UTC" if self.since_ms else "it began"
        why = f" ({'; '.join(each.rstrip('.') for each in self.troubles)})" if self.troubles else ""
        return f"the coordinator hears no device since {at}{why}"

    def condition(self, device: Device, now_ms: int) -> str:
        """How a device is, of `CONDITIONS`: by its own word, and only as far as that word can still be right."""
        if not device.born:
            return UNKNOWN
        # By this coordinator, or by another one of several. A broker that ends says of all devices that they are gone,
        # in the very millisecond in which the line is lost: that is no word of theirs.
        was_heard = 0 < self.since_ms <= device.last_seen_ms - (not self.hears)
        if not was_heard and not self.hears:
            return NOT_KNOWN
        if not device.online:
            return OFFLINE
        if not device.is_there(now_ms):
            return SILENT
        return ONLINE if was_heard else NOT_KNOWN

    def is_online(self, device: Device, now_ms: int) -> bool | None:
        """Whether a device is there; None where that is not known."""
        found = self.condition(device, now_ms)
        return None if found == NOT_KNOWN else found == ONLINE


class Line:
    """The coordinator's own connection, as its operator wants to know it.

    Args:
        fleet: Its id.
        name: Of the coordinator.
        address: Of the broker, without a login.

    Attributes:
        state: As it is now.
    """

    def __init__(self, fleet: str, name: str, address: str = "") -> None:
        root = f"{topics.ROOT}/{fleet}/+"
        self._ways: dict[Way, str] = {way: topics.coordinator_probe(fleet, way, name) for way in _WHY}
        self._words = {"up": f"{root}/up/#", "dn": f"{root}/dn/#"}
        self._due_s: dict[Way, float] = dict.fromkeys(_WHY, math.inf)
        self._silent: dict[Way, str] = {}
        self._refused: dict[str, str] = {}
        self._lost, self._connected_ms = "", 0
        self._here, self._session, self._next_session = topics.here_topic(fleet, name), 0, 0
        self.state = LineState(address=address)

    @property
    def troubles(self) -> list[str]:
        """What is wrong now."""
        return list(self.state.troubles)

    def _changed(self, *, is_connected: bool, since_ms: int) -> None:
        """Say anew how it is; `since_ms` is taken where that begins now."""
        before, hears = self.state, is_connected and "up" not in self._silent
        self.state = LineState(
            address=before.address,
            is_connected=is_connected,
            hears=hears,
            since_ms=since_ms if hears != before.hears else before.since_ms,
            troubles=(*filter(None, [self._lost]), *self._refused.values(), *self._silent.values()),
        )

    @property
    def next_deadline_s(self) -> float:
        """Call `poll` at this time at the latest."""
        return min(self._due_s.values())

    def _says_here(self, now: Now, session: int, *, online: bool) -> Publish:
        here = Here(online=online, session=session, ts_ms=now.wall_ms)
        return Publish(topic=self._here, payload=encode(here), qos=1, retain=True)

    def will(self, now: Now) -> Publish:
        """What the broker is to say to devices when the *next* connection breaks."""
        self._next_session = max(now.wall_ms, self._session + 1)
        return self._says_here(now, self._next_session, online=False)

    def farewell(self, now: Now) -> Publish:
        """What to say to devices before stopping in good order."""
        return self._says_here(now, self._session, online=False)

    def connected(self, now: Now) -> list[Publish]:
        """A connection begins: what to say to hear oneself, and to devices, which wait for somebody that listens."""
        self._session = max(self._next_session, self._session + 1)
        self._lost = ""
        self._refused.clear()
        self._silent.clear()
        self._due_s = dict.fromkeys(self._ways, now.s + SILENCE_S)
        self._connected_ms = now.wall_ms
        self._changed(is_connected=True, since_ms=now.wall_ms)
        probes = [Publish(topic=topic, payload=b"{}", qos=1) for topic in self._ways.values()]
        return [*probes, self._says_here(now, self._session, online=True)]

    def disconnected(self, reason: str, now: Now) -> None:
        """It ended, or did not come about."""
        address = self.state.address
        where = f" to the broker {address}" if address and address not in reason else ""
        self._lost = f"no connection{where}: {reason}"
        self._due_s = dict.fromkeys(self._ways, math.inf)
        self._changed(is_connected=False, since_ms=now.wall_ms)

    def refused(self, event: Refused) -> str:
        """The broker did not take something: that in words; "" for what is asked for this test only."""
        if topics.is_probe(event.topic):
            return ""
        what = "publishing to" if event.action == "publish" else "the subscription of"
        text = f"the broker refuses {what} {event.topic}: {event.reason}; look at its access rules and limits"
        if len(self._refused) < MAX_REFUSED:
            self._refused[f"{event.action} {event.topic}"] = text
            self._changed(is_connected=self.state.is_connected, since_ms=self._connected_ms)
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
        if self._silent.pop(way, None) is not None:
            self._changed(is_connected=self.state.is_connected, since_ms=self._connected_ms)

    def poll(self, now_s: float) -> Sequence[str]:
        """What is to be told by now."""
        for way, due_s in self._due_s.items():
            if now_s >= due_s:
                self._due_s[way] = math.inf
                self._silent[way] = _WHY[way].format(probe=self._ways[way], **self._words)
                self._changed(is_connected=self.state.is_connected, since_ms=self._connected_ms)
                return [self._silent[way], *self.poll(now_s)]
        return []
