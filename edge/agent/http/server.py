"""The door for sockets and threads of the HTTP interface: a thread for each connection, bounded in number and time."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from dataclasses import replace

from edge.agent.http.guard import is_loopback
from edge.agent.http.http11 import MAX_HEAD_BYTES, Answer, RefusedError, Request, encode, parse_head
from edge.agent.http.site import Site, refused
from edge.contract.errors import ConfigError

log = logging.getLogger("edge.agent")

MAX_CONNECTIONS = 256
IDLE_S = 75.0  # of a connection between two requests, and of a peer that neither sends nor reads
_BACKLOG = 512
_END = b"\r\n\r\n"


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``127.0.0.1:8080`` or ``[::1]:8080``.

    Raises:
        ConfigError: It is neither.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--http {text!r:.80}: expected HOST:PORT, such as 127.0.0.1:8080")
    return host, int(port)


class HttpServer:
    """Serves one site.

    Args:
        address: Host and port; port 0 for any that is free.
        site: Answers.
        has_token: Whether the site asks for one: without it only this device may be served.

    Attributes:
        port: On which it listens.

    Raises:
        ConfigError: It cannot listen there.
    """

    def __init__(self, address: tuple[str, int], site: Site, *, has_token: bool) -> None:
        host, port = address
        if not (has_token or is_loopback(host)):
            raise ConfigError(
                f"--http {host}:{port}: others than this device could ask and label there; listen on 127.0.0.1, or "
                f"give a token with --http-token-file"
            )
        self._site = site
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except (OSError, OverflowError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise ConfigError(f"--http {host}:{port}: cannot listen there: {why}; name another port") from exc
        self.port = int(self._socket.getsockname()[1])
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="http", daemon=True)

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Close all connections."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._socket.close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError as exc:
                if self._socket.fileno() < 0:
                    return
                log.warning("HTTP: no connection taken: %s", exc)
                threading.Event().wait(0.1)  # too many open files, for instance
                continue
            with self._lock:
                is_full = len(self._open) >= MAX_CONNECTIONS
                if not is_full:
                    self._open.add(connection)
            if is_full:
                with contextlib.suppress(OSError), connection:
                    connection.settimeout(1.0)
                    text = f"there are {MAX_CONNECTIONS} connections already; try again"
                    connection.sendall(encode(refused(RefusedError(503, text)), keeps=False))
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Answer the requests of one connection, one after the other."""
        try:
            with contextlib.suppress(OSError), connection:
                connection.settimeout(IDLE_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                rest = b""
                while True:
                    try:
                        request, rest = _read(connection, rest)
                    except RefusedError as exc:
                        self._send(connection, refused(exc), keeps=False)
                        connection.shutdown(socket.SHUT_WR)  # a peer that still sends shall read why
                        return
                    if request is None:
                        return
                    answer = self._site.answer(request)
                    self._send(connection, answer, keeps=request.keeps, has_body=request.method != "HEAD")
                    if not request.keeps:
                        return
        finally:
            with self._lock:
                self._open.discard(connection)

    def _send(self, connection: socket.socket, answer: Answer, *, keeps: bool, has_body: bool = True) -> None:
        with self._lock:
            self._site.answered[f"{answer.status // 100}xx"] += 1
        connection.sendall(encode(answer, keeps=keeps, has_body=has_body))


def _read(connection: socket.socket, rest: bytes) -> tuple[Request | None, bytes]:
    """The next request and what came behind it; None at the end of the connection.

    Raises:
        RefusedError: It is none.
        OSError: The peer is silent, or gone.
    """
    data = bytearray(rest)
    while (end := data.find(_END)) < 0:
        if len(data) > MAX_HEAD_BYTES:
            raise RefusedError(431, f"expected at most {MAX_HEAD_BYTES} bytes of header")
        more = connection.recv(1 << 16)
        if not more:
            return None, b""
        data += more
    if end > MAX_HEAD_BYTES:
        raise RefusedError(431, f"expected at most {MAX_HEAD_BYTES} bytes of header")
    request = parse_head(bytes(data[:end]))
    begin = end + len(_END)
    if request.length == 0:
        return request, bytes(data[begin:])
    if len(data) - begin < request.length and request.headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body, got = bytearray(request.length), min(request.length, len(data) - begin)
    body[:got] = data[begin : begin + got]
    view = memoryview(body)
    while got < request.length:
        count = connection.recv_into(view[got:])
        if count == 0:
            return None, b""
        got += count
    return replace(request, body=bytes(body)), bytes(data[begin + request.length :])
