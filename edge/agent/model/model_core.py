"""What an agent decides about one model: answers, labels, releases, contributions. No socket, no clock, no thread."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from edge.agent.config import AgentConfig
from edge.agent.device.allowance import Allowance
from edge.agent.line.letters import letter
from edge.agent.model.checkpoints import Checkpoints, Seals
from edge.agent.model.contributing import Contributing
from edge.agent.model.deployment import Deployment
from edge.agent.model.evaluating import Evaluating
from edge.agent.model.hard_samples import HardSamples
from edge.agent.model.host import ModelHost
from edge.agent.model.questions import Questions
from edge.agent.model.recognition import standing
from edge.agent.model.replies import MOST_RECENT, Replies
from edge.agent.model.served_model import check_name
from edge.agent.slots.states import SlotState
from edge.channel import topics
from edge.channel.frames import Frame, encode_frame
from edge.channel.messages import Candidate, Desired, Order, Restore, Served, State, UploadStatus
from edge.channel.transport import Publish
from edge.contract.clock import Now
from edge.contract.errors import LearningError
from edge.contract.names import level_of
from edge.learning.labels import Joined

T = TypeVar("T")

# Why a label is not taken: room comes with time, or never.
NO_ROOM = "too many labels are waiting for the learning budget"
NO_BUDGET = "too many labels are waiting: the learning budget of this device is 0, and only a restart learns them"
MAX_EVENTS = 200
# Learning that a restart may have to repeat.
MAX_REPLAY_MS = 5000.0


class ModelCore:
    """One model of an agent.

    Args:
        config: Options of the agent.
        host: Its live model and files.
        stopwatch: Gives seconds; measures how long predictions and learning take.
        allowance: Whether it may learn; None where it may use the whole budget of the device.
        boot: Number of this start of the agent.
        state_id: Of the state folder.
        seals: Keys of the device for checkpoints; None for none.

    Attributes:
        deployment: Of its releases.
        checkpoints: What was learned, sent away and taken up.
        evaluating: Candidate heads that the fleet asks about.
        replies: What it answers, and the answers of late.
        is_renewed: Whether another head or bundle is live than before; the caller sets it back.
        news: What happened since the last look, by kind and text; the caller clears it.
        states: Where the slot stood since the last look; the caller clears it.
    """

    def __init__(
        self,
        config: AgentConfig,
        host: ModelHost,
        stopwatch: Callable[[], float],
        *,
        allowance: Allowance | None = None,
        boot: int = 1,
        state_id: str = "",
        seals: Seals | None = None,
    ) -> None:
        self._config = config
        self._host = host
        self._stopwatch = stopwatch
        self.deployment = Deployment(
            host,
            probation_s=config.probation_s,
            probation_labels=config.probation_labels,
            max_bytes=config.profile.inference.max_bundle_mb << 20,
        )
        hard = (
            HardSamples(host.slots.folder / "hard", round(config.keep_hard_mb * 2**20)) if config.keep_hard_mb else None
        )
        self.replies = Replies(
            host,
            self.deployment,
            stopwatch,
            most=MOST_RECENT if hard is not None or config.http is not None else 0,
            hard=hard,
            share=config.profile.learning.label_requests,
            questions=Questions(share=config.share_pictures) if config.fleet_labels else None,
        )
        self.is_renewed = False
        self._speaker = ""
        self._allowance = allowance or Allowance(config.profile.learning)
        self._boot, self._state_id = boot, state_id
        self._level = level_of(host.name) if len(config.bundles) > 1 else ""
        self._contributing = Contributing(host, config.sync_interval_s, state_id, config.upload)
        self.checkpoints = Checkpoints(config, host, self.deployment, state_id, seals or Seals())
        self.evaluating = Evaluating(
            host, agrees=config.evaluate_candidates, max_bytes=config.profile.inference.max_bundle_mb << 20
        )
        # What it took to learn what is in the journal, also at this start: the next one learns it once more.
        self._journaled_ms = host.opening_ms if host.model.learns and host.model.state.repeated else 0.0
        self._next_checkpoint_s = -math.inf if self._journaled_ms >= MAX_REPLAY_MS else math.inf
        self._fault = ""
        self.news: list[tuple[str, str]] = [("warning", text) for text in host.warnings]
        if host.rolled_back_at_start:
            self.news.append(("rolled-back", host.warnings[-1]))
        self.states: list[State] = []

    # Local applications

    def request(self, op: str, request: dict[str, Any], now: Now) -> dict[str, Any]:
        """Answer a local application; see `edge.agent.core.AgentCore.request`.

        Raises:
            LearningError: The request cannot be carried out; nothing changed.
        """
        if op == "predict":
            return self.replies.predict(request, now)
        if op == "review":
            return self.replies.newest(request.get("count", 24))
        if op == "sample":
            return self.replies.sample(request.get("id"))
        if op == "label":
            return self.label(request, now)
        if op == "add-class":
            return self.add_class(request)
        return self.roll_back() if op == "rollback" else self.export()

    def label(self, request: dict[str, Any], now: Now) -> dict[str, Any]:
        """Learn the label of a sample, or let it wait for the budget.

        Raises:
            LearningError: It is no label of this model.
        """
        sample_id = check_name(request.get("id"), "id")
        label, weight = request.get("y"), request.get("weight", 1.0)
        self._host.model.check_label(label)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise LearningError(f"weight: expected a number from 0 to 1, got {weight!r:.40}")
        model = self._host.model
        must_wait = model.waiting > 0 or not self._allowance.allows(now.s)
        is_full = model.waiting >= self._config.profile.learning.label_ring_size
        if must_wait and is_full and model.answering.ring.given(sample_id) is None:  # a correction takes no place
            has_budget = self._config.profile.learning.budget_ms_per_s > 0
            return {"joined": False, "why": NO_ROOM if has_budget else NO_BUDGET}

        def join() -> Joined:
            done: Joined = self._timed(lambda: model.join_label(sample_id, label, now.s, weight, later=must_wait), now)
            return done

        found = join()
        if not found and self.replies.recall(sample_id, now):
            found = join()
        if not found:
            return {"joined": False, "why": found.why}
        self.replies.labelled(sample_id, label)
        queued = {"queued": True} if must_wait else {}
        unsafe = {"unsafe": model.state.unsafe} if model.state.unsafe else {}
        return {"joined": True, **queued, **({"replaced": True} if found.replaced else {}), **unsafe}

    def _timed(self, learn: Callable[[], T], now: Now) -> T:
        """Learn something at the expense of the budget, and see to it that it is made safe before long."""
        start = self._stopwatch()
        done = learn()
        spent_ms = (self._stopwatch() - start) * 1e3
        self._allowance.spend(spent_ms)
        self._journaled_ms += spent_ms
        if self._next_checkpoint_s == math.inf and not self._host.model.state.is_safe:
            self._next_checkpoint_s = now.s + self._config.profile.learning.checkpoint_interval_s
        if self._journaled_ms >= MAX_REPLAY_MS:
            self._next_checkpoint_s = min(self._next_checkpoint_s, now.s)
        return done

    def add_class(self, request: dict[str, Any]) -> dict[str, Any]:
        """Add a class.

        Raises:
            LearningError: It cannot be one.
        """
        name = request.get("name")
        if not isinstance(name, str):
            raise LearningError("name: expected a text")
        return {"class": self._host.model.add_class(name)}

    def roll_back(self) -> dict[str, Any]:
        """Go back to what was there before the newest head or bundle that took its place.

        Raises:
            LearningError: There is nothing to go back to, or it cannot be saved; nothing changed.
        """
        try:
            found = self.deployment.go_back()
        except OSError as exc:
            raise LearningError(f"nothing was rolled back, that cannot be saved: {exc.strerror}") from exc
        self._tell(("rolled-back", f"the {found['slot']}, because somebody on the device asked for it"))
        self.is_renewed = True
        return found

    def export(self) -> dict[str, Any]:
        """The head that leaves the device, as the document that `OnDeviceModel.export_head` writes."""
        head = self._host.model.live_head()
        document = base64.b64encode(head.encode()).decode()
        return {"head": document, "origin": head.origin, "samples": head.n_samples}

    @property
    def host(self) -> ModelHost:
        """Its live model and files."""
        return self._host

    def served(self) -> Served:
        """What it runs, for the coordinator."""
        model = self._host.model
        return Served(
            model=self._host.name,
            bundle=model.bundle.digest,
            backbone=model.manifest.backbone_digest,
            head=model.status()["head"],
            release=self._host.slots.record.release,
            n_labels=model.n_samples,
        )

    def status(self) -> dict[str, Any]:
        """What a person or a test wants to know of the model."""
        model = self._host.model
        return {
            "bundle": model.bundle.digest,
            "backbone": model.manifest.backbone_digest,
            "inputs": [spec.to_json() for spec in model.serving.inputs.values()],
            **model.status(),
            "answered": model.metrics.inferences,
            "provider": model.serving.provider.to_json(),
            "paused": self._allowance.paused,
            "budget_ms_per_s": self._allowance.share_ms_per_s,
            "waiting_for": self._allowance.waiting_for if model.waiting else "",
            "release": self._host.slots.record.release,
            "state": str(self.deployment.state),
            "merge": standing(model) if model.learns else "",
        }

    def telemetry(self, now: Now) -> dict[str, Any]:
        """Live numbers of the model. Where another head has the most say by now, it is to introduce itself again."""
        model = self._host.model
        if model.learns and (speaker := model.learning.speaker(model.learned)) != self._speaker:
            self.is_renewed, self._speaker = self._speaker != "", speaker
        values: dict[str, Any] = {
            "model": self._host.name,
            "release": self._host.slots.record.release,
            **model.telemetry(now.s),
        }
        if model.waiting:
            values["waiting_for"] = self._allowance.waiting_for
        return values

    # The fleet

    def receive(self, message: Desired | Order | UploadStatus, leaf: str, now: Now) -> None:
        """Take what the coordinator says of a release, an order or an upload; of another's upload it is ignored."""
        if isinstance(message, Desired):
            self.evaluating.give_up(message.digest)
            self.deployment.offer(message, now.s)
        elif isinstance(message, Candidate):
            if self.deployment.state not in (SlotState.OFFERED, SlotState.FETCHING):  # a release goes first
                self.evaluating.offer(message, now.s)
        elif isinstance(message, Restore):
            self.checkpoints.offer(message, now.s)
        elif isinstance(message, UploadStatus):
            self._contributing.receive(topics.transfer_of(leaf), message, now.s)
            self.checkpoints.receive(topics.transfer_of(leaf), message, now.s)

    def frame(self, frame: Frame, now: Now) -> None:
        """Take a frame of a download; another's is ignored."""
        self.deployment.frame(frame, now.s)
        self.checkpoints.frame(frame, now.s)
        self.evaluating.frame(frame, now.s)

    def limit(self, max_packet_bytes: int) -> None:
        """Packets have at most so many bytes from now on."""
        self._contributing.limit(max_packet_bytes)
        self.checkpoints.limit(max_packet_bytes)

    def contribute(self, now: Now) -> None:
        """Send what was learned now, and do not wait for the interval."""
        self._contributing.hurry(now.s)

    def contribute_again(self) -> None:
        """The coordinator may have lost what was sent."""
        self._contributing.forget()

    # Time

    def next_deadline_s(self, *, may_send: bool) -> float:
        """Call `tick` at this time at the latest."""
        deadlines = [self._next_checkpoint_s, self.deployment.next_deadline_s]
        if self.busy:
            deadlines.append(self._allowance.next_deadline_s)
        sending = (self._contributing, self.checkpoints, self.evaluating) if may_send else ()
        return min(deadlines + [each.next_deadline_s for each in sending])

    @property
    def busy(self) -> bool:
        """Whether labels wait for the learning budget."""
        return self._host.model.waiting > 0

    def tick(self, now: Now, *, may_send: bool, why_not: str = "") -> list[Publish]:
        """Do what is due and give back what is to be sent.

        Args:
            now: The time.
            may_send: Whether uploads may go on their way.
            why_not: Why downloads wait; "" where they go on.
        """
        self.deployment.wait_for(why_not, now.s)
        while self.busy and self._allowance.allows(now.s):
            try:
                self._timed(self._host.model.learn_next, now)
            except LearningError as exc:
                self._tell(("label-refused", str(exc)))
        try:
            self.deployment.poll(now.s)
        except Exception as exc:  # noqa: BLE001  # a release must not silence the device, whatever is wrong with it
            fault = f"{type(exc).__name__}: {exc}"
            if fault != self._fault:  # once, not with every tick
                self._tell(("release-fault", fault))
            self._fault = fault
        self._host.slots.keep()
        self._tell(*(("storage", text) for text in self._host.slots.warnings))
        self._host.slots.warnings.clear()
        if self.replies.hard is not None:
            self._tell(*(("storage", text) for text in self.replies.hard.warnings))
            self.replies.hard.warnings.clear()
        warnings = self._host.model.warnings
        self._tell(*(("warning", text) for text in warnings))
        warnings.clear()
        self._tell(*(("slow-download", text) for text in self.deployment.alarms))
        self.deployment.alarms.clear()
        happened = self._host.model.events
        self._tell(*((event.kind, event.text) for event in happened))
        happened.clear()
        if now.s >= self._next_checkpoint_s:
            self.make_safe(now)
        self.checkpoints.look(now.s)
        out = self._contributions(now) if may_send else []
        out += self._of_checkpoints(now, may_send=may_send)
        out += self._of_candidates(now, may_send=may_send)
        return out + self._of_deployment(now)

    def _tell(self, *events: tuple[str, str]) -> None:
        """Say what happened, in the log and to the coordinator."""
        self.news.extend(events)
        del self.news[:-MAX_EVENTS]  # the newest, when nobody took them for long

    def _contributions(self, now: Now) -> list[Publish]:
        """What was learned, to send now."""
        frames = self._contributing.poll(now.s, lambda: self.make_safe(now))
        self._tell(*self._contributing.events)
        self._contributing.events.clear()
        return _uploaded(self._config, frames)

    def _of_checkpoints(self, now: Now, *, may_send: bool) -> list[Publish]:
        """What is sent of checkpoints, and asked for."""
        work = self.checkpoints
        out = _uploaded(self._config, work.poll(now, lambda: self.make_safe(now))) if may_send else []
        out += [letter(self._config, topics.UP_REQ, each, qos=1, expiry_s=60) for each in work.requests]
        out += [letter(self._config, topics.UP_REPLY, each, qos=1, expiry_s=3600) for each in work.replies]
        self._tell(*work.events)
        if work.is_renewed:
            work.is_renewed, self.is_renewed = False, True
            self._contributing.forget()
        work.events.clear()
        work.requests.clear()
        work.replies.clear()
        return out

    def _of_candidates(self, now: Now, *, may_send: bool) -> list[Publish]:
        """What is asked for of candidate heads while the line may be used for it, and what is said of them."""
        work = self.evaluating
        if may_send:
            work.poll(now.s)
        wanted = work.requests if may_send else []
        out = [letter(self._config, topics.UP_REQ, each, qos=1, expiry_s=60) for each in wanted]
        out += [letter(self._config, topics.UP_REPLY, each, qos=1, expiry_s=3600) for each in work.replies]
        self._tell(*work.events)
        for each in (work.requests, work.replies, work.events):
            each.clear()
        return out

    def _of_deployment(self, now: Now) -> list[Publish]:
        """Where the slot stands, and what it wants."""
        out: list[Publish] = []
        for message in self.deployment.outbox:
            if isinstance(message, State):
                seq = message.seq + (self._boot << 32)
                stamped = replace(message, ts_ms=now.wall_ms, seq=seq, state_id=self._state_id)
                out.append(
                    letter(self._config, topics.model_leaf(topics.UP_STATE, self._level), stamped, qos=1, retain=True)
                )
                self.states.append(stamped)
                self.is_renewed |= message.state in (SlotState.ACTIVE, SlotState.ROLLED_BACK)
            else:
                out.append(letter(self._config, topics.UP_REQ, message, qos=1, expiry_s=60))
        self.deployment.outbox.clear()
        return out

    def make_safe(self, now: Now) -> None:
        """Make safe what was learned; when the disk is full, say so, go on in memory and try again.

        A checkpoint is hundreds of times as large as a label in the journal: it can wait while a restart would not take
        long to learn the journal again.
        """
        self._next_checkpoint_s = math.inf
        model = self._host.model
        try:
            if model.state.journal_suffices and self._journaled_ms < MAX_REPLAY_MS:
                model.state.sync()
            else:
                model.save()
                self._journaled_ms = 0.0
        except OSError as exc:
            self._tell(("storage", f"a checkpoint could not be written: {exc.strerror}"))
            self._next_checkpoint_s = now.s + self._config.profile.learning.checkpoint_interval_s
            self._journaled_ms = 0.0  # not with each label


def _uploaded(config: AgentConfig, frames: list[Frame]) -> list[Publish]:
    """Frames of an upload, as they are published."""
    return [
        letter(config, topics.upload_leaf(frame.xfer), encode_frame(frame), qos=1, expiry_s=3600) for frame in frames
    ]
