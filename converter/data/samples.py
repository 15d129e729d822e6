"""Samples: what every reader of data gives, in memory or as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from converter.program.tensors import Array, Arrays


@dataclass(frozen=True, eq=False, slots=True)
class Samples:
    """Real samples in memory.

    Attributes:
        x: One batch, by input name.
        y: ``(n,)`` int64 class numbers, or ``(n, ...)`` float32 targets, or None.
    """

    x: Arrays
    y: Array | None


class SampleStream(Protocol):
    """Real samples that are read as they are needed, as often as they are needed.

    Attributes:
        origin: What they are, for the report, e.g. ``calibration.npz``.
        class_names: Where the data name their classes (folders do), else None.
    """

    origin: str
    class_names: tuple[str, ...] | None

    def batches(self, size: int) -> Iterator[Samples]:
        """All samples from the beginning, at most `size` at a time, in memory that does not grow with their number."""
        ...
