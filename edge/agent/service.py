"""The agent as a process: one loop owns the model; broker connection and local applications put events on its queue.

The door for clock, threads and signals. Everything that decides is in `edge.agent.core`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import socket
import socketserver
import stat
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from edge.agent.checkpoints import Seals
from edge.agent.config import AgentConfig
from edge.agent.core import AgentCore
from edge.agent.models import Models
from edge.agent.supervision import Supervisor
from edge.agent.vetting import Trust
from edge.agent.wire import MAX_LINE_BYTES, decode_request, encode_line
from edge.channel import topics
from edge.channel.transport import Connected, Disconnected, Publish, Transport, TransportEvent, publish_all
from edge.contract.clock import Now
from edge.contract.errors import ConfigError, EdgeError

log = logging.getLogger("edge.agent")

MAX_QUEUED = 4096
WILL_DELAY_S = 30
# Events that are no trouble.
_GOOD_NEWS = ("believed",)


@dataclass(slots=True)
class _Call:
    """A local request and the place where its answer is awaited."""

    line: bytes
    answer: queue.SimpleQueue[dict[str, Any]] = field(default_factory=queue.SimpleQueue)


def _free(path: Path) -> None:
    """Take away the socket of an agent that was killed, and nothing else.

    Raises:
        ConfigError: Something else is there, or another program listens.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"cannot listen on {path}: there is something else that is no socket; name another one")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(str(path))
        raise ConfigError(f"cannot listen on {path}: another program listens there; name another one with --socket")
    except (FileNotFoundError, NotADirectoryError):
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError as exc:
        raise ConfigError(f"cannot listen on {path}: {exc.strerror or exc}") from exc


def now() -> Now:
    """The time as the core wants it."""
    return Now(time.monotonic(), time.time_ns() // 1_000_000)


def _trust(config: AgentConfig) -> Trust | None:
    """What proves releases, where this device was given a root.

    Raises:
        ConfigError: It cannot be used, or the packages for it are not installed.
    """
    if config.trust_root is None:
        return None
    try:
        from edge.channel.updates import Trust as Proof
    except ImportError as exc:
        raise ConfigError(f"--trust: {exc.name} is not installed: pip install 'edgeloop[signed]'") from exc
    try:
        root = config.trust_root.read_bytes()
    except OSError as exc:
        raise ConfigError(f"--trust {config.trust_root} cannot be read: {exc.strerror}") from exc
    return Proof(config.state_dir / "trust", root, fleet=config.fleet, device=config.device)


def _seals(config: AgentConfig) -> Seals:
    """Keys for checkpoints.

    Raises:
        ConfigError: They cannot be used.
    """
    try:
        return Seals.of(config)
    except OSError as exc:
        raise ConfigError(f"the folder {config.state_dir} cannot be written: {exc.strerror}") from exc


class AgentService:
    """Runs one agent until it is stopped.

    Args:
        config: Its options.
        transport: To the broker; None to work alone.
        supervisor: Is told that it is ready, alive and stopping; None for nobody.
    """

    def __init__(self, config: AgentConfig, transport: Transport | None, supervisor: Supervisor | None = None) -> None:
        self._config = config
        self._supervisor = supervisor or Supervisor()
        self._models = Models(config)
        try:
            self._core = AgentCore(config, self._models, trust=_trust(config), seals=_seals(config))
        except BaseException:
            self._models.close()
            raise
        self._transport = transport
        self._stopping = False
        self._queue: queue.Queue[_Call | TransportEvent] = queue.Queue(MAX_QUEUED)

    def run(self, socket_path: Path | None, *, stdin: bool = False) -> None:
        """Serve until SIGTERM, SIGINT or, with `stdin`, the end of standard input; then save and leave.

        Args:
            socket_path: Unix socket for local applications, or None.
            stdin: Also read requests from standard input and answer on standard output.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        try:
            with contextlib.ExitStack() as stack:
                if socket_path is not None:
                    stack.enter_context(self._listening(socket_path))
                if self._transport is not None:
                    self._start(self._transport)
                if stdin:
                    threading.Thread(target=self._read_stdin, daemon=True).start()
                for name, status in self._core.status()["models"].items():
                    log.info("ready: %s, learner %s, on %s", name, status["learner"], status["provider"]["name"])
                self._supervisor.ready()
                self._loop()
        finally:
            self._supervisor.stopping()
            self._leave()

    def _start(self, transport: Transport) -> None:
        self._set_will(transport)
        transport.subscribe(topics.device_filters(self._config.fleet, self._config.device))
        transport.subscribe([(topics.own_conn(self._config.fleet, self._config.device), 1)])
        transport.start(self._put)

    def _set_will(self, transport: Transport) -> None:
        will = self._core.will(now())
        transport.set_will(will.topic, will.payload, will.qos, will.retain, WILL_DELAY_S)

    def _put(self, item: _Call | TransportEvent) -> None:
        # A full queue makes the network thread wait, and with it the broker: that is the flow control.
        self._queue.put(item)

    def _stop(self) -> None:
        # Only a flag: a signal may come while this very thread holds the queue's lock. The loop looks every second.
        self._stopping = True

    def _loop(self) -> None:
        while not self._stopping:
            self._supervisor.alive(time.monotonic())
            wait_s = min(max(self._core.next_deadline_s - time.monotonic(), 0.0), 1.0)
            if self._core.busy:
                wait_s = min(wait_s, 0.05)
            with contextlib.suppress(queue.Empty):
                item: _Call | TransportEvent | None = self._queue.get(timeout=wait_s)
                # What came meanwhile is taken in one go, before anything is sent.
                while item is not None:
                    self._take(item)
                    item = None if self._queue.empty() else self._queue.get_nowait()
            try:
                self._perform(self._core.tick(now()))
                self._log_news()
            except Exception:
                # Predictions must go on whatever is wrong with the disk or a release.
                log.exception("the agent goes on after an error")
                time.sleep(1.0)

    def _log_news(self) -> None:
        """What happened is said here, too: there may be no broker to tell."""
        for name, kind, text in self._core.news:
            level = logging.INFO if kind in _GOOD_NEWS else logging.WARNING
            log.log(level, "%s%s: %s", name and f"{name}: ", kind, text)
        self._core.news.clear()

    def _take(self, item: _Call | TransportEvent) -> None:
        if not isinstance(item, _Call):
            if isinstance(item, Disconnected):
                log.warning("no broker: %s; inference and learning go on, trying again", item.reason)
            try:
                self._core.transport(item, now())
            except Exception:
                log.exception("a message could not be handled; the agent goes on")
            if isinstance(item, Connected):
                log.info("connected")
                assert self._transport is not None
                self._set_will(self._transport)  # for the connection after this one
            return
        try:
            item.answer.put(self._core.request(decode_request(item.line), now()))
        except EdgeError as exc:
            item.answer.put({"error": str(exc)})
        except Exception:
            log.exception("a request failed")
            item.answer.put({"error": "the request failed inside the agent; its log says why"})

    def _perform(self, effects: list[Publish]) -> None:
        if self._transport is not None:
            publish_all(self._transport, effects)

    def _leave(self) -> None:
        if self._transport is not None:
            self._perform(self._core.farewell(now()))
            self._transport.stop()
        self._log_news()
        self._core.close(now())
        self._models.close()

    # Local applications

    @contextlib.contextmanager
    def _listening(self, path: Path) -> Iterator[None]:
        service = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                service._serve(cast("BinaryIO", self.rfile), cast("BinaryIO", self.wfile))  # a part of this class

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        _free(path)
        try:
            server = Server(str(path), Handler)
        except OSError as exc:
            raise ConfigError(f"cannot listen on {path}: {exc.strerror or exc}") from exc
        path.chmod(0o600)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            path.unlink(missing_ok=True)

    def _serve(self, lines: BinaryIO, answers: BinaryIO) -> None:
        """Answer the requests of one connection in order."""
        with contextlib.suppress(OSError, socket.timeout, ValueError):
            while line := lines.readline(MAX_LINE_BYTES + 1):
                if len(line) > MAX_LINE_BYTES:
                    answers.write(encode_line({"error": f"a line is at most {MAX_LINE_BYTES} bytes long"}))
                    return
                call = _Call(line)
                self._put(call)
                answers.write(encode_line(call.answer.get()))
                answers.flush()

    def _read_stdin(self) -> None:
        self._serve(sys.stdin.buffer, sys.stdout.buffer)
        self._stop()
