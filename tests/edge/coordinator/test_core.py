"""The coordinator's decisions about contributions: what is merged, left out, forgotten, and known after a restart."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.channel.codec import encode
from edge.channel.messages import Birth, Telemetry
from edge.channel.transport import Received
from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.contract.errors import BundleError, LearningError, RolloutError
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.releases.releases import add_release
from edge.coordinator.store.store import Store
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.learning.statistics import HeadStatistics
from edge.merging.policy import MergePolicy
from edge.merging.privacy import PrivacyAccountant
from tests.support.contributions import Make, merged_head, policy_of, samples, shuffled
from tests.support.fleet import store_in

NOISY = policy_of(noise_multiplier=2.0, clip_norm=1.0, expected_devices=2)


class Coordinator:
    """A coordinator that can be killed, and started anew on its files."""

    def __init__(self, folder: Path, bundle: Path, policy: MergePolicy, auto_merge: bool) -> None:
        self.folder, self.bundle, self.policy, self.auto_merge = folder, bundle, policy, auto_merge
        self.now = Now(1000.0, 1_800_000_000_000)
        self.store: Store | None = None
        self.start()

    def start(self) -> None:
        self.close()
        config = CoordinatorConfig(
            fleet="lab", name="c", data_dir=self.folder, auto_merge=self.auto_merge, policy=self.policy
        )
        self.store = store_in(self.folder / "db.sqlite")
        self.core = CoordinatorCore(
            config, self.store, ArtifactStore(self.folder / "artifacts"), np.random.default_rng(0)
        )
        self.core.add_artifact(self.bundle.read_bytes(), self.bundle)

    def close(self) -> None:
        if self.store is not None:
            self.store.close()

    def take(self, device: str, update: HeadUpdate) -> None:
        self.core.learning.take(device, update.encode(), self.now)

    def merge(self) -> HeadRelease | None:
        rows = self.core.merge_now(self.now)
        return self.release() if rows else None

    def release(self) -> HeadRelease:
        assert self.store is not None
        digest = self.store.releases.all()[0].digest
        return HeadRelease.decode((self.folder / "artifacts" / digest).read_bytes(), "the release")

    def events(self, name: str) -> list[str]:
        assert self.store is not None
        return [f"{row.device}: {row.detail}" for row in self.store.events.newest(100) if row.name == name]

    @property
    def n_releases(self) -> int:
        assert self.store is not None
        return len(self.store.releases.all())


Start = Callable[..., Coordinator]


@pytest.fixture
def start(tmp_path: Path, digits_bundle: Path) -> Iterator[Start]:
    made: list[Coordinator] = []

    def make(policy: MergePolicy | None = None, auto_merge: bool = False) -> Coordinator:
        made.append(Coordinator(tmp_path / str(len(made)), digits_bundle, policy or policy_of(), auto_merge))
        return made[-1]

    yield make
    for each in made:
        each.close()


def same(one: HeadRelease, two: HeadRelease) -> None:
    for name, array in one.parameters.items():
        np.testing.assert_allclose(array, two.parameters[name], rtol=1e-6, atol=1e-7)
    for name, values in one.merged.items():
        np.testing.assert_allclose(values, two.merged[name], rtol=1e-6, atol=1e-6)


# Forgetting


def test_merge_after_forgetting_is_as_if_the_device_had_never_been_there(start: Start, statistics_update: Make) -> None:
    fleet, other = start(), start()
    for seed in range(4):
        fleet.take(f"d{seed}", statistics_update(seed))
        if seed != 2:
            other.take(f"d{seed}", statistics_update(seed))
    before = fleet.merge()
    assert before is not None
    assert "l2" in before.included
    told = fleet.core.forget("d2", fleet.now)
    assert (told["statistics"], told["merged_statistics"], told["samples"], told["merge"]) == (1, 1, 60, "asked")
    fleet.start()
    after, never = fleet.merge(), other.merge()
    assert after is not None
    assert never is not None
    same(after, never)
    assert after.included == never.included
    assert "l2" not in after.included
    assert not np.allclose(before.parameters["7.weight"], after.parameters["7.weight"], rtol=1e-4)
    assert fleet.merge() is None, "it is forgotten once"


def test_class_that_only_a_forgotten_device_had_is_gone(start: Start, statistics_update: Make) -> None:
    fleet = start()
    for seed in range(3):
        fleet.take(f"d{seed}", statistics_update(seed, ("smudge",) if seed == 1 else ()))
    before = fleet.merge()
    assert before is not None
    assert before.class_names[-1] == "smudge"
    fleet.core.forget("d1", fleet.now)
    after = fleet.merge()
    assert after is not None
    assert after.class_names == ()
    assert after.parameters["7.bias"].shape == (10,)


def test_forgotten_state_is_not_taken_again_even_after_a_restart(start: Start, statistics_update: Make) -> None:
    fleet = start()
    fleet.take("a", statistics_update(0))
    fleet.take("b", statistics_update(1))
    fleet.core.forget("a", fleet.now)
    fleet.start()
    for device in ("a", "copy"):
        with pytest.raises(LearningError, match="forgotten"):
            fleet.take(device, statistics_update(0, n=80, lineage="l0"))
    assert fleet.store is not None
    assert [row.device for row in fleet.store.contributions.all()] == ["b"]
    fleet.take("a", statistics_update(0, lineage="an empty state folder"))
    assert [row.device for row in fleet.store.contributions.all()] == ["a", "b"]


def test_forgetting_deletes_the_contribution_on_disk_and_copies_of_it(start: Start, statistics_update: Make) -> None:
    fleet = start()
    fleet.take("a", replace(statistics_update(0), state_id="a" * 16))
    fleet.take("copy", replace(statistics_update(0, n=70, lineage="l0"), state_id="a" * 16))
    fleet.take("b", statistics_update(1))
    assert fleet.store is not None
    digests = {row.device: row.digest for row in fleet.store.contributions.all()}
    told = fleet.core.forget("a", fleet.now)
    assert told["copies"] == ["copy"]
    assert told["merge"] == "none", "it was never merged"
    left = {path.name for path in (fleet.folder / "artifacts").iterdir()}
    assert digests["b"] in left
    assert not {digests["a"], digests["copy"]} & left
    merged = fleet.merge()
    assert merged is not None
    assert set(merged.included) == {"l1"}


def test_who_names_the_lineage_of_another_device_harms_nobody(start: Start, statistics_update: Make) -> None:
    """Every merged head names the lineages in it (fault: a device uploads under that of another)."""
    fleet = start()
    fleet.take("victim", replace(statistics_update(0), state_id="a" * 16))
    fleet.take("evil", replace(statistics_update(1), state_id="b" * 16))
    for state_id in ("", "b" * 16):
        for version in (1, 50, 2**62):
            update = replace(statistics_update(2, n=70, lineage="l0"), version=version, state_id=state_id)
            with pytest.raises(LearningError, match="that of victim"):
                fleet.take("evil", update)
    merged = fleet.merge()
    assert merged is not None
    assert set(merged.included) == {"l0", "l1"}
    fleet.core.forget("evil", fleet.now)
    assert fleet.store is not None
    assert [row.device for row in fleet.store.contributions.all()] == ["victim"]
    fleet.take("victim", replace(statistics_update(0, n=90, lineage="l0"), state_id="a" * 16))
    merged = fleet.merge()
    assert merged is not None
    assert set(merged.included) == {"l0"}


def test_the_last_device_forgotten_leaves_the_shipped_head(
    start: Start, statistics_update: Make, bundle: Bundle
) -> None:
    fleet = start(auto_merge=True)
    fleet.take("a", statistics_update(0))
    fleet.core.merge_now(fleet.now)
    assert fleet.core.forget("a", fleet.now)["merge"] == "now"
    fleet.start()
    fleet.core.tick(fleet.now)
    assert fleet.n_releases == 2
    found = fleet.release()
    assert found.included == {}
    for name, array in bundle.head_parameters().items():
        np.testing.assert_array_equal(found.parameters[name], array)
    assert found.merged, "devices replace their base by it"
    fleet.core.tick(Now(fleet.now.s + 1000, fleet.now.wall_ms))
    assert fleet.n_releases == 2


def test_device_that_nobody_knows_cannot_be_forgotten(start: Start) -> None:
    fleet = start()
    with pytest.raises(RolloutError, match="no such device is known"):
        fleet.core.forget("nobody", fleet.now)
    assert fleet.events("forgotten") == []


def test_merged_change_cannot_be_forgotten_but_the_optimizer_begins_anew(start: Start, delta_update: Make) -> None:
    fleet = start(policy_of(rule="fedadam"))
    fleet.take("a", delta_update(0.1, lineage="a"))
    fleet.take("b", delta_update(0.2, lineage="b"))
    before = fleet.merge()
    assert before is not None
    fleet.take("a", delta_update(0.3, lineage="a", n=20, base_release=1))
    assert fleet.store is not None
    backbone = fleet.store.contributions.all()[0].backbone
    assert fleet.store.contributions.memory(backbone).optimizer
    told = fleet.core.forget("a", fleet.now)
    assert (told["changes"], told["merged_changes"], told["merge"]) == (1, 1, "none")
    assert not fleet.store.contributions.memory(backbone).optimizer
    assert fleet.merge() is None, "there is nothing left to merge"
    same(fleet.release(), before)
    fleet.take("b", delta_update(0.2, lineage="b", n=20, base_release=1))
    after = fleet.merge()
    assert after is not None
    assert set(after.included) == {"b"}


# Screening


def test_garbage_is_reported_once_and_does_not_make_releases(
    start: Start, statistics_update: Make, bundle: Bundle
) -> None:
    fleet = start(auto_merge=True)
    for seed in range(4):
        fleet.take(f"d{seed}", statistics_update(seed))
    assert fleet.merge() is not None
    fleet.take("bad", shuffled(bundle, 9, "garbage"))
    assert fleet.merge() is None
    assert fleet.n_releases == 1, "nothing of it was merged"
    (line,) = fleet.events("left-out")
    assert line.startswith("bad: 100 samples not merged: its classes have other names")
    fleet.start()
    fleet.core.tick(fleet.now)
    fleet.core.tick(Now(fleet.now.s + 1000, fleet.now.wall_ms))
    assert fleet.n_releases == 1, "nor after a restart"
    fleet.take("d0", statistics_update(0, n=90))
    merged = fleet.merge()
    assert merged is not None
    assert "garbage" not in merged.included
    assert len(fleet.events("left-out")) == 1


def test_device_that_was_merged_and_is_found_out_later_is_taken_out(
    start: Start, statistics_update: Make, bundle: Bundle
) -> None:
    fleet, other = start(), start()
    fleet.take("bad", shuffled(bundle, 9, "garbage"))
    fleet.take("d0", statistics_update(0))
    first = fleet.merge()
    assert first is not None
    assert "garbage" in first.included
    assert fleet.events("screening-undecided"), "of two that disagree nobody can tell"
    for seed in range(1, 5):
        fleet.take(f"d{seed}", statistics_update(seed))
    for seed in range(5):
        other.take(f"d{seed}", statistics_update(seed))
    second, never = fleet.merge(), other.merge()
    assert second is not None
    assert never is not None
    assert second.included == never.included
    same(second, never)


def test_changes_that_a_sum_of_statistics_decided_over_are_not_said_to_be_in_it(
    start: Start, statistics_update: Make, delta_update: Make
) -> None:
    fleet = start()
    fleet.take("a", statistics_update(0))
    fleet.take("b", delta_update(0.1))
    merged = fleet.merge()
    assert merged is not None
    assert set(merged.included) == {"l0"}
    assert fleet.merge() is None, "and they do not make the same release again"


# Memory


@pytest.mark.parametrize("rule", ["fedadam", "fedyogi", "fedadagrad"])
def test_server_optimizer_survives_a_restart(start: Start, delta_update: Make, rule: str) -> None:
    policy = policy_of(rule=rule)
    restarted, steady, anew = start(policy), start(policy), start(policy)
    found = []
    for fleet in (restarted, steady, anew):
        fleet.take("a", delta_update(0.01))
        fleet.merge()
        if fleet is restarted:
            fleet.start()
        if fleet is anew:
            fleet.close()
            with sqlite3.connect(fleet.folder / "db.sqlite") as database:
                assert database.execute("DELETE FROM merge_memory").rowcount == 1
            database.close()
            fleet.start()
        fleet.take("a", delta_update(0.01, n=20, base_release=1))
        release = fleet.merge()
        assert release is not None
        found.append(release.parameters["7.weight"])
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2], rtol=1e-4), "without its memory it would step elsewhere"


def test_epsilon_adds_up_over_restarts_and_is_told(start: Start, delta_update: Make) -> None:
    fleet = start(NOISY)
    for i in range(3):
        fleet.take("a", delta_update(0.1, n=10 + i, base_release=i))
        assert fleet.merge() is not None
        fleet.start()
    expected = PrivacyAccountant()
    lines = []
    for _ in range(3):
        expected.spend(2.0)
        lines.append(f": all merges with noise so far: epsilon {expected.epsilon(1e-5):.3g} at delta 1e-05")
    told = fleet.events("privacy")[::-1]
    assert len(set(told)) == 3
    assert all(line.startswith(start) for line, start in zip(told, lines, strict=True))


def test_statistics_under_noise_are_reported_and_not_merged(start: Start, statistics_update: Make) -> None:
    fleet = start(NOISY)
    fleet.take("a", statistics_update(0))
    assert fleet.merge() is None
    (line,) = fleet.events("left-out")
    assert "noise" in line


def test_rule_that_needs_more_devices_waits_for_them(start: Start, delta_update: Make) -> None:
    fleet = start(policy_of(rule="median"))
    for i in range(3):
        fleet.take(f"d{i}", delta_update(0.1 * i, lineage=f"d{i}"))
        merged = fleet.merge()
        assert (merged is not None) == (i == 2)
    assert "too few" in fleet.events("merge-failed")[0]
    assert merged is not None
    assert set(merged.included) == {"d0", "d1", "d2"}


def test_database_of_an_older_version_is_taken_over(start: Start, statistics_update: Make) -> None:
    fleet = start()
    fleet.take("a", statistics_update(0))
    fleet.close()
    path, old = fleet.folder / "db.sqlite", fleet.folder / "old.sqlite"
    statements = (Path(__file__).parent / "data" / "before-revisions.sql").read_text().split(";\n")
    missing = ("CREATE TABLE refused", "CREATE TABLE forgotten", "CREATE TABLE merge_memory")  # they came later
    with sqlite3.connect(old) as database:
        for statement in statements:
            if statement.startswith("CREATE") and not statement.startswith(missing):
                database.execute(statement)
        database.execute("ATTACH ? AS today", (str(path),))
        database.execute("INSERT INTO bundle SELECT digest, backbone, name FROM today.bundle")
        had = ", ".join(row[1] for row in database.execute("PRAGMA main.table_info(contribution)"))
        assert database.execute(f"INSERT INTO contribution SELECT {had} FROM today.contribution").rowcount == 1
    database.close()
    old.replace(path)
    for name in ("db.sqlite-wal", "db.sqlite-shm"):
        (fleet.folder / name).unlink(missing_ok=True)
    fleet.start()
    assert fleet.merge() is not None


# Classes


def test_changes_go_on_from_a_merge_of_statistics_with_added_classes(
    start: Start, statistics_update: Make, delta_update: Make
) -> None:
    fleet = start()
    fleet.take("a", statistics_update(0, ("smudge",)))
    first = fleet.merge()
    assert first is not None
    fleet.core.forget("a", fleet.now)  # then only changes are left
    fleet.merge()
    pushed = fleet.core.add_artifact(replace(first, included={}).encode(), Path("/nonexistent"))
    assert fleet.store is not None
    add_release(
        fleet.store,
        fleet.core._artifacts,
        kind="head",
        digest=pushed["digest"],
        backbone=pushed["backbone"],
        devices=["*"],
        reason="",
        now_ms=1,
    )
    fleet.take("b", delta_update(0.5, ("smudge",), base_release=fleet.store.releases.all()[0].counter))
    second = fleet.merge()
    assert second is not None
    assert second.class_names == first.class_names
    np.testing.assert_allclose(second.parameters["7.bias"], first.parameters["7.bias"] + 0.5, rtol=1e-5)


@pytest.mark.parametrize("change", [{"class_names": tuple("abcdefghijk")}, {"class_names": ()}])
def test_pushed_head_with_other_classes_than_it_names_is_refused(
    start: Start, statistics_update: Make, change: dict[str, Any]
) -> None:
    fleet = start()
    fleet.take("a", statistics_update(0, ("smudge",)))
    merged = fleet.merge()
    assert merged is not None
    with pytest.raises(BundleError):
        fleet.core.add_artifact(dataclasses.replace(merged, **change).encode(), Path("/nonexistent"))


# Too little


def test_three_labels_are_no_release_and_it_is_said_what_they_lack(start: Start, statistics_update: Make) -> None:
    fleet = start(MergePolicy(), auto_merge=True)
    for seed in range(3):
        fleet.take(f"d{seed}", statistics_update(seed, n=1))
    fleet.core.tick(fleet.now)
    fleet.core.tick(Now(fleet.now.s + 100, fleet.now.wall_ms))
    assert fleet.n_releases == 0
    lines = sorted(fleet.events("merge-waits"))
    assert lines[0] == ": 0 labelled samples to merge, 20 are needed (--min-merge-samples)"
    assert lines[1:] == [f"d{i}: 1 labelled samples, 10 are needed (--min-samples)" for i in range(3)]
    with pytest.raises(RolloutError, match="10 are needed"):
        fleet.merge()
    # Enough of two; the third one's label is not in it, and waits for more.
    for seed in range(2):
        fleet.take(f"d{seed}", statistics_update(seed, n=15))
    merged = fleet.merge()
    assert merged is not None
    assert merged.included == {"l0": 15, "l1": 15}
    fleet.take("d2", statistics_update(2, n=10))
    merged = fleet.merge()
    assert merged is not None
    assert merged.included == {"l0": 15, "l1": 15, "l2": 10}


# Groups


def birth(fleet: Coordinator, device: str, bundle: Bundle) -> None:
    message = Birth(
        agent_version="1",
        boot=1,
        session=1,
        ts_ms=1,
        profile="",
        hardware={},
        bundle="",
        backbone=bundle.manifest.backbone_digest,
        head="",
        release=0,
        n_labels=0,
        limits={},
    )
    fleet.core.registry.birth(device, message, fleet.now)


def desired(fleet: Coordinator, device: str) -> int:
    return max((each.release.counter for each in fleet.core.releases.wanted(device)), default=0)


def test_each_value_of_a_tag_has_a_head_of_its_own_that_newcomers_get_too(
    start: Start, statistics_update: Make, bundle: Bundle
) -> None:
    fleet = start(policy_of(merge_by="tag.model"))
    for seed, model in enumerate(("a", "a", "b", "")):
        birth(fleet, f"d{seed}", bundle)
        fleet.take(f"d{seed}", statistics_update(seed))
        if model:
            assert fleet.core.tag(f"d{seed}", {"model": model, "site": "x"}, fleet.now)["model"] == model
    releases = fleet.core.merge_now(fleet.now)
    assert {tuple(row.devices): row.reason.split(": ")[1].split(",")[0] for row in releases} == {
        ("tag.model=a",): "merge of 2 devices",
        ("tag.model=b",): "merge of 1 device",
        ("tag.model=",): "merge of 1 device",
    }
    counters = {row.devices[0]: row.counter for row in releases}
    assert [desired(fleet, f"d{i}") for i in range(4)] == [
        counters["tag.model=a"],
        counters["tag.model=a"],
        counters["tag.model=b"],
        counters["tag.model="],
    ]
    same(heads(fleet)["tag.model=a"], merged_head(bundle, [statistics_update(0), statistics_update(1)]))
    assert fleet.core.merge_now(fleet.now) == [], "nothing is new"
    birth(fleet, "late", bundle)
    fleet.core.tag("late", {"model": "b"}, fleet.now)
    assert desired(fleet, "late") == counters["tag.model=b"]
    fleet.core.tag("late", {"model": ""}, fleet.now)
    assert desired(fleet, "late") == counters["tag.model="]
    with pytest.raises(RolloutError, match="unknown device"):
        fleet.core.tag("nobody", {"model": "b"}, fleet.now)
    with pytest.raises(RolloutError, match="expected at most 64"):
        fleet.core.tag("late", {"mod=el": "b"}, fleet.now)
    # Of a group that lost its only member nothing stays, either.
    fleet.core.forget("d2", fleet.now)
    again = fleet.core.merge_now(fleet.now)
    assert again[0].devices == ("*",)
    assert desired(fleet, "late") == max(counters["tag.model="], again[-1].counter)
    assert all("l2" not in release.included for device, release in heads(fleet).items() if device != "tag.model=b")
    assert fleet.core.merge_now(fleet.now) == []


def heads(fleet: Coordinator) -> dict[str, HeadRelease]:
    """By the first whom it is meant for, the newest."""
    assert fleet.store is not None
    found = {}
    for row in reversed(fleet.store.releases.all()):
        found[row.devices[0]] = HeadRelease.decode((fleet.folder / "artifacts" / row.digest).read_bytes(), "a head")
    return found


def elsewhere(bundle: Bundle, seed: int) -> HeadUpdate:
    """A device with a world of its own: other features, right labels."""
    x, y = samples(bundle.manifest.class_names, seed, 120)
    turned = -x[:, ::-1]
    tensors = dict(HeadStatistics.of(turned, y, 10).to_tensors())
    return HeadUpdate(
        learner="statistics",
        backbone=bundle.manifest.backbone_digest,
        lineage=f"e{seed}",
        version=120,
        n_samples=120,
        base_release=0,
        tensors=tensors,
    )


def test_devices_that_are_alike_share_a_head(start: Start, statistics_update: Make, bundle: Bundle) -> None:
    fleet = start(policy_of(merge_by="cluster"))
    for seed in range(3):
        birth(fleet, f"d{seed}", bundle)
        fleet.take(f"d{seed}", statistics_update(seed))
    (everybody,) = fleet.core.merge_now(fleet.now)
    assert everybody.devices == ("*",), "one world, one head"
    for seed in range(2):
        birth(fleet, f"e{seed}", bundle)
        fleet.take(f"e{seed}", elsewhere(bundle, seed))
    releases = fleet.core.merge_now(fleet.now)
    assert sorted(row.devices for row in releases) == [("d0", "d1", "d2"), ("e0", "e1")]
    x, y = samples(bundle.manifest.class_names, 99, 200)
    for first, features in (("d0", x), ("e0", -x[:, ::-1])):
        head = heads(fleet)[first].parameters
        assert ((features @ head["7.weight"].T + head["7.bias"]).argmax(axis=1) == y).mean() > 0.95
    assert fleet.core.merge_now(fleet.now) == []


# Experts


def test_what_devices_say_of_their_experts_is_kept(start: Start, statistics_update: Make, bundle: Bundle) -> None:
    fleet = start()
    for seq, weight in ((1, 0.2), (2, 0.7)):
        experts = {"shipped": [1 - weight, 0.8, 40], "merged": [weight, 0.9, 40]}
        payload = encode(Telemetry(values={"boot": 1, "seq": seq, "acc": 0.9, "experts": experts}))
        message = Received(topic="edge/v1/lab/cam/up/tele", payload=payload, retained=False)
        fleet.core.transport(message, fleet.now)
        fleet.core.tick(fleet.now)
    fleet.core.close(fleet.now)
    assert fleet.store is not None
    (row,) = fleet.store.devices.models("cam")
    assert row.experts == {"shipped": [pytest.approx(0.3), 0.8, 40], "merged": [0.7, 0.9, 40]}
    bad = Received(topic="edge/v1/lab/cam/up/tele", payload=b'{"experts":{"merged":"all"}}', retained=False)
    fleet.core.transport(bad, fleet.now)
    assert "expected by name" in fleet.events("bad-message")[0]
