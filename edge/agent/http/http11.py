"""HTTP/1.1 as this agent speaks it: bytes to requests and answers to bytes. No socket.

Promises bounds on all that a stranger sends, and that a request which two readers could take for different ones (two
lengths, a length and chunks, a folded line) is refused. Chunked bodies are not taken: who sends an inference knows its
length.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from edge.contract.errors import EdgeError

MAX_HEAD_BYTES = 32 << 10
MAX_BODY_BYTES = 64 << 20
_MAX_FIELDS = 100
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REASONS = {
    200: "OK", 204: "No Content", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 408: "Request Timeout", 411: "Length Required", 413: "Content Too Large",
    415: "Unsupported Media Type", 421: "Misdirected Request", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}  # fmt: skip


class RefusedError(EdgeError):
    """A request that is answered with a status and a sentence, and changes nothing.

    Attributes:
        status: Of HTTP.
        text: What was expected, what came.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """One request.

    Attributes:
        method: In capitals.
        path: As it was sent, with its escapes.
        query: Of the address; of a name that stands twice the last.
        headers: By name in small letters.
        keeps: Whether the connection stays.
        length: Bytes of the body.
        body: It; empty until it was read.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    keeps: bool
    length: int
    body: bytes = b""


@dataclass(frozen=True, eq=False, slots=True)
class Answer:
    """What is sent back.

    Attributes:
        status: Of HTTP.
        body: It.
        kind: Content type.
        headers: Further ones.
    """

    status: int
    body: bytes = b""
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def parse_head(data: bytes) -> Request:
    """A request without its body.

    Args:
        data: All up to the empty line, without it.

    Raises:
        RefusedError: It is none, or one that is not taken.
    """
    lines = data.decode("latin-1").split("\r\n")
    method, _, rest = lines[0].partition(" ")
    target, _, version = rest.rpartition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        if version.startswith("HTTP/"):
            raise RefusedError(505, f"expected HTTP/1.1, got {version:.20}")
        raise RefusedError(400, "expected a line such as GET / HTTP/1.1")
    if not method.isalpha() or not target.startswith("/") or not target.isascii() or not target.isprintable():
        raise RefusedError(400, "expected a method and a path")
    if len(lines) > _MAX_FIELDS:
        raise RefusedError(431, f"expected at most {_MAX_FIELDS} header fields")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name) or "\0" in value or "\n" in value or "\r" in value:
            raise RefusedError(400, f"expected NAME: VALUE, got {name!r:.60}")
        key, value = name.lower(), value.strip(" \t")
        if key in headers:
            if key in ("content-length", "host", "origin", "authorization", "inference-header-content-length"):
                raise RefusedError(400, f"{name} stands twice")
            value = f"{headers[key]}, {value}"
        headers[key] = value
    if "transfer-encoding" in headers:
        raise RefusedError(411, "expected a body with Content-Length, got Transfer-Encoding")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or len(length) > 12:
        raise RefusedError(400, f"Content-Length: expected a number, got {length!r:.30}")
    if int(length) > MAX_BODY_BYTES:
        raise RefusedError(413, f"expected at most {MAX_BODY_BYTES} bytes, got {length}")
    path, _, query = target.partition("?")
    try:
        found = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=20))
    except ValueError as exc:
        raise RefusedError(400, f"the query: {exc}") from exc
    wishes = headers.get("connection", "").lower()
    keeps = "close" not in wishes if version == "HTTP/1.1" else "keep-alive" in wishes
    return Request(method, path, found, headers, keeps, int(length))


def unquoted(text: str) -> str:
    """A part of a path without its escapes.

    Raises:
        RefusedError: They are no UTF-8.
    """
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as exc:
        raise RefusedError(400, f"{text!r:.80}: expected UTF-8") from exc


def plain_body(request: Request) -> bytes:
    """The body as it was before it was compressed, and no more of it than is taken.

    Raises:
        RefusedError: Compressed otherwise, damaged, or too large.
    """
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding == "identity":
        return request.body
    if coding not in ("gzip", "deflate"):
        raise RefusedError(415, f"Content-Encoding: expected gzip or deflate, got {coding!r:.30}")
    machine = zlib.decompressobj(31 if coding == "gzip" else 15)
    try:
        found = machine.decompress(request.body, MAX_BODY_BYTES + 1)
    except zlib.error as exc:
        raise RefusedError(400, f"the body is not {coding}: {exc}") from exc
    if len(found) > MAX_BODY_BYTES:
        raise RefusedError(413, f"expected at most {MAX_BODY_BYTES} bytes after decompression")
    if not machine.eof:
        raise RefusedError(400, f"the body is not whole {coding}")
    return found


def compressed(request: Request, answer: Answer) -> Answer:
    """The answer as the client wishes it: compressed where it says so, and it is worth it."""
    wishes = request.headers.get("accept-encoding", "")
    coding = next((each for each in ("gzip", "deflate") if each in wishes and f"{each};q=0" not in wishes), "")
    if not coding or len(answer.body) < 1024 or "Content-Encoding" in answer.headers:
        return answer
    machine = zlib.compressobj(1, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    body = machine.compress(answer.body) + machine.flush()
    return Answer(answer.status, body, answer.kind, {**answer.headers, "Content-Encoding": coding})


def encode(answer: Answer, *, keeps: bool, has_body: bool = True) -> bytes:
    """The answer on the line.

    Args:
        answer: It.
        keeps: Whether the connection stays.
        has_body: Not where only the head was asked for.
    """
    head = [
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}",
        f"Content-Length: {len(answer.body)}",
        f"Content-Type: {answer.kind}",
        *(f"{name}: {value}" for name, value in answer.headers.items()),
    ]
    if not keeps:
        head.append("Connection: close")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + (answer.body if has_body else b"")
