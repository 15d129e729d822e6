"""Cross-layer equalization: channels of consecutive layers take scales that suit one step size for all of them.

Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction (arXiv 1906.04721), section
4.1: with ``r1`` the largest weight of a channel's producer and ``r2`` of its consumer, ``s = sqrt(r1 / r2)``,
``W1 / s``, ``b1 / s``, ``W2 s``. The function stays the same, because what stands between commutes with a positive
factor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from converter.quantization.layers import consumers, quantizable_layers

_ROUNDS = 10
_SETTLED = 1e-3
_LEAST_SHARE = 0.1
# relu(s x) = s relu(x) for s > 0. Not so Clip: the limit of a ReLU6 would have to move with each channel.
_COMMUTES = {"Relu", "LeakyRelu"}


def equalize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Equalize pairs of a convolution or product and the only layer behind it.

    Returns:
        A model of the same function; an equal one when there are too few such pairs to matter, as between the blocks
        of a MobileNet, whose ReLU6 does not commute.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    pairs = _pairs(found)
    if len(pairs) < _LEAST_SHARE * len(quantizable_layers(found)):
        return found
    tensors = {tensor.name: tensor for tensor in found.graph.initializer}
    touched = {name for pair in pairs for node in pair for name in node.input[1:3] if name}
    arrays = {name: numpy_helper.to_array(tensors[name]).astype(np.float64) for name in touched}
    for _ in range(_ROUNDS):
        change = max((_balance(arrays, first, second) for first, second in pairs), default=0.0)
        if change < _SETTLED:
            break
    for name, array in arrays.items():
        tensors[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
    return found


def _pairs(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    layers = {layer.name for layer in quantizable_layers(model)}
    readers = consumers(model)
    outputs = {info.name for info in model.graph.output}
    pairs = []

    def own(parameter: str) -> bool:
        """Whether nobody else sees it change."""
        return len(readers.get(parameter, [])) == 1 and parameter not in outputs

    for node in model.graph.node:
        if node.name not in layers or not all(own(name) for name in node.input[1:3] if name):
            continue
        value = node.output[0]
        while value not in outputs and len(readers.get(value, [])) == 1:
            behind = readers[value][0]
            if behind.op_type in _COMMUTES:
                value = behind.output[0]
                continue
            same_kind = (node.op_type == "Conv") == (behind.op_type == "Conv")
            if behind.name in layers and behind.input[0] == value and same_kind and own(behind.input[1]):
                pairs.append((node, behind))
            break
    return [pair for pair in pairs if _groups(pair[0], model) is not None and _groups(pair[1], model) is not None]


def _groups(node: onnx.NodeProto, model: onnx.ModelProto) -> int | None:
    """1, or the number of channels of a depthwise convolution; None for groups between."""
    groups = next((int(item.i) for item in node.attribute if item.name == "group"), 1)
    dims = next(tensor.dims for tensor in model.graph.initializer if tensor.name == node.input[1])
    return groups if groups == 1 or (dims[1] == 1 and dims[0] == groups) else None


def _balance(arrays: dict[str, npt.NDArray[np.float64]], first: onnx.NodeProto, second: onnx.NodeProto) -> float:
    """Equalize one pair in place; how far the factors were from 1."""
    one, two = arrays[first.input[1]], arrays[second.input[1]]
    out_axis, in_axis = _out_axis(first, one), _in_axis(second, two)
    reach1 = np.abs(one).max(axis=tuple(i for i in range(one.ndim) if i != out_axis))
    reach2 = np.abs(two).max(axis=tuple(i for i in range(two.ndim) if i != in_axis))
    if len(reach1) != len(reach2):
        return 0.0
    usable = (reach1 > 0) & (reach2 > 0)
    factor = np.where(usable, np.sqrt(np.where(usable, reach1, 1.0) / np.where(usable, reach2, 1.0)), 1.0)
    factor = np.clip(factor, 1e-4, 1e4)
    arrays[first.input[1]] = one / factor.reshape([-1 if i == out_axis else 1 for i in range(one.ndim)])
    if len(first.input) > 2 and first.input[2]:
        arrays[first.input[2]] = arrays[first.input[2]] / factor
    arrays[second.input[1]] = two * factor.reshape([-1 if i == in_axis else 1 for i in range(two.ndim)])
    return float(np.abs(np.log(factor)).max(initial=0.0))


def _is_transposed(node: onnx.NodeProto) -> bool:
    return any(item.name == "transB" and helper.get_attribute_value(item) for item in node.attribute)


def _out_axis(node: onnx.NodeProto, weight: npt.NDArray[np.float64]) -> int:
    return 0 if node.op_type == "Conv" or _is_transposed(node) else weight.ndim - 1


def _in_axis(node: onnx.NodeProto, weight: npt.NDArray[np.float64]) -> int:
    if node.op_type == "Conv":
        return 0 if weight.shape[1] == 1 else 1  # depthwise: a channel has its own filter
    return 1 if _is_transposed(node) else 0
