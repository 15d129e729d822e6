"""One release from above on its way to the devices of this site: fetched, proved, rolled out, active.

Its states are those of a slot on a device, so that gates above read them as they read a device's: *probation* while
the site's own rollout is under way, *active* when that has gone through all its waves.
"""

from __future__ import annotations

import hashlib
import math
from io import BufferedRandom
from pathlib import Path
from typing import Any, Self

from edge.channel.download import Download, Effect, Finished, SendRequest, WriteChunk
from edge.channel.frames import Frame
from edge.channel.messages import Desired, Request
from edge.contract.clock import Now
from edge.contract.errors import BundleError, EdgeError, LearningError
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.rollout.states import RolloutEvent, RolloutState
from edge.coordinator.store.store import Store
from edge.coordinator.upstream.pools import Pools
from edge.learning.exchange import HeadRelease

# In these the release is dealt with, and its counter is the newest of its model.
_TAKEN = ("probation", "active", "refused", "rolled-back")
_AGAIN = ("failed", "idle")
_OVER = {
    RolloutState.COMPLETED: "active",
    RolloutState.ABORTED: "rolled-back",
    RolloutState.REVERTED: "rolled-back",
    RolloutState.SUPERSEDED: "rolled-back",
}
WHO = "the coordinator above"


class Arriving:
    """See the module.

    Args:
        core: This coordinator.
        store: Its database.
        pools: What it has from above.
        folder: For the file while it comes; created.
        model: That it is for.
        desired: The release.

    Attributes:
        state: As on a device.
        detail: Why, for people.
        is_changed: Whether it was not told above yet; who tells sets it back.
    """

    def __init__(
        self, core: CoordinatorCore, store: Store, pools: Pools, folder: Path, model: str, desired: Desired
    ) -> None:
        self._core, self._store, self._pools, self._folder = core, store, pools, folder
        self.model, self.desired = model, desired
        self.state, self.detail, self.is_changed = "idle", "", False
        self._rollout = 0
        self._download: Download | None = None
        self._file: BufferedRandom | None = None
        self._requests: list[Request] = []

    @classmethod
    def remembered(
        cls, core: CoordinatorCore, store: Store, pools: Pools, folder: Path, model: str, kept: dict[str, Any]
    ) -> Self:
        """One that was dealt with before a restart."""
        desired = Desired(
            release=kept["release"], kind=kept["kind"], digest=kept["digest"], size_bytes=0, chunk_size_bytes=0,
            index_digest="", backbone=kept["backbone"], reason="", ts_ms=0, model=model, attempt=kept["attempt"],
        )  # fmt: skip
        found = cls(core, store, pools, folder, model, desired)
        found.state, found.detail, found._rollout = kept["state"], kept["detail"], kept["rollout"]
        return found

    @property
    def is_settled(self) -> bool:
        """Whether it is live here, or will not be."""
        return self.state in ("active", "refused", "rolled-back")

    @property
    def next_deadline_s(self) -> float:
        """Call `tick` at this time at the latest."""
        return math.inf if self._download is None else self._download.next_deadline_s

    def _enter(self, state: str, detail: str = "") -> None:
        if (state, detail) == (self.state, self.detail):
            return
        self.state, self.detail, self.is_changed = state, detail, True
        if state not in _TAKEN:
            return
        document = self._pools.read()
        document["models"][self.model] = {
            "release": self.desired.release,
            "kind": self.desired.kind,
            "digest": self.desired.digest,
            "backbone": self.desired.backbone,
            "attempt": self.desired.attempt,
            "state": state,
            "detail": detail,
            "rollout": self._rollout,
        }
        self._pools.write(document)

    def begin(self, now: Now, refused: str = "") -> None:
        """Fetch it; or refuse it, for a reason."""
        self.stop()
        if refused:
            self._enter("refused", refused)
            return
        desired = self.desired
        try:
            self._download = Download(
                digest=desired.digest,
                size_bytes=desired.size_bytes,
                chunk_size_bytes=desired.chunk_size_bytes,
                index_digest=desired.index_digest,
            )
            self._core.room_for(desired.size_bytes)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w+b")
        except (EdgeError, OSError) as exc:
            self.stop()
            self._enter("failed", f"fetch: {exc}")
            return
        self._enter("fetching")
        self._do(self._download.poll(now.s), now)

    def again(self, desired: Desired, now: Now) -> None:
        """The coordinator above says its wish once more, perhaps another one about the same release."""
        before, self.desired = self.desired, desired
        if desired.activate == "never":
            self._withdraw(now)
        elif (
            self.state in _AGAIN
            or (self.state == "refused" and desired.attempt > before.attempt)
            or (self.state == "fetching" and desired.chunk_size_bytes != before.chunk_size_bytes)
        ):
            self.begin(now)
        elif self.state == "staged" and desired.activate == "now":
            self._use(now)

    def _withdraw(self, now: Now) -> None:
        if self.state in ("fetching", "staged"):
            self.stop()
            self._enter("idle", "the coordinator above took it back")
        elif self.state == "probation" and self._rollout:
            self._core.rollouts.order(self._rollout, RolloutEvent.ABORT, WHO, "it took the release back", now)

    def stop(self) -> None:
        """Give up what is on its way."""
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)
        self._file = self._download = None

    @property
    def _path(self) -> Path:
        return self._folder / f"{self.desired.digest}.part"

    def take_requests(self) -> list[Request]:
        """What is to be asked for above."""
        found, self._requests = self._requests, []
        return found

    def frame(self, frame: Frame, now: Now) -> None:
        """Take a frame of the download; others are ignored."""
        if self._download is not None:
            self._do(self._download.receive(frame, now.s), now)

    def tick(self, now: Now, *, look: bool) -> None:
        """Go on with the download; with `look`, see where the rollout stands."""
        if self._download is not None:
            self._do(self._download.poll(now.s), now)
        if look and self.state == "probation":
            self._look()

    def _do(self, effects: list[Effect], now: Now) -> None:
        try:
            for effect in effects:
                if isinstance(effect, SendRequest):
                    self._requests.append(effect.request)
                elif isinstance(effect, WriteChunk) and self._file is not None:
                    self._file.seek(effect.offset)
                    self._file.write(effect.data)
                elif isinstance(effect, Finished):
                    self._arrived(now)
        except OSError as exc:
            self.stop()
            self._enter("failed", f"fetch: it could not be written: {exc.strerror}")

    def _arrived(self, now: Now) -> None:
        assert self._file is not None
        self._file.flush()
        self._file.seek(0)
        self._download = None
        if hashlib.file_digest(self._file, "sha256").hexdigest() != self.desired.digest:
            self.stop()
            self._enter("failed", "verify: the bytes do not have the digest that was said")
        elif self.desired.activate == "wait":
            self._enter("staged")
        else:
            self._use(now)

    # What becomes of it here

    def _use(self, now: Now) -> None:
        """Everything is here and proved: give it to the devices."""
        path = self._path
        try:
            data = path.read_bytes()
            release = HeadRelease.decode(data, "the head from above") if self.desired.kind == "head" else None
            if release is None or not release.is_merge:
                self._roll_out(data, path, now)
            elif release.merged:
                self._take_sum(release, now)
            else:
                self._take_changes(release, now)
        except (BundleError, LearningError) as exc:  # the same bytes again would be no better
            self._enter("refused", f"trial: {exc}")
        except (EdgeError, OSError) as exc:
            self._enter("failed", f"activate: {exc}")
        finally:
            self.stop()

    def _roll_out(self, data: bytes, path: Path, now: Now) -> None:
        what = f"the release {self.desired.release} from above"
        found = self._core.add_artifact(data, path, what)
        reason = f"release {self.desired.release} of the fleet above: {self.desired.reason}"[:500]
        with self._store.transaction():
            release, rollout = self._core.roll_out(
                found["digest"], found["kind"], found["backbone"], [], reason, now,
                who=WHO, model=self.model if found["kind"] == "bundle" else "", file=what,
                undoes=self._pools.made_of(self.desired.undoes), anew=self.desired.anew,
            )  # fmt: skip
            self._pools.made(self.desired.release, release.counter)
        self._rollout = rollout.id
        self._enter("probation", f"release {release.counter} here, rollout {rollout.id}: {rollout.state}")

    def _take_sum(self, release: HeadRelease, now: Now) -> None:
        bundle = self._core.bundles.of(release.backbone)
        if bundle is None:
            raise BundleError("the merge belongs to a backbone that is not known here")
        self._pools.take(bundle, release, self.desired.release)
        self._enter("probation", "it is in the next merge here")
        self._core.learning.merge_soon(release.backbone, now)

    def _take_changes(self, release: HeadRelease, now: Now) -> None:
        """A mean of changes goes on as it is, and the devices begin from it anew."""
        if self._core.bundles.of(release.backbone) is None:
            raise BundleError("the merge belongs to a backbone that is not known here")
        ours = self._pools.expanded(release.backbone, release)
        here = self._core.release_merge(ours, f"release {self.desired.release} of the fleet above", now)
        self._pools.begin_from(release.backbone, self.desired.release, here.counter)
        self._enter("active", f"release {here.counter} here")

    def _look(self) -> None:
        if not self._rollout:
            counter = self._pools.release_of(self.desired.backbone, self.desired.release)
            if counter:
                self._enter("active", f"it is in release {counter} here")
            return
        rollout = self._store.rollouts.get(self._rollout)
        if rollout is None:
            self._enter("failed", f"the rollout {self._rollout} is gone")
            return
        self._enter(_OVER.get(rollout.state, "probation"), f"rollout {rollout.id} here: {rollout.state}")
