"""The gate: the numbers that it refuses on, and the reserve of labelled samples that they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.contract.errors import LearningError
from edge.contract.recipe import MEAN_SQUARED_ERROR, TrainingRecipe
from edge.contract.training import FloatArray
from edge.learning.gate import MIN_SAMPLES, TOLERATED_LOSS, Reserve, compare
from edge.learning.packing import PackedFeatures, pack
from edge.learning.solve import UNSEEN_LOGIT
from edge.learning.task import Task

CLASSES = Task(TrainingRecipe(), 2)
QUANTITIES = Task(TrainingRecipe(loss=MEAN_SQUARED_ERROR), 2)


def gains(live: int, offered: int, n: int) -> npt.NDArray[np.float64]:
    """Of a head that is right on the first ones over another that is right on the first ones."""
    return (np.arange(n) < offered).astype(float) - (np.arange(n) < live)


@pytest.mark.parametrize(
    ("live", "offered", "n", "accepted"),
    [
        (64, 64, 64, True),  # the same
        (40, 64, 64, True),  # better
        (64, 61, 64, True),  # 5 % worse is tolerated
        (64, 58, 64, True),  # 9 % worse on 64: the upper end is -0.094 + 0.060 = -0.033
        (64, 54, 64, False),  # 16 % worse on 64: the upper end is -0.156 + 0.075 = -0.081
        (64, 0, 64, False),  # always wrong: no spread at all
        (20, 0, 20, False),
        (19, 0, 19, True),  # too few to say anything
        (0, 0, 0, True),
    ],
)
def test_an_offered_head_is_refused_when_it_is_surely_worse(live: int, offered: int, n: int, accepted: bool) -> None:
    verdict = compare(gains(live, offered, n), "the numbers")
    assert verdict.accepted is accepted
    assert ("the numbers" if n >= MIN_SAMPLES else "not judged") in verdict.reason


def test_the_gate_compares_sample_by_sample() -> None:
    n = 200
    live = np.arange(n) % 2 == 0
    offered = np.roll(live, 1)  # right on exactly the others: a difference of zero, a wide spread
    assert compare(offered.astype(float) - live, "").accepted
    assert not compare(gains(n, int(n * (1 - 3 * TOLERATED_LOSS)), n), "").accepted


# The reserve


def answer(which: int, value: float = 1.0) -> FloatArray:
    return np.asarray(np.eye(2)[which] * value, np.float32)


def always(which: int, value: float = 1.0) -> Callable[[FloatArray], FloatArray]:
    """A head that answers the same class whatever the features are."""
    return lambda features: np.tile(answer(which, value), (len(features), 1))


def put(reserve: Reserve, label: int, live: int, feature: float = 1.0, shadows: tuple[int, ...] = (0,)) -> None:
    others = np.array([answer(each) for each in shadows], np.float32).reshape(-1, 2)
    reserve.put(pack(np.full((1, 1), feature, np.float32)), np.array([label]), answer(live), others)


def filled(label: int, live: int, n: int = 30) -> Reserve:
    reserve = Reserve((1,), CLASSES, 1, recent=30)
    for _ in range(n):
        put(reserve, label, live)
    return reserve


def test_an_empty_reserve_has_nothing_to_refuse_on() -> None:
    reserve = Reserve((1,), CLASSES, 2)
    assert reserve.judge_offered(always(0)).accepted
    assert reserve.judge_live(always(0)).accepted
    assert len(reserve) == 0
    features, targets, live, shadows = reserve.recent()
    assert (features.shape, targets.shape, live.shape, shadows.shape) == ((0, 1), (0,), (0, 2), (0, 2, 2))
    assert len(reserve.balanced()[0]) == 0


def test_the_reserve_compares_an_offered_head_with_what_the_live_one_answered() -> None:
    assert not filled(0, live=0).judge_offered(always(1)).accepted
    assert filled(0, live=0).judge_offered(always(0)).accepted
    assert filled(0, live=1).judge_offered(always(1)).accepted
    assert (
        filled(0, live=0).judge_offered(always(1)).reason == "worse: accuracy 0.000 against 1.000 on 30 recent labels"
    )


def test_the_reserve_compares_the_live_head_with_the_one_before() -> None:
    assert not filled(0, live=1).judge_live(always(0)).accepted
    assert filled(0, live=0).judge_live(always(1)).accepted
    assert filled(0, live=1).judge_live(always(1)).accepted


def test_the_reserve_judges_on_the_most_recent_labels() -> None:
    reserve = filled(0, live=0)
    for _ in range(30):
        put(reserve, label=1, live=1)
    assert len(reserve) == 30
    assert not reserve.judge_offered(always(0)).accepted
    assert reserve.judge_offered(always(1)).accepted


def test_the_reserve_refuses_a_head_that_gives_no_numbers() -> None:
    reserve = filled(0, live=0, n=1)
    verdict = reserve.judge_offered(always(0, np.nan))
    assert not verdict.accepted
    assert "not finite" in verdict.reason
    assert filled(0, live=0).judge_live(always(0, np.nan)).accepted  # no reason to go back to such a head


def test_the_reserve_keeps_copies() -> None:
    reserve = Reserve((1,), CLASSES, 1, recent=30)
    packed = PackedFeatures(np.full((1, 1), 127, np.int8), np.full(1, 1 / 127, np.float32))
    target, live, shadows = np.array([0]), answer(0), answer(0)[None]
    reserve.put(packed, target, live, shadows)
    packed.codes[:], target[:], live[:], shadows[:] = -127, 1, 9.0, 9.0
    features, targets, answers, others = reserve.recent()
    np.testing.assert_allclose(features, [[1.0]], rtol=1e-6)
    assert (targets.tolist(), answers.tolist(), others.tolist()) == ([0], [[1, 0]], [[[1, 0]]])
    assert reserve.balanced()[1].tolist() == [0]


def test_samples_of_each_class_are_kept_however_rare_it_is() -> None:
    reserve = Reserve((1,), CLASSES, 1, recent=10, per_class=3)
    put(reserve, label=1, live=0, feature=5.0)
    for i in range(50):
        put(reserve, label=0, live=0, feature=float(i + 1))
    features, targets = reserve.balanced()
    assert targets.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(features[:, 0], [48, 49, 50, 5], rtol=1e-6)


def test_the_last_ones_come_oldest_first() -> None:
    reserve = Reserve((1,), CLASSES, 2, recent=5)
    for i in range(8):
        put(reserve, label=i % 2, live=0, feature=float(i + 1), shadows=(1, i % 2))
    features, targets, live, shadows = reserve.recent(3)
    np.testing.assert_allclose(features[:, 0], [6, 7, 8], rtol=1e-6)
    assert targets.tolist() == [1, 0, 1]
    assert live.tolist() == [[1, 0]] * 3
    assert shadows[:, 1].tolist() == [[0, 1], [1, 0], [0, 1]]
    assert len(reserve.recent()[0]) == 5
    reserve.forget_answers()
    assert len(reserve) == 0
    assert len(reserve.balanced()[0]) == 8


def test_quantities_are_judged_by_their_loss() -> None:
    reserve = Reserve((1,), QUANTITIES, 1, recent=30)
    for i in range(30):
        target = np.array([[i, -i]], np.float32)
        reserve.put(pack(np.ones((1, 1), np.float32)), target, target[0] + 1, np.zeros((1, 2), np.float32))
    worse = reserve.judge_offered(lambda x: np.zeros((len(x), 2), np.float32))
    assert not worse.accepted
    assert "loss" in worse.reason
    assert "against 1 on 30" in worse.reason
    exact = np.stack([np.arange(30), -np.arange(30)], axis=1).astype(np.float32)
    assert reserve.judge_offered(lambda x: exact).accepted
    assert not reserve.judge_live(lambda x: exact).accepted
    assert len(reserve.balanced()[0]) == 8


def test_a_grown_reserve_knows_that_no_head_answered_the_new_class() -> None:
    reserve = filled(0, live=0, n=5)
    reserve.grow(3)
    _, _, live, _ = reserve.recent()
    assert live.tolist() == [[1.0, 0.0, UNSEEN_LOGIT]] * 5
    reserve.put(pack(np.ones((1, 1), np.float32)), np.array([2]), np.zeros(3, np.float32), np.zeros((1, 3), np.float32))
    assert reserve.balanced()[1].tolist() == [0] * 5 + [2]


def plain(state: dict[str, npt.NDArray[Any]]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in state.items()}


@pytest.mark.parametrize("task", [CLASSES, QUANTITIES], ids=["classes", "quantities"])
@pytest.mark.parametrize("n", [0, 1, 20])
def test_a_restored_reserve_goes_on_the_same(task: Task, n: int) -> None:
    rng = np.random.default_rng(0)

    def fill(reserve: Reserve, count: int, rng: np.random.Generator) -> None:
        for _ in range(count):
            target = rng.integers(0, 2, 1) if task.is_classifier else rng.normal(size=(1, 2)).astype(np.float32)
            features = pack(rng.normal(size=(1, 2, 3)).astype(np.float32))
            outputs = rng.normal(size=(3, 2)).astype(np.float32)
            reserve.put(features, target, outputs[0], outputs[1:])

    first, second = (Reserve((2, 3), task, 2, recent=8, per_class=3) for _ in range(2))
    fill(first, n, rng)
    fill(second, 3, rng)
    state = first.state()
    second.restore({name: array.copy() for name, array in state.items()})
    assert plain(second.state()) == plain(state)
    for reserve in (first, second):
        fill(reserve, 10, np.random.default_rng(1))
    assert plain(second.state()) == plain(first.state())


def test_refuses_a_state_of_another_head_and_nothing_changes() -> None:
    reserve = filled(0, live=0)
    before = plain(reserve.state())
    good = reserve.state()
    bad = [{n: a for n, a in good.items() if n != name} for name in good]
    bad += [good | {name: np.zeros((2, 2, 2, 2), array.dtype)} for name, array in good.items() if "scales" not in name]
    bad += [good | {"recent.targets": good["recent.targets"] + 2}, good | {"live": good["live"][:, :1]}]
    bad += [good | {"classes.targets": good["classes.targets"] - 1}]
    bad += [good | {"recent.codes": good["recent.codes"].astype(np.int16)}]
    for state in bad:
        with pytest.raises(LearningError):
            reserve.restore(state)
        assert plain(reserve.state()) == before
