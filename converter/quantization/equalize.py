"""Cross-layer equalization: channels of consecutive layers take scales that suit one step size for all of them.

Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction (arXiv 1906.04721), section
4.1: with ``r1`` the largest weight of a channel's producer and ``r2`` of its consumer, ``s = sqrt(r1 / r2)``,
``W1 / s``, ``b1 / s``, ``W2 s``. The function stays the same, because what stands between commutes with a positive
factor.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from converter.graph.links import Links
from converter.graph.nodes import attribute
from converter.quantization.layers import Layer, quantizable_layers

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
    found = deepcopy(model)
    links, layers = Links(found.graph), {layer.name: layer for layer in quantizable_layers(found)}
    pairs = _pairs(found, links, layers)
    if len(pairs) < _LEAST_SHARE * len(layers):
        return found
    touched = {name for pair in pairs for layer in pair for name in (layer.weight, layer.bias) if name}
    arrays = {name: links.array(name).astype(np.float64) for name in touched}
    for _ in range(_ROUNDS):
        change = max((_balance(arrays, first, second) for first, second in pairs), default=0.0)
        if change < _SETTLED:
            break
    for name, array in arrays.items():
        links.constants[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
    return found


def _pairs(model: onnx.ModelProto, links: Links, layers: dict[str, Layer]) -> list[tuple[Layer, Layer]]:
    pairs = []
    for node in model.graph.node:
        if node.name not in layers or not _is_plain(node, links):
            continue
        first = layers[node.name]
        # Nobody else may see what changes.
        if any(name and links.only_reader(name) is None for name in (first.weight, first.bias)):
            continue
        value = node.output[0]
        while (behind := links.only_reader(value)) is not None:
            if behind.op_type in _COMMUTES:
                value = behind.output[0]
                continue
            second = layers.get(behind.name)
            if second is not None and behind.input[0] == value and links.only_reader(second.weight) is not None:
                same_kind = (first.op_type == "Conv") == (second.op_type == "Conv")
                if same_kind and _is_plain(behind, links):
                    pairs.append((first, second))
            break
    return pairs


def _is_plain(node: onnx.NodeProto, links: Links) -> bool:
    """Whether it is a product, or a convolution that is dense or depthwise."""
    groups, dims = attribute(node, "group", 1), links.constants[node.input[1]].dims
    return bool(groups == 1 or (dims[1] == 1 and dims[0] == groups))


def _balance(arrays: dict[str, npt.NDArray[np.float64]], first: Layer, second: Layer) -> float:
    """Equalize one pair in place; how far the factors were from 1."""
    one, two = arrays[first.weight], arrays[second.weight]
    out_axis, in_axis = first.out_axis, _in_axis(second, two)
    reach1 = np.abs(one).max(axis=tuple(i for i in range(one.ndim) if i != out_axis))
    reach2 = np.abs(two).max(axis=tuple(i for i in range(two.ndim) if i != in_axis))
    if len(reach1) != len(reach2):
        return 0.0
    usable = (reach1 > 0) & (reach2 > 0)
    factor = np.where(usable, np.sqrt(np.where(usable, reach1, 1.0) / np.where(usable, reach2, 1.0)), 1.0)
    factor = np.clip(factor, 1e-4, 1e4)
    arrays[first.weight] = one / factor.reshape([-1 if i == out_axis else 1 for i in range(one.ndim)])
    if first.bias is not None:
        arrays[first.bias] = arrays[first.bias] / factor
    arrays[second.weight] = two * factor.reshape([-1 if i == in_axis else 1 for i in range(two.ndim)])
    return float(np.abs(np.log(factor)).max(initial=0.0))


def _in_axis(layer: Layer, weight: npt.NDArray[np.float64]) -> int:
    if layer.op_type == "Conv" and weight.shape[1] == 1:  # depthwise: a channel has its own filter
        return 0
    return 1 - layer.out_axis
