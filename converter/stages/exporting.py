"""Exporting: after this the model, behind its preprocessing, is an ONNX graph that was found to compute the same."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx

from converter.export.exporters import Exported, by_scripting, exporters
from converter.export.sigmoids import with_sigmoids_written_out
from converter.graph.build import multiplications
from converter.graph.canonical import canonical
from converter.plan import ConversionPlan
from converter.program.programs import onnx_program, outputs, resized
from converter.program.tensors import Run, batch_size
from converter.quantization.saturation import without_least_weight
from converter.verify.axes import MIN_FLOAT_SQNR_DB, baked_axes, ending_axes
from converter.verify.checks import (
    MIN_COLUMN_DB,
    Check,
    check_alone,
    check_beside,
    check_float,
    first_diverging_layer,
    unlike_the_data,
)
from converter.verify.measure import Evaluation
from converter.verify.original import Original, with_preprocessing
from edge.contract.errors import ConversionError
from edge.contract.tensorspec import BATCH
from edge.inference.session import sqnr_db

# A model whose weights were mended for Arm must stay so near to itself; int8 models themselves have 30 dB.
MIN_MENDED_SQNR_DB = 30.0
# Samples that the model is given alone, too: of one that decides by values all.
_ALONE, _LEAST_ALONE, _ALONE_MACS = 64, 4, 2_000_000_000
# Samples that it is given beside others that are nothing like them, and how often each.
_BESIDE, _RUNS_BESIDE = 2, 50

# How they say that an operator is unknown to them.
_UNKNOWN = re.compile(
    r"Exporting the operator '(?:\w+::)?(\w+)'|translating node .*?target=torch\.ops\.\w+\.(\w+)", re.S
)
# Samples that exporters run a model on.
_OF_EXAMPLE = 2
_OF_TWO = (
    "every graph is right for as many samples as its example has only: the model's code makes a number of how many "
    "there are, as int(x.shape[0]), a loop over the samples or NumPy do. Compute with x.shape[0] as it is"
)

_WRITTEN_OUT = (
    "the last sigmoids are written out as 1 / (1 + exp(-x)): the runtime's own is off by 1.7e-7, and values of the "
    "outputs are smaller"
)


def checked_export(original: Original, plan: ConversionPlan) -> tuple[Exported, Original, Evaluation, Check]:
    """After this the model, behind its preprocessing, is an ONNX graph that gives the same on all samples.

    It does so at all sizes of its free axes that were tried, too: axes of which every exporter writes a size down are
    fixed.
    """
    faults: list[str] = []
    baked: list[dict[str, str]] = []
    evaluation: Evaluation | None = None
    second: tuple[Exported, Check, Run] | None = None  # right on the data only
    waiting = list(exporters(original.source))
    while waiting:
        export = waiting.pop(0)
        if second is not None and second[0].decides and export is not by_scripting:  # which alone keeps branches
            continue
        try:
            made = export(original.source, original.outputs)
            model = canonical(with_preprocessing(made.model, original))
        except ConversionError as exc:
            faults.append(str(exc))
            continue
        if evaluation is None:
            original = original.affordable(multiplications(model))
            evaluation = original.evaluation(model, plan.kinds)
            if original.module is not None:
                few = _ALONE_MACS // max(1, multiplications(model))
                check_alone(original.run, evaluation, max(_LEAST_ALONE, min(_ALONE, few)))
                check_beside(original.run, evaluation, max(1, min(_BESIDE, few // _RUNS_BESIDE)))
        try:
            against = "PyTorch" if original.module is not None else "the ONNX file"
            nearest = _nearest(model, evaluation, against)
        except ConversionError as exc:
            faults.append(_OF_TWO if _is_right_for_two(model, original) else str(exc))
            if (
                not faults[1:]
                and "another" in str(exc)
                and original.module is not None
                and original.preprocessing is None
            ):
                layer = first_diverging_layer(original.module, model, evaluation)
                faults[0] += f" (the first layer that differs is {layer})" if layer else ""
            continue
        model, check = nearest.model, nearest.check
        if written := baked_axes(nearest.run, original.probe, original.axes):
            baked.append({axis: f"the graph exported by {made.exporter} {what}" for axis, what in written.items()})
            waiting.sort(key=lambda e: e is not by_scripting)  # which keeps sizes as they stand, at a tenth of the cost
            continue
        made = replace(made, model=model, notes=(*made.notes, *nearest.notes))
        unlike = None
        if made.decides is None and original.module is not None:
            unlike = unlike_the_data("the exported graph", nearest.run, original.run, evaluation)
        if made.decides is None and unlike is None:
            return made, _within_what_was_tried(original, made, nearest.run), evaluation, check
        if made.decides is not None or second is None:
            second = _with_a_warning(made, unlike), check, nearest.run
    if second is not None and evaluation is not None:
        made, check, run = second
        if made.decides is not None:
            check_alone(original.run, evaluation, batch_size(evaluation.samples.x, evaluation.inputs))
        return made, _within_what_was_tried(original, made, run), evaluation, check
    if baked:
        return checked_export(original.with_fixed(min(baked, key=len), plan), plan)
    raise ConversionError(
        _without_operator(faults)
        or next((fault for fault in faults if fault.startswith(_OF_TWO)), None)
        or "; then ".join(faults)
    )


def _without_operator(faults: Sequence[str]) -> str | None:
    """What is said where neither of torch's exporters knows an operator; the third is older than both."""
    found = [_UNKNOWN.search(fault) for fault in faults[:2]]
    names = list(dict.fromkeys(match[1] or match[2] for match in found if match))
    if len(found) < 2 or None in found:
        return None
    return (
        f"torch's exporters cannot write {' and '.join(names)} in ONNX: compute it with other operators, or outside of "
        f"the model (what follows from parameters alone, once, as a buffer)"
    )


def _is_right_for_two(model: onnx.ModelProto, original: Original) -> bool:
    """Whether a graph that is not right on the data is on as many samples as exporters run a model on."""
    two = resized(original.example, original.inputs, {BATCH: _OF_EXAMPLE})
    if original.module is None or batch_size(two, original.inputs) != _OF_EXAMPLE:
        return False
    try:
        wanted, found = original.run(two), onnx_program(model, "the exported graph")(two)
    except ConversionError:
        return False
    return all(
        array.shape == found[name].shape and sqnr_db(array, found[name]) >= MIN_FLOAT_SQNR_DB
        for name, array in wanted.items()
    )


def _with_a_warning(made: Exported, unlike: str | None) -> Exported:
    """With a note that it is right on the data, and where it is not or need not be."""
    note = f"{unlike}; on the data it is right"
    if made.decides is not None:
        note = (
            f"the model decides by values in Python ({made.decides}); the graph always goes the way of its example. "
            f"The outputs agree on the evaluation data; give data that take the other way"
        )
    return replace(made, notes=(*made.notes, note))


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Nearest:
    """A form of a graph that was found to give what the model gives."""

    model: onnx.ModelProto
    run: Run
    check: Check
    notes: tuple[str, ...] = ()


def _nearest(model: onnx.ModelProto, evaluation: Evaluation, against: str) -> _Nearest:
    """The graph as it is, or with its last sigmoids written out where small values of an output are lost otherwise.

    Raises:
        ConversionError: Neither gives what the model gives.
    """
    plain: _Nearest | None = None
    fault: ConversionError | None = None
    try:
        run = onnx_program(model, "the exported graph")
        plain = _Nearest(model=model, run=run, check=check_float("the exported graph", run, evaluation, against))
    except ConversionError as exc:
        fault = exc
    if plain is not None and plain.check.deviation.column_db >= MIN_COLUMN_DB:
        return plain
    exact = with_sigmoids_written_out(model)
    if exact is not None:
        with contextlib.suppress(ConversionError):
            run = onnx_program(exact, "the exported graph")
            check = check_float("the exported graph", run, evaluation, against)
            if plain is None or check.deviation.column_db > plain.check.deviation.column_db:
                return _Nearest(model=exact, run=run, check=check, notes=(_WRITTEN_OUT,))
    if plain is None:
        assert fault is not None
        raise fault
    return plain


def _within_what_was_tried(original: Original, exported: Exported, run: Run) -> Original:
    """Where a size may be written down, or is found to be, the graph is known to be right at those tried only."""
    if exported.sizes is not None:
        why = f"the model takes sizes as numbers in Python ({exported.sizes}), which an exporter may write down"
        ending = {axis.name for axis in original.axes}
    else:
        faults = {} if original.module is None else ending_axes(run, original.probe, original.axes)
        fault, *_ = (*faults.values(), "")
        why = f"the graph exported by {exported.exporter} {fault.partition(': ')[0]}"
        ending = set(faults)
    if not ending:
        return original
    axes = tuple(axis.only_tried() if axis.name in ending else axis for axis in original.axes)
    sizes = "; ".join(axis.describe() for axis in axes if axis.name in ending)
    note = f"{why}: devices refuse sizes beyond those at which the outputs were found to agree ({sizes})"
    return replace(original.noted(note), axes=axes)


def mended_for_arm(exported: Exported, evaluation: Evaluation) -> Exported:
    """After this no weight of a model that was int8 already overflows the sums of Arm's kernels."""
    model, layers = without_least_weight(exported.model)
    if not layers:
        return exported
    found = outputs(
        onnx_program(model, "the mended graph"), evaluation.samples.x, evaluation.inputs, evaluation.outputs
    )
    ratio = min(
        (sqnr_db(evaluation.reference[s.name], found[s.name]) for s in evaluation.outputs if s.dtype == "float32"),
        default=float("inf"),
    )
    where = f"{len(layers)} of its layers ({', '.join(layers[:3])}{', ...' if layers[3:] else ''})"
    if ratio < MIN_MENDED_SQNR_DB:
        raise ConversionError(
            f"the model has int8 weights of -128 in {where}, with which the sums of Arm's int8 kernels overflow; with "
            f"-127 instead its outputs change too much ({ratio:.1f} dB, at least {MIN_MENDED_SQNR_DB:.0f} dB): "
            f"quantize it again with symmetric weights, or convert the float model"
        )
    note = (
        f"int8 weights of -128 in {where} are -127 now, because the sums of Arm's int8 kernels would overflow: the "
        f"outputs change by {ratio:.1f} dB"
    )
    return replace(exported, model=model, notes=(*exported.notes, note))
