"""What a release is compared by: only labels that somebody trusts count as pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge.contract.bundle import Bundle
from edge.learning.exchange import HeadRelease
from tests.support.fleet import SimulatedFleet


def test_of_labels_that_come_together_those_of_weight_0_are_no_pairs(tmp_path: Path, digits_bundle: Path) -> None:
    fleet = SimulatedFleet(tmp_path, digits_bundle, ["one"], auto_merge=False)
    try:
        fleet.run(2.0)
        model = fleet.agents["one"].host.model
        head = tmp_path / "head"
        backbone = Bundle.open(digits_bundle).manifest.backbone_digest
        parameters = model.live_head().parameters
        head.write_bytes(HeadRelease(backbone=backbone, parameters=parameters, origin="test", n_samples=1).encode())
        assert fleet.coordinator is not None
        kept = fleet.coordinator.add_artifact(head.read_bytes(), head)
        fleet.coordinator.push(kept["digest"], kept["kind"], kept["backbone"], [], "test", fleet.now)
        fleet.until("live", lambda: model.state.shadow is not None)
        assert model.state.shadow is not None
        before = model.state.shadow.pairs.labelled
        x = np.random.default_rng(0).random((4, 1, 8, 8), np.float32)
        model.learn(x, np.array([0, 1, 2, 3]), np.array([1.0, 0.0, 0.0, 0.5], np.float32))
        assert model.state.shadow.pairs.labelled == before + 2
    finally:
        fleet.close()
