"""What loading gives and the rest of the converter works with: a model with everything that is known about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import onnx
from torch import nn

from converter.tensors import Array, Arrays
from edge.contract.tensorspec import TensorSpec


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


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Source:
    """A loaded model.

    Attributes:
        model: A torch module in evaluation mode (Python or TorchScript), or an ONNX model.
        kind: What the file was, in words: ``state_dict``, ``TorchScript``, ``ONNX``, ...
        inputs: Names, types and axes of the inputs, in order.
        example: One sample that it runs on, by input name; batch axes have the size 1.
        output_names: Of what it returns, where the file says more than the model itself, else None.
        class_names: None when nobody named them.
        preprocessing: What the checkpoint says was done to raw data: JSON, for people.
        samples: Calibration data that came with the checkpoint.
        notes: What was inferred, for the report.
        digest: SHA-256 of the file.
    """

    model: nn.Module | onnx.ModelProto
    kind: str
    inputs: tuple[TensorSpec, ...]
    example: Arrays
    output_names: tuple[str, ...] | None
    class_names: tuple[str, ...] | None
    preprocessing: Mapping[str, Any]
    samples: Samples | None
    notes: tuple[str, ...]
    digest: str
