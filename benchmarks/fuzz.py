"""Decoders of what comes from outside, under atheris: only the house's own errors may come out, and nothing may grow.

    python -m venv fuzz && fuzz/bin/pip install -c constraints.txt atheris -e .
    fuzz/bin/python benchmarks/fuzz.py FOLDER -max_total_time=600

FOLDER keeps what was found to go somewhere new. Options are libFuzzer's; it ends with an error at the first fault. The
first byte says which decoder, the rest is its input. Memory is looked at every 20,000 inputs: the resident set may grow
by 64 MiB in all after the first of them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import atheris  # type: ignore[import-untyped]  # not installed with the house

with atheris.instrument_imports(include=["edge"]):
    from edge.agent.wire import decode_request
    from edge.channel import forms, topics
    from edge.channel.codec import decode
    from edge.channel.frames import decode_frame
    from edge.channel.url import BrokerUrl
    from edge.contract import strictjson
    from edge.contract.errors import EdgeError
    from edge.contract.manifest import Manifest
    from edge.learning.exchange import HeadRelease, HeadUpdate

from edge.agent.device.health import resident_mb

LOOK_EVERY, MOST_GROWTH_MB = 20_000, 64.0
LEAVES = (
    *(topics.UP_CONN, topics.UP_BIRTH, topics.UP_STATE, topics.UP_REQ, topics.UP_TELE, topics.UP_HIST),
    *(topics.UP_EVENT, topics.UP_REPLY, topics.DN_DESIRED, topics.DN_CMD, topics.DN_HIST, topics.DN_META),
    *(topics.DN_RESTORE, topics.DN_CANDIDATE, "dn/ul/0123456789abcdef"),
)


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape")


def _json(data: bytes) -> object:
    try:
        return strictjson.loads(data, max_bytes=1 << 16)
    except ValueError as exc:  # what it promises
        return exc


DECODERS: list[Callable[[bytes], Any]] = [
    *(lambda data, leaf=leaf: decode(leaf, data) for leaf in LEAVES),
    decode_frame,
    decode_request,
    _json,
    lambda data: topics.parse(_text(data)),
    lambda data: BrokerUrl.parse(_text(data)),
    lambda data: HeadUpdate.decode(data, "it"),
    lambda data: HeadRelease.decode(data, "it"),
    Manifest.decode,
    *(lambda data, codec=codec: forms.restore(codec, data, 4096, b"base" * 1024) for codec in sorted(forms.CODECS)),
]


class Fuzz:
    """Gives an input to the decoder that it names."""

    seen = 0
    first_mb: float | None = None

    def __call__(self, data: bytes) -> None:
        """One input."""
        self.seen += 1
        if self.seen % LOOK_EVERY == 0:
            now_mb = resident_mb() or 0.0
            self.first_mb = now_mb if self.first_mb is None else self.first_mb
            if now_mb - self.first_mb > MOST_GROWTH_MB:
                raise MemoryError(f"{now_mb - self.first_mb:.0f} MiB more than after the first {LOOK_EVERY} inputs")
        if data:
            with contextlib.suppress(EdgeError):
                DECODERS[data[0] % len(DECODERS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, Fuzz())
    atheris.Fuzz()
