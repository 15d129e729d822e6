"""Checkpoints of a model: what was learned goes to the coordinator, and comes back to this device or to another.

Theory of operation. A checkpoint is sent when it is asked for, or by plan; one at a time, and once more after a restart
that came before its end. An order to take one up is said again until it is answered. It is fetched like a release, and
taken up whole or not at all: of another backbone, other learners, or damaged it is refused with the reason, and what
was there stays. What the disk does not take now is tried again. The number of the order is kept, so that an old order
that comes again changes nothing.

Pure but for the model that it asks: time comes in, frames and replies go out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edge.agent.config import AgentConfig
from edge.agent.model.deployment import Deployment
from edge.agent.model.host import ModelHost
from edge.agent.slots.fetching import Fetch, desired_of
from edge.agent.slots.states import SlotState
from edge.channel.chunks import UPLOAD_BYTES, fitting
from edge.channel.frames import Frame
from edge.channel.messages import Reply, Request, Restore, UploadOffer, UploadStatus
from edge.channel.upload import Upload
from edge.contract import sealing
from edge.contract.clock import Now
from edge.contract.digest import is_digest, sha256
from edge.contract.errors import BundleError, EdgeError, LearningError
from edge.contract.files import replace_file
from edge.learning.checkpoint import KIND, Checkpoint, Facts, without_samples

# In the state folder: the private key that checkpoints for this device are sealed to, and what is public of it.
OWN_KEY, OWN_PUBLIC = "checkpoint.pem", "checkpoint.pub"
# What the disk, or a release on probation, kept from being taken up is tried again.
AGAIN_S = 60.0
VERSION = 1


def order_id(kind: str, number: int) -> str:
    """What an order is called in commands and replies."""
    return f"{kind}-{number}"


@dataclass(frozen=True, slots=True)
class Seals:
    """Keys of a device for checkpoints.

    Attributes:
        to: Public key of the fleet, that checkpoints are sealed to; None sends them open.
        own: File of the device's private key, for those that are sealed to it; None opens none.
        public: The device's own public key, in hexadecimal; "" where it has none.
    """

    to: bytes | None = None
    own: Path | None = None
    public: str = ""

    @classmethod
    def of(cls, config: AgentConfig) -> Seals:
        """The keys that a device has; its own is made where there is none yet.

        Raises:
            ConfigError: A key cannot be used.
            OSError: The own one cannot be written.
        """
        if config.checkpoint_key is None:
            return cls()
        own = config.state_dir / OWN_KEY
        if not own.exists():
            sealing.make_key(own)
        return cls(sealing.read_public(config.checkpoint_key), own, _public(own, config.state_dir / OWN_PUBLIC))


def _public(own: Path, beside: Path) -> str:
    """What is public of a private key: kept beside it, that nobody need open it before there is something to open.

    Raises:
        ConfigError: It is no private key.
    """
    try:
        private = sha256(own.read_bytes())
        public, of = beside.read_text().split()
        if of == private and is_digest(public):
            return public
    except (OSError, ValueError):
        pass  # not kept yet, damaged, or `read_private` says what is wrong
    public = sealing.read_private(own).public.hex()
    with suppress(OSError), replace_file(beside) as file:
        file.write(f"{public} {sha256(own.read_bytes())}\n".encode())
    return public


class Checkpoints:
    """See the module.

    Args:
        config: Of the agent.
        host: Its live model.
        state_id: Of the state folder.
        seals: Keys of the device.

    Attributes:
        events: What happened, by kind and text; the caller empties it.
        requests: For frames, to be published; the caller empties it.
        replies: To orders, to be published; the caller empties it.
        is_renewed: Whether something was taken up; the caller sets it back.
    """

    def __init__(
        self, config: AgentConfig, host: ModelHost, deployment: Deployment, state_id: str, seals: Seals
    ) -> None:
        self._deployment = deployment
        self._config = config
        self._host = host
        self._state_id = state_id
        self._seals = seals
        self._asked: list[str] = []  # ids of the orders that one checkpoint answers
        self._upload: Upload | None = None
        self._chunk_bytes = UPLOAD_BYTES
        self._sent_samples = -1
        self._order: Restore | None = None
        self._fetch: Fetch | None = None
        self._told = ""
        self._again_s = math.inf
        self.events: list[tuple[str, str]] = []
        self.requests: list[Request] = []
        self.replies: list[Reply] = []
        self.is_renewed = False
        self._answered: Reply | None = None  # what the last order to take one up was answered

    # Out

    def ask(self, order: str) -> None:
        """Somebody wants a checkpoint."""
        if not self._host.model.learns:
            self._reply(order, 1, f"the model {self._host.name!r} does not learn, there is nothing to send")
        elif order not in self._asked:
            self._asked.append(order)

    def _is_due(self, now: Now) -> bool:
        """Whether one is to be sent by plan: a clock that went back makes one too many, and none too few."""
        every_s, model = self._config.checkpoint_every_s, self._host.model
        if not every_s or not model.learns or not model.n_samples or model.n_samples == self._sent_samples:
            return False
        last_ms = self._host.slots.record.checkpointed_ms
        return not last_ms <= now.wall_ms < last_ms + 1000 * every_s

    def document(self, now: Now) -> bytes:
        """A checkpoint of now.

        Where no samples may leave, labels that wait for the budget are learned first: they would be missing.

        Raises:
            LearningError: The model does not learn.
        """
        model, samples = self._host.model, self._config.checkpoint_samples
        if not samples:
            model.learn_waiting()
        facts = Facts(
            device=self._config.device,
            state_id=self._state_id,
            model=self._host.name,
            backbone=model.manifest.backbone_digest,
            lineage=model.learned.lineage,
            learners=tuple(model.learning.learners),
            samples=model.n_samples,
            release=self._host.slots.record.release,
            made_ms=now.wall_ms,
            has_samples=samples,
        )
        value = model.learned if samples else without_samples(model.learned)
        more = model.state.waiting_arrays() if samples else {}
        return Checkpoint.of(facts, value, more, self._seals.to).encode()

    def _begin(self, now: Now, make_safe: Callable[[], None]) -> None:
        make_safe()
        data = self.document(now)
        self._sent_samples = self._host.model.n_samples
        offer = UploadOffer(
            kind=KIND,
            digest=sha256(data),
            size_bytes=len(data),
            chunk_size_bytes=self._chunk_bytes,
            backbone=self._host.model.manifest.backbone_digest,
            version=VERSION,
            n_samples=self._sent_samples,
        )
        self._upload = Upload(data, offer)

    def receive(self, xfer: str | None, message: UploadStatus, now_s: float) -> None:
        """Take what the coordinator says of an upload; of another one it is ignored."""
        if self._upload is not None and xfer == self._upload.xfer:
            self._upload.receive(message, now_s)

    def limit(self, max_packet_bytes: int) -> None:
        """Packets have at most so many bytes from now on."""
        self._chunk_bytes = min(UPLOAD_BYTES, fitting(max_packet_bytes))
        if self._upload is not None:
            self._upload.resize(self._chunk_bytes)

    # In

    def offer(self, order: Restore, now_s: float) -> None:
        """Take up what another device learned, or what this one did; one that was taken up already is answered."""
        last = self._last()
        if order.number <= last:
            if order.number == last:
                self._answer(order.number, 0, "it was taken up")
            return
        if (why := self._unfit(order)) is not None:
            self._answer(order.number, 1, why)
            return
        if self._fetch is not None and self._order is not None and self._order.digest == order.digest:
            if not self._fetch.is_recut(desired_of(order)) and order.number == self._order.number:
                return
            self._fetch.close()
        if self._order is None or self._order.number != order.number:
            self._told = ""  # who asked anew is told why it waits, too
        self._order = order
        try:
            self._fetch = Fetch(desired_of(order), self._host.slots, {}, now_s)
        except (EdgeError, OSError) as exc:
            self._wait(f"it cannot be fetched: {exc}", now_s)
        self._again_s = now_s

    def _last(self) -> int:
        """The order that was carried out last; the state says so where a kill came before the record was written."""
        model = self._host.model
        return max(self._host.slots.record.restored, model.state.restored if model.learns else 0)

    def _unfit(self, order: Restore) -> str | None:
        """Why a checkpoint is not for this device, as far as the order tells."""
        if not self._host.model.learns:
            return f"the model {self._host.name!r} does not learn"
        backbone = self._host.model.manifest.backbone_digest
        if order.backbone != backbone:
            return f"it belongs to the backbone {order.backbone[:12]}, this device runs {backbone[:12]}"
        return None

    def frame(self, frame: Frame, now_s: float) -> None:
        """Take a frame; another's is ignored."""
        self._go_on(lambda fetch: fetch.frame(frame, now_s), now_s)

    def _go_on(self, step: Callable[[Fetch], None], now_s: float) -> None:
        fetch = self._fetch
        if fetch is None:
            return
        try:
            step(fetch)
        except (BundleError, OSError) as exc:  # the order comes again
            fetch.close()
            self._fetch = None
            self._wait(f"it cannot be fetched: {exc}", now_s)
            return
        self.requests += fetch.requests
        fetch.requests.clear()
        if fetch.arrived is not None and now_s >= self._again_s:
            self._arrived(fetch.arrived, now_s)

    def _wait(self, why: str, now_s: float) -> None:
        if why != self._told:
            self.events.append(("restore-waits", why))
        self._told, self._again_s = why, now_s + AGAIN_S

    def _arrived(self, path: Path, now_s: float) -> None:
        assert self._order is not None
        number = self._order.number
        record = self._host.slots.record
        # A head that nothing here could judge when its time was over would be waited for for ever.
        if record.state == SlotState.PROBATION and (record.trying or not self._deployment.unjudged):
            self._wait(f"release {record.release} is on probation here", now_s)
            return
        try:
            said = self._take_up(path, number)
        except OSError as exc:
            self._wait(f"it cannot be kept: {exc.strerror}", now_s)
            return
        except EdgeError as exc:
            self.events.append(("restore-refused", str(exc)))
            self._answer(number, 1, str(exc))
        else:
            self._deployment.give_way()
            self.events.append(("restored", said))
            self._answer(number, 0, said)
            self.is_renewed = True
        with suppress(OSError):
            path.unlink()
        self._fetch = self._order = None
        self._told, self._again_s = "", math.inf

    def _take_up(self, path: Path, number: int) -> str:
        """Go on from a checkpoint; safe from a power cut when this returns.

        Raises:
            EdgeError: It is not for this model, or damaged; nothing changed.
            OSError: It cannot be kept; nothing changed.
        """
        facts = self.take(path.read_bytes(), number)
        self._host.slots.note(restored=number, release=max(self._host.slots.record.release, facts.release))
        return f"what {facts.device} had learned from {facts.samples} labels"

    def take(self, data: bytes, number: int = 0) -> Facts:
        """Go on from a checkpoint; see `_take_up`."""
        model, what = self._host.model, "the checkpoint"
        found = Checkpoint.decode(data, what)
        facts = found.facts
        if facts.backbone != (backbone := model.manifest.backbone_digest):
            raise LearningError(
                f"{what} belongs to the backbone {facts.backbone[:12]}, this device runs {backbone[:12]}"
            )
        if not model.learning.reads(facts.learners):
            own = ", ".join(model.learning.learners)
            raise LearningError(
                f"{what} is of the learners {', '.join(facts.learners)}, here are {own}; start the agent with the same "
                f"--learner"
            )
        if facts.sealed_to:
            if self._seals.own is None:
                raise LearningError(f"{what} is sealed, and this device has no key: start it with --checkpoint-key")
            found = found.opened(sealing.read_private(self._seals.own), what)
        model.state.take_up(found.arrays(what), number)
        model.metrics.forget_judgements()
        return facts

    # Time

    @property
    def next_deadline_s(self) -> float:
        """Call `poll` at this time at the latest; by plan it is looked at with each telemetry."""
        deadlines = [self._again_s]
        if self._asked and self._upload is None:
            return -math.inf
        if self._upload is not None:
            deadlines.append(self._upload.next_deadline_s)
        if self._fetch is not None and self._fetch.arrived is None:
            deadlines.append(self._fetch.next_deadline_s)
        return min(deadlines)

    def look(self, now_s: float) -> None:
        """Go on with what is to be taken up, also without a connection: it may have come on a stick."""
        if self._fetch is not None:
            self._go_on(lambda fetch: fetch.poll(now_s), now_s)
        elif now_s >= self._again_s:
            self._again_s = math.inf  # the order comes again

    def poll(self, now: Now, make_safe: Callable[[], None]) -> list[Frame]:
        """Frames to send now.

        Args:
            now: The time.
            make_safe: Makes what was learned survive a power cut before it is sent.
        """
        if self._upload is None and (self._asked or self._is_due(now)):
            self._begin(now, make_safe)
        if self._upload is None:
            return []
        frames = list(self._upload.poll(now.s))
        if self._upload.refused is not None:
            self.events.append(("checkpoint-refused", self._upload.refused))
            for order in self._asked:
                self._reply(order, 1, self._upload.refused)
        elif not self._upload.done:
            return frames
        else:
            self.events.append(("checkpoint", f"{self._sent_samples} labels, {self._upload.size_bytes} bytes"))
        self._upload, self._asked = None, []
        self._host.slots.note(checkpointed_ms=now.wall_ms)
        return frames

    @property
    def answered(self) -> Reply | None:
        """What came of the last order to take one up, for whom no line could tell it; None where there was none."""
        if self._answered is None and (last := self._last()):
            return self._said(order_id("restore", last), 0, "it was taken up")
        return self._answered

    def _answer(self, number: int, rc: int, detail: str) -> None:
        """Tell what came of an order to take one up."""
        self._answered = self._said(order_id("restore", number), rc, detail)
        self.replies.append(self._answered)

    def _reply(self, order: str, rc: int, detail: str) -> None:
        self.replies.append(self._said(order, rc, detail))

    def _said(self, order: str, rc: int, detail: str) -> Reply:
        return Reply(id=order, rc=rc, detail=detail, out={"model": self._host.name})
