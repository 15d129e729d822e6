"""Cutting an artifact into chunks, their digests, and ranges of chunk numbers.

Every transfer has two parts. The *index* is the concatenated SHA-256 of all chunks (32 bytes each); it is proved as a
whole by `index_digest`, which the release names. The *data* follows: with the index at hand every chunk is proved the
moment it arrives, whoever sent it.
"""

from __future__ import annotations

from collections.abc import Iterable

from edge.channel.messages import Range
from edge.contract.digest import sha256, sha256_bytes
from edge.contract.errors import ChannelError

MAX_WINDOW = 64  # frames asked for at once, at most
MAX_SIZE_BYTES = 1 << 30
DIGEST_BYTES = 32
CHUNK_SIZES = range(1024, 1024 * 1024 + 1)
# USUAL: the largest frame that every broker in reference tables takes; 64 KiB were not faster where it was tried.
SMALLEST_BYTES, USUAL_BYTES = 1024, 32 * 1024
UPLOAD_BYTES = 32 * 1024  # uploads are small: they begin with what every broker takes, and lose no time to find out
AROUND_BYTES = 512  # frame header, topic, packet header: at most


def fitting(max_packet_bytes: int) -> int:
    """Size of the chunks whose frames fit into packets of a size: a power of two, `USUAL_BYTES` at most.

    >>> fitting(256 * 1024), fitting(20_000), fitting(100)
    (32768, 16384, 1024)
    """
    size = USUAL_BYTES
    while size > SMALLEST_BYTES and size + AROUND_BYTES > max_packet_bytes:
        size //= 2
    return size


def chunk_digests(data: bytes, chunk_size: int) -> bytes:
    """The index of an artifact: the raw SHA-256 of each chunk, one after the other."""
    view = memoryview(data)
    return b"".join(sha256_bytes(view[start : start + chunk_size]) for start in range(0, len(data), chunk_size))


def index_digest(index: bytes) -> str:
    """Digest that proves an index."""
    return sha256(index)


def count(size_bytes: int, chunk_size: int) -> int:
    """Number of chunks.

    >>> count(1025, 1024)
    2
    """
    return -(-size_bytes // chunk_size)


def check_sizes(size_bytes: int, chunk_size: int, max_size_bytes: int = MAX_SIZE_BYTES) -> None:
    """Refuse sizes that nobody honest announces.

    Raises:
        ChannelError: The artifact is empty or too large, or a chunk is not 1 KiB to 1 MiB.
    """
    if not 0 < size_bytes <= max_size_bytes:
        raise ChannelError(f"artifact: expected 1 to {max_size_bytes} bytes, got {size_bytes}; refuse it")
    if chunk_size not in CHUNK_SIZES:
        raise ChannelError(f"chunk: expected 1 KiB to 1 MiB, got {chunk_size} bytes; choose 65536")


def to_ranges(numbers: Iterable[int], limit: int = 256) -> tuple[Range, ...]:
    """Rising numbers as ranges with both ends included; what lies beyond `limit` ranges is left out.

    >>> to_ranges([0, 1, 2, 5])
    ((0, 2), (5, 5))
    """
    ranges: list[Range] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        elif len(ranges) == limit:
            break
        else:
            ranges.append((number, number))
    return tuple(ranges)


class ChunkSet:
    """Which of `n` chunks are there: one byte each, scanned at the speed of C."""

    def __init__(self, n: int) -> None:
        self._marks = bytearray(n)
        self._n_have = 0

    def __len__(self) -> int:
        return self._n_have

    def __contains__(self, index: int) -> bool:
        return 0 <= index < len(self._marks) and self._marks[index] == 1

    def add(self, index: int) -> None:
        """Mark a chunk as there; twice is harmless."""
        self._n_have += 1 - self._marks[index]
        self._marks[index] = 1

    @property
    def complete(self) -> bool:
        """Whether none is missing."""
        return self._n_have == len(self._marks)

    def missing(self, limit: int) -> list[int]:
        """The first `limit` numbers that are not there."""
        return self._first(0, limit)

    def present(self) -> list[int]:
        """All numbers that are there."""
        return self._first(1, len(self._marks))

    def _first(self, mark: int, limit: int) -> list[int]:
        found: list[int] = []
        at = self._marks.find(mark)
        while at >= 0 and len(found) < limit:
            found.append(at)
            at = self._marks.find(mark, at + 1)
        return found
