"""What several coordinators take in together: telemetry, events and reports of a time without a line.

Theory of operation. Of these each message stands for itself: (device, state_id, boot, seq) tells a repeat, so it does
not matter who of them keeps it, how often it comes, or in which order. Whatever changes what devices are told goes to
the one that leads. Nothing is in memory when `take` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge.channel import topics
from edge.channel.codec import decode, encode
from edge.channel.messages import Event, History, HistoryKept, Telemetry
from edge.channel.transport import Publish, Received
from edge.contract.clock import Now
from edge.contract.errors import ChannelError
from edge.coordinator.devices.registry import Registry
from edge.coordinator.events import Events
from edge.coordinator.store.database import DatabaseError
from edge.coordinator.store.store import Store


class Taker:
    """See the module.

    Args:
        fleet: Its id.
        store: The database, with a connection of its own: who takes need not lead.
        unknown: Admission of devices that nobody knows.
        say: Publishes to a device.
    """

    def __init__(self, fleet: str, store: Store, unknown: str, say: Callable[[Publish], None]) -> None:
        self._fleet, self._store, self._say = fleet, store, say
        self._events = Events(store)
        self._registry = Registry(store, self._events, unknown)

    def take(self, batch: Sequence[Received], now: Now) -> None:
        """Keep messages: durable when this returns. What cannot be read, or kept for its own sake, is told and dropped.

        Raises:
            DatabaseError: The database does not answer; nothing was kept, and all of it may be given again.
        """
        try:
            self._keep(batch, now)
        except DatabaseError:
            raise
        except Exception:  # noqa: BLE001  # one of them, or another coordinator met a device at the same moment
            for message in batch:
                self._keep_one(message, now)

    def _keep_one(self, message: Received, now: Now) -> None:
        try:
            self._keep([message], now)
        except DatabaseError:
            raise
        except Exception:  # noqa: BLE001  # by now the device is known
            with self._events.survived("", "fault", "a message that coordinators share", now):
                self._keep([message], now)

    def _keep(self, batch: Sequence[Received], now: Now) -> None:
        telemetry: list[tuple[str, Mapping[str, Any], int]] = []
        kept: list[Publish] = []
        with self._store.transaction():
            for received in batch:
                if not received.payload:
                    continue
                try:
                    topic = topics.parse(received.topic)
                    message = decode(topic.leaf, received.payload)
                except ChannelError as exc:
                    self._events.fault("", "bad-message", f"{received.topic[:120]}: {exc}", now)
                    continue
                if isinstance(message, Telemetry):
                    telemetry.append((topic.device, dict(message.values), now.wall_ms))
                elif isinstance(message, Event):
                    self._registry.event(topic.device, message, now)
                elif isinstance(message, History):
                    self._registry.history(topic.device, message, now)
                    answer = encode(HistoryKept(batch=message.batch))
                    leaf = topics.build(self._fleet, topic.device, topics.DN_HIST)
                    kept.append(Publish(topic=leaf, payload=answer, qos=1, retain=False, expiry_s=60))
            self._registry.keep(telemetry)
        for each in kept:
            self._say(each)
