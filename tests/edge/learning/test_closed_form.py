"""The closed-form learner: every sample counts once, whichever versions meet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edge.contract.errors import LearningError
from edge.learning.closed_form import PRIOR_SAMPLES, StatisticsLearner
from edge.learning.merge import merge_statistics
from edge.learning.statistics import HeadStatistics
from tests.edge.learning.test_learners import snapshot, teach_one_by_one

Samples = tuple[np.ndarray, np.ndarray]
New = Callable[[], StatisticsLearner]


def of(samples: Samples, start: int, stop: int) -> HeadStatistics:
    return HeadStatistics.of(samples[0][start:stop], samples[1][start:stop], 10)


def known(learner: StatisticsLearner) -> HeadStatistics:
    """What the next head will be solved from."""
    state = learner.state()
    parts = {
        part: HeadStatistics(state[f"{part}.gram"], state[f"{part}.moment"]) for part in ("base", "own", "included")
    }
    return parts["base"] + parts["own"] - parts["included"]


def assert_same(found: HeadStatistics, expected: HeadStatistics, tolerance: float = 1e-5) -> None:
    scale = np.abs(expected.gram).max()
    np.testing.assert_allclose(found.gram, expected.gram, atol=tolerance * scale, rtol=0)
    np.testing.assert_allclose(found.moment, expected.moment, atol=tolerance * scale, rtol=0)


def test_one_by_one_is_the_batch(new_statistics_learner: New, samples: Samples) -> None:
    one, batch = new_statistics_learner(), new_statistics_learner()
    teach_one_by_one(one, samples)
    batch.learn_many(*samples)
    assert_same(known(one), known(batch), 1e-12)
    for name, array in one.parameters().items():  # 96 is a multiple of eight: both have solved just now
        np.testing.assert_allclose(array, batch.parameters()[name], atol=1e-5, rtol=1e-5)
    assert_same(known(one), prior(new_statistics_learner) + of(samples, 0, 96), 1e-9)


def prior(new: New) -> HeadStatistics:
    return known(new())


def test_the_shipped_statistics_are_worth_so_many_samples(new_statistics_learner: New) -> None:
    assert known(new_statistics_learner()).n_samples == pytest.approx(PRIOR_SAMPLES)


def test_shipped_statistics_of_no_samples_are_no_statistics(new_statistics_learner: New) -> None:
    shipped = new_statistics_learner()
    learner = StatisticsLearner(shipped._head, shipped.parameters(), HeadStatistics.empty(64, 10))
    assert known(learner).n_samples == 0


def test_the_shipped_head_is_live_until_eight_labels_came(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner()
    shipped = {name: array.tobytes() for name, array in learner.parameters().items()}
    learner.learn_many(samples[0][:7], samples[1][:7])
    assert {name: array.tobytes() for name, array in learner.parameters().items()} == shipped
    learner.learn_many(samples[0][7:8], samples[1][7:8])
    assert {name: array.tobytes() for name, array in learner.parameters().items()} != shipped


def test_nothing_counts_twice_when_everything_is_in_the_merge(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner()
    learner.learn_many(samples[0][:50], samples[1][:50])
    learner.contribution()
    merged = merge_statistics(prior(new_statistics_learner), [of(samples, 0, 50), of(samples, 50, 96)])
    learner.rebase(learner.parameters(), merged.to_tensors(), 50)
    assert_same(known(learner), merged)
    assert known(learner).n_samples == pytest.approx(PRIOR_SAMPLES + 96)


def test_what_came_since_the_contribution_counts_on_top(new_statistics_learner: New, samples: Samples) -> None:
    learner = new_statistics_learner()
    learner.learn_many(samples[0][:30], samples[1][:30])
    learner.contribution()
    learner.learn_many(samples[0][30:50], samples[1][30:50])
    merged = merge_statistics(prior(new_statistics_learner), [of(samples, 0, 30), of(samples, 50, 96)])
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
    before = learner.contribution()
    learner.rebase(learner.parameters(), (prior(new_statistics_learner) + of(samples, 0, 96)).to_tensors(), 96)
    after = learner.contribution()
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
    restored.restore(learner.state())
    for each in (learner, twin, restored):
        each.learn_many(samples[0][40:80], samples[1][40:80])
    assert_same(known(learner), known(twin), 1e-12)
    for name, array in learner.parameters().items():
        np.testing.assert_allclose(array, given[name] + (twin.parameters()[name] - at_forty[name]), atol=1e-4)
    assert snapshot(restored) == snapshot(learner)
    learner.rebase(given, known(twin).to_tensors(), 80)
    learner.learn_many(samples[0][80:], samples[1][80:])
    twin.learn_many(samples[0][80:], samples[1][80:])
    for name, array in learner.parameters().items():
        np.testing.assert_allclose(array, twin.parameters()[name], atol=1e-2)


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
