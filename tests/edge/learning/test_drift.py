"""Drift detectors: silent where nothing changes, soon loud where something does, and small."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge.contract.errors import LearningError
from edge.learning.drift import Adwin, Distance, FeatureShift, PageHinkley, Window
from edge.learning.statistics import HeadStatistics
from edge.learning.tree import build, flatten


def alarms(detector: Adwin, values: np.ndarray) -> list[int]:
    """Where something was found."""
    return [i for i, value in enumerate(values) if detector.add(float(value)) != 0.0]


# ADWIN


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.9])
def test_false_alarms_are_rare(rate: float) -> None:
    n, runs = 1000, 25
    found = sum(len(alarms(Adwin(), np.random.default_rng(seed).random(n) < rate)) for seed in range(runs))
    # delta bounds one check, of which there are n: the bound is loose, and so few alarms are what makes it useful.
    assert found <= 0.1 * 0.002 * n * runs
    assert found <= 3


@pytest.mark.parametrize(("before", "after"), [(0.05, 0.6), (0.2, 0.9), (0.5, 0.05)])
@pytest.mark.parametrize("seed", range(5))
def test_a_jump_is_found_within_some_samples(before: float, after: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    adwin = Adwin()
    assert not alarms(adwin, rng.random(300) < before)
    for i in range(60 if after > before else 120):
        change = adwin.add(float(rng.random() < after))
        if change != 0.0:
            assert (change > 0) is (after > before)
            assert i >= 4
            break
    else:
        pytest.fail("nothing was found")
    alarms(adwin, rng.random(100) < after)
    assert abs(adwin.mean - after) < 0.2  # the window is of the new world
    assert adwin.width < 250


def test_a_larger_delta_finds_more_and_earlier() -> None:
    first: dict[float, list[float]] = {0.2: [], 1e-6: []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = np.concatenate([rng.random(200) < 0.1, rng.random(200) < 0.5])
        for delta, found in first.items():
            found.append(min([i for i in alarms(Adwin(delta), values) if i >= 200], default=400))
    assert np.mean(first[0.2]) < np.mean(first[1e-6])


def test_a_change_is_not_told_apart_by_less_than_five_values() -> None:
    adwin = Adwin()
    assert not alarms(adwin, np.array([0.0] * 200 + [1.0] * 4))


def test_the_window_is_what_came_while_nothing_changed() -> None:
    values = np.random.default_rng(0).random(500)
    adwin = Adwin()
    assert not alarms(adwin, values)
    assert adwin.width == 500
    assert adwin.mean == pytest.approx(values.mean())
    adwin.reset()
    assert (adwin.width, adwin.mean) == (0, 0.0)


def test_memory_grows_with_the_logarithm_of_the_window() -> None:
    adwin = Adwin()
    rng = np.random.default_rng(0)
    for n in range(1, 4097):
        adwin.add(float(rng.random() < 0.3))
        if n in (64, 512, 4096):
            assert len(adwin.value.buckets) <= 6 * (math.log2(n) + 1)
    assert adwin.width == 4096


def test_the_buckets_keep_the_sum_and_the_spread() -> None:
    values = np.random.default_rng(2).random(100)
    adwin = Adwin()
    for value in values:
        adwin.add(float(value))
    start = 0
    for size, total, spread in adwin.value.buckets:
        held = values[start : start + int(size)]
        assert total == pytest.approx(held.sum())
        assert spread == pytest.approx(np.square(held - held.mean()).sum())
        start += int(size)
    assert start == 100


def test_a_restored_window_goes_on_the_same() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.random(150) < 0.1, rng.random(100) < 0.7]).astype(float)
    for cut in (0, 1, 77, 150, 160):
        first, second = Adwin(), Adwin()
        for value in values[:cut]:
            first.add(value)
        second.load(build(Window(), flatten(first.value)))
        assert [first.add(v) for v in values[cut:]] == [second.add(v) for v in values[cut:]]
        assert first.value.buckets.tolist() == second.value.buckets.tolist()


def test_refuses_a_window_that_is_none_and_nothing_changes() -> None:
    adwin = Adwin()
    alarms(adwin, np.ones(20))
    before = adwin.value.buckets.tolist()
    for bad in (np.zeros(3), np.zeros((1, 2)), np.full((1, 3), np.nan), np.zeros((1, 3)), np.array([[-1.0, 0, 0]])):
        with pytest.raises(LearningError):
            adwin.load(build(Window(), {"buckets": bad}))
        assert adwin.value.buckets.tolist() == before


# Page-Hinkley


def test_page_hinkley_is_silent_where_the_mean_stays_and_loud_where_it_rises() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        test = PageHinkley(20.0, 0.25)
        assert not any(test.add(x) for x in rng.normal(0, 1, 500))
        found = [test.add(x) for x in rng.normal(1.5, 1, 60)]
        assert any(found)
        assert not any(found[:5])


def test_page_hinkley_takes_no_notice_of_a_fall() -> None:
    rng = np.random.default_rng(0)
    test = PageHinkley(20.0, 0.25)
    assert not any(test.add(x) for x in [*rng.normal(0, 1, 200), *rng.normal(-3, 1, 200)])


def test_page_hinkley_warms_up_and_starts_anew_after_an_alarm() -> None:
    test = PageHinkley(1.0, 0.0, warm_up=30)
    values = [0.0] * 10 + [100.0] * 40
    found = [i for i, x in enumerate(values) if test.add(x)]
    assert found[0] == 29
    assert not any(test.add(100.0) for _ in range(40))  # that is how it is now


# Features


def features(n: int, seed: int, shift: float = 0.0, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray((rng.normal(size=(n, 16)) * spread + shift) * np.linspace(0.5, 5, 16) + 3.0)


def watcher(seed: int = 0) -> FeatureShift:
    return FeatureShift(HeadStatistics.of(features(500, seed), np.zeros(500, int), 1))


@pytest.mark.parametrize("seed", range(1, 9))
def test_features_as_in_training_raise_no_alarm(seed: int) -> None:
    shift = watcher()
    assert not any(shift.add(x) for x in features(2000, seed))


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize(("by", "spread"), [(1.5, 1.0), (0.0, 2.0), (0.0, 0.4)])
def test_features_that_moved_or_spread_or_shrank_raise_one(seed: int, by: float, spread: float) -> None:
    shift = watcher()
    assert not any(shift.add(x) for x in features(300, seed))
    found = [i for i, x in enumerate(features(150, seed + 50, by, spread)) if shift.add(x)]
    assert len(found) == 1
    assert found[0] < 80


def test_a_device_that_was_always_different_raises_no_alarm() -> None:
    shift = watcher()
    assert not any(shift.add(x) for x in features(1000, 1, shift=1.0))


def test_features_of_any_shape_and_constant_ones_are_taken() -> None:
    shift = FeatureShift(HeadStatistics.of(np.ones((4, 6)), np.zeros(4, int), 1))
    assert not any(shift.add(np.ones((2, 3), np.float32)) for _ in range(100))


def test_a_watcher_goes_on_from_its_value() -> None:
    first, second = watcher(), watcher()
    for x in features(70, 1):
        first.add(x)
    older = first.value
    second.load(build(Distance(), flatten(older)))
    moved = features(200, 2) + 3.0
    found = [first.add(x) for x in moved]
    assert any(found)
    assert [second.add(x) for x in moved] == found
    assert second.value == first.value != older
    with pytest.raises(LearningError):
        build(Distance(), flatten(older) | {"rise.mean": np.array(np.nan)})
