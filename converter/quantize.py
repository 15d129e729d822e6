"""Int8 for the backbone, by onnxruntime's quantizer with the settings that suit the target's CPU.

Static (calibrated) quantization needs data. Without data only layers whose activations are quantized as they come
(dynamic) can be done, which is right for linear layers and ruinous for convolutions (0.08 to 0.28 times the float
speed), so a convolutional backbone without data stays float.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from converter.reason import reason
from converter.scratch import scratch_folder
from edge.contract.errors import ConversionError
from edge.contract.profile import QuantizationProfile

_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_PRODUCTS = {"Gemm", "MatMul"}
# Names under which onnxruntime's optimizer leaves a product that really runs in int8, and in float.
_INT8_NODES = {"QLinearConv", "ConvInteger", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
_INT8_NODES |= {"MatMulInteger"}
_FLOAT_NODES = _CONVOLUTIONS | _PRODUCTS | {"FusedConv", "FusedGemm", "FusedMatMul"}
CALIBRATION_SAMPLES = 256


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # the base class has no types
    """Feeds samples one by one, so that memory does not grow with their number."""

    def __init__(self, name: str, samples: npt.NDArray[Any]) -> None:
        self._feeds: Iterator[dict[str, npt.NDArray[Any]]] = iter(
            {name: samples[i : i + 1]} for i in range(len(samples))
        )

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        return next(self._feeds, None)


def layer_counts(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes of each operator."""
    return Counter(node.op_type for node in model.graph.node)


def optimize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and BatchNorm into convolutions (onnxruntime's basic level: standard operators only)."""
    return _optimized(model, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)


def _optimized(model: onnx.ModelProto, level: Any) -> onnx.ModelProto:
    with scratch_folder() as folder:
        target = folder / "optimized.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 3
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # onnxruntime's exceptions have no common base
            raise ConversionError(f"the exported backbone does not load in onnxruntime: {exc}") from exc
        return onnx.load(target)


def quantize_with_data(
    model: onnx.ModelProto, samples: npt.NDArray[Any], profile: QuantizationProfile
) -> onnx.ModelProto:
    """Static int8 with quantize-dequantize pairs, calibrated by the smallest and largest values seen.

    Args:
        model: An optimized float backbone.
        samples: ``(n, ...)`` real inputs.
        profile: Types, per-channel weights, and whether weights keep to 7 bits: without 8-bit dot products the CPU adds
            pairs of products in a saturating int16, and full 8-bit weights then give wrong sums.
    """
    with scratch_folder() as folder, _quiet():
        source, target = folder / "float.onnx", folder / "int8.onnx"
        onnx.save(model, source)
        try:
            quantize_static(
                source,
                target,
                _Reader(model.graph.input[0].name, samples[:CALIBRATION_SAMPLES]),
                quant_format=QuantFormat.QDQ,
                activation_type=_TYPES[profile.activation_type],
                weight_type=_TYPES[profile.weight_type],
                per_channel=profile.per_channel,
                reduce_range=profile.reduce_range,
            )
        except Exception as exc:  # the quantizer raises what its passes and onnxruntime raise
            raise ConversionError(f"the backbone cannot be quantized: {reason(exc)}; use --quantize none") from exc
        return onnx.load(target)


def quantize_without_data(model: onnx.ModelProto, profile: QuantizationProfile) -> onnx.ModelProto | None:
    """Dynamic int8 for a backbone of linear layers; None when it has convolutions or nothing to quantize."""
    counts = layer_counts(model)
    if any(counts[name] for name in _CONVOLUTIONS) or not any(counts[name] for name in _PRODUCTS):
        return None
    with scratch_folder() as folder, _quiet():
        source, target = folder / "float.onnx", folder / "int8.onnx"
        onnx.save(model, source)
        quantize_dynamic(
            source, target, weight_type=_TYPES["int8"], per_channel=False, reduce_range=profile.reduce_range
        )
        return onnx.load(target)


def int8_layers(model: onnx.ModelProto) -> tuple[int, int]:
    """How many of the convolutions and products really run in int8 after onnxruntime's own optimizer, and of how many.

    This number, not the file's operators, predicts the speed.
    """
    counts = layer_counts(_optimized(model, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED))
    in_int8 = sum(counts[name] for name in _INT8_NODES)
    return in_int8, in_int8 + sum(counts[name] for name in _FLOAT_NODES)


class _quiet:  # noqa: N801  # used like a function
    """Keep the quantizer's advice on pre-processing, which we have done, out of the user's screen."""

    def __enter__(self) -> None:
        self._level = logging.root.level
        logging.root.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.root.setLevel(self._level)


def random_inputs(shape: tuple[int, ...], dtype: npt.DTypeLike, count: int) -> npt.NDArray[Any]:
    """Normal random inputs: enough to compare two programs, worthless for measuring accuracy."""
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(dtype)
