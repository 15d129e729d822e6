"""Which layers of a graph can be quantized, and which really run in 8 bits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime as ort

from converter.graph.names import name_nodes, named
from converter.graph.nodes import linear
from converter.program.scratch import scratch_folder
from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign

_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_PRODUCTS = {"Gemm", "MatMul"}
_RECURRENT = {"LSTM", "GRU", "RNN"}
# Names under which onnxruntime's optimizer leaves a layer that really runs on few bits, and in float.
_LOW_BIT = {"QLinearConv", "ConvInteger", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
_LOW_BIT |= {"MatMulInteger", "DynamicQuantizeLSTM", "MatMulNBits"}
_FLOAT = _CONVOLUTIONS | _PRODUCTS | _RECURRENT | {"FusedConv", "FusedGemm", "FusedMatMul", "NhwcFusedConv"}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that can be quantized.

    Attributes:
        name: Of its node.
        op_type: ``Conv``, ``Gemm`` or ``MatMul``.
        weight: Name of its constant weight.
        bias: Name of its bias, or None.
        out_axis: Of the weight, along which the outputs of the layer lie.
    """

    name: str
    op_type: str
    weight: str
    bias: str | None
    out_axis: int


def quantizable_layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """Convolutions and products with constant float weights, in graph order.

    Products of two activations are left alone: they are a small part of the work, and their errors add up twice.
    Transposed convolutions have no int8 kernel in onnxruntime.
    """
    floats = {t.name: len(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    layers = []
    for node in named(model).graph.node:
        product = linear(node)
        if node.op_type == "Conv" and floats.get(node.input[1], 0) >= 3:
            bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
            layers.append(Layer(node.name, node.op_type, node.input[1], bias, 0))
        elif (
            product is not None
            and floats.get(product.weight) == 2
            and (product.bias is None or floats.get(product.bias) == 1)
        ):
            axis = 0 if product.transposed else 1
            layers.append(Layer(node.name, node.op_type, product.weight, product.bias, axis))
    return tuple(layers)


def has_convolutions(model: onnx.ModelProto) -> bool:
    """Whether it has a convolution, transposed or not."""
    return any(node.op_type in _CONVOLUTIONS for node in model.graph.node)


def has_recurrent(model: onnx.ModelProto) -> bool:
    """Whether it has a recurrent layer."""
    return any(node.op_type in _RECURRENT for node in model.graph.node)


def running_in_int8(model: onnx.ModelProto) -> tuple[int, int]:
    """How many convolutions, products and recurrent layers really run on few bits, and of how many.

    Counted after onnxruntime's own optimizer: this number, not the file's operators, predicts the speed.
    """
    optimized = _optimized(model, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    counts = Counter(node.op_type for node in optimized.graph.node)
    low = sum(counts[name] for name in _LOW_BIT)
    return low, low + sum(counts[name] for name in _FLOAT)


def optimize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and BatchNorm into convolutions (onnxruntime's basic level: standard operators only).

    Every node of the result has a name of its own.
    """
    found = _optimized(model, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    name_nodes(found.graph)  # what onnxruntime puts together need not have one
    return found


def _optimized(model: onnx.ModelProto, level: Any) -> onnx.ModelProto:
    with scratch_folder() as folder:
        target = folder / "optimized.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(target)
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        # As on Arm: elsewhere onnxruntime does not take int8 activations for what they are.
        options.add_session_config_entry("session.qdqisint8allowed", "1")
        with foreign("the graph does not load in onnxruntime", ConversionError):
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            found = onnx.load(target)
    used = {node.domain for node in found.graph.node} | {""}
    kept = [entry for entry in found.opset_import if entry.domain in used or entry.domain == "ai.onnx"]
    del found.opset_import[:]
    found.opset_import.extend(kept)
    return found
