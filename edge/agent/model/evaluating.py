"""Candidate heads that the fleet asks this device about, before they are given to anybody.

Only where the device agrees (`--evaluate-candidates`). A candidate is fetched like a release, tried on the labels that
came last beside the head of the fleet whose place it would take here, and four counts go back: no sample, no label and
no answer leaves the device. Nothing is taken in.

A candidate is answered once: what was said of it is kept, and said again where the coordinator asks again. What cannot
be fetched now is fetched when the order comes again.

Pure but for the model that it asks, and its folder: time comes in, requests and replies go out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edge.agent.model.host import ModelHost
from edge.agent.model.on_device_model import OnDeviceModel
from edge.agent.model.releases import fitted
from edge.agent.slots.fetching import Fetch, desired_of
from edge.agent.slots.slots import read_record, write_record
from edge.channel.frames import Frame
from edge.channel.messages import Candidate, Reply, Request
from edge.contract.errors import EdgeError
from edge.learning.exchange import HeadRelease
from edge.learning.mixture import MERGED, PUSHED, SHIPPED

# In the folder of the model: what was said of the candidate that came last.
RECORD = "evaluated.json"
OFF = "this device does not agree to it: edge-agent run --evaluate-candidates"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """What a candidate came to on the labels that came last.

    Attributes:
        digest: Of the candidate.
        labelled: Labels that it was tried on.
        both: Where it and the head before were right. Of several yes-or-no answers the shares that were; of quantities,
            which are not right or wrong, 0.
        only_new: Where only it was right; of quantities the sum of what it gained, each from 0 to 1.
        only_old: Where only the head before was right; of quantities the sum of what it lost.
    """

    digest: str = ""
    labelled: int = 0
    both: float = 0.0
    only_new: float = 0.0
    only_old: float = 0.0


def evaluated(model: OnDeviceModel, release: HeadRelease, digest: str) -> Evaluated:
    """Try a candidate on the labels that came last, beside the head of the fleet whose place it would take.

    That is the newest merge that competes here, else the head that was shipped or pushed: a merge is judged as a merge,
    and not by what this device has learned beyond it, which stays whatever comes.

    Raises:
        BundleError: It is no head for this model.
    """
    learning, learned = model.learning, model.learned
    here = fitted(model, release)
    trusted = learned.recent.weights > 0  # who knows that a label is wrong says so by a weight of 0
    features, targets = learned.recent.features(learning.shape)[trusted], learned.recent.targets[trusted]
    if not len(targets):
        return Evaluated(digest=digest)
    before = next(name for name in (MERGED, SHIPPED, PUSHED) if name in learned.experts)
    with np.errstate(all="ignore"):  # what is not finite counts as wrong
        old = learning.run(features, learning.parameters(learned, before))
        new = learning.run(features, here.parameters)
    task = learning.task(learned)
    gains = task.gains(old, new, targets)
    right = [task.right(each, targets) * np.isfinite(each).all(axis=1) for each in (old, new)]
    return Evaluated(
        digest=digest,
        labelled=len(targets),
        both=round(float(np.minimum(*right).sum()), 6),
        only_new=round(float(np.maximum(gains, 0.0).sum()), 6),
        only_old=round(float(np.maximum(-gains, 0.0).sum()), 6),
    )


class Evaluating:
    """See the module.

    Args:
        host: Of the model.
        agrees: Whether this device agrees.
        max_bytes: Largest artifact that it takes.

    Attributes:
        events: What happened, by kind and text; the caller empties it.
        requests: For frames, to be published; the caller empties it.
        replies: To orders, to be published; the caller empties it.
    """

    def __init__(self, host: ModelHost, *, agrees: bool, max_bytes: int) -> None:
        self._host, self._agrees, self._max_bytes = host, agrees, max_bytes
        self._order: Candidate | None = None
        self._fetch: Fetch | None = None
        self._told = ""
        self.events: list[tuple[str, str]] = []
        self.requests: list[Request] = []
        self.replies: list[Reply] = []

    def offer(self, order: Candidate, now_s: float) -> None:
        """Try a candidate; one that was answered is answered again."""
        if why := self._unfit(order):
            self._reply(order, 1, why)
            return
        known = read_record(self._path, Evaluated, [])
        if known.digest == order.digest and known.labelled:  # before its first label nothing was said
            self._answer(order, known)
            return
        if self._fetch is not None and self._order is not None and self._order.digest == order.digest:
            self._order = order
            if not self._fetch.is_recut(desired_of(order)):
                return
        self.give_up()
        self._order = order
        try:
            self._fetch = Fetch(desired_of(order), self._host.slots, self._host.bases(), now_s)
        except (EdgeError, OSError) as exc:
            self._later(exc)
            return
        self.poll(now_s)

    @property
    def _path(self) -> Path:
        return self._host.slots.folder / RECORD

    def _unfit(self, order: Candidate) -> str:
        """Why a candidate is not tried here, as far as the order tells; "" where it may be."""
        if not self._agrees:
            return OFF
        backbone = self._host.model.manifest.backbone_digest
        if order.backbone != backbone:
            return f"it belongs to the backbone {order.backbone[:12]}, this device runs {backbone[:12]}"
        if order.size_bytes > self._max_bytes:
            return f"{order.size_bytes} bytes, this device takes at most {self._max_bytes}"
        return ""

    def give_up(self, digest: str = "") -> None:
        """Fetch a candidate no more: whatever it is, or where it is this one, which is fetched as a release by now."""
        if self._fetch is not None and digest in ("", self._fetch.desired.digest):
            self._fetch.close()
            self._fetch = self._order = None

    @property
    def next_deadline_s(self) -> float:
        """Call `poll` at this time at the latest."""
        return math.inf if self._fetch is None else self._fetch.next_deadline_s

    def frame(self, frame: Frame, now_s: float) -> None:
        """Take a frame; another's is ignored."""
        self._go_on(lambda fetch: fetch.frame(frame, now_s))

    def poll(self, now_s: float) -> None:
        """Ask again for what is late."""
        self._go_on(lambda fetch: fetch.poll(now_s))

    def _go_on(self, step: Callable[[Fetch], None]) -> None:
        fetch, order = self._fetch, self._order
        if fetch is None or order is None:
            return
        try:
            step(fetch)
        except (EdgeError, OSError) as exc:
            self._later(exc)
            return
        self.requests += fetch.requests
        fetch.requests.clear()
        if fetch.arrived is not None:
            self._fetch = self._order = None
            self._try(order, fetch.arrived)

    def _later(self, exc: EdgeError | OSError) -> None:
        if self._told != (why := f"it cannot be fetched: {exc}"):
            self.events.append(("candidate-waits", why))
        self._told = why
        self.give_up()

    def _try(self, order: Candidate, path: Path) -> None:
        try:
            release = HeadRelease.decode(path.read_bytes(), "the candidate")
            found = evaluated(self._host.model, release, order.digest)
            before = read_record(self._path, Evaluated).digest
            write_record(self._path, found)
        except OSError as exc:
            self._later(exc)
            return
        except EdgeError as exc:
            self._reply(order, 1, str(exc))
            self._delete(order.digest)
            return
        text = f"only it was right on {found.only_new:g}, only the head before on {found.only_old:g}"
        self.events.append(("candidate-tried", f"on {found.labelled} labels {text}"))
        self._told = ""
        self._answer(order, found)
        self._delete(before)  # this one stays: it need not be fetched again when it is released

    def _delete(self, digest: str) -> None:
        if digest and digest != self._host.slots.record.head:
            with suppress(OSError):
                (self._host.slots.folder / "artifacts" / digest).unlink()

    def _answer(self, order: Candidate, found: Evaluated) -> None:
        counts = {key: value for key, value in asdict(found).items() if key != "digest"}
        self.replies.append(Reply(id=f"{order.word}-{order.number}", rc=0, detail="", out=counts))

    def _reply(self, order: Candidate, rc: int, detail: str) -> None:
        self.replies.append(Reply(id=f"{order.word}-{order.number}", rc=rc, detail=detail[:500], out={}))
