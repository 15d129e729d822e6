"""What a recogniser reads is judged as that, and what is rare is not hidden by what is usual."""

from __future__ import annotations

import numpy as np
import pytest

from converter.data.samples import Samples
from converter.plan import ANYTHING, CLASSES, SEQUENCES
from converter.program.tensors import Array
from converter.verify.kinds import kinds_of
from converter.verify.measure import Evaluation
from converter.verify.quality import Deviation
from converter.verify.sequences import edits, texts
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec

RNG = np.random.default_rng(0)
LINES, STEPS, LETTERS = 24, 26, 60
PICTURES = TensorSpec(name="x", dtype="float32", shape=("batch", 1, 32, "width"))


def read(scores: Array, spec: TensorSpec, said: str | None = None, ending: str = "Gemm") -> Evaluation:
    """An evaluation of a model that takes pictures of any width."""
    x = np.zeros((scores.shape[spec.batch_axis or 0], 1, 32, 100), np.float32)
    kinds = kinds_of(
        (spec,), {"o": scores}, None, said={"o": said} if said else {}, class_names=None, endings={"o": ending},
        inputs=(PICTURES,),
    )  # fmt: skip
    return Evaluation(
        samples=Samples({"x": x}, None), real=True, inputs=(PICTURES,), outputs=(spec,), reference={"o": scores},
        kinds=kinds,
    )  # fmt: skip


def lines(blank: int = 0) -> Array:
    """``(LINES, STEPS)``: a letter in every third step, nothing in the others; each line has eight letters."""
    steps = np.full((LINES, STEPS), blank)
    others = np.setdiff1d(np.arange(LETTERS), [blank])
    steps[:, 1:25:3] = RNG.choice(others, (LINES, 8))
    return steps


def scores_of(steps: Array) -> Array:
    """``(n, steps, LETTERS)`` raw scores, of which those of the classes stand out."""
    scores = RNG.normal(size=(*steps.shape, LETTERS)).astype(np.float32)
    np.put_along_axis(scores, steps[..., None], 14.0 + RNG.normal(size=(*steps.shape, 1)).astype(np.float32), axis=-1)
    return scores


def turned(scores: Array, layout: str) -> tuple[Array, TensorSpec]:
    """Raw scores as exporters lay them out."""
    shapes = {"batch,steps,letters": ("batch", "steps", LETTERS), "steps,batch,letters": ("steps", "batch", LETTERS),
              "batch,letters,steps": ("batch", LETTERS, STEPS)}  # fmt: skip
    orders = {"batch,steps,letters": (0, 1, 2), "steps,batch,letters": (1, 0, 2), "batch,letters,steps": (0, 2, 1)}
    spec = TensorSpec(name="o", dtype="float32", shape=shapes[layout])
    return np.ascontiguousarray(scores.transpose(orders[layout])), spec


def worst(evaluation: Evaluation, found: Array) -> tuple[str, float]:
    one: Deviation = evaluation.deviation({"o": found})
    return one.worst.measure, one.worst.loss


@pytest.mark.parametrize("layout", ["batch,steps,letters", "steps,batch,letters", "batch,letters,steps"])
@pytest.mark.parametrize("blank", [0, LETTERS - 1])
def test_of_raw_scores_it_counts_what_is_read(layout: str, blank: int) -> None:
    """One letter of 192 becomes another one by a hair: no column of scores shows it, and the line is another."""
    steps = lines(blank)
    scores = scores_of(steps)
    near = (steps[3, 4] + 1) % (LETTERS - 2) + 1
    scores[3, 4, near] = scores[3, 4].max() - 0.01
    wanted, spec = turned(scores, layout)
    evaluation = read(wanted, spec)
    judged = evaluation.kinds["o"]
    assert (judged.kind, judged.also) == (ANYTHING, SEQUENCES)
    other = scores.copy()
    other[3, 4, near] += 0.02
    found, _ = turned(other, layout)
    columns = [q.loss for q in evaluation.deviation({"o": found}).qualities if q.measure == "correlation"]
    assert max(columns) < 0.01
    measure, loss = worst(evaluation, found)
    assert measure == "sequences kept"
    assert loss == pytest.approx(100 / LINES / 4)
    assert worst(evaluation, wanted + RNG.normal(size=wanted.shape).astype(np.float32) * 0.001)[1] < 0.5
    later = scores_of(np.roll(steps, 1, axis=1))  # the same letters, one step later
    whole = [q for q in evaluation.deviation({"o": turned(later, layout)[0]}).qualities if q.measure != "correlation"]
    agreed = 1 - 16 / STEPS
    assert [(q.measure, q.value) for q in whole] == [("sequences kept", 1.0), ("agreement", pytest.approx(agreed))]


def test_vectors_and_spectra_have_no_classes() -> None:
    """Normally distributed ones, of which none stands out; some of which the same few members always do; tones."""
    spec = TensorSpec(name="o", dtype="float32", shape=("batch", 96))
    plain = RNG.normal(size=(200, 96)).astype(np.float32)
    outlying = plain.copy()
    outlying[:, [5, 60]] += 40 * (1 + RNG.random((200, 2)))
    tones = 20 * np.exp(-np.square((np.arange(96) - RNG.uniform(5, 90, (200, 1))) / 2)) + 0.1 * np.abs(plain)
    for array in (plain, outlying, tones.astype(np.float32), 1000 * plain):
        assert read(array, spec).kinds["o"].also is None
    logits = scores_of(RNG.integers(0, LETTERS, 200))
    judged = read(logits, TensorSpec(name="o", dtype="float32", shape=("batch", LETTERS)))
    assert judged.kinds["o"].also == CLASSES
    other = logits.copy()
    other[:2] = np.roll(other[:2], 1, axis=1)
    assert judged.deviation({"o": other}).agreement == 0.99
    assert read(np.maximum(logits, 0), judged.outputs[0], ending="Relu").kinds["o"].also is None  # features


def test_probabilities_of_own_steps_are_read_and_those_of_an_inputs_steps_labelled() -> None:
    """A tagger marks one place in twenty: to make up as many again is 95 % of agreement, and half of it is wrong."""
    steps = np.zeros((40, 100), int)
    steps[:, ::20] = RNG.integers(1, 4, (40, 5))
    shares = np.eye(4, dtype=np.float32)[steps]
    free = TensorSpec(name="o", dtype="float32", shape=("batch", "width", 4))
    own = TensorSpec(name="o", dtype="float32", shape=("batch", "steps", 4))
    tagger, reader = read(shares, free, ending="Softmax"), read(shares, own, ending="LogSoftmax")
    assert (tagger.kinds["o"].kind, reader.kinds["o"].kind) == (CLASSES, SEQUENCES)
    for count, kept in ((2, True), (18, False)):  # of 4000 places, of which 200 are marked
        made_up = steps.copy()
        made_up.reshape(-1)[5 : 5 + 20 * count : 20] = 2
        found = np.eye(4, dtype=np.float32)[made_up]
        assert (np.mean(made_up == steps) >= 0.995) is np.True_
        assert (worst(tagger, found)[1] <= 0.5) is kept
        measure, loss = worst(reader, found)
        assert (measure, loss > 0.5) == ("sequences kept", True)
    assert worst(tagger, shares) == ("agreement", 0.0)


def test_without_a_class_for_nothing_every_step_is_a_member() -> None:
    """A decoder of five fixed places: of 4477 no digit is a repeat."""
    digits = RNG.integers(0, 10, (50, 5))
    digits[:, 1] = digits[:, 0]
    spec = TensorSpec(name="o", dtype="float32", shape=("batch", 5, 10))
    evaluation = read(np.eye(10, dtype=np.float32)[digits], spec, ending="Softmax")
    other = digits.copy()
    other[0, 1] = (other[0, 0] + 1) % 10
    assert worst(evaluation, np.eye(10, dtype=np.float32)[other])[1] == pytest.approx(0.5)
    kept = [q.value for q in evaluation.deviation({"o": np.eye(10, dtype=np.float32)[other]}).qualities]
    assert kept == [pytest.approx(0.98), pytest.approx(0.996)]


def test_the_user_may_say_it_of_floats_and_of_integers() -> None:
    steps = lines()
    spec = TensorSpec(name="o", dtype="int64", shape=("batch", "steps"))
    evaluation = read(steps, spec, said=SEQUENCES)
    later = np.roll(steps, 1, axis=1)
    kept = evaluation.deviation({"o": later}).qualities
    assert [(q.measure, q.value) for q in kept] == [("sequences kept", 1.0), ("agreement", pytest.approx(10 / STEPS))]
    assert worst(read(steps, spec), later)[1] > 50
    weak = (scores_of(steps) / 14).astype(np.float32)
    floats = TensorSpec(name="o", dtype="float32", shape=("batch", "steps", LETTERS))
    assert read(weak, floats, said=SEQUENCES, ending="").kinds["o"].kind == SEQUENCES
    with pytest.raises(ConfigError, match="sequences need steps"):
        read(weak[:, 0], TensorSpec(name="o", dtype="float32", shape=("batch", LETTERS)), said=SEQUENCES)
    nothing = read(np.zeros((9, 12), int), TensorSpec(name="o", dtype="int64", shape=("batch", 12)), said=SEQUENCES)
    assert nothing.deviation(nothing.reference).worst.constant  # nothing was read: to agree says nothing


def test_a_rare_yes_is_not_hidden_by_no() -> None:
    """30 of 3000 are yes; 14 more are as many as half of them, and 0.47 % of all."""
    wanted = np.full((3000, 1), -3.0, np.float32)
    wanted[::100] = 3
    wanted += RNG.normal(size=wanted.shape).astype(np.float32) * 0.1
    evaluation = read(wanted, TensorSpec(name="o", dtype="float32", shape=("batch", 1)), said="yes-or-no")
    found = wanted.copy()
    found[1:1401:100] = 0.1
    measure, loss = worst(evaluation, found)
    assert measure == "agreement"
    assert loss == pytest.approx(25 * 14 / 44)


def test_what_is_not_finite_reads_nothing() -> None:
    scores, spec = turned(scores_of(lines()), "batch,steps,letters")
    for said in (None, SEQUENCES):
        found = scores.copy()
        found[2, 3, 4] = np.nan
        assert worst(read(scores, spec, said=said), found)[1] == float("inf")


def test_edits_are_the_fewest() -> None:
    """Against the plain recursion."""

    def plain(one: tuple[int, ...], other: tuple[int, ...]) -> int:
        if not one or not other:
            return len(one) + len(other)
        best = min(plain(one[1:], other), plain(one, other[1:])) + 1
        return min(best, plain(one[1:], other[1:]) + (one[0] != other[0]))

    for _ in range(60):
        one, other = (RNG.integers(0, 3, RNG.integers(0, 6)) for _ in range(2))
        assert edits(one, other) == plain(tuple(one), tuple(other))
    assert [text.tolist() for text in texts(np.array([[0, 3, 3, 0, 3, 0]]), 0)] == [[3, 3]]
