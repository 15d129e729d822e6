"""What a head with hidden layers replays before its first label: samples drawn from the shipped statistics."""

from __future__ import annotations

import numpy as np
import pytest

from edge.contract.recipe import TrainingRecipe
from edge.contract.training import FloatArray, Parameters
from edge.inference.onnx_trainer import OnnxTrainer
from edge.learning.draws import Draws
from edge.learning.familiarity import covariance_of, means_of
from edge.learning.recalled import PER_CLASS, recalled
from edge.learning.sgd import SgdLearner
from edge.learning.statistics import HeadStatistics
from edge.learning.task import Task
from tests.edge.learning.conftest import (
    MLP_CLASSES,
    MLP_IN,
    MLP_LAST,
    clouds,
    mlp_outputs,
    mlp_parameters,
    mlp_training_graph,
    new_mlp_sgd,
)

X, Y = clouds(300, MLP_IN, MLP_CLASSES, 7)
STATISTICS = HeadStatistics.of(X, Y, MLP_CLASSES)


def everything(features: FloatArray) -> FloatArray:
    """A head that names each sample as it was drawn."""
    return np.eye(MLP_CLASSES, dtype=np.float32)[np.repeat(np.arange(MLP_CLASSES), PER_CLASS)]


@pytest.fixture(scope="module")
def shipped() -> Parameters:
    """A head that knows these classes."""
    learner = new_mlp_sgd(rehearsals=1)
    learner.learn_many(X, Y)
    return learner.parameters()


def test_they_have_the_means_and_the_covariance_of_the_statistics() -> None:
    drawn = [recalled(STATISTICS, everything, Draws((seed,))) for seed in range(300)]
    features = np.concatenate([x for x, _ in drawn])
    labels = np.concatenate([y for _, y in drawn])
    found, spread = HeadStatistics.of(features, labels, MLP_CLASSES), np.sqrt(np.diag(covariance_of(STATISTICS)))
    assert np.abs((means_of(found) - means_of(STATISTICS)) / spread).max() < 0.1
    correlations = (covariance_of(found) - covariance_of(STATISTICS)) / np.outer(spread, spread)
    assert np.abs(correlations).max() < 0.1
    again = recalled(STATISTICS, everything, Draws((0,)))
    np.testing.assert_array_equal(again[0], drawn[0][0])


def test_the_shipped_head_names_each_of_them_so(shipped: Parameters) -> None:
    outside = np.concatenate([X, X]), np.concatenate([Y, np.random.default_rng(0).integers(0, MLP_CLASSES, len(Y))])
    features, labels = recalled(
        HeadStatistics.of(*outside, MLP_CLASSES), lambda x: mlp_outputs(x, shipped), Draws((1,))
    )
    assert 0 < len(labels) < MLP_CLASSES * PER_CLASS
    np.testing.assert_array_equal(mlp_outputs(features, shipped).argmax(axis=1), labels)


def test_of_many_classes_there_are_fewer_and_of_unknown_ones_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.learning.recalled.MOST", 40)
    n_classes = 60
    labels = np.arange(n_classes)
    features = np.stack([labels, -labels], axis=1).astype(np.float32)

    def asked(x: FloatArray) -> FloatArray:
        assert len(x) <= 40
        return np.zeros((len(x), n_classes), np.float32)

    _, found = recalled(HeadStatistics.of(features, labels, n_classes), asked, Draws((0,)))
    assert found.tolist() == [0]
    x, y = X[Y != 2], Y[Y != 2]
    parts = np.repeat([0, 1, 3], PER_CLASS)
    _, found = recalled(HeadStatistics.of(x, y, MLP_CLASSES), lambda _: np.eye(MLP_CLASSES)[parts], Draws((0,)))
    np.testing.assert_array_equal(found, parts)


@pytest.mark.parametrize("named", ["as it is", "always the same"])
def test_labels_of_one_class_do_not_make_it_forget_the_others(shipped: Parameters, named: str) -> None:
    task, test = Task(TrainingRecipe(), MLP_CLASSES), clouds(400, MLP_IN, MLP_CLASSES, 7)
    found = recalled(STATISTICS, lambda x: mlp_outputs(x, shipped), Draws((0,)))
    rows = np.resize(np.flatnonzero(Y == 1), 60) if named == "as it is" else np.arange(60)
    right = []
    for before in (None, found):
        step = OnnxTrainer(mlp_training_graph(), "features", mlp_parameters())
        step.load(shipped)
        learner = SgdLearner(
            step, (MLP_IN,), task, 0.2, 20, head=MLP_LAST, run=mlp_outputs, rehearsals=1, recalled=before
        )
        learner.learn_many(X[rows], np.full(60, 1))
        right.append(float(task.right(mlp_outputs(test[0], learner.parameters()), test[1]).mean()))
    known = float(task.right(mlp_outputs(test[0], shipped), test[1]).mean())
    without, with_them = (known - each for each in right)
    assert without > 0.1, "there is nothing to forget here"
    assert with_them < without / 2
