"""The agent as a process: one loop owns the model; broker connection and local applications put events on its queue.

While the loop waits and nothing is queued, a thread that wants samples answered takes the turn and runs the model
itself: handing over to the loop and back would cost two changes of threads, more than a small model takes.

The door for clock, threads and signals. Everything that decides is in `edge.agent.core`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import math
import os
import queue
import signal
import socket
import socketserver
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from edge.agent.config import AgentConfig, HttpOptions
from edge.agent.core import AgentCore
from edge.agent.device.supervision import Supervisor
from edge.agent.model.checkpoints import Seals
from edge.agent.model.company import Answered, Company, Job
from edge.agent.models import Models
from edge.agent.slots.states import SlotState
from edge.agent.wire import MAX_LINE_BYTES, decode_request, encode_line
from edge.channel import topics
from edge.channel.apart import Apart
from edge.channel.transport import Connected, Disconnected, Publish, Transport, TransportEvent, publish_all
from edge.channel.vetting import NotJudgedError
from edge.contract.clock import Now
from edge.contract.errors import ConfigError, EdgeError

if TYPE_CHECKING:  # a device without them does not pay for them
    from edge.agent.sources.payloads import Source
    from edge.agent.sources.sinks import Sink

log = logging.getLogger("edge.agent")

T = TypeVar("T")

MAX_QUEUED = 4096
SETTLED_S = 10.0
MAX_CONNECTIONS = 256  # to the socket: each is a file, and without files nothing is saved and no broker reached
_TOO_MANY = f"there are {MAX_CONNECTIONS} connections already: end the programs that hold them, or let them share one"
MAX_AT_ONCE = 256  # of what waits, before the core does what is due
WILL_DELAY_S = 30
# Events that are no trouble.
_GOOD_NEWS = ("believed", SlotState.PROBATION, SlotState.ACTIVE)


@dataclass(slots=True)
class _Call:
    """What a thread asks of the core, and the place where it awaits the answer, or the error."""

    work: Callable[[AgentCore, Now], Any] | Job
    answer: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)


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


def trust_of(root: Path | None, folder: Path, fleet: str, device: str) -> Apart | None:
    """What proves releases, where this device was given a root; whether that is one, `is_root` says.

    Args:
        root: The root document, of ``--trust``.
        folder: Where metadata are kept that were believed.
        fleet: Fleet id.
        device: Device id.

    Raises:
        ConfigError: The document cannot be read.
    """
    try:
        return None if root is None else Apart(folder, root.read_bytes(), fleet=fleet, device=device)
    except OSError as exc:
        raise ConfigError(f"--trust {root} cannot be read: {exc.strerror}") from exc


def is_root(trust: Apart, root: Path | None, timeout_s: float = 0.0) -> bool:
    """Whether the document of ``--trust`` was found to be one; see `Apart.check`.

    Raises:
        ConfigError: It is none, or the packages for it are not installed.
        NotJudgedError: Nobody can say so.
    """
    try:
        return trust.check(timeout_s)
    except NotJudgedError as exc:
        raise NotJudgedError(f"--trust {root}: {exc}") from exc
    except ConfigError as exc:
        raise ConfigError(f"--trust {root}: {exc}") from exc


def _seals(config: AgentConfig) -> Seals:
    """Keys for checkpoints.

    Raises:
        ConfigError: They cannot be used.
    """
    try:
        return Seals.of(config)
    except OSError as exc:
        raise ConfigError(f"the folder {config.state_dir} cannot be written: {exc.strerror}") from exc


def _told(outcome: T | Exception) -> T | Exception:
    """What whoever asked is told: the fault of the inside goes into the log."""
    if not isinstance(outcome, Exception) or isinstance(outcome, EdgeError):
        return outcome
    log.error("a request failed", exc_info=outcome)
    return EdgeError("the request failed inside the agent; its log says why")


def _give_memory_back() -> None:
    """What opening a model needed for a moment, to the system: glibc would keep it for ever."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in musl
    if trim is not None:
        gc.collect()
        trim(0)


def _given(outcome: T | Exception) -> T:
    """The answer; raises the error that it is."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


class AgentService:
    """Runs one agent until it is stopped.

    Args:
        config: Its options.
        transport: To the broker; None to work alone.
        supervisor: Is told that it is ready, alive and stopping; None for nobody.
        sources: Where samples come from beside the socket.
        sinks: Where the answers to those go.
    """

    def __init__(
        self,
        config: AgentConfig,
        transport: Transport | None,
        supervisor: Supervisor | None = None,
        *,
        sources: Sequence[Source] = (),
        sinks: Sequence[Sink] = (),
    ) -> None:
        self._config = config
        self._supervisor = supervisor or Supervisor()
        self._models = Models(config)
        try:
            self._unchecked = trust_of(config.trust_root, config.state_dir / "trust", config.fleet, config.device)
            self._core = AgentCore(config, self._models, trust=self._unchecked, seals=_seals(config))
        except BaseException:
            self._models.close()
            raise
        self._transport = transport
        self._stopping = False
        self._sources, self._sinks = sources, sinks
        self._company = Company(config.batch_ms, time.perf_counter)
        self._queue: queue.Queue[_Call | TransportEvent] = queue.Queue(MAX_QUEUED)
        # Whose turn it is with the core. The loop gives it away only while it waits: not before, and not at the end.
        self._turn = threading.Lock()
        self._turn.acquire()
        self._wants_turn = False  # the loop: then nobody takes it from under its nose

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
                if self._config.http is not None:
                    stack.enter_context(self._http(self._config.http))
                if self._transport is not None:
                    self._start(self._transport)
                if self._sources:
                    stack.enter_context(self._feeding())
                if stdin:
                    threading.Thread(target=self._read_stdin, daemon=True).start()
                for name, status in self._core.status()["models"].items():
                    learners = ", ".join(status.get("learners", ())) or "none"
                    log.info("ready: %s, learners %s, on %s", name, learners, status["provider"]["name"])
                _give_memory_back()
                self._supervisor.ready()
                self._loop()
        finally:
            log.info("stopping, and saving what was learned")
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
        settled_s = time.monotonic() + SETTLED_S
        while not self._stopping:
            if time.monotonic() >= settled_s:  # connected by now, and it has answered something
                settled_s = math.inf
                _give_memory_back()
            self._supervisor.alive(time.monotonic())
            self._check_root()
            wait_s = min(max(self._core.next_deadline_s - time.monotonic(), 0.0), 1.0)
            with contextlib.suppress(queue.Empty):
                items = [self._awaited(wait_s)]
                # What came meanwhile is taken in one go, before anything is sent.
                while len(items) < MAX_AT_ONCE and not self._queue.empty():
                    items.append(self._queue.get_nowait())
                self._take_all(items)
            try:
                self._perform(self._core.tick(now()))
                self._log_news()
            except Exception:
                # Predictions must go on whatever is wrong with the disk or a release.
                log.exception("the agent goes on after an error")
                time.sleep(1.0)

    def _check_root(self) -> None:
        """Whether the document of ``--trust`` is one: it is looked at while the agent answers already.

        Raises:
            ConfigError: It is none; nothing that this fleet releases could be taken.
        """
        try:
            if self._unchecked is None or not is_root(self._unchecked, self._config.trust_root):
                return
        except NotJudgedError as exc:
            log.warning("%s; it is looked at when there is a release", exc)
        self._unchecked = None

    def _awaited(self, wait_s: float) -> _Call | TransportEvent:
        """What comes next; while it waits, it is the turn of others."""
        self._turn.release()
        try:
            return self._queue.get(timeout=wait_s)
        finally:
            self._wants_turn = True
            self._turn.acquire()
            self._wants_turn = False

    def _log_news(self) -> None:
        """What happened is said here, too: there may be no broker to tell."""
        for name, kind, text in self._core.news:
            level = logging.INFO if kind in _GOOD_NEWS else logging.WARNING
            fields = {"model": name, "event": kind, "detail": text}
            log.log(level, "%s%s: %s", name and f"{name}: ", kind, text, extra={"fields": fields})
        self._core.news.clear()

    def _take_all(self, items: list[_Call | TransportEvent]) -> None:
        """In their order, but that samples which came together may be answered together."""
        jobs = [(item, item.work) for item in items if isinstance(item, _Call) and isinstance(item.work, Job)]
        if jobs:
            found = self._company.answer(self._core, [job for _, job in jobs], now())
            for (call, _), answer in zip(jobs, found, strict=True):
                call.answer.put(_told(answer))
        for item in items:
            if not isinstance(item, _Call):
                self._take(item)
            elif not isinstance(item.work, Job):
                try:
                    item.answer.put(item.work(self._core, now()))
                except Exception as exc:  # noqa: BLE001  # it is told to whoever asked
                    item.answer.put(_told(exc))

    def _take(self, event: TransportEvent) -> None:
        if isinstance(event, Disconnected):
            log.warning("no broker: %s; inference and learning go on, trying again", event.reason)
        try:
            self._core.transport(event, now())
        except Exception:
            log.exception("a message could not be handled; the agent goes on")
        if isinstance(event, Connected):
            log.info("connected")
            assert self._transport is not None
            self._set_will(self._transport)  # for the connection after this one

    # What other threads ask

    def ask(self, work: Callable[[AgentCore, Now], T]) -> T:
        """See `edge.agent.http.site.Agent.ask`."""
        found: T = self._asked(work)
        return found

    def infer(self, job: Job) -> Answered:
        """See `edge.agent.http.site.Agent.infer`. What comes of it beside the answer, the loop sees within a second."""
        found: Answered
        if self._wants_turn or not self._queue.empty() or not self._turn.acquire(blocking=False):
            found = self._asked(job)  # with all others that wait
            return found
        try:
            (outcome,) = self._company.answer(self._core, [job], now())
        finally:
            self._turn.release()
        found = _given(_told(outcome))
        return found

    def _asked(self, work: Callable[[AgentCore, Now], Any] | Job) -> Any:
        call = _Call(work)
        self._put(call)
        return _given(call.answer.get())

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
    def _feeding(self) -> Iterator[None]:
        """A thread for each source; the agent ends with a source that says so."""
        from edge.agent.sources.feeding import Feeding

        stop = threading.Event()

        def feed(source: Source) -> None:
            Feeding(source, self._sinks, self, now, self._config.device).run(stop)
            if source.ends_agent:
                self._stop()

        threads = [threading.Thread(target=feed, args=(source,), daemon=True) for source in self._sources]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            self._answer_waiting()
            for thread in threads:
                thread.join(2.0)
            for sink in self._sinks:
                sink.close()

    def _answer_waiting(self) -> None:
        """Let threads that wait for an answer go: none comes any more."""
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if isinstance(item, _Call):
                item.answer.put(EdgeError("the agent ends"))

    @contextlib.contextmanager
    def _http(self, options: HttpOptions) -> Iterator[None]:
        # Imported where it is wanted: a device without it does not pay for it.
        from edge.agent.http.guard import Guard
        from edge.agent.http.server import HttpServer
        from edge.agent.http.site import Site

        site = Site(self, Guard(token=options.token), f"http-{self._models.record.boot}")
        server = HttpServer((options.host, options.port), site, has_token=options.token is not None)
        server.start()
        log.info("HTTP: http://%s:%s/", f"[{options.host}]" if ":" in options.host else options.host, server.port)
        try:
            yield
        finally:
            server.stop()

    @contextlib.contextmanager
    def _listening(self, path: Path) -> Iterator[None]:
        service = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                service._serve(cast("BinaryIO", self.rfile), cast("BinaryIO", self.wfile))  # a part of this class

        free = threading.Semaphore(MAX_CONNECTIONS)

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            request_queue_size = 512  # connections at once; of more than 5, that it is by default, some are refused

            def service_actions(self) -> None:
                """Where somebody deleted the file, listen at another in its place: nobody could come in any more."""
                if path.exists():
                    return
                with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as again:
                    again.bind(str(path))
                    path.chmod(0o600)
                    again.listen(self.request_queue_size)
                    os.dup2(again.fileno(), self.fileno())
                    log.warning("%s was deleted, and is there again", path)

            def process_request(self, request: Any, client_address: Any) -> None:
                if free.acquire(blocking=False):
                    super().process_request(request, client_address)
                    return
                with contextlib.suppress(OSError):
                    request.send(encode_line({"error": _TOO_MANY}), socket.MSG_DONTWAIT)
                self.shutdown_request(request)

            def process_request_thread(self, request: Any, client_address: Any) -> None:
                try:
                    super().process_request_thread(request, client_address)
                finally:
                    free.release()

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
                answers.write(encode_line(self._answer(line)))
                answers.flush()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return self.ask(lambda core, time: core.request(decode_request(line), time))
        except EdgeError as exc:
            return {"error": str(exc)}

    def _read_stdin(self) -> None:
        self._serve(standard_input(), sys.stdout.buffer)
        self._stop()


def standard_input() -> BinaryIO:
    """Standard input, read through a buffer of our own.

    A thread that waits for a line holds the lock of the buffer. Python takes that of its own when it ends, and aborts
    where it cannot have it.
    """
    try:
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    except (OSError, ValueError):  # no file stands behind it
        return sys.stdin.buffer
