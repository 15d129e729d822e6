"""A site without a network: releases come in on a stick, what was learned goes out on one (faults 40, 41, 44)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from edge.agent.model.on_device_model import OnDeviceModel
from edge.channel.parcel import Parcel
from edge.contract.bundle import Bundle
from edge.contract.errors import BundleError, EdgeError, LearningError, RolloutError
from edge.coordinator.signing import ceremony
from edge.learning.exchange import UPDATE_KIND, HeadRelease, HeadUpdate
from tests.support.fleet import FLEET, Agent, SimulatedFleet
from tests.support.values import same


@pytest.fixture
def site(tmp_path: Path, digits_bundle: Path) -> Iterator[tuple[SimulatedFleet, Agent]]:
    """A coordinator with keys, and a device with its root that has never had a line."""
    folders = ceremony.init(tmp_path / "keys", datetime.now(UTC))
    fleet = SimulatedFleet(
        tmp_path,
        digits_bundle,
        [],
        auto_merge=False,
        signing=folders.base / "coordinator",
        trust_root=folders.device_root,
    )
    agent = Agent(tmp_path, "island", fleet.bundles, fleet.connect, fleet.agent_options)
    yield fleet, agent
    agent.core.close(fleet.now)
    agent.models.close()
    fleet.close()


def carry_out(fleet: SimulatedFleet, agent: Agent, path: Path, **options: bool) -> Path:
    import base64

    answer = agent.core.request({"op": "carry-out", **options}, fleet.now)
    path.write_bytes(base64.b64decode(answer["parcel"]))
    return path


def ticks(fleet: SimulatedFleet, agent: Agent, seconds: float) -> None:
    for _ in range(int(seconds * 4)):
        fleet.step()
        agent.core.tick(fleet.now)


def teach(fleet: SimulatedFleet, agent: Agent, bundle: Path, n: int) -> None:
    with OnDeviceModel.open(bundle) as model:
        x = np.random.default_rng(0).random((n, *model.manifest.inputs[0].sample_shape), np.float32)
        y = model.predict(x).argmax(axis=1)
    for i in range(n):
        agent.core.request({"op": "predict", "id": f"s{i}", "x": x[i]}, fleet.now)
        assert agent.core.request({"op": "label", "id": f"s{i}", "y": int(y[i])}, fleet.now)["joined"]


def test_a_stick_goes_both_ways_with_the_same_signatures(
    site: tuple[SimulatedFleet, Agent], tmp_path: Path, digits_bundle: Path, other_bundle: Path
) -> None:
    fleet, agent = site
    coordinator = fleet.coordinator
    assert coordinator is not None
    teach(fleet, agent, digits_bundle, 40)
    first = carry_out(fleet, agent, tmp_path / "out", checkpoint=True)
    assert coordinator.carry_in(first, fleet.now) == {"device": "island", "kept": 2, "refused": []}
    device = fleet.device("island")
    assert (device.samples, device.online) == (40, False)
    assert [row.n_samples for row in fleet.store.contributions.all()] == [40]
    assert [row.samples for row in fleet.store.checkpoints.of("island")] == [40]
    with pytest.raises(RolloutError, match="nothing for island"):
        coordinator.carry_out(["island"], fleet.now)
    # A head comes back, signed; so does what it goes on from.
    head = tmp_path / "head"
    parameters = agent.host.model.live_head().parameters
    backbone = Bundle.open(digits_bundle).manifest.backbone_digest
    head.write_bytes(HeadRelease(backbone=backbone, parameters=parameters, origin="test", n_samples=1).encode())
    kept = coordinator.add_artifact(head.read_bytes(), head)
    release = coordinator.push(kept["digest"], kept["kind"], kept["backbone"], [], "test", fleet.now)
    stick = tmp_path / "stick"
    stick.write_bytes(coordinator.carry_out(["island"], fleet.now))
    taken = agent.core.request({"op": "carry-in", "path": str(stick)}, fleet.now)
    assert taken == {"taken": [f"release {release.counter} for digits"]}
    ticks(fleet, agent, 20.0)
    assert str(agent.model.deployment.state) == "active"
    assert agent.host.slots.record.release == release.counter
    # And the coordinator reads that on the next stick.
    coordinator.carry_in(carry_out(fleet, agent, tmp_path / "again"), fleet.now)
    assert (fleet.device("island").release, fleet.device("island").state) == (release.counter, "active")
    # Once more changes nothing.
    agent.core.request({"op": "carry-in", "path": str(stick)}, fleet.now)
    ticks(fleet, agent, 2.0)
    assert str(agent.model.deployment.state) == "active"


def test_what_is_on_a_stick_is_believed_no_more_than_what_comes_over_the_line(
    site: tuple[SimulatedFleet, Agent], tmp_path: Path, digits_bundle: Path, other_bundle: Path
) -> None:
    fleet, agent = site
    coordinator = fleet.coordinator
    assert coordinator is not None
    coordinator.carry_in(carry_out(fleet, agent, tmp_path / "out"), fleet.now)
    # Unsigned: as of a coordinator that somebody else runs.
    kept = coordinator.add_artifact(other_bundle.read_bytes(), other_bundle)
    coordinator.releases.push(kept["digest"], "bundle", kept["backbone"], [], "test", fleet.now, force=True)
    coordinator.dialogue._signing = coordinator._parts.dialogue._signing = None
    forged = tmp_path / "forged"
    forged.write_bytes(coordinator.carry_out(["island"], fleet.now))
    before = agent.host.model.bundle.digest
    agent.core.request({"op": "carry-in", "path": str(forged)}, fleet.now)
    ticks(fleet, agent, 2.0)
    assert agent.host.model.bundle.digest == before
    assert agent.host.slots.record.release == 0
    # Of another fleet, for another device, no parcel, cut anywhere, any bit flipped: refused, and nothing is raised.
    data = forged.read_bytes()
    with pytest.raises(BundleError, match="of the fleet"):
        Parcel(forged, "another")
    wrong = tmp_path / "wrong"
    for broken in (b"", b"PK", data[:-1], data[: len(data) // 2], head_flipped(data)):
        wrong.write_bytes(broken)
        with pytest.raises(EdgeError):
            agent.core.request({"op": "carry-in", "path": str(wrong)}, fleet.now)
        with pytest.raises(EdgeError):
            coordinator.carry_in(wrong, fleet.now)
    with pytest.raises(BundleError, match="does not exist"):
        agent.core.request({"op": "carry-in", "path": "/no/such/file"}, fleet.now)
    with pytest.raises(BundleError, match="expected the word of one device"):
        coordinator.carry_in(forged, fleet.now)
    mine = carry_out(fleet, agent, tmp_path / "mine")
    renamed = tmp_path / "renamed"
    renamed.write_bytes(mine.read_bytes())
    agent.core._carrying._config = agent.config.__class__(**{**_options(agent), "device": "other"})
    with pytest.raises(LearningError, match="nothing for other"):
        agent.core.request({"op": "carry-in", "path": str(forged)}, fleet.now)
    assert Parcel(renamed, FLEET).devices() == ["island"]


def head_flipped(data: bytes) -> bytes:
    broken = bytearray(data)
    broken[200] ^= 1
    return bytes(broken)


def _options(agent: Agent) -> dict[str, object]:
    return {name: getattr(agent.config, name) for name in agent.config.__slots__}


def test_another_device_goes_on_from_a_stick_as_if_it_were_the_first(
    site: tuple[SimulatedFleet, Agent], tmp_path: Path, digits_bundle: Path
) -> None:
    """Nothing of what was learned is rounded on its way, whatever --upload says; sums are sent as float32."""
    fleet, _ = site
    coordinator = fleet.coordinator
    assert coordinator is not None
    options = {**fleet.agent_options, "checkpoint_samples": True, "upload": "int8"}
    first, second = (Agent(tmp_path, name, fleet.bundles, fleet.connect, options) for name in ("north", "south"))
    teach(fleet, first, digits_bundle, 40)
    stick = carry_out(fleet, first, tmp_path / "out", checkpoint=True)
    uploads = dict(Parcel(stick, FLEET).uploads())
    update = HeadUpdate.decode(uploads[UPDATE_KIND], "it")
    learned = first.host.model.learned
    sums = learned.experts["statistics"].own_as_sent()
    assert all(np.array_equal(update.tensors[name], array) for name, array in sums.tensors.items())
    coordinator.carry_in(stick, fleet.now)
    coordinator.carry_in(carry_out(fleet, second, tmp_path / "who"), fleet.now)
    order = coordinator.restore("south", "north", fleet.now)
    back = tmp_path / "back"
    back.write_bytes(coordinator.carry_out(["south"], fleet.now))
    taken = second.core.request({"op": "carry-in", "path": str(back)}, fleet.now)
    assert taken == {"taken": ["a checkpoint for digits"]}
    ticks(fleet, second, 5.0)
    assert same(second.host.model.learned, learned)
    # The next stick says so, also one of a later life, and there is nothing more to take along.
    second.models.close()
    later = Agent(tmp_path, "south", fleet.bundles, fleet.connect, options)
    assert same(later.host.model.learned, learned)
    for each, said in ((second, "what north had learned from 40 labels"), (later, "it was taken up")):
        answer = each.model.checkpoints.answered
        assert answer is not None
        assert (answer.rc, answer.detail) == (0, said)
    coordinator.carry_in(carry_out(fleet, later, tmp_path / "answer"), fleet.now)
    done = fleet.store.checkpoints.get_order(order.number)
    assert done is not None
    assert (done.state, done.detail) == ("done", "it was taken up")
    with pytest.raises(RolloutError, match="nothing for south"):
        coordinator.carry_out(["south"], fleet.now)
    for each in (first, later):
        each.core.close(fleet.now)
        each.models.close()
