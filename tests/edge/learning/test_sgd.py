"""What is particular to SGD: replay, steps that are refused, stable rates, changes on top of a merge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.contract.recipe import HUBER, MEAN_SQUARED_ERROR, TrainingRecipe
from edge.inference.numpy_trainer import NumpyTrainer
from edge.learning.sgd import SgdLearner
from edge.learning.statistics import HeadStatistics
from edge.learning.task import Task
from edge.learning.whitening import Whitening
from tests.edge.learning.conftest import (
    LINEAR,
    Rig,
    Samples,
    bundle_head,
    bundle_rig,
    clouds,
    linear_outputs,
    onnx_step,
    same,
)
from tests.edge.learning.test_learners import part, restore, saved, snapshot

# Into whitened coordinates and back in float32: 1.5e-5 of the largest was seen with a network of another machine.
TOLERANCE = 5e-5


def test_a_step_that_diverges_in_the_middle_of_a_batch_undoes_the_batch(bundle: Bundle) -> None:
    def new() -> SgdLearner:
        task = Task(TrainingRecipe(), 10)
        return SgdLearner(onnx_step(bundle), (64,), task, 1e18, per_class=3, head=bundle_head(bundle))

    features = np.zeros((8, 64), np.float32)  # a step on zeros moves the bias only, by 1e18: finite
    labels = np.arange(8)
    learner, twin = new(), new()
    for each in (learner, twin):
        each.learn_many(features[:2], labels[:2])
    before = snapshot(learner)
    features[5] = 9e14  # 1e18 times as much is beyond what a head may hold
    with pytest.raises(LearningError, match="not finite"):
        learner.learn_many(features, labels)
    assert snapshot(learner) == before
    for each in (learner, twin):
        each.learn_many(features[:3], labels[:3])
    assert snapshot(learner) == snapshot(twin)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_what_the_optimizer_remembers_is_undone_and_saved_as_well(samples: Samples, optimizer: str) -> None:
    head = {"weight": np.zeros((10, 64), np.float32), "bias": np.zeros(10, np.float32)}

    def new() -> SgdLearner:
        task = Task(TrainingRecipe(optimizer=optimizer), 10)
        return SgdLearner(NumpyTrainer(task.recipe, LINEAR, head), (64,), task, 0.01, per_class=3, head=LINEAR)

    learner, twin = new(), new()
    for each in (learner, twin):
        each.learn_many(*part(samples, 0, 20))
    before = snapshot(learner)
    assert any(name.startswith("memory.slot") for name in before)
    features = samples[0][:9].copy()
    features[5] = np.nan
    with pytest.raises(LearningError):
        learner.learn_many(features, samples[1][:9])
    assert snapshot(learner) == before
    restored = new()
    restore(restored, saved(learner), 10)
    for each in (learner, twin, restored):
        each.learn_many(*part(samples, 20))
    assert snapshot(learner) == snapshot(twin) == snapshot(restored)


def test_replay_remembers_classes_that_do_not_come_any_more(digits_bundle: Path) -> None:
    """Labels come class after class: plain SGD ends up with the last one."""
    features, labels = clouds(400, 64, 10, 5)
    order = np.argsort(labels[:300], kind="stable")
    lost = {}
    for name in ("sgd-numpy", "sgd-plain"):
        rig = bundle_rig(name, digits_bundle)
        learner = rig.new()
        learner.learn_many(features[order], labels[order])
        lost[name] = rig.loss(learner, (features[300:], labels[300:]))
    assert lost["sgd-numpy"] < 0.1
    assert lost["sgd-plain"] > 0.4


def test_a_wrong_label_in_the_replay_buffer_counts_little(digits_bundle: Path) -> None:
    rig = bundle_rig("sgd-numpy", digits_bundle)
    learner = rig.new()
    assert isinstance(learner, SgdLearner)
    learner.learn_many(*rig.samples)
    features, labels = rig.samples
    wrong = labels[:20].copy()
    wrong[3] = (wrong[3] + 5) % 10
    whitened = learner._whitening.features(features[:20]) if learner._whitening else features[:20]
    trust = learner._trust(whitened, wrong, 20)[0]
    assert trust[3] < 0.2
    assert np.delete(trust, 3).mean() > 0.9
    # A head that is wrong about everything: the world has changed.
    assert learner._trust(whitened, (labels[:20] + 1) % 10, 20).mean() > 0.6


@pytest.mark.parametrize("n_outputs", [1, 2, 5])
@pytest.mark.parametrize("loss", [MEAN_SQUARED_ERROR, HUBER])
def test_whitened_steps_on_quantities_are_stable(loss: str, n_outputs: int) -> None:
    rng = np.random.default_rng(0)
    d = 24
    features = rng.normal(1, 1, (300, d)).astype(np.float32)
    slopes = rng.normal(0, 1, (d, n_outputs)) / np.sqrt(d)
    targets = (features @ slopes + 3 + 0.1 * rng.normal(size=(300, n_outputs))).astype(np.float32)
    head = {"weight": np.zeros((n_outputs, d), np.float32), "bias": np.zeros(n_outputs, np.float32)}
    shipped = HeadStatistics.of_targets(features, targets, np.ones(300))
    task = Task(TrainingRecipe(loss=loss), n_outputs)
    learner = SgdLearner(
        NumpyTrainer(task.recipe, LINEAR, head),
        (d,),
        task,
        0.01,
        per_class=20,
        head=LINEAR,
        whitening=Whitening(shipped, LINEAR),
    )
    errors = []
    for i in range(300):
        learner.learn_many(features[i : i + 1], targets[i : i + 1])
        found = learner.parameters()
        errors.append(float(np.square(features @ found["weight"].T + found["bias"] - targets).mean()))
    assert max(errors) < 3 * np.square(targets).mean()
    assert errors[-1] < 0.1


def test_a_head_whose_last_layer_is_not_linear_does_not_grow(bundle: Bundle, samples: Samples) -> None:
    rig_head = bundle_head(bundle)
    learner = SgdLearner(onnx_step(bundle), (64,), Task(TrainingRecipe(), 10), 0.01, run=linear_outputs(rig_head))
    learner.learn_many(*part(samples, 0, 20))
    before = snapshot(learner)
    with pytest.raises(LearningError, match="not linear"):
        learner.grow(11)
    assert snapshot(learner) == before


def test_growing_keeps_the_very_numbers_of_the_other_classes(digits_bundle: Path, samples: Samples) -> None:
    rig = bundle_rig("sgd-numpy", digits_bundle)
    for learned in (0, 30):
        learner = rig.new()
        learner.learn_many(*part(samples, 0, learned))
        before = learner.parameters()
        learner.grow(12)
        for name, array in learner.parameters().items():
            assert (array[:10] == before[name]).all()
            assert len(array) == 12


# Merging


def test_steps_since_the_included_version_are_kept_on_top_of_a_merge(delta_rig: Rig) -> None:
    learner, samples = delta_rig.new(), delta_rig.samples
    learner.learn_many(samples[0][:30], samples[1][:30])
    contributed = learner.parameters()
    assert learner.n_contributed == 30
    change = learner.contribution().tensors
    learner.learn_many(samples[0][30:50], samples[1][30:50])
    now = learner.parameters()
    merged = {name: array + 0.25 for name, array in contributed.items()}
    learner.rebase(merged, {}, 30)
    same(learner.parameters(), {name: merged[name] + (now[name] - contributed[name]) for name in now}, TOLERANCE)
    assert learner.n_contributed == 20
    same(dict(learner.contribution().tensors), {name: now[name] - contributed[name] for name in now}, TOLERANCE)
    assert any(np.abs(array).max() > 0 for array in change.values())


def test_a_merge_without_this_device_keeps_all_its_steps(delta_rig: Rig) -> None:
    learner, samples = delta_rig.new(), delta_rig.samples
    shipped = learner.parameters()
    learner.learn_many(*samples)
    change = learner.contribution().tensors
    merged = {name: array * 0 for name, array in shipped.items()}
    learner.rebase(merged, {}, 0)
    same(learner.parameters(), dict(change), TOLERANCE)
    assert learner.n_contributed == len(samples[1])


def test_two_contributions_on_their_way_are_told_apart(delta_rig: Rig) -> None:
    learner, samples = delta_rig.new(), delta_rig.samples
    heads = {}
    for stop in (20, 40, 60):
        learner.learn_many(samples[0][stop - 20 : stop], samples[1][stop - 20 : stop])
        learner.contribution()
        heads[stop] = learner.parameters()
    first = {name: array + 0.5 for name, array in heads[20].items()}
    learner.rebase(first, {}, 20)
    second = {name: array - 0.5 for name, array in heads[40].items()}
    learner.rebase(second, {}, 40)
    # Twice into the coordinates of the learner and back: each time rounds.
    same(learner.parameters(), {n: a + (heads[60][n] - heads[40][n]) for n, a in second.items()}, 3 * TOLERANCE)


def test_refuses_a_merge_of_another_head_and_nothing_changes(delta_rig: Rig) -> None:
    learner, samples = delta_rig.new(), delta_rig.samples
    learner.learn_many(*samples)
    before = snapshot(learner)
    shapes = {name: array.shape for name, array in learner.parameters().items()}
    for bad in (
        {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()},
        {name: np.zeros((*shape, 1), np.float32) for name, shape in shapes.items()},
        {name: np.zeros((), np.float32) for name in shapes},
        {next(iter(shapes)): np.zeros(next(iter(shapes.values())), np.float32)},
    ):
        with pytest.raises(LearningError):
            learner.rebase(bad, {}, 0)
        assert snapshot(learner) == before
