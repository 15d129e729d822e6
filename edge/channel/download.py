"""Download of one artifact, and what the other end answers. No clock, no I/O: the time comes in, effects go out.

Theory of operation. The receiver asks (pull): at most one window of frames is under way, so no queue of the broker can
overflow. When half of it has arrived it asks for as much again, so the line is never idle. The index part comes first
and is held in memory; then every data chunk is proved by its digest and handed out as `WriteChunk` exactly once.

Frames come in the order in which they were asked for. What is missing when the last frame of a request comes, or one
of a later request, is lost, and asked for again at once; where that is half a window or more, the window halves. It
doubles until the first loss, and grows by one for each window that arrives after it. A time-out halves it, doubles the
waiting time (2 s to 60 s) and asks again for the holes only. It never gives up.

What is not done here: writing files, and proving the whole artifact. After `Finished` the caller compares the file's
SHA-256 with `digest` before it uses a byte.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from edge.channel import chunks
from edge.channel.frames import Frame, xfer_of
from edge.channel.messages import Part, Request
from edge.contract.errors import ChannelError


@dataclass(frozen=True, kw_only=True, slots=True)
class SendRequest:
    """Effect: publish this on ``up/req``."""

    request: Request


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteChunk:
    """Effect: write this proved chunk at its offset. Emitted once for each chunk."""

    index: int
    offset: int
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """Effect: all chunks were handed out; now prove the whole by its digest."""


Effect = SendRequest | WriteChunk | Finished


class Download:
    """The receiving end of one artifact.

    Args:
        digest: SHA-256 of the artifact.
        size_bytes: Its size.
        chunk_size_bytes: Size of every chunk but the last.
        index_digest: SHA-256 of the concatenated chunk digests.
        window: Frames asked for at first.
        timeout_s: Wait that long for a frame before asking again.
        max_timeout_s: The wait doubles up to this.
        max_size_bytes: Refuse a larger artifact.

    Attributes:
        xfer: Transfer identifier: the last level of the frames' topic.
        rejected: Frames that were a repeat, foreign or wrong, and changed nothing.
        fruitless: Time-outs in a row without one frame: perhaps they are too large for the broker.

    Raises:
        ChannelError: A size or a digest is out of bounds.
    """

    def __init__(
        self,
        *,
        digest: str,
        size_bytes: int,
        chunk_size_bytes: int,
        index_digest: str,
        window: int = 8,
        timeout_s: float = 2.0,
        max_timeout_s: float = 60.0,
        max_size_bytes: int = chunks.MAX_SIZE_BYTES,
    ) -> None:
        chunks.check_sizes(size_bytes, chunk_size_bytes, max_size_bytes)
        self.xfer = xfer_of(digest)
        self.rejected = self.fruitless = 0
        self._digest, self._index_digest = digest, index_digest
        self._size, self._chunk = size_bytes, chunk_size_bytes
        self._n_chunks = chunks.count(size_bytes, chunk_size_bytes)
        self._window = min(max(window, 1), chunks.MAX_WINDOW)
        self._timeout_s = self._min_timeout_s = timeout_s
        self._max_timeout_s = max_timeout_s
        self._deadline_s = -math.inf
        self._asked: deque[set[int]] = deque()  # what is under way of each request, oldest first
        self._doubling = True
        self._clean = 0  # frames since the window grew last
        self._finished = False
        self._index: bytes | None = None
        self._start("index", self._n_chunks * chunks.DIGEST_BYTES)

    def _start(self, part: Part, size: int) -> None:
        self._part: Part = part
        self._part_size = size
        self._have = chunks.ChunkSet(chunks.count(size, self._chunk))
        self._pieces = bytearray(size) if part == "index" else bytearray()
        self._asked.clear()

    @property
    def n_chunks(self) -> int:
        """Number of data chunks."""
        return self._n_chunks

    @property
    def index(self) -> bytes | None:
        """The proved index, None until it is complete. Keep it beside the partial file for `restore`."""
        return self._index

    @property
    def progress(self) -> float:
        """Share of the data chunks handed out, 0 to 1."""
        return len(self._have) / self._n_chunks if self._part == "data" else 0.0

    @property
    def finished(self) -> bool:
        """Whether all chunks were handed out."""
        return self._finished

    @property
    def window(self) -> int:
        """Frames that the next request may ask for."""
        return self._window

    @property
    def next_deadline_s(self) -> float:
        """Call `poll` at this time at the latest; minus infinity means now, infinity never."""
        return math.inf if self._finished else self._deadline_s

    def chunk_digest(self, index: int) -> str:
        """SHA-256 of a data chunk, to prove a partial file. Known once the index is.

        Raises:
            ChannelError: The index is not known yet, or there is no such chunk.
        """
        if self._index is None or not 0 <= index < self._n_chunks:
            raise ChannelError(
                f"chunk {index}: expected a known index and 0..{self._n_chunks - 1}; fetch the index first"
            )
        return self._digest_of(self._index, index).hex()

    @staticmethod
    def _digest_of(index: bytes, number: int) -> bytes:
        return index[number * chunks.DIGEST_BYTES : (number + 1) * chunks.DIGEST_BYTES]

    def restore(self, index: bytes, have: Iterable[int]) -> None:
        """Go on with what an earlier process left on disk.

        Args:
            index: The kept index; proved here.
            have: Chunks on disk whose digest the caller has proved. Read *after* the index was accepted, so it may be
                a generator that calls `chunk_digest`.

        Raises:
            ChannelError: The index is not the one that the release names, or a chunk number is out of range; nothing
                has changed in the first case.
        """
        if len(index) != self._n_chunks * chunks.DIGEST_BYTES or chunks.index_digest(index) != self._index_digest:
            raise ChannelError(
                "kept index: expected the one that the release names, got another; delete the partial file"
            )
        self._index = index
        self._start("data", self._size)
        for number in have:
            self.chunk_digest(number)  # refuses a number out of range
            self._have.add(number)

    def poll(self, now_s: float) -> list[Effect]:
        """What is due now: a request, the end, or nothing.

        Args:
            now_s: Monotonic time in seconds.
        """
        if self._finished:
            return []
        if self._part == "data" and self._have.complete:
            self._finished = True
            return [Finished()]
        if now_s < self._deadline_s:
            return []
        if self._asked:
            self._back_off()
            self._asked.clear()
        self._deadline_s = now_s + self._timeout_s
        return self._ask()

    def _ask(self) -> list[Effect]:
        """Ask for as much as the window has room for."""
        under_way = sum(map(len, self._asked))
        asked = set().union(*self._asked)
        missing = self._have.missing(self._window + under_way)
        want = [number for number in missing if number not in asked][: self._window - under_way]
        if not want:
            return []
        self._asked.append(set(want))
        request = Request(
            op="chunks",
            digest=self._digest,
            part=self._part,
            want=chunks.to_ranges(want),
            window=len(want),
            chunk_size_bytes=self._chunk,
        )
        return [SendRequest(request=request)]

    def _back_off(self) -> None:
        self.fruitless += 1
        self._doubling, self._clean = False, 0
        self._window = max(1, self._window // 2)
        self._timeout_s = min(2 * self._timeout_s, self._max_timeout_s)

    def receive(self, frame: Frame, now_s: float) -> list[Effect]:
        """Take a frame; a repeat, a foreign or a wrong one is counted in `rejected` and changes nothing else."""
        if not self._acceptable(frame):
            self.rejected += 1
            return []
        effects: list[Effect] = []
        self.fruitless = 0
        self._have.add(frame.index)
        self._arrive(frame)
        self._deadline_s = now_s + self._timeout_s  # the line is alive: wait from here
        if self._part == "data":
            effects.append(WriteChunk(index=frame.index, offset=frame.offset, data=frame.payload))
        else:
            self._pieces[frame.offset : frame.offset + len(frame.payload)] = frame.payload
            if self._have.complete and not self._accept_index():
                return []
        if self._have.complete:
            self._deadline_s = -math.inf
            return effects + self.poll(now_s)
        if 2 * sum(map(len, self._asked)) <= self._window:
            effects += self._ask()
        return effects

    def _arrive(self, frame: Frame) -> None:
        """Strike a frame off what is under way, and with it what should have come before it."""
        place = next((i for i, asked in enumerate(self._asked) if frame.index in asked), None)
        if place is None:  # it is late, and was given up
            return
        for _ in range(place):
            self._close(self._asked.popleft())
        asked = self._asked[0]
        asked.discard(frame.index)
        self._clean += 1
        if frame.last or not asked:
            self._close(self._asked.popleft())

    def _close(self, lost: set[int]) -> None:
        """A request is over; what is lost of it is missing, and asked for again with the next one."""
        if lost:
            self._doubling, self._clean = False, 0
            if len(lost) * 2 >= self._window:
                self._window = max(1, self._window // 2)
            return
        self._timeout_s = max(self._timeout_s / 2, self._min_timeout_s)
        grown = self._clean if self._doubling else self._clean // self._window
        if grown:
            self._window = min(self._window + grown, chunks.MAX_WINDOW)
            self._clean = 0

    def _accept_index(self) -> bool:
        """Prove the index as a whole; a wrong one is thrown away and fetched again, not at once."""
        index = bytes(self._pieces)
        if chunks.index_digest(index) != self._index_digest:
            self.rejected += 1
            self._start("index", self._part_size)
            self._back_off()
            return False
        self._index = index
        self._start("data", self._size)
        return True

    def _acceptable(self, frame: Frame) -> bool:
        length = min(self._chunk, self._part_size - frame.index * self._chunk)
        return (
            not self._finished
            and (frame.xfer, frame.part, frame.offer) == (self.xfer, self._part, False)
            and frame.offset == frame.index * self._chunk < self._part_size
            and len(frame.payload) == length
            and frame.index not in self._have
            and (self._index is None or frame.digest() == self._digest_of(self._index, frame.index))
        )


def serve(
    request: Request,
    read: Callable[[int, int], bytes],
    size_bytes: int,
    chunk_size_bytes: int,
    index: bytes,
) -> Iterator[Frame]:
    """The frames that answer a request: those asked for, at most its window, at most 64, whatever it says.

    Args:
        request: With ``op="chunks"``.
        read: ``read(offset, length)`` of the artifact.
        size_bytes: Size of the artifact.
        chunk_size_bytes: Size of every chunk but the last.
        index: Its concatenated chunk digests.
    """
    size = len(index) if request.part == "index" else size_bytes
    n_chunks = chunks.count(size, chunk_size_bytes)
    left = min(request.window, chunks.MAX_WINDOW)
    numbers: list[int] = []
    for first, last in request.want:
        numbers += range(first, min(last, n_chunks - 1, first + left - len(numbers) - 1) + 1)
    for number in numbers:
        offset = number * chunk_size_bytes
        length = min(chunk_size_bytes, size - offset)
        yield Frame(
            xfer=xfer_of(request.digest),
            index=number,
            offset=offset,
            payload=index[offset : offset + length] if request.part == "index" else read(offset, length),
            part=request.part,
            last=number == numbers[-1],
        )
