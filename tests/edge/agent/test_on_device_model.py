"""`OnDeviceModel`: the Python face, and what it keeps."""

from __future__ import annotations

import dataclasses
import doctest
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent import OnDeviceModel, on_device_model
from edge.contract.errors import BundleError, ConfigError, LearningError
from edge.learning.exchange import HeadRelease
from tests.support.contributions import merged_head

ROOT = Path(__file__).parents[3]
LEARNERS = ["statistics", "sgd", "auto"]


def data(bundle: Path, n: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    model = OnDeviceModel.open(bundle)
    x = np.random.default_rng(seed).random((n, *model.manifest.inputs[0].sample_shape), np.float32)
    return x, model.predict(x).argmax(axis=1)


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """A time in which no file may become larger than a kilobyte."""

    @contextmanager
    def limited() -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)

    return limited


def test_predicts_logits_of_the_live_head(digits_bundle: Path) -> None:
    model = OnDeviceModel.open(digits_bundle)
    logits = model.predict(data(digits_bundle)[0])
    assert logits.shape == (50, 10)
    assert logits.dtype == np.float32


@pytest.mark.parametrize("learner", LEARNERS)
def test_learns_and_keeps_it_over_a_restart(tmp_path: Path, digits_bundle: Path, learner: str) -> None:
    x, y = data(digits_bundle)
    model = OnDeviceModel.open(digits_bundle, tmp_path, learner=learner, gate=False)
    shipped = model.predict(x)
    model.learn(x, (y + 1) % 10)
    learned = model.predict(x)
    assert not np.array_equal(shipped, learned)
    model.save()
    model.close()
    again = OnDeviceModel.open(digits_bundle, tmp_path, learner=learner, gate=False)
    np.testing.assert_array_equal(again.predict(x), learned)
    assert again.n_samples == 50
    again.close()


@pytest.mark.parametrize("executor", ["numpy", "onnx"])
@pytest.mark.parametrize("learner", LEARNERS)
def test_restart_from_the_journal_equals_having_gone_on(
    tmp_path: Path, digits_bundle: Path, learner: str, executor: str
) -> None:
    """No checkpoint at all: the journal alone gives the same head, bit for bit (with one executor)."""
    x, y = turned_labels(120)
    model = OnDeviceModel.open(digits_bundle, tmp_path / "a", learner=learner, executor=executor)
    for i in range(0, 120, 5):
        model.learn(x[i : i + 5], y[i : i + 5])
    expected = model.predict(x)
    assert model.leader
    kill(model)
    again = OnDeviceModel.open(digits_bundle, tmp_path / "a", learner=learner, executor=executor)
    np.testing.assert_array_equal(again.predict(x), expected)
    again.close()


def kill(model: OnDeviceModel) -> None:
    """Leave the folder as `kill -9` does."""
    assert model._store is not None
    model._store.close()
    assert model._lock is not None
    os.close(model._lock)


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_contribution_that_only_the_journal_knows_counts_once(
    tmp_path: Path, digits_bundle: Path, learner: str
) -> None:
    x, y = turned_labels(90)

    def up_to_the_merge(folder: Path, *, is_killed: bool) -> OnDeviceModel:
        model = OnDeviceModel.open(digits_bundle, folder, learner=learner, gate=False)
        model.learn(x[:30], y[:30])
        sent = model.contribution()
        model.learn(x[30:60], y[30:60])
        assert not model.is_safe
        assert model.journal_suffices
        model.sync()
        assert model.is_safe
        if is_killed:
            kill(model)
            model = OnDeviceModel.open(digits_bundle, folder, learner=learner, gate=False)
            assert not model.warnings
            assert not model.journal_suffices, "the next checkpoint saves the next restart the work"
        merged = merged_head(model.bundle, [sent])
        model.apply(merged, 1)
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
    twin = OnDeviceModel.open(digits_bundle, learner="statistics", gate=False)
    twin.learn(x, y)

    def taught(folder: str) -> OnDeviceModel:
        model = OnDeviceModel.open(digits_bundle, tmp_path / folder, learner="statistics", gate=False)
        for i in range(60):
            model.predict_sample(f"s{i}", x[i], 0.0)
            assert model.join_label(f"s{i}", int(y[i]), 0.0, later=i >= 40)
        assert (model.n_samples, model.n_waiting) == (40, 20)
        return model

    killed = taught("killed")
    kill(killed)
    sent = taught("sent")
    assert sent.contribution().version == 40
    kill(sent)
    closed = taught("closed")
    closed.close()
    for folder in ("killed", "sent", "closed"):
        again = OnDeviceModel.open(digits_bundle, tmp_path / folder, learner="statistics", gate=False)
        assert (again.n_samples, again.n_waiting, again.warnings) == (60, 0, [])
        np.testing.assert_allclose(again.predict(x), twin.predict(x), rtol=1e-4, atol=1e-4)
        again.close()
    later = taught("later")
    assert later.learn_waiting()
    later.learn(x[:1], y[:1])  # after those that wait, as a restart would learn them
    assert (later.n_samples, later.n_waiting) == (61, 0)
    assert not later.learn_waiting()
    expected = later.predict(x)
    kill(later)
    again = OnDeviceModel.open(digits_bundle, tmp_path / "later", learner="statistics", gate=False)
    np.testing.assert_array_equal(again.predict(x), expected)
    again.close()


def test_a_merge_that_comes_while_labels_wait_counts_each_once(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned_labels(90)

    def run(folder: str, *, later: bool, is_killed: bool) -> OnDeviceModel:
        model = OnDeviceModel.open(digits_bundle, tmp_path / folder, learner="statistics", gate=False)
        model.learn(x[:30], y[:30])
        for i in range(30, 60):
            model.predict_sample(f"s{i}", x[i], 0.0)
            model.join_label(f"s{i}", int(y[i]), 0.0, later=later)
            if i == 40:
                sent = model.contribution()
        if is_killed:
            kill(model)
            model = OnDeviceModel.open(digits_bundle, tmp_path / folder, learner="statistics", gate=False)
        while model.learn_waiting():
            pass
        model.apply(merged_head(model.bundle, [sent]), 1)
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
    model.save()
    model.close()
    assert sorted(tmp_path.rglob("*")) == before
    assert OnDeviceModel.open(digits_bundle).n_samples == 0


@pytest.mark.parametrize("learner", LEARNERS)
def test_refused_samples_change_nothing_in_memory_or_on_disk(tmp_path: Path, digits_bundle: Path, learner: str) -> None:
    x, y = data(digits_bundle)
    model = OnDeviceModel.open(digits_bundle, tmp_path, learner=learner)
    model.learn(x, y)
    before, files = model.predict(x), {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
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
    np.testing.assert_array_equal(model.predict(x), before)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files
    model.close()


def test_statistics_learner_needs_a_linear_head(mlp_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="suitable: auto, sgd, sgd-plain, layered"):
        OnDeviceModel.open(mlp_bundle, learner="statistics")
    model = OnDeviceModel.open(mlp_bundle)
    assert (model.learner_kind, model.learners) == ("delta", ("layered", "sgd"))


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
    model = OnDeviceModel.open(digits_bundle, tmp_path, learner="sgd", gate=False)
    model.learn(x, y)
    learned = model.predict(x)
    model.close()
    other = OnDeviceModel.open(digits_bundle, tmp_path, learner="statistics")
    assert other.n_samples == 0
    assert "sgd was put aside; starting anew" in other.warnings[0]
    other.learn(x[:7], y[:7])
    kill(other)
    again = OnDeviceModel.open(digits_bundle, tmp_path, learner="sgd", gate=False)
    assert "going on from what they had learned" in again.warnings[0]
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
    model = OnDeviceModel.open(digits_bundle, tmp_path / "s", learner="ridge", gate=False)
    model.learn(x, y)
    learned = model.predict(x)
    model.close()
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    found = OnDeviceModel.open(digits_bundle, tmp_path / "s", read_only=True)
    np.testing.assert_array_equal(found.predict(x), learned)
    found.learn(x[:3], y[:3])
    found.close()
    assert {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()} == before


def test_a_state_saved_with_the_gate_is_followed_without_one(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned_labels(200)
    OnDeviceModel.open(digits_bundle, tmp_path).close()
    model = OnDeviceModel.open(digits_bundle, tmp_path, gate=False)
    model.learn(x, y)
    assert model.leader == "statistics"
    model.close()


def test_labels_that_are_not_trusted_at_all_change_nothing(digits_bundle: Path) -> None:
    x, y = turned_labels(128)
    model, twin = (OnDeviceModel.open(digits_bundle) for _ in range(2))
    for each in (model, twin):
        each.learn(x[:64], y[:64])
    model.learn(x[64:], (y[64:] + 1) % 10, np.zeros(64))
    assert model.temperature == twin.temperature
    assert model.metrics.accuracy == twin.metrics.accuracy
    assert model.leader == twin.leader
    np.testing.assert_allclose(model.predict(x), twin.predict(x), rtol=1e-4, atol=1e-4)


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
    assert "damaged" in again.warnings[0]
    assert path.with_suffix(".damaged").read_bytes() == content
    again.close()


def test_a_batch_whose_middle_cannot_be_learned_is_after_a_restart_as_before_it(
    tmp_path: Path, mlp_bundle: Path
) -> None:
    x, y = data(mlp_bundle, 6)
    model = OnDeviceModel.open(mlp_bundle, tmp_path, learner="sgd-plain", gate=False)
    (learner,) = model._shadow.candidates.values()
    learn_many = learner.learn_many

    def learn(*arguments: Any) -> None:  # samples whose step overflows are hard to come by
        if learner.n_samples == 3:
            raise LearningError("the step is not finite")
        learn_many(*arguments)

    learner.learn_many = learn  # type: ignore[method-assign]
    with pytest.raises(LearningError):
        model.learn(x, y)
    assert model.n_samples == 3
    learned, head = model.n_samples, model.head_digest()
    kill(model)
    again = OnDeviceModel.open(mlp_bundle, tmp_path, learner="sgd-plain", gate=False)
    assert (again.n_samples, again.head_digest()) == (learned, head)
    again.close()


def test_a_label_that_waits_and_cannot_be_learned_costs_no_other(mlp_bundle: Path) -> None:
    x, y = data(mlp_bundle, 3)
    model = OnDeviceModel.open(mlp_bundle, learner="sgd", gate=False)
    model.predict_sample("far", x[0] * np.float32(1e17), 0.0)
    with pytest.raises(LearningError, match="beyond"):
        model.join_label("far", int(y[0]), 1.0, later=True)
    model.predict_sample("bad", x[0] * np.float32(1e13), 0.0)
    model.predict_sample("good", x[1], 0.0)
    assert model.join_label("bad", int(y[0]), 1.0, later=True)
    assert model.join_label("good", int(y[1]), 1.0)
    assert model.n_samples >= 1
    assert model.n_waiting == 0


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


@pytest.mark.parametrize("name", ["\ud800", 5, None, "", "x" * 129])
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
        model.apply(shipped, 5)
    np.testing.assert_array_equal(model.predict(x), before)
    assert model.base_release == 0
    model.apply(shipped, 5)
    assert model.base_release == 5
    model.close()


def test_a_release_that_does_not_fit_changes_nothing(digits_bundle: Path) -> None:
    model = OnDeviceModel.open(digits_bundle)
    shipped = HeadRelease(backbone=model.manifest.backbone_digest, parameters=model.bundle.head_parameters())
    model.apply(shipped, 1)
    names = (*model.class_names, "r")
    short = {name: array[:5] for name, array in shipped.parameters.items()}
    with pytest.raises(BundleError):
        model.apply(dataclasses.replace(shipped, parameters=short, class_names=names), 2)
    assert len(model.class_names) == 10
    model.roll_back()


@pytest.mark.parametrize("is_killed", [False, True])
def test_labels_that_came_on_probation_are_kept_when_it_ends_badly(
    tmp_path: Path, digits_bundle: Path, is_killed: bool
) -> None:
    x, y = turned_labels(90)
    twin = OnDeviceModel.open(digits_bundle, gate=False)
    twin.learn(x, y)
    model = OnDeviceModel.open(digits_bundle, tmp_path, gate=False)
    model.learn(x[:60], y[:60])
    bad = {name: -array for name, array in model.bundle.head_parameters().items()}
    model.apply(HeadRelease(backbone=model.manifest.backbone_digest, parameters=bad), 1)
    model.learn(x[60:80], y[60:80])
    model.save()
    model.learn(x[80:], y[80:])
    if is_killed:
        kill(model)
        model = OnDeviceModel.open(digits_bundle, tmp_path, gate=False)
    model.roll_back()
    assert (model.n_samples, model.base_release) == (90, 0)
    np.testing.assert_allclose(model.predict(x), twin.predict(x), rtol=1e-4, atol=1e-4)
    model.close()
    again = OnDeviceModel.open(digits_bundle, tmp_path, gate=False)
    assert again.n_samples == 90
    again.close()


def test_a_lineage_that_begins_anew_is_kept(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned_labels(20)
    OnDeviceModel.open(digits_bundle, tmp_path).close()
    for path in tmp_path.rglob("state*.bin"):
        path.write_bytes(b"x")
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    model.learn(x, y)
    lineage = model.contribution().lineage
    kill(model)
    again = OnDeviceModel.open(digits_bundle, tmp_path)
    assert again.contribution().lineage == lineage
    assert again.n_samples == 20
    kill(again)
    for path in tmp_path.rglob("state*.bin"):
        path.unlink()
    anew = OnDeviceModel.open(digits_bundle, tmp_path)
    assert (anew.n_samples, anew.contribution().lineage == lineage) == (0, False)
    assert "not the checkpoint" in anew.warnings[0]
    anew.close()


def test_a_closed_model_learns_nothing_more(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned_labels(4)
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    model.close()
    other = OnDeviceModel.open(digits_bundle, tmp_path)
    with pytest.raises(LearningError, match="closed"):
        model.learn(x, y)
    other.learn(x[:1], y[:1])
    other.close()
    again = OnDeviceModel.open(digits_bundle, tmp_path)
    assert again.n_samples == 1
    again.close()


def test_a_seed_or_a_folder_that_cannot_be_is_said(tmp_path: Path, digits_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="seed -1"):
        OnDeviceModel.open(digits_bundle, seed=-1)
    (tmp_path / "learned").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        OnDeviceModel.open(digits_bundle, tmp_path)


def test_damaged_checkpoint_falls_back_and_says_so(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = data(digits_bundle)
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    model.learn(x[:25], y[:25])
    model.save()
    model.learn(x[25:], y[25:])
    model.save()
    expected = model.predict(x)
    model.close()
    state = next(tmp_path.rglob("state.bin"))
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    again = OnDeviceModel.open(digits_bundle, tmp_path)
    assert "damaged" in again.warnings[0]
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


def test_the_live_head_stays_until_a_learner_has_proved_itself(digits_bundle: Path) -> None:
    x, y = turned_labels()
    model = OnDeviceModel.open(digits_bundle)
    shipped = model.head_digest()
    model.learn(x[:3], y[:3])
    assert (model.leader, model.head_digest()) == ("", shipped)
    model.learn(x[3:], y[3:])
    assert model.leader == "statistics"
    assert model.head_digest() != shipped
    assert [event.kind for event in model.events] == ["promoted"]


def test_random_labels_do_not_change_the_live_head(digits_bundle: Path) -> None:
    x, _ = data(digits_bundle, 300)
    model = OnDeviceModel.open(digits_bundle)
    shipped = model.head_digest()
    model.learn(x, np.random.default_rng(1).integers(0, 10, 300))
    assert (model.head_digest(), model.n_samples) == (shipped, 300)


def test_probabilities_are_calibrated_by_what_labels_said(digits_bundle: Path) -> None:
    x, y = data(digits_bundle, 200)
    wrong = np.random.default_rng(2).random(200) < 0.4
    model = OnDeviceModel.open(digits_bundle)
    before = model.probabilities(x).max(axis=1).mean()
    model.learn(x, np.where(wrong, (y + 3) % 10, y))
    assert model.temperature > 1.2
    assert model.probabilities(x).max(axis=1).mean() < before
    np.testing.assert_allclose(model.probabilities(x).sum(axis=1), 1.0)


def test_a_class_is_added_while_it_runs_and_survives_a_restart(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = data(digits_bundle, 120)
    model = OnDeviceModel.open(digits_bundle, tmp_path, gate=False)
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
    assert model._store is not None
    assert model._lock is not None
    model._store.close()
    os.close(model._lock)
    again = OnDeviceModel.open(digits_bundle, tmp_path, gate=False)
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
        model.save()
"""


@pytest.mark.parametrize("learner", LEARNERS)
def test_kill_at_random_moments_loses_nothing_acknowledged(tmp_path: Path, digits_bundle: Path, learner: str) -> None:
    """A process that learns and saves for ever, killed with ``kill -9`` again and again (fault 21)."""
    rng = random.Random(5)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    kept = 0
    for _ in range(8):
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
        assert model.warnings == []
        assert np.isfinite(model.predict(data(digits_bundle)[0])).all()
        kept = model.n_samples
        model.close()
    assert kept > 50
