"""Uploads on their way, device by device: no device takes the room of another.

Nothing of them is kept over a restart: devices offer again.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.channel.frames import Frame
from edge.channel.messages import UploadStatus
from edge.channel.upload import OFFER_FIRST, UploadReceiver

IDLE_S = 600.0
# Of one device at once; each of its models sends one after the other.
MAX_OF_A_DEVICE = 8
# What all of them hold in memory.
MAX_BYTES = 512 * 2**20


@dataclass(slots=True)
class _Open:
    receiver: UploadReceiver
    seen_s: float


@dataclass(frozen=True, slots=True)
class Whole:
    """An upload that is there and proved.

    Attributes:
        kind: As its offer says.
        data: All of it.
    """

    kind: str
    data: bytes


class Uploads:
    """See the module.

    Args:
        max_bytes: What all uploads may hold in memory.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._open: dict[str, dict[str, _Open]] = {}

    def receive(self, device: str, xfer: str, frame: Frame, now_s: float) -> tuple[UploadStatus | None, Whole | None]:
        """Take a frame.

        Returns:
            What to answer, None for nothing yet; and the whole, once it is there and proved.

        Raises:
            ChannelError: The frame is an offer that cannot be read.
        """
        own = self._open.get(device, {})
        entry = own.get(xfer)
        if entry is None:
            if not frame.offer:
                return OFFER_FIRST, None
            entry = _Open(UploadReceiver(xfer), now_s)
        entry.seen_s = now_s
        status = entry.receiver.receive(frame)
        if entry.receiver.done:
            self._end(device, xfer)
            assert entry.receiver.offer is not None
            return status, Whole(entry.receiver.offer.kind, entry.receiver.data())
        self._open.setdefault(device, {})[xfer] = entry
        if len(self._open[device]) > MAX_OF_A_DEVICE:  # it has given up what it has not sent anything of for longest
            self._end(device, min(self._open[device], key=lambda each: self._open[device][each].seen_s))
        if frame.payload and self._held() > self._max_bytes:
            self._open.pop(max(self._open, key=self._held_by))
        return status, None

    def expire(self, now_s: float) -> None:
        """Give up those of which nothing came for long."""
        for device, own in list(self._open.items()):
            for xfer in [xfer for xfer, entry in own.items() if now_s - entry.seen_s > IDLE_S]:
                self._end(device, xfer)

    def _end(self, device: str, xfer: str) -> None:
        own = self._open.get(device, {})
        own.pop(xfer, None)
        if not own:
            self._open.pop(device, None)

    def _held_by(self, device: str) -> int:
        return sum(entry.receiver.held_bytes for entry in self._open[device].values())

    def _held(self) -> int:
        return sum(map(self._held_by, self._open))
