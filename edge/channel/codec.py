"""Messages to bytes and back: strict JSON, bounded, one table of readers for every field type.

Promises that `decode` either returns a message whose every known field has its type and range, or raises ChannelError
naming the field; that nothing else escapes it, whatever the bytes; and that unknown fields survive a round trip. It
judges form only: whether a release is newer or a digest wanted is for the agent and the coordinator.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from edge.channel import messages as m
from edge.channel import topics
from edge.contract import strictjson
from edge.contract.digest import is_digest
from edge.contract.errors import ChannelError

VERSION = 1  # goes up only when an old reader would misunderstand; new fields do not change it
MAX_MESSAGE_BYTES = 16 * 1024
MAX_DETAIL_CHARS = 500  # a longer `detail` is cut when written: it is often an exception's text
MAX_RANGES = 1024

_M = TypeVar("_M", bound=m.Message)
_TYPES: dict[str, type[m.Message]] = {
    topics.UP_CONN: m.Conn,
    topics.UP_BIRTH: m.Birth,
    topics.UP_STATE: m.State,
    topics.UP_REQ: m.Request,
    topics.UP_EVENT: m.Event,
    topics.UP_REPLY: m.Reply,
    topics.DN_DESIRED: m.Desired,
    topics.DN_CMD: m.Command,
}


def _plain(check: Callable[[Any], bool], expected: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not check(value):
            raise ValueError(f"expected {expected}, got {repr(value)[:80]}")
        return value

    return read


def _ranges(value: Any) -> tuple[m.Range, ...]:
    if not isinstance(value, list) or len(value) > MAX_RANGES:
        raise ValueError(f"expected at most {MAX_RANGES} ranges, got {repr(value)[:80]}")
    for pair in value:
        if not (isinstance(pair, list) and [type(n) for n in pair] == [int, int] and 0 <= pair[0] <= pair[1]):
            raise ValueError(f"expected [first, last] with 0 <= first <= last, got {repr(pair)[:80]}")
    return tuple((first, last) for first, last in value)


_READERS: dict[Any, Callable[[Any], Any]] = {
    bool: _plain(lambda v: isinstance(v, bool), "true or false"),
    int: _plain(lambda v: type(v) is int and v >= 0, "a whole number >= 0"),
    m.Signed: _plain(lambda v: type(v) is int, "a whole number"),
    float: _plain(lambda v: type(v) in (int, float) and v >= 0, "a number >= 0"),
    str: _plain(lambda v: isinstance(v, str), "a string"),
    m.Digest: _plain(is_digest, "a SHA-256 digest in hexadecimal"),
    m.MaybeDigest: _plain(lambda v: v == "" or is_digest(v), 'a SHA-256 digest in hexadecimal or ""'),
    Mapping[str, Any]: _plain(lambda v: isinstance(v, dict), "an object"),
    tuple[m.Range, ...]: _ranges,
}


def _reader(hint: Any) -> Callable[[Any], Any]:
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return _plain(lambda v: isinstance(v, str) and v in choices, f"one of {', '.join(choices)}")
    return _READERS[hint]


def _readers(cls: type[m.Message]) -> dict[str, Callable[[Any], Any]]:
    hints = get_type_hints(cls, include_extras=True)
    return {name: _reader(hint) for name, hint in hints.items() if name != "extra"}


_FIELDS = {cls: _readers(cls) for cls in (*_TYPES.values(), m.UploadStatus, m.UploadOffer)}
_OPTIONAL = {cls: {f.name for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING} for cls in _FIELDS}


def encode(message: m.Message) -> bytes:
    """Write a message.

    Raises:
        ChannelError: It holds something that JSON cannot, or is larger than 16 KiB.
    """
    if isinstance(message, m.Telemetry):
        document: dict[str, Any] = {key: _scalar(value) for key, value in message.values.items() if _finite(value)}
    else:
        fields = {name: getattr(message, name) for name in _FIELDS[type(message)]}
        if "detail" in fields:
            fields["detail"] = fields["detail"][:MAX_DETAIL_CHARS]
        document = {**message.extra, **fields, "v": VERSION}
    try:
        data = strictjson.dumps(document)
    except (ValueError, TypeError) as exc:
        raise ChannelError(f"{type(message).__name__}: expected values that JSON can hold, got {exc}") from exc
    if len(data) > MAX_MESSAGE_BYTES:
        raise ChannelError(
            f"{type(message).__name__}: expected at most {MAX_MESSAGE_BYTES} bytes, got {len(data)}; say less"
        )
    return data


def decode(leaf: str, payload: bytes) -> m.Message:
    """Read the message that belongs to a topic leaf.

    Raises:
        ChannelError: The leaf carries no message (binary frames, unknown leaf), or the payload is not one.
    """
    if leaf == topics.UP_TELE:
        return _decode_telemetry(payload)
    if leaf.startswith(topics.upload_status_leaf("")):
        return _decode(m.UploadStatus, payload)
    if leaf not in _TYPES:
        raise ChannelError(f"{leaf[:80]}: expected a leaf that carries a message, got none; ignore it")
    return _decode(_TYPES[leaf], payload)


def encode_offer(offer: m.UploadOffer) -> bytes:
    """Write the payload of an upload's first frame."""
    return encode(offer)


def decode_offer(payload: bytes) -> m.UploadOffer:
    """Read the payload of an upload's first frame.

    Raises:
        ChannelError: It is not one.
    """
    return _decode(m.UploadOffer, payload)


def _load(name: str, payload: bytes) -> dict[str, Any]:
    try:
        return strictjson.loads(payload, max_bytes=MAX_MESSAGE_BYTES)
    except (ValueError, RecursionError) as exc:
        raise ChannelError(f"{name}: expected strict JSON, got {exc}; update the sender") from exc


def _decode(cls: type[_M], payload: bytes) -> _M:
    name = cls.__name__
    document = _load(name, payload)
    version = document.pop("v", None)
    if type(version) is not int or version != VERSION:
        raise ChannelError(f"{name}.v: expected {VERSION}, got {repr(version)[:40]}; update the older side")
    values: dict[str, Any] = {}
    for field, read in _FIELDS[cls].items():
        if field in document:
            try:
                values[field] = read(document.pop(field))
            except ValueError as exc:
                raise ChannelError(f"{name}.{field}: {exc}; update the sender") from exc
        elif field not in _OPTIONAL[cls]:
            raise ChannelError(f"{name}.{field}: expected a value, got none; update the sender")
    return cls(**values, extra=document)


def _finite(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, numbers.Real) and math.isfinite(value))


def _scalar(value: Any) -> int | float | str:
    """Numpy scalars and booleans become plain numbers."""
    if isinstance(value, str):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _decode_telemetry(payload: bytes) -> m.Telemetry:
    values = _load("Telemetry", payload)
    for key, value in values.items():
        if type(value) not in (int, float, str):
            raise ChannelError(f"Telemetry.{key[:80]}: expected a number or a string, got {type(value).__name__}")
    return m.Telemetry(values=values)
