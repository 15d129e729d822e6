"""Whitened coordinates: the same answers, and one SGD step in them is the preconditioned step."""

from __future__ import annotations

import numpy as np
import pytest

from edge.contract.manifest import LinearLayer
from edge.contract.recipe import TrainingRecipe
from edge.contract.training import FloatArray, Parameters
from edge.inference.numpy_trainer import NumpyTrainer
from edge.learning.sgd import ETA, TEMPERED, SgdLearner
from edge.learning.statistics import HeadStatistics, Matrix
from edge.learning.task import Task
from edge.learning.whitening import SHRINKAGE, Whitening
from tests.edge.learning.conftest import (
    MLP_CLASSES,
    MLP_FIRST,
    MLP_IN,
    clouds,
    mlp_hidden,
    mlp_outputs,
    mlp_parameters,
    new_mlp_sgd,
)

D, K = 6, 3
WITH_BIAS = LinearLayer(weight="w", bias="b", input="x")
WITHOUT_BIAS = LinearLayer(weight="w", bias=None, input="x")


def features(n: int, seed: int) -> FloatArray:
    """Correlated, of different scales, far from zero."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).normal(size=(D, D)) * np.array([5.0, 1.0, 0.2, 1.0, 3.0, 0.5])
    return np.asarray(rng.normal(size=(n, D)) @ mixing + 4.0, np.float32)


def statistics(n: int = 300) -> HeadStatistics:
    return HeadStatistics.of(features(n, 0), np.zeros(n, int), K)


def parameters(head: LinearLayer, seed: int = 3) -> Parameters:
    rng = np.random.default_rng(seed)
    found = {"w": rng.normal(size=(K, D)).astype(np.float32)}
    return found if head.bias is None else found | {"b": rng.normal(size=K).astype(np.float32)}


def outputs(x: FloatArray, found: Parameters) -> FloatArray:
    return np.asarray(x @ found["w"].T + found.get("b", np.zeros(K, np.float32)))


HEADS = pytest.mark.parametrize("head", [WITH_BIAS, WITHOUT_BIAS], ids=["bias", "no bias"])


@HEADS
def test_parameters_come_back_from_whitened_coordinates(head: LinearLayer) -> None:
    whitening, given = Whitening(statistics(), head), parameters(head)
    found = whitening.plain(whitening.whitened(given))
    assert found.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5)
        assert found[name].dtype == np.float32


@HEADS
def test_the_answers_are_the_same(head: LinearLayer) -> None:
    whitening, given, x = Whitening(statistics(), head), parameters(head), features(50, 9)
    expected = outputs(x, given)
    np.testing.assert_allclose(outputs(whitening.features(x), whitening.whitened(given)), expected, atol=1e-4)
    # And the other way round, for a head that lives in whitened coordinates.
    np.testing.assert_allclose(
        outputs(x, whitening.plain(given)), outputs(whitening.features(x), given), rtol=1e-4, atol=1e-4
    )


def test_whitened_features_have_the_mean_zero_and_about_the_unit_covariance() -> None:
    x = features(5000, 0)
    found = Whitening(HeadStatistics.of(x, np.zeros(5000, int), K), WITH_BIAS).features(x)
    assert found.dtype == np.float32
    whitened = found.astype(np.float64)
    np.testing.assert_allclose(whitened.mean(axis=0), 0.0, atol=1e-3)
    covariance = whitened.T @ whitened / 5000
    values = np.linalg.eigvalsh(covariance)
    assert values.max() <= 1.0 / (1.0 - SHRINKAGE)
    plain = np.linalg.eigvalsh(np.cov(x.astype(np.float64).T))
    assert values.max() / values.min() < plain.max() / plain.min() / 20


@pytest.mark.parametrize("n", [1, 2])
def test_statistics_of_hardly_any_samples_give_finite_coordinates(n: int) -> None:
    given = parameters(WITH_BIAS)
    whitening = Whitening(statistics(n), WITH_BIAS)
    whitened = whitening.whitened(given)
    assert all(np.isfinite(array).all() for array in whitened.values())
    assert np.isfinite(whitening.features(features(9, 2))).all()


def covariance_of(found: HeadStatistics) -> tuple[Matrix, Matrix]:
    """Mean and shrunk covariance, from the definition."""
    n = found.n_samples
    mean = found.gram[-1, :-1] / n
    covariance = found.gram[:-1, :-1] / n - np.outer(mean, mean)
    return mean, (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / D * np.eye(D)


def softmax(z: Matrix) -> Matrix:
    found = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def test_a_whitened_step_is_the_preconditioned_step() -> None:
    shipped, given, x = statistics(), parameters(WITH_BIAS), features(1, 9)
    task = Task(TrainingRecipe(), K)
    learner = SgdLearner(
        NumpyTrainer(task.recipe, WITH_BIAS, given),
        (D,),
        task,
        123.0,  # of plain features: not used
        per_class=0,
        head=WITH_BIAS,
        whitening=Whitening(shipped, WITH_BIAS),
    )
    learner.learn_many(x, np.array([1]))
    # By hand, in float64: W <- W - eta P g, and the bias in centred coordinates.
    mean, covariance = covariance_of(shipped)
    preconditioner = np.linalg.inv(covariance)
    weight, rate = TEMPERED * given["w"].astype(np.float64), ETA / (D + 1)
    centred_bias = TEMPERED * (given["b"] + given["w"].astype(np.float64) @ mean)
    centred = x.astype(np.float64) - mean
    error = softmax(centred @ weight.T + centred_bias) - np.eye(K)[[1]]
    weight = weight - rate * (error.T @ centred) @ preconditioner
    centred_bias = centred_bias - rate * error[0]
    np.testing.assert_allclose(learner.parameters()["w"], weight, atol=2e-5)
    np.testing.assert_allclose(learner.parameters()["b"], centred_bias - weight @ mean, atol=2e-4)


def test_whitening_of_the_first_of_several_layers_keeps_the_answers_and_gives_both_layers_the_same_energy() -> None:
    rng, x = np.random.default_rng(5), features(400, 0)
    given = {
        "w": rng.normal(size=(4, D)).astype(np.float32),
        "b": rng.normal(size=4).astype(np.float32),
        "last": rng.normal(size=(K, 4)).astype(np.float32),
    }

    def hidden(x: FloatArray, found: Parameters) -> FloatArray:
        return np.asarray(np.maximum(x @ found["w"].T + found["b"], 0.0))

    last = HeadStatistics.of(hidden(x, given), np.zeros(400, int), K)
    whitening = Whitening(HeadStatistics.of(x, np.zeros(400, int), K), WITH_BIAS, last)
    whitened = whitening.whitened(given)
    np.testing.assert_allclose(hidden(whitening.features(x), whitened), hidden(x, given), rtol=1e-4, atol=1e-3)
    assert (whitened["last"] == given["last"]).all()
    energy = float(np.square(hidden(x, given)).sum(axis=1).mean()) + 1.0
    assert whitening.energy == pytest.approx(energy, rel=1e-5)
    # Less than that: directions with little variance are not blown up to the same.
    assert 0.3 * energy < np.square(whitening.features(x)).sum(axis=1).mean() < energy


def test_a_head_of_two_layers_learns_correlated_features_much_faster_with_whitening() -> None:
    """Features far from zero and of different scales, as those of a backbone after a ReLU are."""
    mixing = np.random.default_rng(3).normal(size=(MLP_IN, MLP_IN)) * np.geomspace(5.0, 0.05, MLP_IN)
    found: dict[str, list[float]] = {"plain": [], "whitened": []}
    for seed in (5, 6, 7):
        plain, labels = clouds(600, MLP_IN, MLP_CLASSES, seed)
        mixed = (plain @ mixing + 4.0).astype(np.float32)
        shipped = HeadStatistics.of(mixed[:60], labels[:60], MLP_CLASSES)
        last = HeadStatistics.of(mlp_hidden(mixed[:60], mlp_parameters()), labels[:60], MLP_CLASSES)
        for name, whitening in (("plain", None), ("whitened", Whitening(shipped, MLP_FIRST, last))):
            learner = new_mlp_sgd(0, whitening, 1)
            learner._rate = learner._rate if whitening else 5.0 * last.n_samples / float(np.trace(last.gram))
            learner.learn_many(mixed[:60], labels[:60])
            outputs_then = mlp_outputs(mixed[60:], learner.parameters())
            found[name].append(float((outputs_then.argmax(axis=1) == labels[60:]).mean()))
    assert np.mean(found["whitened"]) > np.mean(found["plain"]) + 0.1, found


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_learning_does_not_depend_on_the_scale_of_the_features(scale: float) -> None:
    def answers(factor: float) -> FloatArray:
        x = features(120, 4) * np.float32(factor)
        labels = (features(120, 4)[:, 0] > 4).astype(int)
        shipped = HeadStatistics.of(features(300, 0) * factor, np.zeros(300, int), K)
        start = {"w": np.zeros((K, D), np.float32), "b": np.zeros(K, np.float32)}
        task = Task(TrainingRecipe(), K)
        learner = SgdLearner(
            NumpyTrainer(task.recipe, WITH_BIAS, start),
            (D,),
            task,
            0.01,
            per_class=5,
            head=WITH_BIAS,
            whitening=Whitening(shipped, WITH_BIAS),
        )
        learner.learn_many(x, labels)
        return outputs(x, learner.parameters())

    np.testing.assert_allclose(answers(scale), answers(1.0), atol=0.05)
