"""Sequences of classes: what a recogniser reads, and where an output without labels holds classes at all.

A recogniser gives for each step of a line the class that it sees there, and what it read is the largest of each step,
repeats dropped and one class, "nothing here", left out (greedy CTC decoding). Where that class is the usual one, the
share of steps that agree hides what was read wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from converter.program.tensors import Array
from edge.contract.tensorspec import TensorSpec

Text = npt.NDArray[np.int64]

# A first or last class that more of the steps have is the one that says that nothing is there.
_BLANK = 1 / 3
# A sequence is kept if no larger share of its members changed: of up to 32 none.
CHANGED = 1 / 32
# Scores of classes: in a row of so many, one stands out so much more than the largest of normally distributed ones
# would (sqrt(2 ln n) deviations), it has no neighbour as high, as the peak of a spectrum has, within one deviation, and
# it is not always one of the same few. (Recogniser of 8,210 letters: 2.0, 2.9 and 51; embedding: 0.9, 0.6 and 5.)
_LEAST_CLASSES, _STANDS_OUT, _AHEAD, _DIFFERENT = 16, 1.5, 1.0, 5
_ROWS = 4096


def steps_axis(spec: TensorSpec, class_axis: int | None) -> int | None:
    """Where the steps of a sequence lie; None where an output has no such axis, or several."""
    left = [i for i in range(len(spec.shape)) if i not in (spec.batch_axis, class_axis)]
    return left[0] if len(left) == 1 else None


def has_own_steps(spec: TensorSpec, class_axis: int | None, inputs: Sequence[TensorSpec]) -> bool:
    """Whether an output is a sequence whose steps are no axis of an input: it is read, not labelled place by place."""
    axis = steps_axis(spec, class_axis)
    return axis is not None and bool(inputs) and not any(spec.shape[axis] in given.shape for given in inputs)


def class_axis(spec: TensorSpec, array: Array, axis: int | None) -> int | None:
    """Where the classes lie whose raw scores an output holds; None where its values are no such.

    Args:
        spec: The output's axes.
        array: Its values on samples.
        axis: Where its columns lie, which is tried first.
    """
    if array.dtype.kind != "f" or array.ndim not in (2, 3) or not array.size:
        return None
    axes = [axis, *(i for i in range(array.ndim) if i != axis)]
    return next((i for i in axes if i not in (None, spec.batch_axis) and _stand_out(np.moveaxis(array, i, -1))), None)


def _stand_out(array: Array) -> bool:
    n_classes = array.shape[-1]
    if n_classes < _LEAST_CLASSES:
        return False
    rows = array.reshape(-1, n_classes)
    rows = rows[:: -(-len(rows) // _ROWS)].astype(np.float64)
    best = rows.argmax(axis=1)
    classes, counts = np.unique(best, return_counts=True)
    if len(classes) < _DIFFERENT:
        return False
    rows = rows[best != classes[counts.argmax()]]  # "nothing here" says little
    spread = np.maximum(rows.std(axis=1), np.finfo(np.float32).tiny)
    two = np.partition(rows, -2, axis=1)[:, -2:]
    out, ahead = ((two[:, 1] - other) / spread for other in (rows.mean(axis=1), two[:, 0]))
    return bool(np.median(out) > _STANDS_OUT * np.sqrt(2 * np.log(n_classes)) and np.median(ahead) > _AHEAD)


def blank_of(steps: Array, n_classes: int) -> int | None:
    """The class that says that nothing is there, or None.

    Args:
        steps: Classes that the original gives.
        n_classes: Of them.
    """
    share, blank = max((float((steps == i).mean()), i) for i in (n_classes - 1, 0))
    return blank if share > _BLANK else None


def texts(steps: Array, blank: int | None) -> list[Text]:
    """What was read of each sample.

    Args:
        steps: ``(n, n_steps)`` classes.
        blank: That which says that nothing is there; where there is none, every step is a member of its own.
    """
    if blank is None:
        return [np.asarray(row, np.int64) for row in steps]
    begins = np.ones(steps.shape, bool)
    begins[:, 1:] = steps[:, 1:] != steps[:, :-1]
    return [np.asarray(row[kept], np.int64) for row, kept in zip(steps, begins & (steps != blank), strict=True)]


def edits(one: Text, other: Text) -> int:
    """How many members have to be replaced, put in or left out to make one of the other (Levenshtein).

    >>> edits(np.array([1, 2, 3, 4]), np.array([1, 3, 4, 4]))
    2
    """
    shorter = min(len(one), len(other))
    same = one[:shorter] == other[:shorter]
    first = shorter if same.all() else int(same.argmin())
    one, other = one[first:], other[first:]
    row = np.arange(len(other) + 1)
    for i, member in enumerate(one):
        cheapest = np.empty_like(row)
        cheapest[0] = i + 1
        cheapest[1:] = np.minimum(row[:-1] + (other != member), row[1:] + 1)
        place = np.arange(len(row))
        row = np.minimum.accumulate(cheapest - place) + place
    return int(row[-1])


def changes(before: Sequence[Text], after: Sequence[Text]) -> tuple[float, float] | None:
    """Share of members that changed, and of sequences that were lost; None where nothing was read at all."""
    members = sum(map(len, before))
    if not members:
        return None
    counts = np.array([edits(one, other) for one, other in zip(before, after, strict=True)])
    lengths = np.array([len(one) for one in before])
    return float(counts.sum() / members), float((counts > CHANGED * lengths).mean())
