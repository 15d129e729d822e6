"""Where else than on the samples as they are programs are compared: at other sizes, and in a stream.

int8 keeps the ranges that it was calibrated on. Coordinates grow with an image, sums with a length, and a state goes
round and round: what is right at the samples' size, and for one step, may be wrong at another and after a hundred. The
inputs are the samples, cut off or repeated along free axes; in a stream, the samples in their order, each with the
state that the program itself gave with the one before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from converter.data.samples import Samples
from converter.data.streams import Remembered, without_states
from converter.plan import BOXES
from converter.program.tensors import Arrays, Run, batch_size, join, select
from converter.verify.axes import FreeAxis, Probe
from converter.verify.detections import looked_at
from converter.verify.judging import STATE, margins
from converter.verify.measure import Elsewhere, Evaluation
from converter.verify.original import Original
from edge.contract.errors import ConversionError
from edge.contract.tensorspec import BATCH, TensorSpec
from edge.inference.streams import Stream

# Sizes, relative to the samples'.
_FACTORS = (0.5, 1.5, 3.0, 8.0)
_SAMPLES, _LEAST_SAMPLES = 32, 2
# What the inputs at one size may take, and what running one program there may cost.
_BYTES, _MACS = 64 << 20, 10_000_000_000
# What the least number of samples may cost there.
_TOO_MUCH = 8 * _MACS
# Of a stream, the second half is compared: what goes wrong has had time to add up.
_STEPS, _LEAST_STEPS, _WIDTH = 1000, 200, 4
# Half of the usual margin: rounding turns answers that are a near thing, which at other sizes are no answers.
_SURE = 0.5


def with_elsewhere(original: Original, evaluation: Evaluation, macs: int) -> Evaluation:
    """The same comparison, at other sizes of free axes and in a stream as well, where there are such.

    Args:
        original: What is compared with.
        evaluation: On the samples.
        macs: Multiply-accumulate operations for one sample.
    """
    found = [*_at_other_sizes(original, evaluation, macs), *_in_a_stream(original, evaluation, macs)]
    return replace(evaluation, elsewhere=tuple(found))


def _at_other_sizes(original: Original, evaluation: Evaluation, macs: int) -> Iterator[Elsewhere]:
    usual = {name: margins(judged, evaluation.reference[name]) for name, judged in evaluation.kinds.items()}
    least = {name: _SURE * float(np.median(array)) for name, array in usual.items() if array.size}
    x, inputs = evaluation.samples.x, evaluation.inputs
    count = batch_size(x, inputs)
    for sizes in _sizes(original.axes):
        factor = float(np.prod([sizes[axis.name] / axis.size for axis in original.axes]))
        bytes_ = sum(array.nbytes for array in x.values()) / count * factor
        most = int(min(_SAMPLES, _BYTES / max(1.0, bytes_), _MACS / max(1.0, macs * factor)))
        if bytes_ * _LEAST_SAMPLES > _BYTES or macs * factor * _LEAST_SAMPLES > _TOO_MUCH:
            continue
        some = select(x, inputs, slice(0, count, -(-count // max(_LEAST_SAMPLES, most))))
        both = Probe(run=original.run, inputs=inputs, example=some).at(sizes)
        if both is None:  # of several axes not all sizes go together
            continue
        given, reference = both
        there = _comparison(evaluation, Samples(given, None), reference, evaluation.outputs)
        if there is not None:
            where = "at " + ", ".join(f"{name} {size}" for name, size in sizes.items())
            there = replace(there, least_margins=least)
            yield Elsewhere(where=where, evaluation=there, run=there.run)


def _sizes(axes: tuple[FreeAxis, ...]) -> list[dict[str, int]]:
    """Sizes of all axes, each time other ones, near what they are in the samples and far from it."""
    found: list[dict[str, int]] = []
    for factor in _FACTORS:
        sizes = {}
        for axis in axes:
            beyond = [n for n in axis.tried if n and (n < axis.size) == (factor < 1) and n != axis.size]
            wanted = np.log(axis.size * factor)
            sizes[axis.name] = min(beyond, key=lambda n: abs(np.log(n) - wanted), default=axis.size)
        if sizes not in found and any(sizes[axis.name] != axis.size for axis in axes):
            found.append(sizes)
    return found


def _comparison(
    evaluation: Evaluation, samples: Samples, reference: Arrays, outputs: tuple[TensorSpec, ...]
) -> Evaluation | None:
    """A comparison without labels, and without boxes where nothing is shown; None where nothing is left to compare."""
    kinds = {spec.name: replace(evaluation.kinds[spec.name], labelled=False) for spec in outputs}
    left = tuple(
        spec for spec in outputs
        if not (
            kinds[spec.name].kind == BOXES
            and (rows := kinds[spec.name].rows) is not None
            and rows.scores in reference
            and not looked_at(rows, reference, reference).seen.any()
        )
    )  # fmt: skip
    if not left:
        return None
    return replace(evaluation, samples=samples, reference=reference, outputs=left, kinds=kinds, elsewhere=())


def _in_a_stream(original: Original, evaluation: Evaluation, macs: int) -> Iterator[Elsewhere]:
    """Several streams side by side, each beginning at another place of the data and round again at their end."""
    states = original.states
    if not states:
        return
    inputs = without_states(evaluation.inputs, states)
    if not inputs:
        return
    count = batch_size(evaluation.samples.x, evaluation.inputs)
    arrays = (*evaluation.samples.x.values(), *evaluation.reference.values())
    bytes_ = max(1, sum(array.nbytes for array in arrays) // count)
    dear = max(macs / _MACS, bytes_ / _BYTES) * _LEAST_STEPS * _WIDTH > 1
    width = _WIDTH if not dear and all(BATCH in spec.shape for spec in evaluation.inputs) else 1
    steps = int(min(_STEPS, max(_LEAST_STEPS, min(_MACS / max(1, macs), _BYTES / bytes_) / width)))
    x = _in_order(original, evaluation, max(1, min(steps * width, _BYTES // bytes_)))
    count = batch_size(x, inputs)
    rows = [(np.arange(width) * count // width + step) % count for step in range(steps)]
    given = [select(x, inputs, at) for at in rows]
    outputs = evaluation.outputs

    def run(program: Run) -> Arrays:
        stream = Stream(program, evaluation.inputs, states, width=width)
        made = [{spec.name: found[spec.name] for spec in outputs} for found in map(stream.step, given)]
        return join(made[steps // 2 :], outputs)

    try:
        reference = run(original.run)
    except ConversionError:  # one sample at a time only
        return
    if not all(np.isfinite(a).all() for a in reference.values() if a.dtype.kind == "f"):
        return
    samples = Samples(join(given[steps // 2 :], inputs), None)
    kinds = {pair.output: replace(evaluation.kinds[pair.output], kind=STATE, rows=None) for pair in states}
    there = _comparison(replace(evaluation, kinds={**evaluation.kinds, **kinds}), samples, reference, outputs)
    if there is not None:
        yield Elsewhere(where=f"in steps {steps // 2 + 1} to {steps} of a stream", evaluation=there, run=run)


def _in_order(original: Original, evaluation: Evaluation, most: int) -> Arrays:
    """Samples as they follow one another: of those that are measured on, every other one is missing."""
    stream = original.stream
    if stream is None or not evaluation.real:
        return evaluation.samples.x
    if isinstance(stream, Remembered):  # its states are not needed, and cost a run of the model each
        stream = stream.given
    return next(iter(stream.batches(most))).x
