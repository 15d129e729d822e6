"""Making the batch axis of a graph free that its file fixes at a number: the exporters' default is 1.

What an operator does with more samples is not known beforehand: a reshape, an initial state or a reduction can have the
number built in. So the axis is opened, and the graph is asked: on several numbers of samples it must give what the
original gives for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converter.load.made_up import Fill
from converter.program.programs import onnx_program
from converter.program.tensors import Arrays, Run, batch_size, join, select
from edge.contract.errors import ConversionError
from edge.contract.tensorspec import BATCH, TensorSpec

_SAMPLES = 6


def fixed_batch(specs: Sequence[TensorSpec]) -> int | None:
    """The size of the first axis of all inputs, None where they do not share one, or one of their axes is free."""
    sizes = {spec.shape[0] if spec.shape else None for spec in specs}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    fixed = all(isinstance(axis, int) for spec in specs for axis in spec.shape[:1])
    return size if isinstance(size, int) and size > 0 and fixed else None


def with_batch(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The same inputs with a free first axis."""
    return tuple(TensorSpec(name=spec.name, dtype=spec.dtype, shape=(BATCH, *spec.shape[1:])) for spec in specs)


def freed(model: onnx.ModelProto, batch: int, original: Run, fill: Fill) -> onnx.ModelProto | None:
    """A copy whose first axes are free, None where it does not work on other numbers of samples.

    Args:
        model: Takes `batch` samples.
        batch: The number that its file states.
        original: What it is compared with; takes `batch` samples.
        fill: Inputs with a batch axis that is free, on which the original runs.
    """
    opened = _opened(model, batch)
    try:
        run = onnx_program(opened, "the graph with a free batch axis")
    except ConversionError:
        return None
    return opened if _independent(run, batch, original, fill) else None


def works_on_batches(run: Run, fill: Fill) -> bool:
    """Whether a graph whose first axes are free gives for several samples what it gives for each alone."""
    return _independent(run, 1, run, fill)


def _independent(run: Run, batch: int, original: Run, fill: Fill) -> bool:
    count = -(-_SAMPLES // batch) * batch if batch > 1 else _SAMPLES
    count = count if count > batch else 2 * batch
    samples = fill.draw(count, seed=1)
    try:
        wanted = in_groups(original, samples, fill.specs, batch)
        if wanted is None:
            return False
        return all(
            _same(run(select(samples, fill.specs, rows)), {n: a[rows] for n, a in wanted.items()})
            for rows in [slice(0, count), slice(1, count), slice(0, 2), *(slice(i, i + 1) for i in range(count))]
        )
    except ConversionError:
        return False


def in_groups(run: Run, samples: Arrays, specs: Sequence[TensorSpec], batch: int) -> Arrays | None:
    """What a graph that takes `batch` samples gives for many; None if an output is not one array for each sample."""
    parts = []
    for start in range(0, batch_size(samples, specs), batch):
        part = run(select(samples, specs, slice(start, start + batch)))
        if any(array.ndim == 0 or len(array) != batch for array in part.values()):
            return None
        parts.append(part)
    shapes = {name: {part[name].shape for part in parts} for name in parts[0]}
    if any(len(found) > 1 for found in shapes.values()):
        return None
    outputs = [TensorSpec(name=name, dtype="float32", shape=(BATCH,)) for name in parts[0]]
    return join(parts, outputs)


def _same(found: Arrays, wanted: Arrays) -> bool:
    return all(
        array.shape == found[name].shape
        and array.dtype == found[name].dtype
        and near(array, found[name])
        for name, array in wanted.items()
    )  # fmt: skip


def near(wanted: np.ndarray, found: np.ndarray) -> bool:
    """Whether two arrays of a shape differ by no more than the order of the sums can explain."""
    if wanted.dtype.kind != "f":
        return bool(np.array_equal(wanted, found))
    tolerance = 1e-2 if wanted.dtype == np.float16 else 1e-4
    finite = np.abs(wanted[np.isfinite(wanted)], dtype=np.float64)
    scale = float(finite.max(initial=0.0))
    return bool(np.allclose(found, wanted, rtol=tolerance, atol=tolerance * min(scale, 1.0), equal_nan=True))


def _opened(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy in which nothing states the batch size that can be left open."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    _free_reshapes(opened, batch)
    for info in [*opened.graph.input, *opened.graph.output]:
        dimensions = info.type.tensor_type.shape.dim
        if len(dimensions):
            dimensions[0].Clear()
            dimensions[0].dim_param = BATCH
    del opened.graph.value_info[:]
    return opened


def _free_reshapes(model: onnx.ModelProto, batch: int) -> None:
    """Open the first axis of constant Reshape targets that begin with the batch size."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for node in model.graph.node:
        if node.op_type == "Reshape" and len(node.input) == 2 and node.input[1] in constants:
            shape = numpy_helper.to_array(constants[node.input[1]]).copy()
            if shape.ndim == 1 and len(shape) and shape[0] == batch:
                shape[0] = 0 if (shape == -1).any() else -1  # 0 copies the size, -1 makes it follow from the others
                name = f"{node.output[0]}/free_batch"  # its own: others may read the same constant
                model.graph.initializer.append(numpy_helper.from_array(shape, name))
                node.input[1] = name


def state_types(model: onnx.ModelProto, specs: Sequence[TensorSpec]) -> None:
    """Give the inputs the types and axes that they were found to have."""
    for info, spec in zip(model.graph.input, specs, strict=True):
        element = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        info.CopyFrom(helper.make_tensor_value_info(spec.name, element, list(spec.shape)))
