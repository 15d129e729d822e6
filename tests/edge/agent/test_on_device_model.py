"""`OnDeviceModel`: the Python face, and what it keeps."""

from __future__ import annotations

import dataclasses
import doctest
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent import OnDeviceModel
from edge.agent.model import candidates, on_device_model, releases
from edge.agent.model.answering import LearningLimits
from edge.channel import confusion
from edge.contract.errors import BundleError, ConfigError, LearningError, ResourceError
from edge.inference.trainers import Opened, open_trainer
from edge.learning.events import Contributed, HeadOffered, HeadReplaced
from edge.learning.exchange import HeadRelease
from edge.learning.trial import Finding
from tests.support.contributions import merged_head
from tests.support.killed import kill
from tests.support.values import same

ROOT = Path(__file__).parents[3]
LEARNERS = ["statistics", "sgd", "auto"]


def take(model: OnDeviceModel, release: HeadRelease, counter: int, *, competes: bool | None = None) -> None:
    """As the agent does it, whatever the judgement."""
    offer = releases.look_at(model, release, competes=release.competes if competes is None else competes)
    releases.take(model, offer, counter)


def data(bundle: Path, n: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    model = OnDeviceModel.open(bundle)
    x = np.random.default_rng(seed).random((n, *model.manifest.inputs[0].sample_shape), np.float32)
    return x, model.predict(x).argmax(axis=1)


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """A time in which no file may become larger."""

    @contextmanager
    def limited() -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)

    return limited


def test_predicts_logits(digits_bundle: Path) -> None:
    model = OnDeviceModel.open(digits_bundle)
    logits = model.predict(data(digits_bundle)[0])
    assert logits.shape == (50, 10)
    assert logits.dtype == np.float32


@pytest.mark.parametrize("learner", LEARNERS)
def test_learns_and_keeps_it_over_a_restart(tmp_path: Path, digits_bundle: Path, learner: str) -> None:
    x, y = data(digits_bundle)
    model = OnDeviceModel.open(digits_bundle, tmp_path, learner=learner, mixture=False)
    shipped = model.predict(x)
    model.learn(x, (y + 1) % 10)
    learned = model.predict(x)
    assert not np.array_equal(shipped, learned)
    model.close()
    again = OnDeviceModel.open(digits_bundle, tmp_path, learner=learner, mixture=False)
    np.testing.assert_array_equal(again.predict(x), learned)
    assert again.n_samples == 50
    again.close()


@pytest.mark.parametrize("executor", ["numpy", "onnx"])
@pytest.mark.parametrize("learner", LEARNERS)
def test_restart_from_the_journal_equals_having_gone_on(
    tmp_path: Path, digits_bundle: Path, learner: str, executor: str
) -> None:
    """No snapshot at all: the journal alone gives the same value, bit for bit (with one executor)."""
    x, y = turned_labels(120)
    model = OnDeviceModel.open(digits_bundle, tmp_path / "a", learner=learner, executor=executor)
    for i in range(0, 120, 5):
        model.learn(x[i : i + 5], y[i : i + 5])
    expected = model.predict(x)
    assert model.learned.mixture.believed not in ("trusted", "shipped")
    kill(model)
    again = OnDeviceModel.open(digits_bundle, tmp_path / "a", learner=learner, executor=executor)
    np.testing.assert_array_equal(again.predict(x), expected)
    assert same(again.learned, model.learned)
    again.close()


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_contribution_that_only_the_journal_knows_counts_once(
    tmp_path: Path, digits_bundle: Path, learner: str
) -> None:
    x, y = turned_labels(90)

    def up_to_the_merge(folder: Path, *, is_killed: bool) -> OnDeviceModel:
        model = OnDeviceModel.open(digits_bundle, folder, learner=learner, mixture=False)
        model.learn(x[:30], y[:30])
        sent = releases.contribution(model)
        model.learn(x[30:60], y[30:60])
        assert not model.state.is_safe
        assert model.state.journal_suffices
        model.state.sync()
        assert model.state.is_safe
        if is_killed:
            kill(model)
            model = OnDeviceModel.open(digits_bundle, folder, learner=learner, mixture=False)
            assert not model.state.warnings
        merged = merged_head(model.bundle, [sent])
        take(model, merged, 1)
        model.learn(x[60:], y[60:])
        return model

    found = up_to_the_merge(tmp_path / "a", is_killed=True)
    expected = up_to_the_merge(tmp_path / "b", is_killed=False)
    np.testing.assert_allclose(found.predict(x), expected.predict(x), rtol=1e-4, atol=1e-4)
    assert found.n_samples == expected.n_samples == 90
    found.close()
    expected.close()


def test_labels_that_wait_are_as_safe_as_those_that_were_learned(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned_labels(60)
    twin = OnDeviceModel.open(digits_bundle, learner="statistics", mixture=False)
    twin.learn(x, y)

    def taught(folder: str) -> OnDeviceModel:
        model = OnDeviceModel.open(digits_bundle, tmp_path / folder, learner="statistics", mixture=False)
        for i in range(60):
            model.predict_sample(f"s{i}", x[i], 0.0)
            assert model.join_label(f"s{i}", int(y[i]), 0.0, later=i >= 40)
        assert (model.n_samples, len(model.state.waiting)) == (40, 20)
        return model

    killed = taught("killed")
    kill(killed)
    sent = taught("sent")
    assert releases.contribution(sent).version == 40
    kill(sent)
    closed = taught("closed")
    closed.close()
    for folder in ("killed", "sent", "closed"):
        again = OnDeviceModel.open(digits_bundle, tmp_path / folder, learner="statistics", mixture=False)
        assert (again.n_samples, len(again.state.waiting), again.state.warnings) == (60, 0, [])
        np.testing.assert_allclose(again.predict(x), twin.predict(x), rtol=1e-4, atol=1e-4)
        again.close()
    later = taught("later")
    assert later.learn_next()
    later.learn(x[:1], y[:1])  # after those that wait, as a restart would learn them
    assert (later.n_samples, len(later.state.waiting), later.metrics.labels) == (61, 0, 61)
    assert not later.learn_next()
    expected = later.predict(x)
    kill(later)
    again = OnDeviceModel.open(digits_bundle, tmp_path / "later", learner="statistics", mixture=False)
    np.testing.assert_array_equal(again.predict(x), expected)
    again.close()


def test_a_merge_that_comes_while_labels_wait_counts_each_once(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned_labels(90)

    def run(folder: str, *, later: bool, is_killed: bool) -> OnDeviceModel:
        model = OnDeviceModel.open(digits_bundle, tmp_path / folder, learner="statistics", mixture=False)
        model.learn(x[:30], y[:30])
        for i in range(30, 60):
            model.predict_sample(f"s{i}", x[i], 0.0)
            model.join_label(f"s{i}", int(y[i]), 0.0, later=later)
            if i == 40:
                sent = releases.contribution(model)
        if is_killed:
            kill(model)
            model = OnDeviceModel.open(digits_bundle, tmp_path / folder, learner="statistics", mixture=False)
        while model.learn_next():
            pass
        take(model, merged_head(model.bundle, [sent]), 1)
        model.learn(x[60:], y[60:])
        return model

    expected = run("a", later=False, is_killed=False)
    for name, is_killed in (("b", False), ("c", True)):
        found = run(name, later=True, is_killed=is_killed)
        assert found.n_samples == 90
        np.testing.assert_allclose(found.predict(x), expected.predict(x), rtol=1e-4, atol=1e-4)
        found.close()
    expected.close()


def test_without_a_folder_nothing_is_kept(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = data(digits_bundle)
    before = sorted(tmp_path.rglob("*"))
    model = OnDeviceModel.open(digits_bundle)
    model.learn(x, y)
    model.close()
    assert sorted(tmp_path.rglob("*")) == before
    assert OnDeviceModel.open(digits_bundle).n_samples == 0


@pytest.mark.parametrize("learner", LEARNERS)
def test_refused_samples_change_nothing_in_memory_or_on_disk(tmp_path: Path, digits_bundle: Path, learner: str) -> None:
    x, y = data(digits_bundle)
    model = OnDeviceModel.open(digits_bundle, tmp_path, learner=learner)
    model.learn(x, y)
    before, files = model.learned, {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    bad = x.copy()
    bad[3] = np.nan
    for samples, labels in (
        (bad, y),
        (x[..., :2], y),
        (x, y[:-1]),
        (x, y.astype(np.float32)),
        (x, np.full(50, 10)),
        (x, np.full(50, -1)),
        (np.array(["a"] * 50), y),
    ):
        with pytest.raises(LearningError):
            model.learn(samples, labels)
    assert model.learned is before
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files
    model.close()


def test_statistics_learner_needs_a_linear_head(mlp_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="suitable: auto, sgd, sgd-plain, layered"):
        OnDeviceModel.open(mlp_bundle, learner="statistics")
    model = OnDeviceModel.open(mlp_bundle)
    assert (model.learning.kind, model.learning.learners) == ("delta", ("layered", "sgd"))


@pytest.mark.parametrize("learner", ["auto", "layered", "sgd"])
def test_mlp_head_learns(mlp_bundle: Path, learner: str) -> None:
    model = OnDeviceModel.open(mlp_bundle, learner=learner)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, 784)).astype(np.float32)
    y = rng.integers(0, 10, 300)
    x = centres[y] + 0.3 * rng.standard_normal((300, 784)).astype(np.float32)
    before = (model.predict(x).argmax(axis=1) == y).mean()
    model.learn(x, y)
    after = (model.predict(x).argmax(axis=1) == y).mean()
    assert before < 0.4
    assert after > 0.9


def test_state_of_another_learner_is_put_aside_and_comes_back(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = data(digits_bundle)
    model = OnDeviceModel.open(digits_bundle, tmp_path, learner="sgd", mixture=False)
    model.learn(x, y)
    learned = model.predict(x)
    model.close()
    other = OnDeviceModel.open(digits_bundle, tmp_path, learner="statistics")
    assert other.n_samples == 0
    assert "sgd was put aside; starting anew" in other.state.warnings[0]
    other.learn(x[:7], y[:7])
    kill(other)
    again = OnDeviceModel.open(digits_bundle, tmp_path, learner="sgd", mixture=False)
    assert "going on from what they had learned" in again.state.warnings[0]
    assert again.n_samples == 50
    np.testing.assert_array_equal(again.predict(x), learned)
    again.close()
    back = OnDeviceModel.open(digits_bundle, tmp_path, learner="statistics")
    assert back.n_samples == 7
    back.close()


def test_read_only_takes_what_is_there_and_changes_nothing(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = data(digits_bundle)
    with pytest.raises(ConfigError, match="no state folder"):
        OnDeviceModel.open(digits_bundle, tmp_path / "typo", read_only=True)
    assert not (tmp_path / "typo").exists()
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="holds nothing"):
        OnDeviceModel.open(digits_bundle, tmp_path / "other", read_only=True)
    model = OnDeviceModel.open(digits_bundle, tmp_path / "s", learner="ridge")
    model.learn(x, y)
    learned = model.predict(x)
    model.close()
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    found = OnDeviceModel.open(digits_bundle, tmp_path / "s", read_only=True)
    np.testing.assert_array_equal(found.predict(x), learned)
    found.learn(x[:3], y[:3])
    found.close()
    assert {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()} == before


def test_what_was_learned_with_competition_goes_on_without_and_back(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned_labels(200)
    OnDeviceModel.open(digits_bundle, tmp_path).close()
    model = OnDeviceModel.open(digits_bundle, tmp_path, mixture=False)
    model.learn(x, y)
    head = model.learning.parameters(model.learned, "statistics")
    np.testing.assert_array_equal(model.predict(x), model.learning.run(model.answering.features(x), head))
    model.close()
    again = OnDeviceModel.open(digits_bundle, tmp_path)
    assert (again.predict(x).argmax(axis=1) == y).mean() > 0.95, "who competes was judged meanwhile"
    again.close()


def test_labels_that_are_not_trusted_at_all_change_nothing(digits_bundle: Path) -> None:
    x, y = turned_labels(128)
    model, twin = (OnDeviceModel.open(digits_bundle, executor="numpy") for _ in range(2))
    for each in (model, twin):
        each.learn(x[:64], y[:64])
    model.learn(x[64:], (y[64:] + 1) % 10, np.zeros(64))
    assert model.metrics.accuracy == twin.metrics.accuracy
    assert model.learned.mixture is not twin.learned.mixture
    for field in ("mixture", "recent", "drift", "usual", "temperature", "trusted"):
        assert same(getattr(model.learned, field), getattr(twin.learned, field)), field
    solved = (each.learning.parameters(each.learned, "statistics") for each in (model, twin))
    for one, other in zip(*(found.values() for found in solved), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_damaged_record_inside_the_journal_costs_itself_only(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = data(digits_bundle)
    model = OnDeviceModel.open(digits_bundle, tmp_path, learner="statistics")
    for i in range(20):
        model.learn(x[i : i + 1], y[i : i + 1])
    kill(model)
    path = max(tmp_path.rglob("journal-*.bin"), key=lambda each: each.stat().st_size)
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    again = OnDeviceModel.open(digits_bundle, tmp_path, learner="statistics")
    assert again.n_samples == 19
    assert "damaged" in again.state.warnings[0]
    assert path.with_suffix(".damaged").read_bytes() == content
    again.close()


def test_a_batch_whose_middle_cannot_be_learned_is_after_a_restart_as_before_it(
    tmp_path: Path, mlp_bundle: Path
) -> None:
    x, y = data(mlp_bundle, 6)
    model = OnDeviceModel.open(mlp_bundle, tmp_path, learner="sgd-plain", mixture=False)
    learner = model.learning.machine("sgd-plain")
    learn_together = learner.learn_together

    def learn(*arguments: Any) -> None:  # samples whose step overflows are hard to come by
        if learner.n_samples == 6:
            raise LearningError("the step is not finite")
        learn_together(*arguments)

    model.learn(x[:3], y[:3])
    learner.learn_together = learn  # type: ignore[method-assign]
    with pytest.raises(LearningError):
        model.learn(x, y)
    assert model.n_samples == 3
    learned, head = model.n_samples, releases.head_digest(model)
    kill(model)
    again = OnDeviceModel.open(mlp_bundle, tmp_path, learner="sgd-plain", mixture=False)
    assert (again.n_samples, releases.head_digest(again)) == (learned, head)
    again.close()


def test_a_label_that_waits_and_cannot_be_learned_costs_no_other(mlp_bundle: Path) -> None:
    x, y = data(mlp_bundle, 3)
    model = OnDeviceModel.open(mlp_bundle, learner="sgd", mixture=False)
    model.predict_sample("far", x[0] * np.float32(1e17), 0.0)
    with pytest.raises(LearningError, match="beyond"):
        model.join_label("far", int(y[0]), 1.0, later=True)
    model.predict_sample("bad", x[0] * np.float32(1e13), 0.0)
    model.predict_sample("good", x[1], 0.0)
    assert model.join_label("bad", int(y[0]), 1.0, later=True)
    assert model.join_label("good", int(y[1]), 1.0)
    assert model.n_samples >= 1
    assert len(model.state.waiting) == 0


def test_a_second_label_replaces_one_that_waits_or_says_why_it_cannot(
    digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _ = turned_labels(3)
    with OnDeviceModel.open(digits_bundle, tmp_path) as model:
        for i in range(3):
            model.predict_sample(f"s{i}", x[i], 0.0)
        assert all(model.join_label(f"s{i}", 3, 0.0, later=True) for i in range(2))
        with monkeypatch.context() as full:
            full.setattr(model.state, "save", lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(LearningError, match="not corrected, that cannot be saved: No space"):
                model.join_label("s1", 4, 0.0)
        assert [label.target.item() for label, _ in model.state.waiting] == [3, 3]
        assert model.join_label("s1", 4, 0.0).replaced
        assert model.join_label("s1", 4, 0.0, 0.5).replaced, "how far it is trusted is corrected, too"
        assert [(each.target.item(), each.weight.item()) for each, _ in model.state.waiting] == [(3, 1.0), (4, 0.5)]
        while model.learn_next():
            pass
        assert model.join_label("s1", 4, 0.0, 0.5).why == "this sample has this label already"
        assert "learned as '4', weight 0.5 already" in model.join_label("s1", 5, 0.0).why
        assert "no such sample" in model.join_label("nobody", 5, 0.0).why
        model.predict_sample("s1", x[2], 0.0)
        assert model.join_label("s1", 5, 0.0), "another sample of that name"
        assert model.learned.recent.targets.tolist() == [3, 4, 5]
    with OnDeviceModel.open(digits_bundle, tmp_path) as again:
        assert again.learned.recent.targets.tolist() == [3, 4, 5]


def test_a_label_that_cannot_be_learned_is_never_called_learned_and_its_sample_waits_for_another(
    digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _ = turned_labels(3)

    def refuse(*_: object) -> None:
        raise LearningError("the step was not finite")

    with OnDeviceModel.open(digits_bundle, tmp_path, learner="sgd") as model:
        model.predict_sample("far", x[0], 0.0)
        with monkeypatch.context() as refusing:
            refusing.setattr(model.learning.machine("sgd"), "learn_together", refuse)
            with pytest.raises(LearningError, match="not finite"):
                model.join_label("far", 3, 0.0)
            assert model.answering.ring.given("far") is None
            assert model.join_label("far", 4, 0.0, later=True), "at once or later, it is tried again"
            with pytest.raises(LearningError, match="label of 'far' that waited was not learned: the step"):
                model.learn_next()
            assert model.join_label("far", 3, 0.0, later=True)
            assert model.add_class("after all that wait") == 10
            assert ["label of 'far'" in text for text in model.warnings] == [True]
        assert (model.n_samples, model.waiting, model.status()["refused"], model.telemetry(1.0)["refused"]) == (
            0,
            0,
            2,
            2,
        )
        before = model.snapshot()
        for i in range(3):
            model.predict_sample(f"s{i}", x[i], 0.0)
            assert model.join_label(f"s{i}", i, 0.0, later=True)
        model.restore(before)
        assert model.join_label("s1", 1, 0.0), "what was restored had not learned it"
        assert model.learned.recent.targets.tolist() == [1]
        assert model.join_label("s2", 2, 0.0, later=True)
        releases.go_back(model, before)
        assert model.join_label("s2", 2, 0.0).why == "this sample has this label already", "it waits still"
        assert model.join_label("s2", 5, 0.0).replaced


def test_one_sample_is_one_sample(digits_bundle: Path) -> None:
    x, _ = turned_labels(2)
    model = OnDeviceModel.open(digits_bundle)
    for ask in (lambda: model.predict_sample("a", x, 0.0), lambda: model.explain(x)):
        with pytest.raises(LearningError, match="one sample, got 2"):
            ask()
    with pytest.raises(LearningError, match="regular"):
        model.predict([[1.0], [1.0, 2.0]])  # type: ignore[arg-type]
    with pytest.raises(LearningError, match="weight"):
        model.join_label("a", 1, 0.0, weight="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["\ud800", 5, None, "", "x" * 129, "a\nb", "\x1b[31mred", "\x9b"])
def test_what_is_no_name_is_no_class(tmp_path: Path, digits_bundle: Path, name: object) -> None:
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    with pytest.raises(LearningError, match="expected a name"):
        model.add_class(name)  # type: ignore[arg-type]
    assert model.add_class("z") == 10
    model.close()


def test_a_class_that_cannot_be_saved_is_not_added(
    tmp_path: Path, digits_bundle: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    with full_disk(), pytest.raises(LearningError, match="cannot be saved"):
        model.add_class("z")
    assert "z" not in model.class_names
    assert model.add_class("z") == 10
    model.close()


def test_a_head_that_cannot_be_saved_is_not_applied(
    tmp_path: Path, digits_bundle: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    x, y = turned_labels(60)
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    model.learn(x, y)
    before = model.predict(x)
    shipped = HeadRelease(backbone=model.manifest.backbone_digest, parameters=model.bundle.head_parameters())
    with full_disk(), pytest.raises(OSError):
        take(model, shipped, 5)
    np.testing.assert_array_equal(model.predict(x), before)
    assert (model.learned.release, model.learned.trial) == (0, None)
    take(model, shipped, 5)
    assert model.learned.release == 5
    model.close()


def test_a_release_that_does_not_fit_changes_nothing(digits_bundle: Path) -> None:
    model = OnDeviceModel.open(digits_bundle)
    shipped = HeadRelease(backbone=model.manifest.backbone_digest, parameters=model.bundle.head_parameters())
    take(model, shipped, 1)
    before = model.learned
    names = (*model.class_names, "r")
    short = {name: array[:5] for name, array in shipped.parameters.items()}
    with pytest.raises(BundleError):
        take(model, dataclasses.replace(shipped, parameters=short, class_names=names), 2)
    assert model.learned is before
    releases.roll_back(model)
    with pytest.raises(LearningError, match="no head on trial"):
        releases.roll_back(model)


def heads(model: OnDeviceModel) -> dict[str, HeadRelease]:
    """Heads that somebody could push: the shipped one, its opposite, and random numbers."""
    shipped, rng = model.bundle.head_parameters(), np.random.default_rng(8)
    found = {
        "shipped": shipped,
        "opposite": {name: -array for name, array in shipped.items()},
        "random": {name: rng.normal(0, 1, array.shape).astype(np.float32) for name, array in shipped.items()},
    }
    backbone = model.manifest.backbone_digest
    return {name: HeadRelease(backbone=backbone, parameters=parameters) for name, parameters in found.items()}


def test_what_is_said_of_a_merge_is_not_said_of_a_head_that_was_pushed_before(digits_bundle: Path) -> None:
    model = OnDeviceModel.open(digits_bundle)
    x, y = turned_labels(60)
    model.learn(x, y)
    take(model, heads(model)["random"], 1, competes=False)
    releases.confirm(model)
    take(model, merged_head(model.bundle, [releases.contribution(model)]), 2)
    assert "pushed" in model.learned.mixture.names
    said = releases.judge_taken(model, was_judged=False, labels=0, counter=2).reason
    assert "the merge" in said, said
    model.close()


def test_releases_back_to_back_are_judged_by_the_labels_before_the_first(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned_labels(60)
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    model.learn(x, y)
    merge = merged_head(model.bundle, [releases.contribution(model)])
    assert merge.competes
    take(model, merge, 1)
    assert len(model.learned.recent) == 60
    assert model.learned.mixture.weight_of("merged") > 0
    for name, release in heads(model).items():
        verdict = releases.look_at(model, release, competes=False).verdict
        assert (verdict.finding, "60 recent labels" in verdict.reason) == (Finding.WORSE, True), name
    take(model, merge, 2, competes=False)
    model.close()
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    assert model.learned.trial is not None
    assert len(model.learned.recent) == 60
    assert releases.look_at(model, heads(model)["random"], competes=False).verdict.finding is Finding.WORSE
    assert releases.judge_taken(model, was_judged=False, labels=0, counter=model.release).finding is Finding.GOOD, (
        "by labels before it"
    )
    model.close()


def test_without_labels_a_head_that_answers_otherwise_is_different_without_samples_too(digits_bundle: Path) -> None:
    model = OnDeviceModel.open(digits_bundle)
    expected = {"shipped": Finding.GOOD, "opposite": Finding.DIFFERENT, "random": Finding.DIFFERENT}
    of_bundle = {name: releases.look_at(model, each, competes=False).verdict for name, each in heads(model).items()}
    assert {name: verdict.finding for name, verdict in of_bundle.items()} == expected
    assert all("16 of them of the bundle" in verdict.reason for verdict in of_bundle.values())
    x, y = data(digits_bundle, 20)
    for i in range(20):
        model.predict_sample(f"s{i}", x[i], 0.0)
    found = {name: releases.look_at(model, each, competes=False).verdict for name, each in heads(model).items()}
    assert {name: verdict.finding for name, verdict in found.items()} == expected
    assert "no labels vouch for it" in found["random"].reason
    for i in range(19):  # they do not wait any more, and are too few to judge by
        assert model.join_label(f"s{i}", int(y[i]), 1.0)
    assert releases.look_at(model, heads(model)["random"], competes=False).verdict.finding is Finding.DIFFERENT
    infinite = {name: np.full_like(array, 3e38) for name, array in model.bundle.head_parameters().items()}
    broken = HeadRelease(backbone=model.manifest.backbone_digest, parameters=infinite)
    assert "finite" in releases.look_at(model, broken, competes=True).verdict.reason


def test_a_head_that_competes_is_heard_as_far_as_it_is_right(digits_bundle: Path) -> None:
    x, y = turned_labels(120)
    model = OnDeviceModel.open(digits_bundle)
    model.learn(x[:60], y[:60])
    before = (model.predict(x[60:]).argmax(axis=1) == y[60:]).mean()
    take(model, heads(model)["random"], 1, competes=True)
    assert model.learned.trial is None
    assert model.learned.mixture.weight_of("pushed") > 0
    model.learn(x[60:80], y[60:80])
    assert model.learned.mixture.weight_of("pushed") < 0.05
    assert (model.predict(x[80:]).argmax(axis=1) == y[80:]).mean() >= before - 0.05
    weights = releases.expert_weights(model)
    assert weights.keys() == set(model.learned.experts)
    assert sum(weight for weight, _, _ in weights.values()) == pytest.approx(1.0, abs=1e-3)


def test_experts_go_on_in_the_same_order_after_a_restart(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned_labels(60)
    model = OnDeviceModel.open(digits_bundle, tmp_path, executor="numpy")
    model.learn(x[:40], y[:40])
    model.close()
    again, twin = OnDeviceModel.open(digits_bundle, tmp_path, executor="numpy"), model.learned
    merge = merged_head(again.bundle, [releases.contribution(again)])
    event = HeadOffered(merge, 1)
    sent, _ = model.learning.advance(twin, Contributed(40))
    expected, _ = model.learning.advance(sent, event)
    again.happen(event)
    assert again.learned.mixture.names[0] == "trusted"
    assert same(again.learned, expected)
    again.close()


def test_a_rollback_is_not_kept_from_happening_by_a_label(digits_bundle: Path) -> None:
    x, y = turned_labels(40)
    model = OnDeviceModel.open(digits_bundle, learner="sgd")
    model.learn(x[:20], y[:20])
    before = model.learned
    take(model, heads(model)["opposite"], 1)
    model.learn(x[20:], y[20:])
    machine = model.learning.machine("sgd")

    def refuse(*arguments: Any) -> None:
        raise LearningError("the step is not finite")

    machine.learn_together = refuse  # type: ignore[method-assign]
    releases.roll_back(model)
    assert same(model.learned, before)


@pytest.mark.parametrize("is_killed", [False, True])
def test_labels_that_came_on_probation_are_kept_when_it_ends_badly(
    tmp_path: Path, digits_bundle: Path, is_killed: bool
) -> None:
    x, y = turned_labels(90)
    twin = OnDeviceModel.open(digits_bundle, executor="numpy")
    twin.learn(x, y)
    model = OnDeviceModel.open(digits_bundle, tmp_path, executor="numpy")
    model.learn(x[:60], y[:60])
    bad = {name: -array for name, array in model.bundle.head_parameters().items()}
    take(model, HeadRelease(backbone=model.manifest.backbone_digest, parameters=bad), 1)
    model.learn(x[60:80], y[60:80])
    model.state.save()
    model.learn(x[80:], y[80:])
    if is_killed:
        kill(model)
        model = OnDeviceModel.open(digits_bundle, tmp_path, executor="numpy")
    releases.roll_back(model)
    assert (model.n_samples, model.learned.release, model.learned.trial) == (90, 0, None)
    assert same(model.learned, dataclasses.replace(twin.learned, lineage=model.learned.lineage)), "value and replay"
    model.close()
    again = OnDeviceModel.open(digits_bundle, tmp_path, executor="numpy")
    assert same(again.learned, model.learned)
    again.close()


def test_a_lineage_that_begins_anew_is_kept(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned_labels(20)
    OnDeviceModel.open(digits_bundle, tmp_path).close()
    for path in tmp_path.rglob("state*.bin"):
        path.write_bytes(b"x")
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    model.learn(x, y)
    lineage = releases.contribution(model).lineage
    kill(model)
    again = OnDeviceModel.open(digits_bundle, tmp_path)
    assert releases.contribution(again).lineage == lineage
    assert again.n_samples == 20
    kill(again)
    for path in tmp_path.rglob("state*.bin"):
        path.unlink()
    anew = OnDeviceModel.open(digits_bundle, tmp_path)
    assert (anew.n_samples, releases.contribution(anew).lineage == lineage) == (0, False)
    assert "not the snapshot" in anew.state.warnings[0]
    anew.close()


def test_nothing_works_after_close_and_closing_twice_is_no_harm(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned_labels(4)
    with OnDeviceModel.open(digits_bundle, tmp_path) as model:
        model.predict_sample("a", x[0], 0.0)
        begun = model.learned
        release = HeadRelease(backbone=model.manifest.backbone_digest, parameters=model.bundle.head_parameters())
        offer = releases.look_at(model, release, competes=True)
    other = OnDeviceModel.open(digits_bundle, tmp_path)
    model.close()
    for work in (
        lambda: model.learn(x, y),
        lambda: model.predict(x),
        lambda: model.probabilities(x),
        lambda: model.predict_sample("b", x[0], 0.0),
        lambda: model.join_label("a", 1, 0.0),
        model.learn_next,
        lambda: model.explain(x[0]),
        lambda: model.evaluate(x, y),
        lambda: model.add_class("z"),
        lambda: model.restore(begun),
        model.reset,
        lambda: model.export_head(tmp_path / "head.safetensors"),
        lambda: releases.contribution(model),
        lambda: releases.take(model, offer, 1),
        lambda: releases.roll_back(model),
    ):
        with pytest.raises(LearningError, match="closed"):
            work()
    assert not (tmp_path / "head.safetensors").exists()
    other.learn(x[:1], y[:1])
    other.close()
    again = OnDeviceModel.open(digits_bundle, tmp_path)
    assert again.n_samples == 1
    again.close()
    with pytest.raises(LearningError), OnDeviceModel.open(digits_bundle, tmp_path) as model:
        assert model.learn(x[1:], y[1:]) + model.learn(x, y[1:])
    with OnDeviceModel.open(digits_bundle, tmp_path) as model:
        assert model.n_samples == 4, "it was closed, and what was learned is kept"


def test_a_seed_or_a_folder_that_cannot_be_is_said(tmp_path: Path, digits_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="seed -1"):
        OnDeviceModel.open(digits_bundle, seed=-1)
    (tmp_path / "learned").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        OnDeviceModel.open(digits_bundle, tmp_path)


def test_damaged_snapshot_falls_back_and_says_so(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = data(digits_bundle)
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    model.learn(x[:25], y[:25])
    model.state.save()
    model.learn(x[25:], y[25:])
    model.state.save()
    expected = model.predict(x)
    model.close()
    state = next(tmp_path.rglob("state.bin"))
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    again = OnDeviceModel.open(digits_bundle, tmp_path)
    assert "damaged" in again.state.warnings[0]
    assert again.n_samples == 50
    np.testing.assert_allclose(again.predict(x), expected, rtol=1e-5, atol=1e-5)
    again.close()


def test_bundle_that_gives_other_answers_is_refused(tmp_path: Path, digits_bundle: Path) -> None:
    """Golden outputs that this CPU does not meet: what a saturating int8 file looks like."""
    import dataclasses

    import safetensors.numpy

    from edge.contract import manifest as m
    from edge.contract.bundle import Bundle, members_of, write_bundle

    bundle = Bundle.open(digits_bundle)
    blobs = {role: bundle.read(role) for role in bundle.manifest.members}
    golden = bundle.tensors(m.GOLDEN)
    name = f"{m.GOLDEN_OUTPUT}{bundle.manifest.outputs[0].name}"
    golden[name] = golden[name] + 0.3 * np.abs(golden[name]).max()
    blobs[m.GOLDEN] = safetensors.numpy.save(golden)
    other = tmp_path / "other.edge"
    write_bundle(other, dataclasses.replace(bundle.manifest, members=members_of(blobs)), blobs)
    with pytest.raises(BundleError, match="other answers"):
        OnDeviceModel.open(other)


def turned_labels(n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Ten kinds of samples that the shipped head knows nothing of: much to learn, and easily."""
    rng = np.random.default_rng(3)
    kinds, y = rng.random((10, 1, 8, 8)), rng.integers(0, 10, n)
    return np.clip(kinds[y] + rng.normal(0, 0.1, (n, 1, 8, 8)), 0, 1).astype(np.float32), y


def test_who_is_right_is_believed_and_that_is_told(digits_bundle: Path) -> None:
    x, y = turned_labels()
    model = OnDeviceModel.open(digits_bundle)
    shipped = model.predict(x)
    model.learn(x[:1], y[:1])
    np.testing.assert_allclose(model.probabilities(x), softmax(shipped), atol=1e-3)
    model.learn(x[1:], y[1:])
    assert model.learned.mixture.believed in ("statistics", "lifted", "sgd")
    assert (model.predict(x).argmax(axis=1) == y).mean() > 0.9
    model.learn(*data(digits_bundle, 60))
    events = list(model.events)
    happened = model.learn(x, y)
    happened += model.learn(x, (y + 1) % 10)
    assert {event.kind for event in happened} == {"believed", "drift"}
    assert model.events == [*events, *happened]


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def test_random_labels_change_no_answer(digits_bundle: Path) -> None:
    x, y = data(digits_bundle, 300)
    model = OnDeviceModel.open(digits_bundle)
    model.learn(x, np.random.default_rng(1).integers(0, 10, 300))
    assert (model.predict(x).argmax(axis=1) == y).mean() > 0.98
    assert model.n_samples == 300


def test_probabilities_are_calibrated_by_what_labels_said(digits_bundle: Path) -> None:
    x, y = data(digits_bundle, 200)
    wrong = np.random.default_rng(2).random(200) < 0.4
    model = OnDeviceModel.open(digits_bundle)
    before = model.probabilities(x).max(axis=1).mean()
    model.learn(x, np.where(wrong, (y + 3) % 10, y))
    assert model.learned.temperature > 1.2
    assert model.probabilities(x).max(axis=1).mean() < before
    np.testing.assert_allclose(model.probabilities(x).sum(axis=1), 1.0)


def test_a_class_is_added_while_it_runs_and_survives_a_restart(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = data(digits_bundle, 120)
    model = OnDeviceModel.open(digits_bundle, tmp_path, mixture=False)
    model.learn(x[:60], y[:60])
    before = model.predict(x)
    assert model.add_class("blank") == 10
    np.testing.assert_allclose(model.predict(x)[:, :10], before, atol=1e-4)
    assert (model.predict(x).argmax(axis=1) < 10).all()
    blank = np.zeros((8, *x.shape[1:]), np.float32)
    blank += np.random.default_rng(0).random(blank.shape, np.float32) * 0.05
    model.learn(blank, np.full(8, 10))
    assert (model.predict(blank).argmax(axis=1) == 10).all()
    assert (model.predict(x[:60]).argmax(axis=1) == y[:60]).mean() > 0.8
    expected = model.predict(x)
    kill(model)
    again = OnDeviceModel.open(digits_bundle, tmp_path, mixture=False)
    assert again.class_names[-1] == "blank"
    np.testing.assert_allclose(again.predict(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(LearningError, match="that no class has"):
        again.add_class("blank")
    again.close()


def test_what_was_promised_in_the_docstring(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = data(digits_bundle, 96)
    names = {"bundle": digits_bundle, "folder": tmp_path, "x": x, "y": y, "np": np, "OnDeviceModel": OnDeviceModel}
    found = doctest.DocTestFinder(recurse=False).find(on_device_model, globs=names)
    runner = doctest.DocTestRunner()
    for test in found:
        assert test.examples
        runner.run(test)
    assert runner.summarize().failed == 0


def test_explains_by_the_region_that_matters(digits_bundle: Path) -> None:
    x, _ = data(digits_bundle, 1)
    model = OnDeviceModel.open(digits_bundle)
    for on in ("input", "features"):
        explanation = model.explain(x[0], on=on)
        assert np.isfinite(explanation.importance).all()
        assert explanation.output == model.predict(x).argmax()
    assert explanation.importance.shape == (64,)
    with pytest.raises(LearningError, match="no output 10"):
        model.explain(x[0], 10)


LEARN_FOREVER = """
import sys
import numpy as np
from edge.agent import OnDeviceModel
model = OnDeviceModel.open(sys.argv[1], sys.argv[2], learner=sys.argv[3])
rng = np.random.default_rng(model.n_samples)
while True:
    x = rng.random((1, *model.manifest.inputs[0].sample_shape), np.float32)
    model.learn(x, np.array([int(model.n_samples) % 10]))
    print(model.n_samples, flush=True)
    if model.n_samples % 7 == 0:
        model.state.save()
"""


@pytest.mark.parametrize("learner", LEARNERS)
def test_kill_at_random_moments_loses_nothing_acknowledged(tmp_path: Path, digits_bundle: Path, learner: str) -> None:
    """A process that learns and saves for ever, killed with ``kill -9`` again and again (fault 21)."""
    rng = random.Random(5)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    kept = 0
    for _ in range(3):  # each write is cut off in test_crashes.py
        line = [sys.executable, "-c", LEARN_FOREVER, str(digits_bundle), str(tmp_path), learner]
        process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(rng.randint(5, 30))]
        time.sleep(rng.random() * 0.01)
        process.kill()
        acknowledged = int([*said, *process.stdout.read().splitlines()][-1])
        process.stdout.close()
        process.wait()
        model = OnDeviceModel.open(digits_bundle, tmp_path, learner=learner)
        assert acknowledged <= model.n_samples <= acknowledged + 2
        assert model.state.warnings == []
        assert np.isfinite(model.predict(data(digits_bundle)[0])).all()
        kept = model.n_samples
        model.close()
    assert kept > 15


def test_evaluates_itself_beside_the_head_as_shipped(digits_bundle: Path) -> None:
    x, y = turned_labels(150)
    model = OnDeviceModel.open(digits_bundle)
    model.learn(x[:100], y[:100])
    before = model.learned
    found = model.evaluate(x[100:], y[100:])
    assert model.learned is before
    assert found.accuracy == pytest.approx((model.predict(x[100:]).argmax(axis=1) == y[100:]).mean())
    shipped = OnDeviceModel.open(digits_bundle).predict(x[100:]).argmax(axis=1)
    assert found.shipped_accuracy == pytest.approx((shipped == y[100:]).mean())
    assert found.gain == pytest.approx((found.accuracy - found.shipped_accuracy) / found.shipped_accuracy)
    assert found.gain > 1.0
    words = f"accuracy {found.accuracy:.4f}, as shipped {found.shipped_accuracy:.4f}: gain {found.gain:+.1%}"
    assert str(found) == f"{words}, (new - old) / old; 50 samples"
    assert found.loss < found.shipped_loss
    assert (found.samples, set(found.per_class)) == (50, {model.class_names[c] for c in np.unique(y[100:])})
    counts = {model.class_names[c]: int((y[100:] == c).sum()) for c in np.unique(y[100:])}
    total = sum(accuracy * counts[name] for name, accuracy in found.per_class.items())
    assert total / 50 == pytest.approx(found.accuracy)
    model.add_class("smudge")
    model.learn(np.zeros((4, *x.shape[1:]), np.float32), np.full(4, 10))
    wider = model.evaluate(np.concatenate([x[100:], np.zeros_like(x[:1])]), np.append(y[100:], 10))
    assert wider.per_class["smudge"] == 1.0
    for samples, labels in ((x[:0], y[:0]), (x[:2], y[:3]), (x[0], y[:1])):
        with pytest.raises(LearningError):
            model.evaluate(samples, labels)


def test_opening_makes_each_learner_once_and_measures_executors_once(
    tmp_path: Path, digits_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a snapshot is read, and its value is compared with a fresh one."""
    opened: list[Opened] = []

    def counted(*arguments: Any) -> Opened:
        opened.append(open_trainer(*arguments))
        return opened[-1]

    monkeypatch.setattr(candidates, "open_trainer", counted)
    for _ in range(2):
        opened.clear()
        model = OnDeviceModel.open(digits_bundle, tmp_path)
        assert [bool(each.measured_us) for each in opened] == [True]
        model.learn(*turned_labels(4))
        model.close()


def test_restores_an_earlier_value_and_forgets_everything_when_asked(
    tmp_path: Path, digits_bundle: Path, mlp_bundle: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    x, y = turned_labels(60)
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    begun, shipped = model.learned, model.predict(x)
    model.learn(x[:30], y[:30])
    earlier, answers = model.learned, model.predict(x)
    model.add_class("z")
    model.predict_sample("s", x[0], 0.0)
    model.join_label("s", 1, 0.0, later=True)
    model.learn(x[30:], y[30:])
    later = model.learned
    with full_disk(), pytest.raises(LearningError, match="nothing was restored"):
        model.restore(earlier)
    strange: tuple[object, ...] = (None, {}, "state.bin", 3)
    for nothing in strange:
        with pytest.raises(LearningError, match=f"expected what .* gave, got {type(nothing).__name__}"):
            model.restore(nothing)
    assert model.snapshot() is model.learned is later
    model.restore(earlier)
    np.testing.assert_array_equal(model.predict(x), answers)
    kill(model)
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    assert same(model.learned, earlier), "it was safe before it returned"
    # Of another head, of learners too many and too few; and what fits in all its shapes.
    others = [OnDeviceModel.open(mlp_bundle), OnDeviceModel.open(digits_bundle, learner="ridge")]
    others += [OnDeviceModel.open(digits_bundle, learner=name) for name in ("sgd", "statistics")]
    assert earlier.backbone == model.manifest.backbone_digest
    renamed = (*earlier.class_names[:-1], "zero")
    values = [*(each.learned for each in others), *(dataclasses.replace(earlier, **changed) for changed in (
        {"backbone": "0" * 64}, {"backbone": ""}, {"class_names": renamed}))]  # fmt: skip
    for value in values:
        with pytest.raises(LearningError):
            model.restore(value)
        assert same(model.learned, earlier)
    with full_disk(), pytest.raises(LearningError, match="nothing was forgotten"):
        model.reset()
    assert same(model.learned, earlier)
    model.reset()
    np.testing.assert_array_equal(model.predict(x), shipped)
    assert (model.n_samples, model.learned.lineage == begun.lineage) == (0, False)
    kill(model)
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    assert model.n_samples == 0
    model.close()


def test_threads_take_turns_and_lose_no_label(tmp_path: Path, digits_bundle: Path) -> None:
    """In the middle of learning another thread would learn from the value before, and one of the two be forgotten."""
    x, y = turned_labels(20)
    faults: list[BaseException] = []

    def work(model: OnDeviceModel) -> None:
        try:
            for i in range(len(x)):
                model.learn(x[i : i + 1], y[i : i + 1])
                model.predict(x[:2])
        except Exception as exc:  # noqa: BLE001  # a thread's own exception is seen by nobody
            faults.append(exc)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with OnDeviceModel.open(digits_bundle, tmp_path) as model:
            threads = [threading.Thread(target=work, args=(model,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert (faults, model.n_samples) == ([], 60)
            answers = model.predict(x)
    finally:
        sys.setswitchinterval(before)
    with OnDeviceModel.open(digits_bundle, tmp_path) as again:
        assert again.n_samples == 60
        np.testing.assert_array_equal(again.predict(x), answers)


@pytest.mark.parametrize("threads", [0, -1, 65, 10**6])
def test_a_number_of_threads_that_cannot_be_is_refused(digits_bundle: Path, threads: int) -> None:
    """A million of them took 16 GB and ten minutes before anything was said."""
    with pytest.raises(ConfigError, match=f"threads {threads}: expected a number from 1 to 64"):
        OnDeviceModel.open(digits_bundle, threads=threads)


@pytest.mark.parametrize("limits", [{"label_ring_size": -1}, {"label_expiry_s": math.nan}, {"label_requests": 1.5}])
def test_limits_that_cannot_be_are_refused(limits: dict[str, Any]) -> None:
    """A ring for -1 samples ended in a StopIteration at the first of them."""
    with pytest.raises(ConfigError, match=f"{next(iter(limits))} .*: expected a number from 0 to"):
        LearningLimits(**limits)


@pytest.mark.parametrize("later", [False, True])
def test_a_label_of_a_sample_that_was_answered_with_a_class_that_is_gone_is_learned(
    digits_bundle: Path, later: bool
) -> None:
    """A class goes with the head that brought it, and with what is restored; labels come after that."""
    x, y = turned_labels(2)
    model = OnDeviceModel.open(digits_bundle)
    model.add_class("z")
    for i in range(2):
        model.predict_sample(str(i), x[i], 0.0)
    model.reset()
    assert all(model.join_label(str(i), int(y[i]), 1.0, later=later) for i in range(2))
    while model.learn_next():
        pass
    assert (model.n_samples, model.metrics.labels, len(model.class_names)) == (2, 2, 10)


def test_labels_that_are_none_are_told_what_was_expected(digits_bundle: Path) -> None:
    model = OnDeviceModel.open(digits_bundle)
    x, _ = turned_labels(2)
    strange: list[tuple[Any, str]] = [
        ([0.5, 1.0], r"expected 2 integer labels \(or names of classes\), got float64"),
        (np.array([3, "7"], object), "got 3 among names: give all by name or all by number"),
        (["7", 3], "got 3 among names: give all by name or all by number"),  # numpy would make the text "3" of it
        (("7", 3), "got 3 among names"),
        ([None, 3], "or one of its names, got None$"),
        (np.ma.masked_array([3, 7], [True, False]), "the labels: some of it is masked"),
        (np.eye(10)[:2], "expected 2 integer labels .*, got float64 of shape"),
    ]
    for y, words in strange:
        with pytest.raises(LearningError, match=words):
            model.learn(x, y)
    with pytest.raises(LearningError, match="there is nothing in it"):
        model.predict(x[:0])
    hidden = np.zeros(x.shape, bool)
    hidden[0, 0, 0, 0] = True
    with pytest.raises(LearningError, match="input: some of it is masked; fill in what it should be"):
        model.predict(np.ma.masked_array(x, hidden))
    np.testing.assert_array_equal(model.predict(np.ma.masked_array(x, False)), model.predict(x))
    with pytest.raises(LearningError, match="expected a model that `OnDeviceModel"):
        model.warm_start("v1.edge")  # type: ignore[arg-type]
    assert model.n_samples == 0


def test_exports_the_head_with_the_most_say(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned_labels(60)
    model = OnDeviceModel.open(digits_bundle)
    model.add_class("z")
    model.learn(x, y)
    model.export_head(tmp_path / "head.safetensors")
    found = HeadRelease.decode((tmp_path / "head.safetensors").read_bytes(), "head")
    assert found.origin.split(" ")[0] in ("statistics", "sgd")
    assert (found.n_samples, found.class_names[-1]) == (60, "z")
    outputs = model.learning.run(model.answering.features(x), found.parameters)
    assert (outputs.argmax(axis=1) == y).mean() > 0.9
    other = OnDeviceModel.open(digits_bundle)
    take(other, found, 1)
    assert other.class_names[-1] == "z"
    assert (other.predict(x).argmax(axis=1) == y).mean() > 0.9


def test_what_leaves_the_device_is_what_answers_there(
    digits_bundle: Path,
) -> None:
    """After a merge and one label there are eight heads of about the same weight."""
    x, y = turned_labels(60)
    with OnDeviceModel.open(digits_bundle) as other, OnDeviceModel.open(digits_bundle) as model:
        other.learn(x, y)
        merge = dataclasses.replace(other.live_head(), included={"other": 60}, n_samples=60)
        model.happen(HeadOffered(merge, 1))
        model.learn(x[:1], y[:1])
        assert model.learned.mixture.believed not in ("trusted", "shipped")
        features = model.answering.features(x)
        live = model.live_head()
        answers = model.learning.run(features, live.parameters).argmax(axis=1)
        assert (answers == model.predict(x).argmax(axis=1)).mean() > 0.9
        assert live.origin.startswith(model.status()["believed"])


def test_a_single_sample_is_told_how_to_be_given(digits_bundle: Path) -> None:
    model = OnDeviceModel.open(digits_bundle)
    x, y = turned_labels(1)
    for ask in (lambda: model.predict(x[0]), lambda: model.learn(x[0], y)):
        with pytest.raises(LearningError, match=r"x\[None\]"):
            ask()


def test_a_pushed_head_with_a_class_of_its_own_can_be_judged_without_a_label(
    digits_bundle: Path, tmp_path: Path
) -> None:
    """It knows a class that the others do not, and there is no sample yet to ask anybody about."""
    with OnDeviceModel.open(digits_bundle) as model:
        model.add_class("smudge")
        model.export_head(tmp_path / "head.safetensors")
    release = HeadRelease.decode((tmp_path / "head.safetensors").read_bytes(), "the head")
    with OnDeviceModel.open(digits_bundle) as model:
        releases.take(model, releases.look_at(model, release, competes=False), 1)
        assert model.class_names[-1] == "smudge"
        assert releases.judge_taken(model, was_judged=False, labels=0, counter=model.release).finding is Finding.GOOD
        with pytest.raises(LearningError, match="not written"):
            model.export_head(tmp_path / "nowhere" / "head.safetensors")
    with pytest.raises(LearningError, match="closed"), model:
        pass


def test_what_a_folder_that_somebody_deleted_does_not_keep_is_said(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned_labels(8)
    model = OnDeviceModel.open(digits_bundle, tmp_path / "state")
    model.learn(x[:2], y[:2])
    shutil.rmtree(tmp_path / "state")
    model.learn(x[2:5], y[2:5])
    assert model.state.unsafe.startswith("3 labels or other events are in memory only: ")
    assert "was deleted" in model.state.unsafe
    with pytest.raises(ResourceError, match=r"3 labels .* are lost"):
        model.close()


def test_a_full_disk_at_the_end_loses_only_what_the_journal_did_not_take(
    tmp_path: Path, digits_bundle: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    x, y = turned_labels(12)
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    model.learn(x[:4], y[:4])
    with full_disk():
        model.close()  # the journal has all
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    assert (model.n_samples, model.state.unsafe) == (4, "")
    with full_disk():
        model.learn(x[4:7], y[4:7])
        assert model.state.unsafe.startswith("3 labels or other events are in memory only: ")
        assert len([text for text in model.warnings if "in memory only" in text]) == 1
    model.state.save()
    assert (model.state.unsafe, model.state.is_safe) == ("", True)
    with full_disk():
        model.learn(x[7:9], y[7:9])
        with pytest.raises(ResourceError, match=r"2 labels or other events .* are lost"):
            model.close()
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    assert model.n_samples == 7
    model.close()


def test_telemetry_says_what_was_answered_before_the_label_when_that_is_news(digits_bundle: Path) -> None:
    x, y = turned_labels(60)
    model = OnDeviceModel.open(digits_bundle)
    names = model.class_names
    assert confusion.KEY not in model.telemetry(0.0)
    wanted: dict[str, dict[str, int]] = {}
    for i in range(60):
        said = names[int(model.predict_sample(f"s{i}", x[i], 0.0).argmax())]
        row = wanted.setdefault(names[y[i]], {})
        row[said] = row.get(said, 0) + 1
    for i in range(60):  # what is learned meanwhile does not change what was answered
        assert model.join_label(f"s{i}", int(y[i]), 0.0, later=i % 2 == 0)
    while model.learn_next():
        pass
    found = confusion.read(model.telemetry(1.0)[confusion.KEY])
    assert found == wanted
    assert any(label != said for label, row in found.items() for said in row), "turned digits are taken for others"
    assert confusion.KEY not in model.telemetry(2.0), "nothing new"
    assert confusion.KEY in model.telemetry(1.0 + confusion.AGAIN_S), "telemetry may be lost"
    model.reset()
    assert model.telemetry(confusion.AGAIN_S + 2.0)[confusion.KEY] == "", "that was another head"


def test_what_was_answered_to_labels_outlives_a_restart_and_not_its_head(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned_labels(40)

    def opened(folder: str = "s") -> tuple[float | None, dict[str, dict[str, int]]]:
        with OnDeviceModel.open(digits_bundle, tmp_path / folder) as again:
            return again.metrics.accuracy, again.metrics.confusion(again.class_names)

    with OnDeviceModel.open(digits_bundle, tmp_path / "s") as model:
        model.learn(x, y)
        was = model.metrics.accuracy, model.metrics.confusion(model.class_names)
    assert sum(n for row in was[1].values() for n in row.values()) == 40
    assert opened() == was
    # A head that takes the place of all is in the journal when the process is killed: what was answered was another's.
    with OnDeviceModel.open(digits_bundle, tmp_path / "s") as model:
        model.happen(HeadReplaced(model.live_head(), 7))
        shutil.copytree(tmp_path / "s", tmp_path / "killed")
    assert opened("killed") == (None, {})
    with OnDeviceModel.open(digits_bundle, tmp_path / "s") as model:
        model.learn(x, y)
        model.reset()
    assert opened() == (None, {})
