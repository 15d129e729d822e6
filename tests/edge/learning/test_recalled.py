"""What SGD replays before its first label, and what tells who has forgotten it: samples of the shipped statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge.contract.recipe import TrainingRecipe
from edge.contract.training import FloatArray, Parameters
from edge.inference.onnx_trainer import OnnxTrainer
from edge.learning.draws import Draws
from edge.learning.familiarity import covariance_of, means_of
from edge.learning.recalled import IMAGINED, MOST_IMAGINED, PER_CLASS, imagined, recalled
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


def test_those_that_nobody_learns_are_others_and_always_the_same() -> None:
    features, labels = imagined(STATISTICS)
    np.testing.assert_array_equal(labels, np.repeat(np.arange(MLP_CLASSES), IMAGINED))
    np.testing.assert_array_equal(features, imagined(STATISTICS)[0])
    learned = recalled(STATISTICS, everything, Draws((0,)))[0]
    assert np.abs(features[:, None] - learned[None]).max(axis=2).min() > 0.01
    n_classes = 3 * MOST_IMAGINED
    many = np.stack([np.arange(n_classes), np.zeros(n_classes)], axis=1).astype(np.float32)
    features, labels = imagined(HeadStatistics.of(many, np.arange(n_classes), n_classes))
    assert len(set(labels.tolist())) == MOST_IMAGINED == len(labels)
    assert (labels[0], labels[-1]) == (0, n_classes - 1)
    np.testing.assert_allclose(features, many[labels], atol=0.05)


@pytest.mark.parametrize("d", [2, 3, 200])
def test_statistics_without_full_rank_give_samples_too(d: int) -> None:
    rng = np.random.default_rng(0)
    few = (rng.normal(size=(20, 2)) @ rng.normal(size=(2, d)) * 1e3).astype(np.float32)
    found = HeadStatistics.of(few, np.arange(20) % 2, 2)
    rounded = replace(found, gram=found.gram.astype(np.float32).astype(np.float64))
    for statistics in (
        found,
        rounded,
        replace(found, gram=-found.gram),
        HeadStatistics.of(few[:1], np.zeros(1, int), 2),
    ):
        features, labels = imagined(statistics)
        assert len(labels) > 0
        assert np.isfinite(features).all()
    spread = np.sqrt(np.trace(covariance_of(rounded)))
    features, labels = imagined(rounded)
    assert np.abs(features - means_of(rounded)[labels]).max() < 6 * spread


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
    kept = learner.replayed()
    assert set(kept[1].tolist()) == {1}, "drawn ones never had a label"
    assert 0 < len(kept[1]) <= 20
    without, with_them = (known - each for each in right)
    assert without > 0.1, "there is nothing to forget here"
    assert with_them < without / 2
