"""The closed-form learner: every sample counts once, whichever versions meet."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge.contract.errors import LearningError
from edge.contract.projection import BYTES_PER_SQUARE
from edge.contract.recipe import TrainingRecipe
from edge.learning import closed_form
from edge.learning.closed_form import PRIOR_SAMPLES, TRUSTED_PAST, StatisticsLearner
from edge.learning.solve import Factor, Method
from edge.learning.statistics import HeadStatistics
from edge.learning.task import Task
from tests.edge.learning.conftest import LINEAR, Samples, same
from tests.edge.learning.test_learners import part, restore, saved, snapshot, teach_one_by_one

# rho moves in steps of a quarter: what is solved exactly and what is kept up to date differ by up to an eighth of it.
New = Callable[..., StatisticsLearner]


def of(samples: Samples, start: int, stop: int) -> HeadStatistics:
    return HeadStatistics.of(samples[0][start:stop], samples[1][start:stop], 10)


def known(learner: StatisticsLearner) -> HeadStatistics:
    """What the next head will be solved from."""
    return learner.value.settled().total()


def assert_same(found: HeadStatistics, expected: HeadStatistics, tolerance: float = 1e-5) -> None:
    scale = np.abs(expected.gram).max()
    np.testing.assert_allclose(found.gram, expected.gram, atol=tolerance * scale, rtol=0)
    np.testing.assert_allclose(found.moment, expected.moment, atol=tolerance * scale, rtol=0)


def test_one_by_one_adds_up_to_the_batch(new_statistics_learner: New, samples: Samples) -> None:
    one = new_statistics_learner()
    teach_one_by_one(one, samples)
    assert_same(known(one), prior(new_statistics_learner) + of(samples, 0, 96), 1e-9)


def prior(new: New) -> HeadStatistics:
    return known(new())


def test_the_shipped_statistics_are_worth_so_many_samples(new_statistics_learner: New) -> None:
    assert known(new_statistics_learner()).n_samples == pytest.approx(PRIOR_SAMPLES)


def test_shipped_statistics_of_no_samples_are_no_statistics(samples: Samples) -> None:
    shipped = {"weight": np.ones((10, 64), np.float32), "bias": np.zeros(10, np.float32)}
    for nothing in (HeadStatistics.empty(64, 10), None):
        learner = StatisticsLearner(LINEAR, shipped, Task(TrainingRecipe(), 10), nothing)
        assert known(learner).n_samples == 0
        same(learner.parameters(), shipped)
        learner.learn_many(*samples)
        assert_same(known(learner), of(samples, 0, 96), 1e-9)


def test_the_shipped_head_is_live_until_the_first_label_came(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner()
    shipped = learner.parameters()
    learner.learn_many(*part(samples, 0, 0))
    same(learner.parameters(), shipped)
    learner.learn_many(*part(samples, 0, 1))
    assert any((learner.parameters()[name] != array).any() for name, array in shipped.items())


METHODS = pytest.mark.parametrize("method", ["discriminant", "ridge", "means"])


@METHODS
def test_the_head_is_the_one_that_all_statistics_determine(
    new_statistics_learner: New, samples: Samples, method: Method
) -> None:
    learner = new_statistics_learner(method=method)
    for i in range(96):
        learner.learn_many(*part(samples, i, i + 1))
        found = learner.parameters()
    weights, biases = Factor(known(learner), method).head()
    expected = {name: array.astype(np.float32) for name, array in zip(found, (weights, biases), strict=True)}
    same(found, expected, 1e-5)


def test_weights_are_what_samples_count(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner()
    weights = np.random.default_rng(0).random(96)
    learner.learn_many(*samples, weights)
    expected = HeadStatistics.of_targets(samples[0], np.eye(10)[samples[1]], weights)
    assert_same(known(learner), prior(new_statistics_learner) + expected)


# Forgetting


def test_older_samples_count_less_by_the_factor(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner(forgetting=0.9)
    learner.learn_many(*samples)
    ages = np.arange(95, -1, -1)
    own = HeadStatistics.of_targets(samples[0], np.eye(10)[samples[1]], 0.9**ages)
    expected = prior(new_statistics_learner) * 0.9**96 + own
    gain = learner.value.gain
    assert_same(known(learner) * (1 / gain), expected, 1e-9)
    contributed = HeadStatistics.from_tensors(learner.contribution().tensors, 64, 10)
    assert_same(contributed, own)
    weights, biases = Factor(known(learner), "discriminant").head()
    found = learner.parameters()
    same(found, {n: a.astype(np.float32) for n, a in zip(found, (weights, biases), strict=True)}, 1e-5)


def test_forgetting_goes_on_for_ever(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner(forgetting=0.9)
    for _ in range(10):  # 0.9 to the -960 would be 1e44
        learner.learn_many(*samples)
    own = HeadStatistics.of_targets(samples[0], np.eye(10)[samples[1]], 0.9 ** np.arange(95, -1, -1))
    assert_same(HeadStatistics.from_tensors(learner.contribution().tensors, 64, 10), own, 1e-4)
    assert 1 <= learner.value.gain <= 1e6
    assert all(np.isfinite(array).all() for array in learner.parameters().values())


def test_what_is_forgotten_altogether_is_saved_too(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner(forgetting=0.5)
    for _ in range(12):  # what was shipped is worth 2 to the -1152, which is 0 in float64
        learner.learn_many(*samples)
    assert learner.value.base.scale == 0
    again = new_statistics_learner(forgetting=0.5)
    restore(again, saved(learner), 10)
    same(again.parameters(), learner.parameters(), 0)


def test_versions_are_still_told_apart_when_old_samples_fade(new_statistics_learner: New, samples: Samples) -> None:
    learner, twin = new_statistics_learner(forgetting=0.98), new_statistics_learner(forgetting=0.98)
    for each in (learner, twin):
        each.learn_many(*part(samples, 0, 60))
        sent = HeadStatistics.from_tensors(each.contribution().tensors, 64, 10)
        if each is learner:  # the merge is what it knew already: nothing changes
            merged = prior(new_statistics_learner) * 0.98**60 + sent
            each.rebase(each.parameters(), merged.to_tensors(), 60)
        each.learn_many(*part(samples, 60))
    same(learner.parameters(), twin.parameters(), 1e-4)


def test_all_before_a_change_is_worth_some_samples(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner()
    learner.learn_many(*samples)
    before = known(learner)
    learner.distrust_the_past(*part(samples, 90))
    expected = before.scaled_to(TRUSTED_PAST) + of(samples, 90, 96)
    assert_same(known(learner), expected)
    assert learner.n_samples == 96


def test_a_short_past_is_not_made_worth_more(new_statistics_learner: New, samples: Samples) -> None:
    learner = StatisticsLearner(
        LINEAR,
        {"weight": np.ones((10, 64), np.float32), "bias": np.zeros(10, np.float32)},
        Task(TrainingRecipe(), 10),
        None,
    )
    learner.learn_many(*part(samples, 0, 8))
    learner.distrust_the_past(*part(samples, 0, 0))
    assert known(learner).n_samples == pytest.approx(8)


# Merging


def test_nothing_counts_twice_when_everything_is_in_the_merge(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner()
    learner.learn_many(samples[0][:50], samples[1][:50])
    learner.contribution()
    merged = prior(new_statistics_learner) + of(samples, 0, 50) + of(samples, 50, 96)
    learner.rebase(learner.parameters(), merged.to_tensors(), 50)
    assert_same(known(learner), merged)
    assert known(learner).n_samples == pytest.approx(PRIOR_SAMPLES + 96)


def test_what_came_since_the_contribution_counts_on_top(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner()
    learner.learn_many(samples[0][:30], samples[1][:30])
    learner.contribution()
    learner.learn_many(samples[0][30:50], samples[1][30:50])
    merged = prior(new_statistics_learner) + of(samples, 0, 30) + of(samples, 50, 96)
    learner.rebase(learner.parameters(), merged.to_tensors(), 30)
    assert_same(known(learner), prior(new_statistics_learner) + of(samples, 0, 96))


def test_an_older_version_in_the_merge_keeps_the_rest(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner()
    for stop in (20, 40, 60):
        learner.learn_many(samples[0][stop - 20 : stop], samples[1][stop - 20 : stop])
        learner.contribution()
    everything = prior(new_statistics_learner) + of(samples, 0, 60)
    for version in (40, 20, 60, 0, 40):
        merged = prior(new_statistics_learner) + of(samples, 0, version)
        learner.rebase(learner.parameters(), merged.to_tensors(), version)
        assert_same(known(learner), everything)


def test_a_version_that_is_forgotten_counts_nothing_twice(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner()
    learner.learn_many(samples[0][:60], samples[1][:60])
    merged = prior(new_statistics_learner) + of(samples, 0, 33)
    learner.rebase(learner.parameters(), merged.to_tensors(), 33)
    assert_same(known(learner), merged)
    learner.learn_many(samples[0][60:], samples[1][60:])
    assert_same(known(learner), merged + of(samples, 60, 96))


def test_the_whole_contribution_is_sent_again_after_a_merge(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner()
    learner.learn_many(*samples)
    before = learner.contribution().tensors
    learner.rebase(learner.parameters(), (prior(new_statistics_learner) + of(samples, 0, 96)).to_tensors(), 96)
    after = learner.contribution().tensors
    assert {name: array.tobytes() for name, array in before.items()} == {n: a.tobytes() for n, a in after.items()}
    assert learner.n_contributed == 96


def test_refuses_a_merge_that_is_not_statistics_and_nothing_changes(
    new_statistics_learner: New, samples: Samples
) -> None:
    learner = new_statistics_learner()
    learner.learn_many(*samples)
    learner.contribution()
    before = snapshot(learner)
    good = of(samples, 0, 96).to_tensors()
    for bad in (
        {"gram": good["gram"]},
        good | {"gram": good["gram"][1:]},
        good | {"moment": good["moment"] * np.float32(np.nan)},
        good | {"moment": -good["moment"]},
        HeadStatistics.empty(64, 9).to_tensors(),
    ):
        with pytest.raises(LearningError):
            learner.rebase(learner.parameters(), bad, 96)
        assert snapshot(learner) == before


def test_a_head_without_statistics_is_taken_as_it_is_and_learning_goes_on_from_it(
    new_statistics_learner: New, samples: Samples
) -> None:
    learner, twin = new_statistics_learner(), new_statistics_learner()
    for each in (learner, twin):
        each.learn_many(samples[0][:40], samples[1][:40])
    at_forty = twin.parameters()
    given = {name: array * 0 + 3 for name, array in learner.parameters().items()}
    learner.rebase(given, {}, 0)
    assert all((array == given[name]).all() for name, array in learner.parameters().items())
    restored = new_statistics_learner()
    restore(restored, saved(learner), 10)
    for each in (learner, twin, restored):
        each.learn_many(samples[0][40:80], samples[1][40:80])
    assert_same(known(learner), known(twin), 1e-12)
    for name, array in learner.parameters().items():
        expected = given[name] + (twin.parameters()[name] - at_forty[name])
        np.testing.assert_allclose(array, expected, atol=1e-5 * np.abs(at_forty[name]).max())
    assert snapshot(restored) == snapshot(learner)
    learner.rebase(given, known(twin).to_tensors(), 80)
    learner.learn_many(samples[0][80:], samples[1][80:])
    twin.learn_many(samples[0][80:], samples[1][80:])
    same(learner.parameters(), twin.parameters(), 1e-4)


def test_a_merge_of_nothing_leaves_what_this_device_learned(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner()
    learner.learn_many(samples[0][:30], samples[1][:30])
    learner.rebase(learner.parameters(), HeadStatistics.empty(64, 10).to_tensors(), 0)
    assert_same(known(learner), of(samples, 0, 30), 1e-12)


def test_refuses_to_solve_from_a_merge_of_nothing_and_nothing_changes(
    new_statistics_learner: New, samples: Samples
) -> None:
    learner = new_statistics_learner()
    learner.learn_many(samples[0][:8], samples[1][:8])
    learner.contribution()
    learner.learn_many(samples[0][8:9], samples[1][8:9])
    before = snapshot(learner)
    # Says that it includes the first eight, and holds minus all that came since.
    gone = of(samples, 8, 9)
    crafted = HeadStatistics(gone.gram * 0, gone.moment * 0) - gone
    with pytest.raises(LearningError):
        learner.rebase(learner.parameters(), crafted.to_tensors(), 8)
    assert snapshot(learner) == before


def test_a_class_that_a_given_head_never_answers_is_learned(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner()
    learner.learn_many(*samples)
    learner.grow(11)
    learner.rebase(learner.parameters(), {}, 0)
    features = np.abs(np.random.default_rng(0).normal(4, 0.5, (20, 64))).astype(np.float32)
    weight, bias = learner.parameters().values()
    assert not ((features @ weight.T + bias).argmax(axis=1) == 10).any()
    learner.learn_many(features[:10], np.full(10, 10))
    weight, bias = learner.parameters().values()
    assert ((features[10:] @ weight.T + bias).argmax(axis=1) == 10).all()


def test_memory_and_state_are_what_the_profiles_are_told() -> None:
    d, n = 600, 40
    side = (d + 1) ** 2
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)).astype(np.float32), rng.integers(0, 10, n)
    shipped = {"weight": np.ones((10, d), np.float32), "bias": np.zeros(10, np.float32)}
    prior = HeadStatistics.of(x, y, 10)
    tracemalloc.start()
    try:
        learner = StatisticsLearner(LINEAR, shipped, Task(TrainingRecipe(), 10), prior)
        for i in range(n):
            learner.learn_many(x[i : i + 1], y[i : i + 1])
            if i % 8 == 0:
                learner.contribution()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 22 * side < held < 28 * side
    assert peak < BYTES_PER_SQUARE * side
    state = sum(array.nbytes for array in saved(learner).values())
    assert state < 18 * side


def test_two_values_that_are_asked_in_turn_are_solved_once(
    new_statistics_learner: New, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shadow answers each sample beside the head that is live, with the same machine."""
    learner, solved = new_statistics_learner(), list[Any]()
    learner.learn_many(*samples)
    before = learner.value
    learner.learn_many(*samples)
    since = learner.value
    real = StatisticsLearner._head_of

    def counted(*args: Any) -> Any:
        solved.append(args)
        return real(*args)

    monkeypatch.setattr(StatisticsLearner, "_head_of", counted)
    for _ in range(3):
        for value in (before, since):
            learner.load(value)
            learner.parameters()
    assert solved == []
    fresh = new_statistics_learner()
    fresh.load(before)
    learner.load(before)
    same(learner.parameters(), fresh.parameters())


def test_two_values_that_are_taught_in_turn_are_factored_once_and_learn_as_if_alone(
    new_statistics_learner: New, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    (x, y), made = samples, list[Any]()

    class Counted(Factor):
        def __init__(self, *args: Any, **options: Any) -> None:
            made.append(args)
            super().__init__(*args, **options)

    monkeypatch.setattr(closed_form, "Factor", Counted)
    learner, alone = new_statistics_learner(), [new_statistics_learner(), new_statistics_learner()]
    for one, many in zip(alone, (20, 40), strict=True):
        one.learn_many(x[:many], y[:many])
    values = [one.value for one in alone]
    for i in range(60, 68):
        for k, one in enumerate(alone):
            learner.load(values[k])
            learner.learn_many(x[i : i + 1], y[i : i + 1])
            values[k] = learner.value
            same(learner.parameters(), _taught(one, x[i : i + 1], y[i : i + 1]))
        if i == 60:
            made.clear()
    assert len(made) < 8, "one for each label and value were 14 more"


def _taught(learner: StatisticsLearner, x: np.ndarray, y: np.ndarray) -> Any:
    learner.learn_many(x, y)
    return learner.parameters()
