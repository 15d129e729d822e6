"""``edge-fleet merge`` beside a rollout, against a coordinator's real HTTP application, and the same on its pages."""

from __future__ import annotations

import json

import httpx
import pytest
from click.testing import CliRunner

from edge.cli import fleet as cli
from edge.contract.clock import Now
from edge.contract.errors import RolloutError
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.records import KnownBundle
from edge.coordinator.releases.releases import add_release
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.states import RolloutState
from edge.coordinator.rollout.step import Rollout
from edge.coordinator.store.rollouts import Made
from tests.support.contributions import Make, bundle, statistics_update

__all__ = ["bundle", "statistics_update"]


def ask(*arguments: str) -> str:
    done = CliRunner().invoke(cli.fleet, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_what_waits_is_said_and_a_merge_by_hand_needs_the_word(
    core: CoordinatorCore, statistics_update: Make, moment: Now
) -> None:
    store = core._store
    known: KnownBundle = store.releases.bundles()[0]
    assert ask("merge", "--status") == "no merge waits for a rollout\n"
    release = add_release(
        store, kind="head", digest=known.digest, backbone=known.backbone, devices=(), reason="t", now_ms=0
    )
    plan = plans.of_document({"release": release.counter})
    going = Rollout(
        id=3, plan=plan, kind="head", seed="", n_selected=0, state=RolloutState.HELD, reason="few-judges: 2"
    )
    store.rollouts.add(going, [], Made("ann", 0))
    core.learning.take("camera-1", statistics_update(1).encode(), moment)
    with pytest.raises(RolloutError, match=r"would overtake rollout 3 of release 1 \(held\).*give --supersede"):
        ask("merge")
    assert core.learning._turns.must_wait(known.backbone, moment)[0]
    assert ask("merge", "--status").startswith(f"a merge for {known.backbone[:12]} waits for rollout 3 since ")
    assert json.loads(ask("merge", "--status", "--json")) == [
        {"backbone": known.backbone, "rollout": 3, "since_ms": moment.wall_ms}
    ]
    assert "a merge of what devices learned waits for it since" in ask("rollout", "status", "3")
    pages = {path: httpx.Client().request("GET", path).text for path in ("/learning", "/rollouts/3", "/merge")}
    assert "A merge waits for rollout 3 to end, since" in pages["/learning"]
    assert "waits until this has ended, since" in pages["/rollouts/3"]
    assert "rollout 3 of release 1 (held)" in pages["/merge"]
    assert 'name="supersede"' in pages["/merge"]
    assert "release 2: merge of 1 devices" in ask("merge", "--supersede")
    assert "superseded: release 2 takes its place" in ask("rollout", "status", "3")
