"""A coordinator that ``edge-fleet`` reaches: its real HTTP application; only the wire between them is left out."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge.channel.transport import Connected
from edge.contract.clock import Now
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.http.api import build_api
from edge.coordinator.machine.broker import find_mosquitto
from edge.coordinator.releases.artifacts import ArtifactStore
from tests.support.fleet import store_in
from tests.support.ports import free_port

NOW = Now(1000.0, 1_800_000_000_000)


@pytest.fixture
def moment() -> Now:
    """The coordinator's time."""
    return NOW


@pytest.fixture
def core(
    tmp_path: Path, digits_bundle: Path, monkeypatch: pytest.MonkeyPatch, moment: Now
) -> Iterator[CoordinatorCore]:
    """A coordinator that the command line reaches."""
    config = CoordinatorConfig(fleet="lab", name="c", data_dir=tmp_path, auto_merge=False)
    store = store_in(tmp_path / "db.sqlite")
    made = CoordinatorCore(config, store, ArtifactStore(tmp_path / "artifacts"))
    made.transport(Connected(session_present=False, max_packet_bytes=1 << 20), moment)
    made.add_artifact(digits_bundle.read_bytes(), digits_bundle)
    api = build_api(
        store,
        lambda function: function(made, moment),
        "lab",
        None,
        clock=lambda: moment,
        line=lambda: made.dialogue.line.state,
    )

    loop = asyncio.Runner()

    class Client:
        def __init__(self, headers: dict[str, str] | None = None, **_: object) -> None:
            self.headers = headers or {}

        def close(self) -> None:
            pass

        def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
            async def ask() -> httpx.Response:
                async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://localhost") as client:
                    headers = self.headers | arguments.pop("headers", {})
                    return await client.request(method, path, headers=headers, **arguments)

            return loop.run(ask())

    monkeypatch.setattr(httpx, "Client", Client)
    yield made
    loop.close()
    store.close()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Start mosquitto with these lines in its configuration; gives its port."""
    program = find_mosquitto()
    if program is None:
        pytest.skip("mosquitto is not installed: only it has such rules here")
    running: list[subprocess.Popen[bytes]] = []

    def start(*lines: str) -> int:
        port = free_port()
        config = tmp_path / f"broker{port}.conf"
        config.write_text("\n".join([f"listener {port} 127.0.0.1", "user root", *lines, ""]))
        running.append(subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL))
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        return port

    yield start
    for process in running:
        process.kill()
        process.wait()
