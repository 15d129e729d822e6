"""Merging changes where some devices send garbage: broken sensors, swapped labels, flipped bits, or worse.

The coordinate median, the trimmed mean and Krum look at all changes at once, so they hold them all (devices times
parameters in float32), and Krum a copy of them. Devices weigh alike, because how many samples a device claims can be
garbage too. A change with values that are not finite is left out and counts as one of the assumed garbage ones, so it
is not assumed a second time among the rest. Of statistics `edge.merging.screening` finds the garbage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray, Parameters
from edge.merging.deltas import Delta, apply_change, named, rows_of

# Numbers of a head that are sorted at once, each over all devices.
_AT_ONCE = 512


def coordinate_median(base: Mapping[str, FloatArray], deltas: Iterable[Delta], n_garbage: int = 0) -> Parameters:
    """The head plus the median of each number (Yin et al. 2018, arXiv:1803.01498, definition 1).

    Args:
        base: The head that is changed, by parameter name.
        deltas: The changes.
        n_garbage: Devices assumed to send garbage.

    Raises:
        LearningError: Not more than half of the devices are assumed to be honest, other parameters than the base, or
            the result is not finite.
    """
    finite, _ = _bounded(base, deltas, n_garbage)
    n = len(finite)
    return _mean_of_sorted(base, finite, slice((n - 1) // 2, n // 2 + 1))


def trimmed_mean(base: Mapping[str, FloatArray], deltas: Iterable[Delta], n_garbage: int) -> Parameters:
    """The head plus the mean of each number without its `n_garbage` least and largest (definition 2 of the same).

    Args:
        base: The head that is changed, by parameter name.
        deltas: The changes.
        n_garbage: Devices assumed to send garbage.

    Raises:
        LearningError: As `coordinate_median`.
    """
    finite, trim = _bounded(base, deltas, n_garbage)
    return _mean_of_sorted(base, finite, slice(trim, len(finite) - trim))


def _bounded(base: Mapping[str, FloatArray], deltas: Iterable[Delta], n_garbage: int) -> tuple[list[Delta], int]:
    """The finite changes, and the garbage ones assumed among them: less than half."""
    finite, n_left_out = _finite(base, deltas)
    return finite, _assumed_left(n_garbage, len(finite), n_left_out, lambda f: 2 * f + 1)


def _mean_of_sorted(base: Mapping[str, FloatArray], deltas: Sequence[Delta], which: slice) -> Parameters:
    """The head plus, of each number, the mean of those at these places among what all devices have, ascending.

    Some numbers of all devices at once: that fits a processor's cache, where all numbers of all devices do not.
    """
    change = {}
    for name, array in base.items():
        each = [np.ravel(delta.change[name]) for delta in deltas]
        merged = np.empty(array.size, np.float64)
        for start in range(0, array.size, _AT_ONCE):
            end = min(start + _AT_ONCE, array.size)
            some = np.empty((end - start, len(each)), np.float32)
            for column, values in enumerate(each):
                some[:, column] = values[start:end]
            some.sort(axis=1)
            merged[start:end] = some[:, which].mean(axis=1, dtype=np.float64)
        change[name] = merged.reshape(array.shape)
    return apply_change(base, change)


def krum(base: Mapping[str, FloatArray], deltas: Iterable[Delta], n_garbage: int, n_chosen: int = 1) -> Parameters:
    """The head plus the mean of the changes that lie closest to their neighbours.

    Blanchard et al. 2017 (Machine Learning with Adversaries, NeurIPS), section 4: of n devices with f garbage ones, a
    change's score is the sum of its squared distances to its ``n - f - 2`` nearest others. Krum takes the change with
    the least score, multi-Krum the mean of the `n_chosen` least.

    Honest devices with different classes are far from one another, and Krum then picks one kind of them: for such
    fleets the trimmed mean, or statistics, are better.

    Args:
        base: The head that is changed.
        deltas: The changes; which of several with the same score is taken depends on their order.
        n_garbage: Devices assumed to send garbage, f.
        n_chosen: 1 for Krum.

    Raises:
        LearningError: Fewer than ``2 f + 3`` devices, or than `n_chosen` besides the garbage ones, or the result is not
            finite.
    """
    finite, n_left_out = _finite(base, deltas)
    f = _assumed_left(n_garbage, len(finite), n_left_out, lambda f: 2 * f + 3)
    n = len(finite)
    if not 1 <= n_chosen <= n - f:
        raise LearningError(f"cannot choose {n_chosen} of {n} changes of which {f} are assumed to be garbage")
    rows = rows_of(base, finite).astype(np.float64)
    squares = np.einsum("ij,ij->i", rows, rows)
    distances = np.maximum(squares[:, None] + squares - 2.0 * (rows @ rows.T), 0.0)
    np.fill_diagonal(distances, np.inf)
    scores = np.sort(distances, axis=1)[:, : n - f - 2].sum(axis=1)
    chosen = np.argsort(scores, kind="stable")[:n_chosen]
    return apply_change(base, named(base, rows[chosen].mean(axis=0)))


def _finite(base: Mapping[str, FloatArray], deltas: Iterable[Delta]) -> tuple[list[Delta], int]:
    """The changes that are finite, and how many are not."""
    finite, n_left_out = [], 0
    for delta in deltas:
        delta.check(base, finite=False)
        if delta.is_finite:
            finite.append(delta)
        else:
            n_left_out += 1
    return finite, n_left_out


def _assumed_left(n_garbage: int, n_finite: int, n_left_out: int, needed: Callable[[int], int]) -> int:
    """Garbage ones assumed among the finite changes."""
    if n_garbage < 0:
        raise LearningError(f"{n_garbage} garbage devices cannot be assumed")
    left = max(0, n_garbage - n_left_out)
    if n_finite < needed(left):
        raise LearningError(
            f"{n_finite} finite changes are too few where {left} of them are assumed to be garbage: this rule needs at "
            f"least {needed(left)}"
        )
    return left
