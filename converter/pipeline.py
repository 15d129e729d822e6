"""The conversion, step by step: load, export, split, differentiate, quantize, verify, pack.

Every step takes what the one before it made and returns a frozen value; its docstring says what then holds. Nothing is
written before everything is verified.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
import torch

from converter.export.exporters import Exported
from converter.graph.build import multiplications
from converter.head.split import whole
from converter.load.contents import shown
from converter.load.inputs import NoValuesError
from converter.load.load import is_onnx
from converter.pack.output import check_output, private_key, write
from converter.pack.pack import Parts, learning_data, pack
from converter.plan import YES_OR_NO, ConversionPlan
from converter.program.one_run import one_feed
from converter.program.programs import available_threads
from converter.program.scratch import scratch_folder
from converter.quantization.layers import optimize
from converter.quantization.saturation import layers_with_least_weight
from converter.report.describe import describe, lasting
from converter.search.candidates import MIN_CARRIED_SQNR_DB, Bench, Candidate, Problem, as_it_is
from converter.search.search import Found, Search
from converter.stages.exporting import checked_export, mended_for_arm
from converter.stages.notes import notes_on
from converter.stages.trainable import Trainable, recipe_for, trainable_part, with_head
from converter.stages.verifying import head_torchscript, original_latency_ms, robustness_of, shipped, torchscript
from converter.verify.checks import Check
from converter.verify.division import check_not_one_hot
from converter.verify.elsewhere import with_elsewhere
from converter.verify.loading import load_original
from converter.verify.measure import Evaluation
from converter.verify.original import Original
from edge.contract.errors import ConfigError, ConversionError
from edge.inference.onnx_benchmark import Benchmark

Stage = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Conversion:
    """What came out: the whole report, see `converter.report`."""

    report: dict[str, Any]


@dataclass(frozen=True, eq=False, slots=True)
class Ready:
    """What is searched on, or, where `carried` is not None, shipped as it is."""

    original: Original
    exported: Exported
    evaluation: Evaluation
    check: Check
    trainable: Trainable
    backbone: onnx.ModelProto
    carried: Candidate | None = None


class _Clock:
    """Tells the stages to the user, and how long they took to the report."""

    def __init__(self, tell: Stage) -> None:
        self._tell = tell
        self._names: list[str] = []
        self._times: list[float] = []

    def __call__(self, name: str) -> None:
        self._names.append(name)
        self._times.append(time.perf_counter())
        self._tell(name)

    def stages(self) -> list[dict[str, Any]]:
        ends = [*self._times[1:], time.perf_counter()]
        return [
            {"name": name, "seconds": round(end - start, 3)}
            for name, start, end in zip(self._names, self._times, ends, strict=True)
        ]


def convert(
    plan: ConversionPlan,
    tell: Stage = lambda _: None,
    password: bytes | None = None,
    benchmark: Benchmark | None = None,
    before_writing: Callable[[], object] = lambda: None,
) -> Conversion:
    """Convert a model and write the result.

    Args:
        plan: What to do.
        tell: Told the name of each stage as it begins.
        password: Of the private key to sign with.
        benchmark: A running one, for those who convert many models; None to start one for this.
        before_writing: Called when all is verified and nothing is written yet.

    Raises:
        ConfigError: An option or a file named by one is wrong.
        ConversionError: The model cannot be converted, or a result is not near enough to the original.
    """
    if plan.format == "torchscript":
        for option, value in (("--trainable", plan.trainable), ("--quantize", plan.quantize)):
            if value not in ("auto", "none"):
                raise ConfigError(
                    f"--format torchscript writes only the whole float model: {option} {value} needs a bundle "
                    f"(--format edge; --torchscript puts the TorchScript into it)"
                )
    check_output(plan, plan.files_read)
    key = private_key(plan.sign_key, password)
    torch.set_num_threads(available_threads())
    stage = _Clock(tell)

    with Benchmark() if benchmark is None else contextlib.nullcontext(benchmark) as measuring:
        try:
            ready = _worked_on(plan, stage, measuring)
        except ConversionError as exc:
            asked = plan.quantize == "auto" and isinstance(exc, NoValuesError)  # with what it asks for more can be done
            if asked or not _may_be_carried(plan):
                raise
            ready = _carried(plan, str(exc).replace(str(plan.source), plan.source.name), stage)
        original, exported, evaluation, trainable = ready.original, ready.exported, ready.evaluation, ready.trainable
        class_names = _class_names(original, evaluation, trainable, plan)
        found = _found(ready, plan, stage, measuring)

    stage("verifying")
    script, checks, left_out = torchscript(original, evaluation, exported, plan)
    checks.append(shipped(found, ready.check.against, evaluation, plan))
    rows, faults = robustness_of(original, evaluation, exported.model, found.chosen)

    stage("packing")
    parts = Parts(
        original=original,
        evaluation=evaluation,
        parts=trainable.parts,
        training=trainable.training,
        chosen=found.chosen,
        class_names=class_names,
        recipe=trainable.recipe,
        trial=trainable.trial,
        head_torchscript=head_torchscript(trainable, plan),
        torchscript=script,
        target=plan.profile,
        trainable="last:1" if plan.trainable == "auto" else plan.trainable,
        constants=plan.constants,
        answer=plan.answer,
    )
    learned = learning_data(parts)
    notes = [
        *original.source.notes,
        *original.notes,
        *exported.notes,
        *([trainable.note] if trainable.note else []),
        *found.notes,
        *left_out,
        *faults,
    ]
    notes += notes_on(parts, found, plan, learned)
    report = describe(
        parts,
        shown(plan.source.name),
        exported,
        found,
        [ready.check, *checks],
        rows,
        notes,
        original_latency_ms(original, evaluation, found, measuring.budget_s),
        trainable.label_ms,
        max_drop=plan.max_drop,
        forced=plan.force,
        searched=plan.quantize == "auto",
    )
    packed = pack(parts, shown(plan.output.stem), lasting(report), None if learned is None else learned.statistics)
    before_writing()
    size = write(packed, parts, plan, key)
    report |= {
        "bundle_digest": packed.digest,
        "size_bytes": size,
        "output": shown(plan.output),
        "stages": stage.stages(),
    }
    return Conversion(report=report)


def _worked_on(plan: ConversionPlan, stage: Stage, measuring: Benchmark) -> Ready:
    """After this the model is a graph that can be quantized, cut where its trainable layers begin."""
    stage("loading the model")
    original = load_original(plan, in_float32=plan.quantize != "none")
    _check_targets(original, plan)
    _check_size(original, plan)
    measuring.start()  # while the model is exported
    stage("exporting to ONNX")
    exported, original, evaluation, check = checked_export(original, plan)
    if plan.profile.architecture == "aarch64":
        exported = mended_for_arm(exported, evaluation)
    stage("splitting, differentiating and learning on trial")
    trainable = trainable_part(original, exported.model, evaluation, plan, time.perf_counter)
    evaluation = original.examined(with_head(evaluation, trainable, plan))
    backbone = optimize(trainable.parts.backbone)
    return Ready(original, exported, evaluation, check, trainable, backbone)


def _check_targets(original: Original, plan: ConversionPlan) -> None:
    """Raise ConfigError for one-hot targets, unless the user said what they are."""
    if plan.loss == "auto" and YES_OR_NO not in plan.kinds.values():
        check_not_one_hot(original.samples.y, original.origin)


# Bits of a weight in the smallest form that is asked for; `auto` tries them all.
_LEAST_BITS = {"none": 32, "fp16": 16, "int8": 8, "dynamic": 8, "int4": 4, "auto": 4}


def _check_size(original: Original, plan: ConversionPlan) -> None:
    """Raise ConversionError where no bundle can be small enough: now, and not after minutes of work."""
    most, found = plan.profile.inference.max_bundle_mb << 20, original.source.size_bytes
    least = found * _LEAST_BITS[plan.quantize] // 32
    if least > most:
        raise ConversionError(
            f"the model has {found >> 20} MiB of weights, at least {least >> 20} MiB with --quantize {plan.quantize}; "
            f"{plan.profile.name} takes bundles of {most >> 20} MiB (max_bundle_mb): choose a larger target, or a "
            f"smaller model"
        )


def _may_be_carried(plan: ConversionPlan) -> bool:
    """Whether nothing was asked for that a model as its file has it cannot give."""
    return (
        plan.quantize in ("auto", "none")
        and plan.trainable in ("auto", "none")
        and plan.preprocess is None
        and plan.arch is None
        and is_onnx(plan.source)
    )


def _carried(plan: ConversionPlan, why: str, stage: Stage) -> Ready:
    """After this it is known that the graph, as its file has it, can be shipped; `why` it cannot be worked on."""
    stage("loading the model as it is")
    try:
        original = load_original(plan, carried=why)
        _check_targets(original, plan)
        assert isinstance(original.source.model, onnx.ModelProto)
        exported = Exported(model=original.source.model, exporter="none")
        evaluation = original.examined(original.evaluation(exported.model, plan.kinds))
        candidate = as_it_is(exported.model, evaluation)
        if plan.profile.architecture == "aarch64" and (layers := layers_with_least_weight(exported.model)):
            raise ConversionError(
                f"its layer {layers[0]} has int8 weights of -128, with which the sums of Arm's int8 kernels overflow: "
                f"quantize it again with symmetric weights"
            )
    except ConversionError as exc:
        if str(exc) == why:
            raise
        raise ConversionError(f"{why}; nor can it be carried as it is: {exc}") from exc
    assert candidate.deviation is not None
    check = Check(
        what="the carried graph",
        against="the ONNX file",
        deviation=candidate.deviation,
        required=f"SQNR at least {MIN_CARRIED_SQNR_DB:.0f} dB, integers equal",
    )
    trainable = Trainable(parts=whole(exported.model), recipe=recipe_for(original, plan), training=None, note=None)
    return Ready(original, exported, evaluation, check, trainable, exported.model, candidate)


def _found(ready: Ready, plan: ConversionPlan, stage: Stage, benchmark: Benchmark) -> Found:
    """The candidate to ship, measured."""
    evaluation, original = ready.evaluation, ready.original
    if ready.carried is not None:
        stage("measuring latency and memory")
        sample = one_feed(ready.carried.model, evaluation.samples.x, evaluation.inputs)
        with scratch_folder() as folder:
            (chosen,) = Bench(benchmark, folder, sample).timed([ready.carried])
        if chosen.failed:
            raise ConversionError(f"the carried graph cannot be measured: {chosen.why}")
        reason = "carried as its file has it: nothing is quantized, nothing learns"
        return Found(chosen=chosen, candidates=(chosen,), reason=reason)
    if plan.quantize != "none":  # float was compared at other sizes already
        evaluation = with_elsewhere(original, evaluation, multiplications(ready.exported.model))
    problem = Problem(
        parts=ready.trainable.parts,
        backbone=ready.backbone,
        evaluation=evaluation,
        calibration=original.calibration,
    )
    return Search(problem, plan, stage).run(benchmark)


def _class_names(
    original: Original, evaluation: Evaluation, trainable: Trainable, plan: ConversionPlan
) -> tuple[str, ...]:
    """One name for each logit of the head that learns classes, else of the output that is classes; numbers for none."""
    names = original.class_names
    head = trainable.parts.head
    if head is not None and not trainable.recipe.is_regression:
        n_classes = head.n_outputs
        if names is not None and len(names) != n_classes and evaluation.classes not in (None, head.output):
            names = None  # they are another output's
    elif evaluation.classes is not None:
        n_classes = evaluation.reference[evaluation.classes].shape[1]
    elif plan.class_names:
        raise ConfigError("--class-names: no output of the model has one value for each class")
    else:
        return ()
    if names is None:
        return tuple(str(i) for i in range(n_classes))
    if len(names) != n_classes:
        raise ConfigError(f"{len(names)} class names, but the model has {n_classes} outputs")
    return names
