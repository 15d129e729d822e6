"""Heads from elsewhere: judged, found different, or not judged; never one for the other."""

from __future__ import annotations

import numpy as np
import pytest

from edge.contract.recipe import BINARY_CROSS_ENTROPY, MEAN_SQUARED_ERROR, TrainingRecipe
from edge.learning.task import Task
from edge.learning.trial import MIN_LABELS, MIN_SAMPLES, Finding, compare, judge

CLASSES = Task(TrainingRecipe(), 3)
QUANTITIES = Task(TrainingRecipe(loss=MEAN_SQUARED_ERROR), 2)
ANSWERS = Task(TrainingRecipe(loss=BINARY_CROSS_ENTROPY), 3)
RNG = np.random.default_rng(0)
TARGETS = RNG.integers(0, 3, 40)
RIGHT = np.eye(3, dtype=np.float32)[TARGETS]
WRONG = np.eye(3, dtype=np.float32)[(TARGETS + 1) % 3]


def test_labels_say_who_is_worse_and_by_how_much() -> None:
    assert judge(RIGHT, WRONG, TARGETS, CLASSES).finding is Finding.WORSE
    assert judge(WRONG, RIGHT, TARGETS, CLASSES).finding is Finding.GOOD
    assert "accuracy 1.000 against 0.000 on 40 recent labels" in judge(WRONG, RIGHT, TARGETS, CLASSES).reason
    a_little = RIGHT.copy()
    a_little[:1] = WRONG[:1]
    assert judge(RIGHT, a_little, TARGETS, CLASSES).finding is Finding.GOOD  # within chance


def test_few_labels_judge_nobody() -> None:
    few = slice(0, MIN_LABELS - 1)
    found = judge(RIGHT[few], WRONG[few], TARGETS[few], CLASSES)
    assert found.finding is Finding.NOT_JUDGED
    assert f"{MIN_LABELS} needed" in found.reason


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_answers_that_are_not_finite_are_worse_whatever_the_labels(bad: float) -> None:
    broken = RIGHT.copy()
    broken[0, 0] = bad
    assert judge(RIGHT[:1], broken[:1], TARGETS[:1], CLASSES).finding is Finding.WORSE
    assert compare(RIGHT[:1], broken[:1], CLASSES).finding is Finding.WORSE


def test_without_labels_answers_are_compared_and_a_head_that_differs_is_only_different() -> None:
    assert compare(RIGHT, RIGHT * 5, CLASSES).finding is Finding.GOOD
    found = compare(RIGHT, WRONG, CLASSES)
    assert found.finding is Finding.DIFFERENT
    assert "0% of 40 samples" in found.reason
    assert compare(RIGHT[: MIN_SAMPLES - 1], RIGHT[: MIN_SAMPLES - 1], CLASSES).finding is Finding.NOT_JUDGED


def test_quantities_and_yes_or_no_answers_are_compared_as_what_they_are() -> None:
    before = RNG.normal(0, 1, (40, 2)).astype(np.float32)
    assert compare(before, before + 0.1, QUANTITIES).finding is Finding.GOOD
    assert compare(before, before + 5, QUANTITIES).finding is Finding.DIFFERENT
    assert judge(before + 3, before, before, QUANTITIES).finding is Finding.GOOD
    assert judge(before, before + 3, before, QUANTITIES).finding is Finding.WORSE
    yes = np.ones((40, 3), np.float32)
    assert compare(yes, yes * 3, ANSWERS).finding is Finding.GOOD
    assert compare(yes, -yes, ANSWERS).finding is Finding.DIFFERENT
