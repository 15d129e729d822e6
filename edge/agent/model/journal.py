"""What happened since the last snapshot, appended one record at a time: see `edge.learning.events`.

A record that was appended survives `kill -9` of the agent (the kernel has it); `sync` makes it survive a power cut. A
torn last record is dropped on reading: it was never acknowledged as durable. A damaged one costs itself only,
whatever of it is damaged: the next whole record is found by its mark and its checksum.

Record: mark (4 bytes), length of the body (u32), CRC-32 of length, kind and body (u32), kind (u8), 3 zeros, body;
little-endian. The body of a label: d (u32), k (u32), scale (float32), weight (float32), target, codes int8[d]; the
target is a class int64 where k is 0, else quantities float32[k]. Of n labels that came together: n (u32), d (u32),
k (u32), scales float32[n], weights float32[n], targets, codes int8[n, d].
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge.contract.errors import EdgeError
from edge.contract.files import sync_folder
from edge.learning.compression import EXACT, Compression
from edge.learning.disclosure import Noise
from edge.learning.events import (
    ClassAdded,
    Confirmed,
    Contributed,
    Event,
    HeadOffered,
    HeadReplaced,
    Labelled,
    MergeRecognized,
    RolledBack,
)
from edge.learning.exchange import HeadRelease
from edge.learning.learner import State
from edge.learning.packing import PackedFeatures

MARK = b"\xe5J\x03\n"
_HEAD = struct.Struct("<4sIIB3x")
_LABEL, _LABELS = struct.Struct("<IIff"), struct.Struct("<III")
_HEAD_EVENT = struct.Struct("<QB")
_FITS = (None, False, True)
_F4, _I8 = np.dtype("<f4"), np.dtype("<i8")
_KINDS: tuple[type, ...] = (Labelled, Contributed, ClassAdded, HeadOffered, HeadReplaced, Confirmed, RolledBack)
_TOGETHER = len(_KINDS)  # labels that came together
_RECOGNIZED = _TOGETHER + 1  # numbers stay what they are: old journals are read


@dataclass(frozen=True, eq=False, slots=True)
class Saved:
    """What was found on disk.

    Attributes:
        description: JSON-able facts beside the tensors.
        tensors: The state.
        journal: Events to repeat, in order.
        warning: What was damaged, or None.
        schema: Of the tensors: 3, or 2 (see `edge.agent.model.schema2`).
    """

    description: dict[str, Any]
    tensors: State
    journal: list[Event]
    warning: str | None
    schema: int = 3


class Journal:
    """An append-only file.

    Args:
        path: Created when it does not exist; a torn tail is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole = 0  # size up to the end of the last whole record
        is_new = not path.exists()
        if not is_new:
            for _, self._whole in _records(path.read_bytes()):
                pass
        # Unbuffered: what could not be written must not be written later, behind the record that came next.
        self._file = path.open("ab", buffering=0)
        try:
            self._file.truncate(self._whole)
            if is_new:
                sync_folder(path.parent)  # else `sync` would save the records and a power cut the name
        except OSError:  # a full disk: this is tried again with each label, and files to open are few
            self._file.close()
            if is_new:
                with suppress(OSError):
                    path.unlink()
            raise

    def append(self, event: Event, *, durable: bool = False) -> None:
        """Add an event.

        Args:
            event: It.
            durable: Make it survive a power cut, too.

        Raises:
            OSError: The disk is full, or somebody deleted the file; nothing of the record counts.
        """
        if not os.fstat(self._file.fileno()).st_nlink and not self.path.exists():
            raise FileNotFoundError(errno.ENOENT, f"{self.path} was deleted")
        left = memoryview(_encode(event))
        size = len(left)
        try:
            while left:
                left = left[self._file.write(left) :]
            if durable:
                self.sync()
        except OSError:
            # A torn record would hide those that come behind it, and a whole one would be repeated.
            self._file.truncate(self._whole)
            raise
        self._whole += size

    def sync(self) -> None:
        """Make everything appended so far survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Read(NamedTuple):
    """What a journal holds.

    Attributes:
        events: Of its whole records, in order.
        n_damaged: Places between and behind them where something else stands, that is no torn record.
    """

    events: list[Event]
    n_damaged: int


def read_journal(path: Path) -> Read:
    """The whole records of a journal; none when it does not exist.

    Behind the last whole one a torn record may stand, as a kill leaves it.
    """
    if not path.exists():
        return Read([], 0)
    data = path.read_bytes()
    events: list[Event] = []
    end_before, n_damaged = 0, 0
    for start, end in _records(data):
        n_damaged += start != end_before
        end_before = end
        try:
            events.append(_decode(data[start:end]))
        except (EdgeError, ValueError, struct.error):  # whole, and written by a program that knows more
            n_damaged += 1
    return Read(events, n_damaged + _is_damage(data[end_before:]))


def _is_damage(tail: bytes) -> bool:
    """Whether what stands behind the last whole record is not the beginning of one."""
    if len(tail) < _HEAD.size:
        return tail[: len(MARK)] != MARK[: len(tail)]
    mark, length, _, _ = _HEAD.unpack_from(tail)
    return bool(mark != MARK or _HEAD.size + length <= len(tail))


def _records(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each whole record begins and ends."""
    at = 0
    while (at := data.find(MARK, at)) >= 0 and at + _HEAD.size <= len(data):
        _, length, crc, _ = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + length
        if end <= len(data) and _checksum(data[at + 12 : end], length) == crc:
            yield at, end
            at = end
        else:
            at += 1


def _checksum(kind_and_body: bytes, length: int) -> int:
    return zlib.crc32(kind_and_body, zlib.crc32(struct.pack("<I", length)))


def _encode(event: Event) -> bytes:
    body = _body(event)
    if type(event) is Labelled and len(event) > 1:
        number = _TOGETHER
    else:
        number = _RECOGNIZED if type(event) is MergeRecognized else _KINDS.index(type(event))
    rest = bytes((number, 0, 0, 0)) + body
    return _HEAD.pack(MARK, len(body), _checksum(rest, len(body)), rest[0]) + body


def _body(event: Event) -> bytes:
    match event:
        case Labelled(features=features, target=target, weight=weight):
            (n, d), k = features.codes.shape, target.shape[1] if target.ndim == 2 else 0
            if n == 1:
                head = _LABEL.pack(d, k, features.scales.item(), weight.item())
            else:
                numbers = (features.scales.astype(_F4).tobytes(), weight.astype(_F4).tobytes())
                head = b"".join((_LABELS.pack(n, d, k), *numbers))
            return head + target.astype(_F4 if k else _I8, copy=False).tobytes() + features.codes.tobytes()
        case Contributed(version=version, noise=noise, seed=seed) if noise is not None:
            return struct.pack("<q", version) + f"noise {noise.epsilon!r} {noise.delta!r} {seed.hex()}".encode()
        case Contributed(version=version, compression=compression):  # as before there were several ways where exact
            return struct.pack("<q", version) + (b"" if compression == EXACT else compression.text.encode())
        case ClassAdded(name=name):
            return name.encode()
        case HeadOffered(release=release, counter=counter, fits=fits):
            return _HEAD_EVENT.pack(counter, _FITS.index(fits)) + release.encode()
        case HeadReplaced(release=release, counter=counter):
            return _HEAD_EVENT.pack(counter, 0) + release.encode()
        case MergeRecognized(fits=fits):
            return bytes((fits,))
        case Confirmed() | RolledBack():
            return b""


def _decode(record: bytes) -> Event:
    _, _, _, number = _HEAD.unpack_from(record)
    body = record[_HEAD.size :]
    if number == _TOGETHER:
        n, d, k = _LABELS.unpack_from(body)
        return _labelled(body, _LABELS.size + 8 * n, n, d, k, np.frombuffer(body, "<f4", 2 * n, _LABELS.size))
    if number == _RECOGNIZED:
        return MergeRecognized(struct.unpack("<?", body)[0])
    if number >= len(_KINDS):
        raise ValueError(f"there is no event of the kind {number}")
    kind = _KINDS[number]
    if kind is Labelled:
        d, k, _, _ = _LABEL.unpack_from(body)
        return _labelled(body, _LABEL.size, 1, d, k, np.frombuffer(body, "<f4", 2, _LABEL.size - 8))
    if kind is Contributed:
        (version,) = struct.unpack_from("<q", body)
        how, *told = body[8:].decode().split(" ")
        if how == "noise":
            epsilon, delta, seed = told
            return Contributed(version, EXACT, Noise(float(epsilon), float(delta)), bytes.fromhex(seed))
        return Contributed(version, Compression.parse(how or EXACT.text))
    if kind is ClassAdded:
        return ClassAdded(body.decode())
    if kind in (HeadOffered, HeadReplaced):
        counter, fits = _HEAD_EVENT.unpack_from(body)
        release = HeadRelease.decode(body[_HEAD_EVENT.size :], "a head in the journal")
        return HeadOffered(release, counter, _FITS[fits]) if kind is HeadOffered else HeadReplaced(release, counter)
    found: Event = kind()
    return found


def _labelled(body: bytes, start: int, n: int, d: int, k: int, numbers: npt.NDArray[np.float32]) -> Labelled:
    """Labels whose targets begin there; `numbers` are the scales and then the weights."""
    middle = start + n * (4 * k or 8)
    if not n or len(body) != middle + n * d:
        raise ValueError("the labels are of another length than they say")
    codes = np.frombuffer(body, np.int8, n * d, middle).reshape(n, d)
    target = np.frombuffer(body, "<f4" if k else "<i8", n * (k or 1), start)
    kept = target.astype(np.float32).reshape(n, k) if k else target.astype(np.int64)
    scales, weights = numbers[:n].astype(np.float32), numbers[n:].astype(np.float32)
    return Labelled(PackedFeatures(codes, scales), kept, weights)
