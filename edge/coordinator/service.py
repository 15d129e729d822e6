"""The coordinator as a process: one loop decides; the broker connection and the HTTP API put work on its queue.

The door for clock, threads and signals. Everything that decides is in `edge.coordinator.core`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from edge.channel import topics
from edge.channel.transport import Connected, Disconnected, Transport, TransportEvent, publish_all
from edge.contract.clock import Now
from edge.contract.errors import ConfigError
from edge.contract.files import lock_folder
from edge.coordinator.api import build_api
from edge.coordinator.artifacts import ArtifactStore
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.store import Store

log = logging.getLogger("edge.coordinator")

MAX_QUEUED = 20_000
CALL_TIMEOUT_S = 60.0


@dataclass(slots=True)
class _Call:
    """Work for the coordinator's thread, and the place where its result is awaited."""

    function: Callable[[CoordinatorCore, Now], Any]
    result: Future[Any] = field(default_factory=Future)


def now() -> Now:
    """The time as the core wants it."""
    return Now(time.monotonic(), time.time_ns() // 1_000_000)


class CoordinatorService:
    """Runs one coordinator until it is stopped.

    Args:
        config: Its options.
        transport: To the broker.

    Raises:
        ConfigError: The data folder cannot be used, or another coordinator has it.
    """

    def __init__(self, config: CoordinatorConfig, transport: Transport) -> None:
        self._config = config
        self._transport = transport
        self._stopping = self._failed = False
        self._lock = lock_folder(config.data_dir)
        self._store = Store(config.data_dir / "coordinator.sqlite")
        self.core = CoordinatorCore(
            config,
            self._store,
            ArtifactStore(config.data_dir / "artifacts"),
            np.random.default_rng(secrets.randbits(128)),
        )
        self._queue: queue.Queue[_Call | TransportEvent] = queue.Queue(MAX_QUEUED)

    def register_bundle(self, path: Path) -> None:
        """Know a bundle, so that contributions of devices that came with it can be merged."""
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise ConfigError(f"--bundle {path} cannot be read: {exc.strerror}") from exc
        self.core.add_artifact(data, path)

    def run(self, host: str, port: int, token: str | None) -> None:
        """Serve until SIGTERM or SIGINT.

        Args:
            host: Address of the HTTP API.
            port: Its port.
            token: Asked of every HTTP request, or None.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        api = build_api(self._store, self._submit, self._config.fleet, token)
        server = uvicorn.Server(uvicorn.Config(api, host=host, port=port, log_level="warning", lifespan="off"))
        web = threading.Thread(target=self._serve, args=(server,), daemon=True)
        web.start()
        self._transport.subscribe(topics.coordinator_filters(self._config.fleet))
        self._transport.start(self._queue.put)
        log.info("fleet %s, http://%s:%d", self._config.fleet, host, port)
        try:
            self._loop()
        finally:
            server.should_exit = True
            self._transport.stop()
            web.join(5.0)
            self._store.close()
            os.close(self._lock)
        if self._failed:
            raise ConfigError(f"the HTTP API could not listen on {host}:{port}; choose another port with --http")

    def _serve(self, server: uvicorn.Server) -> None:
        try:
            server.run()
        except SystemExit:  # uvicorn leaves like this when the port is taken
            log.error("the HTTP API could not start; is the port in use?")  # its own log has the cause
            self._failed = True
            self._stop()

    def _submit(self, function: Callable[[CoordinatorCore, Now], Any]) -> Any:
        call = _Call(function)
        self._queue.put(call, timeout=CALL_TIMEOUT_S)
        return call.result.result(CALL_TIMEOUT_S)

    def _stop(self) -> None:
        # Only a flag: a signal may come while this very thread holds the queue's lock. The loop looks every second.
        self._stopping = True

    def _loop(self) -> None:
        while not self._stopping:
            wait_s = min(max(self.core.next_deadline_s - time.monotonic(), 0.0), 1.0)
            with contextlib.suppress(queue.Empty):
                item: _Call | TransportEvent | None = self._queue.get(timeout=wait_s)
                taken = 0
                while item is not None:
                    self._take(item)
                    taken += 1
                    # A busy fleet must not keep timers from running.
                    item = None if self._queue.empty() or taken >= 500 else self._queue.get_nowait()
            publish_all(self._transport, self.core.tick(now()))

    def _take(self, item: _Call | TransportEvent) -> None:
        if isinstance(item, _Call):
            try:
                item.result.set_result(item.function(self.core, now()))
            except Exception as exc:  # noqa: BLE001  # it is raised again where the result is awaited
                item.result.set_exception(exc)
            return
        if isinstance(item, Disconnected):
            log.warning("no broker: %s; trying again", item.reason)
        elif isinstance(item, Connected):
            log.info("connected to the broker")
        try:
            self.core.transport(item, now())
        except Exception:
            log.exception("a message could not be handled; the coordinator goes on")
