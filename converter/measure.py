"""Measuring: accuracy, agreement, signal to noise, latency. Every number in a report comes from here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from converter.program import Run, outputs
from edge.inference.session import sqnr_db

_LATENCY_BUDGET_S = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One program on the evaluation data.

    Attributes:
        name: Which program.
        size_bytes: Of its file or files.
        accuracy: In 0..1, None without labels.
        agreement: Share of samples on which it chooses the class that the original chooses.
        sqnr_db: Against the original's outputs.
        max_error: Largest absolute difference from the original's outputs.
        latency_ms: Median of single-sample runs on one thread.
    """

    name: str
    size_bytes: int
    accuracy: float | None
    agreement: float
    sqnr_db: float
    max_error: float
    latency_ms: float


def latency_ms(run: Run, sample: npt.NDArray[Any]) -> float:
    """Median time of one sample ``(1, ...)`` over a quarter of a second, after warming up."""
    for _ in range(3):
        run(sample)
    times: list[float] = []
    end = time.perf_counter() + _LATENCY_BUDGET_S
    while (start := time.perf_counter()) < end or len(times) < 5:
        run(sample)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def measure(
    name: str,
    run: Run,
    size_bytes: int,
    x: npt.NDArray[Any],
    y: npt.NDArray[np.int64] | None,
    reference: npt.NDArray[np.float32],
) -> Measurement:
    """Measure a program against the original's outputs.

    Args:
        name: For the report.
        run: The program.
        size_bytes: Of what has to be shipped for it.
        x: ``(n, ...)`` samples.
        y: ``(n,)`` labels or None.
        reference: ``(n, n_classes)`` the original's outputs on `x`.
    """
    found = outputs(run, x)
    return Measurement(
        name=name,
        size_bytes=size_bytes,
        accuracy=None if y is None else float((found.argmax(axis=1) == y).mean()),
        agreement=float((found.argmax(axis=1) == reference.argmax(axis=1)).mean()),
        sqnr_db=sqnr_db(reference, found),
        max_error=float(np.abs(found - reference).max()),
        latency_ms=latency_ms(run, x[:1]),
    )
