"""From verified parts to the members and the manifest of a bundle, and to the file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy

from converter.data import Data
from converter.export import INPUT, OUTPUT
from converter.head import stable_learning_rate, training_statistics
from converter.load import Source
from converter.measure import Measurement
from converter.plan import ConversionPlan
from converter.program import FloatArray, joined_program, onnx_program, outputs
from converter.quantize import int8_layers
from converter.split import FEATURES
from converter.verify import MIN_FLOAT_SQNR_DB, check_bundle
from edge import __version__
from edge.contract import manifest as m
from edge.contract import strictjson
from edge.contract.bundle import members_of, write_bundle
from edge.contract.errors import ConfigError
from edge.contract.manifest import HeadSpec, LinearHead, Manifest, ParameterSpec
from edge.contract.tensorspec import TensorSpec

GOLDEN_SAMPLES = 16
# How near a device must come to the golden outputs: its int8 sums are the same integers unless they saturate.
GOLDEN_SQNR_DB = {"int8": 25.0, "none": MIN_FLOAT_SQNR_DB}


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Parts:
    """What goes into a bundle, all of it verified.

    Attributes:
        source: The model as it was loaded.
        data: What was measured on.
        class_names: One name per output.
        backbone: Input to features, as shipped.
        scheme: ``int8`` or ``none``.
        head: Features and parameters to logits.
        training: The training step of the head.
        parameters: The head's parameters, as shipped.
        linear: Set when the head is one linear layer.
        torchscript: The whole float model.
        measurements: Of every program, the bundle's last.
        notes: For the report.
    """

    source: Source
    data: Data
    class_names: tuple[str, ...]
    backbone: onnx.ModelProto
    scheme: str
    head: onnx.ModelProto
    training: onnx.ModelProto
    parameters: Mapping[str, FloatArray]
    linear: LinearHead | None
    torchscript: bytes
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Packed:
    """A bundle in memory that a device would accept: `digest` is the one that it will have on disk."""

    manifest: Manifest
    blobs: Mapping[str, bytes]
    report: dict[str, Any]
    digest: str


def pack(parts: Parts, plan: ConversionPlan) -> Packed:
    """Build every member and the manifest, and open the result once as a device does.

    Raises:
        ConversionError: A device would refuse it.
    """
    backbone = onnx_program(parts.backbone, "the backbone")
    features = outputs(backbone, parts.data.x)
    joined = joined_program(backbone, parts.head, parts.parameters)
    golden = parts.data.x[:GOLDEN_SAMPLES]
    notes = list(parts.notes)
    blobs = {
        m.BACKBONE: parts.backbone.SerializeToString(deterministic=True),
        m.HEAD_INFER: parts.head.SerializeToString(deterministic=True),
        m.HEAD_TRAIN: parts.training.SerializeToString(deterministic=True),
        m.HEAD_PARAMETERS: _tensors(parts.parameters),
        m.GOLDEN: _tensors({"input": golden, "output": joined(golden)}),
        m.TORCHSCRIPT: parts.torchscript,
    }
    calibration = parts.data.calibration
    if parts.linear is not None and calibration is not None and calibration.y is not None:
        statistics = training_statistics(outputs(backbone, calibration.x), calibration.y, len(parts.class_names))
        blobs[m.STATISTICS] = _tensors(statistics)
        notes.append(f"statistics of {len(calibration.x)} labelled samples for devices to start learning from")
    quantization = _quantization(parts, plan)
    report = {
        "source": plan.source.name,
        "target": plan.profile.name,
        "data": parts.data.origin,
        "quantization": quantization,
        "trainable": list(parts.parameters),
        "measurements": [asdict(row) for row in parts.measurements],
        "notes": notes,
    }
    blobs[m.REPORT] = strictjson.dumps(report)
    manifest = Manifest(
        name=plan.output.stem,
        input=TensorSpec(name=INPUT, dtype=str(parts.data.x.dtype), shape=tuple(parts.data.x.shape[1:])),
        features=TensorSpec(name=FEATURES, dtype="float32", shape=tuple(features.shape[1:])),
        output=TensorSpec(name=OUTPUT, dtype="float32", shape=(len(parts.class_names),)),
        class_names=parts.class_names,
        preprocessing=parts.source.preprocessing,
        quantization=quantization,
        head=HeadSpec(
            parameters=tuple(ParameterSpec(name=name, shape=array.shape) for name, array in parts.parameters.items()),
            linear=parts.linear,
            learning_rate=stable_learning_rate(features),
            trainable=plan.trainable,
        ),
        golden_min_sqnr_db=GOLDEN_SQNR_DB[parts.scheme],
        source_digest=parts.source.digest,
        created_by=f"edgeloop {__version__}",
        members=members_of(blobs),
    )
    return Packed(manifest=manifest, blobs=blobs, report=report, digest=check_bundle(manifest, blobs))


def _quantization(parts: Parts, plan: ConversionPlan) -> dict[str, Any]:
    in_int8, of_layers = int8_layers(parts.backbone)
    profile = plan.profile.quantization
    return {
        "scheme": parts.scheme,
        "target": plan.profile.name,
        "activation_type": profile.activation_type,
        "weight_type": profile.weight_type,
        "reduce_range": profile.reduce_range,
        "int8_layers": in_int8,
        "layers": of_layers,
    }


def _tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    return bytes(safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def check_output(plan: ConversionPlan) -> None:
    """Raise ConfigError when the bundle could not be written where it is wanted: before the work, not after it."""
    output, folder = plan.output, plan.output.parent
    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder; give the name of a file, e.g. {output / 'model.edge'}")
    with contextlib.suppress(OSError):  # there is no source: loading it will say so
        if output.exists() and output.samefile(plan.source):
            raise ConfigError(f"--output {output} is the model itself; give another name")
    if not folder.is_dir():
        raise ConfigError(f"--output {output}: {folder} is not a folder")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--output {output}: the folder {folder} cannot be written")


def write(packed: Packed, plan: ConversionPlan) -> None:
    """Write the bundle whole or not at all.

    Raises:
        ConfigError: The disk is full or the folder cannot be written.
    """
    try:
        write_bundle(plan.output, packed.manifest, packed.blobs)
    except OSError as exc:
        raise ConfigError(f"{plan.output} cannot be written: {exc.strerror}") from exc
