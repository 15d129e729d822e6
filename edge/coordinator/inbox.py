"""What waits for the coordinator's thread: operators first, then the connection, then device by device in turn.

A device that talks too much costs itself only. What it may send in a second is bounded, by kind (`ALLOWED`): whatever
is above is dropped before it is decoded, so the thread of the broker connection never waits and the broker, whose
queue is one for all devices, need not drop the messages of others. What waits is bounded as well (`MAX_WAITING`): of a
coordinator that cannot keep up each device loses its oldest telemetry first. Frames and requests are left out of the
rates: both sides send no more of them than the other asked for. Dropped messages are counted, and told by `dropped`.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from edge.channel.transport import Received, TransportEvent

Call = TypeVar("Call")

TELEMETRY, EVENTS, FRAMES, REST = "telemetry", "events", "frames", "messages"
_KINDS = {"up/tele": TELEMETRY, "up/event": EVENTS, "up/ul": FRAMES, "up/req": FRAMES}


@dataclass(frozen=True, slots=True)
class Rate:
    """So many messages a second for long, and at once after a pause.

    Attributes:
        per_s: Messages a second.
        burst: Messages at once.
    """

    per_s: float
    burst: float


# What one device may send. A minute without a broker is made up for at once, and nobody honest sends as much for long.
ALLOWED: Mapping[str, Rate] = {
    TELEMETRY: Rate(20.0, 400.0),
    EVENTS: Rate(10.0, 400.0),
    FRAMES: Rate(400.0, 2000.0),
    REST: Rate(10.0, 200.0),
}
# Messages of one device, and of all, that may wait.
MAX_WAITING, MAX_OF_ALL = 1000, 50_000
# Devices that are remembered with what they have left; who was quiet for a while has all of it.
_MAX_KNOWN, _QUIET_S = 100_000, 120.0
# So often it is looked who was quiet: names without end must not keep the broker's thread busy with that.
_FORGET_EVERY_S = 10.0
# Devices among which the one is looked for that loses telemetry when the whole is full.
_LOOKED_AT = 16


@dataclass(slots=True)
class _Line:
    """One device: what of it waits, and when it had how much of its rates left."""

    waiting: deque[tuple[str, Received]] = field(default_factory=deque)
    left: dict[str, tuple[float, float]] = field(default_factory=dict)
    seen_s: float = 0.0

    def may(self, kind: str, now_s: float) -> bool:
        rate, self.seen_s = ALLOWED[kind], now_s
        left, then_s = self.left.get(kind, (rate.burst, now_s))
        left = min(rate.burst, left + (now_s - then_s) * rate.per_s)
        self.left[kind] = (left - 1.0 if left >= 1.0 else left), now_s
        return left >= 1.0


class Inbox(Generic[Call]):
    """See the module. Safe for threads; one of them takes.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._calls: deque[Call] = deque()
        self._connection: deque[TransportEvent] = deque()
        self._lines: dict[str, _Line] = {}
        self._turns: deque[str] = deque()  # the devices of which something waits, each once
        self._n_waiting = 0
        self._next_forget_s = -math.inf
        self._dropped: Counter[tuple[str, str]] = Counter()

    def call(self, call: Call) -> None:
        """Put in what an operator asks for."""
        with self._changed:
            self._calls.append(call)
            self._changed.notify()

    def put(self, event: TransportEvent) -> None:
        """Put in what comes from the broker. Never waits."""
        with self._changed:
            if not isinstance(event, Received):
                self._connection.append(event)
            elif not self._queued(event):
                return
            self._changed.notify()

    def _queued(self, message: Received) -> bool:
        parts = message.topic.split("/", 6)  # edge/v1/fleet/device/up/kind/...
        device, kind = parts[3] if len(parts) > 3 else "", _KINDS.get("/".join(parts[4:6]), REST)
        if len(self._lines) >= _MAX_KNOWN and device not in self._lines and not self._can_be_known():
            self._dropped["", kind] += 1
            return False
        line = self._lines.setdefault(device, _Line())
        if not line.may(kind, self._clock()) or not self._is_room(device):
            self._dropped[device, kind] += 1
            return False
        if not line.waiting:
            self._turns.append(device)
        line.waiting.append((kind, message))
        self._n_waiting += 1
        return True

    def _is_room(self, device: str) -> bool:
        """Whether a message of a device can wait, at the cost of old telemetry where it is full."""
        if len(self._lines[device].waiting) >= MAX_WAITING:
            return self._makes_room(device)
        return self._n_waiting < MAX_OF_ALL or self._makes_room(self._longest())

    def _longest(self) -> str:
        """Of those whose turn is next, the device of which most waits."""
        return max(islice(self._turns, _LOOKED_AT), key=lambda device: len(self._lines[device].waiting))

    def _makes_room(self, device: str) -> bool:
        """Drop the oldest telemetry of a device; False when there is none."""
        waiting = self._lines[device].waiting
        place = next((i for i, (kind, _) in enumerate(waiting) if kind == TELEMETRY), None)
        if place is None:
            return False
        del waiting[place]
        self._n_waiting -= 1
        self._dropped[device, TELEMETRY] += 1
        if not waiting:
            self._turns.remove(device)
        return True

    def _can_be_known(self) -> bool:
        """Whether there is a place for one more device, now that the quiet ones are forgotten."""
        now_s = self._clock()
        if now_s >= self._next_forget_s:
            self._next_forget_s = now_s + _FORGET_EVERY_S
            self._lines = {
                name: line for name, line in self._lines.items() if line.waiting or now_s - line.seen_s < _QUIET_S
            }
        return len(self._lines) < _MAX_KNOWN

    def take(self, timeout_s: float) -> Call | TransportEvent | None:
        """What is next; None when nothing comes in that time."""
        with self._changed:
            if not self._has_any():
                self._changed.wait(timeout_s)
            if self._calls:
                return self._calls.popleft()
            if self._connection:
                return self._connection.popleft()
            if not self._turns:
                return None
            device = self._turns.popleft()
            line = self._lines[device]
            _, message = line.waiting.popleft()
            self._n_waiting -= 1
            if line.waiting:
                self._turns.append(device)
            return message

    def _has_any(self) -> bool:
        return bool(self._calls or self._connection or self._turns)

    def dropped(self) -> dict[tuple[str, str], int]:
        """Messages dropped since the last call, by device and kind."""
        with self._changed:
            found, self._dropped = dict(self._dropped), Counter()
            return found
