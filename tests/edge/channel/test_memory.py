"""The in-process broker does what the real ones do; the same handful of behaviours is tested on those too."""

import random

import pytest

from edge.channel.memory import Faults, MemoryBroker, MemoryTransport, matches
from edge.channel.transport import Connected, Disconnected, Received, Transport
from edge.contract.errors import ChannelError


class Client:
    """A transport with everything that it saw."""

    def __init__(self, broker: MemoryBroker, name: str, *filters: str) -> None:
        self.events: list[object] = []
        self.transport: Transport = MemoryTransport(broker, name)
        self.transport.subscribe([(f, 1) for f in filters])
        self.transport.start(self.events.append)

    @property
    def received(self) -> list[tuple[str, bytes, bool]]:
        return [(e.topic, e.payload, e.retained) for e in self.events if isinstance(e, Received)]


@pytest.fixture
def broker():
    return MemoryBroker()


@pytest.mark.parametrize(
    ("wanted", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("#", "a/b", True),
        ("a/+/c", "a/b/d", False),
        ("+/+", "a/b/c", False),
        ("a/b/#", "a/c", False),
    ],
)
def test_wildcards(wanted, topic, expected):
    assert matches(wanted, topic) is expected


def test_nothing_moves_before_deliver(broker):
    a, b = Client(broker, "a"), Client(broker, "b", "x/#")
    a.transport.publish("x/1", b"hello")
    assert (a.events, b.events) == ([], [])
    broker.deliver()
    assert b.received == [("x/1", b"hello", False)]
    assert isinstance(b.events[0], Connected)


def test_retained_messages_greet_a_new_subscriber_until_cleared(broker):
    a = Client(broker, "a")
    a.transport.publish("x", b"1", retain=True)
    late = Client(broker, "b", "x")
    broker.settle()
    assert late.received == [("x", b"1", True)]
    a.transport.publish("x", b"", retain=True)
    later = Client(broker, "c", "x")
    broker.settle()
    assert later.received == []


def test_will_speaks_when_cut_off_and_not_when_stopped(broker):
    a, b, watcher = Client(broker, "a"), Client(broker, "b"), Client(broker, "w", "gone/#")
    for client, name in ((a, "a"), (b, "b")):
        client.transport.set_will(f"gone/{name}", b"!", 1, False, 0)
        broker.disconnect(name)  # the connection that runs began without one
        broker.connect(name)
    broker.disconnect("a")
    b.transport.stop()
    broker.settle()
    assert watcher.received == [("gone/a", b"!", False)]
    assert isinstance(a.events[-1], Disconnected)


def test_offline_keeps_qos_1_and_refuses_qos_0_and_comes_back(broker):
    a, b = Client(broker, "a"), Client(broker, "b", "x")
    broker.disconnect("a")
    assert a.transport.publish("x", b"0") is False
    assert a.transport.publish("x", b"1", qos=1) is True
    broker.settle()
    assert b.received == []
    broker.connect("a")
    broker.settle()
    assert b.received == [("x", b"1", False)]


def test_what_was_under_way_to_a_lost_connection_is_lost(broker):
    a, b = Client(broker, "a"), Client(broker, "b", "x")
    broker.settle()
    a.transport.publish("x", b"1", qos=1)
    broker.disconnect("b")
    broker.connect("b")
    broker.settle()
    assert b.received == []


def test_same_client_id_takes_over(broker):
    first, second = Client(broker, "a"), Client(broker, "a", "x")
    second.transport.publish("x", b"1")
    broker.settle()
    assert isinstance(first.events[-1], Disconnected)
    assert second.received == [("x", b"1", False)]


def test_faults_drop_qos_0_only_and_repeat_and_reorder(broker):
    a, b = Client(broker, "a"), Client(broker, "b", "x")
    broker.settle()
    broker.fault = Faults(rng=random.Random(1), drop=1.0)
    a.transport.publish("x", b"0")
    a.transport.publish("x", b"1", qos=1)
    broker.settle()
    assert [payload for _, payload, _ in b.received] == [b"1"]
    broker.fault = Faults(rng=random.Random(1), repeat=0.5, reorder=0.5)
    b.events.clear()
    for n in range(50):
        a.transport.publish("x", bytes([n]), qos=1)
    broker.settle()
    numbers = [payload[0] for _, payload, _ in b.received]
    assert set(numbers) == set(range(50))
    assert len(numbers) > 50
    assert numbers != sorted(numbers)


def test_a_failing_handler_ends_nothing(broker, caplog):
    transport = MemoryTransport(broker, "a")
    transport.subscribe([("x", 1)])
    transport.start(lambda event: 1 / 0)
    transport.publish("x", b"")
    broker.settle()
    assert caplog.text.count("ZeroDivisionError") == 2
    assert transport.connected


def test_refuses_what_a_broker_would_refuse(broker):
    with pytest.raises(ChannelError, match="expected a packet of at most"):
        Client(broker, "a").transport.publish("x", bytes(300_000))
