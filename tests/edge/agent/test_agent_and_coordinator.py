"""Real agents and a real coordinator on a broker that loses, repeats and reorders (faults 3, 4, 11, 12, 21, 29, 31)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from edge.agent.core import AgentCore
from edge.agent.model import releases
from edge.agent.model.on_device_model import OnDeviceModel
from edge.channel.memory import Faults
from edge.channel.messages import Command
from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.contract.errors import BundleError, LearningError, RolloutError
from edge.contract.training import Parameters
from edge.inference.onnx_session import golden_inputs
from edge.learning.exchange import HeadRelease
from tests.support.contributions import merged_head
from tests.support.fleet import SimulatedFleet
from tests.support.values import same

Simulate = Callable[..., SimulatedFleet]
# Steps after which somebody is killed: at once, with contributions on their way, when they are merged, when the release
# is fetched, on probation, when it is over, and when all is done.
MOMENTS = (0, 3, 4, 6, 9, 21, 24)
DEVICES = ["one", "two"]
LABELS = 16  # that each gets: two of them together are enough for a merge


@pytest.fixture
def simulate() -> Iterator[Simulate]:
    """Make fleets that are closed at the end of the test."""
    fleets: list[SimulatedFleet] = []

    def make(*arguments: Any, **options: Any) -> SimulatedFleet:
        fleets.append(SimulatedFleet(*arguments, **options))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


def samples(bundle: Path, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs with the labels that the shipped model gives them: learnable, and the same everywhere."""
    model = OnDeviceModel.open(bundle)
    shape = model.manifest.inputs[0].sample_shape
    x = np.random.default_rng(seed).random((n, *shape), np.float32)
    labels = model.predict(x).argmax(axis=1)
    model.close()
    return x, labels


def teach_all(fleet: SimulatedFleet, bundle: Path, n: int = LABELS) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    taught = {}
    for seed, name in enumerate(fleet.agents):
        taught[name] = samples(bundle, n, seed)
        fleet.teach(name, *taught[name])
    return taught


def merge_of(fleet: SimulatedFleet, name: str) -> Parameters:
    """The newest merge that a device has among its experts."""
    model = fleet.agents[name].host.model
    return model.learning.parameters(model.learned, "merged")


def have_the_same_merge(fleet: SimulatedFleet) -> bool:
    first, *others = [merge_of(fleet, name) for name in fleet.agents]
    return all(np.array_equal(first[key], other[key]) for other in others for key in first)


def test_what_devices_learn_is_merged_and_comes_back_to_all(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, DEVICES)
    teach_all(fleet, digits_bundle)
    fleet.until("converged", lambda: fleet.converged(1))
    assert have_the_same_merge(fleet)
    assert fleet.agents["one"].states[-3:] == ["active"] or "probation" in fleet.agents["one"].states
    fleet.run(60.0)
    counters = [row.counter for row in fleet.store.releases.all()]
    assert counters == [1], "nothing new was learned, so nothing is merged again"


def test_merge_equals_learning_everything_in_one_place(simulate: Simulate, tmp_path: Path, digits_bundle: Path) -> None:
    fleet = simulate(tmp_path, digits_bundle, DEVICES)
    taught = teach_all(fleet, digits_bundle)
    fleet.until("converged", lambda: fleet.converged(1))
    alone = OnDeviceModel.open(digits_bundle)
    for x, y in taught.values():
        alone.learn(x, y)
    bundle = Bundle.open(digits_bundle)
    everything = merged_head(bundle, [releases.contribution(alone)])
    merged = merge_of(fleet, "two")
    for name, array in everything.parameters.items():
        np.testing.assert_allclose(merged[name], array, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("seed", range(2))
def test_converges_over_a_line_that_loses_repeats_and_reorders(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, seed: int
) -> None:
    faults = Faults(rng=random.Random(seed), drop=0.3, repeat=0.2, reorder=0.2)
    fleet = simulate(tmp_path, digits_bundle, DEVICES, faults=faults)
    teach_all(fleet, digits_bundle)
    fleet.until("settled", fleet.settled, 900)
    assert have_the_same_merge(fleet)


@pytest.mark.parametrize("at", MOMENTS)
def test_agent_killed_at_any_moment_converges_with_all_it_learned(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, at: int
) -> None:
    fleet = simulate(tmp_path, digits_bundle, DEVICES)
    teach_all(fleet, digits_bundle)
    for _ in range(at):
        fleet.step()
    fleet.crash_agent("two")
    fleet.run(5.0)
    agent = fleet.start_agent("two")
    assert agent.host.model.n_samples == LABELS, "every acknowledged label survived"
    fleet.until("settled", fleet.settled)
    assert have_the_same_merge(fleet)
    newest = fleet.store.releases.all()[0]
    release = HeadRelease.decode((tmp_path / "coordinator/artifacts" / newest.digest).read_bytes(), "")
    assert release.n_samples == 2 * LABELS, "nothing is counted twice or lost"


def test_a_snapshot_waits_until_the_journal_is_long(simulate: Simulate, tmp_path: Path, digits_bundle: Path) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"], auto_merge=False)
    agent = fleet.agents["one"]
    state = next(tmp_path.rglob("state.bin"))
    before = state.read_bytes()
    fleet.teach("one", *samples(digits_bundle, 20, 0))
    assert not agent.host.model.state.is_safe
    fleet.run(400.0, dt_s=2.0)
    assert fleet.store.contributions.all(), "an upload does not need a snapshot, either"
    assert agent.host.model.state.is_safe
    assert state.read_bytes() == before
    agent.model._stopwatch = itertools.count(step=0.1).__next__  # 0.1 s a label
    fleet.teach("one", *samples(digits_bundle, 60, 1), tag="t")
    fleet.until("learned", lambda: agent.host.model.n_samples == 80, 600.0, dt_s=2.0)
    fleet.run(400.0, dt_s=2.0)
    assert agent.host.model.state.is_safe
    assert state.read_bytes() != before
    fleet.crash_agent("one")
    assert fleet.start_agent("one").host.model.n_samples == 80


@pytest.mark.parametrize("at", MOMENTS)
def test_coordinator_killed_at_any_moment_converges(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, at: int
) -> None:
    fleet = simulate(tmp_path, digits_bundle, DEVICES)
    teach_all(fleet, digits_bundle)
    for _ in range(at):
        fleet.step()
    fleet.crash_coordinator()
    fleet.run(20.0)
    fleet.start_coordinator()
    fleet.until("settled", fleet.settled)
    assert have_the_same_merge(fleet)


def test_broker_that_forgets_everything_is_survived(simulate: Simulate, tmp_path: Path, digits_bundle: Path) -> None:
    """Retained messages wiped and all connections cut, with a release half way (faults 11, 12)."""
    fleet = simulate(tmp_path, digits_bundle, DEVICES)
    teach_all(fleet, digits_bundle)
    fleet.until("released", lambda: len(fleet.store.releases.all()) == 1)
    fleet.broker.retained.clear()
    for name in [*DEVICES, "coordinator"]:
        fleet.broker.disconnect(name)
    fleet.run(2.0)
    for name in [*DEVICES, "coordinator"]:
        fleet.broker.connect(name)
    fleet.until("converged", lambda: fleet.converged(1))


def test_what_a_device_said_while_the_coordinator_was_away_and_no_broker_kept_is_asked_for(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    """RabbitMQ gives wildcards nothing that is retained; a device that came back first was offline for ever."""
    fleet = simulate(tmp_path, digits_bundle, ["one"])
    fleet.until("known", lambda: fleet.device("one") and fleet.device("one").online)
    fleet.broker.disconnect("one")
    fleet.until("its will is heard", lambda: not fleet.device("one").online)
    first = fleet.device("one").session
    fleet.broker.disconnect("coordinator")
    fleet.broker.connect("one")
    fleet.run(2.0)
    fleet.broker.retained.clear()
    fleet.broker.connect("coordinator")
    fleet.until("it is there again", lambda: fleet.device("one").session > first and fleet.device("one").online, 60.0)


def test_an_older_agent_that_introduces_itself_with_a_birth_alone_is_asked_once(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends what it learned again each time it is asked."""
    fleet = simulate(tmp_path, digits_bundle, ["one"])
    fleet.until("known", lambda: fleet.device("one") and fleet.device("one").online)
    fleet.run(3.0)
    core = fleet.agents["one"].core
    monkeypatch.setattr(core, "_introduce", core._send_birth)
    asked: list[str] = []
    command = core._command

    def counted(told: Command, now: Now) -> None:
        asked.append(told.name)
        command(told, now)

    monkeypatch.setattr(core, "_command", counted)
    fleet.broker.disconnect("coordinator")
    fleet.run(2.0)
    fleet.broker.retained.clear()
    fleet.broker.connect("coordinator")
    fleet.run(120.0)
    assert asked == ["birth"]


def test_coordinator_that_was_away_learns_what_devices_run_now(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    """It dies when the release is on its way; the devices take it up and say so while nobody listens."""
    fleet = simulate(tmp_path, digits_bundle, DEVICES)
    teach_all(fleet, digits_bundle)
    fleet.until(
        "the release is tried",
        lambda: all(str(a.model.deployment.state) == "probation" for a in fleet.agents.values()),
    )
    fleet.crash_coordinator()
    fleet.run(20.0)
    fleet.start_coordinator()
    fleet.until("settled", fleet.settled)
    fleet.run(5.0)
    for name in DEVICES:
        assert fleet.device(name).head == fleet.agents[name].core.status()["head"]
        assert fleet.device(name).online


def test_coordinator_that_lost_its_database_meets_the_devices_again(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, DEVICES)
    teach_all(fleet, digits_bundle)
    fleet.until("converged", lambda: fleet.converged(1))
    fleet.crash_coordinator()
    fleet.folder = tmp_path / "new"
    fleet.start_coordinator()
    fleet.until("contributions again", lambda: len(fleet.store.contributions.all()) == 2)
    assert {row.n_samples for row in fleet.store.contributions.all()} == {LABELS}


def test_labels_after_a_merge_count_once(simulate: Simulate, tmp_path: Path, digits_bundle: Path) -> None:
    fleet = simulate(tmp_path, digits_bundle, DEVICES)
    teach_all(fleet, digits_bundle)
    fleet.until("converged", lambda: fleet.converged(1))
    more = samples(digits_bundle, LABELS, 77)
    fleet.teach("one", *more, tag="later")
    fleet.until("merged again", lambda: len(fleet.store.releases.all()) == 2 and fleet.converged(2))
    newest = fleet.store.releases.all()[0]
    release = HeadRelease.decode((tmp_path / "coordinator/artifacts" / newest.digest).read_bytes(), "")
    assert release.n_samples == 3 * LABELS


def test_devices_with_sgd_heads_are_averaged(simulate: Simulate, tmp_path: Path, digits_bundle: Path) -> None:
    fleet = simulate(tmp_path, digits_bundle, DEVICES, learner="sgd")
    teach_all(fleet, digits_bundle)
    heads = {name: sgd_of(fleet, name, "sgd") for name in fleet.agents}
    fleet.until("converged", lambda: fleet.converged(1))
    for name, array in merge_of(fleet, "one").items():
        mean = np.mean([head[name] for head in heads.values()], axis=0)
        np.testing.assert_allclose(array, mean, rtol=1e-4, atol=1e-5)
    fleet.run(60.0)
    assert len(fleet.store.releases.all()) == 1, "a change is added once"


def sgd_of(fleet: SimulatedFleet, name: str, expert: str) -> Parameters:
    model = fleet.agents[name].host.model
    return {key: array.copy() for key, array in model.learning.parameters(model.learned, expert).items()}


def test_head_that_is_worse_on_recent_labels_is_refused_and_the_live_one_stays(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"], auto_merge=False)
    teach_all(fleet, digits_bundle, n=60)
    fleet.until("known", lambda: fleet.device("one") is not None and fleet.device("one").born)
    before = fleet.agents["one"].host.model.learned
    bundle = Bundle.open(digits_bundle)
    useless = {name: np.zeros_like(array) for name, array in bundle.head_parameters().items()}
    release = HeadRelease(backbone=bundle.manifest.backbone_digest, parameters=useless, origin="useless")
    push(fleet, release.encode())
    fleet.until("refused", lambda: fleet.device("one").state == "refused")
    assert "worse" in fleet.device("one").state_detail
    assert fleet.agents["one"].host.model.learned is before
    fleet.crash_agent("one")
    fleet.start_agent("one")
    fleet.run(60.0)
    assert fleet.device("one").state == "refused", "a refused release is not tried again after a restart"


def push(
    fleet: SimulatedFleet,
    data: bytes,
    devices: list[str] | None = None,
    path: Path | None = None,
    *,
    force: bool = False,
) -> int:
    assert fleet.coordinator is not None
    kept = fleet.coordinator.add_artifact(data, path or Path("/nonexistent"))
    whom = (devices or [], "test", fleet.now)
    return fleet.coordinator.push(kept["digest"], kept["kind"], kept["backbone"], *whom, force=force).counter


def test_head_that_turns_out_worse_in_probation_is_taken_back(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    """No labels before the push, so the trial cannot judge it; the labels after it can (fault 25)."""
    fleet = simulate(tmp_path, digits_bundle, ["one"], auto_merge=False, probation_s=600.0, learner="sgd")
    fleet.until("known", lambda: fleet.device("one") is not None and fleet.device("one").born)
    x = samples(digits_bundle, 50, 9)[0]
    before = fleet.agents["one"].host.model.predict(x).argmax(axis=1)
    bundle = Bundle.open(digits_bundle)
    poisoned = confused(bundle, before)
    counter = push(fleet, HeadRelease(backbone=bundle.manifest.backbone_digest, parameters=poisoned).encode())
    fleet.until("probation", lambda: fleet.agents["one"].states[-1] == "probation")
    assert (fleet.agents["one"].host.model.predict(x).argmax(axis=1) != before).mean() > 0.5
    fleet.teach("one", *samples(digits_bundle, 40, 5))
    fleet.until("settled", lambda: fleet.device("one").state in ("rolled-back", "active"))
    row = fleet.device("one")
    assert (row.state, row.state_release) == ("rolled-back", counter)
    assert "worse" in row.state_detail
    assert (fleet.agents["one"].host.model.predict(x).argmax(axis=1) == before).mean() > 0.9


def test_head_of_another_backbone_is_refused(digits_bundle: Path) -> None:
    model = OnDeviceModel.open(digits_bundle)
    release = HeadRelease(backbone="0" * 64, parameters=model.bundle.head_parameters())
    with pytest.raises(BundleError, match="another backbone"):
        releases.look_at(model, release, competes=True)


def test_push_to_an_unknown_device_is_refused_and_nothing_is_released(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"])
    fleet.run(5.0)
    with pytest.raises(RolloutError, match="nobody"):
        push(fleet, digits_bundle.read_bytes(), ["nobody"], digits_bundle)
    assert fleet.store.releases.all() == []


def test_pushed_bundle_takes_over_without_a_restart_and_after_one(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, other_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one", "two"])
    fleet.run(5.0)
    counter = push(fleet, other_bundle.read_bytes(), path=other_bundle)
    fleet.until("converged", lambda: fleet.converged(counter))
    digest = Bundle.open(other_bundle).digest
    assert fleet.agents["one"].host.model.bundle.digest == digest
    fleet.crash_agent("one")
    assert fleet.start_agent("one").host.model.bundle.digest == digest


def test_bundle_damaged_on_its_way_never_becomes_live(simulate: Simulate, tmp_path: Path, digits_bundle: Path) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"])
    fleet.run(5.0)
    data = bytearray(digits_bundle.read_bytes())
    data[len(data) // 2] ^= 1
    damaged = tmp_path / "damaged.edge"
    damaged.write_bytes(data)
    with pytest.raises(BundleError):
        push(fleet, bytes(data), path=damaged)
    assert fleet.store.releases.all() == []


def test_agent_killed_while_fetching_goes_on_where_it_was(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, other_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"])
    fleet.run(5.0)
    counter = push(fleet, other_bundle.read_bytes(), path=other_bundle)
    fleet.until("fetching", lambda: fleet.agents["one"].model.deployment._fetch is not None)
    part = tmp_path / "one" / "incoming"
    fleet.until("a chunk on disk", lambda: any(part.glob("*.part")) or fleet.converged(counter))
    fleet.crash_agent("one")
    fleet.start_agent("one")
    fleet.until("converged", lambda: fleet.converged(counter))


def test_requests_that_cannot_be_carried_out_change_nothing(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"])
    core, now = fleet.agents["one"].core, fleet.now
    x = samples(digits_bundle, 1, 0)[0][0]
    before = core.status()
    for request in (
        {},
        {"op": "explode"},
        {"op": "predict", "x": x},
        {"op": "predict", "id": "", "x": x},
        {"op": "predict", "id": "a", "x": x[..., :3]},
        {"op": "predict", "id": "a", "x": np.full_like(x, np.nan)},
        {"op": "predict", "id": "a"},
        {"op": "label", "id": "a", "y": 99},
        {"op": "label", "id": "a", "y": "no such class"},
        {"op": "label", "id": "a", "y": True},
    ):
        with pytest.raises(LearningError):
            core.request(request, now)
    assert core.request({"op": "label", "id": "never seen", "y": 1}, now)["joined"] is False
    after = core.status()
    assert (after["samples"], after["head"]) == (before["samples"], before["head"])


def test_messages_that_cannot_be_read_are_dropped_and_reported(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"])
    fleet.run(5.0)
    for leaf, payload in (("dn/desired", b"{"), ("dn/f/0123456789abcdef", b"EFjunk"), ("dn/cmd", b"[]")):
        fleet.coordinator_transport.publish(f"edge/v1/lab/one/{leaf}", payload, qos=1)
    fleet.agents["one"].transport.publish("edge/v1/lab/one/up/birth", b"\xff", qos=1)
    fleet.run(5.0)
    names = [event.name for event in fleet.store.events.newest(50)]
    assert names.count("bad-message") == 4
    assert fleet.agents["one"].core.status()["connected"]


def test_bundle_is_not_overtaken_by_a_head_for_the_old_backbone(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, other_bundle: Path
) -> None:
    """A device is away while a bundle is pushed and its old backbone's heads are merged."""
    fleet = simulate(tmp_path, digits_bundle, ["one", "two"])
    fleet.run(5.0)
    fleet.teach("one", *samples(digits_bundle, 20, 1))
    fleet.run(0.5)
    fleet.crash_agent("two")
    bundle = push(fleet, other_bundle.read_bytes(), path=other_bundle)
    fleet.until("the old head is merged too", lambda: len(fleet.store.releases.all()) == 2)
    fleet.start_agent("two")
    digest = Bundle.open(other_bundle).digest
    fleet.until("both run the bundle", lambda: {a.host.model.bundle.digest for a in fleet.agents.values()} == {digest})
    assert bundle == 1


def test_change_that_was_merged_is_not_added_again(simulate: Simulate, tmp_path: Path, digits_bundle: Path) -> None:
    """A second contribution made before the first merge came back contains the first one."""
    fleet = simulate(tmp_path, digits_bundle, ["one"], learner="sgd", auto_merge=False)
    fleet.teach("one", *samples(digits_bundle, 20, 1))
    fleet.until("contribution", lambda: len(fleet.store.contributions.all()) == 1)
    learned = sgd_of(fleet, "one", "sgd")
    fleet.teach("one", *samples(digits_bundle, 24, 2), tag="more")
    after = sgd_of(fleet, "one", "sgd")
    assert fleet.coordinator is not None
    fleet.coordinator.merge_now(fleet.now)
    fleet.until("second contribution", lambda: fleet.store.contributions.all()[0].version == 44)
    fleet.coordinator.merge_now(fleet.now)
    fleet.run(30.0)
    fleet.coordinator.merge_now(fleet.now)
    fleet.until("settled", fleet.settled)
    for name, array in merge_of(fleet, "one").items():
        np.testing.assert_allclose(array, after[name], rtol=1e-4, atol=1e-5)
        assert not np.array_equal(learned[name], after[name])


def test_plain_head_replaces_all_and_what_is_learned_goes_on_top(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"], auto_merge=False)
    x, y = samples(digits_bundle, 24, 3)
    fleet.run(5.0)
    for i in range(24):  # it answers these as the shipped head does: that is judged
        fleet.agents["one"].core.request({"op": "predict", "id": f"s{i}", "x": x[i]}, fleet.now)
    given = {name: 2 * array for name, array in Bundle.open(digits_bundle).head_parameters().items()}
    counter = push(fleet, safetensors.numpy.save(given))
    fleet.until("active", lambda: fleet.converged(counter))
    model = fleet.agents["one"].host.model
    np.testing.assert_array_equal(model.learning.parameters(model.learned, "pushed")["7.weight"], given["7.weight"])
    assert (model.learned.trial, "shipped" in model.learned.experts) == (None, False)
    assert (model.predict(x).argmax(axis=1) == y).all()
    fleet.teach("one", x, y)
    assert (model.predict(x).argmax(axis=1) == y).mean() > 0.8, "the given head was not thrown away"


def test_probation_survives_a_restart(simulate: Simulate, tmp_path: Path, digits_bundle: Path) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"], auto_merge=False, probation_s=600.0, learner="sgd")
    fleet.run(5.0)
    x = samples(digits_bundle, 50, 9)[0]
    before = fleet.agents["one"].host.model.predict(x).argmax(axis=1)
    bundle = Bundle.open(digits_bundle)
    poisoned = confused(bundle, before)
    push(fleet, HeadRelease(backbone=bundle.manifest.backbone_digest, parameters=poisoned).encode())
    fleet.until("probation", lambda: fleet.agents["one"].states[-1] == "probation")
    fleet.crash_agent("one")
    fleet.start_agent("one")
    assert str(fleet.agents["one"].model.deployment.state) == "probation"
    fleet.teach("one", *samples(digits_bundle, 40, 5))
    fleet.until("rolled back", lambda: fleet.device("one").state == "rolled-back")
    assert (fleet.agents["one"].host.model.predict(x).argmax(axis=1) == before).mean() > 0.9


def confused(bundle: Bundle, answers: np.ndarray) -> dict[str, np.ndarray]:
    """A head that is right about most of the bundle's samples, and takes what it sees here for something else."""
    order, usual = np.arange(10), np.argsort(np.bincount(answers, minlength=10))[-4:]
    order[usual] = np.roll(usual, 1)
    return {name: array[order] for name, array in bundle.head_parameters().items()}


def random_head(bundle: Path, seed: int = 8) -> bytes:
    found, rng = Bundle.open(bundle), np.random.default_rng(seed)
    parameters = {
        name: rng.normal(size=array.shape).astype(np.float32) for name, array in found.head_parameters().items()
    }
    return HeadRelease(backbone=found.manifest.backbone_digest, parameters=parameters, origin="random").encode()


def test_random_head_pushed_right_after_a_merge_never_answers(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    """Devices with labels refuse it; on one that has none it is held until there are some."""
    fleet = simulate(tmp_path, digits_bundle, ["one", "two", "silent"], auto_merge=False)
    fleet.teach("one", *samples(digits_bundle, 40, 0))
    fleet.teach("two", *samples(digits_bundle, 40, 1))
    x, y = samples(digits_bundle, 40, 2)
    silent = fleet.agents["silent"]
    for i in range(40):
        silent.core.request({"op": "predict", "id": f"s{i}", "x": x[i]}, fleet.now)
    fleet.until("contributions", lambda: len(fleet.store.contributions.all()) == 2)
    assert fleet.coordinator is not None
    fleet.coordinator.merge_now(fleet.now)
    fleet.until("the merge is on its way", lambda: "probation" in silent.states)
    counter = push(fleet, random_head(digits_bundle))
    states = {}

    def all_looked_at() -> bool:
        for agent in fleet.agents.values():
            learned = agent.host.model.learned
            assert (learned.trial, "pushed" in learned.experts) == (None, False)
        states.update({name: fleet.device(name).state for name in fleet.agents})
        return set(states.values()) <= {"refused", "held"}

    fleet.until("looked at", all_looked_at)
    assert states == {"one": "refused", "two": "refused", "silent": "held"}
    assert {fleet.device(name).state_release for name in fleet.agents} == {counter}
    assert "no labels vouch for it" in fleet.device("silent").state_detail
    fleet.run(30.0)
    assert fleet.device("silent").state == "held", "not judged is never active"
    for i in range(40):
        silent.core.request({"op": "label", "id": f"s{i}", "y": int(y[i])}, fleet.now)
        silent.tick(fleet.now)
        assert silent.states[-1] in ("held", "refused")
    fleet.until("refused", lambda: fleet.device("silent").state == "refused")
    assert "worse" in fleet.device("silent").state_detail


def test_merge_of_noise_says_nothing_on_a_device_without_labels(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    """What they saw looks like what it sees, and there were labels enough; but the shipped head knew all of them."""
    fleet = simulate(tmp_path, digits_bundle, ["one", "two", "silent"], auto_merge=False)
    fleet.teach("one", *samples(digits_bundle, 110, 0))
    fleet.teach("two", *samples(digits_bundle, 110, 1))
    x, y = samples(digits_bundle, 40, 2)
    silent = fleet.agents["silent"]
    for i in range(40):
        silent.core.request({"op": "predict", "id": f"s{i}", "x": x[i]}, fleet.now)
    fleet.until("contributions", lambda: len(fleet.store.contributions.all()) == 2)
    assert fleet.coordinator is not None
    fleet.coordinator.merge_now(fleet.now)
    model = silent.host.model
    fleet.until("taken", lambda: "merged" in model.learned.experts)
    assert model.learned.merge_fits is False
    merged = model.learning.run(model.answering.features(x), merge_of(fleet, "silent"))
    assert (merged.argmax(axis=1) == y).mean() < 0.8, "it would have been heard otherwise"
    assert (model.predict(x).argmax(axis=1) == y).all()


def test_a_new_device_believes_a_merge_from_its_first_samples_on_without_any_label(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    """It had seen nothing when the merge came; one of another world, as new, goes on with the shipped head."""
    x, y = digits
    turned = np.ascontiguousarray(np.rot90(x, 1, (2, 3)))
    fleet = simulate(tmp_path, digits_bundle, ["one", "two", "new", "other"], auto_merge=False)
    fleet.teach("one", turned[:105], y[:105])
    fleet.teach("two", turned[105:210], y[105:210])
    fleet.until("contributions", lambda: len(fleet.store.contributions.all()) == 2)
    assert fleet.coordinator is not None
    fleet.coordinator.merge_now(fleet.now)
    new, other = fleet.agents["new"], fleet.agents["other"]
    fleet.until("taken", lambda: all("merged" in each.host.model.learned.experts for each in (new, other)))
    assert "does not answer yet: no labels here, and 0 samples were seen" in new.core.status()["merge"]
    assert new.core.status()["believed"] == "shipped"
    fleet.run(30.0)
    for name in ("new", "other"):  # samples of the bundle say nothing of what is seen here
        assert fleet.device(name).state == "probation"
        assert fleet.device(name).state_detail.startswith("not judged: the merge runs, but does not answer yet")
    late, right = slice(300, 460), {}
    for name, images in (("new", turned[late]), ("other", x[late])):
        agent, answers = fleet.agents[name], []
        for i, image in enumerate(images):
            said = agent.core.request({"op": "predict", "id": f"s{i}", "x": image}, fleet.now)
            answers.append(said["class"] == y[late][i])
            agent.tick(fleet.now)
        right[name] = float(np.mean(answers[130:]))
    shipped = [new.host.model.learning.shipped_answer(features(new, images)) for images in (turned[late], x[late])]
    blind, known = (float((answer.argmax(axis=1) == y[late])[130:].mean()) for answer in shipped)
    assert right["new"] > 0.8
    assert blind < 0.3
    assert "100% of the say after 0 labels, the samples here look like" in new.core.status()["merge"]
    assert right["other"] == known
    assert other.host.model.learned.merge_fits is False
    fleet.run(30.0)
    assert {fleet.device(name).state for name in ("new", "other")} == {"active"}, "by what they saw"
    assert "does not answer yet: no labels here, and it is no picture" in fleet.device("other").state_detail
    assert "100% of the say" in fleet.device("new").state_detail
    before = new.host.model.predict(turned[late])
    fleet.crash_agent("new")
    again = fleet.start_agent("new")
    assert np.array_equal(again.host.model.predict(turned[late]), before), "it is in the journal"


def test_head_that_is_held_is_taken_when_labels_vouch_for_it(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"], auto_merge=False)
    fleet.run(5.0)
    agent = fleet.agents["one"]
    x, shipped = samples(digits_bundle, 60, 2)
    y = (shipped + 1) % 10  # here they are called otherwise
    for i in range(60):
        agent.core.request({"op": "predict", "id": f"s{i}", "x": x[i]}, fleet.now)
    bundle = Bundle.open(digits_bundle)
    rolled = {name: np.roll(array, 1, axis=0) for name, array in bundle.head_parameters().items()}
    counter = push(fleet, HeadRelease(backbone=bundle.manifest.backbone_digest, parameters=rolled).encode())
    fleet.until("held", lambda: fleet.device("one").state == "held")
    for i in range(40):
        agent.core.request({"op": "label", "id": f"s{i}", "y": int(y[i])}, fleet.now)
        fleet.step()
    fleet.until("active", lambda: fleet.converged(counter))
    assert (agent.host.model.predict(x).argmax(axis=1) == y).mean() > 0.9


def test_head_is_compared_on_the_samples_of_the_bundle_where_a_device_has_seen_none(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"], auto_merge=False)
    fleet.run(5.0)
    counter = push(fleet, random_head(digits_bundle))
    fleet.until("held", lambda: fleet.device("one").state == "held")
    assert "of the bundle" in fleet.device("one").state_detail
    assert fleet.agents["one"].host.model.learned.trial is None
    given = Bundle.open(digits_bundle).head_parameters()
    second = push(fleet, safetensors.numpy.save(given))
    assert second > counter
    fleet.until("active", lambda: (fleet.device("one").state, fleet.device("one").state_release) == ("active", second))


def test_head_that_nobody_could_judge_stays_on_probation_and_goes_when_the_next_one_comes(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle with large inputs brings fewer samples than it takes to compare heads."""
    few = {name: array[:3] for name, array in golden_inputs(Bundle.open(digits_bundle)).items()}
    monkeypatch.setattr(releases, "golden_inputs", lambda _: few)
    fleet = simulate(tmp_path, digits_bundle, ["one"], auto_merge=False)
    fleet.run(5.0)
    model = fleet.agents["one"].host.model
    push(fleet, random_head(digits_bundle))
    fleet.until("probation", lambda: fleet.device("one").state == "probation")
    fleet.run(60.0)  # many times as long as a probation
    assert fleet.device("one").state == "probation"
    assert "not judged" in fleet.device("one").state_detail
    assert model.learned.trial is not None
    before = model.learned.trial.before
    given = Bundle.open(digits_bundle).head_parameters()
    second = push(fleet, safetensors.numpy.save(given))
    fleet.until("the next one is here", lambda: fleet.device("one").state_release == second)
    fleet.until("on probation", lambda: fleet.device("one").state == "probation")
    assert model.learned.trial is not None
    assert same(model.learned.trial.before, before)


def test_agent_killed_between_a_head_and_its_slot_ends_the_trial(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"], auto_merge=False, executor="numpy")
    fleet.teach("one", *samples(digits_bundle, 30, 1))
    fleet.run(5.0)
    model = fleet.agents["one"].host.model
    before, release = model.learned, HeadRelease.decode(random_head(digits_bundle), "")
    releases.take(model, releases.look_at(model, release, competes=False), 1)
    fleet.crash_agent("one")
    model = fleet.start_agent("one").host.model
    assert same(model.learned, before), "nobody knows of a trial: it is offered again"
    for end, state in ((releases.confirm, "active"), (releases.roll_back, "rolled-back")):
        release = HeadRelease(backbone=release.backbone, parameters=model.bundle.head_parameters())
        counter = push(fleet, release.encode())
        fleet.until("on probation", lambda: str(fleet.agents["one"].model.deployment.state) == "probation")
        assert fleet.agents["one"].host.slots.record.release == counter
        end(fleet.agents["one"].host.model)
        fleet.crash_agent("one")
        model = fleet.start_agent("one").host.model
        fleet.until(state, lambda wanted=state: fleet.device("one").state == wanted)


def test_counters_go_on_above_the_devices_after_an_old_backup_was_restored(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    """Fault 39."""
    fleet = simulate(tmp_path, digits_bundle, ["one"])
    fleet.teach("one", *samples(digits_bundle, 20, 1))
    fleet.until("settled", fleet.settled)
    for i in range(2):
        fleet.teach("one", *samples(digits_bundle, 20, 2 + i), tag=f"t{i}")
        fleet.until("settled", lambda n=i + 2: len(fleet.store.releases.all()) == n and fleet.settled())
    assert fleet.agents["one"].host.slots.record.release == 3
    fleet.crash_coordinator()
    fleet.folder = tmp_path / "restored"
    fleet.start_coordinator()
    fleet.until("settled again", fleet.settled)
    assert fleet.store.releases.all()[0].counter > 3


def test_bundle_that_the_learner_cannot_use_is_refused_and_the_agent_lives(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, mlp_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"], learner="statistics")
    fleet.run(5.0)
    with pytest.raises(BundleError, match="is not like what one runs"):
        push(fleet, mlp_bundle.read_bytes(), path=mlp_bundle)
    push(fleet, mlp_bundle.read_bytes(), path=mlp_bundle, force=True)
    fleet.until("refused", lambda: fleet.device("one").state == "refused")
    assert "linear" in fleet.device("one").state_detail
    fleet.crash_agent("one")
    assert fleet.start_agent("one").host.model.bundle.digest == Bundle.open(digits_bundle).digest


def test_labels_beyond_the_budget_wait_and_are_learned_by_and_by_or_after_a_kill(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"])
    agent = fleet.agents["one"]
    slow = itertools.count(0.0, 0.06)  # seconds: each label takes 60 ms of a budget of 100 in each second
    agent.core = AgentCore(agent.config, agent.models, stopwatch=lambda: next(slow))
    x, y = samples(digits_bundle, 12, 0)
    answers = []
    for i in range(12):
        agent.core.request({"op": "predict", "id": f"s{i}", "x": x[i]}, fleet.now)
        answers.append(agent.core.request({"op": "label", "id": f"s{i}", "y": int(y[i])}, fleet.now))
    assert all(answer["joined"] for answer in answers)
    learned = [answer for answer in answers if "queued" not in answer]
    assert 0 < len(learned) < 12
    assert agent.host.model.waiting
    assert agent.core.status()["samples"] == len(learned)
    other = (int(y[11]) + 1) % 10
    for sample, label, answer in (
        ("s11", int(y[11]), {"joined": False, "why": "this sample has this label already"}),
        ("s11", other, {"joined": True, "queued": True, "replaced": True}),
        ("s11", other, {"joined": False, "why": "this sample has this label already"}),
        ("s12", other, {"joined": False, "why": "no such sample waits for a label"}),
    ):
        assert agent.core.request({"op": "label", "id": sample, "y": label}, fleet.now) == answer
    refused = agent.core.request({"op": "label", "id": "s0", "y": (int(y[0]) + 1) % 10}, fleet.now)
    assert f"was learned as '{agent.host.model.class_names[y[0]]}' already" in refused["why"]
    assert agent.host.model.waiting == 12 - len(learned)
    for _ in range(50):  # who comes when it says so comes soon enough, and not for nothing again and again
        fleet.now_s = max(fleet.now_s, agent.core.next_deadline_s)
        agent.core.tick(fleet.now)
        if agent.core.status()["samples"] > len(learned):
            break
    assert agent.core.status()["samples"] > len(learned)
    assert fleet.now_s < 1100.0
    assert agent.core.status()["samples"] < 12
    fleet.crash_agent("one")
    fleet.start_agent("one")
    assert fleet.agents["one"].core.status()["samples"] == 12
    assert not fleet.agents["one"].host.model.waiting
    targets = fleet.agents["one"].host.model.learned.recent.targets
    assert targets.tolist() == [*y[:11].tolist(), other], "the correction is what was learned"


def test_a_release_that_cannot_be_dealt_with_does_not_silence_the_device(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"], auto_merge=False)
    fleet.run(5.0)
    agent = fleet.agents["one"]

    def fails(now_s: float) -> None:
        raise IndexError("axis 1 with size 0")

    agent.model.deployment.poll = fails  # type: ignore[method-assign]
    fleet.run(20.0)
    events = [event.name for event in fleet.store.events.newest(50)]
    assert events.count("release-fault") == 1
    assert fleet.device("one").online
    fleet.teach("one", *samples(digits_bundle, 20, 1))
    fleet.until("contribution", lambda: bool(fleet.store.contributions.all()))


def test_somebody_on_the_device_goes_back_head_by_head_and_bundle_by_bundle(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, other_bundle: Path
) -> None:
    """Also when the probation is long over, and after a restart; each step once, and then there is nothing left."""
    fleet = simulate(tmp_path, digits_bundle, ["one"], auto_merge=False)
    fleet.run(5.0)
    counter = push(fleet, other_bundle.read_bytes(), path=other_bundle)
    fleet.until("the bundle is active", lambda: fleet.converged(counter))
    agent = fleet.agents["one"]
    x, y = samples(other_bundle, 24, 3)
    fleet.teach("one", x, y)
    taught = agent.host.model.learned
    given = {name: np.float32(1.5) * array for name, array in Bundle.open(other_bundle).head_parameters().items()}
    counter = push(fleet, safetensors.numpy.save(given))
    fleet.until("the head is active", lambda: fleet.converged(counter))
    fleet.teach("one", x[:4] + 0.01, y[:4])
    fleet.crash_agent("one")
    agent = fleet.start_agent("one")
    fleet.run(1.0)

    found = agent.core.request({"op": "rollback"}, fleet.now)
    assert (found["slot"], found["was"]["release"], found["now"]["release"]) == ("head", counter, 0)
    assert found["labels_lost"] == 4
    now = agent.host.model.learned
    assert (now.lineage, "pushed" in now.experts) == (taught.lineage, False)
    np.testing.assert_array_equal(
        agent.host.model.predict(x), agent.host.model.learning.answer(taught, features(agent, x))
    )
    fleet.run(5.0)
    row = fleet.device("one")
    assert (row.state, row.state_release, row.samples) == ("rolled-back", counter, 24)

    found = agent.core.request({"op": "rollback"}, fleet.now)
    assert (found["slot"], found["now"]["bundle"]) == ("bundle", Bundle.open(digits_bundle).digest)
    fleet.run(5.0)
    assert fleet.device("one").bundle == Bundle.open(digits_bundle).digest
    before = agent.core.status()
    with pytest.raises(LearningError, match="nothing to go back to"):
        agent.core.request({"op": "rollback"}, fleet.now)
    after = agent.core.status()
    assert all(before[key] == after[key] for key in ("bundle", "head", "release", "state", "samples"))
    fleet.crash_agent("one")
    assert fleet.start_agent("one").host.model.bundle.digest == Bundle.open(digits_bundle).digest


def features(agent: Any, x: np.ndarray) -> np.ndarray:
    return agent.host.model.answering.features(x)


def test_a_full_disk_leaves_the_bundle_live_that_was_to_be_replaced(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = simulate(tmp_path, digits_bundle, ["one"], auto_merge=False)
    fleet.run(5.0)
    counter = push(fleet, other_bundle.read_bytes(), path=other_bundle)
    fleet.until("active", lambda: fleet.converged(counter))
    agent = fleet.agents["one"]

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for what in ("edge.agent.model.store.LearnedStore.snapshot", "edge.agent.slots.slots.replace_file"):
        with monkeypatch.context() as patched:
            patched.setattr(what, full)
            with pytest.raises(LearningError, match="No space left"):
                agent.core.request({"op": "rollback"}, fleet.now)
        assert agent.host.model.bundle.digest == Bundle.open(other_bundle).digest
        assert agent.core.request({"op": "predict", "id": "a", "x": samples(other_bundle, 1, 0)[0][0]}, fleet.now)
    assert agent.core.request({"op": "rollback"}, fleet.now)["slot"] == "bundle"
