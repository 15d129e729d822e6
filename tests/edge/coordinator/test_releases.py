"""Which release is for whom; counters; artifacts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.contract.errors import RolloutError
from edge.coordinator.records import Device, KnownDevice, Model
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.releases.releases import add_release
from edge.coordinator.releases.wanted import desired, wanted
from edge.coordinator.store.store import Store

COMMON: dict[str, Any] = {"digest": "x", "reason": "r", "now_ms": 1}


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def test_counters_are_above_all_that_the_database_or_a_device_has_seen(store: Store, artifacts: ArtifactStore) -> None:
    def add() -> int:
        return add_release(store, artifacts, kind="head", backbone="b", devices=["*"], **COMMON).counter

    assert [add(), add()] == [1, 2]
    device = KnownDevice(device=Device(id="d"), models=(Model(device="d", model="m", release=57),))
    store.devices.keep(device, None)
    assert add() == 58, "after yesterday's backup was restored"
    store.devices.keep(replace(device, models=(Model(device="d", model="m", release=2**60),)), device)
    assert add() == 59, "a device cannot use the counters up"


def test_the_newest_head_of_the_backbone_is_for_those_whom_it_names(store: Store, artifacts: ArtifactStore) -> None:
    for devices in (["*"], ["d"]):
        add_release(store, artifacts, kind="head", backbone="b", devices=devices, **COMMON)
    models = [Model(device=name, model="m", backbone=b) for name, b in ("db", "eb", "eo")]
    found = [desired(store.releases.all(), model, {}, is_only=True) for model in models]
    assert [each and each.counter for each in found] == [2, 1, None]


def test_a_release_is_for_the_model_that_it_names_or_that_it_fits(store: Store, artifacts: ArtifactStore) -> None:
    models = {name: Model(device="d", model=name, backbone="b") for name in ("digits", "voice")}

    def counters(*, is_only: bool = False) -> list[int]:
        found = [desired(store.releases.all(), model, {}, is_only=is_only) for model in models.values()]
        return [0 if each is None else each.counter for each in found]

    def add(kind: str, model: str, backbone: str = "b") -> None:
        add_release(store, artifacts, kind=kind, backbone=backbone, model=model, devices=["*"], **COMMON)

    add("bundle", "")
    assert counters() == [0, 0], "an older release, for devices with one model"
    assert counters(is_only=True) == [1, 1]
    add("bundle", "voice")
    assert counters() == [0, 2]
    known = KnownDevice(device=Device(id="d", born=True), models=tuple(models.values()))
    assert [(each.model.model, each.level) for each in wanted(store.releases.all(), known, {})] == [("voice", "voice")]
    assert not wanted(store.releases.all(), replace(known, device=Device(id="d")), {}), "it has not said what it is"
    models["voice"] = replace(models["voice"], release=2)
    add("head", "")
    assert counters() == [3, 3]
    add("head", "digits")
    assert counters() == [4, 3]
    add("head", "", backbone="e")
    assert counters() == [4, 3]


def test_artifact_changed_on_disk_is_not_served(tmp_path: Path) -> None:
    """Fault 34."""
    artifacts = ArtifactStore(tmp_path)
    digest = artifacts.put(b"x" * 100_000).digest
    assert ArtifactStore(tmp_path).get(digest).size_bytes == 100_000
    (tmp_path / digest).write_bytes(b"y" * 100_000)
    with pytest.raises(RolloutError, match="changed on disk"):
        ArtifactStore(tmp_path).get(digest)
    with pytest.raises(RolloutError, match="missing"):
        artifacts.get("0" * 64)
    with pytest.raises(RolloutError, match="missing"):
        artifacts.get("../../etc/passwd")
