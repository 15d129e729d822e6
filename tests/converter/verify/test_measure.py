"""Every output and every column is judged by what it is, on its own scale, and the worst one decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from converter.data.samples import Samples
from converter.plan import KINDS
from converter.program.tensors import Array, Arrays
from converter.verify import measure
from converter.verify.columns import column_axis, compare, cosines, overlaps
from converter.verify.kinds import endings_of, kinds_of, of_head
from converter.verify.measure import Evaluation, confusion, times_as_long
from converter.verify.quality import Deviation
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec
from tests.converter.models import export

N = 400


def spec_of(name: str, array: Array) -> TensorSpec:
    return TensorSpec(name=name, dtype=str(array.dtype), shape=("batch", *array.shape[1:]))


def evaluation(
    outputs: Arrays,
    y: Array | None = None,
    said: Mapping[str, str] | None = None,
    endings: Mapping[str, str] | None = None,
    class_names: list[str] | None = None,
) -> Evaluation:
    specs = tuple(spec_of(name, array) for name, array in outputs.items())
    x = {"x": np.zeros((len(next(iter(outputs.values()))), 1), np.float32)}
    return Evaluation(
        samples=Samples(x, y),
        real=True,
        inputs=(spec_of("x", x["x"]),),
        outputs=specs,
        reference=outputs,
        kinds=kinds_of(specs, outputs, y, said=said or {}, class_names=class_names, endings=endings or {}),
    )


def judged(wanted: Array, found: Array, kind: str | None = None, **known: object) -> Deviation:
    known |= {"said": {"o": kind}} if kind else {}
    return evaluation({"o": wanted}, **known).deviation({"o": found})  # type: ignore[arg-type]


def noisy(wanted: Array, share: float, columns: object = slice(None), seed: int = 1) -> Array:
    """The same with noise of this share of the standard deviation in some columns."""
    found = wanted.astype(np.float64)
    noise = np.random.default_rng(seed).standard_normal(wanted.shape) * found.std(axis=0) * share
    found[:, columns] += noise[:, columns]
    return found.astype(wanted.dtype)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_a_column_that_is_lost_is_seen_beside_others_of_any_size() -> None:
    """Pressure in Pa, temperature, a share, something in 1e-12 and something denormal: the smallest is the one lost."""
    offsets = np.array([101325.0, 20.0, 0.5, 3e-12, 2e-40])
    spreads = np.array([400.0, 8.0, 0.2, 1e-12, 1e-40])
    wanted = (normal(N, 5) * spreads + offsets).astype(np.float32)
    for kind in ("quantities", None):
        assert judged(wanted, wanted.copy(), kind).worst.loss == 0
        for lost in range(5):
            found = judged(wanted, noisy(wanted, 1.0, lost), kind)
            assert found.worst.name == f"o[{lost}]"
            assert found.worst.loss > 10
            assert [q.column for q in found.qualities if q.loss > 0.5] == [lost]
        constant = wanted.copy()
        constant[:, 2] = wanted[:, 2].mean()
        assert judged(wanted, constant, kind).worst.column == 2
        assert judged(wanted, constant, kind).worst.loss >= 50


def test_a_constant_column_is_said_to_be_and_never_good() -> None:
    wanted = normal(N, 3)
    wanted[:, 1] = 7.0
    for kind in ("quantities", "scores", None):
        found = judged(wanted, wanted + np.float32(1e-4), kind)
        constant = [q for q in found.qualities if q.constant]
        assert [(q.column, q.value, q.loss) for q in constant] == [(1, None, 0.0)]
        assert not found.worst.constant
        moved = wanted.copy()
        moved[:, 1] += 0.5
        assert judged(wanted, moved, kind).worst.column == 1
    same = np.full((N, 2), 3.0, np.float32)
    assert judged(same, same).worst.value is None
    assert judged(same, same).worst.constant


def test_values_that_are_not_finite_lose_everything() -> None:
    wanted = normal(N, 3)
    for value in (np.nan, np.inf, -np.inf):
        found = wanted.copy()
        found[5, 2] = value
        for kind in KINDS:
            if kind not in ("boxes", "sequences"):  # which have another shape
                assert judged(wanted, found, kind).worst.loss == float("inf")


def test_what_was_made_for_anything_needs_no_class() -> None:
    """Two spectra whose largest value stays where it is, while everything else is lost."""
    wanted = np.abs(normal(N, 40)) * 0.1
    wanted[:, 7] += 5
    found = wanted[::-1].copy()
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()
    worst = judged(wanted, found).worst
    assert (worst.kind, worst.measure) == ("anything", "correlation")
    assert worst.loss > 50
    assert judged(wanted, noisy(wanted, 0.05)).worst.loss < 0.5 < judged(wanted, noisy(wanted, 0.3)).worst.loss


def test_columns_lie_where_units_differ() -> None:
    sequences = normal(20, 30, 6)  # (batch, time, channels), (batch, channels, time)
    by_channel = sequences * np.array([1e4, 1, 1, 1e-3, 1, 1], np.float32)
    assert column_axis(spec_of("o", sequences), sequences) == 2
    assert column_axis(spec_of("o", by_channel), by_channel) == 2
    turned = np.ascontiguousarray(by_channel.swapaxes(1, 2))
    assert column_axis(spec_of("o", turned), turned) == 1
    free = TensorSpec(name="o", dtype="float32", shape=("batch", 6, "time"))
    assert column_axis(free, turned) == 1
    maps = normal(10, 5, 8, 8)
    assert column_axis(spec_of("o", maps), maps) == 1
    wide = normal(10, 8, 8, 3) * np.array([1, 100, 1e-3], np.float32)
    assert column_axis(spec_of("o", wide), wide) == 3
    assert column_axis(spec_of("o", normal(10)), normal(10)) is None
    state = TensorSpec(name="h", dtype="float32", shape=(2, "batch", 8))
    assert column_axis(state, normal(2, 10, 8)) == 2
    lost = turned.copy()
    lost[:, 3] = turned[::-1, 3]
    found = judged(turned, lost)
    assert (found.worst.column, found.worst.loss > 10) == (3, True)


# --- answers ---------------------------------------------------------------------------------------------------------


def logits(labels: Array, n_classes: int, margin: float = 4.0) -> Array:
    return (np.eye(n_classes)[labels] * margin + normal(len(labels), n_classes) * 0.1).astype(np.float32)


def test_classes_are_judged_by_labels_and_a_rare_one_is_not_lost_in_the_total() -> None:
    y = np.zeros(N * 5, np.int64)
    y[: N * 2], y[-6:] = 1, 2
    wanted = logits(y, 3)
    found = judged(wanted, logits(np.where(y == 2, 0, y), 3), y=y)
    overall = found.qualities[0]
    assert (overall.measure, overall.against, round(overall.loss, 2)) == ("accuracy", "labels", 0.3)
    assert found.worst.name == "class 2 of o"
    assert found.worst.loss == 100
    assert judged(wanted, wanted, y=y).worst.loss == 0
    assert found.score == pytest.approx(0.997)
    one = evaluation({"o": wanted}, y=y)
    table = confusion(one, {"o": logits(np.where(y == 2, 0, y), 3)})
    assert table is not None
    assert table.tolist() == [[N * 3 - 6, 0, 0], [0, N * 2, 0], [6, 0, 0]]


def test_one_class_for_all_samples_is_no_agreement() -> None:
    wanted = normal(N, 4) * 0.1
    wanted[:, 0] += 9
    found = judged(wanted, wanted[::-1].copy(), "classes")
    assert found.worst.measure == "correlation"
    assert found.worst.loss > 50


def test_yes_or_no_is_judged_column_by_column_and_rare_events_count() -> None:
    """99 % are no: to say no always is right on 99 % and loses every event."""
    rng = np.random.default_rng(0)
    y = (rng.random((2000, 3)) < [0.5, 0.004, 0.3]).astype(np.float32)
    wanted = ((y - 0.5) * 6).astype(np.float32)
    never = wanted.copy()
    never[:, 1] = -3
    for known in ({"y": y}, {"kind": "yes-or-no"}):
        assert judged(wanted, wanted, **known).worst.loss == 0
        worst = judged(wanted, never, **known).worst
        assert (worst.name, worst.loss) == ("o[1]", 100)
        assert worst.value is not None
        assert worst.value > 0.99
    probabilities = 1 / (1 + np.exp(-wanted))
    silent = 1 / (1 + np.exp(-never))
    worst = judged(probabilities, silent, endings={"o": "Sigmoid"}).worst
    assert (worst.kind, worst.name, worst.loss > 5) == ("scores", "o[1]", True)
    assert judged(probabilities, probabilities + np.float32(0.001), endings={"o": "Sigmoid"}).worst.loss < 0.5


def test_a_score_that_hardly_moves_may_be_rounded_on_the_scale_that_all_share() -> None:
    rng = np.random.default_rng(0)
    wanted = np.stack([rng.random(N), 0.001 * rng.random(N)], axis=1).astype(np.float32)
    rounded = np.round(wanted * 255) / 255
    assert judged(wanted, rounded.astype(np.float32), "scores").worst.loss < 0.5
    assert judged(wanted, rounded.astype(np.float32), "quantities").worst.name == "o[1]"


def test_integers_and_booleans_are_compared_as_they_are() -> None:
    rng = np.random.default_rng(0)
    alarms = rng.random((2000, 2)) < [0.5, 0.003]
    silent = alarms.copy()
    silent[:, 1] = False
    found = judged(alarms, silent)
    assert (found.worst.name, found.worst.measure, found.worst.loss) == ("o[1]", "equal", 100)
    counts = rng.integers(0, 9, (N, 2))
    assert judged(counts, counts).worst.value == 1
    assert judged(counts, counts + 1).worst.value == 0
    assert judged(counts, counts, "quantities").worst.measure == "R2"
    y = rng.integers(0, 5, N)
    answers = np.where(np.arange(N) < 40, 0, y)
    found = evaluation({"o": answers}, y=y).deviation({"o": y})
    assert (found.worst.measure, found.worst.value, found.worst.against) == ("accuracy", 1.0, "labels")


def test_several_heads_are_judged_each_and_the_worst_decides() -> None:
    y = np.arange(N) % 3
    outputs = {"boxes": normal(N, 4), "logits": logits(y, 3), "embedding": normal(N, 16)}
    one = evaluation(outputs, y=y, said={"embedding": "embedding"}, class_names=["a", "b", "c"])
    assert {name: kind.kind for name, kind in one.kinds.items()} == {
        "boxes": "anything", "logits": "classes", "embedding": "embedding",
    }  # fmt: skip
    assert one.classes == "logits"
    for lost in outputs:
        found = one.deviation({**outputs, lost: outputs[lost][::-1].copy()})
        assert found.worst.output == lost
        assert (found.agreement is None) == (lost != "none")


# --- vectors and boxes -----------------------------------------------------------------------------------------------


def test_embeddings_are_judged_by_direction_about_their_mean() -> None:
    """All point nearly the same way: a plain cosine would call another sample's vector the same."""
    wanted = (normal(N, 32) * 0.1 + 3).astype(np.float32)
    plain = (wanted * wanted[::-1]).sum(1) / np.linalg.norm(wanted, axis=1) / np.linalg.norm(wanted[::-1], axis=1)
    assert plain.min() > 0.99
    assert judged(wanted, wanted[::-1].copy(), "embedding").worst.loss > 50
    near = judged(wanted, noisy(wanted, 0.05), "embedding").worst
    assert (near.measure, near.column, near.loss < 0.5) == ("cosine", None, True)
    some = wanted.copy()
    some[:40] = wanted[40:80]  # a tenth of the samples, wholly wrong
    assert judged(wanted, some, "embedding").worst.loss > 5
    assert cosines(wanted, wanted).min() == 1
    unit = wanted - wanted.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert evaluation({"o": unit}).kinds["o"].kind == "embedding"
    one_hot = np.eye(8, dtype=np.float32)[np.arange(N) % 8]
    assert evaluation({"o": one_hot}).kinds["o"].kind == "anything"


@pytest.mark.parametrize("scale", [1.0, 640.0])
def test_boxes_are_judged_by_overlap_whatever_their_unit_and_form(scale: float) -> None:
    rng = np.random.default_rng(0)
    centre, size = rng.uniform(0.3, 0.7, (N, 30, 2)), rng.uniform(0.05, 0.2, (N, 30, 2))
    for corners in (True, False):
        parts = (centre - size / 2, centre + size / 2) if corners else (centre, size)
        wanted = (np.concatenate(parts, axis=2) * scale).astype(np.float32)
        for boxes in (wanted, np.ascontiguousarray(wanted.swapaxes(1, 2))):
            near = boxes + np.float32(0.002 * scale)
            assert judged(boxes, near, "boxes").worst.loss < 0.5
            far = judged(boxes, boxes + np.float32(0.05 * scale), "boxes").worst
            assert (far.measure, far.loss > 30) == ("boxes kept", True)
    assert overlaps(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2]])) == pytest.approx([1 / 3])
    shifts = normal(N, 4)  # no boxes: sizes below zero
    assert judged(shifts, shifts, "boxes").worst.measure == "correlation"


def detector(layout: str) -> tuple[Arrays, Array, dict[str, str], Mapping[str, str]]:
    """What a detector gives for pictures with one or two things in 200 places; where these are; kinds, and endings."""
    rng = np.random.default_rng(0)
    there = np.zeros((N // 4, 200), np.bool_)
    for row in there:
        row[rng.choice(200, rng.integers(1, 3), replace=False)] = True
    centre, size = rng.uniform(40, 280, (*there.shape, 2)), rng.uniform(20, 60, (*there.shape, 2))
    boxes = np.concatenate([centre, size], axis=2)
    boxes[~there] = 300 * rng.standard_normal((int((~there).sum()), 4))  # nobody looks there
    scores = 0.01 * rng.random((*there.shape, 3))
    scores[there, rng.integers(0, 3, int(there.sum()))] = 0.9
    boxes, scores = boxes.astype(np.float32), scores.astype(np.float32)
    if layout == "one output":
        boxes[~there] = np.abs(boxes[~there])
        return {"o": np.concatenate([boxes, scores], axis=2).swapaxes(1, 2)}, there, {}, {}
    if layout == "softmax":
        nothing = 1 - scores.sum(axis=2, keepdims=True)
        shares = np.concatenate([nothing, scores], axis=2)
        return {"locations": boxes, "classes": shares}, there, {"locations": "boxes"}, {"classes": "Softmax"}
    if layout == "keypoints":
        points = rng.uniform(0, 320, (*there.shape, 5, 2)).astype(np.float32)
        return {"points": points.reshape(*there.shape, 10), "conf": scores.max(axis=2)}, there, {}, {}
    return {"boxes": boxes, "scores": scores.swapaxes(1, 2)}, there, {}, {"scores": "Sigmoid"}


@pytest.mark.parametrize("layout", ["two outputs", "softmax", "one output", "keypoints"])
def test_of_a_detector_counts_what_it_shows(layout: str) -> None:
    """One box of a hundred moved, one thing lost, one made up: a mean over all places sees none of it."""
    outputs, there, said, endings = detector(layout)
    one = evaluation(outputs, said=said, endings=endings)
    names = list(outputs)
    first, last = names[0], names[-1]
    assert one.deviation(outputs).worst.loss == 0
    if layout in ("two outputs", "softmax"):
        assert (one.kinds[first].kind, one.kinds[last].kind) == (
            "boxes",
            "classes" if layout == "softmax" else "scores",
        )

    def rows(name: str, made: Arrays) -> Array:  # a view, places second
        return (
            made[name].swapaxes(1, 2)
            if (layout, name) in (("one output", "o"), ("two outputs", "scores"))
            else made[name]
        )

    def changed(name: str, change: Callable[[Array], None]) -> Deviation:
        made = {key: array.copy() for key, array in outputs.items()}
        change(rows(name, made))
        return one.deviation(made)

    shown = np.argwhere(there)
    n_shown, n_values = len(shown), 10 if layout == "keypoints" else 4

    def moved(array: Array) -> None:
        for i, j in shown[: n_shown // 20]:
            array[i, j, :n_values] += 60 if layout == "keypoints" else 6

    def garbage(array: Array) -> None:
        array[~there, :n_values] += np.random.default_rng(1).normal(0, 90, (int((~there).sum()), n_values))

    def lost(array: Array) -> None:
        i, j = shown[0]
        array[i, j] = array[np.argwhere(~there)[0][0], np.argwhere(~there)[0][1]]

    def made_up(array: Array) -> None:
        i, j = np.argwhere(~there)[0]
        array[i, j] = array[shown[0][0], shown[0][1]]

    worst = changed(first, moved).worst
    assert worst.output == first
    assert 0.5 < worst.loss < 20
    assert worst.measure == ("R2 of rows that are shown" if layout == "keypoints" else "boxes kept")
    if layout in ("two outputs", "softmax"):
        assert changed(first, garbage).worst.loss == 0  # nobody looks there
    for change in (lost, made_up):
        found = changed(last, change)
        (kept,) = [q for q in found.qualities if q.measure == "detections kept"]
        assert kept.output == last
        assert kept.loss == pytest.approx(100 / (n_shown + (change is made_up)))
        assert found.worst.loss > 0.5


def test_scores_behind_boxes_of_a_class_that_is_nowhere_may_be_rounded() -> None:
    outputs, *_ = detector("one output")
    nowhere = 0.003 * np.random.default_rng(2).random((N // 4, 1, 200)).astype(np.float32)
    one = evaluation({"o": np.concatenate([outputs["o"], nowhere], axis=1)})
    rounded = {"o": np.concatenate([outputs["o"], np.round(nowhere * 255) / 255], axis=1)}
    assert one.deviation(rounded).worst.loss < 0.5
    raised = {"o": np.concatenate([outputs["o"], nowhere + 0.02 * normal(N // 4, 1, 200)], axis=1)}
    assert one.deviation(raised).worst.name == "o[7]"
    assert one.deviation(raised).worst.loss == pytest.approx(2, rel=0.1)


def test_boxes_where_nothing_is_shown_are_judged_as_numbers() -> None:
    outputs, _, said, endings = detector("two outputs")
    outputs["scores"] *= 0.1
    one = evaluation(outputs, said=said, endings=endings)
    assert one.kinds["boxes"].kind == "anything"
    lost = {**outputs, "boxes": outputs["boxes"][::-1].copy()}
    assert one.deviation(lost).worst.measure == "correlation"
    said = {"boxes": "boxes"}
    assert evaluation(outputs, said=said, endings=endings).deviation(lost).worst.loss > 50


def test_answers_that_are_a_near_thing_need_not_be_kept_at_other_sizes() -> None:
    wanted = logits(np.arange(N) % 3, 3)
    near = np.arange(N) < 40
    wanted[near] = 0.1 * normal(40, 3)
    found = wanted.copy()
    found[near] = -found[near]
    one = evaluation({"o": wanted}, endings={"o": "Softmax"})
    assert one.deviation({"o": found}).worst.loss > 5
    sure = replace(one, least_margins={"o": 1.0})
    assert sure.deviation({"o": found}).worst.loss == 0
    found[-20:] = np.roll(found[-20:], 1, axis=1)
    assert sure.deviation({"o": found}).worst.loss > 0.5


# --- what it is ------------------------------------------------------------------------------------------------------


def test_what_an_output_is_comes_from_the_user_the_labels_the_names_and_the_graph() -> None:
    out, y = normal(N, 3), np.arange(N) % 3
    for known, kind in (
        ({}, "anything"),
        ({"endings": {"o": "Softmax"}}, "classes"),
        ({"endings": {"o": "Sigmoid"}}, "scores"),
        ({"endings": {"o": "Relu"}}, "anything"),
        ({"class_names": ["a", "b", "c"]}, "classes"),
        ({"class_names": ["a", "b"]}, "anything"),
        ({"y": y}, "classes"),
        ({"y": normal(N, 3)}, "quantities"),
        ({"y": (normal(N, 3) > 0).astype(np.float32)}, "yes-or-no"),
        ({"said": {"o": "scores"}, "endings": {"o": "Softmax"}}, "scores"),
        ({"said": {"o": "quantities"}, "y": (normal(N, 3) > 0).astype(np.float32)}, "quantities"),
    ):
        found = evaluation({"o": out}, **known).kinds["o"]  # type: ignore[arg-type]
        assert (found.kind, bool(found.because)) == (kind, True)
        assert found.labelled == ("y" in known)
    for loss, kind in (("cross-entropy", "classes"), ("huber", "quantities"), ("binary-cross-entropy", "yes-or-no")):
        kinds = of_head(evaluation({"o": out}).kinds, {"o": out}, None, "o", loss)
        assert kinds["o"].kind == kind
    two = {"a": normal(N, 5), "b": normal(N, 3)}
    kinds = of_head(evaluation(two, y=y).kinds, two, y, "b", None)
    assert [(name, one.kind, one.labelled) for name, one in kinds.items()] == [
        ("a", "anything", False), ("b", "classes", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"said": {"p": "classes"}}, "--output p=classes: the model gives o"),
        ({"said": {"o": "boxes"}}, "boxes need an axis of 4"),
        ({"y": normal(N, 2)}, "2 numbers for each sample as y, but no output has as many"),
        ({"y": np.arange(N) % 4}, "labels from 0 to 3, but the model has 3 outputs"),
        ({"y": np.arange(N) % 3 + 1}, "count from 0"),
        ({"y": np.arange(N) % 3 - 1}, "labels from -1"),
        ({"y": np.arange(N) % 3, "said": {"o": "embedding"}}, "no output has one value for each class"),
    ],
)
def test_refuses_labels_and_kinds_that_do_not_fit(known: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        evaluation({"o": normal(N, 3)}, **known)  # type: ignore[arg-type]


def test_class_numbers_for_one_value_are_answers_and_larger_ones_no_quantities() -> None:
    one = normal(N, 1)
    y = (one[:, 0] > 0).astype(np.int64)
    found = evaluation({"o": one}, y=y)
    assert found.kinds["o"].kind == "yes-or-no"
    assert found.deviation({"o": one}).worst.value == 1
    with pytest.raises(ConfigError, match="give quantities as floats"):
        evaluation({"o": one}, y=np.arange(N) % 7)


def test_targets_that_say_nothing_leave_the_judgement_to_the_original() -> None:
    wanted = normal(N, 2)
    y = wanted + normal(N, 2, seed=3) * 0.1
    y[:, 1] = 5.0
    found = judged(wanted, wanted[::-1].copy(), y=y)
    assert [(q.column, q.against) for q in found.qualities] == [(0, "labels"), (1, "original")]
    assert min(q.loss for q in found.qualities) > 50


def test_nothing_that_differs_has_no_loss() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((50, 6)).astype(np.float32)
    columns = compare(wanted, wanted, 1)
    assert columns.r2.tolist() == [1.0] * 6
    assert columns.noise_db.tolist() == [200.0] * 6


class Pieces(nn.Module):
    """A layer, and what is done to its logits."""

    def __init__(self, end: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.end = nn.Linear(6, 4), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.layer(x))


def test_a_softmax_in_pieces_is_one_and_another_quotient_is_none() -> None:
    def shifted(z: torch.Tensor) -> torch.Tensor:
        return torch.exp(z - z.amax(1, keepdim=True))

    ends: dict[str, list[Callable[[torch.Tensor], torch.Tensor]]] = {
        "Softmax": [
            lambda z: (e := shifted(z)) / e.sum(1)[:, None],
            lambda z: ((e := torch.exp(z)) / e.sum(1, keepdim=True).expand_as(e)).reshape(-1, 2, 2),
            lambda z: torch.softmax(z, 1),
        ],
        "LogSoftmax": [lambda z: z - torch.log(torch.exp(z).sum(1, keepdim=True)), lambda z: torch.log_softmax(z, 1)],
        "Div": [
            lambda z: torch.exp(z) / torch.exp(2 * z).sum(1, keepdim=True),
            lambda z: z.abs() / z.abs().sum(1, keepdim=True),
        ],
        "Sub": [lambda z: z - torch.log(torch.exp(2 * z).sum(1, keepdim=True)), lambda z: z - z.amax(1, keepdim=True)],
    }
    for kind, each in ends.items():
        for end in each:
            (found,) = endings_of(export(Pieces(end), (6,))).values()
            assert found == kind


def test_how_many_times_as_long_is_the_same_on_a_machine_that_slows_down(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0, "slow": 1.0}

    def takes(seconds: float) -> Callable[[], None]:
        def run() -> None:
            clock["now"] += seconds * clock["slow"]
            clock["slow"] *= 1.1

        return run

    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock["now"]))
    assert times_as_long(takes(3.0), takes(1.0), 40.0) == pytest.approx(3.0 / 1.1)
