"""What was learned goes up shorter where the coordinator reads that, and exact where not; nothing is lost by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent.model.on_device_model import OnDeviceModel
from edge.coordinator import dialogue
from edge.learning.compression import Compression, Packed, same
from edge.learning.exchange import HeadRelease, HeadUpdate
from tests.support.contributions import merged_head, policy_of
from tests.support.fleet import SimulatedFleet

Simulate = Callable[..., SimulatedFleet]
DEVICES = ["one", "two"]
LABELS = 16
INT8 = Compression("int8")


@pytest.fixture
def simulate(tmp_path: Path, digits_bundle: Path) -> Iterator[Simulate]:
    """Make fleets of two devices with labels, that are closed at the end of the test."""
    fleets: list[SimulatedFleet] = []

    def make(**options: Any) -> SimulatedFleet:
        fleet = SimulatedFleet(tmp_path, digits_bundle, DEVICES, **options)
        fleets.append(fleet)
        for seed, name in enumerate(DEVICES):
            teach(fleet, digits_bundle, name, seed)
        return fleet

    yield make
    for fleet in fleets:
        fleet.close()


def teach(fleet: SimulatedFleet, bundle: Path, name: str, seed: int) -> None:
    """Labels that the shipped model would give."""
    model = OnDeviceModel.open(bundle)
    x = np.random.default_rng(seed).random((LABELS, *model.manifest.inputs[0].sample_shape), np.float32)
    labels = model.predict(x).argmax(axis=1)
    model.close()
    fleet.teach(name, x, labels, f"s{seed}-")


def documents(fleet: SimulatedFleet) -> dict[str, tuple[int, HeadUpdate]]:
    """What the coordinator keeps of each device: its size, and as it is read."""
    found = {}
    for row in fleet.store.contributions.all():
        data = (fleet.folder / "coordinator/artifacts" / row.digest).read_bytes()
        found[row.device] = (len(data), HeadUpdate.decode(data, row.device))
    return found


def events(fleet: SimulatedFleet) -> list[tuple[str, str]]:
    return [(row.device, row.name) for row in fleet.store.events.newest(500)]


def merge_of(fleet: SimulatedFleet) -> HeadRelease:
    """The newest release."""
    digest = fleet.store.releases.all()[0].digest
    return HeadRelease.decode((fleet.folder / "coordinator/artifacts" / digest).read_bytes(), "it")


@pytest.mark.parametrize(("learner", "how"), [("auto", "int8"), ("sgd", "int8"), ("sgd", "top-k:0.2")])
def test_shorter_uploads_are_merged_and_come_back(simulate: Simulate, learner: str, how: str) -> None:
    fleet = simulate(learner=learner, upload=Compression.parse(how))
    fleet.until("settled", fleet.settled)
    exact = sum(array.nbytes for array in next(iter(documents(fleet).values()))[1].tensors.values())
    assert all(size < 0.7 * exact for size, _ in documents(fleet).values())
    kinds = {kind for _, kind in events(fleet)}
    assert not kinds & {"contribution-refused", "upload-refused", "upload-exact", "fault", "merge-failed"}
    bundle = fleet.agents["one"].host.model.bundle
    expected = merged_head(bundle, [update for _, update in documents(fleet).values()]) if learner == "auto" else None
    for name in DEVICES if expected is not None else ():
        model = fleet.agents[name].host.model
        for key, array in model.learning.parameters(model.learned, "merged").items():
            np.testing.assert_allclose(array, expected.parameters[key], rtol=1e-5, atol=1e-6)


def remembered(model: OnDeviceModel, version: int) -> dict[str, Any]:
    """What a device takes for sent under a version, as the coordinator has it."""
    knowledge = model.learned.experts[model.learning.contributor(model.learned)]
    if model.learning.contribution(model.learned)[0] == "statistics":
        return next(each.statistics.tensors for each in knowledge.sent if each.version == version)
    changes = knowledge.changes
    return changes.since(next(each.head for each in changes.sent if each.version == version))


@pytest.mark.parametrize("how", ["int8", "top-k"])
def test_a_killed_device_of_changes_knows_what_of_them_arrived(simulate: Simulate, how: str) -> None:
    """So what did not is in what it sends next: error feedback over a restart.

    Of one executor: which is the fastest is measured at each start, and another one's last digits may cross a code.
    """
    fleet = simulate(upload=Compression.parse(how), learner="sgd", auto_merge=False, executor="numpy")
    fleet.until(
        "sent", lambda: {n: u.version for n, (_, u) in documents(fleet).items()} == dict.fromkeys(DEVICES, LABELS)
    )
    fleet.crash_agent("two")
    model = fleet.start_agent("two").host.model
    arrived = documents(fleet)["two"][1].tensors
    left_out = 0.0
    exact = model.learned.experts["sgd"].changes.since(model.learning.parameters(model.learned, "sgd"))
    for name, array in remembered(model, LABELS).items():
        np.testing.assert_allclose(array, arrived[name], atol=2e-6)
        left_out = max(left_out, float(np.abs(exact[name] - array).max()))
    assert left_out > 1e-4


@pytest.mark.parametrize("at", [3, 6])
def test_a_device_that_is_killed_on_the_way_sends_what_it_sent_before(simulate: Simulate, at: int) -> None:
    fleet = simulate(upload=INT8)
    for _ in range(at):
        fleet.step()
    fleet.crash_agent("two")
    fleet.run(3.0)
    agent = fleet.start_agent("two")
    fleet.until("settled", fleet.settled)
    assert agent.host.model.n_samples == LABELS
    arrived = documents(fleet)["two"][1].tensors
    assert same(remembered(agent.host.model, LABELS), arrived)
    assert merge_of(fleet).n_samples == 2 * LABELS


def test_a_coordinator_from_before_is_sent_exact_uploads_until_it_is_another(
    simulate: Simulate, digits_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(dialogue, "CODECS", ())  # it says nothing, as one that knows of no codecs
        fleet = simulate(upload=INT8)
        fleet.until("settled", fleet.settled)
    assert all(size > sum(a.nbytes for a in update.tensors.values()) for size, update in documents(fleet).values())
    told = events(fleet)
    assert {("one", "upload-exact"), ("two", "upload-exact")} <= set(told)
    assert "contribution-refused" not in {kind for _, kind in told}
    # It is remembered as it arrived, though it had been made shorter before.
    assert same(remembered(fleet.agents["one"].host.model, LABELS), documents(fleet)["one"][1].tensors)
    fleet.agents["one"].model._contributing.forget()  # as when a coordinator asks who this is
    teach(fleet, digits_bundle, "one", 7)
    fleet.until("sent again", lambda: documents(fleet)["one"][1].version == 2 * LABELS)
    size, update = documents(fleet)["one"]
    assert size < 0.7 * sum(array.nbytes for array in update.tensors.values())


def test_what_decodes_to_other_values_at_the_coordinator_is_sent_whole(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Compression.pack

    def otherwise(self: Compression, tensors: Any) -> Packed:
        """As on a machine whose arithmetic is another."""
        packed = pack(self, tensors)
        return replace(packed, description={**packed.description, "result": "00" * 32}) if packed.codes else packed

    monkeypatch.setattr(Compression, "pack", otherwise)
    fleet = simulate(upload=INT8)
    fleet.until("settled", fleet.settled)
    told = set(events(fleet))
    assert {("one", "contribution-refused"), ("one", "upload-refused"), ("one", "upload-exact")} <= told
    assert all(size > sum(a.nbytes for a in update.tensors.values()) for size, update in documents(fleet).values())


def test_who_is_forgotten_is_out_of_the_sums_as_they_were_decoded(simulate: Simulate) -> None:
    fleet = simulate(upload=INT8, policy=policy_of())
    fleet.until("settled", fleet.settled)
    other = documents(fleet)["two"][1]
    assert fleet.coordinator is not None
    fleet.coordinator.forget("one", fleet.now)
    fleet.until("merged without it", lambda: set(merge_of(fleet).included) == {other.lineage})
    expected = merged_head(fleet.agents["two"].host.model.bundle, [other])
    found = merge_of(fleet)
    for name, array in expected.merged.items():
        np.testing.assert_allclose(found.merged[name], array, rtol=1e-6, atol=1e-6 * float(np.abs(array).max()))


def test_who_was_forgotten_says_once_that_nothing_of_it_is_taken(simulate: Simulate, digits_bundle: Path) -> None:
    fleet = simulate(auto_merge=False)
    fleet.until("kept", lambda: set(documents(fleet)) == set(DEVICES))
    assert fleet.coordinator is not None
    fleet.coordinator.forget("one", fleet.now)
    for seed in range(3):
        teach(fleet, digits_bundle, "one", 10 + seed)
        fleet.run(5.0)
    assert events(fleet).count(("one", "upload-refused")) == 1
    assert set(documents(fleet)) == {"two"}
