"""``edge-fleet forget`` against a coordinator's real HTTP application; only the wire between them is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge.channel.messages import Birth, Telemetry
from edge.cli import fleet as cli
from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.contract.errors import RolloutError
from edge.coordinator.core import CoordinatorCore
from edge.learning.exchange import HeadUpdate
from edge.learning.statistics import HeadStatistics

NOW = Now(1000.0, 1_800_000_000_000)  # as in conftest.py


@pytest.fixture
def update(digits_bundle: Path) -> Callable[[str, str], HeadUpdate]:
    bundle = Bundle.open(digits_bundle)

    def make(learner: str, lineage: str) -> HeadUpdate:
        tensors = {name: np.ones_like(array) for name, array in bundle.head_parameters().items()}
        if learner == "statistics":
            x, y = np.random.default_rng(0).normal(0, 1, (50, 64)), np.arange(50) % 10
            tensors = HeadStatistics.of(x, y, 10).to_tensors()
        return HeadUpdate(
            learner=learner,
            backbone=bundle.manifest.backbone_digest,
            lineage=lineage,
            version=50,
            n_samples=50,
            base_release=0,
            tensors=dict(tensors),
        )

    return make


def ask(*arguments: str) -> str:
    done = CliRunner().invoke(cli.fleet, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_statistics_are_forgotten_and_the_next_merge_is_told(
    core: CoordinatorCore, update: Callable[[str, str], HeadUpdate]
) -> None:
    core.learning.take("camera-1", update("statistics", "l").encode(), NOW)
    assert "release 1: merge of 1 device" in ask("merge")
    said = ask("forget", "camera-1")
    assert "camera-1: 1 contributions forgotten, 50 labelled samples" in said
    assert "as if it had never been there; it waits for `edge-fleet merge`" in said
    assert "cannot be undone" not in said
    assert "release 2: the shipped head, without what was forgotten" in ask("merge")
    assert "forgotten" in ask("events")


def test_merged_changes_are_said_to_stay(core: CoordinatorCore, update: Callable[[str, str], HeadUpdate]) -> None:
    core.learning.take("camera-1", update("delta", "l").encode(), NOW)
    ask("merge")
    said = ask("forget", "camera-1")
    assert "a mean that was merged cannot be undone" in said
    assert "only future merges leave it out" in said
    assert "never been there" not in said


def test_change_that_was_not_merged_leaves_nothing_to_undo(
    core: CoordinatorCore, update: Callable[[str, str], HeadUpdate]
) -> None:
    core.learning.take("camera-1", update("delta", "l").encode(), NOW)
    assert "cannot be undone" not in ask("forget", "camera-1")
    assert "nothing new to merge" in ask("merge")


def test_unknown_device_is_refused(core: CoordinatorCore) -> None:
    del core
    with pytest.raises(RolloutError, match="nothing that no/body learned is here, and no such device is known"):
        ask("forget", "no/body")


def test_who_never_contributed_is_forgotten_and_that_it_is_in_no_head_is_said(core: CoordinatorCore) -> None:
    birth = Birth(
        agent_version="", boot=1, session=1, ts_ms=0, profile="", hardware={}, bundle="", backbone="b" * 64, head="",
        release=0, n_labels=2, limits={}, state_id="f" * 16,
    )  # fmt: skip
    core.dialogue.said("camera-1", birth, NOW)
    core.dialogue.said("camera-1", Telemetry(values={"boot": 1, "seq": 1, "acc": 0.5}), NOW)
    said = ask("forget", "camera-1", "--reason", "asked to be")
    assert said.startswith("camera-1: it never contributed, so nothing of it is in any head\ndeleted: 1 messages of")
    assert "never contributed: nothing of it is in any head" in ask("receipt", "show", "1")
    assert "deleted, too: 1 messages of telemetry" in ask("receipt", "show", "1")
    found = json.loads(ask("device", "decommission", "camera-1", "--forget", "--json"))
    assert found["forgotten"]["receipt"] == 2
