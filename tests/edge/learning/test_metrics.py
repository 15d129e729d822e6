"""Running figures."""

from __future__ import annotations

import numpy as np
import pytest

from edge.contract.recipe import BINARY_CROSS_ENTROPY, MEAN_SQUARED_ERROR, TrainingRecipe
from edge.learning.metrics import RunningMetrics
from edge.learning.task import Task

CLASSES = Task(TrainingRecipe(), 2)


def test_nothing_is_known_at_the_beginning() -> None:
    metrics = RunningMetrics()
    assert metrics.accuracy is None
    assert metrics.report(10.0) == {"infer": 0, "labels": 0}


def test_accuracy_and_loss_are_of_what_was_answered() -> None:
    metrics = RunningMetrics()
    metrics.judged(CLASSES, np.array([[2.0, 0.0], [0.0, 0.1]]), np.array([0, 0]))
    assert metrics.accuracy == 0.5
    expected = (np.log(1 + np.exp(-2)) + np.log(1 + np.exp(0.1))) / 2
    report = metrics.report(0.0)
    assert (report["labels"], report["acc"]) == (2, 0.5)
    assert report["loss"] == pytest.approx(expected, abs=1e-4)
    metrics.forget_judgements()
    assert metrics.labels == 2
    assert not {"acc", "loss"} & metrics.report(0.0).keys()


def test_several_yes_or_no_answers_count_by_the_share_that_is_right() -> None:
    metrics = RunningMetrics()
    task = Task(TrainingRecipe(loss=BINARY_CROSS_ENTROPY), 4)
    metrics.judged(task, np.array([[3.0, 3.0, -3.0, -3.0]]), np.array([[1.0, 1.0, 0.0, 1.0]]))
    assert metrics.accuracy == 0.75


def test_quantities_have_a_loss_and_no_accuracy() -> None:
    metrics = RunningMetrics()
    task = Task(TrainingRecipe(loss=MEAN_SQUARED_ERROR), 2)
    metrics.judged(task, np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[1.0, 4.0], [0.0, 0.0]]))
    assert metrics.accuracy is None
    assert metrics.report(0.0) == {"infer": 0, "labels": 2, "loss": 1.0}


def test_old_events_leave_the_window() -> None:
    metrics = RunningMetrics(window=4)
    for right in (False, False, False, True, True, True):
        metrics.judged(CLASSES, np.array([[0.0, 1.0]]), np.array([int(right)]))
    assert metrics.accuracy == 0.75
    assert metrics.labels == 6
    for _ in range(10):
        metrics.inferred(100.0)
    for _ in range(4):
        metrics.inferred(2.0)
    assert metrics.report(0.0)["lat_p99_ms"] == 2.0


def test_rates_are_of_the_time_between_two_reports() -> None:
    metrics = RunningMetrics()
    metrics.inferred(1.0, samples=7)
    assert "infer_per_s" not in metrics.report(100.0)
    metrics.inferred(3.0, samples=20)
    assert metrics.report(110.0)["infer_per_s"] == 2.0
    assert metrics.report(120.0)["infer_per_s"] == 0.0
    assert "infer_per_s" not in metrics.report(120.0)
    assert metrics.report(130.0)["lat_p50_ms"] == 2.0


def test_what_was_answered_to_each_class_is_counted_as_accuracy_is() -> None:
    metrics = RunningMetrics(window=4)
    task = Task(TrainingRecipe(), 3)
    for label, said in ((0, 2), (0, 0), (1, 0), (2, 2), (1, 0)):
        metrics.judged(task, np.eye(3)[[said]], np.array([label]))
    assert metrics.confusion(("a", "b")) == {"a": {"a": 1}, "b": {"a": 2}, "2": {"2": 1}}
    assert metrics.accuracy == 2 / 4
    metrics.forget_judgements()
    assert metrics.confusion() == {}
    metrics.judged(Task(TrainingRecipe(loss=BINARY_CROSS_ENTROPY), 2), np.ones((1, 2)), np.ones((1, 2)))
    assert metrics.confusion() == {}, "no one class was asked for"
