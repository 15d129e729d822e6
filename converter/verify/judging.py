"""Judging: one output of a program against the original's, by what it is; see `converter.verify.kinds`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from converter.plan import ANYTHING, BOXES, CLASSES, EMBEDDING, QUANTITIES, SCORES, SEQUENCES, YES_OR_NO
from converter.program.tensors import Array, Arrays
from converter.verify.columns import Columns, compare, cosines, in_columns, overlaps
from converter.verify.detections import BOX, Looked, in_rows, looked_at
from converter.verify.kinds import Judged
from converter.verify.quality import (
    ACCURACY,
    AGREEMENT,
    BOXES_KEPT,
    CORRELATION,
    COSINE,
    DETECTIONS_KEPT,
    EQUAL,
    MOST_LOSS,
    R2,
    R2_SHOWN,
    RARE_AGREEMENT,
    SEQUENCES_KEPT,
    Quality,
)
from converter.verify.sequences import blank_of, changes, steps_axis, texts
from edge.contract.tensorspec import TensorSpec

# Error of a share that is rounding alone: two steps of float32 at 1. The runtime's Sigmoid is off by 1.7e-7 anywhere,
# also where its value is 1e-8; torch's by 0.9e-7 (both against float64).
ROUNDING_OF_SHARES = 2.0**-22
# A box is kept if it overlaps so much with the original's: one of 20 pixels that moved by 1.6, or grew by 3.5.
_KEPT_OVERLAP = 0.85
# A detection is kept if none of its scores moves by more.
_SCORE_MOVES = 0.1
# What rows that are shown may hardly differ in is measured by this share, at least, of how all rows spread.
_LEAST_SPREAD = 0.1
# What a state is judged as that went round in a stream: it is nobody's answer, and may lose a tenth of its variance.
STATE = "state"
_LEAST_STATE_R2 = 0.9
# A class is lost with more than this share of its answers, and so many: the total hides it where it is rare.
_LOST_SHARE = 0.1
_LOST_LEAST = 3
# Of an answer that more than this share of places has, the others are what somebody waits for.
_USUAL = 0.8
# The worst vectors count as well: those below this percentile, a quarter as much. So do whole sequences beside their
# members, and what is rare.
_WORST_PERCENT = 5
WORST_WEIGHT = 0.25


def judge(
    spec: TensorSpec,
    judged: Judged,
    reference: Arrays,
    outputs: Arrays,
    y: Array | None,
    least_margin: float = 0.0,
) -> list[Quality]:
    """One output of a program, by what it is.

    Args:
        spec: Which.
        judged: What it is.
        reference: The original's outputs on some samples.
        outputs: The program's.
        y: Labels of these samples, where they are about this output; else None.
        least_margin: An answer of the original with a smaller one (`margins`) need not be kept.
    """
    wanted, found = reference[spec.name], outputs[spec.name]
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        return [_quality(spec, judged, "finite", None, None, float("inf"))]
    if not wanted.size:
        return [_quality(spec, judged, EQUAL, None, None, 0.0, constant=True)]
    rows = judged.rows
    if rows is None or not all(np.isfinite(arrays[rows.scores]).all() for arrays in (reference, outputs)):
        return _whole(spec, judged, wanted, found, y, least_margin)
    looked = looked_at(rows, reference, outputs)
    if judged.kind == BOXES and (kept := _boxes(spec, judged, wanted, found, looked)):
        return kept
    shown = _detections if rows.scores == spec.name else _shown
    return [*_whole(spec, judged, wanted, found, y, least_margin), *shown(spec, judged, wanted, found, looked)]


def _whole(
    spec: TensorSpec, judged: Judged, wanted: Array, found: Array, y: Array | None, least_margin: float
) -> list[Quality]:
    """All of an output."""
    if judged.kind == STATE:
        return [q for q in _numbers(spec, judged, wanted, found) if q.constant or q.loss > 50 * (1 - _LEAST_STATE_R2)]
    if judged.kind == ANYTHING and (answers := judged.answers) is not None:
        whole = _whole(spec, replace(judged, also=None), wanted, found, y, least_margin)
        return [*whole, *_whole(spec, answers, wanted, found, y, least_margin)]
    if judged.kind == CLASSES:
        return _classes(spec, judged, wanted, found, y, least_margin)
    if judged.kind == SEQUENCES:
        return _sequences(spec, judged, wanted, found, least_margin)
    if wanted.dtype.kind not in "f" and judged.kind in (ANYTHING, YES_OR_NO, SCORES):
        return _equal(spec, judged, wanted, found)
    if judged.kind == YES_OR_NO:
        return _answers(spec, judged, wanted, found, None if y is None else like(y, wanted, spec), least_margin)
    if judged.kind == QUANTITIES and y is not None:
        return _targets(spec, judged, wanted, found, like(y, wanted, spec))
    if judged.kind == EMBEDDING:
        return _vectors(spec, judged, wanted, found)
    if judged.kind == BOXES and (kept := _boxes(spec, judged, wanted, found, None)):
        return kept
    return _numbers(spec, judged, wanted, found)


def margins(judged: Judged, array: Array) -> Array:
    """By how much the original's answers are ahead of the next one: classes, and yes or no; else nothing."""
    answers = judged.answers
    if array.dtype.kind != "f" or answers is None:
        return np.zeros(0)
    if answers.kind == YES_OR_NO:
        return np.abs(in_columns(array, answers.axis) - answers.threshold)
    assert answers.axis is not None
    two = np.partition(array, -2, axis=answers.axis)
    best, next_ = (np.take(two, place, axis=answers.axis) for place in (-1, -2))
    return np.asarray(best - next_)


def _quality(
    spec: TensorSpec,
    judged: Judged,
    measure: str,
    value: float | None,
    original: float | None,
    loss: float,
    *,
    column: int | None = None,
    against: str = "original",
    constant: bool = False,
) -> Quality:
    loss = min(loss, MOST_LOSS) if np.isfinite(loss) else loss
    return Quality(
        output=spec.name, column=column, kind=judged.kind, measure=measure, against=against, value=value,
        original=original, loss=loss, constant=constant,
    )  # fmt: skip


def _classes(
    spec: TensorSpec, judged: Judged, wanted: Array, found: Array, y: Array | None, least_margin: float
) -> list[Quality]:
    before, after = chosen(wanted, judged), chosen(found, judged)
    if least_margin:
        after = np.where(margins(judged, wanted) < least_margin, before, after)
    if y is None and wanted.dtype.kind == "f" and bool((before == before.flat[0]).all()):
        return _numbers(spec, judged, wanted, found)  # the same class for all samples: to agree on it says nothing
    truth = before if y is None else y.reshape(before.shape)
    share, original = float((after == truth).mean()), float((before == truth).mean())
    measure, against = (AGREEMENT, "original") if y is None else (ACCURACY, "labels")
    found_ = [_quality(spec, judged, measure, share, original, 100 * (original - share), against=against)]
    for label, (count, had, has) in _by_class(truth, before, after).items():
        if _is_lost(count, had, has):
            found_.append(
                _quality(spec, judged, measure, has / count, had / count, 100 * (had - has) / count, column=label,
                         against=against)
            )  # fmt: skip
    if y is None and (rare := _rare(before, after)) is not None:
        found_.append(_quality(spec, judged, RARE_AGREEMENT, rare, 1.0, 100 * WORST_WEIGHT * (1 - rare)))
    return found_


def _rare(before: Array, after: Array) -> float | None:
    """Where one answer is nearly everywhere, the share of places with another one, in either, that agree.

    None where there is no such answer, or nothing else; or too little differs to tell.
    """
    answers, counts = np.unique(before, return_counts=True)
    if counts.max() <= _USUAL * before.size:
        return None
    usual = answers[counts.argmax()]
    either = (before != usual) | (after != usual)
    differ = int((before != after).sum())
    if not either.any():
        return None
    return 1.0 - differ / int(either.sum()) if differ >= _LOST_LEAST else 1.0


def _sequences(spec: TensorSpec, judged: Judged, wanted: Array, found: Array, least_margin: float) -> list[Quality]:
    """What is read: members, and sequences of which hardly any changed; and all steps, of which there are more.

    A step that goes from a letter to nothing beside the same letter changes no line, but another one would: a few lines
    that are kept say less than all of their steps.
    """
    before, after = chosen(wanted, judged), chosen(found, judged)
    if least_margin and wanted.dtype.kind == "f":
        after = np.where(margins(judged, wanted) < least_margin, before, after)
    is_chosen = wanted.dtype.kind == "f"
    axis = steps_axis(spec, judged.axis if is_chosen else None)
    assert axis is not None
    axis -= int(is_chosen and judged.axis is not None and judged.axis < axis)
    n_classes = wanted.shape[judged.axis or 0] if is_chosen else int(before.max()) + 1
    blank = blank_of(before, n_classes)
    read = [texts(np.moveaxis(steps, axis, -1).reshape(-1, steps.shape[axis]), blank) for steps in (before, after)]
    changed = changes(*read)
    if changed is None:  # nothing was read anywhere: to agree on that says nothing
        return _numbers(spec, judged, wanted, found) if is_chosen else _equal(spec, judged, wanted, found)
    members, lost = changed
    agreed = float((before == after).mean())
    return [
        _quality(spec, judged, SEQUENCES_KEPT, 1 - lost, 1.0, 100 * max(members, WORST_WEIGHT * lost)),
        _quality(spec, judged, AGREEMENT, agreed, 1.0, 100 * (1 - agreed)),
    ]


def _answers(
    spec: TensorSpec, judged: Judged, wanted: Array, found: Array, y: Array | None, least_margin: float
) -> list[Quality]:
    """Yes or no, each column at its threshold; those with one answer for all samples as numbers."""
    before, after = (in_columns(array, judged.axis) > judged.threshold for array in (wanted, found))
    if least_margin:
        after = np.where(margins(judged, wanted) < least_margin, before, after)
    truth = before if y is None else in_columns(y, judged.axis) > 0.5
    measure, against = (AGREEMENT, "original") if y is None else (ACCURACY, "labels")
    as_numbers = _numbers(spec, judged, wanted, found)
    qualities = []
    for i in range(before.shape[1]):
        if bool((truth[:, i] == truth[0, i]).all()) and bool((before[:, i] == truth[0, i]).all()):
            qualities.append(as_numbers[i])
            continue
        share, original = (float((answers[:, i] == truth[:, i]).mean()) for answers in (after, before))
        rare = [
            100 * (had - has) / count
            for count, had, has in _by_class(truth[:, i], before[:, i], after[:, i]).values()
            if _is_lost(count, had, has)
        ]
        agreed = None if y is not None else _rare(before[:, i], after[:, i])
        loss = max([100 * (original - share), 0.0 if agreed is None else 100 * WORST_WEIGHT * (1 - agreed), *rare])
        column = i if before.shape[1] > 1 else None
        qualities.append(_quality(spec, judged, measure, share, original, loss, column=column, against=against))
    return qualities


def _equal(spec: TensorSpec, judged: Judged, wanted: Array, found: Array) -> list[Quality]:
    """Integers and booleans."""
    one, other = in_columns(wanted, judged.axis), in_columns(found, judged.axis)
    qualities = []
    for i in range(one.shape[1]):
        share = float((one[:, i] == other[:, i]).mean())
        constant = bool((one[:, i] == one[0, i]).all())
        rare = [
            100 * (had - has) / count
            for count, had, has in _by_class(one[:, i], one[:, i], other[:, i]).values()
            if _is_lost(count, had, has)
        ]
        qualities.append(
            _quality(spec, judged, EQUAL, None if constant else share, None if constant else 1.0,
                     max([100 * (1 - share), *rare]), column=i if one.shape[1] > 1 else None, constant=constant)
        )  # fmt: skip
    return qualities


def _targets(spec: TensorSpec, judged: Judged, wanted: Array, found: Array, y: Array) -> list[Quality]:
    """Quantities by their targets; against the original where these say nothing, or the original nothing of them."""
    before, after = compare(y, wanted, judged.axis), compare(y, found, judged.axis)
    plain = _numbers(spec, judged, wanted, found)
    many = len(plain) > 1
    return [
        plain[i]
        if before.constant[i] or plain[i].constant or not before.r2[i] > 0
        else _quality(
            spec, judged, R2, float(after.r2[i]), float(before.r2[i]), 100 * float(before.r2[i] - after.r2[i]),
            column=i if many else None, against="labels",
        )
        for i in range(len(plain))
    ]  # fmt: skip


def _vectors(spec: TensorSpec, judged: Judged, wanted: Array, found: Array) -> list[Quality]:
    if compare(wanted, found, judged.axis).constant.all():
        return _numbers(spec, judged, wanted, found)
    similar = cosines(wanted, found)
    mean, low = float(similar.mean()), float(np.percentile(similar, _WORST_PERCENT))
    loss = 100 * max(1 - mean, WORST_WEIGHT * (1 - low))
    return [_quality(spec, judged, COSINE, mean, 1.0, loss)]


def _boxes(spec: TensorSpec, judged: Judged, wanted: Array, found: Array, looked: Looked | None) -> list[Quality]:
    """Those that are shown; all where nothing tells which these are. Nothing where they are no boxes."""
    axis = judged.axis
    if looked is not None and looked.seen.any():
        (wanted, axis), (found, _) = (looked.rows.taken(array, looked.seen) for array in (wanted, found))
    if compare(wanted, found, axis).constant.all():
        return []
    return _overlapping(spec, judged, in_columns(wanted, axis), in_columns(found, axis))


def _overlapping(spec: TensorSpec, judged: Judged, wanted: Array, found: Array) -> list[Quality]:
    """The share of boxes ``(n, 4)`` that are where they were; nothing where the original's are no boxes."""
    shares = overlaps(wanted.astype(np.float64), found.astype(np.float64))
    if shares is None:
        return []
    kept = float((shares >= _KEPT_OVERLAP).mean())
    return [_quality(spec, judged, BOXES_KEPT, kept, 1.0, 100 * (1 - kept))]


def _shown(spec: TensorSpec, judged: Judged, wanted: Array, found: Array, looked: Looked) -> list[Quality]:
    """What rows that are shown have beside their scores: each column's R², and boxes where they may be such."""
    if not looked.seen.any():
        return []
    rows = looked.rows
    (one, axis), (other, _) = (rows.taken(array, looked.seen) for array in (wanted, found))
    columns, spread = compare(one, other, axis), compare(wanted, wanted, rows.column_axis).spread
    one, other = in_columns(one, axis), in_columns(other, axis)
    noise = np.square(one.astype(np.float64) - other).mean(axis=0)
    with np.errstate(all="ignore"):
        r2 = np.where(noise > 0, 1 - noise / np.square(np.maximum(columns.spread, _LEAST_SPREAD * spread)), 1.0)
    scores = range(*rows.columns) if rows.scores == spec.name else range(0)
    qualities = [
        _quality(spec, judged, R2_SHOWN, float(r2[i]), 1.0, 50 * (1 - float(r2[i])), column=i if len(r2) > 1 else None)
        for i in range(len(r2))
        if i not in scores and np.isfinite(r2[i])
    ]
    may_be_boxes = len(r2) == BOX or (scores.start == BOX and len(scores) > 0)
    return [*qualities, *_overlapping(spec, judged, one[:, :BOX], other[:, :BOX])] if may_be_boxes else qualities


def _detections(spec: TensorSpec, judged: Judged, wanted: Array, found: Array, looked: Looked) -> list[Quality]:
    """What the original or the program shows, and whether both are as sure of it: none is lost, and none made up."""
    if not looked.either.any():
        return []
    first, last = looked.rows.columns
    one, other = (in_rows(array, looked.rows.axis)[looked.either] for array in (wanted, found))
    moved = np.abs(one - other).reshape(len(one), -1)[:, first:last].max(axis=1)
    kept = float((moved <= _SCORE_MOVES).mean())
    found_ = [_quality(spec, judged, DETECTIONS_KEPT, kept, 1.0, 100 * (1 - kept))]
    return found_ if judged.kind in (SCORES, CLASSES) else [*found_, *_shown(spec, judged, wanted, found, looked)]


def _numbers(spec: TensorSpec, judged: Judged, wanted: Array, found: Array) -> list[Quality]:
    """Column by column: R² of quantities, else correlation, and of scores the error on their common scale."""
    columns = compare(wanted, found, judged.axis)
    low, high = float(wanted.min()), float(wanted.max())
    scale = 1.0 if low >= 0 and high <= 1 else high - low
    scales = dict.fromkeys(range(len(columns.r2)) if judged.kind in (SCORES, YES_OR_NO) else (), scale)
    scales |= dict.fromkeys(range(*scores_behind_boxes(judged, spec.name)), 1.0)
    return [_number(spec, judged, columns, i, scales.get(i)) for i in range(len(columns.r2))]


def scores_behind_boxes(judged: Judged, output: str) -> tuple[int, int]:
    """First column, and behind the last, of the shares that stand behind the boxes that they belong to."""
    if judged.kind != ANYTHING or judged.rows is None or judged.rows.scores != output:
        return 0, 0
    return judged.rows.columns


def are_shares(judged: Judged, wanted: Array) -> bool:
    """Whether all columns of an output are shares of 1: then 1 is the scale of each, however small it is."""
    if judged.kind not in (CLASSES, SEQUENCES, SCORES, YES_OR_NO) or wanted.dtype.kind != "f" or not wanted.size:
        return False
    return bool(wanted.min() >= 0 and wanted.max() <= 1)


def _number(spec: TensorSpec, judged: Judged, columns: Columns, i: int, scale: float | None) -> Quality:
    """One column, of scores with their common scale."""
    column = i if len(columns.r2) > 1 else None
    measure = R2 if judged.kind == QUANTITIES else CORRELATION
    if columns.constant[i]:
        kept = columns.kept[i] or (scale is not None and columns.error[i] <= ROUNDING_OF_SHARES * scale)
        loss = 0.0 if kept else MOST_LOSS
        return _quality(spec, judged, measure, None, None, loss, column=column, constant=True)
    r2, correlation = float(columns.r2[i]), float(columns.correlation[i])
    if judged.kind == QUANTITIES:
        return _quality(spec, judged, R2, r2, 1.0, 100 * (1 - r2), column=column)
    # A correlation of c leaves, at best, a share of 1 - c^2 of the variance unexplained: about 2 (1 - c).
    loss = 100 * max(1 - correlation, (1 - r2) / 2)
    if scale is not None:
        # Root mean square, so that one event in a thousand samples counts.
        error = float(columns.spread[i]) * float(np.sqrt(max(0.0, 1 - r2)))
        loss = min(loss, 100 * error / scale) if np.isfinite(error) and scale > 0 else loss
    return _quality(spec, judged, CORRELATION, correlation, 1.0, loss, column=column)


def chosen(array: Array, judged: Judged) -> Array:
    """The class of each row: the largest value's, or the integer itself."""
    if array.dtype.kind != "f":
        return array
    return np.asarray(array.argmax(axis=judged.axis))


def like(y: Array, array: Array, spec: TensorSpec) -> Array:
    """Targets, samples first, in the axes of an output."""
    assert spec.batch_axis is not None
    shape = np.moveaxis(array, spec.batch_axis, 0).shape
    return np.moveaxis(y.reshape(shape), 0, spec.batch_axis)


def _by_class(truth: Array, before: Array, after: Array) -> dict[int, tuple[int, int, int]]:
    """For each class its samples, and how many of them two programs get right."""
    labels, places = np.unique(truth, return_inverse=True)
    places = places.reshape(-1)
    counts = (np.bincount(places, right.reshape(-1), len(labels)) for right in (before == truth, after == truth))
    rows = zip(labels.tolist(), np.bincount(places, minlength=len(labels)), *counts, strict=True)
    return {int(label): (int(count), int(had), int(has)) for label, count, had, has in rows}


def _is_lost(count: int, had: int, has: int) -> bool:
    return had - has >= _LOST_LEAST and had - has > _LOST_SHARE * count
