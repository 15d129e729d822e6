"""faults: 42. A refused release changes nothing: no counter, no download, no probation, before or after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from edge.agent.slots.slots import ModelRecord
from edge.channel.messages import Desired
from edge.contract.bundle import Bundle
from edge.learning.exchange import HeadRelease
from tests.support.fleet import SimulatedFleet


@pytest.fixture
def fleet(tmp_path: Path, digits_bundle: Path) -> Iterator[SimulatedFleet]:
    made = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False)
    made.run(2.0)
    made.teach("one", np.random.default_rng(0).random((30, 1, 8, 8), np.float32), np.arange(30) % 10)
    yield made
    made.close()


def push(fleet: SimulatedFleet, bundle: Path, origin: str) -> int:
    """The shipped head once more."""
    assert fleet.coordinator is not None
    opened = Bundle.open(bundle)
    parameters = safetensors.numpy.load(opened.read("head.safetensors"))
    head = HeadRelease(backbone=opened.manifest.backbone_digest, parameters=parameters, origin=origin)
    kept = fleet.coordinator.add_artifact(head.encode(), fleet.folder / "none")
    return fleet.coordinator.push(kept["digest"], "head", kept["backbone"], [], "test", fleet.now).counter


def forged(fleet: SimulatedFleet, **fields: object) -> list[Desired]:
    """Releases that nobody has made, each refused for another reason."""
    backbone = fleet.agents["one"].host.model.manifest.backbone_digest
    plain = Desired(
        release=2**62,
        kind="head",
        digest="a" * 64,
        size_bytes=100,
        chunk_size_bytes=32768,
        index_digest="b" * 64,
        backbone=backbone,
        reason="forged",
        ts_ms=1,
    )
    return [
        plain,
        replace(plain, release=2**63 - 1, kind="bundle"),
        replace(plain, release=2**52),
        replace(plain, release=1000, backbone="c" * 64),
        replace(plain, release=2**31, size_bytes=2**40, kind="bundle"),
        replace(plain, release=2**31, size_bytes=2**62),
    ]


def test_the_next_real_release_is_taken_after_any_forged_one_also_after_a_restart(
    fleet: SimulatedFleet, digits_bundle: Path
) -> None:
    for number, lie in enumerate(forged(fleet)):
        agent = fleet.agents["one"]
        before = agent.host.slots.record
        agent.model.deployment.offer(lie, fleet.now_s)
        after = agent.host.slots.record
        assert replace(after, refused=before.refused) == before
        fleet.run(2.0)
        assert fleet.device("one").state == "refused"
        assert fleet.device("one").state_detail
        if number % 2:
            fleet.crash_agent("one")
            agent = fleet.start_agent("one")
            fleet.run(1.0)
            agent.model.deployment.offer(lie, fleet.now_s)  # as a retained message would
            fleet.run(1.0)
        counter = push(fleet, digits_bundle, str(number))
        assert counter == number + 1, "nor does the coordinator count on from there"
        fleet.until("taken", lambda: fleet.converged(counter), 60.0)  # noqa: B023


def test_what_is_on_its_way_or_on_probation_goes_on(fleet: SimulatedFleet, digits_bundle: Path) -> None:
    agent = fleet.agents["one"]
    counter = push(fleet, digits_bundle, "first")
    fleet.until("fetching", lambda: agent.states[-1] == "fetching")
    download = agent.model.deployment._fetch
    for lie in forged(fleet):
        agent.model.deployment.offer(lie, fleet.now_s)
    assert agent.model.deployment._fetch is download
    fleet.until("probation", lambda: agent.states[-1] == "probation")
    for lie in forged(fleet):
        agent.model.deployment.offer(lie, fleet.now_s)
    assert str(agent.model.deployment.state) == "probation"
    fleet.until("active", lambda: fleet.converged(counter), 60.0)
    assert "rolled-back" not in agent.states


def test_a_release_that_its_trial_refuses_does_not_count_and_is_not_looked_at_again(
    fleet: SimulatedFleet, other_bundle: Path, digits_bundle: Path
) -> None:
    agent = fleet.agents["one"]
    assert fleet.coordinator is not None
    data = other_bundle.read_bytes()[:-200]  # has its digest, and does not open
    artifact = fleet.coordinator.dialogue._artifacts.put(data)
    backbone = agent.host.model.manifest.backbone_digest
    lie = Desired(
        release=900,
        kind="bundle",
        digest=artifact.digest,
        size_bytes=artifact.size_bytes,
        chunk_size_bytes=artifact.chunk_bytes,
        index_digest=artifact.index_digest,
        backbone=backbone,
        reason="forged",
        ts_ms=1,
    )
    agent.model.deployment.offer(lie, fleet.now_s)
    fleet.until("refused", lambda: agent.states[-1] == "refused")
    assert agent.host.slots.record == ModelRecord(name="digits", refused=900)
    fleet.crash_agent("one")
    agent = fleet.start_agent("one")
    fleet.run(1.0)
    agent.model.deployment.offer(lie, fleet.now_s)
    assert agent.model.deployment._fetch is None
    counter = push(fleet, digits_bundle, "real")
    assert counter == 1
    fleet.until("taken", lambda: fleet.converged(counter), 60.0)
