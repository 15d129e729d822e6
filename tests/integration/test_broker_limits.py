"""faults: 13, 14, 15, 59. Limits and access rules of a real mosquitto that it does not announce."""

from __future__ import annotations

import queue
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.channel.mqtt import BrokerUrl, MqttTransport
from edge.channel.transport import Connected, Disconnected, Received, Refused, TransportEvent
from edge.contract.errors import ChannelError
from edge.coordinator.machine.broker import find_mosquitto
from tests.support.ports import free_port

pytestmark = [pytest.mark.broker, pytest.mark.timeout(60)]
Start = Callable[..., int]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Start]:
    """Start mosquitto with more lines in its configuration; gives its port."""
    mosquitto = find_mosquitto()
    if mosquitto is None:
        pytest.skip("mosquitto is not installed: only it has such rules here")
    running: list[subprocess.Popen[bytes]] = []

    def start(*lines: str) -> int:
        port = free_port()
        config = tmp_path / "broker.conf"
        config.write_text("\n".join([f"listener {port} 127.0.0.1", "allow_anonymous true", "user root", *lines, ""]))
        running.append(subprocess.Popen([mosquitto, "-c", str(config)], stderr=subprocess.DEVNULL))
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                break
        return port

    yield start
    for process in running:
        process.kill()
        process.wait()


class Client:
    def __init__(self, url: str, name: str, *filters: str) -> None:
        self.events: queue.Queue[TransportEvent] = queue.Queue()
        self.transport = MqttTransport(BrokerUrl.parse(url), name, True)
        self.transport.subscribe([(each, 1) for each in filters])
        self.transport.start(self.events.put)

    def wait(self, kind: type[TransportEvent], timeout_s: float = 20.0) -> TransportEvent:
        end_s = time.monotonic() + timeout_s
        while (left_s := end_s - time.monotonic()) > 0:
            event = self.events.get(timeout=left_s)
            if isinstance(event, kind):
                return event
        raise AssertionError(f"no {kind.__name__}")


def test_a_limit_that_ends_the_connection_is_found_and_what_is_small_arrives(broker: Start) -> None:
    client = Client(f"mqtt://127.0.0.1:{broker('message_size_limit 20000')}", "one", "t/#")
    try:
        client.wait(Connected)
        client.transport.publish("t/large", bytes(32_000), qos=1)
        client.transport.publish("t/small", b"1", qos=1)
        refused = client.wait(Refused)
        assert isinstance(refused, Refused)
        assert refused.topic == "t/large"
        connected = client.wait(Connected)
        assert isinstance(connected, Connected)
        assert connected.max_packet_bytes < 17_000
        client.transport.publish("t/again", b"2", qos=1)
        while (event := client.wait(Received)) and getattr(event, "topic", "") != "t/again":
            pass
        with pytest.raises(ChannelError, match="at most"):
            client.transport.publish("t/large", bytes(32_000), qos=1)
        client.transport.publish("t/half", bytes(15_900), qos=1)
        while (event := client.wait(Received)) and getattr(event, "topic", "") != "t/half":
            pass
        time.sleep(1.0)
        assert not any(isinstance(each, Disconnected) for each in list(client.events.queue))
    finally:
        client.transport.stop()


def test_what_access_rules_deny_is_an_event_with_the_reason_of_the_broker(broker: Start, tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("user one\ntopic readwrite t/good\n")
    client = Client(f"mqtt://one:x@127.0.0.1:{broker(f'acl_file {rules}')}", "one", "t/good")
    try:
        client.wait(Connected)
        client.transport.publish("t/bad", b"", qos=1)
        refused = client.wait(Refused)
        assert refused == Refused(action="publish", topic="t/bad", reason="Not authorized")
        client.transport.publish("t/good", b"1", qos=1)
        client.wait(Received)
        assert not any(isinstance(each, Refused) for each in list(client.events.queue))
    finally:
        client.transport.stop()
