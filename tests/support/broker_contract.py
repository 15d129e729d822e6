"""What the protocol asks of a broker, and what a real one answers: `docs/brokers.md` is what this says.

Each question is asked by clients of its own under topics of its own, so all of them can be asked at the same time.
"""

from __future__ import annotations

import queue
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge.channel.mqtt import MqttTransport
from edge.channel.transport import Connected
from edge.channel.url import BrokerUrl
from tests.support.brokers import DEVICE, FLEET, SECRET, Broker

WAIT_S = 10.0
QUIET_S = 0.7  # what has not come by then does not come
YES, NO = "yes", "no"
NOT_ASKED = "–"


class Client:
    """paho as it is, on a thread of its own; what it saw, in order."""

    def __init__(
        self, port: int, version: MQTTProtocolVersion, name: str = "", *, clean: bool = True, expiry_s: int = 60
    ) -> None:
        self.is_5 = version == MQTTProtocolVersion.MQTTv5
        self.paho = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=name or f"c-{uuid.uuid4().hex[:10]}",
            clean_session=None if self.is_5 else clean,
            protocol=version,
            reconnect_on_failure=False,
        )
        self.paho.max_inflight_messages_set(20)
        self._port, self._clean, self._expiry_s = port, clean, expiry_s
        self.messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.connected: queue.Queue[tuple[Any, Any, Any]] = queue.Queue()
        self.ended: queue.Queue[str] = queue.Queue()
        self.granted: queue.Queue[list[Any]] = queue.Queue()
        self.acknowledged: queue.Queue[Any] = queue.Queue()
        self.paho.on_connect = lambda _c, _u, flags, reason, props: self.connected.put((flags, reason, props))
        self.paho.on_disconnect = lambda _c, _u, flags, reason, _p: self.ended.put(
            str(reason) if flags.is_disconnect_packet_from_server else ""
        )
        self.paho.on_message = lambda _c, _u, message: self.messages.put(message)
        self.paho.on_subscribe = lambda _c, _u, _mid, reasons, _p: self.granted.put(reasons)
        self.paho.on_publish = lambda _c, _u, _mid, reason, _p: self.acknowledged.put(reason)

    def connect(self) -> tuple[Any, Any, Any]:
        """Connect; flags, reason and properties of the answer."""
        options: dict[str, Any] = {}
        if self.is_5:
            options = {"clean_start": self._clean, "properties": Properties(PacketTypes.CONNECT)}
            options["properties"].SessionExpiryInterval = 0 if self._clean else self._expiry_s
        self.paho.connect("127.0.0.1", self._port, 30, **options)
        self.paho.loop_start()
        found = self.connected.get(timeout=WAIT_S)
        if found[1].is_failure:
            raise ConnectionError(str(found[1]))
        return found

    def subscribe(self, *filters: str, qos: int = 1) -> list[Any]:
        """Subscribe and wait for the answer: the reasons."""
        self.paho.subscribe([(each, qos) for each in filters])
        return self.granted.get(timeout=WAIT_S)

    def publish(
        self, topic: str, payload: bytes = b"1", *, qos: int = 1, retain: bool = False, expiry_s: int = 0
    ) -> bool:
        """Publish; whether the broker has acknowledged it within the time."""
        properties = None
        if expiry_s and self.is_5:
            properties = Properties(PacketTypes.PUBLISH)
            properties.MessageExpiryInterval = expiry_s
        told = self.paho.publish(topic, payload, qos, retain, properties)
        end_s = time.monotonic() + WAIT_S
        while told.rc == 0 and not told.is_published() and time.monotonic() < end_s and self.ended.empty():
            time.sleep(0.005)
        try:
            return bool(told.is_published())
        except RuntimeError:  # the connection has ended, paho says
            return False

    def heard(self, count: int, wait_s: float = WAIT_S) -> list[bytes]:
        """As many messages as come, at most so many."""
        found: list[bytes] = []
        end_s = time.monotonic() + wait_s
        while len(found) < count and time.monotonic() < end_s:
            try:
                found.append(bytes(self.messages.get(timeout=max(end_s - time.monotonic(), 0.001)).payload))
            except queue.Empty:
                break
        return found

    def cut(self) -> None:
        """The line breaks: no word of farewell."""
        sock: Any = self.paho.socket()
        assert sock is not None
        sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Say goodbye, if there is still anybody to say it to."""
        self.paho.disconnect()
        self.paho.loop_stop()


@dataclass(frozen=True, slots=True)
class Asker:
    """Makes clients of one broker."""

    broker: Broker
    version: MQTTProtocolVersion

    @property
    def is_5(self) -> bool:
        return self.version == MQTTProtocolVersion.MQTTv5

    @contextmanager
    def clients(self) -> Iterator[Callable[..., Client]]:
        """Connected clients, closed at the end."""
        with ExitStack() as stack:

            def make(*filters: str, name: str = "", **options: Any) -> Client:
                client = self.make(name, **options)
                client.connect()
                if filters:
                    client.subscribe(*filters)
                return client

            def keep(*filters: str, **options: Any) -> Client:
                client = make(*filters, **options)
                stack.callback(client.close)
                return client

            yield keep

    def make(self, name: str = "", **options: Any) -> Client:
        return Client(self.broker.port, self.version, name, **options)


def topic() -> str:
    """One that nobody else uses."""
    return f"edge/v1/{FLEET}/d-{uuid.uuid4().hex[:10]}"


# The questions


def speaks(ask: Asker) -> str:
    return YES if ask.is_5 else "no: 3.1.1"


def announces(ask: Asker) -> str:
    if not ask.is_5:
        return NOT_ASKED
    client = ask.make()
    _, _, properties = client.connect()
    client.close()
    size, receive = (getattr(properties, each, None) for each in ("MaximumPacketSize", "ReceiveMaximum"))
    return f"{'no limit' if size is None else f'{size} bytes'}; {receive or 'no'} at once"


def kept_exact(ask: Asker) -> str:
    with ask.clients() as client:
        at, speaker = topic(), client()
        speaker.publish(f"{at}/dn/desired", b"kept", retain=True)
        late = client(f"{at}/dn/desired")
        found = late.heard(1, 3.0)
        speaker.publish(f"{at}/dn/desired", b"", retain=True)
        late.heard(1, 1.0)
        again = client(f"{at}/dn/desired").heard(1, QUIET_S)
    return NO if found != [b"kept"] else YES if not again else "yes; an empty one does not delete it"


def kept_wildcard(ask: Asker) -> str:
    with ask.clients() as client:
        at, speaker = topic(), client()
        for n in range(20):
            speaker.publish(f"{at}/{n}/up/conn", b"kept", retain=True)
        found = client(f"{at}/+/up/#").heard(20, 3.0)
        for n in range(20):
            speaker.publish(f"{at}/{n}/up/conn", b"", retain=True)
    return f"{len(found)} of 20"


def _with_will(ask: Asker, at: str, delay_s: int = 0, *, retain: bool = False) -> Client:
    client = ask.make()
    properties = None
    if delay_s and ask.is_5:
        properties = Properties(PacketTypes.WILLMESSAGE)
        properties.WillDelayInterval = delay_s
    client.paho.will_set(at, b"gone", 1, retain, properties)
    if ask.is_5 and delay_s:  # a will is not later than the end of the session
        client._clean = False
    client.connect()
    return client


def will(ask: Asker) -> str:
    with ask.clients() as client:
        at = topic()
        watcher = client(f"{at}/#")
        polite, cut = _with_will(ask, f"{at}/polite/up/conn"), _with_will(ask, f"{at}/cut/up/conn", retain=True)
        polite.close()
        cut.cut()
        found = [watcher.messages.get(timeout=WAIT_S).topic.split("/")[4]]
        found += ["more"] * len(watcher.heard(1, QUIET_S))
        kept = client(f"{at}/cut/up/conn").heard(1, QUIET_S)
        client().publish(f"{at}/cut/up/conn", b"", retain=True)
    if found != ["cut"]:
        return f"wrong: {found}"
    return "yes, and kept" if kept else "yes, not kept for late ones"


def late_will(ask: Asker) -> str:
    if not ask.is_5:
        return NOT_ASKED
    with ask.clients() as client:
        at = topic()
        watcher = client(f"{at}/#")
        cut = _with_will(ask, f"{at}/up/conn", 4)  # whole seconds count there, and begun ones
        cut.cut()
        if watcher.heard(1, 1.5):
            return "no: at once"
        return YES if watcher.heard(1, 8.0) else "never"


def absent_session(ask: Asker) -> str:
    """Messages of QoS 1 to a client that is away and comes back."""
    with ask.clients() as client:
        at, name = topic(), f"s-{uuid.uuid4().hex[:8]}"
        gone = ask.make(name, clean=False)
        gone.connect()
        gone.subscribe(f"{at}/#")
        gone.close()
        speaker = client()
        for n in range(1500):
            speaker.paho.publish(f"{at}/dn/cmd", b"%d" % n, 1)
        end_s = time.monotonic() + WAIT_S
        while speaker.acknowledged.qsize() < 1500 and time.monotonic() < end_s:
            time.sleep(0.02)
        acknowledged = speaker.acknowledged.qsize()
        back = ask.make(name, clean=False)
        back.connect()
        found = back.heard(1500, 5.0)
        back.close()
        ask.make(name).connect()
    numbers = [int(each) for each in found]
    order = "" if numbers == sorted(numbers) else ", not in their order"
    return f"{len(set(numbers))} of {acknowledged} acknowledged{order}"


def session_ends(ask: Asker) -> str:
    if not ask.is_5:
        return NOT_ASKED
    name = f"e-{uuid.uuid4().hex[:8]}"
    gone = ask.make(name, clean=False, expiry_s=1)
    gone.connect()
    gone.subscribe(f"{topic()}/#")
    gone.close()
    time.sleep(2.5)
    back = ask.make(name, clean=False, expiry_s=1)
    flags, _, _ = back.connect()
    back.close()
    return "no: still there" if flags.session_present else YES


def message_ends(ask: Asker) -> str:
    if not ask.is_5:
        return NOT_ASKED
    with ask.clients() as client:
        at, name = topic(), f"x-{uuid.uuid4().hex[:8]}"
        gone = ask.make(name, clean=False)
        gone.connect()
        gone.subscribe(f"{at}/#")
        gone.close()
        client().publish(f"{at}/dn/cmd", b"old", expiry_s=1)
        time.sleep(2.2)
        back = ask.make(name, clean=False)
        back.connect()
        found = back.heard(1, QUIET_S)
        back.close()
    return "no: delivered" if found else YES


def same_name(ask: Asker) -> str:
    with ask.clients() as client:
        name = f"n-{uuid.uuid4().hex[:8]}"
        first = client(name=name)
        at = topic()
        second = client(f"{at}/#", name=name)
        try:
            farewell = first.ended.get(timeout=3.0)
        except queue.Empty:
            return "both stay"
        client().publish(f"{at}/dn/cmd")
        if not second.heard(1, 3.0):
            return "the newer one hears nothing"
    return f"the older one is cut{f': {farewell}' if farewell else ', no word'}"


def largest(ask: Asker) -> str:
    """The largest payload of these that arrives, and what happens to the next."""
    sizes = {"256 KiB": 2**18, "1 MiB": 2**20, "4 MiB": 2**22}
    passed, then = "none", ""
    for name, size in sizes.items():
        with ask.clients() as client:
            at = topic()
            ear, mouth = client(f"{at}/#"), client()
            acknowledged = mouth.publish(f"{at}/up/ul/0", bytes(size))
            if not ear.heard(1, 3.0 if acknowledged else QUIET_S):
                lost = "acknowledged and dropped" if acknowledged else "the connection is cut"
                if not mouth.ended.empty() and (said := mouth.ended.get()):
                    lost = f"cut: {said}"
                then = f"; {name}: {lost}"
                break
            passed = name
    return f"{passed}{then or ' and more'}"


def shared(ask: Asker) -> str:
    with ask.clients() as client:
        at = topic()
        two = []
        for _ in range(2):
            one = ask.make()
            one.connect()
            if one.subscribe(f"$share/coord/{at}/#")[0].is_failure:
                one.close()
                return "refused"
            two.append(one)
        speaker = client()
        for n in range(20):
            speaker.publish(f"{at}/up/ul/0", b"%d" % n)
        found = [len(each.heard(20, QUIET_S)) for each in two]
        for each in two:
            each.close()
    if sum(found) == 20 and min(found) > 0:
        return YES
    return "granted, delivers nothing" if not sum(found) else f"no: {found[0]} and {found[1]} of 20"


def in_order(ask: Asker) -> str:
    with ask.clients() as client:
        at = topic()
        ear, mouth = client(f"{at}/#"), client()
        for n in range(300):
            mouth.paho.publish(f"{at}/up/tele", b"%d" % n, 1)
        found = [int(each) for each in ear.heard(300)]
    return YES if found == list(range(300)) else f"no: {len(found)} of 300"


def _as_device(ask: Asker) -> Client:
    client = ask.make(DEVICE)
    client.paho.username_pw_set(DEVICE, SECRET)
    client.connect()
    return client


def rights(ask: Asker) -> str:
    """One client by its name, so all three questions about rights are asked here; see `RIGHTS`."""
    if not ask.broker.has_rights:
        return "|".join([NOT_ASKED] * 3)
    own, other = f"edge/v1/{FLEET}/{DEVICE}", f"edge/v1/{FLEET}/another"
    with ask.clients() as client:
        watcher = client(f"{own}/up/conn", f"{other}/up/conn")
        device = _as_device(ask)
        device.subscribe(f"{own}/up/conn")
        device.publish(f"{own}/up/conn", b"me")
        back = YES if device.heard(1, 3.0) == [b"me"] and watcher.heard(1, 3.0) == [b"me"] else NO
        device.acknowledged.queue.clear()
        acknowledged = device.publish(f"{other}/up/conn", b"forged")
        if watcher.heard(1, QUIET_S):
            published = "not denied"
        elif not device.ended.empty():
            published = "the connection is cut"
        else:
            reason = device.acknowledged.get(timeout=1.0) if acknowledged else None
            published = f"told: {reason}" if reason is not None and reason.is_failure else "acknowledged and dropped"
        device.close()
        device = _as_device(ask)
        try:
            granted = device.subscribe(f"{other}/dn/#")
            client().publish(f"{other}/dn/cmd", b"secret")
            if device.heard(1, QUIET_S):
                subscribed = "not denied"
            else:
                subscribed = f"told: {granted[0]}" if granted[0].is_failure else "granted, delivers nothing"
        except queue.Empty:
            subscribed = "no answer" if device.ended.empty() else "the connection is cut"
        device.close()
    return f"{back}|{published}|{subscribed}"


def house_connects(ask: Asker) -> str:
    """The house's own connection, cut in the middle: it comes back and hears again."""
    events: queue.Queue[object] = queue.Queue()
    at = topic()
    transport = MqttTransport(BrokerUrl.parse(ask.broker.url), f"h-{uuid.uuid4().hex[:8]}", False)
    transport.subscribe([(f"{at}/dn/#", 1)])
    transport.start(events.put)
    try:
        _until(events, Connected)
        sock: Any = transport._client.socket()
        assert sock is not None
        sock.shutdown(socket.SHUT_RDWR)
        _until(events, Connected)
        time.sleep(0.2)
        transport.publish(f"{at}/dn/cmd", b"1", qos=1)
        _until(events, object)
        return YES
    finally:
        transport.stop()


def _until(events: queue.Queue[object], kind: type) -> Any:
    end_s = time.monotonic() + 15.0
    while (left_s := end_s - time.monotonic()) > 0:
        event = events.get(timeout=left_s)
        if isinstance(event, kind):
            return event
    raise TimeoutError


QUESTIONS: dict[str, Callable[[Asker], str]] = {
    "MQTT 5": speaks,
    "it announces": announces,
    "retained, by exact topic": kept_exact,
    "retained, by wildcard": kept_wildcard,
    "will, of a line that breaks": will,
    "will that waits": late_will,
    "1,500 of QoS 1 to one who is away": absent_session,
    "session ends when it shall": session_ends,
    "message ends when it shall": message_ends,
    "300 of QoS 1 in their order": in_order,
    "two of one name": same_name,
    "largest payload of these": largest,
    "`$share`": shared,
    "comes back after a cut": house_connects,
}
RIGHTS = ("own `up/conn` comes back", "publishing what it may not", "subscribing to what it may not")
NEEDED = {
    "retained, by exact topic": YES,
    "will, of a line that breaks": "yes, and kept",
    "300 of QoS 1 in their order": YES,
}
"""Without these the fleet does not work; what else a broker lacks is made up for."""
KILLED = "kept over `kill -9`"
"""Asked apart: the broker is started again for it."""


def ask_all(broker: Broker) -> dict[str, str]:
    """Ask a running broker everything, all at the same time.

    Returns:
        Its answers by question, in the order of the table.
    """
    ask = _asker(broker)
    with ThreadPoolExecutor(len(QUESTIONS) + 1) as pool:
        of_rights = pool.submit(_answer, rights, ask)
        found = dict(zip(QUESTIONS, pool.map(lambda question: _answer(question, ask), QUESTIONS.values()), strict=True))
    return found | dict(zip(RIGHTS, of_rights.result().split("|"), strict=False))


def ask_alone(broker: Broker, questions: Sequence[str]) -> dict[str, str]:
    """Ask some questions of `ask_all` one after another: their answers by question."""
    ask = _asker(broker)
    found = {question: _answer(QUESTIONS[question], ask) for question in questions if question in QUESTIONS}
    if set(RIGHTS) & set(questions):
        found |= dict(zip(RIGHTS, _answer(rights, ask).split("|"), strict=False))
    return found


def _asker(broker: Broker) -> Asker:
    seen: queue.Queue[object] = queue.Queue()
    first = MqttTransport(BrokerUrl.parse(broker.url), f"v-{uuid.uuid4().hex[:8]}", True)
    first.start(seen.put)
    is_5 = _until(seen, Connected).tells_reasons
    first.stop()
    return Asker(broker, MQTTProtocolVersion.MQTTv5 if is_5 else MQTTProtocolVersion.MQTTv311)


def _answer(question: Callable[[Asker], str], ask: Asker) -> str:
    try:
        return question(ask)
    except (OSError, queue.Empty, TimeoutError) as exc:
        return f"failed: {type(exc).__name__} {exc}"


def _answered(make: Callable[[], Client]) -> Client:
    """A client that is connected: a broker that has just started may not answer the first ones."""
    for _ in range(6):
        client = make()
        try:
            client.connect()
        except (OSError, queue.Empty):
            client.close()
        else:
            return client
    raise TimeoutError


def over_a_kill(broker: Broker) -> str:
    """What of 200 acknowledged messages and one retained is left after ``kill -9`` and a new start."""
    version = MQTTProtocolVersion.MQTTv311
    ask, at, name = Asker(broker, version), topic(), f"k-{uuid.uuid4().hex[:8]}"
    gone = ask.make(name, clean=False)
    gone.connect()
    gone.subscribe(f"{at}/dn/cmd")
    gone.close()
    with ask.clients() as client:
        speaker = client()
        speaker.publish(f"{at}/dn/desired", b"kept", retain=True)
        acknowledged = sum(speaker.publish(f"{at}/dn/cmd", b"%d" % n) for n in range(200))
    broker.kill()
    broker.start()
    back = _answered(lambda: ask.make(name, clean=False))
    found = len(set(back.heard(200, 5.0)))
    retained = _answered(ask.make)
    retained.subscribe(f"{at}/dn/desired")
    kept = "retained kept" if retained.heard(1, 3.0) else "retained lost"
    for each in (back, retained):
        each.close()
    return f"{found} of {acknowledged}; {kept}"
