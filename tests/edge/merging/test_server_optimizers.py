"""Server optimizers against formulas written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge.contract.errors import LearningError
from edge.merging.server_optimizers import RULES, Rule, ServerOptimizer

BASE = {"w": np.array([[1.0, -2.0]], np.float32), "b": np.array([0.5], np.float32)}


def mean(w: float, b: float) -> dict[str, np.ndarray]:
    return {"w": np.array([[w, -2 * w]]), "b": np.array([b])}


def by_hand(rule: str, changes: list[float], rate: float, beta1: float, beta2: float, tau: float) -> list[float]:
    """Algorithm 2 of arXiv:2003.00295 for one number, that starts at 1."""
    x, m, v, path = 1.0, 0.0, tau**2, []
    for d in changes:
        m = beta1 * m + (1 - beta1) * d
        if rule == "adagrad":
            v = v + d**2
        elif rule == "yogi":
            v = v - (1 - beta2) * d**2 * math.copysign(1.0, v - d**2)
        else:
            v = beta2 * v + (1 - beta2) * d**2
        x = x + rate * m / (math.sqrt(v) + tau)
        path.append(x)
    return path


@pytest.mark.parametrize("rule", RULES)
def test_follows_the_paper(rule: Rule) -> None:
    changes = [0.3, -0.1, 0.0004, 2.0, -0.7]
    optimizer = ServerOptimizer(rule, rate=0.2, beta1=0.8, beta2=0.95, tau=0.01)
    head, path = BASE, []
    for change in changes:
        head = optimizer.step(head, mean(change, change))
        path.append(float(head["w"][0, 0]))
    np.testing.assert_allclose(path, by_hand(rule, changes, 0.2, 0.8, 0.95, 0.01), rtol=2e-6)
    assert {array.dtype for array in head.values()} == {np.dtype(np.float32)}


def test_the_first_step_is_not_corrected_for_bias() -> None:
    # m = 0.1 * 1, v = 0.99 * 1e-6 + 0.01: a corrected step would be ten times m over ten times sqrt(v), about 0.1.
    moved = ServerOptimizer("adam", rate=0.1).step(BASE, mean(1.0, 1.0))["b"][0] - BASE["b"][0]
    assert moved == pytest.approx(0.1 * 0.1 / (math.sqrt(0.01 + 0.99e-6) + 1e-3), rel=1e-5)


def test_adagrad_keeps_no_mean_unless_asked() -> None:
    optimizer = ServerOptimizer("adagrad")
    optimizer.step(BASE, mean(1.0, 1.0))
    assert (optimizer.step(BASE, mean(0.0, 0.0))["w"] == BASE["w"]).all()
    momentum = ServerOptimizer("adagrad", beta1=0.5)
    momentum.step(BASE, mean(1.0, 1.0))
    assert (momentum.step(BASE, mean(0.0, 0.0))["w"] != BASE["w"]).all()


@pytest.mark.parametrize("rule", RULES)
def test_goes_on_after_a_restart(rule: Rule) -> None:
    one, other = ServerOptimizer(rule), ServerOptimizer(rule)
    head = one.step(BASE, mean(0.2, 0.1))
    state = one.state()
    other.restore(state)
    expected = one.step(head, mean(-0.1, 0.3))
    assert (other.step(head, mean(-0.1, 0.3))["w"] == expected["w"]).all()
    assert (ServerOptimizer(rule).step(head, mean(-0.1, 0.3))["w"] != expected["w"]).all()
    before = {name: array.copy() for name, array in state.items()}
    one.step(head, mean(1.0, 1.0))
    assert all((state[name] == before[name]).all() for name in state)


@pytest.mark.parametrize(
    "bad",
    [
        {"w": np.ones((1, 2))},
        {"w": np.ones((2, 1)), "b": np.ones(1)},
        mean(np.nan, 1.0),
        mean(1.0, np.inf),
        mean(1e200, 1),
    ],
    ids=repr,
)
def test_a_refused_round_leaves_no_trace(bad: dict[str, np.ndarray]) -> None:
    optimizer = ServerOptimizer("yogi")
    optimizer.step(BASE, mean(0.1, 0.2))
    before = optimizer.state()
    with pytest.raises(LearningError):
        optimizer.step(BASE, bad)
    after = optimizer.state()
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_a_head_that_would_overflow_is_refused() -> None:
    base = {"b": np.array([3.4e38], np.float32)}
    with pytest.raises(LearningError, match="not finite"):
        ServerOptimizer("adam", rate=1e38).step(base, {"b": np.array([1.0])})


def test_refuses_the_memory_of_another_head() -> None:
    optimizer = ServerOptimizer("adam")
    optimizer.step({"b": BASE["b"]}, {"b": np.ones(1)})
    with pytest.raises(LearningError, match="other parameters"):
        optimizer.step(BASE, mean(1.0, 1.0))
    fresh = ServerOptimizer("adam")
    for state in (
        {"m.b": np.ones(1)},
        {"m.b": np.ones(1), "v.b": -np.ones(1)},
        {"m.b": np.ones(1), "v.b": np.full(1, np.nan)},
        {"m.b": np.ones(1), "v.b": np.ones(2)},
        {"m.b": np.ones(1), "v.b": np.ones(1), "t": np.ones(1)},
        {"m.b": np.ones(1, np.int64), "v.b": np.ones(1)},
    ):
        with pytest.raises(LearningError):
            fresh.restore(state)
        assert fresh.state() == {}


@pytest.mark.parametrize(
    "options",
    [{"rule": "sgd"}, {"rate": 0.0}, {"rate": math.nan}, {"tau": 0.0}, {"beta1": 1.0}, {"beta2": -0.1}],
    ids=repr,
)
def test_refuses_settings_out_of_range(options: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        ServerOptimizer(**{"rule": "adam", **options})
