"""What the protocol needs, the promises of `edge.channel.transport`, and a whole session, on real brokers."""

import gc
import hashlib
import os
import pathlib
import queue
import random
import subprocess
import sys
import threading
import time
import uuid
import weakref
from typing import Any

import pytest

from edge.channel import topics
from edge.channel.codec import decode, encode
from edge.channel.frames import decode_frame, encode_frame
from edge.channel.memory import MemoryBroker
from edge.channel.messages import Request
from edge.channel.mqtt import BrokerUrl, MqttTransport, probe
from edge.channel.transfer import Download, Finished, SendRequest, WriteChunk, chunk_digests, index_digest, serve
from edge.channel.transport import Connected, Disconnected, Received, Refused
from edge.contract.errors import ChannelError
from edge.coordinator.machine.broker import DevelopmentBroker, find_mosquitto
from tests.edge.agent.conftest import other_bundle
from tests.support.broker_contract import KILLED, NEEDED, ask_all, ask_alone
from tests.support.brokers import DEVICE, KINDS, Broker, is_installed, require
from tests.support.fleet import SimulatedFleet
from tests.support.ports import free_port

__all__ = ["other_bundle"]

pytestmark = [pytest.mark.broker, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def brokers(tmp_path_factory):
    """Brokers by kind, started when they are asked for; the slowest starts while the others are tested."""
    running = {kind: Broker(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}
    early = threading.Thread(target=running["rabbitmq"].start) if is_installed("rabbitmq") else None
    if early is not None:
        early.start()
    started = {"rabbitmq"}

    def get(kind: str) -> Broker:
        require(kind)
        if kind not in started:
            running[kind].start()
            started.add(kind)
        if kind == "rabbitmq" and early is not None:
            early.join()
        return running[kind]

    yield get
    if early is not None:
        early.join()
    for each in running.values():
        each.kill()


@pytest.fixture(scope="module", params=KINDS)
def broker(request, brokers):
    return brokers(request.param)


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind != "iotcore"])
def strict_broker(request, brokers):
    """One that can be told rights."""
    return brokers(request.param)


def test_answers_are_those_of_the_page(broker):
    told = page()[broker.kind]
    found = ask_all(broker)
    assert {question: found[question] for question in NEEDED} == {question: NEEDED[question] for question in NEEDED}
    if told.pop("") != broker.name:
        pytest.skip(f"docs/brokers.md is of another version than {broker.name}")
    other = [question for question in told if found.get(question) != told[question]]
    found |= ask_alone(broker, other)  # of all at once on a machine that does much else, one may come too late
    assert found == told


def page() -> dict[str, dict[str, str]]:
    """The table of docs/brokers.md, by kind of broker and question."""
    text = (pathlib.Path(__file__).parents[2] / "docs" / "brokers.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    rows = [row for row in rows if len(row) == len(KINDS) + 1 and row[0] != "---"]
    return {kind: {row[0]: row[n + 1] for row in rows if row[0] != KILLED} for n, kind in enumerate(KINDS)}


class Elsewhere(MemoryBroker):
    """The broker of nobody: all are at a real one."""

    def disconnect(self, client_id: str, graceful: bool = False) -> None:
        """Nobody is here."""


class LiveFleet(SimulatedFleet):
    """As simulated, but over a real broker: time goes ten times as fast as it does."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.broker = Elsewhere()

    def step(self, dt_s: float = 0.2) -> None:
        time.sleep(dt_s / 10)
        super().step(dt_s)


def test_what_a_broker_hangs_up_at_is_left_out_and_all_else_is_said(strict_broker, monkeypatch):
    """faults: 13. RabbitMQ ends the connection of whoever publishes, or subscribes to, what it may not."""
    broker = strict_broker
    monkeypatch.setattr("edge.channel.mqtt.random.uniform", lambda low, high: low)  # no need to wait for long
    own = f"edge/v1/lab/{DEVICE}"
    events: queue.Queue[object] = queue.Queue()
    transport = MqttTransport(BrokerUrl.parse(broker.device_url), DEVICE, True)
    transport.subscribe([(f"{own}/dn/#", 1), ("denied/#", 1), (f"{own}/up/conn", 1)])

    def say(event: object) -> None:
        if isinstance(event, Connected):  # as the agent does
            for topic in (f"{own}/up/birth", "homeassistant/device/config", f"{own}/up/conn"):
                transport.publish(topic, b"1", qos=1)
        events.put(event)

    transport.start(say)
    refused, end_s = set(), time.monotonic() + 120.0
    try:
        while True:
            event = events.get(timeout=end_s - time.monotonic())
            if isinstance(event, Refused):
                refused.add(event.topic)
            is_heard = isinstance(event, Received) and event.topic == f"{own}/up/conn"
            # Silent denial (a dropped message, a grant of nothing) is nothing to a transport.
            if is_heard and (broker.kind != "rabbitmq" or len(refused) == 2):
                break
        assert refused <= {"denied/#", "homeassistant/device/config"}
    finally:
        transport.stop()


def test_a_whole_session_of_agent_and_coordinator(broker, tmp_path, digits_bundle, other_bundle, digits):
    """faults: 10. Birth, labels, a merged head, a bundle, telemetry and a restart, with the rights of a device."""
    transports: list[MqttTransport] = []

    def connect(name: str) -> MqttTransport:
        is_device = name == DEVICE and broker.has_rights
        url = BrokerUrl.parse(broker.device_url if is_device else broker.url)
        transports.append(MqttTransport(url, name, clean_start=name != DEVICE))
        return transports[-1]

    fleet = LiveFleet(tmp_path, digits_bundle, [DEVICE], connect=connect)
    try:
        fleet.until("birth", lambda: fleet.device(DEVICE) and fleet.device(DEVICE).bundle)
        fleet.teach(DEVICE, *(each[:40] for each in digits))
        fleet.until("a merge is active", fleet.settled)
        kept = fleet.coordinator.add_artifact(other_bundle.read_bytes(), other_bundle)
        pushed = fleet.coordinator.push(kept["digest"], "bundle", kept["backbone"], [], "test", fleet.now)
        fleet.until("the bundle is active", lambda: fleet.converged(pushed.counter))
        first = fleet.device(DEVICE).session
        broker.stop()
        broker.start()
        fleet.until(
            "both are back", lambda: fleet.device(DEVICE).session > first and fleet.device(DEVICE).online, 900.0
        )
        heard = len(fleet.store.telemetry.after(0, 1000))
        assert heard
        fleet.until("telemetry goes on", lambda: len(fleet.store.telemetry.after(0, 1000)) > heard)
        agent = fleet.agents[DEVICE]
        for said in agent.core.farewell(fleet.now):
            agent.transport.publish(said.topic, said.payload, qos=said.qos, retain=said.retain)
        fleet.until("it has gone", lambda: not fleet.device(DEVICE).online)
        names = {row.name for row in fleet.store.events.newest(100)}
        assert not names & {"broker-silent", "same-name", "fault", "bad-message"}, names
    finally:
        for each in transports:
            each.stop()
        fleet.close()


class Client:
    """A transport and the queue of its events."""

    def __init__(self, url: str, *filters: str, will: str | None = None, start: bool = True) -> None:
        self.events: queue.Queue[object] = queue.Queue()
        self.transport = MqttTransport(BrokerUrl.parse(url), f"t-{uuid.uuid4().hex[:8]}", True)
        self.transport.subscribe([(f, 1) for f in filters])
        if will is not None:
            self.transport.set_will(will, b"gone", 1, False, 0)
        if start:
            self.transport.start(self.events.put)
            self.wait(Connected)
            time.sleep(0.15)  # the broker's answer to the subscription is no event

    def wait(self, kind, timeout_s: float = 10.0):
        end_s = time.monotonic() + timeout_s
        while (left_s := end_s - time.monotonic()) > 0:
            try:
                event = self.events.get(timeout=left_s)
            except queue.Empty:
                break
            if isinstance(event, kind):
                return event
        raise AssertionError(f"no {kind.__name__} within {timeout_s} s")


@pytest.fixture
def client(broker):
    clients = []

    def make(*filters: str, **options) -> Client:
        clients.append(Client(broker.url, *filters, **options))
        return clients[-1]

    yield make
    for one in clients:
        one.transport.stop()
        assert not one.transport.alive


def test_a_node_of_a_cluster_that_is_killed_costs_a_while_and_nothing_else(tmp_path, digits_bundle, other_bundle):
    """faults: 17. Three nodes of NATS; that of the device and the coordinator is killed."""
    require("nats")
    ports = [free_port() for _ in range(3)]
    nodes = [Broker("nats", tmp_path / f"node{n}", routes=(*ports[n:], *ports[:n])) for n in range(3)]
    transports: list[MqttTransport] = []

    def connect(name: str) -> MqttTransport:
        first, *others = nodes if name == DEVICE else (nodes[0], nodes[2], nodes[1])
        url = f"{first.url},{','.join(f'127.0.0.1:{each.port}' for each in others)}"
        transports.append(MqttTransport(BrokerUrl.parse(url), name, clean_start=name != DEVICE))
        return transports[-1]

    fleet = None
    try:
        for node in nodes:
            node.start()
        fleet = LiveFleet(tmp_path / "fleet", digits_bundle, [DEVICE], connect=connect, auto_merge=False)
        # A cluster refuses all until its nodes have found one another, and again until they agree that one is gone.
        fleet.until("birth", lambda: fleet.device(DEVICE) and fleet.device(DEVICE).bundle, 900.0)
        nodes[0].kill()
        kept = fleet.coordinator.add_artifact(other_bundle.read_bytes(), other_bundle)
        pushed = fleet.coordinator.push(kept["digest"], "bundle", kept["backbone"], [], "test", fleet.now)
        fleet.until("the bundle is active", lambda: fleet.converged(pushed.counter), 1800.0)
    finally:
        for each in transports:
            each.stop()
        for node in nodes:
            node.kill()
        if fleet is not None:
            fleet.close()


def test_round_trip_both_ways_and_its_time(client, broker, record_property):
    a, b = client("rt/a"), client("rt/b")
    times_s = []
    for n in range(50):
        began_s = time.perf_counter()
        assert a.transport.publish("rt/b", bytes([n]), qos=1)
        assert b.wait(Received).payload == bytes([n])
        assert b.transport.publish("rt/a", bytes([n]), qos=1)
        assert a.wait(Received).payload == bytes([n])
        times_s.append(time.perf_counter() - began_s)
    median_ms = sorted(times_s)[25] * 1e3
    record_property("round_trip_qos_1_ms", median_ms)
    # iotcore keeps Nagle on its side (44 ms a turn). A forgotten TCP_NODELAY here gives 44 ms with mosquitto too.
    assert median_ms < (15 if broker.name.startswith("mosquitto") else 200)


def test_retained_message_greets_a_late_subscriber(client):
    a = client()
    a.transport.publish("keep/x", b"kept", qos=1, retain=True)
    time.sleep(0.2)
    got = client("keep/x", start=False)
    got.transport.start(got.events.put)
    assert got.wait(Received) == Received(topic="keep/x", payload=b"kept", retained=True)
    a.transport.publish("keep/x", b"", qos=1, retain=True)


def test_will_speaks_when_the_socket_breaks_and_not_after_stop(client):
    watcher = client("will/#")
    polite, broken = client(will="will/polite"), client(will="will/broken")
    polite.transport.stop()
    broken.transport._client.socket().shutdown(2)
    assert watcher.wait(Received).topic == "will/broken"
    broken.wait(Connected)
    with pytest.raises(AssertionError):
        watcher.wait(Received, 0.3)


def test_oversize_publish_is_refused_and_the_connection_lives(client):
    a = client("big")
    with pytest.raises(ChannelError, match="expected a packet of at most 262144 bytes"):
        a.transport.publish("big", bytes(300_000), qos=1)
    a.transport.publish("big", bytes(200_000), qos=1)
    assert len(a.wait(Received).payload) == 200_000


def test_a_failing_handler_does_not_end_the_connection(client, caplog):
    a = client("fail", start=False)

    def fail_first(event) -> None:
        a.events.put(event)
        if isinstance(event, Received) and event.payload == b"1":
            raise RuntimeError("handler")

    a.transport.start(fail_first)
    a.wait(Connected)
    for payload in (b"1", b"2"):
        a.transport.publish("fail", payload, qos=1)
    assert [a.wait(Received).payload for _ in range(2)] == [b"1", b"2"]
    assert a.transport.alive
    assert "RuntimeError: handler" in caplog.text


def test_a_megabyte_comes_in_pulled_windows(client):
    data, chunk = random.Random(0).randbytes(1_000_003), 32 * 1024
    index = chunk_digests(data, chunk)
    download = Download(
        digest=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        chunk_size_bytes=chunk,
        index_digest=index_digest(index),
    )
    fleet = f"lab-{uuid.uuid4().hex[:6]}"
    device = client(*(f for f, _ in topics.device_filters(fleet, "pi")))
    server = client(*(f for f, _ in topics.coordinator_filters(fleet)))
    received, began_s = bytearray(len(data)), time.monotonic()
    effects = download.poll(0.0)
    while True:
        for effect in effects:
            match effect:
                case WriteChunk(offset=offset, data=piece):
                    received[offset : offset + len(piece)] = piece
                case SendRequest(request=request):
                    leaf = topics.UP_REQ
                    device.transport.publish(topics.build(fleet, "pi", leaf), encode(request), qos=1)
                    asked = decode(leaf, server.wait(Received).payload)
                    assert isinstance(asked, Request)
                    for frame in serve(asked, lambda at, n: data[at : at + n], len(data), chunk, index):
                        topic = topics.build(fleet, "pi", topics.frame_leaf(frame.xfer))
                        assert server.transport.publish(topic, encode_frame(frame), expiry_s=30)
        if Finished() in effects:
            break
        effects = download.receive(decode_frame(device.wait(Received).payload), time.monotonic() - began_s)
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
    assert download.rejected == 0


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_comes_back_after_the_broker_was_killed(kind, tmp_path):
    """faults: 11."""
    require(kind)
    running = DevelopmentBroker.start(tmp_path, kind=kind)
    port = int(running.url.rsplit(":", 1)[1])
    a = Client(running.url, "back/#")
    try:
        running.kill()
        assert "lost" in a.wait(Disconnected).reason
        assert a.transport.publish("back/0", b"lost") is False
        assert a.transport.publish("back/1", b"kept", qos=1) is True
        assert "connection refused" in a.wait(Disconnected).reason
        running = DevelopmentBroker.start(tmp_path, port, kind=kind)
        a.wait(Connected, 20.0)
        time.sleep(0.3)  # for the subscription
        a.transport.publish("back/2", b"new", qos=1)
        while a.wait(Received).topic != "back/2":
            pass
        time.sleep(0.2)
        a.transport.publish("back/3", b"", qos=1)
        assert len(a.transport._under_way) <= 1, "what was said without a connection is not under way for ever"
    finally:
        a.transport.stop()
        running.stop()


def test_unreachable_broker_is_said_once_and_probe_says_why():
    a = Client("mqtt://127.0.0.1:9", start=False)
    a.transport.start(a.events.put)
    try:
        assert "connection refused" in a.wait(Disconnected).reason
        with pytest.raises(AssertionError):
            a.wait(Disconnected, 1.2)
        assert a.transport.alive
        assert a.transport.publish("x", b"") is False
    finally:
        a.transport.stop()
    with pytest.raises(ChannelError, match="connection refused"):
        probe(BrokerUrl.parse("mqtt://127.0.0.1:9"), 0.5)


def test_probe_is_answered(broker):
    probe(BrokerUrl.parse(broker.url), 5.0)


def test_queue_of_qos_1_is_capped_without_a_connection():
    transport = MqttTransport(BrokerUrl.parse("mqtt://127.0.0.1:9"), "cap", True, max_queued=3)
    assert [transport.publish("x", b"", qos=1) for _ in range(5)] == [True, True, True, False, False]
    transport.stop()


def test_a_stopped_transport_frees_its_sockets_at_once(broker):
    """Not when the garbage collector comes by: a process that reconnects for months has few files to open."""
    peer = Client(broker.url)
    client = weakref.ref(peer.transport._client)
    gc.disable()
    try:
        peer.transport.stop()
        del peer
        assert client() is None
    finally:
        gc.enable()


def test_a_port_that_is_taken_is_said(broker, tmp_path):
    port = int(broker.url.rsplit(":", 1)[1])
    with pytest.raises(ChannelError, match="to be free"):
        DevelopmentBroker.start(tmp_path, port)


def test_announced_packet_limit_drops_the_poison_message(tmp_path):
    """faults: 15."""
    mosquitto = find_mosquitto()
    if mosquitto is None:
        pytest.skip("mosquitto is not installed: only it announces a packet limit")
    port = free_port()
    config = tmp_path / "small.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_packet_size 20000\n")
    a = Client(f"mqtt://127.0.0.1:{port}", "p/#", start=False)
    a.transport.publish("p/poison", bytes(100_000), qos=1)
    a.transport.publish("p/fine", b"fine", qos=1)
    running = subprocess.Popen([mosquitto, "-c", config], stderr=subprocess.DEVNULL)
    a.transport.start(a.events.put)
    try:
        assert a.wait(Connected).max_packet_bytes == 20_000
        with pytest.raises(ChannelError, match="at most 20000"):
            a.transport.publish("p/poison", bytes(100_000), qos=1)
        time.sleep(0.2)
        a.transport.publish("p/again", b"", qos=1)
        while a.wait(Received).topic != "p/again":
            pass
    finally:
        a.transport.stop()
        running.kill()
        running.wait()


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_development_broker_dies_with_its_parent(kind, tmp_path):
    require(kind)
    code = (
        "import pathlib, sys, time; from edge.coordinator.machine.broker import DevelopmentBroker; "
        "broker = DevelopmentBroker.start(pathlib.Path(sys.argv[1]), kind=sys.argv[2]); "
        "print(broker.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), kind], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    end_s = time.monotonic() + 5.0
    while alive(pid) and time.monotonic() < end_s:
        time.sleep(0.02)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
