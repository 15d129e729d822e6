"""Decoders of what comes from outside, under atheris: only the house's own errors may come out, and nothing may grow.

    python -m venv fuzz && fuzz/bin/pip install -c constraints.txt atheris -e .
    fuzz/bin/python benchmarks/fuzz.py FOLDER [MODEL.edge] -max_total_time=600

FOLDER keeps what was found to go somewhere new, and begins with one whole document for each decoder: the examples in
docs/protocol.md, heads, frames, and the manifest of the bundle; random bytes alone are no JSON and get nowhere. Options
are libFuzzer's; it ends with an error at the first fault. The first byte says which decoder, the rest is its input.
Memory is looked at every 20,000 inputs: the resident set may grow by 64 MiB in all after the first of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import atheris  # type: ignore[import-untyped]  # not installed with the house
import numpy as np

with atheris.instrument_imports(include=["edge"]):
    from edge.agent.http.http11 import parse_head
    from edge.agent.wire import decode_request
    from edge.channel import forms, topics
    from edge.channel.codec import decode
    from edge.channel.frames import Frame, decode_frame, encode_frame
    from edge.channel.url import BrokerUrl
    from edge.contract import strictjson, tensorfile
    from edge.contract.archive import Archive
    from edge.contract.errors import EdgeError
    from edge.contract.manifest import Manifest
    from edge.learning.checkpoint import Checkpoint, Facts
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


def _restore(codec: str) -> Callable[[bytes], bytes]:
    return lambda data: forms.restore(codec, data, len(_BASE), None if codec == "zstd" else _BASE)


_BASE = b"base" * 1024
DECODERS: dict[str, Callable[[bytes], Any]] = {
    **{leaf: lambda data, leaf=leaf: decode(leaf, data) for leaf in LEAVES},  # type: ignore[misc]
    "frame": decode_frame,
    "request": decode_request,
    "json": _json,
    "topic": lambda data: topics.parse(_text(data)),
    "url": lambda data: BrokerUrl.parse(_text(data)),
    "http": parse_head,
    "update": lambda data: HeadUpdate.decode(data, "it"),
    "release": lambda data: HeadRelease.decode(data, "it"),
    "checkpoint": lambda data: Checkpoint.decode(data, "it").arrays("it"),
    "manifest": Manifest.decode,
    **{codec: _restore(codec) for codec in sorted(forms.CODECS)},
}
_NAMES = list(DECODERS)
_LINE = re.compile(r"^(edge/v1/\S+) ([\[{].*[\]}])$", re.MULTILINE)


def wholes(bundle: Path | None) -> Iterator[tuple[str, bytes]]:
    """Documents that are whole, with the name of their decoder."""
    page = Path(__file__).resolve().parents[1] / "docs" / "protocol.md"
    for topic, text in _LINE.findall(page.read_text()):
        leaf = topics.parse(topic).leaf
        yield next(each for each in LEAVES if leaf.split("/")[:2] == each.split("/")[:2]), text.encode()
        yield "topic", topic.encode()
    yield "frame", encode_frame(Frame(xfer="0123456789abcdef", index=1, offset=32, payload=b"piece"))
    yield "request", b'{"op":"label","id":"a","y":3,"weight":0.5}'
    yield "request", b'{"op":"predict","id":"a","x":{"shape":[1,2],"dtype":"float32","base64":"AAAAAAAAAAA="}}'
    yield "json", b'{"a":[1,2.5,true,null,"x"],"b":{"c":-1e-9}}'
    yield "url", b"mqtts://name:word@host.example:8883"
    yield "http", b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nAccept-Encoding: gzip"
    digest, head = "0" * 64, {"w": np.ones((2, 3), np.float32), "b": np.ones(2, np.float32)}
    yield (
        "update",
        HeadUpdate(
            learner="delta", backbone=digest, lineage="0" * 32, version=3, n_samples=3, base_release=0, tensors=head
        ).encode(),
    )
    yield "release", HeadRelease(backbone=digest, parameters=head, included={"0" * 32: 3}, n_samples=3).encode()
    yield "checkpoint", _checkpoint(digest, head)
    for codec in sorted(forms.CODECS):
        target = bytes(reversed(_BASE))
        if (made := forms.shorten(target, None if codec == "zstd" else _BASE)) is not None:
            yield made
    if bundle is not None:
        yield "manifest", Archive(bundle).read("manifest.json")


def _checkpoint(backbone: str, arrays: dict[str, Any]) -> bytes:
    facts = Facts(
        device="a",
        state_id="0" * 16,
        model="m",
        backbone=backbone,
        lineage="0" * 32,
        learners=("sgd",),
        samples=3,
        release=0,
        made_ms=1,
        has_samples=False,
    )
    return Checkpoint(facts, zlib.compress(tensorfile.encode("learned-state", {}, arrays))).encode()


def begin(folder: Path, bundle: Path | None) -> None:
    """Put what is whole into the folder, and see that each is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in wholes(bundle):
        DECODERS[name](document)
        data = bytes([_NAMES.index(name)]) + document
        (folder / hashlib.sha256(data).hexdigest()[:20]).write_bytes(data)


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
                DECODERS[_NAMES[data[0] % len(_NAMES)]](data[1:])


if __name__ == "__main__":
    options = [each for each in sys.argv[1:] if each.startswith("-")]
    folder, *bundles = [Path(each) for each in sys.argv[1:] if not each.startswith("-")]
    begin(folder, bundles[0] if bundles else None)
    atheris.Setup([sys.argv[0], str(folder), *options], Fuzz())
    atheris.Fuzz()
