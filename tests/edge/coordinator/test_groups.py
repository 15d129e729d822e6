"""Groups with real agents on a broker in memory: each device gets the head of its group."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge.agent.model.on_device_model import OnDeviceModel
from edge.learning.exchange import HeadRelease
from edge.merging.policy import MergePolicy
from tests.support.fleet import SimulatedFleet


def test_devices_get_the_head_of_their_group(tmp_path: Path, digits_bundle: Path) -> None:
    model = OnDeviceModel.open(digits_bundle)
    shape = model.manifest.inputs[0].sample_shape
    fleet = SimulatedFleet(
        tmp_path,
        digits_bundle,
        ["a-1", "a-2", "b-1", "none"],
        policy=MergePolicy(merge_by="tag.model"),
        auto_merge=False,
    )
    try:
        for seed, name in enumerate(("a-1", "a-2", "b-1")):
            x = np.random.default_rng(seed).random((30, *shape), np.float32)
            y = model.predict(x).argmax(axis=1)
            fleet.teach(name, x, y if name[0] == "a" else (y + 1) % 10)
        fleet.until("uploaded", lambda: len(fleet.store.contributions.all()) == 3)
        assert fleet.coordinator is not None
        for name in ("a-1", "a-2", "b-1"):
            fleet.coordinator.tag(name, {"model": name[0]}, fleet.now)
        releases = {row.devices[0]: row for row in fleet.coordinator.merge_now(fleet.now)}
        assert set(releases) == {"tag.model=a", "tag.model=b"}
        wanted = {name: releases[f"tag.model={name[0]}"].counter for name in ("a-1", "a-2", "b-1")}
        fleet.until("dealt with", lambda: all(fleet.device(name).release == n for name, n in wanted.items()))
        assert fleet.device("none").release == 0, "a device in no group keeps what it has"
        for name, n_devices in (("tag.model=a", 2), ("tag.model=b", 1)):
            data = (tmp_path / "coordinator" / "artifacts" / releases[name].digest).read_bytes()
            assert len(HeadRelease.decode(data, name).included) == n_devices
    finally:
        model.close()
        fleet.close()
