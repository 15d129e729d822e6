"""What the rest of the house knows of a broker connection: one protocol, five events.

Promises of every implementation: events come one at a time, from one thread, and an exception in the handler is logged
and changes nothing; subscriptions are remembered and made again on each connect; a message larger than the broker takes
is refused before it is sent; a lost connection is retried for ever. Not promised: that a message arrives (QoS 1 is at
least once as far as the *broker*, whose queues may overflow or vanish), nor any order across a reconnect.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from edge.contract.errors import ChannelError

_log = logging.getLogger(__name__)

DEFAULT_MAX_PACKET_BYTES = 256 * 1024  # when the broker does not say
PACKET_OVERHEAD_BYTES = 64  # fixed header, topic length, identifier and the properties that we set


@dataclass(frozen=True, kw_only=True, slots=True)
class Connected:
    """The broker accepted us.

    Attributes:
        session_present: It kept our session; no message may rely on it.
        max_packet_bytes: Largest packet that `Transport.publish` takes on this connection.
        tells_reasons: Whether this broker says what it refuses (MQTT 5); else a refusal looks like a success.
    """

    session_present: bool
    max_packet_bytes: int
    tells_reasons: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Disconnected:
    """There is no connection; it is being retried. Repeated only when the reason changes."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """A message came. `retained` means it is an old one that the broker kept."""

    topic: str
    payload: bytes
    retained: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Limited:
    """Largest packet from now on, on a connection that goes on: another one than `Connected` said."""

    max_packet_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """The broker did not take something: it said so, or it is given up.

    Attributes:
        action: What was tried.
        topic: Of the message, or the filter of the subscription.
        reason: In words.
    """

    action: Literal["publish", "subscribe"]
    topic: str
    reason: str


TransportEvent = Connected | Disconnected | Received | Limited | Refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Publish:
    """Effect: send this; the arguments of `Transport.publish`."""

    topic: str
    payload: bytes
    qos: int
    retain: bool = False
    expiry_s: int | None = None


class Transport(Protocol):
    """A connection to a broker."""

    def start(self, on_event: Callable[[TransportEvent], None]) -> None:
        """Connect and keep connected. `on_event` must be quick: put the event on a queue."""

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        """Hand a message over for sending.

        Returns:
            False when it could not be queued: QoS 0 without a connection, or the queue is full.

        Raises:
            ChannelError: It is larger than the broker takes; it would never arrive.
        """

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Add topic filters with their QoS, now and on each connect."""

    def set_will(self, topic: str, payload: bytes, qos: int, retain: bool, delay_s: int) -> None:
        """What the broker says when the next connection breaks (`delay_s` on MQTT 5 only)."""

    def stop(self) -> None:
        """Disconnect in good order, without the will."""


def packet_bytes(topic: str, payload: bytes) -> int:
    """Size of a message on the line, at most."""
    return len(topic.encode()) + len(payload) + PACKET_OVERHEAD_BYTES


def check_size(topic: str, payload: bytes, max_packet_bytes: int) -> None:
    """Refuse what would be resent for ever.

    Raises:
        ChannelError: The packet would be larger than `max_packet_bytes`.
    """
    size = packet_bytes(topic, payload)
    if size > max_packet_bytes:
        raise ChannelError(
            f"publish to {topic[:80]}: expected a packet of at most {max_packet_bytes} bytes, got {size}; "
            "send it in chunks or raise the broker's max_packet_size"
        )


def publish_all(transport: Transport, effects: Sequence[Publish]) -> None:
    """Perform effects in order; one that is too large for the broker is logged and left out."""
    for effect in effects:
        try:
            transport.publish(
                effect.topic, effect.payload, qos=effect.qos, retain=effect.retain, expiry_s=effect.expiry_s
            )
        except ChannelError as exc:
            _log.error("not sent: %s", exc)  # the message says everything
