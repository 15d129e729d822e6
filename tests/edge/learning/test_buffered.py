"""The buffered aggregator: folds in at once, is due by number or by time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.errors import LearningError
from edge.learning.buffered import BufferedAggregator
from edge.learning.merge import Delta, apply_change, weighted_mean

BASE = {"w": np.array([[1.0, 2.0]], np.float32), "b": np.array([0.5], np.float32)}


def delta(value: float, n_samples: int = 1, staleness: int = 0) -> Delta:
    change = {"w": np.full((1, 2), value, np.float32), "b": np.full(1, -value, np.float32)}
    return Delta(change=change, n_samples=n_samples, staleness=staleness)


DELTAS = st.lists(
    st.builds(delta, st.floats(-100, 100, width=32), st.integers(1, 50), st.just(0)), min_size=1, max_size=8
)


@settings(deadline=None)
@given(DELTAS, st.randoms(use_true_random=False))
def test_fresh_changes_give_the_weighted_mean_in_any_order(deltas: list[Delta], random) -> None:
    buffer = BufferedAggregator(BASE, flush_at=len(deltas))
    shuffled = random.sample(deltas, len(deltas))
    due = [buffer.add(d, now_s=0.0) for d in shuffled]
    assert due == [False] * (len(deltas) - 1) + [True]
    merged, expected = apply_change(BASE, buffer.flush()), weighted_mean(BASE, deltas)
    for name in BASE:
        np.testing.assert_allclose(merged[name], expected[name], rtol=1e-5, atol=1e-4)


def test_stale_changes_make_a_small_step() -> None:
    buffer = BufferedAggregator(BASE, flush_at=2)
    buffer.add(delta(1.0, 10, staleness=3), 0.0)
    buffer.add(delta(1.0, 10, staleness=8), 0.0)
    # 1 / sqrt(1 + 3) and 1 / sqrt(1 + 8), over two devices
    np.testing.assert_allclose(buffer.flush()["w"], (1 / 2 + 1 / 3) / 2)


def test_devices_can_weigh_alike() -> None:
    by_samples, alike = BufferedAggregator(BASE, 2), BufferedAggregator(BASE, 2, by_samples=False)
    for buffer in (by_samples, alike):
        buffer.add(delta(1.0, 30), 0.0)
        buffer.add(delta(5.0, 10), 0.0)
    assert by_samples.flush()["b"].tolist() == [-2.0]
    assert alike.flush()["b"].tolist() == [-3.0]


def test_is_due_when_the_first_change_has_waited_long_enough() -> None:
    buffer = BufferedAggregator(BASE, flush_at=100, timeout_s=60)
    assert buffer.due_s == math.inf
    assert not buffer.is_due(1e9)
    assert not buffer.add(delta(1.0), now_s=1000.0)
    assert not buffer.add(delta(2.0), now_s=1050.0)
    assert buffer.due_s == 1060.0
    assert not buffer.is_due(1059.9)
    assert buffer.is_due(1060.0)
    buffer.flush()
    assert not buffer.is_due(1e9)
    assert buffer.n_devices == 0
    with pytest.raises(LearningError, match="no change"):
        buffer.flush()


def test_a_flush_starts_anew() -> None:
    buffer = BufferedAggregator(BASE, flush_at=1)
    buffer.add(delta(7.0, 3), 0.0)
    first = buffer.flush()
    buffer.add(delta(1.0, 5), 0.0)
    assert buffer.flush()["w"].tolist() == [[1.0, 1.0]]
    assert first["w"].tolist() == [[7.0, 7.0]]


def test_long_changes_are_shortened() -> None:
    buffer = BufferedAggregator(BASE, flush_at=1, largest_norm=1.0)
    buffer.add(delta(100.0), 0.0)
    change = buffer.flush()
    assert math.sqrt(sum(float(np.square(a).sum()) for a in change.values())) == pytest.approx(1.0)


def test_a_device_without_samples_does_not_fill_the_buffer() -> None:
    buffer = BufferedAggregator(BASE, flush_at=1, timeout_s=1.0)
    assert not buffer.add(delta(9.0, 0), now_s=0.0)
    assert buffer.n_devices == 0
    assert not buffer.is_due(100.0)


def test_goes_on_after_a_restart_with_another_clock() -> None:
    buffer = BufferedAggregator(BASE, flush_at=9, timeout_s=60)
    buffer.add(delta(3.0, 2, 1), now_s=500.0)
    state = buffer.state(now_s=520.0)
    restarted = BufferedAggregator(BASE, flush_at=9, timeout_s=60)
    restarted.restore(state, now_s=3.0)
    assert restarted.due_s == 43.0
    for one in (buffer, restarted):
        one.add(delta(1.0, 1), now_s=530.0)
    assert (buffer.flush()["w"] == restarted.flush()["w"]).all()
    # the state is a copy
    assert state["sum.b"][0] == pytest.approx(-6 / math.sqrt(2))


@pytest.mark.parametrize(
    "bad",
    [
        delta(np.nan),
        delta(np.inf),
        delta(1.0, -1),
        delta(1.0, 1, -1),
        Delta(change={"w": BASE["w"]}, n_samples=1),
        Delta(change={"w": BASE["b"], "b": BASE["b"]}, n_samples=1),
    ],
    ids=repr,
)
def test_a_refused_change_leaves_no_trace(bad: Delta) -> None:
    buffer = BufferedAggregator(BASE, flush_at=3, timeout_s=5)
    buffer.add(delta(1.0), 0.0)
    with pytest.raises(LearningError):
        buffer.add(bad, 1.0)
    assert buffer.n_devices == 1
    assert buffer.flush()["w"].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sum.w": np.zeros((2, 2))},
        {"sum.x": np.zeros(1)},
        {"weight": np.array(np.nan)},
        {"weight": np.array(0.0)},
        {"n_devices": np.array(-1)},
        {"n_devices": np.array(0)},
        {"waited_s": np.array(-1.0)},
        {"weight": np.array("7")},
    ],
    ids=repr,
)
def test_refuses_a_state_of_something_else(wrong: dict[str, np.ndarray]) -> None:
    source, buffer = BufferedAggregator(BASE, 5), BufferedAggregator(BASE, 5)
    source.add(delta(1.0), 0.0)
    with pytest.raises(LearningError):
        buffer.restore({**source.state(0.0), **wrong}, 0.0)
    assert buffer.n_devices == 0


@pytest.mark.parametrize("options", [{"flush_at": 0}, {"timeout_s": 0.0}, {"largest_norm": math.nan}], ids=repr)
def test_refuses_settings_out_of_range(options: dict) -> None:
    with pytest.raises(ValueError, match="above 0"):
        BufferedAggregator(BASE, **{"flush_at": 1, **options})
