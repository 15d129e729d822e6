"""Faults of the device and of its line that no other test plays; docs/faults.md says where each number is tested."""

from __future__ import annotations

import hashlib
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from edge.agent.model.host import ModelHost
from edge.agent.model.on_device_model import OnDeviceModel
from edge.agent.slots.fetching import Fetch
from edge.agent.slots.slots import Slots
from edge.channel.messages import Desired
from edge.channel.mqtt import BrokerUrl, MqttTransport
from edge.channel.transfer import chunk_digests, index_digest, serve
from edge.channel.transport import Connected, Disconnected
from edge.coordinator.machine.broker import DevelopmentBroker, find_mosquitto
from tests.support.brokers import Broker, require
from tests.support.fleet import SimulatedFleet

ROOT = Path(__file__).parents[2]


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


@contextmanager
def transport_to(url: str, **options: int) -> Iterator[tuple[MqttTransport, queue.Queue[object]]]:
    events: queue.Queue[object] = queue.Queue()
    transport = MqttTransport(BrokerUrl.parse(url), "one", True, **options)
    transport.start(events.put)
    try:
        yield transport, events
    finally:
        transport.stop()


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port on which each connection is given to a function, in a thread of its own."""
    server = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        accepting.join()
        for thread in threads:
            thread.join()


def test_a_name_that_is_not_found_and_a_portal_instead_of_a_broker_are_said_and_tried_again() -> None:
    """faults: 6."""
    with transport_to("mqtt://no-such-host.invalid") as (transport, events):
        said = wait(events, Disconnected)
        assert isinstance(said, Disconnected)
        assert "not found" in said.reason
        assert transport.alive

    def portal(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://login/\r\n\r\n")
        connection.close()

    with listening(portal) as port, transport_to(f"mqtt://127.0.0.1:{port}") as (transport, events):
        said = wait(events, Disconnected)
        assert isinstance(said, Disconnected)
        assert f"127.0.0.1:{port}" in said.reason
        assert transport.alive


@pytest.mark.broker
@pytest.mark.timeout(60)
def test_a_line_that_swallows_everything_is_found_and_left(tmp_path: Path) -> None:
    """faults: 5, 7. Half open, or behind an address translation that forgot us: no word comes, no end either."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: `apt install mosquitto`")
    swallow, first = threading.Event(), threading.Event()
    with DevelopmentBroker.start(tmp_path, kind="mosquitto") as broker:
        port = BrokerUrl.parse(broker.url).port

        def forward(connection: socket.socket) -> None:
            is_first = not first.is_set()
            first.set()
            with connection, socket.create_connection(("127.0.0.1", port)) as behind:

                def pump(source: socket.socket, target: socket.socket) -> None:
                    while data := _received(source):
                        if not (is_first and swallow.is_set()):
                            target.sendall(data)
                    for each in (source, target):
                        with suppress(OSError):
                            each.shutdown(socket.SHUT_RDWR)

                up = threading.Thread(target=pump, args=(connection, behind))
                up.start()
                pump(behind, connection)
                up.join()

        with listening(forward) as front, transport_to(f"mqtt://127.0.0.1:{front}", keepalive_s=1) as (_, events):
            wait(events, Connected)
            swallow.set()
            wait(events, Disconnected)
            wait(events, Connected)


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(65536)
    except OSError:
        return b""


def test_a_bundle_with_which_the_agent_does_not_stay_up_is_given_up(
    tmp_path: Path, digits_bundle: Path, other_bundle: Path
) -> None:
    """faults: 26."""
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False, probation_s=1000.0)
    try:
        fleet.run(2.0)
        own = fleet.agents["one"].host.model.bundle.digest
        assert fleet.coordinator is not None
        kept = fleet.coordinator.add_artifact(other_bundle.read_bytes(), other_bundle)
        fleet.coordinator.push(kept["digest"], "bundle", kept["backbone"], [], "test", fleet.now)
        fleet.until("on probation", lambda: str(fleet.agents["one"].model.deployment.state) == "probation")
        for start in range(4):
            fleet.crash_agent("one")
            agent = fleet.start_agent("one")
            assert (agent.host.model.bundle.digest == own) == (start == 3), start
        fleet.run(5.0)
        assert any("started 4 times" in row.detail for row in fleet.store.events.newest(20, name="rolled-back"))
        fleet.run(30.0)  # nor does the coordinator's wish bring it back
        assert agent.host.model.bundle.digest == own
    finally:
        fleet.close()


def pushed(fleet: SimulatedFleet, bundle: Path) -> int:
    assert fleet.coordinator is not None
    kept = fleet.coordinator.add_artifact(bundle.read_bytes(), bundle)
    return fleet.coordinator.push(kept["digest"], "bundle", kept["backbone"], [], "test", fleet.now).counter


class Killed(BaseException):
    """The system ran out of memory, and ended the process."""


def test_a_bundle_whose_opening_ends_the_agent_is_refused_and_one_that_finds_no_memory_too(
    tmp_path: Path, digits_bundle: Path, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """faults: 24. By the kernel, without a word; or by an error."""
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False)
    try:
        fleet.run(2.0)
        own = fleet.agents["one"].host.model.bundle.digest

        def ended(self: ModelHost, path: Path, state_dir: Path | None) -> None:
            raise Killed

        counter = pushed(fleet, other_bundle)
        for _ in range(3):
            with monkeypatch.context() as here:
                here.setattr(ModelHost, "_open", ended)
                with pytest.raises(Killed):
                    fleet.run(60.0)
            fleet.crash_agent("one")
            assert fleet.start_agent("one").host.model.bundle.digest == own
        fleet.until("refused", lambda: fleet.device("one").state == "refused")
        assert "ended 3 times" in fleet.device("one").state_detail
        fleet.teach("one", np.zeros((2, 1, 8, 8), np.float32), np.arange(2))

        opened = ModelHost._open

        def short(self: ModelHost, path: Path, state_dir: Path | None) -> OnDeviceModel:
            if state_dir is None:
                raise MemoryError
            return opened(self, path, state_dir)

        with monkeypatch.context() as here:
            here.setattr(ModelHost, "_open", short)
            later = pushed(fleet, other_bundle)
            fleet.until("refused again", lambda: fleet.device("one").state_release == later)
            fleet.until("refused again", lambda: fleet.device("one").state == "refused")
            assert "not enough memory" in fleet.device("one").state_detail
        # With memory the same bytes are taken.
        last = pushed(fleet, other_bundle)
        assert counter < later < last
        fleet.until("active", lambda: fleet.converged(last))
    finally:
        fleet.close()


def test_a_download_that_hardly_moves_is_an_alarm(tmp_path: Path) -> None:
    """faults: 9. Slow retrieval: a chunk in ten minutes."""
    data, chunk = bytes(range(256)) * 40, 1024
    index = chunk_digests(data, chunk)
    desired = Desired(
        release=1,
        kind="head",
        digest=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        chunk_size_bytes=chunk,
        index_digest=index_digest(index),
        backbone="",
        reason="",
        ts_ms=0,
    )
    fetch = Fetch(desired, Slots(tmp_path, "one"), {}, 0.0)

    def give(count: int, now_s: float) -> None:
        """Answer what was asked for last, with so many frames."""
        request, frames = fetch.requests[-1], []
        fetch.requests.clear()
        frames = list(serve(request, lambda at, n: data[at : at + n], len(data), chunk, index))
        for frame in frames[:count]:
            fetch.frame(frame, now_s)

    give(64, 1.0)  # the index
    told = []
    for turn in range(1, 6):
        fetch.poll(600.0 * turn - 1.0)
        give(1, 600.0 * turn - 0.5)
        fetch.poll(600.0 * turn + 1.0)
        told.append(fetch.slow)
        fetch.slow = ""
    assert all("1024 bytes" in each and "next to dead" in each for each in told), told
    for turn in range(6, 8):  # nobody who answers is another matter
        fetch.poll(600.0 * turn + 1.0)
        assert not fetch.slow
    while fetch.arrived is None:
        fetch.poll(1e5)
        give(64, 1e5)
    fetch.poll(2e5)
    assert not fetch.slow


@pytest.mark.broker
@pytest.mark.timeout(60)
def test_a_broker_that_has_moved_is_found_at_its_other_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """faults: 20. Without a restart, where both places were named; by a name that says another address it is, too."""
    require("mosquitto")
    monkeypatch.setattr("edge.channel.mqtt.random.uniform", lambda low, high: low)  # no need to wait for long
    first, second = (Broker("mosquitto", tmp_path / name) for name in ("first", "second"))
    with first, transport_to(f"{first.url},127.0.0.1:{second.port}") as (transport, events):
        wait(events, Connected)
        first.stop()
        with second:
            wait(events, Connected)
            assert transport.alive
        with first:  # and back
            wait(events, Connected)


def test_the_index_of_faults_names_tests_that_there_are() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*\|(.*)\|$", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == [*range(1, 61)]
    for number, told in rows:
        named = re.findall(r"`(tests/[^`:]+)(?:::(\w+))?`", told)
        assert named or "not" in told, number
        for path, function in named:
            text = (ROOT / path).read_text()
            assert not function or f"def {function}(" in text, (number, path, function)
