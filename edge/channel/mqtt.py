"""The one file that opens paho: a broker connection with its own thread, as an `edge.channel.transport.Transport`.

Theory of operation. One thread connects, runs paho's ``loop()`` until it fails, waits (`edge.channel.back_off`) and
connects again, for ever. Certificates that change on disk are used by the next connection. MQTT 5 is tried first; a
broker that drops that before its CONNACK, or refuses the version, is tried with 3.1.1 (and back), and what worked is
kept. A new protocol, a smaller packet limit, a smaller receive maximum or other certificates need a new paho client:
what was queued moves over, and what has become too large is dropped with a log line, since it would be resent for ever.

Guards against paho 2 (each was seen to bite, see docs/protocol.md): TCP_NODELAY; a cap on both queues; the broker's
packet and receive limits, which paho ignores; every callback caught. Publishing from another thread only queues and
wakes the loop: with a socket-register-write callback set paho never writes on the caller's thread, where it could tear
a packet that the loop has half sent.

Not promised: delivery. Nothing here is on disk.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from edge.channel import polling
from edge.channel.back_off import BackOff
from edge.channel.certificates import LOOK_S, Certificates
from edge.channel.culprits import Culprits
from edge.channel.limit import PacketLimit
from edge.channel.sieve import Message, Sieve
from edge.channel.spared import spared
from edge.channel.transport import (
    DEFAULT_MAX_PACKET_BYTES,
    Connected,
    Disconnected,
    Limited,
    Received,
    Refused,
    TransportEvent,
    check_size,
    packet_bytes,
)
from edge.channel.url import BrokerUrl
from edge.contract.errors import ChannelError

with spared("hashlib", "ssl", "urllib.request"):
    import ssl

    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

vars(paho)["select"] = polling

__all__ = ["BrokerUrl", "MqttTransport", "probe"]

_log = logging.getLogger(__name__)

CONNACK_TIMEOUT_S = 10.0
FLUSH_S = 1.0
# paho reads several frames of a WebSocket at once, hands one out, and waits for the socket before the next.
WEBSOCKET_TURN_S = 0.02
JUST_SENT_S = 2.0  # a QoS 0 message may still be on its way for that long
READ_BYTES = 64 * 1024
SESSION_EXPIRY_S = 24 * 3600  # MQTT 5 sessions of clients that do not start clean; never for ever
MAX_INFLIGHT = 20  # mosquitto 2.0.11 loses messages beyond it
SUBSCRIBE_AGAIN_S = 15.0  # a subscription that was refused: a cluster that is only forming refuses all
MAX_REASONS = 20  # why there is no connection, told once each
DROPS_BEFORE_OTHER_VERSION = 3  # once a version has worked
_PUBACK = struct.Struct("!BBH")

_OTHER = {
    MQTTProtocolVersion.MQTTv5: MQTTProtocolVersion.MQTTv311,
    MQTTProtocolVersion.MQTTv311: MQTTProtocolVersion.MQTTv5,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Will:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    delay_s: int


@cache  # a handful, and nobody changes them; frames are sent by the thousand
def _properties(packet_type: int, **values: int) -> Properties:
    properties = Properties(packet_type)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


class MqttTransport:
    """A connection to a real broker.

    Args:
        url: Where it is.
        client_id: Our name there; a second client with the same name throws the first one out.
        clean_start: Whether the broker forgets us when we go. Nothing relies on it.
        keepalive_s: A silent connection is tested after this, and lost after twice this.
        max_queued: Messages held for sending, for QoS 0 and QoS 1 each.
        connect_timeout_s: For the TCP connection and TLS.

    Raises:
        ConfigError: A certificate file cannot be used.
    """

    def __init__(
        self,
        url: BrokerUrl,
        client_id: str,
        clean_start: bool,
        *,
        keepalive_s: int = 30,
        max_queued: int = 1000,
        connect_timeout_s: float = 5.0,
    ) -> None:
        self._places, self._place, self._url = url, 0, url.place(0)
        self._client_id, self._clean_start = client_id, clean_start
        self._keepalive_s, self._max_queued, self._connect_timeout_s = keepalive_s, max_queued, connect_timeout_s
        self._tls = Certificates(url) if url.tls else None
        self._anew_s = math.inf  # when the connection is made anew with newer certificates
        self._on_event: Callable[[TransportEvent], None] | None = None
        self._filters: dict[str, int] = {}
        self._will: _Will | None = None
        self._limit, self._inflight = PacketLimit(DEFAULT_MAX_PACKET_BYTES), MAX_INFLIGHT
        self._under_way: deque[tuple[paho.MQTTMessageInfo, str, int]] = deque()  # QoS 1: with topic and bytes
        self._subscribing: dict[int, list[str]] = {}  # filters by message number
        self._denied: dict[str, float] = {}  # filters that were refused, and when they are asked for again
        self._culprits = Culprits()
        self._held: list[paho.MQTTMessage] = []  # to be sent one at a time, once there is a connection
        self._last_large = (0, -math.inf)  # QoS 0: bytes, and when
        self._unsent: deque[paho.MQTTMessageInfo] = deque()
        self._last: paho.MQTTMessageInfo | None = None  # of the newest QoS 1 message
        self._lock = threading.Lock()  # guards _client and what goes into it; never held while an event is handled
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._version = MQTTProtocolVersion.MQTTv5
        self._client = self._new_client()
        # What the callbacks found out about the connection under way:
        self._connected = self._worked = self._renew = self._hung_up = False
        self._refused: ReasonCode | None = None
        self._farewell = ""
        self._reported: set[str] = set()  # why there is no connection, since the last one

    # --- the Transport protocol -----------------------------------------------------------------------------------

    def start(self, on_event: Callable[[TransportEvent], None]) -> None:
        """See `edge.channel.transport.Transport.start`; events come from the network thread."""
        if self._thread is not None:
            raise ChannelError("transport: expected one start, got a second; make a new transport")
        self._on_event = on_event
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{self._client_id}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the network thread runs (the watchdog's question; it is not about the connection)."""
        return self._thread is not None and self._thread.is_alive()

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, expiry_s: int | None = None
    ) -> bool:
        """See `edge.channel.transport.Transport.publish`; from any thread, also from the event handler."""
        check_size(topic, payload, self._limit.value)
        with self._lock:
            if self._culprits.is_barred(f"publish {topic}", time.monotonic()):
                return False
            if qos == 0:
                while self._unsent and (
                    self._unsent[0].rc != MQTTErrorCode.MQTT_ERR_SUCCESS or self._unsent[0].is_published()
                ):
                    self._unsent.popleft()
                if not self._connected or len(self._unsent) >= self._max_queued:
                    return False
            properties = None
            if expiry_s is not None:
                properties = _of_5(self._version, PacketTypes.PUBLISH, MessageExpiryInterval=expiry_s)
            info = self._client.publish(topic, payload, qos, retain, properties)
            if qos == 0:
                self._unsent.append(info)
                size = packet_bytes(topic, payload)
                if size >= self._last_large[0] or time.monotonic() - self._last_large[1] > JUST_SENT_S:
                    self._last_large = (size, time.monotonic())
                return info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS
            if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                return False
            while self._under_way and _is_through(self._under_way[0][0]):
                self._culprits.answered(f"publish {self._under_way.popleft()[1]}")
            self._last = _waiting(info)
            self._under_way.append((info, topic, packet_bytes(topic, payload)))
            return True

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """See `edge.channel.transport.Transport.subscribe`."""
        with self._lock:
            self._filters.update(filters)
            if self._connected:
                self._subscribe(self._client, filters)

    def _subscribe(self, client: paho.Client, filters: Iterable[tuple[str, int]]) -> None:
        for topic_filter, qos in filters:
            if self._culprits.is_barred(f"subscribe {topic_filter}", time.monotonic()):
                continue
            _, number = client.subscribe(topic_filter, qos)
            if number is not None:
                self._subscribing[number] = [topic_filter]

    def _subscribe_again(self, client: paho.Client, now_s: float) -> None:
        """Ask again for what was refused on this connection."""
        if not self._denied:
            return
        with self._lock:
            due = [each for each, at_s in self._denied.items() if now_s >= at_s]
            for each in due:
                del self._denied[each]
            self._subscribe(client, [(each, self._filters[each]) for each in due if each in self._filters])

    def set_will(self, topic: str, payload: bytes, qos: int, retain: bool, delay_s: int) -> None:
        """See `edge.channel.transport.Transport.set_will`; a running connection keeps the will it began with."""
        with self._lock:
            self._will = _Will(topic=topic, payload=payload, qos=qos, retain=retain, delay_s=delay_s)
            self._apply_will(self._client)

    def stop(self) -> None:
        """Disconnect in good order; waits up to a second for the last QoS 1 message to be acknowledged."""
        inside = threading.current_thread() is self._thread
        if (
            self._connected
            and self._last is not None
            and self._last.rc == MQTTErrorCode.MQTT_ERR_SUCCESS
            and not inside
        ):
            self._last.wait_for_publish(FLUSH_S)
        self._stopping.set()
        with self._lock:
            self._client.disconnect()  # also wakes the loop
        if self._thread is not None and not inside:
            self._thread.join(self._connect_timeout_s + 2.0)
        if not inside:
            _retire(self._client)

    # --- the network thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        drops, back_off = 0, BackOff(random.uniform)
        while not self._stopping.is_set():
            is_newer = self._tls is not None and self._tls.poll(time.monotonic(), at_once=True)
            if is_newer or self._anew_s < math.inf:
                self._replace_client(self._version)
            self._anew_s = math.inf
            began_s = time.monotonic()
            tcp, reason = self._one_connection()
            lasted_s = time.monotonic() - began_s
            was_connected, self._connected = self._connected, False
            if self._stopping.is_set():
                return
            if self._renew:
                self._replace_client(self._version)
                continue
            if was_connected and (size := self._largest_under_way()) and self._limit.lost(size):
                reason = (
                    f"{reason}; again with a message of {size} bytes under way: the broker may have a limit that it "
                    f"does not tell, messages have at most {self._limit.value} bytes from now on"
                )
                self._replace_client(self._version)
            if was_connected and (first := self._hung_up_at(lasted_s)):
                reason = f"{reason}; each time at {' '.join(first)}, which is left out for a while"
                back_off = BackOff(random.uniform)  # it is not the same again
            if self._culprits.is_careful or self._one_at_a_time:  # paho would send at once what was under way
                self._replace_client(self._version)
            drops = 0 if was_connected or not tcp or not _is_of_version(self._refused) else drops + 1
            if drops and (not self._worked or drops >= DROPS_BEFORE_OTHER_VERSION):
                self._replace_client(_OTHER[self._version])
                if drops == 1:
                    continue  # the other version at once, and no word to anybody yet
            if reason not in self._reported:
                self._reported = {*self._reported, reason} if len(self._reported) < MAX_REASONS else {reason}
                self._emit(Disconnected(reason=reason))
            if not was_connected and self._places.others:  # what was there a moment ago may only be starting anew
                self._place += 1
                self._url = self._places.place(self._place)
            self._stopping.wait(back_off.wait_s(was_connected=was_connected, lasted_s=lasted_s))

    def _one_connection(self) -> tuple[bool, str]:
        """Connect and stay until it ends: whether TCP was up, and why it ended."""
        client = self._client
        tcp = False
        try:
            self._open(client)
            tcp = True
            deadline_s = time.monotonic() + CONNACK_TIMEOUT_S
            turn_s = WEBSOCKET_TURN_S if self._url.websocket else 1.0
            while (code := client.loop(turn_s)) == MQTTErrorCode.MQTT_ERR_SUCCESS:
                if self._connected and self._limit.poll(time.monotonic()):
                    self._emit(Limited(max_packet_bytes=self._limit.value))
                self._subscribe_again(client, time.monotonic())
                if self._is_to_be_made_anew(time.monotonic()):
                    client.disconnect()
                    client.loop(0.2)
                    return True, f"newer certificates: connecting to {self._url} anew"
                late = not self._connected and time.monotonic() > deadline_s
                if self._stopping.is_set() or self._renew or late:
                    client.disconnect()
                    client.loop(0.2)
                    return True, f"no answer from {self._url} within {CONNACK_TIMEOUT_S:.0f} s"
        except (OSError, ValueError) as exc:
            return tcp, _described(exc, self._url, self._connect_timeout_s)
        except Exception as exc:  # noqa: BLE001 - whatever paho does, this thread must live
            _log.exception("the MQTT loop failed")
            return tcp, f"{type(exc).__name__}: {exc}"
        if self._refused is not None:
            return True, f"refused by {self._url}: {self._refused}"
        if not self._connected:
            return True, f"{self._url} closed the connection before its CONNACK: expected an MQTT 5 or 3.1.1 broker"
        self._hung_up = code == MQTTErrorCode.MQTT_ERR_CONN_LOST
        if self._farewell == "Session taken over":
            return True, f"pushed off {self._url}: another client goes by the name {self._client_id!r}, too"
        return True, f"lost {self._url}: {self._farewell or paho.error_string(code)}"

    def _is_to_be_made_anew(self, now_s: float) -> bool:
        """Whether the certificates on disk are newer than this connection; not all clients at the same moment."""
        if self._tls is not None and self._anew_s == math.inf and self._tls.poll(now_s):
            self._anew_s = now_s + random.uniform(0.0, LOOK_S)
        return now_s >= self._anew_s

    def _open(self, client: paho.Client) -> None:
        self._renew, self._refused, self._farewell, self._hung_up = False, None, "", False
        expiry_s = 0 if self._clean_start else SESSION_EXPIRY_S
        properties = _of_5(self._version, PacketTypes.CONNECT, SessionExpiryInterval=expiry_s)
        client.connect(
            self._url.host,
            self._url.port,
            self._keepalive_s,
            clean_start=paho.MQTT_CLEAN_START_FIRST_ONLY if properties is None else self._clean_start,
            properties=properties,
        )

    def _new_client(self) -> _Client:
        client = _Client(
            self._emit,
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if self._version == MQTTProtocolVersion.MQTTv5 else self._clean_start,
            protocol=self._version,
            transport="websockets" if self._url.websocket else "tcp",
            reconnect_on_failure=False,
        )
        if self._url.websocket:
            client.ws_set_options(path=self._url.path)
        client.connect_timeout = self._connect_timeout_s
        client.max_queued_messages_set(self._max_queued)
        self._one_at_a_time = self._culprits.is_careful
        client.max_inflight_messages_set(1 if self._one_at_a_time else self._inflight)
        client.suppress_exceptions = True  # the second net below _emit
        client.username_pw_set(self._url.username, self._url.password)
        if self._tls is not None:
            client.tls_set_context(self._tls.context)
        client.on_socket_open = _no_delay
        client.on_socket_register_write = _leave_to_the_loop
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        self._apply_will(client)
        return client

    def _apply_will(self, client: paho.Client) -> None:
        if self._will is None:
            return
        will = self._will
        properties = _of_5(self._version, PacketTypes.WILLMESSAGE, WillDelayInterval=will.delay_s)
        client.will_set(will.topic, will.payload, will.qos, will.retain, properties)

    def _replace_client(self, version: MQTTProtocolVersion) -> None:
        """Go on with a new paho client; what was queued moves over."""
        with self._lock:
            queued = [*self._held, *self._client.drop_out_messages()]
            _retire(self._client)
            self._version = version
            self._client = self._new_client()
            self._unsent.clear()
            self._under_way.clear()
            dropped: list[Refused] = []
            self._held = []
            for message in queued:
                try:
                    check_size(message.topic, bytes(message.payload), self._limit.value)
                except ChannelError as exc:
                    _log.error("dropped: %s", exc)
                    dropped.append(Refused(action="publish", topic=message.topic, reason=str(exc)))
                    continue
                if not self._culprits.is_barred(f"publish {message.topic}", time.monotonic()):
                    self._held.append(message)
            if not self._one_at_a_time:
                self._send_held()
        for event in dropped:
            self._emit(event)

    def _send_held(self) -> None:
        """Hand what was queued to paho. Without a connection that sends all of it at once when there is one."""
        held, self._held = self._held, []
        for message in held:
            properties = message.properties if self._version == MQTTProtocolVersion.MQTTv5 else None
            payload = bytes(message.payload)
            self._last = self._client.publish(message.topic, payload, message.qos, message.retain, properties)
            if message.qos and self._last.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                _waiting(self._last)
                self._under_way.append((self._last, message.topic, packet_bytes(message.topic, payload)))

    def _largest_under_way(self) -> int:
        """Bytes of the largest packet that may have been on its way when the connection ended, 0 for none."""
        with self._lock:
            waiting = (size for info, _, size in self._under_way if not _is_through(info))
            sizes = list(itertools.islice(waiting, self._inflight))
            if time.monotonic() - self._last_large[1] <= JUST_SENT_S:
                sizes.append(self._last_large[0])
        return max(sizes, default=0)

    def _hung_up_at(self, lasted_s: float) -> tuple[Literal["publish", "subscribe"], str] | None:
        """What the broker ends each connection at; from now on it is left out. None while nothing is known to be."""
        if not self._hung_up:
            return None
        with self._lock:
            asked = next((filters[0] for filters in self._subscribing.values() if filters), "")
            sent = next((topic for info, topic, _ in self._under_way if not _is_through(info)), "")
            first: tuple[Literal["publish", "subscribe"], str] = ("subscribe", asked) if asked else ("publish", sent)
            is_one = bool(first[1]) and self._culprits.ended(" ".join(first), lasted_s, time.monotonic())
        if not is_one:
            return None
        self._replace_client(self._version)
        self._emit(Refused(action=first[0], topic=first[1], reason="the broker ends the connection each time"))
        return first

    def _emit(self, event: TransportEvent) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001 - the handler is not ours; its fault must not end the connection
            _log.exception("the event handler failed on a %s", type(event).__name__)

    # --- paho's callbacks, all on the network thread --------------------------------------------------------------

    def _on_connect(
        self, client: paho.Client, _: Any, flags: paho.ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._refused = reason
            return
        before = self._limit.value
        announced = getattr(properties, "MaximumPacketSize", DEFAULT_MAX_PACKET_BYTES)
        self._limit.connected(announced, time.monotonic())
        inflight = min(MAX_INFLIGHT, getattr(properties, "ReceiveMaximum", MAX_INFLIGHT))
        self._renew = self._limit.value < before or inflight < self._inflight
        self._worked, self._inflight = True, inflight
        if self._renew:
            return
        with self._lock:
            self._connected = True
            self._subscribing.clear()
            self._denied.clear()
            self._subscribe(client, self._filters.items())
            self._send_held()
        self._reported.clear()
        self._emit(
            Connected(
                session_present=flags.session_present,
                max_packet_bytes=self._limit.value,
                tells_reasons=self._version == MQTTProtocolVersion.MQTTv5,
            )
        )

    def _on_disconnect(
        self, _client: paho.Client, _: Any, flags: paho.DisconnectFlags, reason: ReasonCode, _properties: Any
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._farewell = str(reason)

    def _on_subscribe(self, _client: paho.Client, _: Any, mid: int, reasons: list[ReasonCode], _props: Any) -> None:
        with self._lock:
            filters = self._subscribing.pop(mid, [])
        for topic_filter, reason in itertools.zip_longest(filters, reasons[: len(filters) or None]):
            self._culprits.answered(f"subscribe {topic_filter}")
            if reason is not None and reason.is_failure:
                with self._lock:
                    self._denied[topic_filter or ""] = time.monotonic() + SUBSCRIBE_AGAIN_S
                self._emit(Refused(action="subscribe", topic=topic_filter or "", reason=str(reason)))

    def _on_publish(self, _client: paho.Client, _: Any, mid: int, reason: ReasonCode, _props: Any) -> None:
        # Without the lock: paho holds one of its own here, which whoever publishes with ours waits for.
        if reason is not None and reason.is_failure:
            found = [(topic, size) for info, topic, size in list(self._under_way) if info.mid == mid]
            topic, size = found[-1] if found else ("", 0)
            if reason == "Packet too large":
                self._limit.too_large(size)
                self._emit(Limited(max_packet_bytes=self._limit.value))
            self._emit(Refused(action="publish", topic=topic, reason=str(reason)))

    def _on_message(self, _client: paho.Client, _: Any, message: paho.MQTTMessage) -> None:
        self._emit(Received(topic=message.topic, payload=bytes(message.payload), retained=bool(message.retain)))


class _Client(paho.Client):
    """Paho, which does not see messages that came whole: they go past it, and it sends what acknowledges them.

    It takes four times as long for one. That rests on two of its inner methods: without the first it reads them all.

    Args:
        on_whole: Is given such messages.
        args: Of paho.
        options: Of paho.

    Attributes:
        on_whole: As above.
    """

    def __init__(self, on_whole: Callable[[Received], None], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_whole = on_whole

    def _create_socket(self) -> Any:
        sock: Any = super()._create_socket()
        is_tcp = isinstance(sock, socket.socket)  # a WebSocket has frames of its own, which paho takes apart
        return _Tap(sock, Sieve(is_5=self._protocol == MQTTProtocolVersion.MQTTv5), self._take) if is_tcp else sock

    def _take(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self.on_whole(Received(topic=message.topic, payload=message.payload, retained=message.retained))
        answers = b"".join(_PUBACK.pack(0x40, 2, each.number) for each in messages if each.number)
        if answers:
            self._packet_queue(paho.PUBACK, answers, 0, 1)


class _Tap:
    """A socket of which paho reads what the sieve leaves.

    Args:
        sock: The real one, with or without TLS.
        sieve: Of this connection.
        take: Is given messages.
    """

    def __init__(self, sock: socket.socket, sieve: Sieve, take: Callable[[Sequence[Message]], None]) -> None:
        self._socket, self._sieve, self._take = sock, sieve, take

    def __getattr__(self, name: str) -> Any:
        """All else is as the socket has it."""
        return getattr(self._socket, name)

    def recv(self, most: int) -> bytes:
        """As of a socket: b"" at the end, and BlockingIOError where nothing is there for paho."""
        if not self._sieve.pending:
            data = self._socket.recv(READ_BYTES)
            if not data:
                return b""
            self._sieve.put(data)
        if messages := self._sieve.messages():
            self._take(messages)
        if found := self._sieve.read(most):
            return found
        raise BlockingIOError

    def pending(self) -> int:
        """Bytes that are here already, so that nobody waits for the socket before they are read."""
        in_tls: int = getattr(self._socket, "pending", int)()
        return self._sieve.pending + in_tls


def _waiting(info: paho.MQTTMessageInfo) -> paho.MQTTMessageInfo:
    """A message that waits for a connection is under way, too: paho would never say that it went."""
    if info.rc == MQTTErrorCode.MQTT_ERR_NO_CONN:
        info.rc = MQTTErrorCode.MQTT_ERR_SUCCESS
    return info


def _is_of_version(refused: ReasonCode | None) -> bool:
    """Whether another version of the protocol may help."""
    return refused is None or refused == "Unsupported protocol version"


def _of_5(version: MQTTProtocolVersion, packet_type: int, **values: int) -> Properties | None:
    """MQTT 5 properties; None for 3.1.1, which has none."""
    return _properties(packet_type, **values) if version == MQTTProtocolVersion.MQTTv5 else None


def _described(exc: Exception, url: BrokerUrl, timeout_s: float) -> str:
    """Why a connection did not come about, in words."""
    match exc:
        case ConnectionRefusedError():
            return f"connection refused by {url}: is the broker running?"
        case socket.gaierror():
            return f"host {url.host!r} not found"
        case TimeoutError():
            return f"no answer from {url} within {timeout_s:g} s"
        case ssl.SSLError():
            return f"TLS with {url}: {exc.reason or exc}"
        case OSError():
            return f"{url}: {exc.strerror or exc}"
    return f"{url}: {exc}"


def _retire(client: _Client) -> None:
    """Take ourselves out of a client that is not used any more: paho closes its two inner sockets when it is freed."""
    client.on_whole = _nobody
    client.on_connect = client.on_disconnect = client.on_subscribe = client.on_publish = client.on_message = None


def _is_through(info: paho.MQTTMessageInfo) -> bool:
    """Whether a QoS 1 message was acknowledged."""
    return info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS and info.is_published()


def _nobody(_: Received) -> None:
    """Hears nothing."""


def _no_delay(_client: paho.Client, _: Any, sock: Any) -> None:
    """Without this a request and its answer cost 44 ms instead of one (Nagle against delayed ACK)."""
    with socket.socket(fileno=os.dup(sock.fileno())) as same:  # what wraps it for WebSockets has no options
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _leave_to_the_loop(_client: paho.Client, _: Any, _sock: Any) -> None:
    """Its presence makes paho queue and wake the loop instead of writing on the publisher's thread."""


def probe(url: BrokerUrl, timeout_s: float) -> None:
    """Ask whether a broker answers.

    Raises:
        ChannelError: Nobody accepted a CONNECT in time; says what was seen last.
        ConfigError: A certificate file cannot be used.
    """
    accepted = threading.Event()
    seen = [f"no answer within {timeout_s:g} s"]

    def note(event: TransportEvent) -> None:
        match event:
            case Connected():
                accepted.set()
            case Disconnected(reason=reason):
                seen.append(reason)

    transport = MqttTransport(
        url, f"probe-{os.urandom(4).hex()}", True, connect_timeout_s=max(0.1, min(5.0, timeout_s))
    )
    transport.start(note)
    answered = accepted.wait(timeout_s)
    transport.stop()
    if not answered:
        raise ChannelError(
            f"broker {url}: expected an answer, got: {seen[-1]}; check that it runs, its address and the login"
        )
