"""Splitting, differentiating and learning on trial: after this the model is cut where its trainable layers begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx
from torch import nn

from converter.graph.build import multiplications, other_floats
from converter.head.gradient.differentiate import UnsupportedOperatorError
from converter.head.gradient.training_graph import build_training_graph
from converter.head.learning_rate import TrialData, find_rate
from converter.head.split import Head, SplitModel, choose_trainable, split, trainable_groups, whole
from converter.load.source import tensor_bytes
from converter.plan import ANYTHING, CLASSES, QUANTITIES, SCORES, YES_OR_NO, ConversionPlan
from converter.program.programs import onnx_program, outputs
from converter.program.tensors import batch_size, select
from converter.quantization.layers import running_in_int8
from converter.verify.kinds import SAID, endings_of, of_head
from converter.verify.measure import Evaluation
from converter.verify.original import Original
from edge.contract.errors import BundleError, ConfigError, ConversionError, LearningError
from edge.contract.foreign import foreign
from edge.contract.manifest import SIGMOID, SOFTMAX, LearningTrial
from edge.contract.recipe import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, MEAN_SQUARED_ERROR, TrainingRecipe
from edge.inference.onnx_trainer import OnnxTrainer

# Frozen weights in a head that nobody asked for: beyond this a bundle is noticeably larger than its model.
_FROZEN_BYTES = 64 << 10
_FROZEN_SHARE = 0.05
# Samples that a head's rate is looked for on, and what their features may cost.
_TRIAL_SAMPLES, _LEAST_TRIAL_SAMPLES = 384, 16
_TRIAL_MACS = 4_000_000_000
_IN_FLOAT32 = "export the model in float32"

Stopwatch = Callable[[], float]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Trainable:
    """The split model, the training step of its head, what that taught the head, and what a label cost here."""

    parts: SplitModel
    recipe: TrainingRecipe
    training: onnx.ModelProto | None
    note: str | None
    trial: LearningTrial | None = None
    label_ms: float | None = None


def trainable_part(
    original: Original, model: onnx.ModelProto, evaluation: Evaluation, plan: ConversionPlan, stopwatch: Stopwatch
) -> Trainable:
    """After this the model is cut where its trainable layers begin, and the head has a training step that runs.

    Args:
        original: For its data and the names of its parameters.
        model: The exported graph.
        evaluation: What its outputs are, as far as that is known without a head.
        plan: What is to be trainable, and how.
        stopwatch: Seconds, for what a label costs.

    Raises:
        ConversionError: What was asked for cannot be trained.
    """
    # A single file holds no training step: then all of an ONNX file is quantized.
    recipe = recipe_for(original, plan)
    if plan.trainable == "none" or (plan.trainable == "auto" and plan.format in ("onnx", "torchscript")):
        return Trainable(parts=whole(model), recipe=recipe, training=None, note=None)
    if (how := original.source.one_run) is not None:
        at_once = "one sample" if how.size == 1 else f"{how.size} samples"
        why = f"the graph takes {at_once} at once, and devices learn on many; export it with a free batch axis"
        if plan.trainable != "auto":
            raise ConversionError(f"--trainable {plan.trainable}: {why}")
        return Trainable(parts=whole(model), recipe=recipe, training=None, note=f"nothing is trainable: {why}")
    module = original.source.model
    named = [] if isinstance(module, onnx.ModelProto) else [name for name, _ in module.named_parameters()]
    groups = trainable_groups(model, named)
    try:
        if not groups:
            if kinds := other_floats(model):
                raise ConversionError(f"its weights are {kinds}, and only float32 ones are trained: {_IN_FLOAT32}")
            if running_in_int8(model)[0]:
                raise ConversionError("the file is int8 already, and only float layers are trained")
            raise ConversionError("the model has no layer with parameters")
        rule = "last:1" if plan.trainable == "auto" else plan.trainable
        shared = {} if isinstance(module, onnx.ModelProto) else _other_names(module)
        chosen = choose_trainable(groups, rule, shared)
        try:
            parts = split(model, chosen, _activation(recipe))
            if _is_of_scores(parts, evaluation, recipe, plan):
                recipe = replace(recipe, loss=BINARY_CROSS_ENTROPY)
                parts = split(model, chosen, _activation(recipe))
            if plan.trainable == "auto":
                _check_frozen(parts, model)
            _check_targets(parts, original, recipe)
            _check_labels_are_of(parts, evaluation)
            training, step = _training_graph(parts, original, recipe)
            trial, label_ms = _learning_trial(parts, original, recipe, model, step, stopwatch)
        except ConversionError as exc:
            smaller = _largest_trainable(model, groups, rule, recipe)
            none = ". No smaller head works either" if isinstance(exc, UnsupportedOperatorError) else ""
            several = "; ".join(f"{name} is {other}, too" for other, name in shared.items() if name in chosen)
            told = f" ({several})" if several else ""
            raise ConversionError(f"{exc}{told}{smaller or none}") from exc
    except ConversionError as exc:
        if plan.trainable != "auto":
            raise
        note = f"nothing stays trainable: {exc}"
        return Trainable(parts=whole(model), recipe=recipe, training=None, note=note)
    return Trainable(parts=parts, recipe=recipe, training=training, note=None, trial=trial, label_ms=label_ms)


def _other_names(model: nn.Module) -> dict[str, str]:
    """First names of parameters by their others: layers may share one."""
    first = {parameter.data_ptr(): name for name, parameter in model.named_parameters() if parameter.numel()}
    own = set(first.values())
    return {
        name: first[parameter.data_ptr()]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name not in own and parameter.data_ptr() in first
    }


def recipe_for(original: Original, plan: ConversionPlan) -> TrainingRecipe:
    """The training step that was asked for, with a loss that fits the data where none was named."""
    measured, learned = original.samples.y, None if original.calibration is None else original.calibration.y
    y = learned if measured is None else measured
    is_quantity = y is not None and y.dtype.kind == "f"
    if measured is not None and learned is not None and (learned.dtype.kind == "f") != is_quantity:
        raise ConfigError("of --calibrate and --evaluate one has class numbers as y and the other float targets")
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


def _is_of_scores(parts: SplitModel, evaluation: Evaluation, recipe: TrainingRecipe, plan: ConversionPlan) -> bool:
    """Whether the head's output, of which neither labels nor the user say what it is, is yes or no behind a sigmoid.

    Raises:
        ConversionError: It is nothing that a head learns.
    """
    assert parts.head is not None
    judged = evaluation.kinds[parts.head.output]
    if plan.loss != "auto" or judged.labelled or not recipe.is_classifier or judged.kind in (CLASSES, ANYTHING):
        return False
    answers = judged.because == SAID or len(evaluation.kinds) == 1  # of several outputs it may be a box
    if judged.kind == YES_OR_NO or (judged.kind == SCORES and answers and _ends_in_sigmoid(parts.head)):
        return True
    raise ConversionError(
        f"{parts.head.output} is judged as {judged.kind}, and heads learn classes, yes or no, or quantities: "
        f"--output {parts.head.output}={YES_OR_NO} or --loss says which"
    )


def _ends_in_sigmoid(head: Head) -> bool:
    return endings_of(head.graph)[head.output] == "Sigmoid"


def _activation(recipe: TrainingRecipe) -> str:
    """What the loss has in it, and takes the logits before."""
    return SOFTMAX if recipe.is_classifier else SIGMOID if recipe.loss == BINARY_CROSS_ENTROPY else ""


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
    head, y = parts.head, original.samples.y if original.calibration is None else original.calibration.y
    assert head is not None
    if recipe.is_classifier and head.n_outputs == 1:
        raise ConversionError(
            "the model has one output, and cross-entropy needs one for each class: give targets of 0 and 1 as floats "
            "(--loss binary-cross-entropy), or quantities (--loss mean-squared-error)"
        )
    if y is not None and not recipe.is_classifier and y.size != len(y) * head.n_outputs:
        raise ConversionError(
            f"the data have targets of {y.size // max(1, len(y))} numbers, the trainable layers give {head.n_outputs}"
        )


def _check_labels_are_of(parts: SplitModel, evaluation: Evaluation) -> None:
    """Raise ConversionError where class numbers are about another output than the one that the head leads to."""
    head, y = parts.head, evaluation.samples.y
    about = next((name for name, judged in evaluation.kinds.items() if judged.labelled), None)
    if head is None or y is None or y.dtype.kind not in "iu" or about in (None, head.output):
        return
    said = evaluation.kinds[about or ""].because == SAID
    fits = not said and evaluation.kinds[head.output].kind in (CLASSES, ANYTHING) and y.max() < head.n_outputs
    right = {
        name: float((evaluation.reference[name].argmax(axis=1) == y.reshape(-1)).mean())
        for name in (about or "", head.output)
        if evaluation.reference[name].ndim == 2 and y.size == len(y)
    }
    if fits and right.get(head.output, 0.0) >= right.get(about or "", 0.0):
        return
    why = "as --output says" if said else f"of which the model gets {right.get(about or '', 0.0):.0%} right there"
    if fits and not said:
        why += f" and {right.get(head.output, 0.0):.0%} in {head.output}"
    raise ConversionError(
        f"the labels are about {about}, {why}, and the trainable layers lead to {head.output}: name layers that lead "
        f"to {about} (--trainable)"
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
    parts: SplitModel,
    original: Original,
    recipe: TrainingRecipe,
    model: onnx.ModelProto,
    step: OnnxTrainer,
    stopwatch: Stopwatch,
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
    return find_rate(step, onnx_program(head.graph, "the head"), head, recipe, data, stopwatch)


def _largest_trainable(model: onnx.ModelProto, groups: dict[str, list[str]], rule: str, recipe: TrainingRecipe) -> str:
    """The largest smaller head that can be trained, as a sentence."""
    count = int(rule[5:]) if rule.startswith("last:") else len(groups)
    for smaller in (f"last:{k}" for k in range(count - 1, 0, -1)):
        try:
            head = split(model, choose_trainable(groups, smaller), _activation(recipe)).head
            assert head is not None
            build_training_graph(head.graph, head.features.name, list(head.parameters), recipe)
        except (ConversionError, ConfigError, UnsupportedOperatorError):
            continue
        return f". The largest that works is --trainable {smaller}"
    return ""


def with_head(evaluation: Evaluation, trainable: Trainable, plan: ConversionPlan) -> Evaluation:
    """The same comparison, in which the head's output is judged as what the head is trained for."""
    head = trainable.parts.head
    if head is None or head.output not in evaluation.kinds:
        return evaluation
    loss = None if plan.loss == "auto" else plan.loss
    kinds = of_head(evaluation.kinds, evaluation.reference, evaluation.samples.y, head.output, loss)
    return replace(evaluation, kinds=kinds)
