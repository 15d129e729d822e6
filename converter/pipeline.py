"""The conversion, step by step: load, export, split, differentiate, quantize, verify, pack.

Nothing is written before everything is verified.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy
import torch

from converter.checkpoint import trace
from converter.export import INPUT, OUTPUT, export_onnx
from converter.gradient.differentiate import UnsupportedOperatorError
from converter.gradient.training_graph import build_training_graph
from converter.head import correct_for_quantization, stable_learning_rate, training_statistics
from converter.load import Source, load_source
from converter.measure import Measurement, Run, measure, outputs, torch_program
from converter.plan import ConversionPlan, Samples, read_samples
from converter.quantize import int8_layers, optimize, quantize_with_data, quantize_without_data, random_inputs
from converter.split import FEATURES, SplitModel, choose_trainable, split
from edge import __version__
from edge.contract import manifest as m
from edge.contract import strictjson
from edge.contract.bundle import Bundle, members_of, write_bundle
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.manifest import HeadSpec, Manifest, ParameterSpec
from edge.contract.tensorspec import TensorSpec
from edge.inference.onnx_session import OnnxSession, open_onnx
from edge.inference.onnx_trainer import OnnxTrainer
from edge.inference.session import sqnr_db

Stage = Callable[[str], None]

EVALUATION_SAMPLES = 2000
RANDOM_SAMPLES = 256
GOLDEN_SAMPLES = 16
# Float programs compute the same sums in another order: 60 dB is a relative error of 0.001.
MIN_FLOAT_SQNR_DB = 60.0
# Int8 on random inputs, where accuracy means nothing.
MIN_INT8_SQNR_DB = 20.0
# How near a device must come to the golden outputs: its int8 sums are the same integers unless they saturate.
GOLDEN_SQNR_DB = {"int8": 25.0, "none": MIN_FLOAT_SQNR_DB}


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Data:
    """What a conversion measures on.

    Attributes:
        calibration: Real data, or None.
        x: Samples to measure on.
        y: Their labels, or None.
        origin: What they are, in words.
        real: False when they are random.
    """

    calibration: Samples | None
    x: npt.NDArray[Any]
    y: npt.NDArray[np.int64] | None
    origin: str
    real: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What came out: the report, as stored in the bundle."""

    report: dict[str, Any]
    measurements: tuple[Measurement, ...]
    bundle_digest: str


def convert(plan: ConversionPlan, stage: Stage = lambda _: None) -> Conversion:
    """Convert a model and write its bundle.

    Args:
        plan: What to do.
        stage: Told the name of each stage as it begins.

    Raises:
        ConfigError: An option or a file named by one is wrong.
        ConversionError: The model cannot be converted, or a result is not near enough to the original.
    """
    torch.set_num_threads(1)  # latencies are compared on one thread, and small layers are slower on more
    stage("loading the model")
    source = load_source(plan)
    data = _data(plan, source)
    original = torch_program(source.model)
    reference = outputs(original, data.x)
    if not np.isfinite(reference).all():
        raise ConversionError("the model gives outputs that are not finite on the evaluation data")
    class_names = _class_names(plan, source, data, reference.shape[1])

    stage("exporting to ONNX")
    exported = export_onnx(source.model, source.example)
    names = [name for name, _ in source.model.named_parameters()]
    halves = split(exported, choose_trainable(exported, names, plan.trainable))

    stage("differentiating the head")
    train_graph = _training_graph(exported, names, halves, plan)

    stage("quantizing the backbone")
    backbone = optimize(halves.backbone)
    float_features = _program(backbone)
    candidate = _quantize(backbone, data, plan)
    notes = list(source.notes)

    stage("verifying")
    whole = _check_float(exported, data, reference)
    size_float = len(exported.SerializeToString())
    rows = [
        measure("PyTorch float", original, _weights_bytes(source), data.x, data.y, reference),
        measure("ONNX float", whole, size_float, data.x, data.y, reference),
    ]
    head_run = open_onnx(halves.head.SerializeToString(), m.HEAD_INFER)
    parameters, scheme = halves.parameters, "none"
    chosen = backbone
    if candidate is not None:
        quantized, how = candidate
        corrected, gain = halves.parameters, 1.0
        if halves.linear is not None and data.calibration is not None:
            subset = data.calibration.x[:EVALUATION_SAMPLES]
            features = outputs(_program(quantized), subset)
            corrected, gain = correct_for_quantization(
                halves.parameters, halves.linear, features, outputs(original, subset)
            )
        size = len(quantized.SerializeToString()) + sum(array.nbytes for array in corrected.values())
        row = measure(
            f"bundle, int8 ({how})", _joined(_program(quantized), head_run, corrected), size, data.x, data.y, reference
        )
        fault = _too_different(row, rows[0], data, plan.max_drop)
        if fault is None:
            chosen, parameters, scheme = quantized, corrected, "int8"
            rows.append(row)
            if gain < 1.0:
                notes.append(f"head corrected for the int8 features: squared error of the logits x {gain:.2f}")
            if row.latency_ms > rows[1].latency_ms:
                notes.append(
                    f"int8 is slower than float on this CPU ({row.latency_ms:.3f} against {rows[1].latency_ms:.3f} ms); "
                    f"it is {rows[1].size_bytes / row.size_bytes:.1f} times smaller"
                )
        elif plan.quantize == "int8":
            raise ConversionError(f"int8 is too far from the original: {fault}. Nothing was written")
        else:
            notes.append(f"the backbone stays float: int8 {fault}")
    if scheme == "none":
        size = len(chosen.SerializeToString()) + sum(array.nbytes for array in parameters.values())
        rows.append(
            measure("bundle, float", _joined(float_features, head_run, parameters), size, data.x, data.y, reference)
        )
    if data.calibration is None:
        notes.append(
            "no calibration data: measured on random inputs, and no statistics for devices to start learning from. "
            "Give --calibrate DATA.npz (x, and y if labelled) for a calibrated int8 backbone and a head that adapts faster"
        )
    notes += _notes_on_backbone(chosen, scheme)
    torchscript = _torchscript(source, data, reference)

    stage("writing the bundle")
    features = outputs(_program(chosen), data.x)
    in_int8, of_layers = int8_layers(chosen)
    quantization = {
        "scheme": scheme,
        "target": plan.profile.name,
        "activation_type": plan.profile.quantization.activation_type,
        "weight_type": plan.profile.quantization.weight_type,
        "reduce_range": plan.profile.quantization.reduce_range,
        "int8_layers": in_int8,
        "layers": of_layers,
    }
    golden_x = data.x[:GOLDEN_SAMPLES]
    joined = _joined(_program(chosen), head_run, parameters)
    blobs = {
        m.BACKBONE: chosen.SerializeToString(deterministic=True),
        m.HEAD_INFER: halves.head.SerializeToString(deterministic=True),
        m.HEAD_TRAIN: train_graph.SerializeToString(deterministic=True),
        m.HEAD_PARAMETERS: _tensors(parameters),
        m.GOLDEN: _tensors({"input": golden_x, "output": joined(golden_x)}),
        m.TORCHSCRIPT: torchscript,
    }
    if halves.linear is not None and data.calibration is not None and data.calibration.y is not None:
        learned_from = data.calibration
        calibrated = outputs(_program(chosen), learned_from.x)
        blobs[m.STATISTICS] = _tensors(training_statistics(calibrated, learned_from.y, len(class_names)))
        notes.append(f"statistics of {len(learned_from.x)} labelled samples for devices to start learning from")
    report = {
        "source": plan.source.name,
        "target": plan.profile.name,
        "data": data.origin,
        "quantization": quantization,
        "trainable": list(parameters),
        "measurements": [asdict(row) for row in rows],
        "notes": notes,
    }
    blobs[m.REPORT] = strictjson.dumps(report)
    manifest = Manifest(
        name=plan.output.stem,
        input=TensorSpec(name=INPUT, dtype=str(data.x.dtype), shape=tuple(data.x.shape[1:])),
        features=TensorSpec(name=FEATURES, dtype="float32", shape=tuple(features.shape[1:])),
        output=TensorSpec(name=OUTPUT, dtype="float32", shape=(len(class_names),)),
        class_names=class_names,
        preprocessing=source.preprocessing,
        quantization=quantization,
        head=HeadSpec(
            parameters=tuple(ParameterSpec(name=name, shape=array.shape) for name, array in parameters.items()),
            linear=halves.linear,
            learning_rate=stable_learning_rate(features),
            trainable=plan.trainable,
        ),
        golden_min_sqnr_db=GOLDEN_SQNR_DB[scheme],
        source_digest=source.digest,
        created_by=f"edgeloop {__version__}",
        members=members_of(blobs),
    )
    try:
        write_bundle(plan.output, manifest, blobs)
    except OSError as exc:
        raise ConfigError(f"{plan.output} cannot be written: {exc.strerror}") from exc
    written = Bundle.open(plan.output)
    OnnxSession(written)  # as a device opens it: digests and golden outputs
    return Conversion(report=report, measurements=tuple(rows), bundle_digest=written.digest)


def _data(plan: ConversionPlan, source: Source) -> Data:
    """Real data where there is some, else random inputs, fitted to the model's input."""
    dtype = source.example.numpy().dtype
    shape = tuple(source.example.shape[1:])

    def fitted(samples: Samples, what: str) -> Samples:
        if samples.x.shape[1:] != shape:
            raise ConfigError(f"{what}: samples of shape {samples.x.shape[1:]}, the model takes {shape}")
        x = samples.x.astype(dtype)
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise ConfigError(f"{what}: samples with values that are not finite")
        return Samples(x, samples.y)

    calibration = source.samples
    if plan.calibration is not None:
        calibration = read_samples(plan.calibration, "--calibrate")
    if calibration is not None:
        calibration = fitted(calibration, "calibration data")
    measured, origin = calibration, "the calibration data"
    if plan.evaluation is not None:
        measured, origin = fitted(read_samples(plan.evaluation, "--evaluate"), "--evaluate"), "the --evaluate data"
    if measured is None:
        x = random_inputs(shape, dtype, RANDOM_SAMPLES)
        return Data(calibration=None, x=x, y=None, origin=f"{RANDOM_SAMPLES} random inputs", real=False)
    x, y = measured.x[:EVALUATION_SAMPLES], None if measured.y is None else measured.y[:EVALUATION_SAMPLES]
    return Data(calibration=calibration, x=x, y=y, origin=f"{len(x)} samples of {origin}", real=True)


def _class_names(plan: ConversionPlan, source: Source, data: Data, n_classes: int) -> tuple[str, ...]:
    names = plan.class_names or source.class_names or tuple(str(i) for i in range(n_classes))
    if len(names) != n_classes:
        raise ConfigError(f"{len(names)} class names, but the model has {n_classes} outputs")
    for labels in (data.y, None if data.calibration is None else data.calibration.y):
        if labels is not None and not (labels.min() >= 0 and labels.max() < n_classes):
            raise ConfigError(f"labels from {labels.min()} to {labels.max()}, but the model has {n_classes} outputs")
    return names


def _training_graph(
    exported: onnx.ModelProto, names: list[str], halves: SplitModel, plan: ConversionPlan
) -> onnx.ModelProto:
    """The training graph, tried once on stock onnxruntime."""
    try:
        graph = build_training_graph(halves.head, FEATURES, list(halves.parameters))
    except UnsupportedOperatorError as exc:
        raise ConversionError(f"{exc}{_largest_trainable(exported, names, plan)}") from exc
    trainer = OnnxTrainer(graph.SerializeToString(), FEATURES, halves.parameters)
    shape = [axis.dim_value for axis in halves.head.graph.input[0].type.tensor_type.shape.dim[1:]]
    trainer.step(np.zeros((3, *shape), np.float32), np.zeros(3, np.int64), np.ones(3, np.float32), 1e-3)
    return graph


def _largest_trainable(exported: onnx.ModelProto, names: list[str], plan: ConversionPlan) -> str:
    """The largest smaller head that can be trained, as a sentence."""
    for count in range(int(plan.trainable.partition(":")[2]) - 1, 0, -1):
        smaller = f"last:{count}"
        try:
            halves = split(exported, choose_trainable(exported, names, smaller))
            build_training_graph(halves.head, FEATURES, list(halves.parameters))
        except ConversionError:
            continue
        return f". The largest that works is --trainable {smaller}"
    return ""


def _weights_bytes(source: Source) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in source.model.state_dict().values())


def _program(model: onnx.ModelProto) -> Run:
    """A one-input graph as a function of arrays, on one thread."""
    session = open_onnx(model.SerializeToString(), "a converted graph")
    name = session.get_inputs()[0].name

    def run(batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = session.run(None, {name: batch})[0]
        return found

    return run


def _joined(backbone: Run, head: Any, parameters: dict[str, npt.NDArray[np.float32]]) -> Run:
    """Backbone and head together, as a device runs them."""

    def run(batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = head.run(None, {FEATURES: backbone(batch), **parameters})[0]
        return found

    return run


def _quantize(backbone: onnx.ModelProto, data: Data, plan: ConversionPlan) -> tuple[onnx.ModelProto, str] | None:
    """An int8 backbone and how it was made, or None when there is nothing to be had honestly."""
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


def _check_float(exported: onnx.ModelProto, data: Data, reference: npt.NDArray[np.float32]) -> Run:
    """The whole float graph, compared with torch, at more than one batch size."""
    run = _program(exported)
    try:
        found = outputs(run, data.x)
        single = np.concatenate([run(data.x[i : i + 1]) for i in range(min(4, len(data.x)))])
    except Exception as exc:  # onnxruntime's exceptions have no common base
        reason = str(exc).strip().splitlines()[0][:300]
        raise ConversionError(f"the exported graph does not run at every batch size: {reason}") from exc
    for what, ratio in (("", sqnr_db(reference, found)), (" one by one", sqnr_db(reference[: len(single)], single))):
        if ratio < MIN_FLOAT_SQNR_DB:
            raise ConversionError(
                f"the exported graph gives other outputs than torch{what}: {ratio:.1f} dB, at least "
                f"{MIN_FLOAT_SQNR_DB:.0f} dB expected. The model may have branches that tracing cannot follow"
            )
    return run


def _too_different(row: Measurement, original: Measurement, data: Data, max_drop: float) -> str | None:
    """Why an int8 program may not be shipped; None when it may."""
    if not data.real:
        if row.sqnr_db < MIN_INT8_SQNR_DB:
            return f"reaches {row.sqnr_db:.1f} dB on random inputs, at least {MIN_INT8_SQNR_DB:.0f} dB expected"
        return None
    if row.accuracy is not None and original.accuracy is not None:
        drop, what = 100 * (original.accuracy - row.accuracy), "loses {:.2f} points of accuracy"
    else:
        drop, what = 100 * (1 - row.agreement), "disagrees on {:.2f} % of the samples"
    if drop > max_drop + 1e-9:
        return f"{what.format(drop)} on {data.origin}, at most {max_drop} allowed (--max-drop)"
    return None


def _notes_on_backbone(backbone: onnx.ModelProto, scheme: str) -> list[str]:
    in_int8, of_layers = int8_layers(backbone)
    if of_layers == 0:
        return ["the whole model is the trainable head; nothing is quantized"]
    if scheme == "none":
        return []
    return [f"{in_int8} of {of_layers} convolutions and matrix products of the backbone run in int8"]


def _torchscript(source: Source, data: Data, reference: npt.NDArray[np.float32]) -> bytes:
    """The whole float model as TorchScript, loaded again and compared."""
    script = trace(source.model, torch.from_numpy(data.x[:2]))
    archive = io.BytesIO()
    torch.jit.save(script, archive)  # type: ignore[no-untyped-call]
    loaded = torch.jit.load(io.BytesIO(archive.getvalue()))  # type: ignore[no-untyped-call]
    ratio = sqnr_db(reference, outputs(torch_program(loaded), data.x))
    if ratio < MIN_FLOAT_SQNR_DB:
        raise ConversionError(f"the TorchScript gives other outputs than the model: {ratio:.1f} dB")
    return archive.getvalue()


def _tensors(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    return bytes(safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
