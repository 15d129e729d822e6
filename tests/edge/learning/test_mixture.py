"""Prediction with expert advice: who is right is believed, and who is as good as the others keeps its place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.recipe import BINARY_CROSS_ENTROPY, MEAN_SQUARED_ERROR, TrainingRecipe
from edge.learning import mixture as mix
from edge.learning.task import Task

CLASSES = Task(TrainingRecipe(), 4)
QUANTITIES = Task(TrainingRecipe(loss=MEAN_SQUARED_ERROR), 2)
ANSWERS = Task(TrainingRecipe(loss=BINARY_CROSS_ENTROPY), 3)
NAMES = (mix.TRUSTED, mix.SHIPPED, "one", "two")
EVERYBODY = np.ones((4, 4), bool)

ONE = np.ones(1, np.float32)


def begun(task: Task = CLASSES) -> mix.Mixture:
    return mix.mixture_of(NAMES, np.array([1.0, 1.0, 1.0, 1.0]), task)


def saying(*classes: int) -> npt.NDArray[np.float32]:
    """``(k, 1, 4)`` outputs of experts that are sure of these classes."""
    found = np.zeros((len(classes), 1, 4), np.float32)
    for expert, chosen in enumerate(classes):
        found[expert, 0, chosen] = 20.0
    return found


def hear(mixture: mix.Mixture, outputs: npt.NDArray[np.float32], label: int, times: int = 1) -> mix.Mixture:
    for _ in range(times):
        mixture = mix.heard(mixture, outputs, np.array([label]), ONE, CLASSES)
    return mixture


def test_who_is_right_is_believed_and_the_weights_stay_shares() -> None:
    mixture = hear(begun(), saying(0, 0, 2, 1), 2, 30)
    assert mixture.believed == "one"
    assert mixture.weight_of("one") > 0.8
    assert mixture.weight_of("nobody") == 0.0
    np.testing.assert_allclose(mixture.weights.sum(), 1.0)
    answered = mix.answer(mixture, saying(0, 0, 2, 1), EVERYBODY, CLASSES)
    assert answered.shape == (1, 4)
    assert answered.argmax() == 2
    np.testing.assert_allclose(np.exp(answered).sum(), 1.0, rtol=1e-6)


def test_who_was_wrong_for_long_comes_back_soon() -> None:
    mixture = hear(begun(), saying(0, 0, 2, 1), 2, 300)
    assert hear(mixture, saying(0, 0, 2, 1), 1, 25).believed == "two"  # fixed share keeps everybody alive


def passed(order: npt.NDArray[np.int64]) -> mix.Mixture:
    """Labels in an order; expert "one" is wrong on every fifth, and "two" answers with the class that came last."""
    mixture, last = begun(), 0
    for i, label in enumerate(order.tolist()):
        outputs = saying(3 - label, 3 - label, label if i % 5 else 3 - label, last)
        counted = mix.counts(order[:i], mixture.heard, np.array([label]), CLASSES)
        mixture, last = mix.heard(mixture, outputs, np.array([label]), counted, CLASSES), label
    return mixture


def test_who_has_forgotten_all_but_the_class_of_the_day_is_not_believed_for_that() -> None:
    mixed = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 20))
    for n in (0, 10, 60):
        assert passed(np.concatenate([mixed, np.full(n, 3)])).weight_of("one") > 0.75


def test_labels_of_the_class_of_the_day_weigh_no_more_than_usual_against_the_others() -> None:
    heard, run = np.array([50, 50, 50, 50]), np.full(64, 2)
    np.testing.assert_allclose(mix.counts(np.arange(64) % 4, heard, np.arange(4), CLASSES), 1.0)
    counted = mix.counts(run, heard, np.arange(4), CLASSES)
    assert counted[2] == pytest.approx(1 / 3 / (33 / 3))  # one to three at all, and 33 to three of the last 32
    assert counted[[0, 1, 3]].tolist() == [1.0, 1.0, 1.0]
    # Who only ever met one class, or meets one more often than others, learns from it as from any.
    np.testing.assert_allclose(mix.counts(run[:32], np.array([0, 0, 32, 0]), np.array([2]), CLASSES), 1.0)
    often = np.where(np.arange(64) % 8, 0, 1)
    assert mix.counts(often, np.array([875, 125, 0, 0]), np.array([0, 1]), CLASSES).min() > 0.85  # but for luck
    for task in (QUANTITIES, ANSWERS):
        targets = np.ones((3, task.n_outputs), np.float32)
        np.testing.assert_array_equal(mix.counts(targets, np.array([3]), targets, task), 1.0)


def test_late_labels_are_of_one_class_when_nearly_all_of_them_are() -> None:
    now = np.array([1, 0])
    assert mix.one_class(np.full(7, 1), now).tolist() == [0.0, 0.0], "few say nothing"
    assert mix.one_class(np.full(40, 1), now).tolist() == [1.0, 0.0]
    assert mix.one_class(np.array([1, 1, 1, 0] * 8), now).tolist() == [0.0, 0.0]
    mostly = mix.one_class(np.array([1] * 28 + [0] * 4), now)
    assert 0.0 < mostly[0] < 1.0
    assert mostly[1] == 0.0


def test_who_answers_the_class_of_the_day_for_others_too_is_right_by_so_much_less() -> None:
    classes = np.array([0, 0, 1, 1, 2, 2])
    heads = [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2], [1] * 6, [1, 1, 1, 1, 1, 2]]
    outputs = np.eye(3, dtype=np.float32)[np.array(heads)]
    found = mix.apart(outputs, classes, np.array([1, 2]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(found[:, 0], [1.0, 1.0, 0.25, 0.5])  # beyond what the second head does
    np.testing.assert_array_equal(found[:, 1], 1.0)
    np.testing.assert_allclose(mix.apart(outputs, classes, np.array([1]), np.array([0.4]))[2], 1 - 0.4 * 0.75)
    assert (mix.apart(outputs, np.full(6, 1), np.array([1]), np.ones(1)) == 1.0).all(), "nothing else is known"
    told, plain = (
        mix.heard(begun(), saying(0, 0, 1, 1), np.array([1]), ONE, CLASSES, apart=each)
        for each in (np.array([[1.0], [1.0], [0.25], [1.0]]), None)
    )
    assert told.weights[2] < told.weights[3] == told.weights.max()
    assert plain.weights[2] == plain.weights[3]
    assert told.agreement[2] == 0.25


def test_labels_that_agree_with_nobody_change_no_answer() -> None:
    rng, mixture = np.random.default_rng(0), begun()
    for label in rng.integers(0, 4, 200):
        mixture = mix.heard(mixture, saying(0, 0, 2, 1), np.array([label]), ONE, CLASSES)
    assert mixture.credit(CLASSES) < 0.3
    assert mix.answer(mixture, saying(0, 0, 2, 1), EVERYBODY, CLASSES).argmax() == 0  # the trusted past


def test_nothing_is_credited_before_the_first_label_and_all_of_it_when_labels_agree() -> None:
    assert begun().credit(CLASSES) == 0.0
    assert hear(begun(), saying(0, 0, 2, 1), 2, 20).credit(CLASSES) == 1.0
    assert begun(QUANTITIES).credit(QUANTITIES) == 0.0
    outputs = np.zeros((4, 1, 2), np.float32)
    heard = mix.heard(begun(QUANTITIES), outputs, np.zeros((1, 2), np.float32), np.ones(1), QUANTITIES)
    assert heard.credit(QUANTITIES) == 1.0


def test_where_late_labels_are_all_of_one_class_more_agreement_is_asked_for() -> None:
    half = begun()
    for label in [2, 0] * 20:  # who always says 2 is right on a half
        half = hear(half, saying(1, 1, 2, 1), label)
    assert half.credit(CLASSES) > 0.5
    assert half.credit(CLASSES, 1.0) == 0.0
    assert half.credit(CLASSES, 0.5) < half.credit(CLASSES)
    sure = hear(begun(), saying(1, 1, 2, 1), 2, 40)
    assert sure.credit(CLASSES, 1.0) == 1.0
    answers = saying(0, 0, 2, 2)
    assert mix.answer(half, answers, EVERYBODY, CLASSES, alone=1.0).argmax() == 0
    assert mix.answer(sure, answers, EVERYBODY, CLASSES, alone=1.0).argmax() == 2


def test_of_experts_that_are_as_good_the_head_they_start_from_is_kept() -> None:
    rng, mixture = np.random.default_rng(1), begun()
    for label in rng.integers(0, 2, 200):  # half of the labels say 0, half 1: all are right on half of them
        mixture = mix.heard(mixture, saying(0, 0, 1, 1), np.array([label]), ONE, CLASSES)
    assert mixture.weights[:2].sum() > 0.8


def test_wrong_labels_are_alike_where_they_are_wrong_in_the_same_way() -> None:
    task, rng = Task(TrainingRecipe(), 10), np.random.default_rng(0)
    said = rng.integers(0, 10, 64)
    answers = np.eye(10, dtype=np.float32)[said]
    wrong = rng.random(64) < 0.4
    spread = np.where(wrong, (said + rng.integers(1, 10, 64)) % 10, said)
    for shift in (1, 3, 7):  # whatever they are named instead
        assert mix.alike(answers, np.where(wrong, (said + shift) % 10, said), task) == 1.0
    assert mix.alike(answers, np.where(wrong & (said < 5), (said + 2) % 10, said), task) == 1.0
    assert mix.alike(answers, spread, task) < 0.3
    none = np.zeros((0, 10), np.float32), np.zeros(0, np.int64)
    assert mix.alike(*none, task) == mix.alike(answers, said, task) == 1.0  # until they are seen to be spread
    yes_or_no = np.eye(2, dtype=np.float32)[rng.integers(0, 2, 64)], rng.integers(0, 2, 64)
    assert mix.alike(*yes_or_no, Task(TrainingRecipe(), 2)) == 0.0  # of two classes nobody can tell
    assert mix.alike(answers, np.repeat([2, 5], 32), task) == 0.0  # nor where one class comes after another
    assert mix.alike(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32), QUANTITIES) == 0.0


def test_where_wrong_labels_are_alike_it_takes_more_to_leave_the_head_that_learners_start_from() -> None:
    rng, mixtures = np.random.default_rng(2), [begun(), begun()]
    for label in np.where(rng.random(150) < 0.56, 1, 0):  # the learners say 1, and are right a little more often
        mixtures = [
            mix.heard(m, saying(0, 0, 1, 1), np.array([label]), ONE, CLASSES, alike=alike)
            for m, alike in zip(mixtures, (0.0, 1.0), strict=True)
        ]
    spread, same = (float(m.weights[:2].sum()) for m in mixtures)
    assert same > 0.8
    assert same > spread + 0.05


def test_only_those_who_know_a_class_speak_of_it() -> None:
    known = EVERYBODY.copy()
    known[[0, 1, 2], 3] = False  # a class that only the last one has met
    mixture = hear(begun(), saying(0, 0, 0, 0), 0, 30)
    assert mix.answer(mixture, saying(0, 0, 0, 3), known, CLASSES).argmax() == 3
    assert mix.answer(mixture, saying(0, 0, 0, 3), EVERYBODY, CLASSES).argmax() == 0
    assert mix.answer(mixture, saying(0, 3, 0, 0), known, CLASSES).argmax() == 0  # it does not know what it says
    assert mix.answer(mixture, np.zeros((4, 0, 4), np.float32), known, CLASSES).shape == (0, 4)  # of no samples


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_an_expert_whose_answers_are_not_finite_is_wrong(wrong: float) -> None:
    outputs = saying(2, 2, 2, 2)
    outputs[3] = wrong
    with np.errstate(all="ignore"):
        mixture = hear(begun(), outputs, 2, 20)
    assert mixture.weight_of("two") < 0.05
    answered = mix.answer(mixture, outputs, EVERYBODY, CLASSES)
    assert np.isfinite(answered).all()
    assert answered.argmax() == 2


def test_quantities_are_averaged_and_who_is_nearer_is_believed() -> None:
    mixture, outputs = begun(QUANTITIES), np.zeros((4, 1, 2), np.float32)
    outputs[2] = [[1.0, -1.0]]
    for _ in range(40):
        mixture = mix.heard(mixture, outputs, np.array([[1.0, -1.0]], np.float32), ONE, QUANTITIES, usual_loss=0.5)
    assert mixture.believed == "one"
    found = mix.answer(mixture, outputs, np.ones((4, 2), bool), QUANTITIES)
    np.testing.assert_allclose(found, mixture.weight_of("one") * np.array([[1.0, -1.0]]), rtol=1e-5)


def test_yes_or_no_answers_mix_their_probabilities() -> None:
    mixture = begun(ANSWERS)
    outputs = np.array([[[3.0, -3.0, 0.0]]] * 4, np.float32)
    np.testing.assert_allclose(mix.answer(mixture, outputs, np.ones((4, 3), bool), ANSWERS), outputs[0], rtol=1e-4)
    sure = np.array([[[38.2, -120.0, 800.0]]] * 4, np.float32)
    np.testing.assert_allclose(mix.answer(mixture, sure, np.ones((4, 3), bool), ANSWERS), sure[0], rtol=1e-5)
    two = np.array([[[3.0, -3.0, 0.0]]] * 2 + [[[-1.0, -3.0, 0.0]]] * 2, np.float32)
    weights = mixture.weights / mixture.weights.sum()
    share = (weights[:, None] / (1 + np.exp(-two[:, 0].astype(float)))).sum(axis=0)
    found = mix.answer(mixture, two, np.ones((4, 3), bool), ANSWERS, trusted=False)[0]
    np.testing.assert_allclose(found, np.log(share / (1 - share)), rtol=1e-5, atol=1e-6)


def test_a_label_without_trust_changes_nothing() -> None:
    mixture = begun()
    assert mix.heard(mixture, saying(0, 1, 2, 3), np.array([1]), np.zeros(1, np.float32), CLASSES) is mixture


def test_who_stays_keeps_its_weight_when_others_come_and_go() -> None:
    mixture = hear(begun(), saying(0, 0, 2, 1), 2, 30)
    found = mix.with_experts(mixture, (mix.TRUSTED, mix.SHIPPED, "one", "new"), np.array([0.1, 0.1, 0.4, 0.4]))
    assert found.weight_of("new") == pytest.approx(0.4)
    assert found.weight_of("one") > 5 * found.weight_of(mix.SHIPPED)
    np.testing.assert_allclose(found.weights.sum(), 1.0)


def test_the_trusted_past_gives_up_its_say_when_it_becomes_what_others_have() -> None:
    mixture = mix.renewed(hear(begun(), saying(2, 0, 2, 1), 2, 30))
    assert mixture.weights[0] == pytest.approx(0.1)
    assert mixture.believed == "one"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(0, 3)), max_size=60))
def test_weights_are_shares_whatever_comes(stream: list[tuple[list[int], int]]) -> None:
    mixture = begun()
    for answers, label in stream:
        mixture = mix.heard(mixture, saying(*answers), np.array([label]), ONE, CLASSES)
        assert (mixture.weights > 0).all()
        assert mixture.weights.sum() == pytest.approx(1.0)
        assert 0.0 <= mixture.credit(CLASSES) <= 1.0
    assert mixture.labels == len(stream)
    assert mixture.heard.sum() == len(stream)
