"""What is expected of other samples: nearer to the truth than counting on few, and nothing where nothing moved."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from converter.data.samples import Samples
from converter.plan import CLASSES, SEQUENCES, YES_OR_NO, ConversionPlan
from converter.program.tensors import Array
from converter.search.search import Search
from converter.verify.expectation import ENOUGH, expected, unseen_share
from converter.verify.kinds import Judged
from converter.verify.measure import Evaluation
from converter.verify.quality import Quality
from edge.contract.tensorspec import TensorSpec

RNG = np.random.default_rng(0)
SPEC = TensorSpec(name="o", dtype="float32", shape=("batch", 5))
MANY, FEW = 4000, 32


def quality(wanted: Array, found: Array, y: Array | None = None, kind: str = CLASSES) -> Quality:
    spec = SPEC if wanted.ndim == 2 else TensorSpec(name="o", dtype="float32", shape=("batch", "steps", 30))
    judged = Judged(kind=kind, because="", axis=wanted.ndim - 1, threshold=0.5 if kind == YES_OR_NO else 0.0)
    one = expected(spec, judged, wanted, found, y)
    assert one is not None
    return one


def shares_of(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("as_shares", [False, True])
def test_on_few_samples_it_is_nearer_to_the_loss_on_many_than_counting_is(labelled: bool, as_shares: bool) -> None:
    y = RNG.integers(0, 5, MANY)
    logits = RNG.normal(size=(MANY, 5)).astype(np.float32)
    logits[np.arange(MANY), y] += 4.0
    moved = logits + 0.4 * RNG.normal(size=logits.shape).astype(np.float32)
    truth = y if labelled else logits.argmax(1)
    before, after = (a.argmax(1) == truth for a in (logits, moved))
    really = 100 * float(before.mean() - after.mean())
    wanted, found = (shares_of(a) if as_shares else a for a in (logits, moved))
    counted, estimated = [], []
    for _ in range(60):
        rows = RNG.permutation(MANY)[:FEW]
        counted.append(100 * float(before[rows].mean() - after[rows].mean()) - really)
        estimated.append(quality(wanted[rows], found[rows], y[rows] if labelled else None).loss - really)
    rms = [float(np.sqrt(np.mean(np.square(errors)))) for errors in (estimated, counted)]
    assert rms[0] < 0.8 * rms[1]
    assert abs(float(np.mean(estimated))) < 0.5 * really + 0.3


def test_loud_samples_that_are_moved_by_more_say_nothing_of_quiet_ones() -> None:
    """Values from 0.01 to 100 of one signal each, all off by the same share of theirs."""
    logits = RNG.normal(size=(64, 5)).astype(np.float32)
    logits[np.arange(64), RNG.integers(0, 5, 64)] += 6.0
    moved = logits + 0.3 * RNG.normal(size=logits.shape).astype(np.float32)
    loud = (10.0 ** RNG.integers(-2, 3, (64, 1))).astype(np.float32)
    assert quality(logits, moved).loss < 0.1
    assert quality(loud * logits, loud * moved).loss < 0.1
    answers = logits[:, :1] - 3.0
    noise = 0.1 * np.abs(answers) * RNG.normal(size=answers.shape)
    assert quality(1 / (1 + np.exp(-answers)), 1 / (1 + np.exp(-answers - noise)), kind=YES_OR_NO).loss < 1.0


def test_what_moves_nothing_is_expected_to_lose_nothing() -> None:
    logits = RNG.normal(size=(FEW, 5)).astype(np.float32)
    logits[0] = 1.0  # a tie
    y = RNG.integers(0, 5, FEW)
    for labels in (None, y):
        assert quality(logits, logits.copy(), labels).loss == pytest.approx(0.0, abs=1e-9)
    steps = RNG.normal(size=(FEW, 12, 30)).astype(np.float32)
    assert quality(steps, steps.copy(), kind=SEQUENCES).loss == 0.0
    answers = RNG.random((FEW, 5)).astype(np.float32)
    assert quality(answers, answers.copy(), kind=YES_OR_NO).loss == pytest.approx(0.0, abs=1e-9)


def test_lines_that_a_program_will_read_otherwise_are_seen_though_none_was() -> None:
    """Steps of small margins and steps that move are not the same ones here, and will be elsewhere."""
    steps = RNG.integers(0, 30, (24, 12))
    scores = np.zeros((24, 12, 30), np.float32)
    np.put_along_axis(scores, steps[..., None], 5.0, axis=-1)
    moved = scores.copy()
    np.put_along_axis(scores[:2], steps[:2, :, None], 1.0, axis=-1)  # near ones, which stay
    np.put_along_axis(moved, steps[..., None], 7.0, axis=-1)
    np.put_along_axis(moved[:2], steps[:2, :, None], 3.0, axis=-1)
    np.put_along_axis(moved[2:4], steps[2:4, :, None], 3.0, axis=-1)  # sure ones, which move the other way
    assert (scores.argmax(-1) == moved.argmax(-1)).all()
    one = quality(scores, moved, kind=SEQUENCES)
    assert one.measure == "sequences expected to be kept"
    assert one.loss > 0.5
    assert one.value is not None
    assert 0.9 < one.value < 0.96  # two of 24 lines have twelve steps each that one step in twelve would turn


def test_of_yes_or_no_the_column_that_loses_is_named() -> None:
    wanted = RNG.random((64, 5)).astype(np.float32)
    found = wanted.copy()
    found[:, 3] = np.clip(found[:, 3] + 0.2 * RNG.normal(size=64), 0, 1)
    one = quality(wanted, found, kind=YES_OR_NO)
    assert one.column == 3
    assert one.loss > 1.0


def test_answers_that_are_all_the_same_or_none_are_expected_to_do_nothing() -> None:
    same = np.tile(np.float32([1, 0, 0, 0, 0]), (FEW, 1))
    classes = Judged(kind=CLASSES, because="", axis=1)
    assert expected(SPEC, classes, same, same, None) is None
    assert expected(SPEC, Judged(kind="quantities", because="", axis=1), same, same, None) is None


def evaluation(wanted: Array, *, real: bool = True) -> Evaluation:
    x = np.arange(len(wanted), dtype=np.float32)[:, None]
    return Evaluation(
        samples=Samples({"x": x}, None),
        real=real,
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 1)),),
        outputs=(SPEC,),
        reference={"o": wanted},
        kinds={"o": Judged(kind=CLASSES, because="", axis=1)},
    )


def test_a_candidate_that_few_samples_cannot_clear_is_not_shipped() -> None:
    """None of them changed; the same margins and moves on enough samples are counted, and nothing is expected."""
    margins = np.where(np.arange(40) % 2, 0.5, 8.0)
    logits = np.zeros((40, 5), np.float32)
    logits[np.arange(40), np.arange(40) % 5] = margins
    moved = logits.copy()
    moved[np.arange(40), np.arange(40) % 5] += np.where(np.arange(40) % 4, 1.0, -1.0)  # only of those that are sure
    plan = cast(ConversionPlan, SimpleNamespace(max_drop=0.5, profile=None, quantize="auto"))

    def fault(wanted: Array, found: Array) -> str | None:
        compared = evaluation(wanted)
        deviation = compared.measured(lambda feed: {"o": found[feed["x"][:, 0].astype(int)]})
        assert deviation.worst.loss == 0.0
        problem: Any = SimpleNamespace(evaluation=compared)
        return Search(problem, plan, lambda _: None)._fault(cast(Any, SimpleNamespace(deviation=deviation, why="")))

    said = fault(logits, moved)
    assert said is not None
    assert "is expected to disagree on 12.50 % of others" in said
    assert "the 40 samples are too few to show it" in said
    assert fault(np.tile(logits, (ENOUGH // 40, 1)), np.tile(moved, (ENOUGH // 40, 1))) is None
    assert fault(logits, logits) is None


def test_nothing_is_expected_from_samples_that_are_none() -> None:
    logits = RNG.normal(size=(FEW, 5)).astype(np.float32)
    assert evaluation(logits, real=False).measured(lambda _: {"o": logits + 1}).expected == ()
    assert unseen_share(ENOUGH) <= 0.005
