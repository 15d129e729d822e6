"""Median and percentiles, without numpy's: those import masked arrays, 1 MiB, to ask whether they were given one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt


def median(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Along the first axis of an array ``(n, ...)``, n above 0. What is not a number counts as the largest."""
    ordered = np.sort(values, axis=0)
    return np.asarray((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


def percentile(values: Iterable[float], percent: float) -> float:
    """Between the two values, of at least one, that are nearest to it in rank, as numpy's ``linear``."""
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100.0
    below, above = ordered[math.floor(at)], ordered[math.ceil(at)]
    return below + (above - below) * (at - math.floor(at))
