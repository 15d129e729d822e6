"""int8 weights of -128, which overflow the sums of Arm's kernels, and where a model multiplies 8-bit integers at all.

onnxruntime's kernels for int8 times int8 add two products in an int16 before they widen: matrix products and
convolutions on cores without the dot product instruction (``QgemmS8S8KernelNeon.S``: Cortex-A53, A72), depthwise
convolutions on every Arm core. ``2 * 128 * 127 = 32512`` fits, ``2 * 128 * 128 = 32768`` does not, and wraps around. So
-128 is the only weight that can overflow, whatever the activations are; our own weights never have it, files of other
programs do. With -127 instead the weight is off by one step of 128, which is what mending costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from converter.graph.links import Links
from converter.graph.nodes import attribute

_INT8 = onnx.TensorProto.INT8
# Where these operators take their weight.
_WEIGHT = {"QLinearConv": 3, "QLinearMatMul": 3, "ConvInteger": 1, "MatMulInteger": 1, "QGemm": 3}
_WEIGHT |= {"MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "QLinearConvTranspose": 3}
_SEVERAL = {"DynamicQuantizeLSTM": (1, 2)}
_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_PASSES = {"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten"}


def multiplies_int8(model: onnx.ModelProto) -> bool:
    """Whether a product takes 8-bit integers, or what was dequantized from them."""
    return any(True for _ in _weights(model.graph))


def layers_with_least_weight(model: onnx.ModelProto) -> list[str]:
    """Names of the layers that have an int8 weight of -128, or will when the runtime has folded their constants."""
    constants = Links(model.graph).constants
    found = (layer for layer, name, pair in _weights(model.graph) if _has_least(constants, name, pair))
    return list(dict.fromkeys(found))


def without_least_weight(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy in which int8 weights of -128 are -127, and the names of the layers that had some.

    The model itself where no layer has.
    """
    layers = layers_with_least_weight(model)
    if not layers:
        return model, layers
    copy = deepcopy(model)
    constants = Links(copy.graph).constants
    for _, name, pair in _weights(copy.graph):
        if _has_least(constants, name, pair):
            array, tensor = numpy_helper.to_array(constants[name]), constants[name]
            if pair is None:
                mended = np.maximum(array, np.int8(-127))
            else:  # QuantizeLinear of a float constant
                scale, zero = _spread(constants, pair, array)
                mended = np.maximum(array, ((-127 - zero.astype(np.float64)) * scale).astype(array.dtype))
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(mended), tensor.name))
    return copy, layers


def _weights(graph: onnx.GraphProto) -> Iterator[tuple[str, str, onnx.NodeProto | None]]:
    """Layer, constant and, where that is float, the QuantizeLinear that takes it, for each int8 weight."""
    links = Links(graph)
    constants, makers = links.constants, links.made_by
    for node in graph.node:
        layer = node.name or node.output[0]
        if node.op_type in _PRODUCTS:
            for operand in node.input[:2]:
                maker = _behind(operand, makers)
                if maker is None or maker.op_type != "DequantizeLinear":
                    continue
                stored = maker.input[0]
                quantize = _behind(stored, makers)
                if stored in constants and constants[stored].data_type == _INT8:
                    yield layer, stored, None
                elif quantize is not None and _is_int8(quantize, constants):
                    yield layer, quantize.input[0], quantize
        else:
            places = _SEVERAL.get(node.op_type) or ((_WEIGHT[node.op_type],) if node.op_type in _WEIGHT else ())
            for place in places:
                name = node.input[place] if place < len(node.input) else ""
                if name in constants and constants[name].data_type == _INT8:
                    yield layer, name, None


def _behind(name: str, makers: dict[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """What makes a value, but for changes of its shape."""
    maker = makers.get(name)
    while maker is not None and maker.op_type in _PASSES:
        maker = makers.get(maker.input[0])
    return maker


def _is_int8(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Whether a node quantizes a constant to int8; without a zero point it gives uint8, or what an attribute says."""
    if node.op_type != "QuantizeLinear" or node.input[0] not in constants:
        return False
    if len(node.input) > 2 and node.input[2] in constants:
        return bool(constants[node.input[2]].data_type == _INT8)
    return bool(attribute(node, "output_dtype") == _INT8)


def _spread(
    constants: dict[str, onnx.TensorProto], quantize: onnx.NodeProto, array: npt.NDArray[np.generic]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Scale and zero point of a QuantizeLinear, so that they broadcast with what it takes."""
    scale = numpy_helper.to_array(constants[quantize.input[1]]).astype(np.float64)
    named = len(quantize.input) > 2 and quantize.input[2] in constants
    zero = numpy_helper.to_array(constants[quantize.input[2]]).astype(np.int64) if named else np.zeros(1, np.int64)
    axis = attribute(quantize, "axis") % max(1, array.ndim)
    if scale.size > 1:
        shape = [-1 if i == axis else 1 for i in range(array.ndim)]
        return scale.reshape(shape), zero.reshape(shape if zero.size > 1 else [1] * array.ndim)
    return scale.reshape(-1)[:1], zero.reshape(-1)[:1]


def _has_least(constants: dict[str, onnx.TensorProto], name: str, quantize: onnx.NodeProto | None) -> bool:
    array = numpy_helper.to_array(constants[name])
    if quantize is None:
        return bool((array == -128).any())
    if quantize.input[1] not in constants:
        return False
    scale, zero = _spread(constants, quantize, array)
    return bool((np.rint(array / scale) + zero < -127).any())
