"""What a device learned goes to the coordinator, and another device goes on from it (faults 21, 23, 29, 53)."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent.config import AgentConfig
from edge.agent.model.candidates import shipped_statistics
from edge.agent.model.checkpoints import Seals
from edge.agent.model.on_device_model import OnDeviceModel
from edge.channel import topics
from edge.channel.codec import decode, encode
from edge.channel.messages import Restore
from edge.channel.transport import Received
from edge.contract import sealing
from edge.contract.digest import sha256
from edge.contract.errors import BundleError, ConfigError, LearningError, RolloutError
from edge.coordinator.signing import ceremony
from edge.learning.checkpoint import Checkpoint, without_samples
from edge.learning.lift import Lift
from edge.learning.tree import flatten
from tests.support.fleet import SimulatedFleet, unhurried
from tests.support.values import same

Simulate = Callable[..., SimulatedFleet]


@pytest.fixture
def simulate() -> Iterator[Simulate]:
    fleets: list[SimulatedFleet] = []

    def make(*arguments: Any, **options: Any) -> SimulatedFleet:
        fleets.append(SimulatedFleet(*arguments, auto_merge=False, **options))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


@pytest.fixture(scope="module")
def samples(digits_bundle: Path) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs, and labels that the shipped head does not give."""
    with OnDeviceModel.open(digits_bundle) as model:
        x = np.random.default_rng(0).random((60, *model.manifest.inputs[0].sample_shape), np.float32)
        return x, (model.predict(x).argmax(axis=1) + 1) % 10


def checkpoints(fleet: SimulatedFleet, device: str) -> list[Any]:
    return list(fleet.store.checkpoints.of(device))


def order(fleet: SimulatedFleet, number: int) -> Any:
    return fleet.store.checkpoints.get_order(number)


def keep(fleet: SimulatedFleet, device: str) -> Any:
    """Ask for a checkpoint and wait for it."""
    assert fleet.coordinator is not None
    made = fleet.coordinator.ask(device, "", fleet.now, "checkpoint")
    fleet.until("a checkpoint", lambda: order(fleet, made.number).state != "open")
    return order(fleet, made.number)


def restored(fleet: SimulatedFleet, device: str, source: str, **options: Any) -> Any:
    assert fleet.coordinator is not None
    made = fleet.coordinator.restore(device, source, fleet.now, **options)
    fleet.until("the answer", lambda: order(fleet, made.number).state != "open")
    return order(fleet, made.number)


def test_a_replacement_goes_on_where_the_old_device_was(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, samples: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = samples
    fleet = simulate(tmp_path, digits_bundle, ["old", "new"], checkpoint_samples=True)
    fleet.run(2.0)
    fleet.teach("old", x[:40], y[:40])
    assert keep(fleet, "old").state == "done"
    kept = checkpoints(fleet, "old")
    assert [(row.samples, row.has_samples, row.sealed_to) for row in kept] == [(40, True, "")]
    learned = fleet.agents["old"].host.model.learned
    with pytest.raises(RolloutError, match="old is online"):
        restored(fleet, "new", "old")
    fleet.crash_agent("old")
    fleet.until("old is gone", lambda: not fleet.device("old").online)
    ended = restored(fleet, "new", "old")
    assert (ended.state, ended.detail) == ("done", "what old had learned from 40 labels")
    model = fleet.agents["new"].host.model
    assert same(model.learned, learned)
    assert model.n_samples == 40
    # It learns on, contributes under the same history, and still knows it after a kill.
    fleet.teach("new", x[40:], y[40:], "t")
    fleet.crash_agent("new")
    fleet.start_agent("new")
    assert fleet.agents["new"].host.model.n_samples == 60
    versions = lambda: {row.device: row.version for row in fleet.store.contributions.all()}  # noqa: E731
    fleet.until("a contribution of the new one", lambda: versions().get("new") == 60)
    assert {row.lineage for row in fleet.store.contributions.all()} == {learned.lineage}
    # The order comes again, late: nothing changes.
    number = ended.number
    fleet.store.checkpoints.order(ended.__class__(**{**_fields(ended), "state": "open"}))
    fleet.until("the answer", lambda: order(fleet, number).state == "done")
    assert fleet.agents["new"].host.model.n_samples == 60


def _fields(record: Any) -> dict[str, Any]:
    from edge.coordinator.records import as_dict

    return dict(as_dict(record))


def test_without_samples_nothing_that_was_seen_leaves_the_device(
    digits_bundle: Path, samples: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = samples
    with OnDeviceModel.open(digits_bundle) as model:
        model.learn(x, y)
        for i in range(3):  # beside the sums
            model.learn(x[i : i + 1], y[i : i + 1])
        bare = without_samples(model.learned)
        arrays = flatten(bare)
        seen = lambda found: [name for name, array in found.items() if array.dtype == np.int8 and array.any()]  # noqa: E731
        assert seen(flatten(model.learned)), "nothing is tested"
        assert seen(arrays) == []
        features = model.answering.features(x).reshape(len(x), -1)
        prior = shipped_statistics(model.bundle, model.task)
        assert prior is not None
        shown = [features, Lift(prior).features(features)]  # as they are, and as learners hold them
        assert len(_alike(flatten(model.learned), shown)) > 1, "nothing is tested"
        assert _alike(arrays, shown) == []
        answers = model.predict(x)
        model.restore(bare)
        np.testing.assert_allclose(model.predict(x), answers, rtol=1e-3, atol=1e-3)
        model.learn(x, y)  # it goes on
        assert np.mean(model.predict(x).argmax(axis=1) == y) > 0.5


@pytest.mark.parametrize("checkpoint_samples", [False, True])
def test_labels_that_wait_for_the_budget_go_with_it(
    simulate: Simulate,
    tmp_path: Path,
    digits_bundle: Path,
    samples: tuple[np.ndarray, np.ndarray],
    checkpoint_samples: bool,
) -> None:
    """They were acknowledged; whether their features may leave or not, the replacement knows them."""
    x, y = samples
    fleet = simulate(tmp_path, digits_bundle, ["old", "new"], checkpoint_samples=checkpoint_samples)
    fleet.run(2.0)
    slow = itertools.count(0.0, 0.06)  # seconds: each label takes 60 ms of a budget of 100 in each second
    fleet.agents["old"].model._stopwatch = lambda: next(slow)
    fleet.teach("old", x[:8], y[:8])
    assert fleet.agents["old"].host.model.waiting >= 4, "nothing is tested"
    assert keep(fleet, "old").state == "done"
    assert restored(fleet, "new", "old", force=True).state == "done"
    assert fleet.agents["new"].host.model.n_samples + fleet.agents["new"].host.model.waiting == 8


def _alike(arrays: dict[str, np.ndarray], shown: list[np.ndarray]) -> list[str]:
    """Names of arrays with a row that is one of those, or nearly: they are kept in 8 bits."""
    found = []
    for name, array in arrays.items():
        for each in shown:
            if array.dtype.kind == "f" and array.size and array.shape[-1:] == each.shape[1:]:
                rows = array.reshape(-1, each.shape[1]).astype(np.float64)
                apart = np.linalg.norm(rows[:, None] - each, axis=2).min(axis=1)
                found += [name] if (apart < 0.05 * np.linalg.norm(each, axis=1).mean()).any() else []
    return found


def test_the_last_two_are_kept_and_forgetting_deletes_them(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, samples: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = samples
    fleet = simulate(tmp_path, digits_bundle, ["one", "two"])
    fleet.run(2.0)
    assert fleet.coordinator is not None
    files = lambda: {path.name for path in (tmp_path / "coordinator" / "artifacts").iterdir()}  # noqa: E731
    for i in range(3):
        fleet.teach("one", x[i : i + 1], y[i : i + 1], f"{i}-")
        assert keep(fleet, "one").state == "done"
    rows = checkpoints(fleet, "one")
    assert [row.samples for row in rows] == [3, 2]
    assert {row.digest for row in rows} <= files()
    fleet.until("a contribution", lambda: len(fleet.store.contributions.all()) == 1)
    assert fleet.coordinator.forget("one", fleet.now)["checkpoints"] == 2
    assert checkpoints(fleet, "one") == []
    assert not {row.digest for row in rows} & files()


def test_by_plan_it_is_sent_now_and_then_if_there_is_something_new(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, samples: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = samples
    fleet = simulate(tmp_path, digits_bundle, ["one"], checkpoint_every_s=60.0)
    fleet.run(20.0)
    assert checkpoints(fleet, "one") == [], "it has learned nothing"
    fleet.teach("one", x[:2], y[:2])
    fleet.run(20.0)
    assert [row.samples for row in checkpoints(fleet, "one")] == [2]
    fleet.teach("one", x[2:4], y[2:4], "t")
    fleet.run(20.0)
    assert len(checkpoints(fleet, "one")) == 1, "it is not time yet"
    fleet.crash_agent("one")
    fleet.start_agent("one")
    fleet.run(20.0)
    assert len(checkpoints(fleet, "one")) == 1, "a restart is no reason"
    fleet.run(60.0)
    assert [row.samples for row in checkpoints(fleet, "one")] == [4, 2]
    fleet.run(120.0)
    assert len(checkpoints(fleet, "one")) == 2, "nothing new was learned"


def test_a_sealed_one_is_opened_by_the_fleet_s_key_and_sealed_to_the_replacement(
    tmp_path: Path, digits_bundle: Path, samples: tuple[np.ndarray, np.ndarray], simulate: Simulate
) -> None:
    x, y = samples
    public = tmp_path / "fleet.pem.pub"
    sealing.write_public(public, sealing.make_key(tmp_path / "fleet.pem"))
    fleet = simulate(tmp_path, digits_bundle, ["old", "new", "plain"], checkpoint_key=public)
    for name in ("old", "new"):  # as the service does; the third has no key
        agent = fleet.agents[name]
        agent.model.checkpoints._seals = seals = Seals.of(agent.config)
        agent.core._seal_key = seals.public
    fleet.run(2.0)
    fleet.teach("old", x, y)
    assert keep(fleet, "old").state == "done"
    (row,) = checkpoints(fleet, "old")
    assert row.sealed_to == sealing.key_name(sealing.read_public(public))
    assert fleet.coordinator is not None
    document = fleet.coordinator.checkpoints.data(row.digest)
    sealed = Checkpoint.decode(document, "it")
    with pytest.raises(BundleError, match="sealed to the key"):
        sealed.arrays("it")
    fleet.crash_agent("old")
    fleet.until("old is gone", lambda: not fleet.device("old").online)
    for device in ("new", "plain"):
        with pytest.raises(RolloutError, match="give the private one with --key"):
            restored(fleet, device, "old")
    key = sealing.read_private(tmp_path / "fleet.pem")
    own = bytes.fromhex(fleet.device("new").seal_key)
    brought = sealed.opened(key, "it").sealed(own).encode()
    with pytest.raises(RolloutError, match="sealed to the key"):
        restored(fleet, "plain", "old", brought=brought)
    assert restored(fleet, "new", "old", brought=brought).state == "done"
    assert fleet.agents["new"].host.model.n_samples == 60
    # What stands in the open cannot be exchanged, and no bit of the rest.
    forged = Checkpoint(sealed.facts.__class__(**{**_facts(sealed), "samples": 9}), sealed.packed)
    with pytest.raises(BundleError, match="damaged"):
        forged.opened(key, "it")
    for at in np.linspace(0, len(document) - 1, 100, dtype=int):
        broken = bytearray(document)
        broken[at] ^= 1
        with pytest.raises(BundleError):
            Checkpoint.decode(bytes(broken), "it").opened(key, "it").arrays("it")


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: getattr(checkpoint.facts, name) for name in checkpoint.facts.__slots__}


def test_what_does_not_fit_is_refused_with_the_reason_and_changes_nothing(
    simulate: Simulate,
    tmp_path: Path,
    digits_bundle: Path,
    other_bundle: Path,
    samples: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = samples
    fleet = simulate(tmp_path, digits_bundle, ["one", "two"])
    fleet.run(2.0)
    assert fleet.coordinator is not None
    fleet.teach("one", x[:4], y[:4])
    with pytest.raises(RolloutError, match="no such checkpoint of one"):
        restored(fleet, "two", "one")
    with pytest.raises(RolloutError, match="unknown device nobody"):
        fleet.coordinator.ask("nobody", "", fleet.now, "checkpoint")
    keep(fleet, "one")
    fleet.agent_options["learner"] = "ncm"
    fleet.crash_agent("two")
    fleet.start_agent("two").core.request({"op": "predict", "id": "a", "x": x[0]}, fleet.now)
    fleet.run(2.0)
    before = fleet.agents["two"].host.model.learned
    ended = restored(fleet, "two", "one", force=True)
    assert ended.state == "refused"
    assert "start the agent with the same --learner" in ended.detail
    assert fleet.agents["two"].host.model.learned is before
    with OnDeviceModel.open(other_bundle) as model, pytest.raises(LearningError):
        model.state.take_up(checkpoint_arrays(fleet), 1)
    kept = checkpoints(fleet, "one")[0]
    with pytest.raises(RolloutError, match="give it the same bundle first"):
        fleet.coordinator.checkpoints._fits(kept, "two", "0" * 64, force=True)
    # A device that says what cannot be, or speaks for another, is not believed.
    document = fleet.coordinator.checkpoints.data(kept.digest)
    with pytest.raises(BundleError, match="says that it is of one"):
        fleet.coordinator.checkpoints.take("two", document, fleet.now)
    found = Checkpoint.decode(document, "it")
    ahead = Checkpoint(found.facts.__class__(**{**_facts(found), "release": 2**62}), found.packed).encode()
    with pytest.raises(BundleError, match="the newest is 0"):
        fleet.coordinator.checkpoints.take("one", ahead, fleet.now)


def checkpoint_arrays(fleet: SimulatedFleet) -> dict[str, Any]:
    assert fleet.coordinator is not None
    data = fleet.coordinator.checkpoints.data(checkpoints(fleet, "one")[0].digest)
    return Checkpoint.decode(data, "it").arrays("it")


@pytest.mark.parametrize("at", [0, 6, 8, 10, 16])
def test_killed_at_any_moment_of_a_restoration_it_is_there_once(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, samples: tuple[np.ndarray, np.ndarray], at: int
) -> None:
    x, y = samples
    fleet = simulate(tmp_path, digits_bundle, ["one", "two"])
    fleet.run(2.0)
    fleet.teach("one", x[:20], y[:20])
    keep(fleet, "one")
    assert fleet.coordinator is not None
    made = fleet.coordinator.restore("two", "one", fleet.now, force=True)
    for _ in range(at // 2):
        fleet.step()
    fleet.crash_agent("two")
    fleet.start_agent("two")
    taken = fleet.agents["two"].host.model.n_samples
    fleet.teach("two", x[20:25], y[20:25], "t")
    if at % 4 == 0:
        fleet.crash_coordinator()
        fleet.start_coordinator()
    fleet.until("the answer", lambda: order(fleet, made.number).state == "done")
    # Labels after it was taken up stay; it is not taken up twice.
    assert fleet.agents["two"].host.model.n_samples == (25 if taken else 20)


def test_a_replacement_that_sees_nothing_does_not_wait_for_ever_for_what_nothing_can_judge(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, samples: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = samples
    fleet = simulate(tmp_path, digits_bundle, ["old", "new"], probation_s=60.0)
    fleet.run(2.0)
    fleet.teach("old", x[:40], y[:40])
    keep(fleet, "old")
    assert fleet.coordinator is not None
    fleet.until("a contribution", fleet.store.contributions.all)
    fleet.coordinator.merge_now(fleet.now)
    fleet.until("a merge on probation", lambda: fleet.device("new").state == "probation")
    made = fleet.coordinator.restore("new", "old", fleet.now, force=True)
    fleet.until("why it waits", lambda: order(fleet, made.number).detail)
    found = order(fleet, made.number)
    assert (found.state, found.detail) == ("open", "it waits: release 1 is on probation here")
    fleet.until("the answer", lambda: order(fleet, made.number).state == "done")
    assert fleet.agents["new"].host.model.n_samples == 40
    fleet.until("the end of the probation", lambda: fleet.device("new").state == "active")
    assert "not judged" in fleet.device("new").state_detail
    assert fleet.device("new").state_detail.endswith("; a checkpoint has taken its place")


def test_a_kill_between_the_state_and_the_record_takes_nothing_up_twice(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, samples: tuple[np.ndarray, np.ndarray]
) -> None:
    """faults: 21. The number of the order is in the snapshot itself."""
    x, y = samples
    fleet = simulate(tmp_path, digits_bundle, ["one"])
    fleet.run(2.0)
    fleet.teach("one", x[:20], y[:20])
    keep(fleet, "one")
    assert fleet.coordinator is not None
    fleet.teach("one", x[20:30], y[20:30], "t")
    made = fleet.coordinator.restore("one", "one", fleet.now)
    data = fleet.coordinator.checkpoints.data(made.digest)
    fleet.agents["one"].model.checkpoints.take(data, made.number)
    fleet.crash_agent("one")
    fleet.start_agent("one")
    assert fleet.agents["one"].host.slots.record.restored == 0
    fleet.teach("one", x[30:35], y[30:35], "u")
    fleet.until("the answer", lambda: order(fleet, made.number).state == "done")
    assert fleet.agents["one"].host.model.n_samples == 25


def test_a_device_with_a_root_takes_up_only_what_the_fleet_signed(
    simulate: Simulate, tmp_path: Path, digits_bundle: Path, samples: tuple[np.ndarray, np.ndarray]
) -> None:
    """faults: 41, 42. Unsigned, of another order, or said once more: nothing changes."""
    x, y = samples
    folders = ceremony.init(tmp_path / "keys", datetime.now(UTC))
    signing, root = folders.base / "coordinator", folders.device_root
    fleet = simulate(tmp_path, digits_bundle, ["one"], signing=signing, trust_root=root)
    fleet.run(2.0)
    fleet.teach("one", x[:20], y[:20])
    keep(fleet, "one")
    fleet.teach("one", x[20:30], y[20:30], "t")
    assert fleet.coordinator is not None
    said: list[Restore] = []
    send = fleet.coordinator_transport.publish

    def tap(topic: str, payload: bytes, **options: Any) -> bool:
        if topic.endswith(topics.DN_RESTORE):
            message = decode(topics.DN_RESTORE, payload)
            assert isinstance(message, Restore)
            said.append(message)
        return bool(send(topic, payload, **options))

    fleet.coordinator_transport.publish = tap  # type: ignore[method-assign]  # only looked at
    assert restored(fleet, "one", "one").state == "done"
    assert fleet.agents["one"].host.model.n_samples == 20
    fleet.teach("one", x[:5], y[:5], "u")
    agent = fleet.agents["one"]
    for lie in (
        dataclasses.replace(said[0], signature=""),
        dataclasses.replace(said[0], number=said[0].number + 1),
        said[0],
    ):
        topic = f"edge/v1/lab/one/{topics.DN_RESTORE}"
        agent.core.transport(Received(topic=topic, payload=encode(lie), retained=False), fleet.now)
        fleet.run(5.0)
    assert agent.host.model.n_samples == 25
    events = [row.detail for row in fleet.store.events.newest(100, device="one", name="restore-distrusted")]
    assert sorted(detail.split(": ")[1] for detail in events) == ["unsigned", "wrong-signer"]


def test_keys_open_no_library_before_something_is_sealed_or_opened(
    tmp_path: Path, digits_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes 6 MiB. But for the first start, which makes the key, and where the key was exchanged."""
    public = tmp_path / "fleet.pem.pub"
    to = sealing.make_key(tmp_path / "fleet.pem")
    sealing.write_public(public, to)
    state = tmp_path / "state"
    state.mkdir()
    config = AgentConfig(
        bundles={}, state_dir=state, fleet="lab", device="one", profile=unhurried(), checkpoint_key=public
    )
    first = Seals.of(config)
    own = sealing.read_private(state / "checkpoint.pem").public
    assert (first.to, first.public) == (to, own.hex())
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
        assert Seals.of(config) == first
    for damage in (
        "",
        "x",
        f"{own.hex()} {'0' * 64}\n",
        f"{'zz' * 32} {sha256((state / 'checkpoint.pem').read_bytes())}",
    ):
        (state / "checkpoint.pub").write_text(damage)
        assert Seals.of(config) == first
    other = sealing.make_key(state / "checkpoint.pem")
    assert Seals.of(config).public == other.hex()
    for text in (public.read_bytes().replace(b"MCow", b"MCpw"), b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n"):
        public.write_bytes(text)
        with pytest.raises(ConfigError, match="public key"):
            Seals.of(config)
