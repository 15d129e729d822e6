"""Detections: rows of outputs that go with scores, which say what anybody looks at.

A detector gives a box for each of thousands of places, and for nearly all of them a score that says that nothing is
there. What stands in those rows is nobody's concern, and what stands in the few others is all that a user sees.
Likewise keypoints, angles or masks' coefficients that have a score each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from converter.program.tensors import Array, Arrays
from edge.contract.tensorspec import TensorSpec

Mask = npt.NDArray[np.bool_]

# From here on detectors show what they have found, unless they are told otherwise.
SEEN = 0.25
# The coordinates that stand in front of the scores, where one output holds both.
BOX = 4
# A class that most rows have is "nothing there".
_NOTHING = 0.8
_SCORES = {"score", "scores", "conf", "confs", "confidence", "confidences", "objectness", "prob", "probs"}
_BOXES = {"box", "boxes", "bbox", "bboxes"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows of an output, and the scores that belong to them.

    Attributes:
        axis: Of the rows; samples lie along axis 0.
        column_axis: Of what has one unit; None where a row is one number.
        scores: The output that has the scores; it may be the same.
        scores_axis: Of the rows, in that.
        columns: Which columns of it are scores.
        nothing: The one among these that says that nothing is there, or None.
    """

    axis: int
    column_axis: int | None
    scores: str
    scores_axis: int
    columns: tuple[int, int]
    nothing: int | None = None

    def confidence(self, outputs: Mapping[str, Array]) -> Array:
        """``(batch, n_rows)`` largest score of each row."""
        first, last = self.columns
        found = in_rows(outputs[self.scores], self.scores_axis)
        found = found.reshape(*found.shape[:2], -1)[:, :, first:last]
        if self.nothing is not None:
            found = np.delete(found, self.nothing, axis=2)
        return np.asarray(found.max(axis=2))

    def taken(self, array: Array, mask: Mask) -> tuple[Array, int | None]:
        """``(n_taken, ...)`` some rows of this output, and the axis of their columns in that."""
        taken = in_rows(array, self.axis)[mask]
        if self.column_axis is None:
            return taken, None
        return taken, self.column_axis if self.column_axis < self.axis else self.column_axis - 1


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Looked:
    """Rows that somebody looks at, ``(batch, n_rows)`` each.

    Attributes:
        rows: Of which output.
        seen: Those where the original sees something.
        either: Those where it or the other program does.
    """

    rows: Rows
    seen: Mask
    either: Mask


def looked_at(rows: Rows, reference: Arrays, found: Arrays) -> Looked:
    """Which rows two programs show."""
    one, other = rows.confidence(reference) >= SEEN, rows.confidence(found) >= SEEN
    return Looked(rows=rows, seen=one, either=one | other)


def in_rows(array: Array, axis: int) -> Array:
    """``(batch, n_rows, ...)``."""
    return np.moveaxis(array, axis, 1)


def is_named_boxes(name: str) -> bool:
    """Whether an output is called boxes."""
    return bool(_BOXES.intersection(_words(name)))


def rows_of(
    outputs: Sequence[TensorSpec], reference: Arrays, axes: Mapping[str, int | None], scoring: Sequence[str]
) -> dict[str, Rows]:
    """Outputs whose rows have scores, and the outputs of these scores; empty where there is no such thing.

    Args:
        outputs: Of the model.
        reference: What it gives on samples.
        axes: Where the columns of each output lie.
        scoring: Outputs that are known to be scores or classes, the likeliest first.
    """
    fitting = {
        s.name: s for s in outputs
        if s.dtype.startswith("float") and s.batch_axis == 0 and len(s.shape) > 1 and reference[s.name].size
    }  # fmt: skip
    named = [n for n, s in fitting.items() if n not in scoring and _SCORES.intersection(_words(n)) and len(s.shape) < 4]
    scores = [n for n in (*scoring, *named) if n in fitting and _are_shares(reference[n]) and len(fitting[n].shape) < 4]
    found: dict[str, Rows] = {}
    for name, spec in fitting.items():
        if name in scores or len(spec.shape) < 3:
            continue
        for by in scores:
            shared = _shared(spec, reference[name], fitting[by], reference[by])
            if shared is None:
                continue
            axis, scores_axis = shared
            columns = (0, reference[by].size // max(1, reference[by].shape[0] * reference[by].shape[scores_axis]))
            rows = Rows(
                axis=axis, column_axis=_other(axes[name], axis, spec), scores=by, scores_axis=scores_axis,
                columns=columns,
            )  # fmt: skip
            rows = _without_nothing(rows, reference[by])
            found[name] = rows
            own = _other(axes[by], scores_axis, fitting[by])
            found.setdefault(by, Rows(
                axis=scores_axis, column_axis=own, scores=by, scores_axis=scores_axis, columns=columns,
                nothing=rows.nothing,
            ))  # fmt: skip
            break
        else:
            if (rows_ := _in_one(spec, reference[name], axes[name])) is not None:
                found[name] = rows_
    return found


def _words(name: str) -> set[str]:
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return set(re.findall(r"[a-z]+", split.lower()))


def _are_shares(array: Array) -> bool:
    return bool(array.min() >= 0 and array.max() <= 1)


def _shared(spec: TensorSpec, array: Array, scores: TensorSpec, given: Array) -> tuple[int, int] | None:
    """The axis of rows in an output and in scores: the longest that both have; free in both, or in neither."""
    pairs = [
        (array.shape[i], -i, -j)
        for i in range(1, array.ndim)
        for j in range(1, given.ndim)
        if array.shape[i] == given.shape[j] > 1 and isinstance(spec.shape[i], int) == isinstance(scores.shape[j], int)
    ]
    if not pairs:
        return None
    _, i, j = max(pairs)
    return -i, -j


def _other(axis: int | None, rows: int, spec: TensorSpec) -> int | None:
    """Where the columns are, which the rows are not."""
    if axis is not None and axis != rows:
        return axis
    left = [i for i in range(1, len(spec.shape)) if i != rows]
    return left[-1] if left else None


def _without_nothing(rows: Rows, scores: Array) -> Rows:
    """Where one class of several is that of nearly all rows, it is the one that says "nothing there"."""
    by_row = in_rows(scores, rows.scores_axis)
    by_row = by_row.reshape(*by_row.shape[:2], -1)
    n_columns = by_row.shape[2]
    # Only of shares that add up to one: each of the others says for itself that nothing is there.
    if n_columns < 2 or not np.allclose(by_row.sum(axis=2), 1, atol=1e-3):
        return rows
    counts = np.bincount(by_row.argmax(axis=2).reshape(-1), minlength=n_columns)
    most = int(counts.argmax())
    nothing = most if counts[most] > _NOTHING * counts.sum() else None
    return Rows(
        axis=rows.axis, column_axis=rows.column_axis, scores=rows.scores, scores_axis=rows.scores_axis,
        columns=rows.columns, nothing=nothing,
    )  # fmt: skip


def _in_one(spec: TensorSpec, array: Array, axis: int | None) -> Rows | None:
    """Rows of an output that holds boxes and behind them scores, as YOLO's does."""
    if array.ndim != 3 or axis is None or array.shape[axis] <= BOX:
        return None
    columns = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
    shares = (columns.min(axis=0) >= 0) & (columns.max(axis=0) <= 1)
    if not shares[BOX] or shares[:BOX].all():
        return None
    behind = np.flatnonzero(~shares[BOX:])
    last = BOX + int(behind[0]) if len(behind) else len(shares)
    rows = 3 - axis
    return Rows(axis=rows, column_axis=axis, scores=spec.name, scores_axis=rows, columns=(BOX, last))
