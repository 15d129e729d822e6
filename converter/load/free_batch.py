"""Making the batch axis of a graph free that its file fixes at a number: the exporters' default is 1.

What an operator does with more samples is not known beforehand: a reshape, an initial state or a reduction can have the
number built in. So the axis is opened, and the graph is asked: on several numbers of samples it must give what the
original gives for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum, auto

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converter.graph.links import Links
from converter.load.made_up import Fill
from converter.program.beside import near, swayed
from converter.program.one_run import ONE_SCALE, OneRun, in_runs
from converter.program.programs import one_run_program
from converter.program.tensors import Array, Arrays, Run, join, select
from edge.contract.errors import ConversionError
from edge.contract.tensorspec import BATCH, TensorSpec

_SAMPLES = 6
_ORDERS = 3


class Together(Enum):
    """What a graph whose first axes are free makes of several samples."""

    SAME = auto()
    """For each what it gives for it alone."""
    ONE_AT_ONCE = auto()
    """It does not run, or its output has an axis less for one: it takes one sample at once."""
    OTHER = auto()
    """Other outputs: the axis is none of samples."""


def together(run: Run, fill: Fill) -> Together:
    """Try a graph whose first axes are free on two samples, and on each alone."""
    found = _together(run, fill)
    if found is Together.SAME and any(_together(run, other) is Together.OTHER for other in _variants(run, fill)):
        return Together.OTHER
    return found


def rounds_together(model: onnx.ModelProto, run: Run, fill: Fill) -> str | None:
    """The operator by which samples change each other's answers only in how they are rounded; None where none does.

    Dynamic quantization takes one scale for all samples of a run. With copies of itself that is a sample's own.

    Args:
        model: A graph whose first axes are free.
        run: It.
        fill: Inputs on which it runs.
    """
    found = next((str(node.op_type) for node in model.graph.node if node.op_type in ONE_SCALE), None)
    if found is None:
        return None
    one = fill.draw(1)
    alone, copies = run(one), run(join([one] * 3, fill.specs))
    for name, array in alone.items():
        grown = [axis for axis, size in enumerate(array.shape) if size == 1 and copies[name].shape[axis] == 3]
        if copies[name].ndim != array.ndim or len(grown) != 1:
            return None
        if not near(np.repeat(array, 3, grown[0]), copies[name]):
            return None
    return found


def _together(run: Run, fill: Fill) -> Together:
    samples = fill.draw(2)
    alone = [run(select(samples, fill.specs, slice(i, i + 1))) for i in range(2)]
    try:
        both = run(samples)
    except ConversionError:
        return Together.ONE_AT_ONCE
    found = [_joined_by(array, [one[name] for one in alone]) for name, array in both.items()]
    return next((each for each in (Together.OTHER, Together.ONE_AT_ONCE) if each in found), Together.SAME)


def _joined_by(both: Array, alone: Sequence[Array]) -> Together:
    one, other = alone
    if one.shape != other.shape:
        return Together.OTHER
    if both.shape == one.shape and all(near(array, both) for array in alone):
        return Together.SAME  # the same for all samples
    for axis, size in enumerate(one.shape):
        grown = (*one.shape[:axis], 2 * size, *one.shape[axis + 1 :])
        if both.shape == grown and near(np.concatenate(alone, axis), both):
            return Together.SAME
    stacked = np.stack(alone)
    is_squeezed = both.shape == stacked.shape and near(stacked, both)
    return Together.ONE_AT_ONCE if is_squeezed else Together.OTHER


def fixed_batches(specs: Sequence[TensorSpec]) -> list[OneRun]:
    """Where the samples of inputs without a free batch axis may lie, the likeliest first; none where nothing says it.

    Their number is the first axis of the first input. Other inputs have them along an axis of that size, the first one
    or, as recurrent states do, another; those that have none are the same for all samples.
    """
    first = next((spec for spec in specs if spec.shape), None)
    size = None if first is None else first.shape[0]
    if first is None or not isinstance(size, int) or size < 1:
        return []
    places = {spec.name: [i for i, axis in enumerate(spec.shape) if axis == size] for spec in specs} | {first.name: [0]}
    return [
        OneRun(size=size, axes={name: found[min(place, len(found) - 1)] for name, found in places.items() if found})
        for place in range(max(map(len, places.values())))
    ]


def with_batch(specs: Sequence[TensorSpec], how: OneRun) -> tuple[TensorSpec, ...]:
    """The same inputs with a free axis where the samples lie."""
    return tuple(
        replace(spec, shape=tuple(BATCH if i == how.axes.get(spec.name) else axis for i, axis in enumerate(spec.shape)))
        for spec in specs
    )


def with_outputs(how: OneRun, run: Run, fill: Fill) -> OneRun:
    """The same with the axes of the outputs, found on one run.

    An output that looks as an input does has its samples where that has them: it is the next state. Others have them
    along their first axis of that size. Where a run takes one sample and there is no such axis, all of it is of that
    sample.
    """
    (taken,) = how.runs(fill.draw(how.size))
    states = {taken[name].shape: axis for name, axis in how.axes.items() if axis}
    axes = dict(how.axes)
    for name, array in run(taken).items():
        if name in axes:
            continue
        axis = states.get(array.shape, next((i for i, size in enumerate(array.shape) if size == how.size), None))
        if axis is not None or how.size == 1:
            axes[name] = axis
    return OneRun(size=how.size, axes=axes)


def freed(model: onnx.ModelProto, how: OneRun, original: Run, fill: Fill) -> onnx.ModelProto | None:
    """A copy whose axes of samples are free, None where it does not work on other numbers of samples.

    Args:
        model: Takes samples as `how` says.
        how: Outputs included.
        original: What it is compared with; takes the same.
        fill: Inputs with a batch axis that is free, on which the original runs.
    """
    if not _shows_samples(how, fill):
        return None
    opened = _opened(model, how)
    try:
        run = one_run_program(opened, "the graph with a free batch axis")
    except ConversionError:
        return None
    return opened if is_free(run, how, original, fill) else None


def freed_note(size: int) -> str:
    """What is to be said of a graph whose batch was made free."""
    told = "two" if size == 1 else "several"
    return f"the batch axis, fixed at {size} in the file, was made free; {told} samples give what each gives alone"


def works_on_batches(run: Run, fill: Fill) -> bool:
    """Whether a graph whose first axes are free gives for several samples what it gives for each alone."""
    try:
        how = with_outputs(OneRun(size=1, axes={spec.name: spec.batch_axis for spec in _batched(fill)}), run, fill)
    except ConversionError:
        return False
    return is_free(run, how, run, fill)


def _shows_samples(how: OneRun, fill: Fill) -> bool:
    """Whether an output has an axis of the size that is to be that of the samples."""
    return bool(set(how.axes) - {spec.name for spec in fill.specs})


def _batched(fill: Fill) -> Iterator[TensorSpec]:
    return (spec for spec in fill.specs if spec.batch_axis is not None)


def _variants(run: Run, fill: Fill, how: OneRun | None = None) -> Iterator[Fill]:
    """The fill's variants on which a graph runs."""
    for other in fill.variants():
        try:
            run(other.draw() if how is None else next(how.runs(other.draw(how.size))))
        except ConversionError:
            continue
        yield other


def sways(run: Run, how: OneRun | None, original: Run, fill: Fill) -> str | None:
    """What shows that others change what a graph gives for a sample, see `swayed`; None where nothing does.

    Args:
        run: Takes any number of samples.
        how: How they go into a run of the original, None where it takes any number.
        original: What is right, of a sample alone.
        fill: Inputs on which both run.
    """
    return swayed(run, in_runs(original, how), fill.draw(1), fill.specs)


def is_free(run: Run, how: OneRun, original: Run, fill: Fill) -> bool:
    """Whether a program gives for any number of samples what the original gives in runs of a fixed number."""
    fills = (fill, *_variants(original, fill, how))
    return all(_independent_on(run, how, original, each) for each in fills) and not sways(run, how, original, fill)


def _independent_on(run: Run, how: OneRun, original: Run, fill: Fill) -> bool:
    count = -(-_SAMPLES // how.size) * how.size
    count = count if count > how.size else 2 * how.size
    samples = fill.draw(count, seed=1)
    try:
        wanted = in_runs(original, how)(samples)
        return all(
            _same(run(select(samples, fill.specs, rows)), _rows(wanted, how, rows))
            for rows in [slice(0, count), slice(1, count), slice(0, 2), *(slice(i, i + 1) for i in range(count))]
        )
    except ConversionError:
        return False


def _rows(outputs: Arrays, how: OneRun, rows: slice) -> Arrays:
    found = {}
    for name, array in outputs.items():
        axis = how.axes.get(name, -1)
        found[name] = array if axis == -1 else array[(*[slice(None)] * (axis or 0), rows)]
    return found


def has_samples(run: Run, how: OneRun, fill: Fill) -> bool:
    """Whether the axis of a fixed size is one of samples: in another order they give the same."""
    if not _shows_samples(how, fill):
        return False
    if not all(_has_samples(run, how, each) for each in (fill, *_variants(run, fill, how))):
        return False
    return how.size == 1 or not sways(in_runs(run, how), how, run, fill)


def _has_samples(run: Run, how: OneRun, fill: Fill) -> bool:
    try:
        many = in_runs(run, how)
        for seed in range(_ORDERS):
            samples = fill.draw(how.size + 1, seed)
            turned = {
                spec.name: samples[spec.name]
                if spec.batch_axis is None
                else np.roll(samples[spec.name], 1, spec.batch_axis)
                for spec in fill.specs
            }
            found, again = many(samples), many(turned)
            for name, array in found.items():
                axis = how.axes.get(name, -1)
                wanted = array if axis == -1 else np.roll(array, 1, axis or 0)
                if not near(wanted, again[name]):
                    return False
    except ConversionError:
        return False
    return True


def _same(found: Arrays, wanted: Arrays) -> bool:
    return all(
        array.shape == found[name].shape
        and array.dtype == found[name].dtype
        and near(array, found[name])
        for name, array in wanted.items()
    )  # fmt: skip


def _opened(model: onnx.ModelProto, how: OneRun) -> onnx.ModelProto:
    """A copy in which nothing states the batch size that can be left open."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    _free_reshapes(opened, how.size)
    for info in [*opened.graph.input, *opened.graph.output]:
        axis, dimensions = how.axes.get(info.name), info.type.tensor_type.shape.dim
        if axis is not None and axis < len(dimensions) and dimensions[axis].dim_value == how.size:
            dimensions[axis].Clear()
            dimensions[axis].dim_param = BATCH
    del opened.graph.value_info[:]
    return opened


def _free_reshapes(model: onnx.ModelProto, batch: int) -> None:
    """Open the first axis of constant Reshape targets that begin with the batch size."""
    links = Links(model.graph)
    for node in model.graph.node:
        if node.op_type == "Reshape" and len(node.input) == 2 and node.input[1] in links.constants:
            shape = links.array(node.input[1]).copy()
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
