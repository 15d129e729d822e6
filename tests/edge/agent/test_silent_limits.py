"""faults: 59. A broker that drops large messages without a word stops neither learning from devices nor pushes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.channel.transport import Connected, Limited
from tests.support.fleet import SimulatedFleet


@pytest.fixture
def fleet(tmp_path: Path, digits_bundle: Path) -> Iterator[SimulatedFleet]:
    made = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False)
    yield made
    made.close()


def push_bundle(fleet: SimulatedFleet, bundle: Path) -> int:
    assert fleet.coordinator is not None
    kept = fleet.coordinator.add_artifact(bundle.read_bytes(), bundle)
    return fleet.coordinator.push(kept["digest"], "bundle", kept["backbone"], [], "test", fleet.now).counter


def test_contributions_and_pushes_arrive_in_smaller_frames_and_telemetry_goes_on(
    fleet: SimulatedFleet, other_bundle: Path
) -> None:
    assert other_bundle.stat().st_size > 40_000
    fleet.broker.swallows_above = 5_000
    fleet.run(2.0)
    fleet.teach("one", np.random.default_rng(0).random((20, 1, 8, 8), np.float32), np.arange(20) % 10)
    counter = push_bundle(fleet, other_bundle)
    began_s, rows = fleet.now_s, len(fleet.store.telemetry.after(0, 1000))
    fleet.until("active", lambda: fleet.converged(counter), 60.0)
    fleet.until("contributed", fleet.store.contributions.all, 120.0)
    assert len(fleet.store.telemetry.after(0, 1000)) - rows >= (fleet.now_s - began_s) // 5.0 - 1
    chunk = fleet.agents["one"].model.deployment._desired
    assert chunk is not None
    assert chunk.chunk_size_bytes == 4096
    # The coordinator restarts and says its wish in large chunks: who has it already does not begin again.
    fleet.crash_coordinator()
    fleet.start_coordinator()
    fleet.run(15.0)
    assert fleet.agents["one"].states[-1] == "active"


def test_a_coordinator_that_was_away_costs_one_halving_at_most(fleet: SimulatedFleet, other_bundle: Path) -> None:
    fleet.run(2.0)
    counter = push_bundle(fleet, other_bundle)
    agent = fleet.agents["one"]
    fleet.until("offered", lambda: agent.states[-1] == "fetching")
    fleet.crash_coordinator()
    fleet.run(120.0)
    fleet.start_coordinator()
    fleet.until("active", lambda: fleet.converged(counter), 200.0)
    assert agent.model.deployment._desired is not None
    assert agent.model.deployment._desired.chunk_size_bytes >= 16_384


def test_a_limit_that_is_found_in_the_middle_of_a_transfer_is_kept_to(
    fleet: SimulatedFleet, other_bundle: Path
) -> None:
    """Of the coordinator's connection: it cannot send any more what it was asked for, and offers smaller chunks."""
    assert fleet.coordinator is not None
    fleet.run(2.0)
    counter = push_bundle(fleet, other_bundle)
    agent = fleet.agents["one"]
    fleet.until("offered", lambda: agent.states[-1] == "fetching")
    fleet.coordinator.transport(Limited(max_packet_bytes=9_000), fleet.now)
    fleet.broker.swallows_above = 9_000
    fleet.until("active", lambda: fleet.converged(counter), 60.0)
    assert agent.model.deployment._desired is not None
    assert agent.model.deployment._desired.chunk_size_bytes == 8192
    fleet.coordinator.transport(Connected(session_present=False, max_packet_bytes=262_144), fleet.now)
    counter = push_bundle(fleet, other_bundle)
    fleet.broker.swallows_above = None
    fleet.until("active", lambda: fleet.converged(counter), 60.0)
