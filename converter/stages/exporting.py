"""Exporting: after this the model, behind its preprocessing, is an ONNX graph that was found to compute the same."""

from __future__ import annotations

from dataclasses import replace

from converter.export.exporters import Exported, by_scripting, exporters
from converter.graph.build import multiplications
from converter.graph.canonical import canonical
from converter.plan import ConversionPlan
from converter.program.programs import onnx_program, outputs
from converter.program.tensors import batch_size
from converter.quantization.saturation import without_least_weight
from converter.verify.axes import baked_axes
from converter.verify.checks import Check, check_alone, check_float, first_diverging_layer
from converter.verify.measure import Evaluation
from converter.verify.original import Original, with_preprocessing
from edge.contract.errors import ConversionError
from edge.inference.session import sqnr_db

# A model whose weights were mended for Arm must stay so near to itself; int8 models themselves have 30 dB.
MIN_MENDED_SQNR_DB = 30.0
# Samples that the model is given alone, too: of one that decides by values all.
_ALONE, _LEAST_ALONE, _ALONE_MACS = 32, 4, 2_000_000_000


def checked_export(original: Original, plan: ConversionPlan) -> tuple[Exported, Original, Evaluation, Check]:
    """After this the model, behind its preprocessing, is an ONNX graph that gives the same on all samples.

    It does so at all sizes of its free axes that were tried, too: axes of which every exporter writes a size down are
    fixed.
    """
    faults: list[str] = []
    baked: list[dict[str, str]] = []
    evaluation: Evaluation | None = None
    always: tuple[Exported, Check] | None = None  # a graph that always goes the way of its example
    waiting = list(exporters(original.source))
    while waiting:
        export = waiting.pop(0)
        if always is not None and export is not by_scripting:  # which alone keeps branches on values
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
        try:
            run = onnx_program(model, "the exported graph")
            against = "PyTorch" if original.module is not None else "the ONNX file"
            check = check_float("the exported graph", run, evaluation, against)
        except ConversionError as exc:
            faults.append(str(exc))
            if (
                not faults[1:]
                and "another" in str(exc)
                and original.module is not None
                and original.preprocessing is None
            ):
                layer = first_diverging_layer(original.module, model, evaluation)
                faults[0] += f" (the first layer that differs is {layer})" if layer else ""
            continue
        if written := baked_axes(run, original.probe, original.axes):
            baked.append({axis: f"the graph exported by {made.exporter} {what}" for axis, what in written.items()})
            waiting.sort(key=lambda e: e is not by_scripting)  # which keeps sizes as they stand, at a tenth of the cost
            continue
        made = replace(made, model=model)
        if made.decides is None:
            return made, _within_what_was_tried(original, made), evaluation, check
        always = made, check
    if always is not None and evaluation is not None:
        made, check = always
        check_alone(original.run, evaluation, batch_size(evaluation.samples.x, evaluation.inputs))
        note = (
            f"the model decides by values in Python ({made.decides}); the graph always goes the way of its example. "
            f"The outputs agree on the evaluation data; give data that take the other way"
        )
        made = replace(made, notes=(*made.notes, note))
        return made, _within_what_was_tried(original, made), evaluation, check
    if baked:
        return checked_export(original.with_fixed(min(baked, key=len), plan), plan)
    raise ConversionError("; then ".join(faults))


def _within_what_was_tried(original: Original, exported: Exported) -> Original:
    """Where the model's code computes with sizes in Python, the graph is known to be right at those tried only."""
    if exported.sizes is None or not original.axes:
        return original
    axes = tuple(axis.only_tried() for axis in original.axes)
    sizes = "; ".join(axis.describe() for axis in axes)
    note = (
        f"the model takes sizes as numbers in Python ({exported.sizes}), which an exporter may write down: devices "
        f"refuse sizes beyond those at which the outputs were found to agree ({sizes})"
    )
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
