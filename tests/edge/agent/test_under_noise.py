"""A device that tells nothing without noise: what leaves it, over restarts, ways back and full disks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent.model import releases
from edge.agent.model.journal import Journal
from edge.agent.model.on_device_model import OnDeviceModel, of_bundle
from edge.channel import confusion
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.contract.files import lock_folder
from edge.learning.disclosure import Noise
from edge.learning.events import HeadReplaced, RolledBack
from edge.learning.exchange import HeadUpdate
from edge.learning.tree import flatten
from tests.edge.agent.test_contributing import documents, events, merge_of
from tests.edge.agent.test_contributing import teach as teach_16
from tests.support.contributions import merged_head, policy_of
from tests.support.fleet import SimulatedFleet
from tests.support.killed import kill

NOISE = Noise(8.0)


def opened(bundle: Path, folder: Path | None, noise: Noise | None = NOISE, learner: str = "auto") -> OnDeviceModel:
    model = of_bundle(Bundle.open(bundle), state_dir=folder, noise=noise, provider="cpu", learner=learner)
    model._lock = None if folder is None else lock_folder(folder)
    return model


def labels(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((n, 1, 8, 8), np.float32), rng.integers(0, 10, n)


def teach(fleet: SimulatedFleet, bundle: Path, name: str, seed: int) -> None:
    """More than a block."""
    for i in range(3):
        teach_16(fleet, bundle, name, 10 * seed + i)


def same(one: HeadUpdate, other: HeadUpdate) -> bool:
    return one.encode() == other.encode()


def test_the_same_is_told_after_a_kill_and_only_what_is_new_gets_new_noise(tmp_path: Path, digits_bundle: Path) -> None:
    """Who heard it twice with other noise could take the mean."""
    model = opened(digits_bundle, tmp_path / "a")
    model.learn(*labels(0))
    first = releases.contribution(model, state_id="0" * 32)
    assert same(releases.contribution(model, state_id="0" * 32), first)
    model.state.sync()
    kill(model)
    model = opened(digits_bundle, tmp_path / "a")
    assert same(releases.contribution(model, state_id="0" * 32), first)
    model.learn(*labels(1, 31))
    assert same(releases.contribution(model, state_id="0" * 32), first), (
        "a block of few labels is mostly noise: it waits"
    )
    model.learn(*labels(2, 9))
    second = releases.contribution(model, state_id="0" * 32)
    value = flatten(model.learned)
    model.save()
    kill(model)
    model = opened(digits_bundle, tmp_path / "a")
    assert all(np.array_equal(value[name], array) for name, array in flatten(model.learned).items())
    assert same(releases.contribution(model, state_id="0" * 32), second)
    assert (first.n_samples, second.n_samples, second.version) == (40, 80, 80)
    assert first.noised is not None
    assert second.noised is not None
    assert second.noised.variance == pytest.approx(2 * first.noised.variance)
    kill(model)


def test_nothing_of_what_was_learned_leaves_but_sums_with_noise(digits_bundle: Path) -> None:
    model, plain = opened(digits_bundle, None), opened(digits_bundle, None, noise=None)
    for each in (model, plain):
        each.learn(*labels(0))
    update = releases.contribution(model)
    assert {name: array.shape for name, array in update.tensors.items()} == {
        "products": (136,), "points": (16, 10), "counts": (10,),
    }  # fmt: skip
    told = model.learned.disclosed
    assert told is not None
    assert np.abs(told.told.counts - np.bincount(labels(0)[1], minlength=10)).max() > 0.2 * NOISE.deviation
    assert releases.contribution(plain).tensors.keys() == {"gram", "moment"}
    assert model.status()["noise"] == {
        "epsilon": 8.0, "delta": 1e-5, "told_epsilon": 8.0, "told": 40, "pending": 0, "why_not": "",
    }  # fmt: skip
    assert "noise" not in plain.status()
    assert [confusion.KEY in each.telemetry(0.0) for each in (model, plain)] == [False, True], "exact counts of labels"
    np.testing.assert_array_equal(model.predict(labels(2)[0]), plain.predict(labels(2)[0]))


def test_what_was_told_stays_told_when_a_head_is_taken_back(tmp_path: Path, digits_bundle: Path) -> None:
    model = opened(digits_bundle, tmp_path / "a")
    model.learn(*labels(0))
    before = model.learned
    release = merged_head(model.bundle, [releases.contribution(model)], merge_noised=True)
    model.happen(HeadReplaced(release, 1))
    model.learn(*labels(1))
    second = releases.contribution(model)
    model.happen(RolledBack())
    told = model.learned.disclosed
    assert told is not None
    assert (told.n_told, told.n_pending, model.n_samples) == (80, 0, 80)
    for value in (before, model.learned):  # an earlier value, as `rollback` brings it back
        model.state.replace(value)
        np.testing.assert_array_equal(releases.contribution(model).tensors["points"], second.tensors["points"])
    model.state.reset()
    assert model.n_contributed == 0, "another lineage, of which nothing was told"
    kill(model)


def test_less_is_promised_of_labels_that_were_told_of_with_less_noise(tmp_path: Path, digits_bundle: Path) -> None:
    model = opened(digits_bundle, tmp_path / "a")
    model.learn(*labels(0))
    releases.contribution(model)
    kill(model)
    model = opened(digits_bundle, tmp_path / "a", noise=Noise(1.0))
    assert model.status()["noise"] | {"told": 40, "epsilon": 1.0, "told_epsilon": 8.0} == model.status()["noise"]
    kill(model)


def test_classes_that_were_added_are_told_of(digits_bundle: Path) -> None:
    model = opened(digits_bundle, None)
    model.learn(*labels(0))
    assert releases.contribution(model).tensors["counts"].shape == (10,)
    model.add_class("smudge")
    model.learn(labels(1)[0], np.full(40, 10))
    update = releases.contribution(model)
    assert update.class_names[-1] == "smudge"
    assert update.tensors["counts"].shape == (11,)
    assert abs(update.tensors["counts"][10] - 40) < 6 * NOISE.deviation
    assert merged_head(model.bundle, [update], merge_noised=True).included == {update.lineage: 80}


@pytest.fixture
def fleets(tmp_path: Path, digits_bundle: Path) -> Iterator[Any]:
    made: list[SimulatedFleet] = []

    def make(**options: Any) -> SimulatedFleet:
        made.append(SimulatedFleet(tmp_path, digits_bundle, ["one", "two"], **{"noise": NOISE} | options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_fleet_merges_what_was_told_under_noise_and_forgets_it(fleets: Any, digits_bundle: Path) -> None:
    fleet = fleets(policy=policy_of(merge_noised=True))
    for seed, name in enumerate(("one", "two")):
        teach(fleet, digits_bundle, name, seed)

    def is_merged() -> bool:
        rows, agents = fleet.store.contributions.all(), fleet.agents
        every = [row.version == row.merged_version == agents[row.device].host.model.n_samples for row in rows]
        return len(every) == 2 and all(every) and all(each.host.model.learned.has_merge for each in agents.values())

    fleet.until("merged", is_merged)
    found = documents(fleet)
    assert all(update.noised is not None for _, update in found.values())
    assert {row.noise for row in fleet.store.contributions.all()} == {"noise: epsilon 8, delta 1e-05"}
    assert any("noise: epsilon 8" in row.detail for row in fleet.store.events.newest(100))
    assert not {kind for _, kind in events(fleet)} & {"contribution-refused", "left-out", "merge-failed", "fault"}
    release = merge_of(fleet)
    assert set(release.included) == {update.lineage for _, update in found.values()}
    for agent in fleet.agents.values():  # and they go on: what each knows for itself is not taken for told
        teach(fleet, digits_bundle, agent.config.device, 7)
    fleet.until("merged again", is_merged)
    other = documents(fleet)["two"][1]
    fleet.coordinator.forget("one", fleet.now)
    fleet.until("merged without it", lambda: set(merge_of(fleet).included) == {other.lineage})
    expected = merged_head(fleet.agents["two"].host.model.bundle, [other], merge_noised=True)
    np.testing.assert_array_equal(merge_of(fleet).merged["moment"], expected.merged["moment"])


def test_a_coordinator_that_was_not_told_to_merge_noise_says_so(fleets: Any, digits_bundle: Path) -> None:
    fleet = fleets()
    for seed, name in enumerate(("one", "two")):
        teach(fleet, digits_bundle, name, seed)
    fleet.until("left out", lambda: ("one", "left-out") in events(fleet))
    assert any("--merge-noised" in row.detail for row in fleet.store.events.newest(100))


def test_a_head_that_can_only_send_changes_tells_nothing_and_says_why(fleets: Any, digits_bundle: Path) -> None:
    fleet = fleets(learner="sgd")
    for seed in range(2):
        teach(fleet, digits_bundle, "one", seed)
        fleet.run(5.0)
    assert not documents(fleet)
    assert events(fleet).count(("one", "contribution-withheld")) == 1
    model = fleet.agents["one"].host.model
    assert model.n_samples == 96
    with pytest.raises(LearningError, match="changes of the head"):
        releases.contribution(model)


@pytest.mark.parametrize("noise", [NOISE, None])
def test_nothing_is_sent_while_it_cannot_be_kept(
    fleets: Any, digits_bundle: Path, monkeypatch: pytest.MonkeyPatch, noise: Noise | None
) -> None:
    """After a kill the device would know less than it had told, or tell the same with other noise."""
    fleet = fleets(noise=noise)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(Journal, "append", full)
        disk.setattr("edge.agent.model.store.LearnedStore.snapshot", full)
        teach(fleet, digits_bundle, "one", 0)
        fleet.run(90.0)
        assert not documents(fleet)
    fleet.until("sent", lambda: "one" in documents(fleet))
    sent = documents(fleet)["one"][1]
    fleet.crash_agent("one")
    known = releases.contribution(fleet.start_agent("one").host.model)
    assert (known.version, known.tensors.keys()) == (sent.version, sent.tensors.keys())
    for name in ("points",) if noise else ():
        np.testing.assert_array_equal(known.tensors[name], sent.tensors[name])
