"""Verifying what is to be shipped, beside what the search measured: TorchScript, robustness, the original's time."""

from __future__ import annotations

from typing import Any

import onnx

from converter.export.exporters import Exported
from converter.graph.build import multiplications
from converter.head.torchscript.archive import torch_head
from converter.plan import ConversionPlan
from converter.program.one_run import as_judged
from converter.program.programs import one_torch_thread, onnx_program
from converter.program.tensors import batch_size, select
from converter.search.candidates import Candidate
from converter.search.search import MIN_RANDOM_SQNR_DB, Found
from converter.stages.trainable import Trainable
from converter.verify.checks import Check, torchscript_of
from converter.verify.measure import Evaluation, times_as_long
from converter.verify.original import Original, with_preprocessing
from converter.verify.robustness import robustness
from edge.contract.errors import BundleError, ConfigError, ConversionError
from edge.contract.foreign import foreign

# Robustness is measured on as many samples as take about two seconds: each costs about 24 runs.
_ROBUSTNESS_MACS = 2_500_000_000
_ROBUSTNESS_BYTES = 8 << 20
_ROBUSTNESS_LEAST = 8
# A program that takes one sample at a time needs twice as long for each.
_ROBUSTNESS_ALONE = 256


def torchscript(
    original: Original, evaluation: Evaluation, exported: Exported, plan: ConversionPlan
) -> tuple[bytes | None, list[Check], list[str]]:
    """The whole model as TorchScript, its check, and a note where it is left out because torch cannot write it."""
    if original.module is None or not (plan.with_torchscript or plan.format == "torchscript"):
        return None, [], []
    faults: list[ConversionError] = []
    ways = (True,) if exported.exporter == "scripting" else (False, True) if original.axes else (False,)
    for scripted in ways:  # a trace writes sizes down, the compiler takes few real models
        try:
            found, check = torchscript_of(original.module, evaluation, original.probe, original.axes, scripted=scripted)
        except ConversionError as exc:
            faults.append(exc)
        else:
            return found, [check], []
    if plan.format == "torchscript":
        raise faults[0]
    return None, [], [f"without TorchScript, which devices do not need: {faults[0]}"]


def head_torchscript(trainable: Trainable, plan: ConversionPlan) -> bytes | None:
    """The head for the torch executor, None where it has an operator that cannot be said in TorchScript."""
    head = trainable.parts.head
    if head is None or not plan.with_torchscript or plan.format not in ("edge", "dir"):
        return None
    try:
        return torch_head(head.graph, head.features.name, list(head.parameters))
    except ConversionError:
        return None


def shipped(found: Found, against: str, evaluation: Evaluation, plan: ConversionPlan) -> Check:
    """What the search found out about the graph that it chose, beside the other checks."""
    assert found.chosen.deviation is not None
    return Check(
        what=f"the bundle, {found.chosen.name}",
        against=against,
        deviation=found.chosen.deviation,
        required=f"loss of {plan.max_drop:g} points at most"
        if evaluation.real
        else f"SQNR at least {MIN_RANDOM_SQNR_DB:.0f} dB",
    )


def robustness_of(
    original: Original, evaluation: Evaluation, model: onnx.ModelProto, chosen: Candidate
) -> tuple[list[dict[str, Any]], list[str]]:
    """Quality under corrupted inputs, and a note where that cannot be measured."""
    if original.source.carried:
        return [], []
    try:  # a model need not take noise: whole numbers in floats may be indices
        with foreign("the model does not run on corrupted inputs", ConversionError):
            return _robustness(evaluation, model, chosen), []
    except (BundleError, ConfigError, ConversionError) as exc:
        return [], [f"robustness was not measured: {exc}"]


def _robustness(evaluation: Evaluation, model: onnx.ModelProto, chosen: Candidate) -> list[dict[str, Any]]:
    """Quality under corrupted inputs, before and after, on as many samples as the time allows."""
    if not evaluation.says_quality:
        return []
    x, inputs = evaluation.samples.x, evaluation.inputs
    count = batch_size(x, inputs)
    # By size and not by time: the report in the bundle must be the same on every machine.
    sample_bytes = sum(array.nbytes for array in x.values()) / count
    most = int(min(_ROBUSTNESS_MACS / max(1, multiplications(model)), _ROBUSTNESS_BYTES / sample_bytes))
    most = max(most if as_judged(chosen.model) is None else min(most, _ROBUSTNESS_ALONE), _ROBUSTNESS_LEAST)
    rows = slice(0, count, max(1, -(-count // most)))
    some = evaluation.on(rows)
    programs = {
        "original": onnx_program(model, "the exported graph"),  # which was found to be the same, and is faster
        "bundle": onnx_program(chosen.model, "the model", chosen.parameters),
    }
    return robustness(programs, some.samples, inputs, some.level)


def original_latency_ms(original: Original, evaluation: Evaluation, found: Found, budget_s: float) -> float:
    """Of one sample on one thread: as many times that of the first candidate as it takes in turns with it."""
    run, model = original.run, original.source.model
    if isinstance(model, onnx.ModelProto):
        run = onnx_program(with_preprocessing(model, original), "the model", threads=1, config={})
    first = next(candidate for candidate in (*found.candidates, found.chosen) if candidate.timing is not None)
    assert first.timing is not None
    program = onnx_program(first.model, first.name, first.parameters, threads=1, config={})
    theirs = select(original.samples.x, original.inputs, slice(0, 1))
    ours = select(evaluation.samples.x, evaluation.inputs, slice(0, 1))
    with one_torch_thread():
        ratio = times_as_long(lambda: run(theirs), lambda: program(ours), budget_s)
    return ratio * first.timing.latency_ms
