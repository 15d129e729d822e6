"""What loading gives and the rest of the converter works with: a model with everything that is known about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from torch import nn

from converter.data.samples import Samples
from converter.graph.nodes import tensors_of
from converter.load.made_up import Fill
from converter.program.one_run import OneRun
from converter.program.tensors import Array, Arrays
from edge.contract.errors import ConversionError
from edge.contract.tensorspec import AxisRange, TensorSpec


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Of its values, wherever they are stored."""
    size = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return int(size * math.prod(tensor.dims))


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
        samples: Calibration data that came with the checkpoint; those of a model that remembers may lack its states.
        notes: What was inferred, for the report.
        digest: SHA-256 of the file.
        carried: Why the model is carried as its file has it; "" where it is worked on.
        one_run: How samples go into a run of a graph that takes a fixed number of them, as it says of itself; None
            where their number is free, or there is no batch axis. `inputs` say ``batch`` in both cases.
        of_file: The same for the file itself, of which a carried graph may have been made free.
        fill: Made-up inputs on which a carried model runs.
        ranges: Sizes along axes of inputs, by name of the input and position, beyond which the model is known to be
            another than the one that was saved, or not known to be the same.
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
    carried: str = ""
    one_run: OneRun | None = None
    of_file: OneRun | None = None
    fill: Fill | None = None
    ranges: Mapping[tuple[str, int], AxisRange] = field(default_factory=dict)

    def check_sizes(self, batch: Mapping[str, Array]) -> None:
        """Raise ConversionError where inputs have sizes that are not in `ranges`."""
        for (name, i), sizes in self.ranges.items():
            if batch[name].shape[i] not in sizes:
                raise ConversionError(
                    f"{name} has {batch[name].shape[i]} along axis {i}; {self.kind} is right at {sizes.describe()}, as "
                    f"far as it was tried when it was saved"
                )

    @property
    def size_bytes(self) -> int:
        """Of the weights, each counted once, however many layers share it; samples and names stored beside them not."""
        if isinstance(self.model, onnx.ModelProto):
            return sum(map(tensor_bytes, tensors_of(self.model.graph)))
        tensors = {
            (tensor.data_ptr(), tuple(tensor.shape)): tensor.numel() * tensor.element_size()
            for tensor in (*self.model.parameters(), *self.model.buffers())
        }
        return sum(tensors.values())
