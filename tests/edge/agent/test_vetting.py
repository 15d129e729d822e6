"""A device that was given a root takes what the fleet's keys signed, and is not moved by anything else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from edge.channel import topics
from edge.channel.codec import encode
from edge.channel.memory import MemoryTransport
from edge.channel.messages import Desired
from edge.contract.bundle import Bundle
from edge.contract.errors import RolloutError
from edge.coordinator.http.rollout_views import shown
from edge.coordinator.rollout.states import RolloutEvent
from edge.coordinator.signing import ceremony
from edge.learning.exchange import HeadRelease
from tests.support.fleet import FLEET, SimulatedFleet


@pytest.fixture
def fleet(tmp_path: Path, digits_bundle: Path) -> Iterator[SimulatedFleet]:
    folders = ceremony.init(tmp_path / "keys", datetime.now(UTC))
    signing, root = folders.base / "coordinator", folders.device_root
    made = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False, signing=signing, trust_root=root)
    made.run(2.0)
    yield made
    made.close()


def push(fleet: SimulatedFleet, path: Path) -> int:
    assert fleet.coordinator is not None
    kept = fleet.coordinator.add_artifact(path.read_bytes(), path)
    return fleet.coordinator.push(kept["digest"], kept["kind"], kept["backbone"], [], "test", fleet.now).counter


def test_signed_heads_and_bundles_become_active_and_an_unsigned_bundle_is_not_even_sent(
    fleet: SimulatedFleet, digits_bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    agent = fleet.agents["one"]
    assert agent.core.status()["releases"].startswith("signed")
    head = tmp_path / "head"
    parameters = agent.host.model.live_head().parameters
    backbone = Bundle.open(digits_bundle).manifest.backbone_digest
    head.write_bytes(HeadRelease(backbone=backbone, parameters=parameters, origin="test", n_samples=1).encode())
    counter = push(fleet, head)
    fleet.until("active", lambda: fleet.converged(counter))
    with pytest.raises(RolloutError, match="keys sign"):
        push(fleet, other_bundle)
    assert fleet.coordinator is not None
    signing = fleet.coordinator.signing
    assert signing is not None
    key = tmp_path / "keys" / "workstation" / "bundles.pem"
    listed = ceremony.sign_bundle(
        signing.bundles(), other_bundle, key, datetime.fromtimestamp(fleet.now.wall_ms / 1e3, UTC)
    )
    assert signing.take_bundles(listed, fleet.now) == 2
    counter = push(fleet, other_bundle)
    fleet.until("active", lambda: fleet.converged(counter))
    fleet.crash_agent("one")
    fleet.start_agent("one")
    fleet.crash_coordinator()
    fleet.start_coordinator()
    fleet.run(15.0)
    assert fleet.agents["one"].host.model.bundle.digest == Bundle.open(other_bundle).digest


def test_a_way_back_to_a_bundle_that_nobody_signed_says_what_it_waits_for(
    fleet: SimulatedFleet, digits_bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    """Devices came with it: nobody had to sign it before."""
    key, core = tmp_path / "keys" / "workstation" / "bundles.pem", fleet.coordinator
    assert core is not None
    signing = core.signing
    assert signing is not None

    def sign(bundle: Path) -> None:
        day = datetime.fromtimestamp(fleet.now.wall_ms / 1e3, UTC)
        signing.take_bundles(ceremony.sign_bundle(signing.bundles(), bundle, key, day), fleet.now)

    sign(other_bundle)
    core.add_artifact(digits_bundle.read_bytes(), digits_bundle)
    kept = core.add_artifact(other_bundle.read_bytes(), other_bundle)
    what = (kept["digest"], kept["kind"], kept["backbone"])
    rollout = core.roll_out(*what, [], "test", fleet.now, force=True)[1].id
    fleet.until("live", lambda: shown(fleet.store, rollout)["counts"] == {"active": 1})
    core.rollouts.order(rollout, RolloutEvent.REVERT, "ann", "slow", fleet.now)
    fleet.run(5.0)
    (target,) = shown(fleet.store, rollout)["targets"]
    assert target["state"] == "reverting"
    assert target["detail"].startswith("slow; release 2 is not sent: its bundle is in no signed list: sign it with")
    sign(digits_bundle)
    fleet.until("back", lambda: shown(fleet.store, rollout)["state"] == "reverted")


def test_what_nobody_signed_changes_nothing_and_does_not_stand_in_the_way_of_what_somebody_did(
    fleet: SimulatedFleet, digits_bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    """faults: 41, 42. Refused means unchanged: a counter of 2**40 from a stranger blocks no real one."""
    agent = fleet.agents["one"]
    before = agent.host.slots.record
    digest = Bundle.open(digits_bundle).digest
    for release in (1, 2, 2**40):
        lie = Desired(
            release=release,
            kind="bundle",
            digest=digest,
            size_bytes=100,
            chunk_size_bytes=1024,
            index_digest=digest,
            backbone="",
            reason="",
            ts_ms=0,
        )
        for each in (lie, dataclasses.replace(lie, signature="ab:cd")):
            topic = topics.build(FLEET, "one", topics.DN_DESIRED)
            fleet.coordinator_transport.publish(topic, encode(each), qos=1, retain=True)
            fleet.run(3.0)
    assert agent.host.slots.record == before
    assert agent.states == ["idle"]
    told = [event.detail for event in fleet.store.events.newest(100) if event.name == "release-distrusted"]
    assert any("unsigned" in detail for detail in told)
    assert any("wrong-signer" in detail for detail in told)
    head = tmp_path / "head"
    parameters = agent.host.model.live_head().parameters
    backbone = Bundle.open(digits_bundle).manifest.backbone_digest
    head.write_bytes(HeadRelease(backbone=backbone, parameters=parameters, origin="test", n_samples=1).encode())
    counter = push(fleet, head)
    fleet.until("active", lambda: fleet.converged(counter))


def test_an_older_word_while_a_release_is_on_probation_does_not_take_its_counter_down(
    fleet: SimulatedFleet, digits_bundle: Path, tmp_path: Path
) -> None:
    """faults: 12, 42. After a restart the device remembers that it was on probation, not what it was told."""
    fleet.agent_options["probation_s"] = 60.0
    fleet.crash_agent("one")
    agent = fleet.start_agent("one")
    fleet.run(2.0)
    backbone = Bundle.open(digits_bundle).manifest.backbone_digest
    told = []
    for number in range(2):
        parameters = {k: v + np.float32(1e-3 * number) for k, v in agent.host.model.live_head().parameters.items()}
        head = tmp_path / f"{number}.head"
        head.write_bytes(HeadRelease(backbone=backbone, parameters=parameters, origin="test", n_samples=1).encode())
        counter = push(fleet, head)
        told.append(counter)
        fleet.until("on probation", lambda: str(agent.model.deployment.state) == "probation")
        fleet.until("of this release", lambda counter=counter: agent.host.slots.record.release == counter)
    assert agent.host.slots.record.release == told[1]
    fleet.crash_coordinator()
    fleet.crash_agent("one")
    digest = Bundle.open(digits_bundle).digest
    old = Desired(
        release=told[0],
        kind="bundle",
        digest=digest,
        size_bytes=100,
        chunk_size_bytes=1024,
        index_digest=digest,
        backbone=backbone,
        reason="",
        ts_ms=0,
    )
    stranger = MemoryTransport(fleet.broker, "stranger")
    stranger.start(lambda _: None)
    topic = topics.build(FLEET, "one", topics.DN_DESIRED)
    stranger.publish(topic, encode(old), qos=1, retain=True)  # it is the first that the device hears
    fleet.run(1.0)
    agent = fleet.start_agent("one")
    fleet.run(2.0)
    for release in told:
        stranger.publish(topic, encode(dataclasses.replace(old, release=release)), qos=1)
        fleet.run(2.0)
    fleet.until("over", lambda: str(agent.model.deployment.state) == "active")
    assert agent.host.slots.record.release == told[1]
    assert agent.host.slots.record.slot == "head"
