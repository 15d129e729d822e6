"""The agent's decisions about its device: events in, messages out. No socket, no clock, no thread.

What it decides about a model is in `edge.agent.model.model_core`; here is what all models of the device share. A fault
of one of them is told, and stops no other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from edge.agent.carrying import IN, OUT, Carrying
from edge.agent.commands import carry_out
from edge.agent.config import AgentConfig
from edge.agent.device import health
from edge.agent.device.allowance import Allowance
from edge.agent.device.budget import LearningBudget
from edge.agent.device.home_assistant import discovery
from edge.agent.device.vitals import Vitals
from edge.agent.introduction import introduction, meant_model, own_word
from edge.agent.line.admission import AGAIN_S, Admission
from edge.agent.line.data_cap import ACKNOWLEDGED_BYTES, DataUse
from edge.agent.line.letters import letter
from edge.agent.line.line import Line, Told
from edge.agent.line.outbox import Outbox
from edge.agent.model.checkpoints import Seals
from edge.agent.model.model_core import MAX_EVENTS, ModelCore
from edge.agent.models import Models
from edge.agent.reports import Reports
from edge.agent.slots.states import SlotState
from edge.agent.wire import KEYS
from edge.channel import topics
from edge.channel.codec import decode
from edge.channel.frames import decode_frame
from edge.channel.messages import (
    Command,
    Conn,
    Desired,
    Here,
    HistoryKept,
    Message,
    Meta,
    Order,
    Served,
    State,
    UploadStatus,
)
from edge.channel.transport import (
    Connected,
    Disconnected,
    Limited,
    Publish,
    Received,
    Refused,
    TransportEvent,
    packet_bytes,
)
from edge.channel.vetting import UNSIGNED, Believed, NotJudged, Trust, Vetting, called
from edge.contract.clock import Now
from edge.contract.errors import ChannelError, LearningError

NO_SEALS = Seals()
# Of a release that was tried; what comes before is said by the time that it takes.
_LOGGED = (
    SlotState.HELD, SlotState.PROBATION, SlotState.ACTIVE, SlotState.FAILED, SlotState.REFUSED, SlotState.ROLLED_BACK,
)  # fmt: skip
# In the state folder.
OUTBOX, DATA_USED = "outbox.sqlite", "data-used.json"


class AgentCore:
    """One agent.

    Args:
        config: Its options.
        models: Its models, opened.
        stopwatch: Gives seconds; measures how long predictions and learning take.
        trust: Proves releases; None takes those of anybody who may publish.
        seals: Keys of this device for checkpoints.
        strain: How the device is now.

    Attributes:
        models: By name; at least one.
        news: What happened since the last look, by model, kind and text, for the log; the caller clears it.
    """

    def __init__(
        self,
        config: AgentConfig,
        models: Models,
        stopwatch: Callable[[], float] = time.perf_counter,
        trust: Trust | None = None,
        seals: Seals = NO_SEALS,
        strain: Callable[[], health.Strain] = health.strain,
    ) -> None:
        self._config = config
        self._folder = models
        limits = config.profile.learning
        shares = LearningBudget.shared(limits.budget_ms_per_s, len(models.hosts))
        record = models.record
        self.models = {
            name: ModelCore(
                config,
                host,
                stopwatch,
                allowance=Allowance(limits, share, strain),
                boot=record.boot,
                state_id=record.state_id,
                seals=seals,
            )
            for (name, host), share in zip(models.hosts.items(), shares, strict=True)
        }
        self._connected, self._told_offset_min = False, 0
        outbox = Outbox(config.state_dir / OUTBOX, round(config.outbox_mb * 2**20)) if config.outbox_mb else None
        self._reports = Reports(config, record, outbox)
        self._use = DataUse(config.state_dir / DATA_USED, config.data_cap) if config.data_cap else None
        self._next_birth_s = math.inf  # to be told again where it stands
        self._why_waiting = ""  # why nothing is sent but what must be said
        self._vetting = None if trust is None else Vetting(trust)
        self._seal_key = seals.public
        self._admission = Admission(config.state_dir, config.device)
        self._carrying = Carrying(
            config,
            lambda: models.record,
            self.models,
            self._offered,
            self._seal_key,
            self._admission,
        )
        self._line = Line(topics.own_conn(config.fleet, config.device))
        self._own_conn = own_word(record, record.session, Now(0.0, 0), online=False)
        self._out: list[Publish] = []
        self._events: list[tuple[str, str]] = []
        self.news: list[tuple[str, str, str]] = []
        self._stand: dict[str, tuple[str, str]] = {}  # by model, what the log has of its slot
        self._faults: dict[str, str] = {}  # by model, the last one that was told
        self._next_telemetry_s = -math.inf
        self._vitals = Vitals(config.state_dir)

    # Local applications

    def request(self, request: dict[str, Any], now: Now) -> dict[str, Any]:
        """Answer a local application.

        Args:
            request: ``{"op": "predict", "id": ..., "x": array}``, or ``inputs`` by name, perhaps with ``stream`` and
                ``reset``; ``{"op": "label", "id": ..., "y": class}``, perhaps with a ``weight``; ``{"op": "add-class",
                "name": ...}``, ``{"op": "rollback"}``, ``{"op": "export"}`` or ``{"op": "status"}``; with ``model``,
                its name, where there are several; or as `edge.agent.carrying.Carrying.answer` takes them.
            now: The time.

        Raises:
            LearningError: The request cannot be carried out; nothing changed.
        """
        op = request.get("op")
        if op == "status":
            return self.status(request.get("model"))
        if op in (OUT, IN):
            return self._carrying.answer(op, request, now)
        if not isinstance(op, str) or op not in KEYS:
            *others, last = KEYS
            raise LearningError(f"op {op!r:.40}: expected {', '.join(others)} or {last}")
        return self.named(request.get("model")).request(op, request, now)

    def named(self, name: object) -> ModelCore:
        """The model that a request is for; None for the only one.

        Raises:
            LearningError: It is not served, or there are several and none was named.
        """
        if isinstance(name, str) and name in self._folder.failed:
            raise LearningError(f"the model {name!r} is not served: {self._folder.failed[name]}")
        if name is None and len(self._config.bundles) == 1:
            return next(iter(self.models.values()))
        if not isinstance(name, str) or name not in self.models:
            came = "none was named" if name is None else f"got {name!r:.120}"
            raise LearningError(f"model: expected one of {', '.join(map(repr, self.models))}, {came}")
        return self.models[name]

    def status(self, name: str | None = None) -> dict[str, Any]:
        """What a person or a test wants to know: of the device, of each model, and of the one that is meant.

        Raises:
            LearningError: There is no model of this name.
        """
        found: dict[str, dict[str, Any]] = {}
        for each, model in self.models.items():
            with self._guarded(each):
                found[each] = model.status()
            if each not in found:
                found[each] = {"fault": self._faults[each]}
        is_of_one = name is not None or len(self._config.bundles) == 1
        one = self.named(name).host.name if is_of_one else ""
        return {
            "device": self._config.device,
            **found.get(one, {}),
            "models": found,
            "not_served": dict.fromkeys(self._folder.not_served, "its bundle was not named") | self._folder.failed,
            "connected": self._connected,
            "admission": self._admission.status(),
            "releases": UNSIGNED if self._vetting is None else str(self._vetting),
            "coordinator": str(self._reports.listeners) if self._connected else "unknown",
            "broker_troubles": self._line.troubles,
            "outbox": self._reports.status(),
            **({} if self._use is None else {"data": self._use.status() | {"waits": self._why_waiting}}),
            "resident_mb": health.resident_mb(),
            "boot": self._folder.record.boot,
            "state_id": self._folder.record.state_id,
        }

    # The fleet

    def transport(self, event: TransportEvent, now: Now) -> None:
        """Take an event of the broker connection. A message that cannot be read is dropped and reported."""
        match event:
            case Connected(max_packet_bytes=limit):
                self._line.connected(event, now.s)
                self._limit(limit)
                self._reports.online(limit, now)
                self._connect(now)
            case Limited(max_packet_bytes=limit):
                self._limit(limit)
            case Disconnected():
                self._connected = False
                self._reports.offline(now)
                self.tell(self._line.disconnected(event, now.s))
            case Refused():
                self.tell(self._line.refused(event, now.s))
            case Received(topic=topic, payload=payload):
                if self._use is not None:
                    self._use.spend(packet_bytes(topic, payload))
                try:
                    leaf = topics.parse(topic).leaf
                    is_here = topics.kind_of(leaf) == topics.DN_HERE
                    if payload:
                        if not (event.retained or leaf == topics.UP_CONN or is_here):
                            self._line.answered()
                            self._reports.answered(now)
                        self._message(leaf, payload, now, topic)
                    elif is_here:  # what the broker kept is cleared; so it is of a device that has left the fleet
                        self._reports.listeners.cleared(leaf.rpartition("/")[2])
                    if self._folder.record.has_coordinator != self._reports.listeners.is_known:
                        self._folder.update(has_coordinator=self._reports.listeners.is_known)
                except ChannelError as exc:
                    self.tell([("bad-message", str(exc))])

    def tell(self, events: Told) -> None:
        """Say what happened with the next tick."""
        self._events += events
        del self._events[:-MAX_EVENTS]

    def _limit(self, max_packet_bytes: int) -> None:
        self._reports.limit(max_packet_bytes)
        for model in self.models.values():
            model.limit(max_packet_bytes)

    def _connect(self, now: Now) -> None:
        self._connected = True
        self._folder.update(session=self._folder.record.session + 1)
        self._own_conn = own_word(self._folder.record, self._folder.record.session, now, online=True)
        self._introduce(now)
        if self._config.home_assistant:
            config = self._config
            self._out.append(discovery(config.home_assistant, config.fleet, config.device, list(self.models)))
        self._next_telemetry_s = min(self._next_telemetry_s, now.s)

    def will(self, now: Now) -> Publish:
        """What the broker is to say when the *next* connection breaks."""
        record = self._folder.record
        gone = own_word(record, record.session + 1, now, online=False)
        return letter(self._config, topics.UP_CONN, gone, qos=1, retain=True)

    def farewell(self, now: Now) -> list[Publish]:
        """What to say before stopping in good order."""
        gone = own_word(self._folder.record, self._folder.record.session, now, online=False)
        self._send(topics.UP_CONN, gone, qos=1, retain=True)
        return self._take_out()

    def close(self, now: Now) -> None:
        """Keep what is counted and what waits."""
        self._reports.close(now.s)
        if self._vetting is not None:
            self._vetting.rest()
        if self._use is not None:
            self._use.close()

    def _introduce(self, now: Now) -> None:
        """Say that we are there, what we are, and how far each model is."""
        self._send(topics.UP_CONN, self._own_conn, qos=1, retain=True)
        self._send_birth(now)
        for model in self.models.values():
            model.deployment.report()

    def _send_birth(self, now: Now) -> None:
        models: list[Served] = []
        for name, model in self.models.items():
            with self._guarded(name):
                models.append(model.served())
        if models:
            self._told_offset_min = health.utc_offset_min(now.wall_ms)
            self._next_birth_s = math.inf if self._admission.is_approved else now.s + AGAIN_S
            birth = introduction(
                self._config, self._folder.record, self.models, models, now, self._seal_key, self._admission
            )
            # Retained: a coordinator that was not there then would believe for ever what it was told before.
            self._send(topics.UP_BIRTH, birth, qos=1, retain=True)

    def _message(self, leaf: str, payload: bytes, now: Now, topic: str) -> None:
        if leaf.startswith("dn/f/"):
            frame = decode_frame(payload)
            for name, model in self.models.items():  # who did not ask for it drops it
                with self._guarded(name):
                    model.frame(frame, now)
            return
        message = decode(leaf, payload)
        if isinstance(message, Desired | Order):
            if (named := meant_model(message, self.models, len(self._config.bundles))) is not None:
                self._offered(named, message, leaf, now)
        elif isinstance(message, UploadStatus):
            for name, model in self.models.items():
                with self._guarded(name):
                    model.receive(message, leaf, now)
        elif isinstance(message, Here):
            self._reports.here(leaf.rpartition("/")[2], message, now)
        elif isinstance(message, HistoryKept):
            self._reports.kept(message, now)
        elif isinstance(message, Meta):
            if self._vetting is not None:
                self._vetting.take(message)
        elif isinstance(message, Command):
            self._command(message, now)
        elif isinstance(message, Conn):
            self.tell(self._line.heard(topic, message, self._own_conn, now.s))

    def _offered(
        self, model: str, desired: Desired | Order, leaf: str, now: Now, at_hand: Mapping[str, Meta] | None = None
    ) -> None:
        """For a model, a release or what was learned elsewhere: it is proved first where this device wants proof.

        An older release changes nothing.
        """
        known = self.models[model].host.slots.record.release
        if self._vetting is not None and (isinstance(desired, Order) or desired.release >= known):
            self._vetting.offer(model, desired, at_hand)
            return
        with self._guarded(model):
            self.models[model].receive(desired, leaf, now)

    def _vet(self, now: Now, *, may_send: bool) -> None:
        """Go on with what has to be proved, and act on what was decided."""
        assert self._vetting is not None
        for request in self._vetting.poll(now.s, may_ask=may_send):
            self._send(topics.UP_REQ, request, qos=1, expiry_s=60)
        for verdict in self._vetting.verdicts:
            model = self.models[verdict.model]
            with self._guarded(verdict.model):
                desired = verdict.desired
                if isinstance(verdict, Believed):
                    model.receive(desired, topics.DN_DESIRED, now)
                    continue
                if isinstance(verdict, NotJudged):
                    self.tell([("release-not-judged", f"{called(desired)}: {verdict.detail}; it is tried again")])
                    continue
                why = f"{verdict.kind}: {verdict.detail}"
                if isinstance(desired, Order):
                    self.tell([(f"{desired.word}-distrusted", f"order {desired.number}: {why}")])
                else:
                    self.tell([("release-distrusted", f"release {desired.release}: {why}")])
                    model.deployment.refuse(desired, f"not believed, {why}"[:500])
        self._vetting.verdicts.clear()

    def _command(self, command: Command, now: Now) -> None:
        """Carry out what the coordinator asks for."""
        reply, is_to_introduce = carry_out(command, self.models, self._admission, now)
        if is_to_introduce:
            self._introduce(now)
        self._send(topics.UP_REPLY, reply, qos=1, expiry_s=3600)

    # Time

    @property
    def next_deadline_s(self) -> float:
        """Call `tick` at this time at the latest."""
        may_send = self._connected and not self._why_waiting
        deadlines = [model.next_deadline_s(may_send=may_send) for model in self.models.values()]
        reports = self._connected or self._reports.keeps
        if self._vetting is not None:
            deadlines.append(self._vetting.next_deadline_s)
        if self._connected:
            deadlines.append(self._next_birth_s)
        return min([*deadlines, self._reports.next_deadline_s, *([self._next_telemetry_s] if reports else [])])

    def tick(self, now: Now) -> list[Publish]:
        """Do what is due and give back what is to be sent."""
        if self._use is not None:
            self._use.poll(now, connected=self._connected)
            self.tell(self._use.news())
        self._why_waiting = self._admission.why_not or ("" if self._use is None else self._use.why_not)
        self.tell(self._admission.events)
        self._admission.events.clear()
        may_send = self._connected and not self._why_waiting
        if self._vetting is not None:
            self._vet(now, may_send=may_send)
        for name, model in self.models.items():
            with self._guarded(name):
                self._out += model.tick(now, may_send=may_send, why_not=self._why_waiting)
            self._report(name, model.news, now)
            for state in model.states:
                self._reports.state(state, now)
                if self._stand.get(name) != (said := _standing(state)) and said[0] in _LOGGED:
                    self._stand[name] = said  # the coordinator has that by the state itself
                    self.news.append((name, *said))
            model.news.clear()
            model.states.clear()
        is_moved = self._connected and health.utc_offset_min(now.wall_ms) != self._told_offset_min
        is_moved |= self._connected and now.s >= self._next_birth_s
        if is_moved or any(model.is_renewed for model in self.models.values()):
            for model in self.models.values():
                model.is_renewed = False
            self._send_birth(now)
        self.tell([("warning", text) for text in [*self._folder.warnings, *self._reports.take_warnings()]])
        self.tell(self._line.poll(now.s))
        self._folder.warnings.clear()
        self._report("", self._events, now)
        self._events.clear()
        if now.s >= self._next_telemetry_s and (self._connected or self._reports.keeps):
            self._next_telemetry_s = now.s + self._config.telemetry_interval_s
            self._send_telemetry(now)
        self._out += self._reports.poll(now, may_send=may_send)  # behind what is live
        return self._take_out()

    def _report(self, model: str, events: Told, now: Now) -> None:
        """Put events of a model, or with "" of the device, into the log and on their way."""
        for kind, text in events[-MAX_EVENTS:]:
            self._out += self._reports.event(kind, text, model, now)
            if kind != "broker-lost":  # the log has that already
                self.news.append((model, kind, text))
        del self.news[:-MAX_EVENTS]

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Let a fault of one model cost this step of it, and nothing else; the same fault is told once."""
        try:
            yield
        except Exception as exc:  # noqa: BLE001  # whatever it is, the other models are not at fault
            fault = f"{name}: {type(exc).__name__}: {exc}"
            if self._faults.get(name) != fault:
                self.tell([("model-fault", fault)])
            self._faults[name] = fault

    def _take_out(self) -> list[Publish]:
        out, self._out = self._out, []
        if not self._connected:
            return []
        if self._use is not None:
            for each in out:
                self._use.spend(packet_bytes(each.topic, each.payload) + (ACKNOWLEDGED_BYTES if each.qos else 0))
        return out

    def _send_telemetry(self, now: Now) -> None:
        """One message a model, each with the numbers of the device."""
        device = self._vitals.read(now.s) | {
            "outbox": self._reports.waiting or None,
            "data_left_mb": None if self._use is None else round(self._use.left_bytes / 1e6, 3),
        }
        device = {key: value for key, value in device.items() if value is not None}
        for name, model in self.models.items():
            with self._guarded(name):
                values = {**model.telemetry(now), **device}
                self._out += self._reports.telemetry(values, now, may_send=not self._why_waiting)

    def _send(
        self, leaf: str, message: Message, *, qos: int, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        self._out.append(letter(self._config, leaf, message, qos=qos, retain=retain, expiry_s=expiry_s))


def _standing(state: State) -> tuple[str, str]:
    """Where a release stands, and which, for the log."""
    return state.state, f"release {state.release}{state.detail and f': {state.detail}'}"
