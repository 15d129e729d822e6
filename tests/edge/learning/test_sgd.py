"""What is particular to SGD: exact batches, seeds, steps that are refused, changes on top of a merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.inference.onnx_trainer import OnnxTrainer
from edge.learning.sgd import SgdLearner
from tests.edge.learning.test_learners import snapshot, teach_one_by_one

Samples = tuple[np.ndarray, np.ndarray]
New = Callable[..., SgdLearner]


def test_one_by_one_is_the_batch_bit_for_bit(new_sgd_learner: New, samples: Samples) -> None:
    one, batch = new_sgd_learner(), new_sgd_learner()
    teach_one_by_one(one, samples)
    batch.learn_many(*samples)
    assert snapshot(one) == snapshot(batch)


def test_the_seed_decides(new_sgd_learner: New, samples: Samples) -> None:
    first, second, other = new_sgd_learner(seed=1), new_sgd_learner(seed=1), new_sgd_learner(seed=2)
    for learner in (first, second, other):
        learner.learn_many(*samples)
    assert snapshot(first) == snapshot(second)
    assert snapshot(first) != snapshot(other)


def test_a_step_that_diverges_in_the_middle_of_a_batch_undoes_the_batch(digits_bundle: Path, samples: Samples) -> None:
    bundle = Bundle.open(digits_bundle)

    def new() -> SgdLearner:
        step = OnnxTrainer(bundle.read(m.HEAD_TRAIN), bundle.manifest.head.features.name, bundle.head_parameters())
        return SgdLearner(step, (64,), 10, 1e18, per_class=3)

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


def test_steps_since_the_included_version_are_kept_on_top_of_a_merge(new_sgd_learner: New, samples: Samples) -> None:
    learner = new_sgd_learner()
    learner.learn_many(samples[0][:30], samples[1][:30])
    contributed = learner.parameters()
    assert learner.n_contributed == 30
    change = learner.contribution()
    learner.learn_many(samples[0][30:50], samples[1][30:50])
    now = learner.parameters()
    merged = {name: array + 0.25 for name, array in contributed.items()}
    learner.rebase(merged, {}, 30)
    for name, array in learner.parameters().items():
        np.testing.assert_allclose(array, merged[name] + (now[name] - contributed[name]), atol=1e-6)
    assert learner.n_contributed == 20
    for name, array in learner.contribution().items():
        np.testing.assert_allclose(array, now[name] - contributed[name], atol=1e-6)
    assert any(np.abs(array).max() > 0 for array in change.values())


def test_a_merge_without_this_device_keeps_all_its_steps(new_sgd_learner: New, samples: Samples) -> None:
    learner = new_sgd_learner()
    shipped = learner.parameters()
    learner.learn_many(*samples)
    change = learner.contribution()
    merged = {name: array * 0 for name, array in shipped.items()}
    learner.rebase(merged, {}, 0)
    for name, array in learner.parameters().items():
        np.testing.assert_allclose(array, change[name], atol=1e-6)
    assert learner.n_contributed == len(samples[1])


def test_two_contributions_on_their_way_are_told_apart(new_sgd_learner: New, samples: Samples) -> None:
    learner = new_sgd_learner()
    heads = {}
    for stop in (20, 40, 60):
        learner.learn_many(samples[0][stop - 20 : stop], samples[1][stop - 20 : stop])
        learner.contribution()
        heads[stop] = learner.parameters()
    first = {name: array + 0.5 for name, array in heads[20].items()}
    learner.rebase(first, {}, 20)
    second = {name: array - 0.5 for name, array in heads[40].items()}
    learner.rebase(second, {}, 40)
    for name, array in learner.parameters().items():
        np.testing.assert_allclose(array, second[name] + (heads[60][name] - heads[40][name]), atol=1e-5)


def test_refuses_a_merge_of_another_head_and_nothing_changes(new_sgd_learner: New, samples: Samples) -> None:
    learner = new_sgd_learner()
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
