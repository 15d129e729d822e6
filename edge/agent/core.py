"""The agent's decisions: events in, messages out. No socket, no clock, no thread; files by what it is given."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edge import __version__
from edge.agent import health, releases
from edge.agent.allowance import Allowance
from edge.agent.config import AgentConfig
from edge.agent.contributing import Contributing
from edge.agent.deployment import Deployment
from edge.agent.host import ModelHost
from edge.agent.states import SlotState
from edge.channel import topics
from edge.channel.codec import decode, encode
from edge.channel.frames import decode_frame, encode_frame
from edge.channel.messages import (
    EXPERTS,
    Birth,
    Command,
    Conn,
    Desired,
    Event,
    Message,
    Reply,
    State,
    Telemetry,
    UploadStatus,
)
from edge.channel.transport import Connected, Disconnected, Publish, Received, TransportEvent
from edge.contract.clock import Now
from edge.contract.errors import ChannelError, LearningError
from edge.learning.calibration import probabilities
from edge.learning.labels import MAX_ID_LENGTH
from edge.learning.task import Scores

MAX_EVENTS = 200
# Learning that a restart may have to repeat.
MAX_REPLAY_MS = 5000.0


class AgentCore:
    """One agent.

    Args:
        config: Its options.
        host: Its live model and files.
        stopwatch: Gives seconds; measures how long predictions and learning take.
    """

    def __init__(
        self, config: AgentConfig, host: ModelHost, stopwatch: Callable[[], float] = time.perf_counter
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
        self._allowance = Allowance(config.profile.learning)
        self._contributing = Contributing(host, config.sync_interval_s)
        self._connected = False
        self._out: list[Publish] = []
        self._next_telemetry_s = -math.inf
        self._next_checkpoint_s = math.inf
        self._journaled_ms = 0.0  # what it took to learn what is in the journal
        self._fault = ""
        self._sequence = 0
        self._cpu: tuple[float, float] | None = None
        self._events: list[tuple[str, str]] = [("warning", text) for text in host.warnings]
        if host.rolled_back_at_start:
            self._events.append(("rolled-back", host.warnings[-1]))

    # Local applications

    def request(self, request: dict[str, Any], now: Now) -> dict[str, Any]:
        """Answer a local application.

        Args:
            request: ``{"op": "predict", "id": ..., "x": array}``, ``{"op": "label", "id": ..., "y": class}``, perhaps
                with a ``weight``, ``{"op": "add-class", "name": ...}`` or ``{"op": "status"}``.
            now: The time.

        Raises:
            LearningError: The request cannot be carried out; nothing changed.
        """
        op = request.get("op")
        if op == "predict":
            return self._predict(request, now)
        if op == "label":
            return self._label(request, now)
        if op == "add-class":
            name = request.get("name")
            if not isinstance(name, str):
                raise LearningError("name: expected a text")
            return {"class": self._host.model.add_class(name)}
        if op == "status":
            return self.status()
        raise LearningError(f"op {op!r}: expected predict, label, add-class or status")

    def _predict(self, request: dict[str, Any], now: Now) -> dict[str, Any]:
        sample_id = _sample_id(request)
        start = self._stopwatch()
        model = self._host.model
        try:
            logits = model.predict_sample(sample_id, request.get("x"), now.s)  # type: ignore[arg-type]
        except LearningError:
            raise
        except Exception as exc:  # a model that was just pushed may fail in any way: take it back
            if self.deployment.state is not SlotState.PROBATION:
                raise
            self.deployment.roll_back(f"prediction failed: {exc}")
            return self._predict(request, now)
        if not np.isfinite(logits).all():
            if self.deployment.state is not SlotState.PROBATION:
                raise LearningError("the model's answer for this sample is not finite")
            self.deployment.roll_back("predictions are not finite")
            return self._predict(request, now)
        model.metrics.inferred((self._stopwatch() - start) * 1e3)
        found = probabilities(logits[None], model.learned.temperature, model.task)[0]
        wanted = {"label_wanted": True} if self._wants_label(found) else {}
        if model.manifest.head is not None and not model.manifest.head.training.is_classifier:
            return {"outputs": logits.tolist(), "values": found.tolist(), **wanted}
        best = int(logits.argmax())
        confidence = round(float(found[best]), 6)
        name = model.class_names[best]
        return {"class": best, "name": name, "confidence": confidence, "logits": logits.tolist(), **wanted}

    def _wants_label(self, found: Scores) -> bool:
        """Whether the label of a sample with these probabilities ``(n_outputs,)`` would help; call once a sample."""
        task = self._host.model.task
        if task.is_regression:
            return False
        confidence = found.max() if task.is_classifier else np.abs(2.0 * found - 1.0).min()
        return self._host.model.answering.requests.wants(float(confidence))

    def _label(self, request: dict[str, Any], now: Now) -> dict[str, Any]:
        sample_id = _sample_id(request)
        label, weight = request.get("y"), request.get("weight", 1.0)
        self._host.model.check_label(label)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise LearningError(f"weight: expected a number from 0 to 1, got {weight!r:.40}")
        model = self._host.model
        must_wait = len(model.state.waiting) > 0 or not self._allowance.allows(now.s)
        if must_wait and len(model.state.waiting) >= self._config.profile.learning.label_ring_size:
            return {"joined": False, "why": "too many labels are waiting for the learning budget"}
        joined = self._timed(lambda: model.join_label(sample_id, label, now.s, weight, later=must_wait), now)
        if not joined:
            return {"joined": False, "why": "no such sample waits for a label"}
        return {"joined": True, "queued": True} if must_wait else {"joined": True}

    def _timed(self, learn: Callable[[], bool], now: Now) -> bool:
        """Learn something at the expense of the budget, and see to it that it is made safe before long."""
        start = self._stopwatch()
        done = learn()
        spent_ms = (self._stopwatch() - start) * 1e3
        self._allowance.spend(spent_ms)
        self._journaled_ms += spent_ms
        if self._next_checkpoint_s == math.inf and not self._host.model.state.is_safe:
            self._next_checkpoint_s = now.s + self._config.profile.learning.checkpoint_interval_s
        return done

    def status(self) -> dict[str, Any]:
        """What a person or a test wants to know."""
        model = self._host.model
        return {
            "device": self._config.device,
            "bundle": model.bundle.digest,
            "backbone": model.manifest.backbone_digest,
            "head": releases.head_digest(model),
            "learner": model.learning.kind,
            "learners": list(model.learning.learners),
            "believed": model.learned.mixture.believed,
            "experts": releases.expert_weights(model),
            "classes": list(model.class_names),
            "paused": self._allowance.paused,
            "waiting": len(model.state.waiting),
            "waiting_for": self._allowance.waiting_for if model.state.waiting else "",
            "samples": model.n_samples,
            "release": self._host.slots.record.release,
            "state": str(self.deployment.state),
            "connected": self._connected,
            "accuracy": model.metrics.accuracy,
            "resident_mb": health.resident_mb(),
            "boot": self._host.slots.record.boot,
        }

    # The fleet

    def transport(self, event: TransportEvent, now: Now) -> None:
        """Take an event of the broker connection. A message that cannot be read is dropped and reported."""
        match event:
            case Connected():
                self._connect(now)
            case Disconnected():
                self._connected = False
            case Received(topic=topic, payload=payload):
                try:
                    self._message(topics.parse(topic).leaf, payload, now)
                except ChannelError as exc:
                    self._events.append(("bad-message", str(exc)))

    def _connect(self, now: Now) -> None:
        self._connected = True
        self._host.slots.update(session=self._host.slots.record.session + 1)
        self._send(topics.UP_CONN, self._conn(True, now), qos=1, retain=True)
        self._send_birth(now)
        self.deployment.report()
        self._next_telemetry_s = min(self._next_telemetry_s, now.s)

    def _conn(self, online: bool, now: Now) -> Conn:
        record = self._host.slots.record
        return Conn(online=online, session=record.session, boot=record.boot, ts_ms=now.wall_ms)

    def will(self, now: Now) -> Publish:
        """What the broker is to say when the *next* connection breaks."""
        record = self._host.slots.record
        gone = Conn(online=False, session=record.session + 1, boot=record.boot, ts_ms=now.wall_ms)
        return Publish(topic=self._topic(topics.UP_CONN), payload=encode(gone), qos=1, retain=True)

    def farewell(self, now: Now) -> list[Publish]:
        """What to say before stopping in good order."""
        self._send(topics.UP_CONN, self._conn(False, now), qos=1, retain=True)
        return self._take_out()

    def _send_birth(self, now: Now) -> None:
        status = self.status()
        record = self._host.slots.record
        birth = Birth(
            agent_version=__version__,
            boot=record.boot,
            session=record.session,
            ts_ms=now.wall_ms,
            profile=self._config.profile.name,
            hardware=health.hardware(),
            bundle=status["bundle"],
            backbone=status["backbone"],
            head=status["head"],
            release=record.release,
            n_labels=status["samples"],
            limits={"max_bytes": self._config.profile.inference.max_bundle_mb << 20, "learner": status["learner"]},
        )
        # Retained: a coordinator that was not there when it was sent would believe for ever what it was told before.
        self._send(topics.UP_BIRTH, birth, qos=1, retain=True)

    def _message(self, leaf: str, payload: bytes, now: Now) -> None:
        if leaf.startswith("dn/f/"):
            self.deployment.frame(decode_frame(payload), now.s)
            return
        message = decode(leaf, payload)
        if isinstance(message, Desired):
            self.deployment.offer(message, now.s)
        elif isinstance(message, UploadStatus):
            self._contributing.receive(topics.transfer_of(leaf), message, now.s)
        elif isinstance(message, Command):
            self._command(message, now)

    def _command(self, command: Command, now: Now) -> None:
        """Carry out what the coordinator asks for; all of these may be repeated without harm."""
        if command.name == "birth":
            self._contributing.forget()
            self._send_birth(now)
            reply = Reply(id=command.id, rc=0, detail="", out={})
        elif command.name == "sync":
            self._contributing.hurry(now.s)
            reply = Reply(id=command.id, rc=0, detail="", out={"samples": self._host.model.n_samples})
        else:
            reply = Reply(id=command.id, rc=1, detail=f"unknown command {command.name!r}", out={})
        self._send(topics.UP_REPLY, reply, qos=1, expiry_s=3600)

    # Time

    @property
    def next_deadline_s(self) -> float:
        """Call `tick` at this time at the latest."""
        deadlines = [self._next_checkpoint_s, self.deployment.next_deadline_s]
        if self._connected:
            deadlines += [self._next_telemetry_s, self._contributing.next_deadline_s]
        return min(deadlines)

    @property
    def busy(self) -> bool:
        """Whether labels wait for the learning budget."""
        return len(self._host.model.state.waiting) > 0

    def tick(self, now: Now) -> list[Publish]:
        """Do what is due and give back what is to be sent."""
        while self.busy and self._allowance.allows(now.s):
            try:
                self._timed(self._host.model.learn_next, now)
            except LearningError as exc:
                self._events.append(("label-refused", str(exc)))
        try:
            self.deployment.poll(now.s)
        except Exception as exc:  # noqa: BLE001  # a release must not silence the device, whatever is wrong with it
            fault = f"{type(exc).__name__}: {exc}"
            if fault != self._fault:  # once, not with every tick
                self._events.append(("release-fault", fault))
            self._fault = fault
        warnings = self._host.model.state.warnings
        self._events += [("warning", text) for text in warnings]
        warnings.clear()
        happened = self._host.model.events
        self._events += [(event.kind, event.text) for event in happened]
        happened.clear()
        del self._events[:-MAX_EVENTS]  # the newest, when there was no broker for long
        if now.s >= self._next_checkpoint_s:
            self._checkpoint(now)
        if self._connected:
            self._sync(now)
            if now.s >= self._next_telemetry_s:
                self._next_telemetry_s = now.s + self._config.telemetry_interval_s
                self._send(topics.UP_TELE, self._telemetry(now), qos=0)
            for name, detail in self._events:
                self._send(topics.UP_EVENT, Event(ts_ms=now.wall_ms, name=name, detail=detail[:500]), qos=1)
            self._events.clear()
        for message in self.deployment.outbox:
            if isinstance(message, State):
                stamped = State(
                    ts_ms=now.wall_ms,
                    seq=message.seq + (self._host.slots.record.boot << 32),
                    slot=message.slot,
                    state=message.state,
                    release=message.release,
                    digest=message.digest,
                    detail=message.detail,
                )
                self._send(topics.UP_STATE, stamped, qos=1, retain=True)
                if message.state in (SlotState.ACTIVE, SlotState.ROLLED_BACK):
                    self._send_birth(now)  # what runs here has changed
            else:
                self._send(topics.UP_REQ, message, qos=1, expiry_s=60)
        self.deployment.outbox.clear()
        return self._take_out()

    def _checkpoint(self, now: Now) -> None:
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
                model.state.inferences = model.metrics.inferences
                model.state.save()
                self._journaled_ms = 0.0
        except OSError as exc:
            self._events.append(("storage", f"a checkpoint could not be written: {exc.strerror}"))
            self._next_checkpoint_s = now.s + self._config.profile.learning.checkpoint_interval_s

    def _take_out(self) -> list[Publish]:
        out, self._out = self._out, []
        return out if self._connected else []

    def _sync(self, now: Now) -> None:
        """Send what was learned."""
        for frame in self._contributing.poll(now.s, lambda: self._checkpoint(now)):
            self._publish(topics.upload_leaf(frame.xfer), encode_frame(frame), qos=1, expiry_s=3600)
        self._events += self._contributing.events
        self._contributing.events.clear()

    def _telemetry(self, now: Now) -> Telemetry:
        model = self._host.model
        self._sequence += 1
        record = self._host.slots.record
        values: dict[str, Any] = {
            "ts": now.wall_ms,
            "seq": self._sequence,
            "boot": record.boot,
            "model": model.manifest.name,
            "release": record.release,
            "samples": model.n_samples,
            "sgd_steps": model.n_samples if model.learning.kind == "delta" else 0,
            **model.metrics.report(now.s),
            "waiting": len(self._host.model.state.waiting),
            EXPERTS: releases.expert_weights(model),
        }
        if model.state.waiting:
            values["waiting_for"] = self._allowance.waiting_for
        cpu = health.cpu_seconds()
        if self._cpu is not None and now.s > self._cpu[0]:
            values["cpu_pct"] = round(100 * (cpu - self._cpu[1]) / (now.s - self._cpu[0]), 1)
        self._cpu = (now.s, cpu)
        optional = {
            "mem_mb": health.resident_mb(),
            "temp_c": health.temperature_c(),
            "disk_free_mb": health.disk_free_mb(self._config.state_dir),
        }
        values |= {key: value for key, value in optional.items() if value is not None}
        return Telemetry(values=values)

    def _topic(self, leaf: str) -> str:
        return topics.build(self._config.fleet, self._config.device, leaf)

    def _send(
        self, leaf: str, message: Message, *, qos: int, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        self._publish(leaf, encode(message), qos=qos, retain=retain, expiry_s=expiry_s)

    def _publish(
        self, leaf: str, payload: bytes, *, qos: int, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        self._out.append(Publish(topic=self._topic(leaf), payload=payload, qos=qos, retain=retain, expiry_s=expiry_s))


def _sample_id(request: dict[str, Any]) -> str:
    sample_id = request.get("id")
    if not isinstance(sample_id, str) or not 0 < len(sample_id) <= MAX_ID_LENGTH:
        raise LearningError(f"id: expected a text of 1 to {MAX_ID_LENGTH} characters")
    return sample_id
