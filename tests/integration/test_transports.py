"""WebSockets, and certificates that are exchanged while a connection runs, against mosquitto (fault 19)."""

from __future__ import annotations

import datetime
import ipaddress
import queue
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.channel import certificates, mqtt
from edge.channel.certificates import Certificates
from edge.channel.mqtt import BrokerUrl, MqttTransport
from edge.channel.transport import Connected, Disconnected, Received
from edge.contract.errors import ConfigError
from edge.coordinator.machine.broker import find_mosquitto
from tests.support.ports import free_port

pytestmark = [pytest.mark.broker, pytest.mark.timeout(90)]


class Broker:
    """Mosquitto with a configuration of its own; its log tells who came."""

    def __init__(self, folder: Path, lines: list[str]) -> None:
        program = find_mosquitto()
        if program is None:
            pytest.skip("mosquitto is not installed: `apt install mosquitto`")
        self.port, self.log = free_port(), folder / "mosquitto.log"
        config = folder / "mosquitto.conf"
        # The second one: mosquitto 2.0.11 counts no WebSocket listener, and does not start with nothing else.
        text = ["user root", f"listener {self.port} 127.0.0.1", *lines, f"listener {free_port()} 127.0.0.1"]
        text += [f"log_dest file {self.log}", "log_type all"]
        config.write_text("\n".join(text) + "\n")
        self.process = subprocess.Popen([program, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end_s = time.monotonic() + 10
        while time.monotonic() < end_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("mosquitto did not start")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def stack() -> Iterator[list[Broker | MqttTransport]]:
    """What is stopped at the end, the last first."""
    found: list[Broker | MqttTransport] = []
    yield found
    for each in reversed(found):
        each.stop()


def wait(events: queue.Queue[object], kind: type, timeout_s: float = 20.0) -> object:
    end_s = time.monotonic() + timeout_s
    while (left_s := end_s - time.monotonic()) > 0:
        try:
            event = events.get(timeout=left_s)
        except queue.Empty:
            break
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__} within {timeout_s} s")


def connected(url: str, stack: list[Broker | MqttTransport]) -> tuple[MqttTransport, queue.Queue[object]]:
    events: queue.Queue[object] = queue.Queue()
    transport = MqttTransport(BrokerUrl.parse(url), "one", True)
    stack.append(transport)
    transport.subscribe([("echo", 1)])
    transport.start(events.put)
    wait(events, Connected)
    return transport, events


def test_messages_of_any_size_go_over_a_websocket(tmp_path: Path, stack: list[Broker | MqttTransport]) -> None:
    broker = Broker(tmp_path, ["protocol websockets", "allow_anonymous true"])
    stack.append(broker)
    transport, events = connected(f"ws://127.0.0.1:{broker.port}/mqtt", stack)
    time.sleep(0.15)
    began_s = time.perf_counter()
    for size in (0, 1, 125, 126, 65_535, 65_536):
        assert transport.publish("echo", bytes([size % 251]) * size, qos=1)
        found = wait(events, Received)
        assert isinstance(found, Received)
        assert found.payload == bytes([size % 251]) * size
    assert time.perf_counter() - began_s < 20.0
    broker.process.kill()
    broker.process.wait()
    wait(events, Disconnected)


def certificate(
    folder: Path, name: str, days: int, issuer: tuple[object, object] | None = None
) -> tuple[object, object]:
    """A key and a certificate as PEM files `name`.key and `name`.pem; self-signed without an issuer."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    by, by_key = (subject, key) if issuer is None else issuer
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)  # type: ignore[arg-type]  # what this function returned
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(by_key, hashes.SHA256())  # type: ignore[arg-type]  # as above
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (folder / f"{name}.pem").write_bytes(built.public_bytes(pem))
    return subject, key


def test_a_renewed_certificate_is_used_without_a_restart(
    tmp_path: Path, stack: list[Broker | MqttTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that logs the name in the certificate: the old one, then, after the files changed, the new one."""
    monkeypatch.setattr(certificates, "LOOK_S", 0.2)
    monkeypatch.setattr(mqtt, "LOOK_S", 0.2)
    ca = certificate(tmp_path, "ca", 10)
    for name in ("broker", "first", "second"):
        certificate(tmp_path, name, 5, ca)
    use = tmp_path / "device.pem", tmp_path / "device.key"
    for source, target in zip(("first.pem", "first.key"), use, strict=True):
        target.write_bytes((tmp_path / source).read_bytes())
    lines = [f"cafile {tmp_path}/ca.pem", f"certfile {tmp_path}/broker.pem", f"keyfile {tmp_path}/broker.key"]
    broker = Broker(tmp_path, [*lines, "require_certificate true", "use_identity_as_username true"])
    stack.append(broker)
    url = f"mqtts://127.0.0.1:{broker.port}?ca={tmp_path}/ca.pem&cert={use[0]}&key={use[1]}"
    transport, events = connected(url, stack)
    assert "u'first'" in broker.log.read_text()
    use[0].write_bytes((tmp_path / "second.pem").read_bytes())  # half of the change: it fits no key
    assert transport._tls is not None
    end_s = time.monotonic() + 10.0
    while not transport._tls.trouble and time.monotonic() < end_s:
        time.sleep(0.05)
    assert "replace them" in transport._tls.trouble
    assert transport._connected
    use[1].write_bytes((tmp_path / "second.key").read_bytes())
    said = wait(events, Disconnected)
    assert isinstance(said, Disconnected)
    assert said.reason.startswith("newer certificates")
    wait(events, Connected)
    assert "u'second'" in broker.log.read_text()


def test_files_are_looked_at_now_and_then_and_before_each_connection(tmp_path: Path) -> None:
    ca = certificate(tmp_path, "ca", 10)
    certificate(tmp_path, "one", 5, ca)
    found = Certificates(
        BrokerUrl.parse(f"mqtts://h?ca={tmp_path}/ca.pem&cert={tmp_path}/one.pem&key={tmp_path}/one.key")
    )
    first = found.context
    assert not found.poll(0.0)
    certificate(tmp_path, "one", 5, ca)
    assert not found.poll(10.0), "not yet"
    assert found.poll(10.0, at_once=True)
    assert found.context is not first
    (tmp_path / "one.pem").unlink()
    assert not found.poll(60.0)
    assert found.trouble
    certificate(tmp_path, "one", 5, ca)
    assert found.poll(100.0)
    assert found.trouble == ""
    (tmp_path / "bad").write_text("no certificate")
    with pytest.raises(ConfigError, match="replace them"):
        Certificates(BrokerUrl.parse(f"mqtts://h?ca={tmp_path}/bad"))
