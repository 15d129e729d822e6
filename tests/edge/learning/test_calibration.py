"""Temperature: found again where it is known, modest where little is known, and no answer is changed."""

from __future__ import annotations

import numpy as np
import pytest

from edge.contract.recipe import BINARY_CROSS_ENTROPY, MEAN_SQUARED_ERROR, TrainingRecipe
from edge.contract.training import FloatArray
from edge.learning.calibration import fit_temperature, probabilities
from edge.learning.task import Targets, Task

CLASSES = Task(TrainingRecipe(), 5)
BINARY = Task(TrainingRecipe(loss=BINARY_CROSS_ENTROPY), 3)
QUANTITIES = Task(TrainingRecipe(loss=MEAN_SQUARED_ERROR), 2)


def honest(n: int, seed: int) -> tuple[FloatArray, Targets]:
    """Logits, and labels drawn with the probabilities that they say."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 5)).astype(np.float32)
    chances = probabilities(logits, 1.0, CLASSES)
    labels = (rng.random((n, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(0, 4)
    return logits, labels.astype(np.int64)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 3.0, 40.0])
def test_a_known_temperature_is_found_again(temperature: float) -> None:
    logits, labels = honest(4000, 0)
    assert fit_temperature(logits * np.float32(temperature), labels, CLASSES) == pytest.approx(temperature, rel=0.06)


def test_a_temperature_of_several_yes_or_no_answers_is_found_again() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3000, 3)).astype(np.float32)
    targets = (rng.random((3000, 3)) < probabilities(logits, 1.0, BINARY)).astype(np.float32)
    assert fit_temperature(logits * np.float32(5), targets, BINARY) == pytest.approx(5.0, rel=0.08)


def test_it_makes_the_answers_more_likely() -> None:
    logits, labels = honest(64, 1)
    logits *= 6
    temperature = fit_temperature(logits, labels, CLASSES)
    best = CLASSES.losses(logits / temperature, labels).mean()
    assert best < CLASSES.losses(logits, labels).mean()
    assert best <= CLASSES.losses(logits / (1.3 * temperature), labels).mean() + 0.02


def test_no_temperature_changes_which_class_is_answered() -> None:
    logits, _ = honest(200, 2)
    for temperature in (0.02, 0.7, 500.0):
        found = probabilities(logits, temperature, CLASSES)
        assert (found.argmax(axis=1) == logits.argmax(axis=1)).all()
        np.testing.assert_allclose(found.sum(axis=1), 1.0)


def test_little_is_said_on_little() -> None:
    logits, labels = honest(4, 0)
    for n in range(4):
        assert 0.3 < fit_temperature(logits[:n], labels[:n], CLASSES) < 3.5
    assert fit_temperature(logits[:0], labels[:0], CLASSES) == 1.0


def test_one_surely_wrong_answer_does_not_run_away() -> None:
    logits = np.array([[1e4, 0, 0, 0, 0]], np.float32)
    for label in (0, 1):
        assert 0.02 <= fit_temperature(logits, np.array([label]), CLASSES) <= 500.0


def test_rows_that_are_not_finite_are_left_out() -> None:
    logits, labels = honest(500, 3)
    spoiled = np.concatenate([logits, np.full((3, 5), np.nan, np.float32), np.full((2, 5), np.inf, np.float32)])
    more = np.concatenate([labels, np.zeros(5, np.int64)])
    assert fit_temperature(spoiled, more, CLASSES) == fit_temperature(logits, labels, CLASSES)
    assert fit_temperature(spoiled[500:], more[500:], CLASSES) == 1.0


def test_quantities_have_no_temperature() -> None:
    outputs = np.array([[1.5, -2.0]], np.float32)
    assert fit_temperature(outputs, outputs + 1, QUANTITIES) == 1.0
    assert probabilities(outputs, 7.0, QUANTITIES).tolist() == outputs.tolist()


def test_probabilities_do_not_overflow() -> None:
    extreme = np.array([[1e30, 0, -1e30, 0, 0]], np.float32)
    assert probabilities(extreme, 0.02, CLASSES).tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]]
    assert probabilities(extreme[:, :3], 0.02, BINARY).tolist() == [[1.0, 0.5, 0.0]]
    z = np.array([[-3.0, 0.5, 2.0]], np.float32)
    np.testing.assert_allclose(probabilities(z, 2.0, BINARY), 1 / (1 + np.exp(-z / 2.0)))
