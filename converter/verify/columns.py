"""How much of each column of an output another program keeps, each on its own scale.

A column is what has one unit: a slice along the last axis or the channels of an output, over all samples and positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from converter.program.tensors import Array
from edge.contract.tensorspec import TensorSpec

Numbers = npt.NDArray[np.float64]

_BLOCK = 1 << 20
# A column whose values differ by less, relative to their size, is constant: float32 has seven digits.
_SAME = 1e-6
# What a constant may move by, relative to its size or to what its neighbours vary by.
_CONSTANT_MOVES = 0.01
# Boxes are of a form if so many of them can be.
_MOST_BOXES = 0.98
# Another axis than the usual one holds the columns if scales differ so many times more along it.
_CLEARLY = 4.0


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Columns:
    """What two programs have in common, ``(n_columns,)`` each.

    Attributes:
        r2: ``1 - sum (w - f)^2 / sum (w - mean w)^2``; -inf where what was found is not finite.
        correlation: Pearson's.
        noise_db: ``10 log10(sum (w - mean w)^2 / sum (w - f)^2)``, at most 200.
        constant: Whether the first has one value only: then the three above say nothing.
        kept: Of constant columns, whether the second has that value, too.
        error: Mean absolute difference.
        spread: Standard deviation of the first.
    """

    r2: Numbers
    correlation: Numbers
    noise_db: Numbers
    constant: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.bool_]
    error: Numbers
    spread: Numbers


def column_axis(spec: TensorSpec, array: Array) -> int | None:
    """Where the columns of an output lie; None where it has just one.

    Axis 1 of images ``(batch, channels, height, width)``, else the last; the other one of these two where scales differ
    clearly more along it (a sequence of channels in different units) or the usual one is free.

    Args:
        spec: The output's axes.
        array: Its values on samples.
    """
    if not array.size:  # no columns, or no rows
        return None
    places = [i for i in range(array.ndim) if i != spec.batch_axis]
    if not places or (len(places) == 1 and spec.batch_axis is None):
        return None if not places else places[0]
    if len(places) == 1:
        return places[0]
    first, last = places[0], places[-1]
    usual, other = (first, last) if array.ndim >= 4 else (last, first)
    if spec.batch_axis is None or spec.batch_axis != 0 or not isinstance(spec.shape[other], int):
        return usual
    if not isinstance(spec.shape[usual], int):
        return other
    return other if _scales_differ(array, other) > _CLEARLY * _scales_differ(array, usual) else usual


def _scales_differ(array: Array, axis: int) -> float:
    """Largest by smallest standard deviation of the slices along an axis, constant ones apart."""
    columns = compare(array, array, axis)
    found = columns.spread[~columns.constant]
    return float(found.max() / found.min()) if len(found) > 1 else 1.0


def compare(wanted: Array, found: Array, axis: int | None) -> Columns:
    """Compare two outputs of one shape, column by column.

    Args:
        wanted: What is right.
        found: What another program gives.
        axis: See `column_axis`.
    """
    with np.errstate(all="ignore"):
        return _compare(wanted, found, axis)


def _compare(wanted: Array, found: Array, axis: int | None) -> Columns:
    n_columns = 1 if axis is None else wanted.shape[axis]
    high, low = np.full(n_columns, -np.inf), np.full(n_columns, np.inf)
    for rows in _blocks(wanted, axis):
        high, low = np.maximum(high, rows.max(axis=0)), np.minimum(low, rows.min(axis=0))
    size = np.maximum(np.abs(high), np.abs(low))
    # Scaled so that squares of very large and very small numbers are still numbers.
    scale = np.where(size > 0, size, 1.0)
    count = max(1, wanted.size // n_columns)
    mean, mean_found = np.zeros(n_columns), np.zeros(n_columns)
    for one, other in zip(_blocks(wanted, axis), _blocks(found, axis), strict=True):
        mean += (one / scale).sum(axis=0) / count
        mean_found += (other / scale).sum(axis=0) / count
    variance, variance_found, common, noise, error, moved = (np.zeros(n_columns) for _ in range(6))
    for one, other in zip(_blocks(wanted, axis), _blocks(found, axis), strict=True):
        w, f = one / scale, other / scale
        difference = np.abs(w - f)
        variance += np.square(w - mean).sum(axis=0)
        variance_found += np.square(f - mean_found).sum(axis=0)
        common += ((w - mean) * (f - mean_found)).sum(axis=0)
        noise += np.square(difference).sum(axis=0)
        error += difference.sum(axis=0) / count
        moved = np.maximum(moved, difference.max(axis=0))
    constant = high - low <= _SAME * size
    spread = np.sqrt(variance / count) * scale
    neighbours = float(np.median(spread[~constant])) if not constant.all() else 0.0
    finite = np.isfinite(noise)
    exact = noise <= 1e-20 * np.maximum(variance, 1e-300)
    correlation = np.where(exact, 1.0, common / np.sqrt(variance * variance_found))
    return Columns(
        r2=np.where(finite, np.where(exact, 1.0, 1.0 - noise / variance), -np.inf),
        correlation=np.where(finite & np.isfinite(correlation), correlation, 0.0),
        noise_db=np.where(
            finite, np.where(exact, 200.0, np.minimum(200.0, 10.0 * np.log10(variance / noise))), -np.inf
        ),
        constant=constant,
        kept=finite & (moved * scale <= np.maximum(_CONSTANT_MOVES * np.maximum(size, neighbours), 1e-12)),
        error=error * scale,
        spread=spread,
    )


def in_columns(array: Array, axis: int | None) -> Array:
    """``(rows, columns)`` of an array."""
    return array.reshape(-1, 1) if axis is None else np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def _blocks(array: Array, axis: int | None) -> Iterator[Numbers]:
    """The same in float64, some rows at a time."""
    rows = in_columns(array, axis)
    step = max(1, _BLOCK // rows.shape[1])
    for start in range(0, len(rows), step):
        yield rows[start : start + step].astype(np.float64)


def cosines(wanted: Array, found: Array) -> Numbers:
    """``(n,)`` cosine of each sample's vector with the other program's, both about the mean of the first.

    About the mean, because vectors that all point the same way have a cosine of nearly 1 with anything.
    """
    one, other = (in_columns(a, a.ndim - 1).astype(np.float64) for a in (wanted, found))
    mean = one.mean(axis=0)
    one, other = one - mean, other - mean
    with np.errstate(all="ignore"):
        found_ = (one * other).sum(axis=1) / np.sqrt(np.square(one).sum(axis=1) * np.square(other).sum(axis=1))
    same = np.square(one - other).sum(axis=1) <= 1e-12 * np.square(one).sum(axis=1)
    return np.where(same, 1.0, np.where(np.isfinite(found_), found_, -1.0))


def overlaps(wanted: Numbers, found: Numbers) -> Numbers | None:
    """``(n,)`` intersection over union of boxes with another program's.

    Args:
        wanted: ``(n, 4)`` left, top, right, bottom, or centre and size: whichever the values can be.
        found: Likewise.

    Returns:
        None where the first are boxes of neither form.
    """
    if (wanted[:, 2:] >= wanted[:, :2]).all(axis=1).mean() >= _MOST_BOXES:
        one, other = wanted, found
    elif (wanted[:, 2:] >= 0).all(axis=1).mean() >= _MOST_BOXES:
        one, other = (
            np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
            for boxes in (wanted, found)
        )
    else:
        return None
    low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = [np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1) for boxes in (one, other)]
    with np.errstate(all="ignore"):
        shares = common / (areas[0] + areas[1] - common)
    same = np.abs(one - other).max(axis=1) <= _SAME * float(np.abs(one).max(initial=0.0))
    return np.where(same, 1.0, np.where(np.isfinite(shares), shares, 0.0))
