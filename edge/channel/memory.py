"""A broker inside the process, for tests and simulations: deterministic, and as unfaithful as one asks it to be.

Nothing moves until `MemoryBroker.deliver` is called; what a handler publishes meanwhile waits for the next call. Has
retained messages, ``+`` and ``#``, wills, and faults from a given random generator. Like the weakest broker that we
accept it keeps no sessions: what is sent to an absent client is lost.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge.channel.transport import (
    DEFAULT_MAX_PACKET_BYTES,
    Connected,
    Disconnected,
    Received,
    TransportEvent,
    check_size,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """Chances of each fault for one delivery, 0 to 1. Drop strikes QoS 0 only, as a broker may.

    Attributes:
        rng: Where chance comes from.
        drop: It never arrives.
        repeat: It arrives twice.
        reorder: It changes places with the one before it.
    """

    rng: random.Random
    drop: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """A published message."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Delivery:
    to: MemoryTransport
    connection: int
    event: TransportEvent
    qos: int = 1


def matches(topic_filter: str, topic: str) -> bool:
    """Whether an MQTT topic filter covers a topic.

    >>> matches("edge/+/dn/#", "edge/pi/dn/f/1"), matches("edge/+", "edge/a/b")
    (True, False)
    """
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(w in ("+", level) for w, level in zip(wanted, levels, strict=True))


class MemoryBroker:
    """The broker.

    Attributes:
        fault: What goes wrong; None for nothing.
        swallows_above: Messages of more bytes are dropped without a word, as mosquitto's ``message_size_limit`` does.
        retained: Topic to the last retained payload and its QoS; clear it to play a broker that forgot.
    """

    def __init__(self) -> None:
        self.fault: Faults | None = None
        self.swallows_above: int | None = None
        self.retained: dict[str, tuple[bytes, int]] = {}
        self._clients: dict[str, MemoryTransport] = {}
        self._queue: list[_Delivery] = []
        self._ways: dict[str, list[tuple[MemoryTransport, int]]] = {}  # topic to who wants it

    def deliver(self) -> int:
        """Deliver what is queued now, one round; returns how many deliveries there were."""
        queued, self._queue = self._queue, []
        deliveries = queued if self.fault is None else _spoil(queued, self.fault)
        for delivery in deliveries:
            delivery.to.take(delivery.event, delivery.connection)
        return len(queued)

    def settle(self, max_rounds: int = 10_000) -> None:
        """Deliver until nothing is queued, at most so many rounds."""
        for _ in range(max_rounds):
            if not self.deliver():
                return

    def connect(self, client_id: str) -> None:
        """Bring a started client back: its subscriptions are made again, then what it had queued is sent."""
        client = self._clients[client_id]
        self.forget_ways()
        client.connection += 1
        client.connected, client.will = True, client.next_will
        self._enqueue(client, Connected(session_present=False, max_packet_bytes=DEFAULT_MAX_PACKET_BYTES))
        for topic_filter, qos in client.filters.items():
            self.send_retained(client, topic_filter, qos)
        queued, client.outbox = client.outbox, []
        for message in queued:
            self.route(message)

    def disconnect(self, client_id: str, graceful: bool = False) -> None:
        """Cut a client off. Its will is published unless it went in good order."""
        client = self._clients[client_id]
        if not client.connected:
            return
        client.connected = False
        self._enqueue(client, Disconnected(reason="stopped" if graceful else "cut off"))
        if client.will is not None and not graceful:
            self.route(client.will)

    def register(self, client: MemoryTransport) -> None:
        """A client starts; another one with its id is cut off, as brokers do."""
        if client.client_id in self._clients:
            self.disconnect(client.client_id)
        self._clients[client.client_id] = client
        self.connect(client.client_id)

    def route(self, message: Message) -> None:
        """Queue a published message for everyone who wants it."""
        if self.swallows_above is not None and len(message.payload) > self.swallows_above:
            return
        if message.retain and message.payload:
            self.retained[message.topic] = (message.payload, message.qos)
        elif message.retain:
            self.retained.pop(message.topic, None)
        event = Received(topic=message.topic, payload=message.payload, retained=False)
        if (ways := self._ways.get(message.topic)) is None:
            ways = self._ways[message.topic] = self._find_ways(message.topic)
        for client, granted in ways:
            if client.connected:
                self._enqueue(client, event, min(message.qos, granted))

    def forget_ways(self) -> None:
        """Somebody came, or subscribed to something."""
        self._ways.clear()

    def _find_ways(self, topic: str) -> list[tuple[MemoryTransport, int]]:
        found = []
        for client in self._clients.values():
            granted = [qos for wanted, qos in client.filters.items() if matches(wanted, topic)]
            if granted:
                found.append((client, max(granted)))
        return found

    def send_retained(self, client: MemoryTransport, topic_filter: str, qos: int) -> None:
        """Queue the retained messages that a new subscription covers."""
        for topic, (payload, kept_qos) in self.retained.items():
            if matches(topic_filter, topic):
                self._enqueue(client, Received(topic=topic, payload=payload, retained=True), min(kept_qos, qos))

    def _enqueue(self, client: MemoryTransport, event: TransportEvent, qos: int = 1) -> None:
        self._queue.append(_Delivery(to=client, connection=client.connection, event=event, qos=qos))


def _spoil(deliveries: list[_Delivery], fault: Faults) -> list[_Delivery]:
    """Drop, repeat and reorder messages; what the client itself notices (its connection) stays as it is."""
    spoiled: list[_Delivery] = []
    for delivery in deliveries:
        if not isinstance(delivery.event, Received):
            spoiled.append(delivery)
            continue
        if delivery.qos == 0 and fault.rng.random() < fault.drop:
            continue
        spoiled += [delivery] * (2 if fault.rng.random() < fault.repeat else 1)
        if len(spoiled) > 1 and isinstance(spoiled[-2].event, Received) and fault.rng.random() < fault.reorder:
            spoiled[-2:] = spoiled[:-3:-1]
    return spoiled


class MemoryTransport:
    """A client of a `MemoryBroker`: the `edge.channel.transport.Transport` of tests and simulations.

    Args:
        broker: Where it connects.
        client_id: Its name.
        max_queued: QoS 1 messages kept while there is no connection.

    Attributes:
        connected: Whether the broker has it.
        connection: Number of the connection; what was queued for an earlier one is lost.
    """

    def __init__(self, broker: MemoryBroker, client_id: str, *, max_queued: int = 1000) -> None:
        self.client_id = client_id
        self.connected = False
        self.connection = 0
        self.filters: dict[str, int] = {}
        self.will: Message | None = None  # of this connection
        self.next_will: Message | None = None
        self.outbox: list[Message] = []
        self._broker = broker
        self._max_queued = max_queued
        self._on_event: Callable[[TransportEvent], None] | None = None

    def start(self, on_event: Callable[[TransportEvent], None]) -> None:
        """Connect; the event comes with the next delivery."""
        self._on_event = on_event
        self._broker.register(self)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        expiry_s: int | None = None,  # noqa: ARG002 - part of the protocol; nothing waits long enough here to expire
    ) -> bool:
        """See `edge.channel.transport.Transport.publish`."""
        check_size(topic, payload, DEFAULT_MAX_PACKET_BYTES)
        message = Message(topic=topic, payload=payload, qos=qos, retain=retain)
        if self.connected:
            self._broker.route(message)
            return True
        if qos == 0 or len(self.outbox) >= self._max_queued:
            return False
        self.outbox.append(message)
        return True

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """See `edge.channel.transport.Transport.subscribe`."""
        self.filters.update(filters)
        self._broker.forget_ways()
        if self.connected:
            for topic_filter, qos in filters:
                self._broker.send_retained(self, topic_filter, qos)

    def set_will(self, topic: str, payload: bytes, qos: int, retain: bool, delay_s: int) -> None:  # noqa: ARG002
        """See `edge.channel.transport.Transport.set_will`; the will is never delayed here."""
        self.next_will = Message(topic=topic, payload=payload, qos=qos, retain=retain)

    def stop(self) -> None:
        """Leave in good order; no event comes any more."""
        if self._on_event is not None:
            self._broker.disconnect(self.client_id, graceful=True)
            self._on_event = None

    def take(self, event: TransportEvent, connection: int) -> None:
        """Called by the broker: hand an event to the handler, unless it is a message of a lost connection."""
        if isinstance(event, Received) and not (self.connected and connection == self.connection):
            return
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:  # noqa: BLE001 - as with a real broker, the handler's fault ends nothing
                _log.exception("the event handler of %s failed on a %s", self.client_id, type(event).__name__)
