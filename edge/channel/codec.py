"""Messages to bytes and back: strict JSON, bounded, every field read by its type.

Promises that `decode` either returns a message whose every known field has its type and range, or raises ChannelError
naming the field; that nothing else escapes it, whatever the bytes; and that unknown fields survive a round trip. It
judges form only: whether a release is newer or a digest wanted is for the agent and the coordinator.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from edge.channel import confusion, topics
from edge.channel import messages as m
from edge.contract import documents, strictjson
from edge.contract.digest import sha256
from edge.contract.errors import ChannelError

VERSION = 1  # goes up only when an old reader would misunderstand; new fields do not change it
MAX_MESSAGE_BYTES = 16 * 1024
MAX_HISTORY_BYTES = 32 * 1024
MAX_DETAIL_CHARS = 500  # a longer `detail` is cut when written: it is often an exception's text

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
    topics.DN_HIST: m.HistoryKept,
    topics.DN_META: m.Meta,
    topics.DN_RESTORE: m.Restore,
    topics.DN_CANDIDATE: m.Candidate,
    topics.DN_HERE: m.Here,
}


def encode(message: m.Message) -> bytes:
    """Write a message.

    Raises:
        ChannelError: It holds something that JSON cannot, or is larger than 16 KiB.
    """
    if isinstance(message, m.Telemetry):
        document = telemetry_document(message)
    else:
        document = documents.encode(message) | {"v": VERSION}
        if hasattr(message, "detail"):
            document["detail"] = document["detail"][:MAX_DETAIL_CHARS]
    try:
        data = strictjson.dumps(document)
    except (ValueError, TypeError) as exc:
        raise ChannelError(f"{type(message).__name__}: expected values that JSON can hold, got {exc}") from exc
    if len(data) > MAX_MESSAGE_BYTES:
        raise ChannelError(
            f"{type(message).__name__}: expected at most {MAX_MESSAGE_BYTES} bytes, got {len(data)}; say less"
        )
    return data


def telemetry_document(message: m.Telemetry) -> dict[str, Any]:
    """What stands on ``up/tele``: numbers and texts; what is not finite is left out."""
    document: dict[str, Any] = {key: _scalar(value) for key, value in message.values.items() if _finite(value)}
    if experts := message.values.get(m.EXPERTS):
        document[m.EXPERTS] = {
            name: [_scalar(value) if _finite(value) else 0 for value in row] for name, row in experts.items()
        }
    return document


def event_document(event: m.Event) -> dict[str, Any]:
    """An event as it stands in the array of ``up/hist``: flat, with the keys of telemetry."""
    found = {"ts": event.ts_ms, "seq": event.seq, "boot": event.boot, "state_id": event.state_id, m.EVENT: event.name}
    return found | {"detail": event.detail[:MAX_DETAIL_CHARS], "model": event.model}


def batch_of(payload: bytes) -> str:
    """What names a payload of ``up/hist``."""
    return sha256(payload)[:16]


def encode_history(objects: Sequence[Mapping[str, Any]]) -> bytes:
    """Write what `telemetry_document` and `event_document` gave. That it is not too large is the caller's business."""
    return b"[" + b",".join(strictjson.dumps(dict(each)) for each in objects) + b"]"


def decode(leaf: str, payload: bytes) -> m.Message:
    """Read the message that belongs to a topic leaf.

    Raises:
        ChannelError: The leaf carries no message (binary frames, unknown leaf), or the payload is not one.
    """
    if leaf == topics.UP_TELE:
        return _decode_telemetry(_load("Telemetry", payload))
    if leaf == topics.UP_HIST:
        return _decode_history(payload)
    if leaf.startswith(topics.upload_status_leaf("")):
        return _decode(m.UploadStatus, payload)
    leaf = topics.kind_of(leaf)
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
    try:
        return documents.decode(cls, document, name)
    except documents.DocumentError as exc:
        raise ChannelError(f"{exc}; update the sender") from exc


def _finite(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, numbers.Real) and math.isfinite(value))


def _scalar(value: Any) -> int | float | str:
    """Numpy scalars and booleans become plain numbers."""
    if isinstance(value, str):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _is_expert(row: object) -> bool:
    return isinstance(row, list) and len(row) == 3 and all(type(v) in (int, float) and v >= 0 for v in row)


def _decode_history(payload: bytes) -> m.History:
    try:
        found = strictjson.load_list(payload, max_bytes=MAX_HISTORY_BYTES)
    except (ValueError, RecursionError) as exc:
        raise ChannelError(f"History: expected strict JSON, got {exc}; update the sender") from exc
    telemetry, events = [], []
    for item in found:
        if not isinstance(item, dict):
            raise ChannelError(f"History: expected objects, got {type(item).__name__}; update the sender")
        if m.EVENT in item:
            renamed = {"ts": "ts_ms", m.EVENT: "name"}
            try:
                events.append(documents.decode(m.Event, {renamed.get(key, key): item[key] for key in item}, "History"))
            except documents.DocumentError as exc:
                raise ChannelError(f"{exc}; update the sender") from exc
        else:
            telemetry.append(_decode_telemetry(item).values)
    return m.History(telemetry=tuple(telemetry), events=tuple(events), batch=batch_of(payload))


def _decode_telemetry(values: dict[str, Any]) -> m.Telemetry:
    for key, value in values.items():
        if key == m.EXPERTS:
            if not isinstance(value, dict) or not all(_is_expert(row) for row in value.values()):
                raise ChannelError(
                    "Telemetry.experts: expected by name [weight, accuracy, labels], "
                    f"got {repr(value)[:80]}; update the sender"
                )
        elif key == confusion.KEY:
            try:
                confusion.read(value if isinstance(value, str) else repr(value))
            except (ValueError, RecursionError) as exc:
                raise ChannelError(f"Telemetry.confusion: expected a text of counts, got {exc}") from exc
        elif type(value) not in (int, float, str):
            raise ChannelError(f"Telemetry.{key[:80]}: expected a number or a string, got {type(value).__name__}")
    return m.Telemetry(values=values)
