"""One artifact on its way from the coordinator to this device: as it is, or as a shorter form of it.

The download is of `edge.channel.download`, the files are of `Slots`: a partial file outlives the process and goes on
where it was. A form that does not give the artifact costs its bytes: the artifact is fetched as it is then.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from edge.agent.slots.slots import Slots, new_part, proved_chunks
from edge.channel import forms
from edge.channel.chunks import SMALLEST_BYTES
from edge.channel.download import Download, Effect, Finished, SendRequest, WriteChunk
from edge.channel.frames import Frame
from edge.channel.messages import Desired, Form, Order, Request
from edge.contract.errors import BundleError, ChannelError, EdgeError

# Time-outs of a download without one frame, before smaller ones are asked for.
_FRUITLESS = 2
# A download that moves, but by less than this: a line that is next to dead, or somebody who holds an update back.
SLOW_S, FLOOR_BYTES_PER_S = 600.0, 64


def desired_of(order: Order) -> Desired:
    """An order as what `Fetch` takes: how its bytes travel."""
    return Desired(
        release=0,
        kind="head",
        digest=order.digest,
        size_bytes=order.size_bytes,
        chunk_size_bytes=order.chunk_size_bytes,
        index_digest=order.index_digest,
        backbone=order.backbone,
        reason="",
        ts_ms=order.ts_ms,
        forms=order.forms,
    )


class Fetch:
    """The way of one artifact; it has arrived when `arrived` is a path.

    Args:
        desired: What is wanted, and by which forms it may come.
        slots: Where files are kept.
        bases: By digest, what is here that forms may be made against.

    Attributes:
        arrived: The artifact, proved by its digest; None while it is on its way.
        requests: To be published; the caller empties it.
        warnings: What went wrong and was survived; the caller empties it.
        slow: How slow it is, where that is below the floor; the caller empties it.

    Raises:
        ChannelError: What is wanted cannot be.
        OSError: The disk does not take it.
    """

    def __init__(self, desired: Desired, slots: Slots, bases: Mapping[str, Path], now_s: float) -> None:
        self.desired = desired
        self.arrived: Path | None = slots.artifact(desired.digest)
        self.requests: list[Request] = []
        self.warnings: list[str] = []
        self.slow = ""
        self._paced_s, self._came = now_s, 0  # bytes since then
        self._slots = slots
        self._bases = bases
        self._file: int | None = None  # the partial one, while it is written to
        self._looked_at = 0  # time-outs that were told of
        self._form = self._shortest()
        if self.arrived is None:
            self._start(now_s)

    def _shortest(self) -> Form | None:
        """The form that this device can use and that is shortest; None where the artifact itself is."""
        known = [
            form
            for form in self.desired.forms
            if form.codec in forms.CODECS
            and form.size_bytes < self.desired.size_bytes <= forms.MAX_BYTES
            and (not form.base or form.base in self._bases)
        ]
        return min(known, key=lambda form: form.size_bytes, default=None)

    def _start(self, now_s: float) -> None:
        what = self._what
        self._download = Download(
            digest=what.digest,
            size_bytes=what.size_bytes,
            chunk_size_bytes=self.desired.chunk_size_bytes,
            index_digest=what.index_digest,
        )
        _, index = self._slots.partial(what.digest)
        if index.exists():
            try:
                self._download.restore(index.read_bytes(), self._proved(what))
            except EdgeError:  # of another size of chunks, or damaged
                index.unlink()
        self._do(self._download.poll(now_s), now_s)

    @property
    def _what(self) -> Desired | Form:
        return self.desired if self._form is None else self._form

    def _proved(self, what: Desired | Form) -> Iterator[int]:
        part, _ = self._slots.partial(what.digest)
        digests = [self._download.chunk_digest(i) for i in range(self._download.n_chunks)]
        yield from proved_chunks(part, what.size_bytes, self.desired.chunk_size_bytes, digests)

    @property
    def next_deadline_s(self) -> float:
        """Call `poll` at this time at the latest."""
        return math.inf if self.arrived is not None else self._download.next_deadline_s

    def is_recut(self, desired: Desired) -> bool:
        """Whether this is the same artifact in smaller chunks."""
        now = self.desired
        return (
            self.arrived is None
            and (desired.digest, desired.size_bytes) == (now.digest, now.size_bytes)
            and desired.chunk_size_bytes < now.chunk_size_bytes
        )

    def frame(self, frame: Frame, now_s: float) -> None:
        """Take a frame; one of something else is ignored.

        Raises:
            BundleError: All is here, and it is not what was wanted.
            OSError: The disk does not take it.
        """
        self._step(lambda: self._download.receive(frame, now_s), now_s)

    def poll(self, now_s: float) -> None:
        """Ask again for what is late; where no frame arrives, for smaller ones: a broker may drop large ones silently.

        Raises:
            BundleError: As `frame`.
            OSError: As `frame`.
        """
        self._step(lambda: self._download.poll(now_s), now_s)
        self._look_at_pace(now_s)
        if self.arrived is None and self._download.fruitless != self._looked_at:
            self._looked_at = self._download.fruitless
            size = self.desired.chunk_size_bytes // 2
            if self._looked_at >= _FRUITLESS and size >= SMALLEST_BYTES:
                self.requests.append(Request(op="desired", chunk_size_bytes=size))

    def _look_at_pace(self, now_s: float) -> None:
        passed_s = now_s - self._paced_s
        if passed_s < SLOW_S:
            return
        if 0 < self._came < FLOOR_BYTES_PER_S * passed_s and self.arrived is None:
            self.slow = (
                f"{self._came} bytes of {self.desired.digest[:12]} in {passed_s:.0f} s, {self._download.progress:.0%} "
                f"of it is here: the line is next to dead, or somebody on it holds this update back"
            )
        self._paced_s, self._came = now_s, 0

    def _step(self, advance: Callable[[], list[Effect]], now_s: float) -> None:
        if self.arrived is None:
            self._do(advance(), now_s)

    def _do(self, effects: list[Effect], now_s: float) -> None:
        for effect in effects:
            match effect:
                case SendRequest(request=request):
                    self.requests.append(request)
                case WriteChunk(offset=offset, data=data):
                    self._write(offset, data)
                case Finished():
                    self._finish(now_s)

    def _write(self, offset: int, data: bytes) -> None:
        if self._file is None:
            part, index = self._slots.partial(self._what.digest)
            if not index.exists() or not part.exists():
                assert self._download.index is not None
                new_part(part, index, self._download.index, self._what.size_bytes)
            self._file = os.open(part, os.O_WRONLY)
        self._came += len(data)
        while data:  # a disk that is nearly full takes some of it
            written = os.pwrite(self._file, data, offset)
            offset, data = offset + written, data[written:]

    def close(self) -> None:
        """Leave it where it is; another `Fetch` of the same goes on there."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _finish(self, now_s: float) -> None:
        self.close()
        form, found = self._form, self._slots.finish(self._what.digest)
        if form is None:
            if found is None:
                raise BundleError("the artifact does not have the digest of the release")
            self.arrived = found
            return
        try:
            if found is None:
                raise ChannelError("it does not have its digest")
            self.arrived = self._slots.keep_artifact(self.desired.digest, self._restored(form, found))
        except ChannelError as exc:
            self.warnings.append(f"the artifact could not be made of its shorter form ({exc}); it is fetched as it is")
            self._form = None
            self._start(now_s)
        finally:
            if found is not None:
                found.unlink(missing_ok=True)

    def _restored(self, form: Form, found: Path) -> bytes:
        try:
            base = self._bases[form.base].read_bytes() if form.base else None
        except OSError as exc:
            raise ChannelError(f"what it is made against cannot be read: {exc.strerror}") from exc
        return forms.restore(form.codec, found.read_bytes(), self.desired.size_bytes, base)
