"""Forgetting: the head is that of a fleet that never saw the device, and the receipt says so to anybody."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.channel import confusion
from edge.channel.messages import EXPERTS, Birth, Conn, Telemetry
from edge.contract import receipts
from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.contract.errors import BundleError, RolloutError
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.learning.learning import Unwanted
from edge.coordinator.records import FleetQuestion, KeptCheckpoint
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.learning.exchange import HeadRelease
from tests.support.contributions import Make
from tests.support.fleet import store_in

NOW = Now(1000.0, 1_800_000_000_000)
SCRIPT = Path(__file__).parents[3] / "examples" / "check_receipt.py"
Start = Callable[[str], CoordinatorCore]


@pytest.fixture
def start(tmp_path: Path, bundle: Bundle) -> Iterator[Start]:
    stores = []

    def start(name: str) -> CoordinatorCore:
        folder = tmp_path / name
        stores.append(store_in(folder / "db.sqlite"))
        config = CoordinatorConfig(fleet="lab", name="c", data_dir=folder, auto_merge=False)
        core = CoordinatorCore(config, stores[-1], ArtifactStore(folder / "artifacts"))
        core.add_artifact(bundle.path.read_bytes(), bundle.path)
        return core

    yield start
    for store in stores:
        store.close()


def head(core: CoordinatorCore, counter: int) -> HeadRelease:
    return HeadRelease.decode(core.releases.artifact(counter).path.read_bytes(), "a head")


def check(*arguments: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_device_that_is_forgotten_leaves_a_head_as_if_it_had_never_been_there(
    start: Start, statistics_update: Make, tmp_path: Path
) -> None:
    fleet, other = start("fleet"), start("other")
    for i in range(4):
        fleet.learning.take(f"cam-{i}", statistics_update(i).encode(), NOW)
        if i != 2:
            other.learning.take(f"cam-{i}", statistics_update(i).encode(), NOW)
    (before,), (never,) = fleet.merge_now(NOW), other.merge_now(NOW)
    number = fleet.forget("cam-2", NOW)["receipt"]
    assert fleet.receipts.get(number).signed == "", "no head without it is there yet"
    (after,) = fleet.merge_now(NOW)
    forgotten, unseen, had = head(fleet, after.counter), head(other, never.counter), head(fleet, before.counter)
    for name, array in unseen.parameters.items():
        assert np.abs(forgotten.parameters[name] - array).max() <= 1e-6
        assert np.abs(had.parameters[name] - array).max() > 1e-4, "the device did change the head"
    for name, state in unseen.merged.items():
        np.testing.assert_allclose(forgotten.merged[name], state, rtol=1e-6, atol=1e-6)
    receipt = fleet.receipts.get(number)
    key = fleet.receipts.public_key()
    stated = receipts.verify(receipt.signed.encode(), receipts.FORGOTTEN, key)
    assert stated == receipt.statement
    assert (stated["device"], stated["is_whole"]) == ("cam-2", True)
    assert [each["release"] for each in stated["heads_without"]] == [after.counter]
    assert [each["release"] for each in stated["heads_with"]] == [before.counter]
    # A third party has files only, and no Edgeloop.
    files = {name: tmp_path / name for name in ("receipt.json", "key.pem", "after", "before", "never", "changed.json")}
    files["receipt.json"].write_text(receipt.signed)
    files["key.pem"].write_bytes(key)
    for name, release in (("after", after), ("before", before)):
        files[name].write_bytes(fleet.releases.artifact(release.counter).path.read_bytes())
    given = (files["receipt.json"], files["key.pem"])
    assert check(*given, files["after"], files["before"])[0] == 0
    files["never"].write_bytes(files["after"].read_bytes() + b"\0")
    assert "is not named there" in check(*given, files["never"])[1], "another head"
    changed = receipt.signed.replace('"payload":"', '"payload":"e', 1)
    files["changed.json"].write_text(changed)
    with pytest.raises(BundleError):
        receipts.verify(changed.encode(), receipts.FORGOTTEN, key)
    assert check(files["changed.json"], files["key.pem"])[0] == 1
    files["key.pem"].write_bytes(other.receipts.public_key())
    assert check(*given)[0] == 1, "signed by another coordinator"
    with pytest.raises(RolloutError, match="forgotten since"):  # nobody is given that again
        fleet.rollback(NOW)


def test_a_receipt_is_completed_after_a_crash_between_the_merge_and_it(start: Start, statistics_update: Make) -> None:
    fleet = start("fleet")
    for i in range(3):
        fleet.learning.take(f"cam-{i}", statistics_update(i).encode(), NOW)
    fleet.merge_now(NOW)
    number = fleet.forget("cam-0", NOW)["receipt"]
    fleet.learning.merge_now(NOW)  # and there the process ended
    assert fleet.receipts.get(number).signed == ""
    again = start("fleet")
    again.tick(NOW)
    assert again.receipts.get(number).signed != ""
    # Nothing is left of it on disk but in heads of before: not even its older versions.
    again.learning.take("cam-1", replace(statistics_update(1), version=99, n_samples=99).encode(), NOW)
    kept = {each.digest for each in again._store.contributions.all()} | {
        each.digest for each in again._store.releases.all()
    }
    there = {path.name for path in (again._config.data_dir / "artifacts").iterdir() if len(path.name) == 64}
    assert there - kept == {each.digest for each in again._store.releases.bundles()}


def test_what_was_never_merged_is_receipted_at_once_and_a_mean_of_changes_is_said_to_stay(
    start: Start, statistics_update: Make, delta_update: Make
) -> None:
    fleet = start("fleet")
    fleet.learning.take("new", statistics_update(7).encode(), NOW)
    done = fleet.receipts.get(fleet.forget("new", NOW)["receipt"])
    assert done.signed != ""
    assert (done.statement["is_whole"], done.statement["heads_with"]) == (True, [])
    for i in range(3):
        fleet.learning.take(f"cam-{i}", delta_update(0.1 * i, lineage=f"d{i}").encode(), NOW)
    (merged,) = fleet.merge_now(NOW)
    parts = fleet.receipts.lineage(merged)["parts"]
    assert [(each["device"], each["samples"] > 0, each["releases"]) for each in parts] == [
        (f"cam-{i}", True, [merged.counter]) for i in range(3)
    ]
    done = fleet.receipts.get(fleet.forget("cam-1", NOW)["receipt"])
    assert done.statement["is_whole"] is False
    assert [each["release"] for each in done.statement["heads_with"]] == [merged.counter]
    parts = fleet.receipts.lineage(merged)["parts"]
    assert [each["is_forgotten"] for each in parts if each["device"] == "cam-1"] == [True]


SECRET = "a-class-that-tells"


def test_a_device_that_never_contributed_leaves_nothing_and_the_receipt_says_that_it_is_in_no_head(
    start: Start, statistics_update: Make, bundle: Bundle, tmp_path: Path
) -> None:
    fleet = start("fleet")
    store, folder = fleet._store, "f" * 16
    for i in range(2):
        fleet.learning.take(f"cam-{i}", statistics_update(i).encode(), NOW)
    (merged,) = fleet.merge_now(NOW)
    birth = Birth(
        agent_version="1", boot=1, session=1, ts_ms=0, profile="generic", hardware={}, bundle="", release=0,
        backbone=bundle.manifest.backbone_digest, head="", n_labels=3, limits={}, state_id=folder,
    )  # fmt: skip
    fleet.dialogue.said("quiet", birth, NOW)
    fleet.dialogue.said("cam-0", replace(birth, state_id="c" * 16), NOW)
    values = {"boot": 1, "model": "", confusion.KEY: confusion.told({SECRET: {SECRET: 3}}), "acc": 0.5, "samples": 3}
    values[EXPERTS] = {SECRET: [1.0, 0.5, 3.0]}
    for seq in range(3):
        for device in ("cam-0", "quiet"):
            told = values if device == "quiet" else {**values, confusion.KEY: "", EXPERTS: {}}
            fleet.dialogue.said(device, Telemetry(values={**told, "seq": seq}), NOW)
        fleet.registry.keep_telemetry(NOW, at_once=seq < 2)  # the last one is not kept yet
        store.telemetry.aged(60.0, fleet._config.keep)
    digest = fleet._artifacts.put(SECRET.encode()).digest
    store.checkpoints.keep(
        KeptCheckpoint(
            device="quiet", model="", digest=digest, backbone=merged.backbone, lineage="5" * 32,
            learners="statistics", sealed_to=SECRET,
            samples=3, release=0, made_ms=0, received_ms=0, has_samples=True, size_bytes=len(SECRET),
        )
    )  # fmt: skip
    question = FleetQuestion(
        backbone=merged.backbone, device="quiet", model="", sample=SECRET, answered_ms=1, said=SECRET, confidence=0.9,
        devices=1, samples=1, asked_ms=1,
    )  # fmt: skip
    store.questions.add(question, [])

    found = fleet.forget("quiet", NOW)
    assert (found["contributed"], found["telemetry"], found["checkpoints"], found["shared_samples"]) == (False, 3, 1, 1)
    fleet.tick(Now(NOW.s + 60, NOW.wall_ms))
    with contextlib.closing(sqlite3.connect(tmp_path / "fleet" / "db.sqlite")) as database:
        assert [row for row in database.iterdump() if SECRET in row] == []
    assert not (tmp_path / "fleet" / "artifacts" / digest).exists()
    assert [(each.device, each.values["seq"]) for each in store.telemetry.after(0, 9) if each.values] == [
        ("cam-0", 0), ("cam-0", 1), ("cam-0", 2)
    ]  # fmt: skip
    assert store.telemetry.metric("quiet", "acc", 0, 3600) == []
    stated = receipts.verify(
        fleet.receipts.get(found["receipt"]).signed.encode(), receipts.FORGOTTEN, fleet.receipts.public_key()
    )
    assert (stated["contributed"], stated["heads_with"], stated["is_whole"]) == (False, [], True)
    assert [each["release"] for each in stated["heads_without"]] == [merged.counter]
    assert stated["deleted"] == {"checkpoints": 1, "telemetry": 3, "shared_samples": 1}
    (tmp_path / "receipt").write_text(fleet.receipts.get(found["receipt"]).signed)
    (tmp_path / "key").write_bytes(fleet.receipts.public_key())
    (tmp_path / "head").write_bytes(fleet.releases.artifact(merged.counter).path.read_bytes())
    assert check(tmp_path / "receipt", tmp_path / "key", tmp_path / "head")[0] == 0
    # What it had by then comes by no way later: not from its folder, whatever it is called, nor from a checkpoint.
    for device, update in (
        ("quiet", replace(statistics_update(5), state_id=folder)),
        ("renamed", replace(statistics_update(6), state_id=folder)),
        ("other", replace(statistics_update(7), lineage="5" * 32)),
    ):
        with pytest.raises(Unwanted, match="forgotten"):
            fleet.learning.take(device, update.encode(), NOW)
    fleet.learning.take("quiet", replace(statistics_update(5), state_id="e" * 16).encode(), NOW)


def test_who_is_forgotten_twice_has_two_receipts_and_both_name_the_heads_that_have_it_in(
    start: Start, delta_update: Make, tmp_path: Path
) -> None:
    fleet = start("fleet")
    for i in range(3):
        fleet.learning.take(f"cam-{i}", delta_update(0.1 * i, lineage=f"d{i}").encode(), NOW)
    had = {each.counter for each in fleet.merge_now(NOW)}
    fleet.registry.conn("cam-1", Conn(online=True, session=1, boot=1, ts_ms=0), NOW)
    first = fleet.forget("cam-1", NOW)
    fleet.merge_now(NOW)
    again = fleet.forget("cam-1", NOW)
    assert (again["contributed"], again["samples"], again["merge"]) == (True, 0, "none")
    (tmp_path / "key").write_bytes(fleet.receipts.public_key())
    for number in (first["receipt"], again["receipt"]):
        receipt = fleet.receipts.get(number)
        assert {each["release"] for each in receipt.statement["heads_with"]} == had
        assert receipt.statement["is_whole"] is False, "a mean of changes has it in, whenever one asks"
        (tmp_path / "receipt").write_text(receipt.signed)
        for counter in had:
            (tmp_path / "head").write_bytes(fleet.releases.artifact(counter).path.read_bytes())
            assert check(tmp_path / "receipt", tmp_path / "key", tmp_path / "head")[0] == 0
