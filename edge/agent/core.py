"""The agent's decisions about its device: events in, messages out. No socket, no clock, no thread.

What it decides about a model is in `edge.agent.model_core`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from edge import __version__
from edge.agent import health
from edge.agent.config import AgentConfig
from edge.agent.host import ModelHost
from edge.agent.letters import letter
from edge.agent.model_core import MAX_EVENTS, ModelCore
from edge.channel import topics
from edge.channel.codec import decode
from edge.channel.frames import decode_frame
from edge.channel.messages import Birth, Command, Conn, Desired, Event, Message, Reply, Telemetry, UploadStatus
from edge.channel.transport import Connected, Disconnected, Publish, Received, TransportEvent
from edge.contract.clock import Now
from edge.contract.errors import ChannelError, LearningError


class AgentCore:
    """One agent.

    Args:
        config: Its options.
        host: Its live model and files.
        stopwatch: Gives seconds; measures how long predictions and learning take.

    Attributes:
        model: Its model.
    """

    def __init__(
        self, config: AgentConfig, host: ModelHost, stopwatch: Callable[[], float] = time.perf_counter
    ) -> None:
        self._config = config
        self._host = host
        self.model = ModelCore(config, host, stopwatch)
        self._connected = False
        self._out: list[Publish] = []
        self._events: list[tuple[str, str]] = []
        self._next_telemetry_s = -math.inf
        self._sequence = 0
        self._cpu: tuple[float, float] | None = None

    # Local applications

    def request(self, request: dict[str, Any], now: Now) -> dict[str, Any]:
        """Answer a local application.

        Args:
            request: ``{"op": "predict", "id": ..., "x": array}``, ``{"op": "label", "id": ..., "y": class}``, perhaps
                with a ``weight``, ``{"op": "add-class", "name": ...}``, ``{"op": "rollback"}``, ``{"op": "export"}`` or
                ``{"op": "status"}``.
            now: The time.

        Raises:
            LearningError: The request cannot be carried out; nothing changed.
        """
        op = request.get("op")
        if op == "predict":
            return self.model.predict(request, now)
        if op == "label":
            return self.model.label(request, now)
        if op == "add-class":
            return self.model.add_class(request)
        if op == "status":
            return self.status()
        if op == "rollback":
            return self.model.roll_back()
        if op == "export":
            return self.model.export()
        raise LearningError(f"op {op!r:.40}: expected predict, label, add-class, status, rollback or export")

    def status(self) -> dict[str, Any]:
        """What a person or a test wants to know."""
        return {
            "device": self._config.device,
            **self.model.status(),
            "connected": self._connected,
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
        self.model.deployment.report()
        self._next_telemetry_s = min(self._next_telemetry_s, now.s)

    def _conn(self, online: bool, now: Now) -> Conn:
        record = self._host.slots.record
        return Conn(online=online, session=record.session, boot=record.boot, ts_ms=now.wall_ms)

    def will(self, now: Now) -> Publish:
        """What the broker is to say when the *next* connection breaks."""
        record = self._host.slots.record
        gone = Conn(online=False, session=record.session + 1, boot=record.boot, ts_ms=now.wall_ms)
        return letter(self._config, topics.UP_CONN, gone, qos=1, retain=True)

    def farewell(self, now: Now) -> list[Publish]:
        """What to say before stopping in good order."""
        self._send(topics.UP_CONN, self._conn(False, now), qos=1, retain=True)
        return self._take_out()

    def _send_birth(self, now: Now) -> None:
        status = self.model.status()
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
            self.model.frame(decode_frame(payload), now)
            return
        message = decode(leaf, payload)
        if isinstance(message, Desired | UploadStatus):
            self.model.receive(message, leaf, now)
        elif isinstance(message, Command):
            self._command(message, now)

    def _command(self, command: Command, now: Now) -> None:
        """Carry out what the coordinator asks for; all of these may be repeated without harm."""
        if command.name == "birth":
            self.model.contribute_again()
            self._send_birth(now)
            reply = Reply(id=command.id, rc=0, detail="", out={})
        elif command.name == "sync":
            self.model.contribute(now)
            reply = Reply(id=command.id, rc=0, detail="", out={"samples": self._host.model.n_samples})
        else:
            reply = Reply(id=command.id, rc=1, detail=f"unknown command {command.name!r}", out={})
        self._send(topics.UP_REPLY, reply, qos=1, expiry_s=3600)

    # Time

    @property
    def next_deadline_s(self) -> float:
        """Call `tick` at this time at the latest."""
        deadlines = [self.model.next_deadline_s(connected=self._connected)]
        return min(deadlines + ([self._next_telemetry_s] if self._connected else []))

    @property
    def busy(self) -> bool:
        """Whether labels wait for the learning budget."""
        return self.model.busy

    def tick(self, now: Now) -> list[Publish]:
        """Do what is due and give back what is to be sent."""
        self._out += self.model.tick(now, connected=self._connected)
        if self.model.is_renewed:
            self.model.is_renewed = False
            self._send_birth(now)
        del self._events[:-MAX_EVENTS]  # the newest, when there was no broker for long
        if self._connected:
            if now.s >= self._next_telemetry_s:
                self._next_telemetry_s = now.s + self._config.telemetry_interval_s
                self._send(topics.UP_TELE, self._telemetry(now), qos=0)
            for name, detail in self._events:
                self._send(topics.UP_EVENT, Event(ts_ms=now.wall_ms, name=name, detail=detail[:500]), qos=1)
            self._events.clear()
        return self._take_out()

    def _take_out(self) -> list[Publish]:
        out, self._out = self._out, []
        return out if self._connected else []

    def _telemetry(self, now: Now) -> Telemetry:
        self._sequence += 1
        values: dict[str, Any] = {
            "ts": now.wall_ms,
            "seq": self._sequence,
            "boot": self._host.slots.record.boot,
            **self.model.telemetry(now),
        }
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

    def _send(
        self, leaf: str, message: Message, *, qos: int, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        self._out.append(letter(self._config, leaf, message, qos=qos, retain=retain, expiry_s=expiry_s))
