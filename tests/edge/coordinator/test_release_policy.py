"""When merged heads are made, and how they go out: by labels, time, and what they gain on samples kept here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError, RolloutError
from edge.coordinator.learning.holdout import Holdout
from edge.coordinator.learning.release_policy import ReleasePolicy, When, WhenOf, of_file
from edge.coordinator.rollout.states import RolloutEvent
from edge.inference.onnx_session import OnnxSession
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.learning.statistics import HeadStatistics
from tests.support.contributions import Make, policy_of
from tests.support.light_fleet import Fleet, ends

Digits = tuple[np.ndarray, np.ndarray]
NewFleet = Callable[..., Fleet]


@pytest.fixture
def new(tmp_path: Path, digits_bundle: Path) -> Iterator[NewFleet]:
    made: list[Fleet] = []

    def make(n: int = 4, **options: Any) -> Fleet:
        options = {"auto_merge": True, "merge_delay_s": 0.0, "policy": policy_of(screen=False)} | options
        made.append(Fleet(tmp_path / str(len(made)), digits_bundle, n, ends("active"), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def features(digits_bundle: Path, digits: Digits) -> np.ndarray:
    """Of digits that the bundle was not trained on."""
    return OnnxSession(Bundle.open(digits_bundle)).features({"input": digits[0]})


def learned(bundle: Bundle, x: np.ndarray, y: np.ndarray, lineage: str, learner: str = "statistics") -> HeadUpdate:
    """What a device learned of these samples."""
    return HeadUpdate(
        learner=learner,
        backbone=bundle.manifest.backbone_digest,
        lineage=lineage,
        version=len(y),
        n_samples=len(y),
        base_release=0,
        tensors=dict(HeadStatistics.of(x, y, 10).to_tensors()),
    )


@pytest.fixture
def holdout(tmp_path: Path, digits: Digits) -> Path:
    """The last 600 of these digits, and their names."""
    np.savez(tmp_path / "holdout.npz", x=digits[0][-600:], y=np.array([str(label) for label in digits[1][-600:]]))
    return tmp_path / "holdout.npz"


def told(fleet: Fleet, name: str) -> list[str]:
    assert fleet.store is not None
    return [each.detail for each in fleet.store.events.newest(100, name=name)[::-1]]


def reasons(fleet: Fleet) -> list[str]:
    assert fleet.store is not None
    return [each.reason for each in fleet.store.releases.all()[::-1]]


def test_a_candidate_that_loses_on_samples_kept_here_is_not_released_and_a_better_one_is(
    new: NewFleet, holdout: Path, digits: Digits, features: np.ndarray
) -> None:
    fleet = new(evaluate=holdout)
    bundle, y = Bundle.open(fleet.bundle_path), digits[1]
    shuffled = np.random.default_rng(0).permutation(y[:300])
    fleet.core.learning.take("d000", learned(bundle, features[:300], shuffled, "bad").encode(), fleet.now)
    fleet.pass_time(60, 20)
    (lost,) = told(fleet, "candidate-lost")
    assert lost.startswith("merge of 1 device, 300 labelled samples: right on 0.")
    assert "of 600 samples kept here" in lost
    assert "(the shipped head): gain -" in lost
    assert reasons(fleet) == []
    assert fleet.store is not None
    assert {row.merged_version for row in fleet.store.contributions.all()} == {-1}, "what it learned still waits"
    with pytest.raises(RolloutError, match=r"nothing is merged yet: right on .* it is not released"):
        fleet.core.merge_now(fleet.now)
    fleet.core.forget("d000", fleet.now)
    fleet.core.learning.take("d001", learned(bundle, features[:600], y[:600], "good").encode(), fleet.now)
    fleet.pass_time(60, 20)
    assert reasons(fleet)[-1] == "merge of 1 device, 600 labelled samples"
    notes = fleet.store.releases.all()[0].notes
    gain = float(notes.partition("gain +")[2].split()[0])
    assert gain > 0, notes
    # What is there now is that merge: no other one gains so much over it.
    fleet.options["release_policy"] = ReleasePolicy(min_gain=0.5)
    fleet.start()
    fleet.core.learning.take("d002", learned(bundle, features[:600], y[:600], "same").encode(), fleet.now)
    fleet.pass_time(60, 20)
    assert "(release 1): gain " in told(fleet, "candidate-lost")[-1]
    assert "+50.00 asked for" in told(fleet, "candidate-lost")[-1]
    assert len(reasons(fleet)) == 1
    # Forgetting is a promise: the head without the device goes out whatever it loses.
    fleet.core.forget("d001", fleet.now)
    fleet.pass_time(60, 20)
    assert "without what was forgotten" in reasons(fleet)[-1]


def test_merged_heads_go_out_in_waves_by_a_plan_and_the_next_one_waits_for_them(
    new: NewFleet, digits: Digits, features: np.ndarray
) -> None:
    plan = {"waves": ["50 %", "100 %"], "soak": ["1 h"], "model": "off"}
    fleet = new(release_policy=ReleasePolicy(plan=plan))
    bundle, y = Bundle.open(fleet.bundle_path), digits[1]
    fleet.core.learning.take("d000", learned(bundle, features[:100], y[:100], "a").encode(), fleet.now)
    fleet.pass_time(60, 10)
    (merged,) = fleet.store.releases.all()
    shown = fleet.shown(1)
    assert (merged.devices, shown["plan"]["use"], shown["counts"]) == ((), "compete", {"active": 2, "waiting": 2})
    fleet.core.learning.take("d001", learned(bundle, features[100:200], y[100:200], "b").encode(), fleet.now)
    fleet.pass_time(1200, 300)
    assert len(reasons(fleet)) == 1, "one after another"
    fleet.pass_time(3600, 900)
    fleet.pass_time(60, 10)
    assert fleet.shown(1)["counts"] == {"active": 4}
    assert [fleet.state(each) for each in (1, 2)] == ["superseded", "soaking"]
    # A person takes part as in any other one.
    fleet.core.rollouts.order(2, RolloutEvent.REVERT, "ann", "worse", fleet.now)
    fleet.pass_time(60, 10)
    assert fleet.state(2) == "reverted"
    fleet.core.learning.take("d002", learned(bundle, features[:50], y[:50], "c").encode(), fleet.now)
    fleet.pass_time(60, 10)
    fleet.core.learning.take("d003", learned(bundle, features[:80], y[:80], "d").encode(), fleet.now)
    assert fleet.state(3) == "soaking"
    (by_hand,) = fleet.core.merge_now(fleet.now, supersede=True, who="ann")
    fleet.pass_time(60, 10)
    assert (fleet.state(3), fleet.shown(4)["release"]) == ("superseded", by_hand.counter)


def test_labels_and_time_say_when_group_by_group(new: NewFleet, digits: Digits, features: np.ndarray) -> None:
    groups = (WhenOf(of="tag.site=north", every_samples=150), WhenOf(of="tag.site=south", when="manual"))
    policy = ReleasePolicy(every="6 h", group=groups)
    fleet = new(policy=policy_of(screen=False, merge_by="tag.site"), release_policy=policy)
    bundle, y = Bundle.open(fleet.bundle_path), digits[1]
    for device, site in (("d000", "north"), ("d001", "south"), ("d002", "east")):
        fleet.core.tag(device, {"site": site}, fleet.now)

    def learn(device: str, n: int) -> list[str]:
        update = learned(bundle, features[:n], y[:n], f"l-{device}")
        fleet.core.learning.take(device, update.encode(), fleet.now)
        fleet.pass_time(40, 10)
        return [reason.partition(":")[0].removeprefix("tag.site=") for reason in reasons(fleet)]

    assert learn("d000", 100) == [], "fewer labels than are asked for"
    assert learn("d001", 100) == [], "nobody asked"
    assert learn("d002", 100) == ["east"], "the first of its group"
    assert learn("d002", 120) == ["east"], "too soon"
    assert learn("d000", 160) == ["east", "north"]
    fleet.start()
    fleet.pass_time(3600, 1800)
    assert learn("d001", 140) == ["east", "north"]
    fleet.pass_time(6 * 3600, 3600)
    fleet.pass_time(20, 10)
    assert learn("d001", 150) == ["east", "north", "east"], "by itself, when the time has come"
    assert [each.devices for each in fleet.core.merge_now(fleet.now)] == [("tag.site=south",)], "and when asked"


def test_devices_without_the_tag_of_groups_are_one_that_a_plan_reaches(
    new: NewFleet, digits: Digits, features: np.ndarray
) -> None:
    plan = {"waves": ["100 %"], "soak": ["0 s"], "model": "off"}
    fleet = new(policy=policy_of(screen=False, merge_by="tag.site"), release_policy=ReleasePolicy(plan=plan))
    fleet.core.tag("d000", {"site": "north"}, fleet.now)
    bundle, y = Bundle.open(fleet.bundle_path), digits[1]
    fleet.core.learning.take("d001", learned(bundle, features[:100], y[:100], "a").encode(), fleet.now)
    fleet.pass_time(60, 10)
    assert {each["device"] for each in fleet.shown(1)["targets"]} == {"d001", "d002", "d003"}
    assert (fleet.state(1), told(fleet, "merge-failed")) == ("completed", [])


def test_changes_whose_head_never_arrived_are_merged_again(new: NewFleet, delta_update: Make) -> None:
    """A rollout that is aborted took nothing from anybody: what was merged into its head is in no other one."""
    fleet = new(release_policy=ReleasePolicy(plan={"waves": ["50 %", "100 %"], "soak": ["1 h"], "model": "off"}))
    fleet.core.learning.take("d000", delta_update(1.0, lineage="a").encode(), fleet.now)
    fleet.pass_time(40, 10)
    fleet.core.rollouts.order(1, RolloutEvent.ABORT, "ann", "no", fleet.now)
    fleet.pass_time(40, 10)
    assert len(reasons(fleet)) == 1, "nothing came since, so nothing is merged anew"
    fleet.core.learning.take("d001", delta_update(3.0, lineage="b").encode(), fleet.now)
    fleet.pass_time(40, 10)
    assert reasons(fleet)[-1] == "merge of 2 devices, 20 labelled samples"
    fleet.pass_time(3700, 900)
    fleet.pass_time(20, 10)
    assert fleet.state(2) == "completed"
    # What went through all waves is what the next change is added to.
    fleet.core.learning.take("d002", delta_update(5.0, lineage="c", base_release=2).encode(), fleet.now)
    fleet.pass_time(40, 10)
    assert fleet.store is not None
    head = HeadRelease.decode((fleet.folder / "artifacts" / fleet.store.releases.all()[0].digest).read_bytes(), "")
    shipped = Bundle.open(fleet.bundle_path).head_parameters()
    for name, array in head.parameters.items():
        np.testing.assert_allclose(array, shipped[name] + 2.0 + 5.0, rtol=1e-4)


def test_a_clock_that_was_set_back_makes_nobody_wait_for_ever() -> None:
    when = When(every="6 h")
    assert when.left_s([], 1_000_000, 1_000_000 + 3_600_000) == 5 * 3600
    assert when.left_s([], 1_000_000, 500_000) == 0
    assert when.left_s([], 0, 500_000) == 0


def test_a_policy_or_samples_that_cannot_be_used_are_told(
    tmp_path: Path, digits_bundle: Path, digits: Digits, holdout: Path
) -> None:
    file = tmp_path / "policy.toml"
    for text, why in (
        ('evry = "6 h"\nmin_gain = 2', r"evry is not known; did you mean 'every'\?.*min_gain must be from -1"),
        ('[plan]\nwavs = ["100 %"]', "wavs is not known; did you mean 'waves'"),
        ('[plan]\nuse = "replace"', r"plan\.use: it is the merge's own"),
        ('[[group]]\nof = "tag.site=a"\n', r"group tag\.site=a: groups are made by --merge-by 'tag.model'"),
        ('[[group]]\nof = "north"\n', "expected a group such as|must be a group such as"),
        ("[" * 5000, "nested too deeply|expected TOML"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=why):
            of_file(file, "tag.model")
    bundle, path = Bundle.open(digits_bundle), tmp_path / "other.npz"
    for arrays, why in (
        ({"x": digits[0][:30]}, "and y; got x"),
        ({"x": digits[0][:5], "y": digits[1][:5]}, "expected 20 samples at least, got 5"),
        ({"x": digits[0][:30], "y": digits[1][:25]}, "expected 25 samples, as many as y, got 30"),
        ({"a": digits[0][:30], "y": digits[1][:30]}, "expected the arrays input and y, got a"),
        ({"x": digits[0][:30], "y": digits[1][:30] + 10}, "labels must lie in"),
        ({"x": digits[0][:30], "y": np.array(["cat"] * 30)}, "none of the names in y is a class of it"),
        ({"x": digits[0][:30, :, :4], "y": digits[1][:30]}, "input"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ConfigError, match=why):
            Holdout(path).prepare(bundle)
    assert Holdout(holdout).fault(bundle) == ""
