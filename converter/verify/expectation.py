"""What a program is likely to do to other samples, where there are too few to count it on.

That none of 24 answers changed excludes no loss below one in eight (with 95 %: about 3 / n). But an answer has a
margin, and a program moves it; what moves one sample's margin so much might move another's. So each margin is held
against each move: n² pairs, of which the share that changes the answer is what to expect. Where samples whose values
are off by more are moved by more, as loud ones are, moves are first made alike by that, as far as the samples show it;
of shares, which end at 0 and 1, margins and moves are those of their logarithms.

Measured (docs/converting.md, "What is expected of other samples"): on 32 to 128 samples it is nearer to the loss on 500
than counting is, and it sees the loss of a recogniser of which two of 40 other lines were read otherwise.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from converter.plan import SEQUENCES, YES_OR_NO
from converter.program.tensors import Array
from converter.verify.columns import in_columns
from converter.verify.judging import WORST_WEIGHT, are_shares, chosen, like
from converter.verify.kinds import Judged
from converter.verify.quality import EXPECTED_ACCURACY, EXPECTED_AGREEMENT, EXPECTED_SEQUENCES, Quality
from converter.verify.sequences import CHANGED, blank_of, steps_axis, texts
from edge.contract.tensorspec import TensorSpec

Numbers = npt.NDArray[np.float64]

# So many answers that were kept exclude half a point of loss (with 95 %): then they are counted only.
ENOUGH = 600
# More places than these are thinned out.
_MOST = 20_000
_TINY = 1e-12


def unseen_share(count: int) -> float:
    """The largest share of answers that change of which, with 5 %, none is among so many: ``1 - 0.05^(1/n)``.

    >>> round(unseen_share(24), 3), round(unseen_share(ENOUGH), 4)
    (0.117, 0.005)
    """
    return float(1.0 - 0.05 ** (1.0 / count))


def expected(spec: TensorSpec, judged: Judged, wanted: Array, found: Array, y: Array | None) -> Quality | None:
    """What to expect of one output on other samples; None where it has no answers, or only one.

    Args:
        spec: The output.
        judged: What it is.
        wanted: The original's, finite.
        found: The program's, finite.
        y: Labels of these samples, where they are about this output; else None.
    """
    answers = judged.answers
    if answers is None or wanted.dtype.kind != "f" or found.dtype.kind != "f" or not wanted.size:
        return None
    if answers.kind == YES_OR_NO:
        return _of_yes_or_no(spec, answers, wanted, found, y)
    assert answers.axis is not None
    before = chosen(wanted, answers)
    if answers.kind == SEQUENCES:
        return _of_sequences(spec, answers, wanted, found, before)
    truth = before if y is None else y.reshape(before.shape)
    if bool((before == before.flat[0]).all()):
        return None
    return _quality(spec, judged, *_of_classes(answers, wanted, found, truth), labelled=y is not None)


def _of_classes(judged: Judged, wanted: Array, found: Array, truth: Array) -> tuple[float, float]:
    """Share of places at which the true class is ahead: of the original, and expected of the program."""
    step = -(-truth.size // _MOST)
    rows = [in_columns(array, judged.axis)[::step] for array in (wanted, found)]
    if are_shares(judged, wanted):
        rows = [np.log(np.maximum(array, _TINY)) for array in rows]
    had, has = (_ahead(array, truth.reshape(-1)[::step]) for array in rows)
    return float((had > 0).mean()), 1.0 - float(changing(had, has - had, _error(*rows)).mean())


def _of_sequences(spec: TensorSpec, judged: Judged, wanted: Array, found: Array, before: Array) -> Quality | None:
    """Steps, and sequences of which more members change than may (with Poisson's distribution)."""
    axis = steps_axis(spec, judged.axis)
    assert axis is not None
    assert judged.axis is not None
    axis -= int(judged.axis < axis)
    blank = blank_of(before, wanted.shape[judged.axis])
    steps = np.moveaxis(before, axis, -1).reshape(-1, before.shape[axis])
    if not sum(map(len, texts(steps, blank))):
        return None
    rows = [in_columns(array, judged.axis) for array in (wanted, found)]
    had, has = (_ahead(array, before.reshape(-1)) for array in rows)
    each = np.where(had > 0, changing(had, has - had, _error(*rows)), 0.0).reshape(before.shape)
    rates = np.moveaxis(each, axis, -1).reshape(steps.shape).sum(axis=1)
    allowed = np.array([int(CHANGED * len(text)) for text in texts(steps, blank)])
    lost = float(np.mean([_poisson_above(rate, most) for rate, most in zip(rates, allowed, strict=True)]))
    return Quality(
        output=spec.name, column=None, kind=judged.kind, measure=EXPECTED_SEQUENCES, against="original",
        value=1.0 - lost, original=1.0, loss=100 * max(float(each.mean()), WORST_WEIGHT * lost),
    )  # fmt: skip


def _of_yes_or_no(spec: TensorSpec, judged: Judged, wanted: Array, found: Array, y: Array | None) -> Quality | None:
    """The column of which most is lost."""
    columns = [in_columns(array, judged.axis).astype(np.float64) for array in (wanted, found)]
    threshold = judged.threshold
    if are_shares(judged, wanted) and 0 < threshold < 1:
        columns = [_logit(array) for array in columns]
        threshold = float(_logit(np.array(threshold)))
    before = columns[0] > threshold
    truth = before if y is None else in_columns(like(y, wanted, spec), judged.axis) > 0.5
    step = -(-len(before) // _MOST)
    worst = None
    for i in range(before.shape[1]):
        if bool((before[:, i] == before[0, i]).all()):
            continue
        sign = np.where(truth[::step, i], 1.0, -1.0)
        had, has = (sign * (array[::step, i] - threshold) for array in columns)
        sizes = np.hypot(had, np.median(np.abs(had)))
        shares = float((had > 0).mean()), 1.0 - float(changing(had, has - had, sizes).mean())
        one = _quality(spec, judged, *shares, labelled=y is not None)
        if worst is None or one.loss > worst.loss:
            worst = replace(one, column=i if before.shape[1] > 1 else None)
    return worst


def changing(margins: Numbers, moves: Numbers, sizes: Numbers) -> Numbers:
    """``(n,)`` for each margin, the share of moves after which it is not positive.

    Moves are taken to grow with a power of the sizes, 0 to 1, that of a line through their logarithms.

    Args:
        margins: ``(n,)``.
        moves: ``(n,)`` of the same samples.
        sizes: ``(n,)`` of something that moves may grow with.

    >>> changing(np.array([1.0, 3.0]), np.array([0.0, -2.0]), np.ones(2)).tolist()
    [0.5, 0.0]
    >>> changing(np.array([1.0, 300.0]), np.array([-0.5, -50.0]), np.array([1.0, 100.0])).tolist()
    [0.0, 0.0]
    """
    logs, apart = np.log(np.maximum(sizes, _TINY)), np.log(np.abs(moves) + 1e-9 * np.abs(moves).max() + _TINY)
    logs = logs - logs.mean()
    slope = float(logs @ apart) / max(float(logs @ logs), _TINY)
    units = np.exp(min(1.0, max(0.0, slope)) * logs)
    found: Numbers = np.searchsorted(np.sort(moves / units), -margins / units, side="right") / len(moves)
    return found


def _error(wanted: Array, found: Array) -> Numbers:
    """``(n,)`` standard deviation of what each row is off by."""
    apart: Numbers = (found.astype(np.float64) - wanted).std(axis=1)
    return apart


def _ahead(rows: Array, truth: Array) -> Numbers:
    """``(n,)`` by how much the true class of each row is ahead of the best other one."""
    rows = rows.astype(np.float64)
    place = np.arange(len(rows))
    own = rows[place, truth]
    rows[place, truth] = -np.inf
    found: Numbers = own - rows.max(axis=1)
    return found


def _poisson_above(rate: float, most: int) -> float:
    """How likely it is that more than `most` of many rare events happen."""
    terms = np.cumprod(np.concatenate([[1.0], rate / np.arange(1, most + 1)]))
    return max(0.0, 1.0 - float(np.exp(-rate) * terms.sum()))


def _logit(shares: Numbers) -> Numbers:
    return np.asarray(np.log(np.maximum(shares, _TINY)) - np.log(np.maximum(1 - shares, _TINY)))


def _quality(spec: TensorSpec, judged: Judged, original: float, share: float, *, labelled: bool) -> Quality:
    return Quality(
        output=spec.name, column=None, kind=judged.kind, measure=EXPECTED_ACCURACY if labelled else EXPECTED_AGREEMENT,
        against="labels" if labelled else "original", value=share, original=original, loss=100 * (original - share),
    )  # fmt: skip
