"""Labelled samples since the last checkpoint, appended one record at a time.

A record that was appended survives `kill -9` of the agent (the kernel has it); `sync` makes it survive a power cut. A
torn last record is dropped on reading: it was never acknowledged as durable.

Record: CRC-32 of what follows (u32), n (u32), d (u32), k (u32), scales float32[n], weights float32[n], targets,
codes int8[n, d], little-endian. Targets are classes int64[n] where k is 0, else quantities float32[n, k].
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edge.contract.files import sync_folder
from edge.contract.training import FloatArray
from edge.learning.learner import State, part
from edge.learning.packing import PackedFeatures
from edge.learning.task import Targets

_HEAD = struct.Struct("<IIII")
_MAX_ELEMENTS = 1 << 28


class Record(NamedTuple):
    """A batch of labelled samples.

    Attributes:
        features: ``(n, d)`` packed.
        targets: ``(n,)`` int64 classes or ``(n, k)`` float32.
        weights: ``(n,)`` float32.
    """

    features: PackedFeatures
    targets: Targets
    weights: FloatArray

    @property
    def is_mark(self) -> bool:
        """Whether it is `CONTRIBUTED`."""
        return not len(self.features)


# A mark: what was learned so far was sent to the fleet.
CONTRIBUTED = Record(
    PackedFeatures(np.zeros((0, 0), np.int8), np.zeros(0, np.float32)), np.zeros(0, np.int64), np.zeros(0, np.float32)
)


class Journal:
    """An append-only file.

    Args:
        path: Created when it does not exist; a torn tail is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole = 0  # size of the whole records
        is_new = not path.exists()
        if not is_new:
            for _, end in _records(path.read_bytes()):
                self._whole = end
        # Unbuffered: what could not be written must not be written later, behind the record that came next.
        self._file = path.open("ab", buffering=0)
        self._file.truncate(self._whole)
        if is_new:
            sync_folder(path.parent)  # else `sync` would save the records and a power cut the name

    def append(self, record: Record) -> None:
        """Add a batch.

        Raises:
            OSError: The disk is full; nothing of the record counts.
        """
        features, targets, weights = record
        n, d = features.codes.shape
        k = targets.shape[1] if targets.ndim == 2 else 0
        written = targets.astype("<f4" if k else "<i8")
        parts = (features.scales.astype("<f4"), weights.astype("<f4"), written, features.codes)
        body = struct.pack("<III", n, d, k) + b"".join(part.tobytes() for part in parts)
        left = memoryview(struct.pack("<I", zlib.crc32(body)) + body)
        size = len(left)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(self._whole)  # a torn record would hide those that come behind it
            raise
        self._whole += size

    def sync(self) -> None:
        """Make everything appended so far survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journal(path: Path) -> tuple[list[Record], int]:
    """The whole records of a journal, and how many damaged ones lie between them; none when it does not exist.

    What comes behind the last whole record is a torn tail, as a power cut leaves it.
    """
    if not path.exists():
        return [], 0
    data = path.read_bytes()
    found = list(_records(data))
    starts = [0, *(end for _, end in found[:-1])]
    gaps = sum(start != end - _size(record) for start, (record, end) in zip(starts, found, strict=True)) if found else 0
    return [record for record, _ in found], gaps


def _size(record: Record) -> int:
    n, d = record.features.codes.shape
    return int(_HEAD.size + n * (8 + d) + record.targets.nbytes)


def _records(data: bytes) -> Iterator[tuple[Record, int]]:
    """Whole records and where each ends. Behind a damaged one that states its length, those that follow are found."""
    at = 0
    while at + _HEAD.size <= len(data):
        crc, n, d, k = _HEAD.unpack_from(data, at)
        width = 4 * k if k else 8
        size = n * (8 + width + d)
        start, end = at + _HEAD.size, at + _HEAD.size + size
        if n * max(d, k, 1) > _MAX_ELEMENTS or end > len(data):
            return
        if zlib.crc32(data[at + 4 : end]) != crc:
            at = end
            continue
        scales = np.frombuffer(data, "<f4", n, start)
        weights = np.frombuffer(data, "<f4", n, start + 4 * n).astype(np.float32)
        if k:
            targets = np.frombuffer(data, "<f4", n * k, start + 8 * n).reshape(n, k).astype(np.float32)
        else:
            targets = np.frombuffer(data, "<i8", n, start + 8 * n).astype(np.int64)
        codes = np.frombuffer(data, np.int8, n * d, start + (8 + width) * n).reshape(n, d)
        yield Record(PackedFeatures(codes, scales.astype(np.float32)), targets, weights), end
        at = end


def side_by_side(prefix: str, records: Sequence[Record]) -> State:
    """Records of one sample each as arrays whose names begin so, for a checkpoint."""
    if not records:
        return {}
    return {
        f"{prefix}codes": np.concatenate([record.features.codes for record in records]),
        f"{prefix}scales": np.concatenate([record.features.scales for record in records]),
        f"{prefix}targets": np.concatenate([record.targets for record in records]),
        f"{prefix}weights": np.concatenate([record.weights for record in records]),
    }


def one_by_one(prefix: str, tensors: State) -> list[Record]:
    """The records again that `side_by_side` was given."""
    found = part(tensors, prefix)
    rows = [slice(i, i + 1) for i in range(len(found.get("scales", ())))]
    return [
        Record(PackedFeatures(found["codes"][r], found["scales"][r]), found["targets"][r], found["weights"][r])
        for r in rows
    ]
