"""The conversion, step by step: load, export, split, differentiate, quantize, verify, pack.

Every step takes what the one before it made and returns a frozen value; its docstring says what then holds. Nothing is
written before everything is verified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

from converter.data import EVALUATION_SAMPLES, Data, gather_data
from converter.export import export_onnx
from converter.gradient.differentiate import UnsupportedOperatorError
from converter.gradient.training_graph import build_training_graph
from converter.head import correct_for_quantization
from converter.load import Source, load_source
from converter.measure import Measurement, measure
from converter.pack import Parts, check_output, pack, write
from converter.plan import ConversionPlan
from converter.program import FloatArray, Run, joined_program, onnx_program, outputs, torch_program
from converter.quantize import int8_layers, optimize, quantize_with_data, quantize_without_data
from converter.reason import reason
from converter.split import FEATURES, SplitModel, choose_trainable, split
from converter.verify import check_float, checked_torchscript, too_different
from edge.contract.errors import BundleError, ConfigError, ConversionError, LearningError
from edge.inference.onnx_trainer import OnnxTrainer

Stage = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What came out: the report, as stored in the bundle."""

    report: dict[str, Any]
    measurements: tuple[Measurement, ...]
    bundle_digest: str


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Original:
    """The model that everything is compared with, its data, and its outputs on them."""

    source: Source
    data: Data
    run: Run
    outputs: FloatArray
    class_names: tuple[str, ...]

    @property
    def weights_bytes(self) -> int:
        """Size of the weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.source.model.state_dict().values())


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Exported:
    """The float graph whole and in two halves; `backbone` is the optimized one."""

    whole: onnx.ModelProto
    parameter_names: tuple[str, ...]
    halves: SplitModel
    backbone: onnx.ModelProto


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Int8:
    """An int8 backbone, the head corrected for it, and how they were made.

    `error_left` is the squared error of the corrected head's logits relative to the float head's.
    """

    backbone: onnx.ModelProto
    parameters: Mapping[str, FloatArray]
    error_left: float
    how: str


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Chosen:
    """The backbone and the head to ship, with everything that was measured on the way."""

    backbone: onnx.ModelProto
    parameters: Mapping[str, FloatArray]
    scheme: str
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...]


def convert(plan: ConversionPlan, stage: Stage = lambda _: None) -> Conversion:
    """Convert a model and write its bundle.

    Args:
        plan: What to do.
        stage: Told the name of each stage as it begins.

    Raises:
        ConfigError: An option or a file named by one is wrong.
        ConversionError: The model cannot be converted, or a result is not near enough to the original.
    """
    check_output(plan)
    torch.set_num_threads(1)  # latencies are compared on one thread, and small layers are slower on more

    stage("loading the model")
    original = _load(plan)

    stage("exporting to ONNX")
    exported = _export(original, plan)

    stage("differentiating the head")
    training = _training_graph(original, exported, plan)

    stage("quantizing the backbone")
    int8 = _quantize(original, exported, plan)

    stage("verifying")
    chosen = _choose(original, exported, int8, plan)
    torchscript = checked_torchscript(original.source.model, original.data, original.outputs)

    stage("writing the bundle")
    parts = Parts(
        source=original.source,
        data=original.data,
        class_names=original.class_names,
        backbone=chosen.backbone,
        scheme=chosen.scheme,
        head=exported.halves.head,
        training=training,
        parameters=chosen.parameters,
        linear=exported.halves.linear,
        torchscript=torchscript,
        measurements=chosen.measurements,
        notes=chosen.notes,
    )
    packed = pack(parts, plan)
    write(packed, plan)
    return Conversion(report=packed.report, measurements=chosen.measurements, bundle_digest=packed.digest)


def _load(plan: ConversionPlan) -> Original:
    """After this the model runs on its data and its outputs are finite logits, one for each class name."""
    source = load_source(plan)
    odd = {str(value.dtype) for value in source.model.parameters() if value.dtype != torch.float32}
    if odd:
        raise ConversionError(f"parameters of the type {', '.join(sorted(odd))}; call model.float() before saving it")
    data = gather_data(plan, source)
    run = torch_program(source.model)
    reference = outputs(run, data.x)
    if reference.shape[0] != len(data.x):
        raise ConversionError(f"the model gives {len(reference)} outputs for {len(data.x)} samples; expected one each")
    if not np.isfinite(reference).all():
        raise ConversionError("the model gives outputs that are not finite on the evaluation data")
    n_classes = reference.shape[1]
    class_names = plan.class_names or source.class_names or tuple(str(i) for i in range(n_classes))
    if len(class_names) != n_classes:
        raise ConfigError(f"{len(class_names)} class names, but the model has {n_classes} outputs")
    data.check_labels(n_classes)
    return Original(source=source, data=data, run=run, outputs=reference, class_names=class_names)


def _export(original: Original, plan: ConversionPlan) -> Exported:
    """After this the model is an ONNX graph, cut where its trainable layers begin."""
    whole = export_onnx(original.source.model, original.source.example)
    names = tuple(name for name, _ in original.source.model.named_parameters())
    halves = split(whole, choose_trainable(whole, names, plan.trainable))
    return Exported(whole=whole, parameter_names=names, halves=halves, backbone=optimize(halves.backbone))


def _training_graph(original: Original, exported: Exported, plan: ConversionPlan) -> onnx.ModelProto:
    """After this the head has a training step, and stock onnxruntime took it once on real features."""
    halves = exported.halves
    try:
        graph = build_training_graph(halves.head, FEATURES, list(halves.parameters))
    except UnsupportedOperatorError as exc:
        raise ConversionError(f"{exc}{_largest_trainable(exported, plan)}") from exc
    features = onnx_program(exported.backbone, "the backbone")(original.data.x[:3])
    n = len(features)
    try:
        trainer = OnnxTrainer(graph.SerializeToString(), FEATURES, halves.parameters)
        trainer.step(features, np.zeros(n, np.int64), np.ones(n, np.float32), 1e-3)
    except (BundleError, LearningError) as exc:
        raise ConversionError(f"the head cannot be trained: {exc}") from exc
    except Exception as exc:  # onnxruntime's exceptions have no common base
        raise ConversionError(f"the training step of the head does not run: {reason(exc)}") from exc
    return graph


def _largest_trainable(exported: Exported, plan: ConversionPlan) -> str:
    """The largest smaller head that can be trained, as a sentence."""
    for count in range(int(plan.trainable.partition(":")[2]) - 1, 0, -1):
        smaller = f"last:{count}"
        try:
            halves = split(exported.whole, choose_trainable(exported.whole, exported.parameter_names, smaller))
            build_training_graph(halves.head, FEATURES, list(halves.parameters))
        except ConversionError:
            continue
        return f". The largest that works is --trainable {smaller}"
    return ""


def _quantize(original: Original, exported: Exported, plan: ConversionPlan) -> Int8 | None:
    """An int8 backbone with a head corrected for it, or None when there is nothing to be had honestly."""
    made = _int8_backbone(exported.backbone, original.data, plan)
    if made is None:
        return None
    backbone, how = made
    halves, calibration = exported.halves, original.data.calibration
    if halves.linear is None or calibration is None:
        return Int8(backbone=backbone, parameters=halves.parameters, error_left=1.0, how=how)
    x = calibration.x[:EVALUATION_SAMPLES]
    features = outputs(onnx_program(backbone, "the int8 backbone"), x)
    parameters, error_left = correct_for_quantization(
        halves.parameters, halves.linear, features, outputs(original.run, x)
    )
    return Int8(backbone=backbone, parameters=parameters, error_left=error_left, how=how)


def _int8_backbone(backbone: onnx.ModelProto, data: Data, plan: ConversionPlan) -> tuple[onnx.ModelProto, str] | None:
    if plan.quantize == "none":
        return None
    if int8_layers(backbone)[1] == 0:
        if plan.quantize == "int8":
            raise ConversionError("the backbone has no convolution or matrix product to quantize; use a smaller head")
        return None
    if data.calibration is not None:
        return quantize_with_data(backbone, data.calibration.x, plan.profile.quantization), "calibrated"
    quantized = quantize_without_data(backbone, plan.profile.quantization)
    if quantized is None:
        if plan.quantize == "int8":
            raise ConversionError("int8 convolutions need calibration data: give --calibrate DATA.npz with an array x")
        return None
    return quantized, "dynamic"


def _choose(original: Original, exported: Exported, int8: Int8 | None, plan: ConversionPlan) -> Chosen:
    """Measure every program; after this the chosen one is as near to the original as the plan asks.

    Raises:
        ConversionError: Not even the float graph is, or int8 was asked for and is not.
    """
    data, reference, halves = original.data, original.outputs, exported.halves

    def measured(name: str, run: Run, size_bytes: int) -> Measurement:
        return measure(name, run, size_bytes, data.x, data.y, reference)

    def bundled(name: str, backbone: onnx.ModelProto, parameters: Mapping[str, FloatArray]) -> Measurement:
        run = joined_program(onnx_program(backbone, "the backbone"), halves.head, parameters)
        return measured(name, run, backbone.ByteSize() + sum(array.nbytes for array in parameters.values()))

    whole = check_float(exported.whole, data, reference)
    eager = measured("PyTorch float", original.run, original.weights_bytes)
    rows: tuple[Measurement, ...] = (eager, measured("ONNX float", whole, exported.whole.ByteSize()))
    notes = [*original.source.notes]
    if data.calibration is None:
        notes.append(
            "no calibration data: measured on random inputs, and no statistics for devices to start learning from. "
            "Give --calibrate DATA.npz (x, and y if labelled) for a calibrated int8 backbone and a head "
            "that adapts faster"
        )
    floating = bundled("bundle, float", exported.backbone, halves.parameters)
    if int8 is not None:
        row = bundled(f"bundle, int8 ({int8.how})", int8.backbone, int8.parameters)
        fault = too_different(row, eager, data, plan.max_drop)
        if plan.quantize == "int8" and fault is not None:
            raise ConversionError(f"int8 is too far from the original: {fault}. Nothing was written")
        if fault is None and row.size_bytes >= floating.size_bytes:
            # Only for a network so small that its scales weigh more than its weights; no speed to be gained there.
            fault = f"is not smaller ({row.size_bytes} against {floating.size_bytes} bytes)"
        if fault is None or plan.quantize == "int8":
            return Chosen(
                backbone=int8.backbone,
                parameters=int8.parameters,
                scheme="int8",
                measurements=(*rows, floating, row),
                notes=(*notes, *_notes_on_int8(int8, row, floating)),
            )
        rows = (*rows, row)
        notes.append(f"the backbone stays float: int8 {fault}")
    if int8_layers(exported.backbone)[1] == 0:
        notes.append("no convolution or matrix product is frozen; nothing is quantized")
    elif int8 is None and plan.quantize == "auto":
        notes.append("the backbone stays float: int8 convolutions need calibration data")
    return Chosen(
        backbone=exported.backbone,
        parameters=halves.parameters,
        scheme="none",
        measurements=(*rows, floating),
        notes=tuple(notes),
    )


def _notes_on_int8(int8: Int8, row: Measurement, floating: Measurement) -> list[str]:
    in_int8, of_layers = int8_layers(int8.backbone)
    notes = [f"{in_int8} of {of_layers} convolutions and matrix products of the backbone run in int8"]
    if int8.error_left < 1.0:
        notes.append(f"head corrected for the int8 features: squared error of the logits x {int8.error_left:.2f}")
    latency, size = floating.latency_ms / row.latency_ms, floating.size_bytes / row.size_bytes
    notes.append(f"against the float bundle on this CPU: {latency:.2f} x the speed, 1/{size:.1f} of the size")
    return notes
