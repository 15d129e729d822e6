"""What was learned, on its way to the coordinator: one upload at a time, each version once.

Pure but for the model that it asks: time comes in, frames go out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from edge.agent.model import releases
from edge.agent.model.host import ModelHost
from edge.channel.chunks import UPLOAD_BYTES, USUAL_BYTES, fitting
from edge.channel.forms import shorten
from edge.channel.frames import Frame
from edge.channel.messages import UploadOffer, UploadStatus
from edge.channel.upload import Upload
from edge.contract.digest import sha256
from edge.learning.compression import EXACT, Compression

# After so many uploads without trouble larger frames are tried again.
GROW_AFTER = 8
# The coordinator may have lost an upload that it acknowledged (its database was restored): say it again now and then.
RESYNC_S = 6 * 3600.0
# Where what was learned could not be made safe from a power cut, nothing is sent before that is tried again.
UNSAFE_S = 60.0
_NOTHING = (-1, "")


class Contributing:
    """See the module.

    Args:
        host: Its live model learns.
        interval_s: Least time between two uploads.
        state_id: Of the state folder.
        compression: How they are made shorter, where the coordinator reads that.

    Attributes:
        events: What went wrong, by kind and text; the caller empties it.
    """

    def __init__(
        self, host: ModelHost, interval_s: float, state_id: str = "", compression: Compression = EXACT
    ) -> None:
        self._host = host
        self._wanted = self._compression = compression  # as told, and as the coordinator takes it
        self._state_id = state_id
        self._interval_s = interval_s
        self._upload: Upload | None = None
        self._largest_bytes, self._chunk_bytes = USUAL_BYTES, UPLOAD_BYTES  # what the broker takes; what has arrived
        self._since_grown = 0
        self._sent = self._sending = _NOTHING  # version and bundle that the coordinator has, and is being sent
        self._next_s, self._again_s = -math.inf, math.inf
        self._refused = self._withheld = ""  # why the last one was, and why there is none
        self.events: list[tuple[str, str]] = []

    @property
    def next_deadline_s(self) -> float:
        """Call `poll` at this time at the latest."""
        if self._upload is not None:
            return self._upload.next_deadline_s
        return self._next_s if self._has_something() else math.inf

    def receive(self, xfer: str | None, message: UploadStatus, now_s: float) -> None:
        """Take what the coordinator says of an upload; of another one it is ignored."""
        if self._upload is None or xfer != self._upload.xfer:
            return
        codec = self._upload.codec
        if message.status == "receiving" and codec and codec not in message.codecs:
            self._go_exact(f"the coordinator does not read uploads in {codec}: they are sent exact")
            return
        self._upload.receive(message, now_s)

    def limit(self, max_packet_bytes: int) -> None:
        """Packets have at most so many bytes from now on."""
        self._largest_bytes = fitting(max_packet_bytes)
        self._chunk_bytes = min(self._chunk_bytes, self._largest_bytes)
        if self._upload is not None:
            self._upload.resize(self._largest_bytes)

    def forget(self) -> None:
        """The coordinator does not know us: it may have lost what we sent, and may be another one."""
        self._sent, self._compression = _NOTHING, self._wanted

    def hurry(self, now_s: float) -> None:
        """Do not wait for the interval."""
        self._next_s = now_s

    def _go_exact(self, why: str) -> None:
        """Send the same, and what comes, exact; until the next `forget`."""
        self._compression, self._upload = EXACT, None
        self.events.append(("upload-exact", why))

    def _has_something(self) -> bool:
        model = self._host.model
        return model.n_contributed > 0 and self._sent != self._version()

    def _version(self) -> tuple[int, str]:
        """Identity of a contribution made now: samples so far, which bundle and, for a change, against which head."""
        model = self._host.model
        base = model.learned.release if model.learning.kind == "delta" else 0
        return releases.newest(model), f"{model.bundle.digest} {base}"

    def poll(self, now_s: float, make_safe: Callable[[], None]) -> list[Frame]:
        """Frames to send now.

        Args:
            now_s: The time.
            make_safe: Makes what was learned survive a power cut: a version on its way must be known afterwards.
        """
        self._tell_withheld()
        if self._upload is None and self._has_something() and now_s >= self._next_s:
            self._begin(make_safe, now_s)
        if self._upload is None:
            if now_s >= self._again_s:
                self.forget()
            return []
        frames = list(self._upload.poll(now_s))
        if self._upload.refused is not None:
            if self._upload.refused != self._refused:  # one that was forgotten is refused for ever, for the same reason
                self.events.append(("upload-refused", self._upload.refused))
            self._refused = self._upload.refused
            if self._upload.codec:
                self._go_exact("an upload was refused as it was packed: it is sent again exact")
                return frames
        elif not self._upload.done:
            return frames
        else:
            self._refused = ""
        self._learn_size(self._upload.chunk_size_bytes)
        self._sent = self._sending  # also one that was refused: the same again would be, too
        self._upload = None
        self._next_s, self._again_s = now_s + self._interval_s, now_s + RESYNC_S
        return frames

    def _learn_size(self, arrived_bytes: int) -> None:
        """Begin the next upload with frames of the size that arrived; now and then with larger ones."""
        self._since_grown = self._since_grown + 1 if arrived_bytes == self._chunk_bytes else 0
        self._chunk_bytes = arrived_bytes
        if self._since_grown >= GROW_AFTER:
            self._chunk_bytes, self._since_grown = min(2 * arrived_bytes, self._largest_bytes), 0

    def _tell_withheld(self) -> None:
        """Say once why a device that may tell nothing without noise tells nothing."""
        disclosing = self._host.model.learning.disclosing if self._host.model.learns else None
        why = "" if disclosing is None else disclosing.why_not
        if why and why != self._withheld:
            self.events.append(("contribution-withheld", f"what is learned stays on this device (--noise): {why}"))
        self._withheld = why

    def _begin(self, make_safe: Callable[[], None], now_s: float) -> None:
        update = releases.contribution(self._host.model, self._host.name, self._state_id, self._compression)
        make_safe()
        if not self._host.model.state.is_safe:
            # The disk takes nothing. After a kill this device would know less than it told: what it learns then would
            # be taken for known, and noise would be another one.
            self._next_s = now_s + max(self._interval_s, UNSAFE_S)
            return
        data, whole_bytes = update.encode(), 0
        if update.codec and (shorter := shorten(data)) is not None:
            whole_bytes, data = len(data), shorter[1]
        offer = UploadOffer(
            kind="head-update",
            digest=sha256(data),
            size_bytes=len(data),
            chunk_size_bytes=self._chunk_bytes,
            backbone=update.backbone,
            version=update.version,
            n_samples=update.n_samples,
            codec=update.codec,
            whole_bytes=whole_bytes,
        )
        self._upload = Upload(data, offer)
        self._sending = self._version()
