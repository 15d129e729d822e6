"""The conversion, step by step: load, export, split, differentiate, quantize, verify, pack.

Every step takes what the one before it made and returns a frozen value; its docstring says what then holds. Nothing is
written before everything is verified.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch

from converter.export.exporters import Exported, by_scripting, exporters
from converter.graph.build import multiplications, other_floats
from converter.graph.canonical import canonical
from converter.head.gradient.differentiate import UnsupportedOperatorError
from converter.head.gradient.training_graph import build_training_graph
from converter.head.learning_rate import TrialData, find_rate
from converter.head.split import SplitModel, choose_trainable, split, trainable_groups, whole
from converter.head.torchscript.archive import torch_head
from converter.load.contents import shown
from converter.load.inputs import NoValuesError
from converter.load.load import is_onnx
from converter.load.source import tensor_bytes
from converter.pack.output import check_output, private_key, write
from converter.pack.pack import MOST_FEATURES, Parts, learning_data, pack, projection_of
from converter.plan import QUANTITIES, YES_OR_NO, ConversionPlan
from converter.program.programs import available_threads, onnx_program, outputs
from converter.program.scratch import scratch_folder
from converter.program.tensors import batch_size, select
from converter.quantization.layers import optimize
from converter.quantization.saturation import layers_with_least_weight, without_least_weight
from converter.report.describe import describe, lasting
from converter.search.candidates import MIN_CARRIED_SQNR_DB, Bench, Candidate, Problem, as_it_is
from converter.search.search import MIN_RANDOM_SQNR_DB, Found, Search
from converter.verify.axes import baked_axes
from converter.verify.checks import Check, check_float, first_diverging_layer, torchscript_of
from converter.verify.kinds import of_head
from converter.verify.measure import Evaluation, latency_ms
from converter.verify.original import Original, load_original, with_preprocessing
from converter.verify.robustness import robustness
from edge.contract.errors import BundleError, ConfigError, ConversionError, LearningError
from edge.contract.foreign import foreign
from edge.contract.manifest import LearningTrial
from edge.contract.recipe import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, MEAN_SQUARED_ERROR, TrainingRecipe
from edge.inference.onnx_benchmark import Benchmark
from edge.inference.onnx_trainer import OnnxTrainer
from edge.inference.session import sqnr_db

Stage = Callable[[str], None]

# Robustness is measured on as many samples as take about two seconds: each costs about 24 runs.
_ROBUSTNESS_MACS = 2_500_000_000
_ROBUSTNESS_BYTES = 8 << 20
_ROBUSTNESS_LEAST = 8

# Frozen weights in a head that nobody asked for: beyond this a bundle is noticeably larger than its model.
_FROZEN_BYTES = 64 << 10
_FROZEN_SHARE = 0.05
# Samples that a head's rate is looked for on, and what their features may cost.
_TRIAL_SAMPLES, _LEAST_TRIAL_SAMPLES = 384, 16
# A model whose weights were mended for Arm must stay so near to itself; int8 models themselves have 30 dB.
MIN_MENDED_SQNR_DB = 30.0
_TRIAL_MACS = 4_000_000_000
_IN_FLOAT32 = "export the model in float32"


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Conversion:
    """What came out: the whole report, see `converter.report`."""

    report: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Trainable:
    """The split model, the training step of its head, what that taught the head, and what a label cost here."""

    parts: SplitModel
    recipe: TrainingRecipe
    training: onnx.ModelProto | None
    note: str | None
    trial: LearningTrial | None = None
    label_ms: float | None = None


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
    check_output(plan)
    key = private_key(plan, password)
    torch.set_num_threads(available_threads())
    stage = _Clock(tell)

    # It starts while the model is loaded and exported.
    with Benchmark() if benchmark is None else contextlib.nullcontext(benchmark) as measuring:
        try:
            ready = _worked_on(plan, stage)
        except ConversionError as exc:
            asked = plan.quantize == "auto" and isinstance(exc, NoValuesError)  # with what it asks for more can be done
            if asked or not _may_be_carried(plan):
                raise
            ready = _carried(plan, str(exc).replace(str(plan.source), plan.source.name), stage)
        original, exported, evaluation, trainable = ready.original, ready.exported, ready.evaluation, ready.trainable
        class_names = _class_names(original, evaluation, trainable, plan)
        found = _found(ready, plan, stage, measuring)

    stage("verifying")
    torchscript, checks, left_out = _torchscript(original, evaluation, exported, plan)
    checks.append(_shipped(found, ready.check.against, evaluation, plan))
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    if not original.source.carried:
        try:  # a model need not take noise: whole numbers in floats may be indices
            with foreign("the model does not run on corrupted inputs", ConversionError):
                rows = _robustness(evaluation, exported.model, found.chosen)
        except (BundleError, ConfigError, ConversionError) as exc:
            faults.append(f"robustness was not measured: {exc}")

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
        head_torchscript=_head_torchscript(trainable, plan),
        torchscript=torchscript,
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
    notes += _notes(parts, found, plan, None if learned is None else learned[1])
    report = describe(
        parts,
        plan,
        exported,
        found,
        [ready.check, *checks],
        rows,
        notes,
        _original_latency(original),
        trainable.label_ms,
    )
    packed = pack(parts, plan, lasting(report), None if learned is None else learned[0])
    before_writing()
    size = write(packed, parts, plan, key)
    report |= {
        "bundle_digest": packed.digest,
        "size_bytes": size,
        "output": shown(plan.output),
        "stages": stage.stages(),
    }
    return Conversion(report=report)


def _worked_on(plan: ConversionPlan, stage: Stage) -> Ready:
    """After this the model is a graph that can be quantized, cut where its trainable layers begin."""
    stage("loading the model")
    original = load_original(plan)
    _check_size(original, plan)
    stage("exporting to ONNX")
    exported, original, evaluation, check = _export(original, plan)
    if plan.profile.architecture == "aarch64":
        exported = _for_arm(exported, evaluation)
    stage("splitting, differentiating and learning on trial")
    trainable = _trainable(original, exported, plan)
    evaluation = original.examined(_with_head(evaluation, trainable, plan))
    backbone = optimize(trainable.parts.backbone)
    return Ready(original, exported, evaluation, check, trainable, backbone)


def _for_arm(exported: Exported, evaluation: Evaluation) -> Exported:
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
    trainable = Trainable(parts=whole(exported.model), recipe=_recipe(original, plan), training=None, note=None)
    return Ready(original, exported, evaluation, check, trainable, exported.model, candidate)


def _found(ready: Ready, plan: ConversionPlan, stage: Stage, benchmark: Benchmark) -> Found:
    """The candidate to ship, measured."""
    evaluation, original = ready.evaluation, ready.original
    if ready.carried is not None:
        stage("measuring latency and memory")
        sample = select(evaluation.samples.x, evaluation.inputs, slice(0, original.source.batch or 1))
        with scratch_folder() as folder:
            (chosen,) = Bench(benchmark, folder, sample).timed([ready.carried])
        if chosen.failed:
            raise ConversionError(f"the carried graph cannot be measured: {chosen.why}")
        return Found(chosen=chosen, candidates=(chosen,), reason="the model is carried as its file has it")
    problem = Problem(
        parts=ready.trainable.parts,
        backbone=ready.backbone,
        evaluation=evaluation,
        calibration=original.calibration,
    )
    return Search(problem, plan, stage).run(benchmark)


def _export(original: Original, plan: ConversionPlan) -> tuple[Exported, Original, Evaluation, Check]:
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
        note = (
            f"the model decides by values in Python ({made.decides}); the graph always goes the way of its example. "
            f"The outputs agree on the evaluation data; give data that take the other way"
        )
        made = replace(made, notes=(*made.notes, note))
        return made, _within_what_was_tried(original, made), evaluation, check
    if baked:
        return _export(original.with_fixed(min(baked, key=len), plan), plan)
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


def _trainable(original: Original, exported: Exported, plan: ConversionPlan) -> Trainable:
    """After this the model is cut where its trainable layers begin, and the head has a training step that runs."""
    # A single file holds no training step: then all of an ONNX file is quantized.
    recipe = _recipe(original, plan)
    if plan.trainable == "none" or (plan.trainable == "auto" and plan.format in ("onnx", "torchscript")):
        return Trainable(parts=whole(exported.model), recipe=recipe, training=None, note=None)
    module = original.source.model
    named = [] if isinstance(module, onnx.ModelProto) else [name for name, _ in module.named_parameters()]
    groups = trainable_groups(exported.model, named)
    try:
        if not groups:
            if kinds := other_floats(exported.model):
                raise ConversionError(f"its weights are {kinds}, and only float32 ones are trained: {_IN_FLOAT32}")
            raise ConversionError("the model has no layer with parameters")
        rule = "last:1" if plan.trainable == "auto" else plan.trainable
        chosen = choose_trainable(groups, rule)
        try:
            parts = split(exported.model, chosen)
            if plan.trainable == "auto":
                _check_frozen(parts, exported.model)
            _check_targets(parts, original, recipe)
            training, step = _training_graph(parts, original, recipe)
            trial, label_ms = _learning_trial(parts, original, recipe, exported.model, step)
        except ConversionError as exc:
            smaller = _largest_trainable(exported.model, groups, rule, recipe)
            none = ". No smaller head works either" if isinstance(exc, UnsupportedOperatorError) else ""
            raise ConversionError(f"{exc}{smaller or none}") from exc
    except ConversionError as exc:
        if plan.trainable != "auto":
            raise
        note = f"nothing stays trainable: {exc}"
        return Trainable(parts=whole(exported.model), recipe=recipe, training=None, note=note)
    return Trainable(parts=parts, recipe=recipe, training=training, note=None, trial=trial, label_ms=label_ms)


def _recipe(original: Original, plan: ConversionPlan) -> TrainingRecipe:
    """The training step that was asked for, with a loss that fits the data where none was named."""
    y = original.samples.y
    is_quantity = y is not None and y.dtype.kind == "f"
    if plan.loss != "auto":
        recipe = replace(plan.training, loss=plan.loss)
        if y is not None and is_quantity == recipe.is_classifier:
            found = "float targets" if is_quantity else "class numbers"
            raise ConfigError(f"--loss {plan.loss} does not fit the data, whose y are {found}")
        return recipe
    if y is None or not is_quantity:
        said = plan.kinds.get(original.outputs[0].name) if y is None and len(original.outputs) == 1 else None
        loss = {QUANTITIES: MEAN_SQUARED_ERROR, YES_OR_NO: BINARY_CROSS_ENTROPY}.get(said or "", CROSS_ENTROPY)
        return replace(plan.training, loss=loss)
    is_binary = y.size > 0 and bool(np.isin(y, (0.0, 1.0)).all())
    return replace(plan.training, loss=BINARY_CROSS_ENTROPY if is_binary else MEAN_SQUARED_ERROR)


def _check_frozen(parts: SplitModel, model: onnx.ModelProto) -> None:
    """Raise ConversionError where frozen weights behind the trainable ones would be in the bundle three times.

    The head's two graphs hold what stands between its parameters and the output: of an output that shares the weights
    of an embedding that is most of the model.
    """
    assert parts.head is not None
    frozen, all_of_it = (sum(map(tensor_bytes, graph.initializer)) for graph in (parts.head.graph.graph, model.graph))
    if frozen > max(_FROZEN_BYTES, all_of_it * _FROZEN_SHARE):
        raise ConversionError(
            f"{frozen >> 10} KiB of frozen or shared weights stand behind the last layer with weights of its own, and "
            f"its training step would hold them again; --trainable last:1 trains it all the same"
        )


def _check_targets(parts: SplitModel, original: Original, recipe: TrainingRecipe) -> None:
    """Raise ConversionError unless float targets are one number for each of the head's outputs."""
    head, y = parts.head, original.samples.y
    assert head is not None
    last = next(node.op_type for node in head.graph.graph.node if head.output in node.output)
    if last == "Sigmoid" and recipe.loss == BINARY_CROSS_ENTROPY:
        raise ConversionError(
            "the model ends in a Sigmoid, and binary cross-entropy takes what stands before it: leave the Sigmoid out "
            "(devices give probabilities of logits), or train with --loss mean-squared-error"
        )
    if recipe.is_classifier and head.n_outputs == 1:
        raise ConversionError(
            "the model has one output, and cross-entropy needs one for each class: give targets of 0 and 1 as floats "
            "(--loss binary-cross-entropy), or quantities (--loss mean-squared-error)"
        )
    if y is not None and not recipe.is_classifier and y.size != len(y) * head.n_outputs:
        raise ConversionError(
            f"the data have targets of {y.size // max(1, len(y))} numbers, the trainable layers give {head.n_outputs}"
        )


def _training_graph(
    parts: SplitModel, original: Original, recipe: TrainingRecipe
) -> tuple[onnx.ModelProto, OnnxTrainer]:
    """The head's training step, which stock onnxruntime took once on real features; and that, opened."""
    head = parts.head
    assert head is not None
    graph = build_training_graph(head.graph, head.features.name, list(head.parameters), recipe)
    few = select(original.samples.x, original.inputs, slice(0, 3))
    features = onnx_program(parts.backbone, "the backbone")(few)[head.features.name]
    n = len(features)
    targets = np.zeros((n, head.n_outputs), np.float32)
    targets[:, 0] = 1.0
    try:
        with foreign("the training step of the head does not run", ConversionError):
            trainer = OnnxTrainer(graph.SerializeToString(), head.features.name, head.parameters)
            trainer.step(features, targets, np.ones(n, np.float32), 1e-3)
    except (BundleError, LearningError) as exc:
        raise ConversionError(f"the head cannot be trained: {exc}") from exc
    return graph, trainer


def _learning_trial(
    parts: SplitModel, original: Original, recipe: TrainingRecipe, model: onnx.ModelProto, step: OnnxTrainer
) -> tuple[LearningTrial, float]:
    """After this there is a rate at which the head learns on the features of the float backbone."""
    head = parts.head
    assert head is not None
    samples = original.samples if original.calibration is None else original.calibration
    backbone_macs = multiplications(parts.backbone)
    count = batch_size(samples.x, original.inputs)
    most = max(_LEAST_TRIAL_SAMPLES, min(_TRIAL_SAMPLES, _TRIAL_MACS // max(1, backbone_macs)))
    rows = slice(0, count, max(1, -(-count // most)))
    x, y = select(samples.x, original.inputs, rows), samples.y
    features = outputs(onnx_program(parts.backbone, "the backbone"), x, original.inputs, [head.features])
    targets = None if y is None else y[rows]
    if targets is not None and not recipe.is_classifier:
        targets = targets.reshape(len(targets), head.n_outputs)
    data = TrialData(
        features=features[head.features.name],
        targets=targets,
        macs=max(1, multiplications(model) - backbone_macs),
    )
    return find_rate(step, onnx_program(head.graph, "the head"), head, recipe, data, time.perf_counter)


def _largest_trainable(model: onnx.ModelProto, groups: dict[str, list[str]], rule: str, recipe: TrainingRecipe) -> str:
    """The largest smaller head that can be trained, as a sentence."""
    count = int(rule[5:]) if rule.startswith("last:") else len(groups)
    for smaller in (f"last:{k}" for k in range(count - 1, 0, -1)):
        try:
            head = split(model, choose_trainable(groups, smaller)).head
            assert head is not None
            build_training_graph(head.graph, head.features.name, list(head.parameters), recipe)
        except (ConversionError, ConfigError, UnsupportedOperatorError):
            continue
        return f". The largest that works is --trainable {smaller}"
    return ""


def _with_head(evaluation: Evaluation, trainable: Trainable, plan: ConversionPlan) -> Evaluation:
    head = trainable.parts.head
    if head is None or head.output not in evaluation.kinds:
        return evaluation
    loss = None if plan.loss == "auto" else plan.loss
    kinds = of_head(evaluation.kinds, evaluation.reference, evaluation.samples.y, head.output, loss)
    return replace(evaluation, kinds=kinds)


def _class_names(
    original: Original, evaluation: Evaluation, trainable: Trainable, plan: ConversionPlan
) -> tuple[str, ...]:
    """One name for each logit; numbers when nobody gave names."""
    names = original.class_names
    head = trainable.parts.head
    if evaluation.classes is not None:
        n_classes = evaluation.reference[evaluation.classes].shape[1]
    elif head is not None and not trainable.recipe.is_regression:
        n_classes = head.n_outputs
    elif plan.class_names:
        raise ConfigError("--class-names: no output of the model has one value for each class")
    else:
        return ()
    if names is None:
        return tuple(str(i) for i in range(n_classes))
    if len(names) != n_classes:
        raise ConfigError(f"{len(names)} class names, but the model has {n_classes} outputs")
    return names


def _torchscript(
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


def _head_torchscript(trainable: Trainable, plan: ConversionPlan) -> bytes | None:
    """The head for the torch executor, None where it has an operator that cannot be said in TorchScript."""
    head = trainable.parts.head
    if head is None or not plan.with_torchscript or plan.format not in ("edge", "dir"):
        return None
    try:
        return torch_head(head.graph, head.features.name, list(head.parameters))
    except ConversionError:
        return None


def _shipped(found: Found, against: str, evaluation: Evaluation, plan: ConversionPlan) -> Check:
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


def _robustness(evaluation: Evaluation, model: onnx.ModelProto, chosen: Candidate) -> list[dict[str, Any]]:
    """Quality under corrupted inputs, before and after, on as many samples as the time allows."""
    if not evaluation.says_quality:
        return []
    x, inputs = evaluation.samples.x, evaluation.inputs
    count = batch_size(x, inputs)
    # By size and not by time: the report in the bundle must be the same on every machine.
    sample_bytes = sum(array.nbytes for array in x.values()) / count
    most = int(min(_ROBUSTNESS_MACS / max(1, multiplications(model)), _ROBUSTNESS_BYTES / sample_bytes))
    most = max(most, _ROBUSTNESS_LEAST)
    rows = slice(0, count, max(1, -(-count // most)))
    some = evaluation.on(rows)
    programs = {
        "original": onnx_program(model, "the exported graph"),  # which was found to be the same, and is faster
        "bundle": onnx_program(chosen.model, "the model", chosen.parameters),
    }
    return robustness(programs, some.samples, inputs, some.level)


def _original_latency(original: Original) -> float:
    """On one thread, as the candidates are timed."""
    run, model = original.run, original.source.model
    if isinstance(model, onnx.ModelProto):
        run = onnx_program(with_preprocessing(model, original), "the model", threads=1)
    torch.set_num_threads(1)
    try:
        return latency_ms(run, select(original.samples.x, original.inputs, slice(0, 1)))
    finally:
        torch.set_num_threads(available_threads())


def _notes(parts: Parts, found: Found, plan: ConversionPlan, learned: int | None) -> list[str]:
    notes: list[str] = []
    if not plan.target_named:
        notes.append(
            f"no device was named: made for one like this machine, {plan.profile.name}. Name yours with --target; "
            f"--target list shows them"
        )
    for pair in parts.original.states:
        notes.append(
            f"{pair.input} is a state: {pair.output} of each sample is what the next one takes, the first takes zeros"
            + ("" if plan.states is not None else " (found by its name and shape; --state none if it is not so)")
        )
    if parts.original.source.carried:
        return notes
    if parts.original.stream is None:
        notes.append(
            "no calibration data: compared on random inputs, no int8 convolutions, no statistics for devices to start "
            "learning from. Give --calibrate with real samples (labelled, if the head is to learn)"
        )
    if found.chosen.head_error < 1.0:
        notes.append(
            f"head corrected for the quantized features: squared error of the logits x {found.chosen.head_error:.2f}"
        )
    if learned is not None:
        notes.append(
            f"statistics of {learned} labelled sample{'' if learned == 1 else 's'} for devices to start learning from"
        )
    head = parts.parts.head
    if head is not None and (shorter := projection_of(head, plan)) is not None:
        (n_features,) = head.features.sample_shape
        notes.append(
            f"devices keep statistics of {shorter} random projections of the {n_features} features, which is what "
            f"{plan.profile.name} has memory for"
        )
        if n_features > MOST_FEATURES:
            notes.append(f"no statistics shipped: of more than {MOST_FEATURES} features they would be too large")
    return notes
