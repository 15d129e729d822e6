"""Upload of one small artifact from a device: the mirror of a download. No clock, no I/O.

Theory of operation. The device's first frame is an offer. The coordinator answers with what it has and how many more
frames it takes; the device sends the first missing ones, no more, marks the last of them, and waits. When the answer is
late it halves its window and offers again (2 s to 60 s), which is also how it finds out what survived a restart of the
coordinator: one that does not know the transfer answers `OFFER_FIRST`. Frames are upserts by index, so a repeat is
harmless. The whole is proved by its digest before `UploadReceiver.data` gives it out.

Not done here: keeping a half-received upload over a restart of the coordinator (it is fetched again), and deciding
whether the content is any good.
"""

from __future__ import annotations

import dataclasses
import math

from edge.channel import chunks
from edge.channel.codec import decode_offer, encode_offer
from edge.channel.forms import restore
from edge.channel.frames import Frame, xfer_of
from edge.channel.messages import UploadOffer, UploadStatus
from edge.contract.digest import sha256
from edge.contract.errors import ChannelError

OFFER_FIRST = UploadStatus(have=(), window=0, status="receiving", detail="offer first")
MAX_FRUITLESS = 2  # windows of which nothing arrived, before frames become smaller
MAX_UPLOAD_BYTES = 64 * 1024 * 1024


class Upload:
    """The sending end, on the device.

    Args:
        data: What to send.
        offer: What it is; its digest and size must be those of `data`.
        timeout_s: Offer again after this long without an answer.
        max_timeout_s: The wait doubles up to this.

    Attributes:
        xfer: Transfer identifier: the last level of the topics.
        done: The coordinator has all of it and proved it.
        refused: Why the coordinator does not want it; None while it may.

    Raises:
        ChannelError: The offer does not fit the data, or a size is out of bounds.
    """

    def __init__(self, data: bytes, offer: UploadOffer, *, timeout_s: float = 2.0, max_timeout_s: float = 60.0) -> None:
        chunks.check_sizes(len(data), offer.chunk_size_bytes)
        if (offer.size_bytes, offer.digest) != (len(data), sha256(data)):
            raise ChannelError(
                "upload: expected an offer with the size and digest of the data, got others; make it anew"
            )
        self.xfer = xfer_of(offer.digest)
        self.done = False
        self.refused: str | None = None
        self._data, self._offer = data, offer
        self._n_chunks = chunks.count(len(data), offer.chunk_size_bytes)
        self._timeout_s = self._min_timeout_s = timeout_s
        self._max_timeout_s = max_timeout_s
        self._deadline_s = -math.inf
        self._window = chunks.MAX_WINDOW
        self._offering = False  # an offer is under way
        self._waiting = False  # an answer is due at the deadline
        self._sent: list[int] = []  # the last window
        self._fruitless = 0  # windows in a row of which no whole chunk arrived
        self._to_send: list[int] = []

    @property
    def next_deadline_s(self) -> float:
        """Call `poll` at this time at the latest; minus infinity means now, infinity never."""
        if self.done or self.refused is not None:
            return math.inf
        return -math.inf if self._to_send else self._deadline_s

    def poll(self, now_s: float) -> list[Frame]:
        """The frames to publish now.

        Args:
            now_s: Monotonic time in seconds.
        """
        if self.done or self.refused is not None:
            return []
        if self._to_send:
            due, self._to_send = self._to_send, []
            self._sent = due
            self._deadline_s = now_s + self._timeout_s
            self._waiting = True
            return [self._frame(index, last=index == due[-1]) for index in due]
        if now_s < self._deadline_s:
            return []
        if self._waiting:  # nobody answered in time
            self._window = max(1, self._window // 2)
            self._timeout_s = min(2 * self._timeout_s, self._max_timeout_s)
        self._offering = self._waiting = True
        self._deadline_s = now_s + self._timeout_s
        return [Frame(xfer=self.xfer, index=0, offset=0, payload=encode_offer(self._offer), offer=True, last=True)]

    def _frame(self, index: int, *, last: bool) -> Frame:
        size = self._offer.chunk_size_bytes
        return Frame(
            xfer=self.xfer,
            index=index,
            offset=index * size,
            payload=self._data[index * size : (index + 1) * size],
            last=last,
        )

    @property
    def chunk_size_bytes(self) -> int:
        """Size of its frames' payload."""
        return self._offer.chunk_size_bytes

    @property
    def codec(self) -> str:
        """What the coordinator must know to read it; "" for nothing."""
        return self._offer.codec

    @property
    def size_bytes(self) -> int:
        """Of the whole."""
        return len(self._data)

    def resize(self, chunk_size_bytes: int) -> None:
        """Go on in smaller pieces: it is offered anew."""
        size = max(chunk_size_bytes, chunks.SMALLEST_BYTES)
        if size >= self._offer.chunk_size_bytes:
            return
        self._offer = dataclasses.replace(self._offer, chunk_size_bytes=size)
        self._n_chunks = chunks.count(len(self._data), size)
        self._to_send, self._sent, self._fruitless = [], [], 0
        self._deadline_s, self._waiting, self._offering = -math.inf, False, False

    def _arrive(self, status: UploadStatus) -> bool:
        """Whether what was sent arrives, as far as the answer to an offer can tell."""
        whole = [index for index in self._sent if index + 1 < self._n_chunks] or self._sent
        arrived = any(first <= index <= last for index in whole for first, last in status.have)
        self._fruitless = 0 if arrived or not whole else self._fruitless + 1
        self._sent = []
        return self._fruitless < MAX_FRUITLESS or self._offer.chunk_size_bytes < 2 * chunks.SMALLEST_BYTES

    def receive(self, status: UploadStatus, now_s: float) -> None:
        """Take the coordinator's answer; then call `poll`. Late answers are harmless."""
        if status.status == "done":
            self.done = True
        elif status.status == "refused":
            self.refused = status.detail or "no reason given"
        elif status.window == 0:
            # One lost transfer gives one such answer for each frame under way: only the first one counts.
            if not self._offering:
                self._to_send, self._deadline_s, self._waiting = [], now_s, False
        elif self._offering and not self._arrive(status):
            # Offers arrive, are answered, and not one frame does: a broker drops what is too large without a word.
            self.resize(self._offer.chunk_size_bytes // 2)
        else:
            if not self._offering:  # a whole window without a time-out
                self._window = min(self._window + 1, chunks.MAX_WINDOW)
                self._timeout_s = max(self._timeout_s / 2, self._min_timeout_s)
            self._offering = self._waiting = False
            have = chunks.ChunkSet(self._n_chunks)
            for first, last in status.have:
                for index in range(first, min(last, self._n_chunks - 1) + 1):
                    have.add(index)
            self._to_send = have.missing(min(status.window, self._window))
            self._deadline_s = now_s + self._timeout_s


class UploadReceiver:
    """The receiving end, on the coordinator: one for each (device, transfer).

    Args:
        xfer: Transfer that the topic names.
        window: Frames taken at once.
        max_size_bytes: Refuse a larger upload. Memory is used as frames arrive, not when they are promised.

    Attributes:
        offer: What is coming; None until the offer came.
        done: All of it is here and proved.
        held_bytes: What of it is in memory.
    """

    def __init__(self, xfer: str, *, window: int = 16, max_size_bytes: int = MAX_UPLOAD_BYTES) -> None:
        self.xfer = xfer
        self.offer: UploadOffer | None = None
        self.done = False
        self._window = min(max(window, 1), chunks.MAX_WINDOW)
        self._max_size_bytes = max_size_bytes
        self._chunks: dict[int, bytes] = {}
        self._whole = b""
        self.held_bytes = 0
        self._have = chunks.ChunkSet(0)
        self._expected: set[int] = set()
        self._refused: str | None = None

    def receive(self, frame: Frame) -> UploadStatus | None:
        """Take a frame; returns what to answer on ``dn/ul/{xfer}``, or None while more of the window is to come.

        Raises:
            ChannelError: The offer cannot be read; answer nothing.
        """
        if frame.offer:
            return self._take_offer(decode_offer(frame.payload))
        if self.offer is None:
            return OFFER_FIRST
        if self.done or self._refused is not None or not self._fits(self.offer, frame):
            return None
        if frame.index not in self._have:
            self._chunks[frame.index] = frame.payload
            self.held_bytes += len(frame.payload)
            self._have.add(frame.index)
        if self._have.complete:
            return self._prove(self.offer)
        self._expected.discard(frame.index)
        return self._status() if frame.last or not self._expected else None

    def data(self) -> bytes:
        """The whole, proved by its digest; out of its zstd frame, where it came in one.

        Raises:
            ChannelError: It is not complete.
        """
        if not self.done:
            raise ChannelError(f"upload {self.xfer}: expected all chunks, got {len(self._have)}; wait until it is done")
        return self._whole

    def _take_offer(self, offer: UploadOffer) -> UploadStatus:
        if self.offer is None:
            try:
                chunks.check_sizes(offer.size_bytes, offer.chunk_size_bytes, self._max_size_bytes)
                if offer.whole_bytes:
                    chunks.check_sizes(offer.whole_bytes, offer.chunk_size_bytes, self._max_size_bytes)
            except ChannelError as exc:
                self._refused = str(exc)
            if xfer_of(offer.digest) != self.xfer:
                self._refused = f"expected the offer of transfer {self.xfer}, got {offer.digest[:16]}"
            if self._refused is None:
                self._have = chunks.ChunkSet(chunks.count(offer.size_bytes, offer.chunk_size_bytes))
            self.offer = offer
        elif self._is_recut(offer) and not self.done:
            self.offer = offer
            self._chunks.clear()
            self._have = chunks.ChunkSet(chunks.count(offer.size_bytes, offer.chunk_size_bytes))
        elif offer != self.offer and not self.done:
            self._refused = "this transfer was offered before with other values"
        return self._status()

    def _is_recut(self, offer: UploadOffer) -> bool:
        """Whether it is the same in smaller pieces: larger ones did not arrive."""
        known = self.offer
        return (
            known is not None
            and self._refused is None
            and known.chunk_size_bytes > offer.chunk_size_bytes >= chunks.SMALLEST_BYTES
            and dataclasses.replace(offer, chunk_size_bytes=known.chunk_size_bytes) == known
        )

    def _prove(self, offer: UploadOffer) -> UploadStatus:
        data = b"".join(self._chunks[index] for index in sorted(self._chunks))
        self._chunks.clear()
        if sha256(data) != offer.digest:
            self._refused = "the data do not have the digest that was offered"
        else:
            try:
                self._whole = restore("zstd", data, offer.whole_bytes) if offer.whole_bytes else data
            except ChannelError as exc:
                self._refused = str(exc)
        self.done = self._refused is None
        self.held_bytes = len(self._whole)
        return self._status()

    def _status(self) -> UploadStatus:
        if self._refused is not None:
            return UploadStatus(have=(), window=0, status="refused", detail=self._refused)
        have = chunks.to_ranges(self._have.present())
        if self.done:
            return UploadStatus(have=have, window=0, status="done")
        missing = self._have.missing(self._window)
        self._expected = set(missing)
        return UploadStatus(have=have, window=len(missing), status="receiving")

    @staticmethod
    def _fits(offer: UploadOffer, frame: Frame) -> bool:
        offset = frame.index * offer.chunk_size_bytes
        return (
            frame.part == "data"
            and frame.offset == offset < offer.size_bytes
            and len(frame.payload) == min(offer.chunk_size_bytes, offer.size_bytes - offset)
        )
