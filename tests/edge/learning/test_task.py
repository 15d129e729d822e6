"""What a head is asked for: checked targets, losses as the recipe says, gains from -1 to 1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.errors import LearningError
from edge.contract.recipe import BINARY_CROSS_ENTROPY, HUBER, LOSSES, MEAN_SQUARED_ERROR, TrainingRecipe
from edge.contract.training import FloatArray
from edge.inference.numpy_trainer import NumpyTrainer
from edge.learning.task import Targets, Task, log_softmax
from tests.edge.learning.conftest import LINEAR

CLASSES = Task(TrainingRecipe(), 3)
BINARY = Task(TrainingRecipe(loss=BINARY_CROSS_ENTROPY), 3)
SQUARED = Task(TrainingRecipe(loss=MEAN_SQUARED_ERROR), 3)
ROBUST = Task(TrainingRecipe(loss=HUBER, huber_delta=0.7), 3)
TASKS = {"cross-entropy": CLASSES, "binary-cross-entropy": BINARY, "mean-squared-error": SQUARED, "huber": ROBUST}


def targets_of(task: Task, n: int, seed: int) -> Targets:
    rng = np.random.default_rng(seed)
    if task.is_classifier:
        return rng.integers(0, 3, n)
    if task is BINARY:
        return rng.integers(0, 2, (n, 3)).astype(np.float32)
    return rng.normal(0, 2, (n, 3)).astype(np.float32)


def outputs_of(n: int, seed: int) -> FloatArray:
    return np.random.default_rng(seed + 1).normal(0, 2, (n, 3)).astype(np.float32)


def test_log_softmax_is_that_and_does_not_overflow() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_allclose(log_softmax(logits), np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True)))
    assert log_softmax(np.array([[800.0, 0.0], [-800.0, 0.0]])).tolist() == [[0.0, -800.0], [-800.0, 0.0]]
    assert np.isfinite(log_softmax(np.array([[1e30, -1e30]], np.float32))).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_that_a_training_step_minimizes(loss: str) -> None:
    task = TASKS[loss]
    features, targets = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]], targets_of(task, 4, 0)
    head = {"weight": outputs_of(3, 5).T.copy(), "bias": np.zeros(3, np.float32)}
    outputs = features @ head["weight"].T
    step = NumpyTrainer(task.recipe, LINEAR, head)
    found = step.step(features, task.matrix(targets), np.ones(4, np.float32), 0.0)
    assert task.losses(outputs, targets).mean() == pytest.approx(found, rel=1e-5)


def test_right_is_per_class_or_the_share_of_right_answers() -> None:
    z = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5]], np.float32)
    assert CLASSES.right(z, np.array([0, 2])).tolist() == [1.0, 0.0]
    yes = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
    assert BINARY.right(z, yes).tolist() == pytest.approx([2 / 3, 1.0])
    assert SQUARED.right(z, z).tolist() == [0.0, 0.0]


def test_kinds_and_groups() -> None:
    assert (CLASSES.is_classifier, CLASSES.is_regression, CLASSES.n_groups) == (True, False, 3)
    assert (BINARY.is_classifier, BINARY.is_regression, BINARY.n_groups) == (False, False, 1)
    assert (SQUARED.is_classifier, SQUARED.is_regression, ROBUST.is_regression) == (False, True, True)
    assert CLASSES.groups(np.array([2, 0])).tolist() == [2, 0]
    assert SQUARED.groups(np.ones((2, 3))).tolist() == [0, 0]
    assert CLASSES.matrix(np.array([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert CLASSES.matrix(np.array([2, 0])).dtype == np.float32


def test_targets_are_kept_as_one_type() -> None:
    assert CLASSES.check(np.array([0, 2], np.uint8), 2).dtype == np.int64
    assert SQUARED.check(np.ones((2, 3), np.int16), 2).dtype == np.float32
    assert BINARY.check(np.ones((2, 3), bool), 2).tolist() == [[1.0] * 3] * 2
    one = Task(TrainingRecipe(loss=MEAN_SQUARED_ERROR), 1)
    assert one.check(np.array([1.0, 2.0]), 2).tolist() == [[1.0], [2.0]]
    assert CLASSES.check(np.zeros(0, np.int64), 0).shape == (0,)


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        (CLASSES, np.array([0, 3])),
        (CLASSES, np.array([0, -1])),
        (CLASSES, np.array([0.0, 1.0])),
        (CLASSES, np.array([True, False])),
        (CLASSES, np.array([0])),
        (CLASSES, np.array([[0, 1]])),
        (CLASSES, np.array(["0", "1"])),
        (SQUARED, np.ones((2, 2))),
        (SQUARED, np.ones(2)),
        (SQUARED, np.full((2, 3), np.nan)),
        (SQUARED, np.full((2, 3), 1e16)),
        (SQUARED, np.ones((2, 3), complex)),
        (BINARY, np.full((2, 3), 1.01)),
        (BINARY, np.full((2, 3), -0.01)),
        (BINARY, np.full((2, 3), np.nan)),
    ],
)
def test_refuses_targets_that_are_none(task: Task, targets: np.ndarray) -> None:
    with pytest.raises(LearningError):
        task.check(targets, 2)


def test_one_label_without_its_first_axis_is_told_how_it_gets_it() -> None:
    for task, targets in ((CLASSES, np.array(2)), (BINARY, np.zeros(3)), (SQUARED, np.ones(3))):
        with pytest.raises(LearningError, match=r"; y\[None\] has the axis that is missing$"):
            task.check(targets, 1)
        assert len(task.check(targets[None], 1)) == 1
        with pytest.raises(LearningError, match=r"of shape \((3,)?\)$"):
            task.check(targets, 2)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(TASKS)), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_gains_lie_between_minus_one_and_one_and_turn_round(name: str, n: int, seed: int) -> None:
    task = TASKS[name]
    before, after, targets = outputs_of(n, seed), outputs_of(n, seed + 7), targets_of(task, n, seed)
    gains = task.gains(before, after, targets)
    assert gains.shape == (n,)
    assert (np.abs(gains) <= 1).all()
    np.testing.assert_allclose(task.gains(after, before, targets), -gains, atol=1e-12)
    assert not task.gains(before, before, targets).any()


@pytest.mark.parametrize("name", sorted(TASKS))
def test_what_is_better_gains(name: str) -> None:
    task, targets = TASKS[name], targets_of(TASKS[name], 30, 3)
    good = task.matrix(targets) * 4 - (0 if task.is_regression else 2)
    if task.is_regression:
        good = task.matrix(targets)
    bad = outputs_of(30, 3)
    assert task.gains(bad, good, targets).mean() > 0.2
    assert (task.gains(bad, good, targets) >= 0).all()


@pytest.mark.parametrize("name", sorted(TASKS))
def test_what_is_not_finite_is_wrong(name: str) -> None:
    task, targets = TASKS[name], targets_of(TASKS[name], 4, 3)
    good = task.matrix(targets) if task.is_regression else task.matrix(targets) * 4 - 2
    lost = good.copy()
    lost[:2, 1] = np.nan
    lost[2, 0] = np.inf
    assert task.gains(good, lost, targets).tolist() == [-1.0, -1.0, -1.0, 0.0]
    assert task.gains(lost, good, targets).tolist() == [1.0, 1.0, 1.0, 0.0]
    assert task.gains(lost, lost, targets).tolist() == [0.0] * 4
