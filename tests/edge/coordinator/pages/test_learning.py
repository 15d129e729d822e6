"""What a merge gained stands where people look for it, by device, and nothing is called merged that is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge.agent import OnDeviceModel
from edge.agent.model import releases
from edge.channel.messages import State
from edge.contract.bundle import Bundle
from edge.coordinator.pages.device_view import device as device_page
from edge.coordinator.pages.learning_view import learning, verdict
from edge.coordinator.pages.release_view import release as release_page
from edge.coordinator.pages.render import whole
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.learning.statistics import HeadStatistics
from edge.learning.trial import OVERTAKEN
from tests.edge.coordinator.test_rollouts import gains
from tests.support.contributions import samples
from tests.support.light_fleet import Fleet


def test_a_merge_says_what_it_gains_per_device_and_up_to_which_label_and_what_each_trial_said(
    tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = Fleet(tmp_path, digits_bundle, 4, gains(0.05))
    store, names = fleet.store, Bundle.open(digits_bundle).manifest.class_names
    assert store is not None

    def learn(i: int, n: int) -> None:
        x, y = samples(names, i, n)
        update = HeadUpdate(
            learner="statistics", backbone=fleet.backbone, lineage=f"lineage-{i}", version=n, n_samples=n,
            base_release=0, tensors=dict(HeadStatistics.of(x, y, 10).to_tensors()), model="digits",
        )  # fmt: skip
        fleet.core.learning.take(f"d{i:03}", update.encode(), fleet.now)

    for i in range(3):
        learn(i, 60)
    (made,) = fleet.core.merge_now(fleet.now)
    learn(0, 80)
    with OnDeviceModel.open(digits_bundle) as model:
        head = HeadRelease.decode(fleet.core.releases.artifact(made.counter).path.read_bytes(), "the merge")
        releases.take(model, releases.look_at(model, head, competes=True), made.counter)
        model.learn(np.ones((3, 1, 8, 8), np.float32), [0, 1, 2])
        judged = releases.judge_taken(model, was_judged=True, labels=0, counter=made.counter)
    said = ("trial: accuracy 0.953 against 0.906 on 64 recent labels", f"probation: {judged.reason}")
    assert "the merge competes" in judged.reason
    # After a restart it says the state and no more why.
    states = (("probation", said[0]), ("active", said[1]), ("active", ""))
    for seq, (state, detail) in enumerate(states):
        message = State(
            ts_ms=0, seq=900 + seq, slot="head", state=state, release=made.counter, digest=made.digest, detail=detail,
            model="digits", state_id="",
        )  # fmt: skip
        fleet.devices["d001"].say("up/state", message)
    found = learning(store, fleet.core.releases)
    (merge,) = found["merges"]
    rows = {row["device"]: row for row in merge["verdicts"]}
    assert merge["inside"].outside.devices == 3
    assert {name: row["labels"] for name, row in rows.items()} == {"d000": 60, "d001": 60, "d002": 60}
    assert all(row["gain"] > 0.5 for row in rows.values()), "the shipped head knows nothing of these samples"
    assert (rows["d001"]["trial"], rows["d001"]["detail"], rows["d001"]["verdict"]) == (*said, "competes")
    assert (rows["d002"]["trial"], rows["d002"]["verdict"]) == ("", "unsaid")
    frame = {
        "fleet": "lab", "version": "1", "path": "/", "me": type("Me", (), {"is_proved": False}), "can": False,
        "form_token": "", "now_ms": fleet.now.wall_ms, "line": fleet.core.dialogue.line.state,
    }  # fmt: skip
    shown = whole("learning.html", {**frame, **found})
    assert shown.count(f"{100 * rows['d000']['gain']:+.1f} points") >= 1
    assert said[0] in shown
    # The page of the release says the same of the trial, and does not call it unjudged.
    of = release_page(store, fleet.core.releases, None, made.counter)
    assert said[0] in whole("release.html", {**frame, **of})
    assert {part["gain"] for part in of["made_of"]["parts"]} == {row["gain"] for row in rows.values()}
    # What came after the merge is not in it, on the page of the device either.
    own = device_page(store, "d000", "hour", (), fleet.core.dialogue.line.state, fleet.now)
    assert "up to label 60, <b>20 newer ones are not merged</b>" in whole("device.html", {**frame, **own})
    fleet.close()


def test_a_head_that_the_next_one_overtook_was_not_judged() -> None:
    assert verdict("rolled-back", OVERTAKEN) == "not-judged"
    assert verdict("rolled-back", "accuracy 0.5 against 0.9") == "worse"


def test_who_waited_for_a_merge_and_is_in_one_by_now_does_not_wait(tmp_path: Path, digits_bundle: Path) -> None:
    fleet = Fleet(tmp_path, digits_bundle, 3, gains(0.05))
    assert fleet.store is not None
    names = Bundle.open(digits_bundle).manifest.class_names
    for i, name in enumerate(("d000", "d001")):
        for n in (3, 40) if name == "d000" else (3, 4):
            x, y = samples(names, i, n)
            update = HeadUpdate(
                learner="statistics", backbone=fleet.backbone, lineage=name, version=n, n_samples=n, base_release=0,
                tensors=dict(HeadStatistics.of(x, y, 10).to_tensors()), model="digits",
            )  # fmt: skip
            fleet.core.learning.take(name, update.encode(), fleet.now)
            fleet.core.events.note(name, "merge-waits", f"{n} labelled samples, 10 are needed", fleet.now)
    assert fleet.core.merge_now(fleet.now)
    shown = learning(fleet.store, fleet.core.releases)["faults"]
    assert [(each.device, each.detail[:1]) for each in shown if each.device] == [("d001", "4")]
    fleet.close()
