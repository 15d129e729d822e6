"""Labelled samples since the last checkpoint, appended one record at a time.

A record that was appended survives `kill -9` of the agent (the kernel has it); `sync` makes it survive a power cut. A
torn last record is dropped on reading: it was never acknowledged as durable.

Record: CRC-32 of what follows (u32), n (u32), d (u32), scales float32[n], labels int64[n], codes int8[n, d],
little-endian.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge.contract.files import sync_folder
from edge.contract.training import LabelArray
from edge.learning.packing import PackedFeatures

_HEAD = struct.Struct("<III")
_MAX_ELEMENTS = 1 << 28


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
            for _, _, end in _records(path.read_bytes()):
                self._whole = end
        # Unbuffered: what could not be written must not be written later, behind the record that came next.
        self._file = path.open("ab", buffering=0)
        self._file.truncate(self._whole)
        if is_new:
            sync_folder(path.parent)  # else `sync` would save the records and a power cut the name

    def append(self, features: PackedFeatures, labels: LabelArray) -> None:
        """Add a batch.

        Raises:
            OSError: The disk is full; nothing of the record counts.
        """
        n, d = features.codes.shape
        parts = (features.scales.astype("<f4"), labels.astype("<i8"), features.codes)
        body = struct.pack("<II", n, d) + b"".join(part.tobytes() for part in parts)
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


def read_journal(path: Path) -> Iterator[tuple[PackedFeatures, LabelArray]]:
    """The whole records of a journal, up to the first torn or damaged one; none when it does not exist."""
    if path.exists():
        for features, labels, _ in _records(path.read_bytes()):
            yield features, labels


def _records(data: bytes) -> Iterator[tuple[PackedFeatures, LabelArray, int]]:
    at = 0
    while at + _HEAD.size <= len(data):
        crc, n, d = _HEAD.unpack_from(data, at)
        size = 4 * n + 8 * n + n * d
        start, end = at + _HEAD.size, at + _HEAD.size + size
        if n * max(d, 1) > _MAX_ELEMENTS or end > len(data) or zlib.crc32(data[at + 4 : end]) != crc:
            return
        scales = np.frombuffer(data, "<f4", n, start)
        labels = np.frombuffer(data, "<i8", n, start + 4 * n)
        codes = np.frombuffer(data, np.int8, n * d, start + 12 * n).reshape(n, d)
        yield PackedFeatures(codes, scales.astype(np.float32)), labels.astype(np.int64), end
        at = end
