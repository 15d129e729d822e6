"""Some simulated devices in one process: one loop, one queue, and a broker connection for each.

The door for clock and threads. What happens when follows from the scenario and the time since its start, so a process
that was killed goes on where the scenario is when it starts again.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import logging
import queue
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edge.agent.config import AgentConfig
from edge.agent.service import WILL_DELAY_S, now
from edge.channel import topics
from edge.channel.transport import Connected, Disconnected, Transport, TransportEvent, publish_all
from edge.simulator.device import SimulatedDevice
from edge.simulator.scenario import Fault, Scenario
from edge.simulator.world import Recording

_log = logging.getLogger("edge.simulator")

REPORT_EVERY_S = 1.0
# Events that are taken at most before devices have their turn.
_AT_ONCE = 256


def struck(scenario: Scenario, number: int, things: int | None = None) -> set[int]:
    """Which devices the fault of this number in the scenario strikes; or of so many things, one at least."""
    fault, n = scenario.faults[number], scenario.devices if things is None else things
    drawn = np.random.default_rng([scenario.seed, 1_000_003 + number]).permutation(n)
    return {int(each) for each in drawn[: max(round(fault.share * n), int(things is not None))]}


class Devices:
    """See the module.

    Args:
        config: Of all agents; each has a name and a state folder of its own, below that of `config`.
        recording: What devices see.
        scenario: What they go through.
        indices: Which of the scenario's devices these are.
        connect: Makes the connection of a device, by its name.
        start_s: When the scenario began, of the monotonic clock that all processes share.
        say: Takes a report, one line of JSON.
    """

    def __init__(
        self,
        config: AgentConfig,
        recording: Recording,
        scenario: Scenario,
        indices: Sequence[int],
        connect: Callable[[str], Transport],
        start_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._config, self._recording, self._scenario = config, recording, scenario
        self._indices, self._connect, self._say = indices, connect, say
        self._start_s = start_s
        self._devices: dict[int, SimulatedDevice] = {}
        self._lines: dict[int, Transport] = {}
        self._connected: set[int] = set()
        self._away: Counter[int] = Counter()  # by how many faults each is without a line
        self._queue: queue.SimpleQueue[tuple[int, Transport, TransportEvent]] = queue.SimpleQueue()
        self._due: list[tuple[float, int]] = []  # of a device only the entry counts that `_next` has
        self._next: dict[int, float] = {}
        self._faults: list[tuple[float, int, bool]] = []  # when, which, and whether it begins
        self._stopping = False

    def stop(self) -> None:
        """Let `run` come to an end; from any thread, and from a signal's handler."""
        self._stopping = True

    def run(self, end_s: float) -> None:
        """Start the devices, and run them until a moment or `stop`."""
        moments, now_s = self._scenario.moments(), time.monotonic() - self._start_s
        # Done by whoever started this process; over before this process was started again.
        others = {number for number, fault in enumerate(self._scenario.faults) if fault.kind == "kill"}
        others |= {number for at_s, number, begins in moments if not begins and at_s < now_s}
        self._faults = [
            (self._start_s + at_s, number, begins) for at_s, number, begins in moments if number not in others
        ]
        try:
            for index in self._indices:
                if self._stopping:
                    break
                self._start(index)
                self._work(0.0)
            self._loop(end_s)
        finally:
            self._leave()

    def _start(self, index: int) -> None:
        name = name_of(self._config.device, index)
        config = replace(self._config, device=name, state_dir=self._config.state_dir / name)
        config.state_dir.mkdir(parents=True, exist_ok=True)
        self._devices[index] = SimulatedDevice(config, self._recording, self._scenario, index, now())
        self._open_line(index)
        self._come(index, 0.0)

    def _open_line(self, index: int) -> None:
        device, line = self._devices[index], self._connect(name_of(self._config.device, index))
        self._set_will(index, line)
        line.subscribe(topics.device_filters(self._config.fleet, device.name))
        line.subscribe([(topics.own_conn(self._config.fleet, device.name), 1)])
        self._lines[index] = line
        line.start(lambda event: self._queue.put((index, line, event)))

    def _set_will(self, index: int, line: Transport) -> None:
        will = self._devices[index].core.will(now())
        line.set_will(will.topic, will.payload, will.qos, will.retain, WILL_DELAY_S)

    def _cut(self, index: int, reason: str) -> None:
        if (line := self._lines.pop(index, None)) is not None:
            line.stop()
            self._connected.discard(index)
            self._devices[index].take(Disconnected(reason=reason), now())

    def _loop(self, end_s: float) -> None:
        next_report_s = 0.0
        while not self._stopping and (moment := time.monotonic()) < end_s:
            if moment >= next_report_s:
                self._say(json.dumps(self._progress()))
                next_report_s = moment + REPORT_EVERY_S
            while self._faults and self._faults[0][0] <= moment:
                _, number, begins = self._faults.pop(0)
                self._strike(number, begins=begins)
            due = [next_report_s, end_s, *(each[0] for each in (self._due[:1] + self._faults[:1]))]
            self._work(min(due) - moment)

    def _work(self, wait_s: float) -> None:
        """Take what came, waiting so long for the first of it, and let devices do what is due."""
        touched: set[int] = set()
        with contextlib.suppress(queue.Empty):
            touched |= self._take(*(self._queue.get(timeout=wait_s) if wait_s > 0 else self._queue.get_nowait()))
            for _ in range(_AT_ONCE - 1):
                touched |= self._take(*self._queue.get_nowait())
        moment = time.monotonic()
        while self._due and self._due[0][0] <= moment:
            due_s, index = heapq.heappop(self._due)
            if self._next.get(index) == due_s:
                del self._next[index]
                touched.add(index)
        for index in touched:
            self._step(index)

    def _take(self, index: int, line: Transport, event: TransportEvent) -> set[int]:
        if line is not self._lines.get(index):  # of a connection that was given up
            return set()
        device = self._devices[index]
        try:
            device.take(event, now())
        except Exception:  # noqa: BLE001  # whatever one device does, the others go on
            _log.exception("%s: a message could not be handled; it goes on", device.name)
        if isinstance(event, Connected):
            self._connected.add(index)
            self._set_will(index, line)
        elif isinstance(event, Disconnected):
            self._connected.discard(index)
        return {index}

    def _step(self, index: int) -> None:
        device = self._devices[index]
        try:
            said, due_s = device.step(now())
        except Exception:  # noqa: BLE001  # whatever one device does, the others go on
            _log.exception("%s goes on after an error", device.name)
            said, due_s = [], time.monotonic() + 1.0
        if said and index in self._lines:
            publish_all(self._lines[index], said)
        self._come(index, due_s)

    def _come(self, index: int, due_s: float) -> None:
        """Look at a device at this time."""
        if self._next.get(index) != due_s:
            self._next[index] = due_s
            heapq.heappush(self._due, (due_s, index))

    def _strike(self, number: int, *, begins: bool) -> None:
        fault = self._scenario.faults[number]
        for index in sorted(struck(self._scenario, number) & self._devices.keys()):
            try:
                self._change(index, fault, begins=begins)
            except Exception:  # noqa: BLE001  # whatever one device does, the others go on
                _log.exception("%s: %s could not be done", self._devices[index].name, fault.kind)

    def _change(self, index: int, fault: Fault, *, begins: bool) -> None:
        device = self._devices[index]
        if fault.kind in ("drift", "wrong"):
            (device.begin if begins else device.end)(fault)
            return
        self._away[index] += 1 if begins else -1
        if begins:
            said = device.stop(now()) if fault.kind == "restart" else []
            if index in self._lines:
                publish_all(self._lines[index], said)
            self._cut(index, "the scenario says so")
        elif not self._away[index]:  # else another fault keeps it away
            if not device.is_running:
                device.start()
            self._open_line(index)
            self._come(index, 0.0)

    def _progress(self) -> dict[str, Any]:
        found: Counter[str] = Counter()
        events: Counter[str] = Counter()
        releases: Counter[str] = Counter()
        for device in self._devices.values():
            events.update(device.tally.events)
            found.update(device.tally.numbers())
            if device.is_running:
                releases[_release_of(device)] += 1
        return {
            "started": len(self._devices),
            "connected": len(self._connected),
            "releases": dict(releases),
            "events": dict(events),
            **found,
        }

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for index, device in sorted(self._devices.items()):
            release = _release_of(device) if device.is_running else None
            row = {"device": device.name, "connected": index in self._connected, "release": release}
            rows.append(row | device.tally.numbers() | {"events": dict(device.tally.events)})
        return rows

    def _leave(self) -> None:
        self._say(json.dumps(self._progress() | {"devices": self._rows()}))
        for index, device in self._devices.items():
            try:
                said = device.stop(now())
                if (line := self._lines.get(index)) is not None:
                    publish_all(line, said)
                    line.stop()
            except Exception:  # noqa: BLE001  # whatever one device does, the others go on
                _log.exception("%s did not stop in good order", device.name)


def name_of(prefix: str, index: int) -> str:
    """The name of a device."""
    return f"{prefix}-{index:05}"


def _release_of(device: SimulatedDevice) -> str:
    models = device.core.models.values()
    return " ".join(str(model.host.slots.record.release) for model in models)
