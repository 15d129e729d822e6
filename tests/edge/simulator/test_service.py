"""The loop of many devices."""

from __future__ import annotations

from typing import Any, cast

import pytest

from edge.agent.config import AgentConfig
from edge.channel.memory import MemoryTransport
from edge.channel.transport import Disconnected
from edge.simulator import service
from edge.simulator.scenario import Scenario
from edge.simulator.world import Recording


class _Device:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told = 0

    def take(self, _event: object, _now: object) -> None:
        self.told += 1

    def step(self, _now: object) -> tuple[list[object], float]:
        return [], float("inf")


def test_of_many_events_at_once_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_AT_ONCE", 3)
    nothing: Any = None
    devices = service.Devices(
        cast(AgentConfig, nothing), cast(Recording, nothing), Scenario(), (0,), nothing, 0.0, lambda _: None
    )
    device, line = _Device(), cast(MemoryTransport, object())
    devices._devices[0], devices._lines[0] = cast(Any, device), line
    for _ in range(10):
        devices._queue.put((0, line, Disconnected(reason="the broker went away")))
    for taken in (3, 6, 9, 10, 10):
        devices._work(0.0)
        assert device.told == taken
