"""Running figures."""

from __future__ import annotations

import numpy as np
import pytest

from edge.learning.metrics import RunningMetrics, log_softmax


def test_log_softmax_is_that_and_does_not_overflow() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_allclose(log_softmax(logits), np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True)))
    assert log_softmax(np.array([[800.0, 0.0], [-800.0, 0.0]])).tolist() == [[0.0, -800.0], [-800.0, 0.0]]
    assert np.isfinite(log_softmax(np.array([[1e30, -1e30]], np.float32))).all()


def test_nothing_is_known_at_the_beginning() -> None:
    metrics = RunningMetrics()
    assert metrics.accuracy is None
    assert metrics.report(10.0) == {"infer": 0, "labels": 0}


def test_accuracy_is_of_what_was_answered_and_loss_of_the_live_head() -> None:
    metrics = RunningMetrics()
    logits = np.array([[2.0, 0.0], [0.0, 0.0]])
    metrics.judged(logits, np.array([0, 1]), np.array([0, 0]))
    assert metrics.accuracy == 0.5
    expected = (np.log(1 + np.exp(-2)) + np.log(2)) / 2
    report = metrics.report(0.0)
    assert (report["labels"], report["acc"]) == (2, 0.5)
    assert report["loss"] == pytest.approx(expected, abs=1e-4)
    metrics.forget_judgements()
    assert metrics.accuracy is None
    assert metrics.judged_in_window == 0
    assert metrics.labels == 2


def test_old_events_leave_the_window() -> None:
    metrics = RunningMetrics(window=4)
    for right in (0, 0, 0, 1, 1, 1):
        metrics.judged(np.zeros((1, 2)), np.array([1]), np.array([right]))
    assert metrics.accuracy == 0.75
    assert metrics.judged_in_window == 4
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
