"""``edge-fleet merge`` beside a rollout, against a coordinator's real HTTP application, and the same on its pages."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx
import pytest
from click.testing import CliRunner

from edge.cli import fleet as cli
from edge.contract.clock import Now
from edge.contract.errors import HeldError, RolloutError
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.records import Evaluation, Judge, KnownBundle
from edge.coordinator.releases.releases import add_release
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.states import RolloutState
from edge.coordinator.rollout.step import Rollout
from edge.coordinator.store.rollouts import Made
from edge.merging.merge import shipped_head
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
        store,
        core._artifacts,
        kind="head",
        digest=known.digest,
        backbone=known.backbone,
        devices=(),
        reason="t",
        now_ms=0,
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
    assert "release 2: merge of 1 device" in ask("merge", "--supersede")
    assert "superseded: release 2 takes its place" in ask("rollout", "status", "3")


def test_what_devices_think_of_a_merge_before_it_goes_out_is_said_everywhere(core: CoordinatorCore) -> None:
    store = core._store
    known: KnownBundle = store.releases.bundles()[0]
    reason = "merge of 2 devices, 80 labelled samples"
    found = core.bundles.of(known.backbone)
    assert found is not None
    digest = core._artifacts.put(shipped_head(found).encode()).digest
    release = add_release(
        store, core._artifacts, kind="head", digest=digest, backbone=known.backbone, devices=(), reason=reason, now_ms=0
    )
    plan = plans.of_document({"release": release.counter, "start": {"judges": 3}})
    store.rollouts.add(Rollout(id=3, plan=plan, kind="head", seed="", n_selected=0), [], Made("", 0))
    asking = Evaluation(rollout=3, due_s=600.0)
    store.evaluations.save(asking)
    judge = Judge(rollout=3, device="cam-1", model="m", is_inside=True)
    store.evaluations.save_judge(replace(judge, state="answered", labelled=40, both=30, only_new=4, only_old=2))
    store.evaluations.save_judge(replace(judge, device="cam-2", is_inside=False))
    store.evaluations.save_judge(replace(judge, device="cam-3", is_inside=False, state="refused", detail="not mine"))
    lines = ask("rollout", "status", "3").splitlines()
    assert lines[0].endswith("draft: devices judge its head first")
    assert lines[1:5] == [
        "devices judge its head first, 3 are needed, for 10 min more: asking",
        "  cam-1: of 40 labels only it was right on 4, only the one before on 2, both on 30, lent it what it knows",
        "  cam-2: open",
        "  cam-3: refused (not mine)",
    ]
    said = json.loads(ask("rollout", "status", "3", "--json"))["evaluation"]
    assert (said["state"], said["left_s"], said["judges"][0]["only_new"]) == ("asking", 600.0, 4)
    store.evaluations.save(replace(asking, state="unjudged", detail="not judged: 1 of 3"))
    with pytest.raises(HeldError, match=r"waits for devices that judge its head: not judged: 1 of 3.*rollout resume 3"):
        ask("rollout", "status", "3", "--wait", "5")
    assert "draft: not judged: 1 of 3" in ask("rollout", "list")
    pages = {path: httpx.Client().request("GET", path).text for path in ("/learning", "/rollouts/3", "/")}
    assert "Rollout 3 waits: too few devices have judged its head" in pages.pop("/")
    for page in pages.values():
        assert "Judged by devices before it begins" in page
        assert "not judged: 1 of 3" in page
    assert "lent it what it knows" in pages["/rollouts/3"]
    assert "draft: not judged: 1 of 3" in ask("release", "show", str(release.counter))
    assert "order=resume" in pages["/rollouts/3"]
    assert "ready" in ask("rollout", "resume", "3", "--reason", "tried it on my desk")
