"""What a service manager hears, on real datagram sockets; one that is not there, or does not read, disturbs nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from edge.agent.device.supervision import Supervisor


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_manager_hears_ready_alive_and_stopping(kind: str, tmp_path: Path) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@edgeloop-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if kind == "abstract" else address)
        manager.setblocking(False)
        supervisor = Supervisor(address, watchdog_s=30.0)
        supervisor.ready()
        for now_s in range(100, 161):  # a minute, the loop goes round each second
            supervisor.alive(float(now_s))
        supervisor.stopping()
        heard = []
        while True:
            try:
                heard.append(manager.recv(4096))
            except BlockingIOError:
                break
    assert heard == [b"READY=1", *[b"WATCHDOG=1"] * 7, b"STOPPING=1"]


def test_nobody_and_one_that_does_not_read_disturb_nothing(tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "none"), "@nobody", "/dev/null", "x" * 300):
        supervisor = Supervisor(address, watchdog_s=1e-9)
        supervisor.ready()
        supervisor.alive(0.0)
        supervisor.stopping()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        supervisor = Supervisor(str(tmp_path / "deaf"), watchdog_s=1e-9)
        for now_s in range(1000):  # far more than the queue of a socket takes
            supervisor.alive(float(now_s))


def test_without_a_watchdog_only_start_and_end_are_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        supervisor = Supervisor(str(tmp_path / "notify"))
        supervisor.alive(1.0)
        supervisor.ready()
        assert manager.recv(4096) == b"READY=1"
