"""Bytes to requests: bounded, and nothing that two readers could take for different requests."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.agent.http.http11 import (
    MAX_BODY_BYTES,
    Answer,
    RefusedError,
    Request,
    compressed,
    encode,
    parse_head,
    plain_body,
)


def head(*lines: str) -> bytes:
    return "\r\n".join(lines).encode("latin-1")


def test_a_request_is_taken_apart() -> None:
    found = parse_head(head("POST /labels?model=a%20b&x HTTP/1.1", "Host: h", "X-A: 1", "x-a:2", "Content-Length: 12"))
    assert (found.method, found.path, found.query) == ("POST", "/labels", {"model": "a b", "x": ""})
    assert (found.headers["x-a"], found.length, found.keeps) == ("1, 2", 12, True)
    assert not parse_head(head("GET / HTTP/1.1", "Connection: close")).keeps
    assert not parse_head(head("GET / HTTP/1.0")).keeps
    assert parse_head(head("GET / HTTP/1.0", "Connection: Keep-Alive")).keeps


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        (400, ["GET"]),
        (400, [""]),
        (400, ["GET x HTTP/1.1"]),
        (400, ["GET /\x01 HTTP/1.1"]),
        (400, ["GET /é HTTP/1.1"]),
        (505, ["GET / HTTP/2.0"]),
        (400, ["GET / HTTP/1.1", "no colon"]),
        (400, ["GET / HTTP/1.1", " Folded: 1"]),
        (400, ["GET / HTTP/1.1", "A b: 1"]),
        (400, ["GET / HTTP/1.1", "A: 1\nB: 2"]),
        (400, ["GET / HTTP/1.1", "Content-Length: 1", "content-length: 1"]),
        (400, ["GET / HTTP/1.1", "Host: a", "Host: b"]),
        (400, ["GET / HTTP/1.1", "Content-Length: -1"]),
        (400, ["GET / HTTP/1.1", "Content-Length: +1"]),
        (400, ["GET / HTTP/1.1", "Content-Length: 1, 1"]),
        (411, ["GET / HTTP/1.1", "Transfer-Encoding: chunked", "Content-Length: 1"]),
        (413, ["GET / HTTP/1.1", f"Content-Length: {MAX_BODY_BYTES + 1}"]),
        (431, ["GET / HTTP/1.1", *(f"X{i}: 1" for i in range(100))]),
        (400, ["GET /?" + "&".join("a=1" for _ in range(30)) + " HTTP/1.1"]),
    ],
)
def test_what_is_no_request_is_refused(status: int, lines: list[str]) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_head(head(*lines))
    assert caught.value.status == status


@given(st.binary(max_size=200))
def test_random_bytes_are_a_request_or_refused(data: bytes) -> None:
    for found in (data, b"GET / HTTP/1.1\r\n" + data):
        try:
            parse_head(found)
        except RefusedError:
            continue


def coded(body: bytes, coding: str) -> Request:
    return Request("POST", "/", {}, {"content-encoding": coding}, True, len(body), body)


def test_a_compressed_body_is_read_and_a_bomb_is_not() -> None:
    assert plain_body(coded(gzip.compress(b"abc"), "gzip")) == b"abc"
    assert plain_body(coded(zlib.compress(b"abc"), "deflate")) == b"abc"
    bomb = zlib.compress(bytes(MAX_BODY_BYTES + 1))
    for status, body, coding in (
        (413, bomb, "deflate"),
        (400, b"abc", "gzip"),
        (400, gzip.compress(b"a" * 100)[:20], "gzip"),
        (415, b"abc", "br"),
    ):
        with pytest.raises(RefusedError) as caught:
            plain_body(coded(body, coding))
        assert caught.value.status == status


def test_an_answer_is_compressed_where_the_client_wishes_it_and_it_is_worth_it() -> None:
    def asking(wishes: str) -> Request:
        return Request("GET", "/", {}, {"accept-encoding": wishes}, True, 0)

    large = Answer(200, b"a" * 5000)
    assert gzip.decompress(compressed(asking("br, gzip"), large).body) == large.body
    assert zlib.decompress(compressed(asking("deflate"), large).body) == large.body
    assert compressed(asking("gzip;q=0"), large) is large
    assert compressed(asking("gzip"), Answer(200, b"a")).body == b"a"
    assert encode(Answer(200, b"ab", headers={"X": "1"}), keeps=False, has_body=False) == (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\nX: 1\r\nConnection: close\r\n\r\n"
    )
