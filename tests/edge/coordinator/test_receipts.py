"""Forgetting: the head is that of a fleet that never saw the device, and the receipt says so to anybody."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.contract import receipts
from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.contract.errors import BundleError, RolloutError
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.core import CoordinatorCore
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
