"""Graphs that take a fixed number of samples in a run, no more and no less, and yet are worked on with many samples.

The number is built into many files: a batch of 1 is the exporters' default. Such a graph says of itself where its
samples lie, in ONNX's own way: the axis of each input and output along which they lie has the denotation
``DATA_BATCH``, and an output that has no such axis, because the graph takes one sample at once, has the denotation
``SAMPLE`` as a whole. Optimizers and quantizers keep denotations, so that whatever is made of such a graph is run in
the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from converter.program.tensors import Array, Arrays, Run, select
from edge.contract.errors import ConversionError
from edge.contract.tensorspec import BATCH, TensorSpec

_AXIS, _WHOLE = "DATA_BATCH", "SAMPLE"
# Operators that quantize on one scale for everything that they are given: for all samples of a run.
ONE_SCALE = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class OneRun:
    """How samples go into one run.

    Attributes:
        size: So many.
        axes: By input and output, the axis along which they lie; None for an output of which a sample is the whole. A
            tensor that is not there is the same for all samples.
        shared: Outputs that are the same for all samples, where that is known.
    """

    size: int
    axes: Mapping[str, int | None]
    shared: frozenset[str] = frozenset()

    def taken(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """Inputs or outputs, which say ``batch``, as one run has them."""
        return tuple(
            replace(
                spec,
                shape=spec.shape[1:]
                if self.axes.get(spec.name, 0) is None
                else tuple(self.size if axis == BATCH else axis for axis in spec.shape),
            )
            for spec in specs
        )

    def one_by_one(self, outputs: Iterable[str]) -> dict[str, int] | None:
        """Where samples lie, if a run takes one and all outputs are known; None for others."""
        axes = {name: axis for name, axis in self.axes.items() if axis is not None}
        return axes if self.size == 1 and self.shared.union(axes) >= set(outputs) else None

    def state(self, model: onnx.ModelProto, ranks: Mapping[str, int]) -> None:
        """Write it into a graph.

        Args:
            model: The axes that are meant may say ``batch``.
            ranks: Of outputs that do not have a shape.
        """
        for info in [*model.graph.input, *model.graph.output]:
            if info.name not in self.axes:
                continue
            axis, dimensions = self.axes[info.name], info.type.tensor_type.shape.dim
            if not dimensions:
                dimensions.extend(onnx.TensorShapeProto.Dimension() for _ in range(ranks.get(info.name, 0)))
            if axis is not None:
                dimensions[axis].dim_value = self.size
                dimensions[axis].denotation = _AXIS
            elif axis is None:
                if dimensions and dimensions[0].dim_param == BATCH:
                    del dimensions[0]
                info.type.denotation = _WHOLE

    def runs(self, batch: Mapping[str, Array]) -> Iterator[Arrays]:
        """What to feed, run by run; the last one is filled up with the last sample.

        Raises:
            ConversionError: Inputs have different numbers of samples.
        """
        axes = {name: axis for name, axis in self.axes.items() if name in batch and axis is not None}
        counts = {name: batch[name].shape[axis] for name, axis in axes.items()}
        if len(set(counts.values())) > 1:
            raise ConversionError(f"different numbers of samples: {counts}")
        count = next(iter(counts.values()), self.size)
        if not count:
            raise ConversionError("no samples")
        for start in range(0, count, self.size):
            rows = np.minimum(np.arange(start, start + self.size), count - 1)
            yield {n: np.take(array, rows, axes[n]) if n in axes else array for n, array in batch.items()}

    def joined(self, runs: Sequence[Arrays], count: int) -> Arrays:
        """The outputs of all runs as those of so many samples.

        Raises:
            ConversionError: Samples have outputs of different shapes.
        """
        found: Arrays = {}
        for name, first in runs[0].items():
            if name in self.shared:
                found[name] = first
                continue
            arrays = [run[name] for run in runs]
            if any(array.shape != first.shape for array in arrays):
                raise ConversionError(f"{name} has another shape for other samples: {first.shape} and others")
            inside = 0 if first.ndim and len(first) == self.size else None  # a value inside the graph
            axis = self.axes.get(name, inside)
            if axis is not None:
                if axis >= first.ndim or first.shape[axis] != self.size:
                    raise ConversionError(f"{name} {first.shape} does not have {self.size} samples along axis {axis}")
                found[name] = np.take(np.concatenate(arrays, axis), np.arange(count), axis)
            else:
                found[name] = np.stack(arrays) if self.size == 1 else first
        return found


def one_run_of(model: onnx.ModelProto) -> OneRun | None:
    """What a graph says of itself; None where the number of samples is free, or where it has none."""
    axes: dict[str, int | None] = {}
    size = 0
    for info in [*model.graph.input, *model.graph.output]:
        if info.type.denotation == _WHOLE:
            axes[info.name] = None
        for axis, dimension in enumerate(info.type.tensor_type.shape.dim):
            if dimension.denotation == _AXIS and dimension.dim_value:
                axes[info.name], size = axis, dimension.dim_value
    return OneRun(size=size, axes=axes) if size else None


def shares_scales(graph: onnx.GraphProto) -> bool:
    """Whether samples of one run are quantized on one scale, in a branch or a body, too."""
    return any(
        node.op_type in ONE_SCALE or any(shares_scales(inner) for a in node.attribute for inner in (a.g, *a.graphs))
        for node in graph.node
    )


def as_judged(model: onnx.ModelProto) -> OneRun | None:
    """How samples go into a run where a graph is compared and learned with; None where all may go together.

    Of a fixed batch as it says itself. Where samples share a scale each is given alone, as a device gives it.
    """
    stated = one_run_of(model)
    if stated is not None or not shares_scales(model.graph):
        return stated
    axes: dict[str, int | None] = {}
    shared = set()
    for info in [*model.graph.input, *model.graph.output]:
        names = [dimension.dim_param for dimension in info.type.tensor_type.shape.dim]
        if BATCH in names:
            axes[info.name] = names.index(BATCH)
        elif info in model.graph.output:
            if not all(dimension.HasField("dim_value") for dimension in info.type.tensor_type.shape.dim):
                return None  # nobody knows how to put its parts together
            shared.add(info.name)
    return OneRun(size=1, axes=axes, shared=frozenset(shared)) if axes else None


def one_feed(model: onnx.ModelProto, x: Arrays, inputs: Sequence[TensorSpec]) -> Arrays:
    """The first of many samples as one run of a graph takes it, or as many as it takes at once."""
    how = one_run_of(model)
    return select(x, inputs, slice(0, 1)) if how is None else next(how.runs(x))


def in_runs(run: Run, how: OneRun | None) -> Run:
    """A program for any number of samples of one that takes a fixed number."""
    if how is None:
        return run
    given = {name: axis for name, axis in how.axes.items() if axis is not None}

    def run_many(batch: Mapping[str, Array]) -> Arrays:
        count = next((batch[name].shape[axis] for name, axis in given.items() if name in batch), how.size)
        return how.joined([run(part) for part in how.runs(batch)], count)

    return run_many
