"""A head with a hidden layer: better than SGD alone, and both of its parts stay together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray, Parameters
from edge.learning.closed_form import StatisticsLearner
from edge.learning.layered import LayeredLearner
from edge.learning.learner import Learner
from edge.learning.statistics import HeadStatistics
from tests.edge.learning.conftest import (
    MLP_CLASSES,
    MLP_HIDDEN,
    MLP_IN,
    MLP_LAST,
    Samples,
    clouds,
    mlp_hidden,
    mlp_parameters,
    mlp_rig,
    new_layered,
    new_mlp_sgd,
    same,
)
from tests.edge.learning.test_learners import part, snapshot, teach_one_by_one


def rings(n: int, seed: int) -> Samples:
    """Classes by the distance from the middle: no linear layer tells them apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, MLP_CLASSES, n)
    directions = rng.normal(size=(n, MLP_IN))
    directions[:, 2:] *= 0.2
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return (directions * (0.5 + labels[:, None]) + rng.normal(0, 0.05, (n, MLP_IN))).astype(np.float32), labels


def accuracy(learner: Learner, samples: Samples) -> float:
    return 1.0 - mlp_rig("layered").loss(learner, samples)


N_WORLDS = 12


def clouds_of(n: int, seed: int) -> Samples:
    return clouds(n, MLP_IN, MLP_CLASSES, seed)


@pytest.mark.parametrize("world", [clouds_of, rings])
def test_learns_faster_than_sgd_alone(world: Callable[[int, int], Samples]) -> None:
    gains = []
    for seed in range(N_WORLDS):
        features, labels = world(300, seed)
        layered, sgd = new_layered(seed), new_mlp_sgd(seed)
        for learner in (layered, sgd):
            learner.learn_many(features[:24], labels[:24])
        later = features[24:], labels[24:]
        gains.append(accuracy(layered, later) - accuracy(sgd, later))
    luck = float(np.std(gains, ddof=1)) / N_WORLDS**0.5  # of the mean of so many worlds
    assert np.mean(gains) > 3 * luck


def test_the_hidden_layer_learns_what_no_linear_layer_can() -> None:
    samples, later = rings(600, 0), rings(200, 1)
    learner = new_layered()
    first = learner.parameters()
    learner.learn_many(*samples)
    now = learner.parameters()
    assert np.abs(now["w1"] - first["w1"]).max() > 0.1
    assert accuracy(learner, later) > 0.75
    last = StatisticsLearner(MLP_LAST, mlp_parameters(), mlp_rig("layered").task, None)
    last.learn_many(mlp_hidden(samples[0], first), samples[1])  # on the hidden layer as shipped
    only_last = {**first, **last.parameters()}
    outputs = mlp_rig("layered").run(later[0], only_last)
    assert accuracy(learner, later) > float((outputs.argmax(axis=1) == later[1]).mean())


def test_the_last_layer_is_solved_and_the_others_are_those_of_sgd() -> None:
    features, labels = clouds(60, MLP_IN, MLP_CLASSES, 5)
    learner, sgd = new_layered(), new_mlp_sgd()
    learner.learn_many(features, labels)
    sgd.learn_many(features, labels)
    found, below = learner.parameters(), sgd.parameters()
    assert (found["w1"] == below["w1"]).all()
    assert (found["b1"] == below["b1"]).all()
    assert (found["w2"] != below["w2"]).any()
    assert learner.n_samples == sgd.n_samples == 60


def test_a_hidden_layer_that_overflows_leaves_the_last_layer_as_it_is() -> None:
    def hidden(features: FloatArray, parameters: Parameters) -> FloatArray:
        return np.full((len(features), MLP_HIDDEN), np.inf, np.float32)

    learner = LayeredLearner(new_mlp_sgd(), MLP_LAST, mlp_rig("layered").task, hidden, None)
    learner.learn_many(*clouds(40, MLP_IN, MLP_CLASSES, 5))
    assert (learner.parameters()["w2"] == mlp_parameters()["w2"]).all()
    assert learner.n_samples == 40


def test_a_batch_that_is_refused_in_the_middle_is_undone_in_all_layers() -> None:
    learner = new_layered()
    features, labels = clouds(40, MLP_IN, MLP_CLASSES, 5)
    learner.learn_many(features[:8], labels[:8])
    before = snapshot(learner)
    far = features[8:].copy()
    far[20:] *= 1e14  # finite, and the steps on it are not
    with pytest.raises(LearningError):
        learner.learn_many(far, labels[8:])
    assert snapshot(learner) == before
    learner.learn_many(features[8:], labels[8:])
    twin = new_layered()
    teach_one_by_one(twin, (features, labels))
    same(learner.parameters(), twin.parameters())


def test_shipped_statistics_of_the_last_layer_are_a_start() -> None:
    features, labels = clouds(400, MLP_IN, MLP_CLASSES, 8)
    task = mlp_rig("layered").task
    prior = HeadStatistics.of(mlp_hidden(features[:200], mlp_parameters()), labels[:200], MLP_CLASSES)
    known = LayeredLearner(new_mlp_sgd(), MLP_LAST, task, mlp_hidden, prior)
    for learner in (known, anew := new_layered()):
        learner.learn_many(features[200:208], labels[200:208])
    assert accuracy(known, (features[208:], labels[208:])) > accuracy(anew, (features[208:], labels[208:])) + 0.03


def test_a_merge_moves_all_layers_and_learning_goes_on_from_it() -> None:
    samples = clouds(200, MLP_IN, MLP_CLASSES, 5)
    learner, other = new_layered(0), new_layered(1)
    learner.learn_many(*part(samples, 0, 60))
    other.learn_many(*part(samples, 60, 120))
    change, others = learner.contribution().tensors, other.contribution().tensors
    base = mlp_parameters()
    merged = {name: (base[name] + (change[name] + others[name]) / 2).astype(np.float32) for name in base}
    learner.rebase(merged, {}, 60)
    same(learner.parameters(), merged)
    assert learner.n_contributed == 0
    before = accuracy(learner, samples)
    for i in range(120, 200):
        learner.learn_many(*part(samples, i, i + 1))
    assert accuracy(learner, samples) >= before - 0.02
    assert learner.n_contributed == 80
    same(dict(learner.contribution().tensors), {n: a - merged[n] for n, a in learner.parameters().items()}, 1e-6)
