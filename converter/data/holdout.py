"""Samples to calibrate on and others to measure on, out of one set, and which of them are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from converter.data.samples import Samples
from converter.program.tensors import Arrays, batch_size, select
from edge.contract.tensorspec import TensorSpec

LEAST_SAMPLES = 32
"""Different ones that can be split: 16 to calibrate on, 16 to measure on."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Halves:
    """Two sets that have no sample in common."""

    calibration: Samples
    measured: Samples


def digests(x: Arrays, inputs: Sequence[TensorSpec]) -> list[bytes]:
    """One for each sample, equal where all inputs are."""
    rows = [
        np.ascontiguousarray(np.moveaxis(x[spec.name], spec.batch_axis, 0))
        for spec in inputs
        if spec.batch_axis is not None
    ]
    return [
        hashlib.blake2b(b"".join(array[i].tobytes() for array in rows), digest_size=16).digest()
        for i in range(batch_size(x, inputs))
    ]


def different(samples: Samples, inputs: Sequence[TensorSpec], without: Samples | None = None) -> Samples:
    """Each sample once, the first of those that are equal, in their order.

    Args:
        samples: All.
        inputs: What they are samples of.
        without: Samples that are left out as well.
    """
    seen = set() if without is None else set(digests(without.x, inputs))
    rows: list[int] = []
    for i, digest in enumerate(digests(samples.x, inputs)):
        if digest not in seen:
            seen.add(digest)
            rows.append(i)
    return _rows(samples, inputs, np.array(rows, np.int64)) if len(rows) < batch_size(samples.x, inputs) else samples


def halves(samples: Samples, inputs: Sequence[TensorSpec], *, most_calibration: int, seed: int = 0) -> Halves:
    """Split different samples: half of them to calibrate on, at most `most_calibration`, the others to measure on.

    They are shuffled with a fixed seed and, where `y` are class numbers, sorted by class; then every second one (or
    every third, ...) is to calibrate on. So each class is on both sides, and neighbours in time are not all on one.

    Args:
        samples: Different ones, see `different`.
        inputs: What they are samples of.
        most_calibration: At most so many.
        seed: The same seed gives the same halves.
    """
    count = batch_size(samples.x, inputs)
    order = np.random.default_rng(seed).permutation(count)
    if samples.y is not None and samples.y.dtype.kind in "iu":
        order = order[np.argsort(samples.y[order], kind="stable")]
    n_calibration = min(most_calibration, count // 2)
    picked = np.zeros(count, np.bool_)
    picked[np.arange(n_calibration) * count // n_calibration] = True
    calibration, measured = (_rows(samples, inputs, np.sort(order[mask])) for mask in (picked, ~picked))
    return Halves(calibration=calibration, measured=measured)


def _rows(samples: Samples, inputs: Sequence[TensorSpec], rows: npt.NDArray[np.int64]) -> Samples:
    return Samples(select(samples.x, inputs, rows), None if samples.y is None else samples.y[rows])
