"""Padding channels with zeros, to numbers for which the runtime has fast int8 kernels; the function stays the same.

onnxruntime's int8 convolutions read the image in place only where the channels come in whole blocks, and copy it patch
by patch where they do not (``MlasConvSymPackWSize``: depthwise ones need a multiple of 16 channels, others 16 outputs
at least and multiples of 4 on AVX-512, of 8 on AVX2). A channel of zero weights costs little; the copying costs twice
the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from converter.graph.build import reads
from converter.graph.links import Links
from converter.graph.nodes import attribute

_BLOCK = 16
# Of fewer channels most of a block would be zeros.
_LEAST = 8
# What does the same to every channel, and nothing across channels.
_ONE_INPUT = {"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Softplus", "Identity"}
_ONE_INPUT |= {"MaxPool", "AveragePool", "GlobalAveragePool"}
_TWO_INPUTS = {"Add", "Sub", "Mul"}


def align_channels(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which what lies between convolutions has a multiple of `_BLOCK` channels.

    Args:
        model: Float, optimized.
    """
    found = deepcopy(model)
    _Aligner(found).align()
    return found


class _Aligner:
    """Groups the values that must have equally many channels, and pads each group as a whole or not at all."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        links = Links(model.graph)
        self._weights = links.constants
        self._uses = {name: len(nodes) for name, nodes in links.readers.items()}
        self._leaders: dict[str, str] = {}
        self._channels: dict[str, int] = {}  # of a leader
        self._fixed: set[str] = set()  # leaders that must stay as they are

    def align(self) -> None:
        self._fix(info.name for info in [*self._graph.input, *self._graph.output])
        for node in self._graph.node:
            self._group(node)
        sizes = {
            leader: -(-count // _BLOCK) * _BLOCK
            for leader, count in self._channels.items()
            if leader not in self._fixed and count >= _LEAST
        }
        for node in self._graph.node:
            if node.op_type == "Conv":
                self._pad(node, sizes)

    def _group(self, node: onnx.NodeProto) -> None:
        values = [name for name in [*reads(node), *node.output] if name and name not in self._weights]
        if node.op_type == "Conv" and self._is_plain(node):
            weight = self._weights[node.input[1]]
            if attribute(node, "group") == 1:
                self._state(node.output[0], weight.dims[0])
            else:
                self._join(node.input[0], node.output[0])
        elif (node.op_type in _ONE_INPUT and len(node.output) == 1) or (
            node.op_type in _TWO_INPUTS and not set(node.input) & set(self._weights)
        ):
            for name in values[1:]:
                self._join(values[0], name)
        else:
            self._fix(values)

    def _is_plain(self, node: onnx.NodeProto) -> bool:
        """Whether it is dense or depthwise, and its weights are constants that nobody else reads."""
        if any(name and (name not in self._weights or self._uses[name] > 1) for name in node.input[1:]):
            return False
        if node.input[0] in self._weights:
            return False
        dims = self._weights[node.input[1]].dims
        return attribute(node, "group") in (1, dims[0]) and (attribute(node, "group") == 1 or dims[1] == 1)

    def _pad(self, node: onnx.NodeProto, sizes: dict[str, int]) -> None:
        outputs, inputs = sizes.get(self._leader(node.output[0])), sizes.get(self._leader(node.input[0]))
        if outputs is None and inputs is None:
            return
        weight = numpy_helper.to_array(self._weights[node.input[1]])
        groups = attribute(node, "group")
        padded = [outputs or weight.shape[0], weight.shape[1] if groups > 1 else inputs or weight.shape[1]]
        self._replace(node.input[1], weight, (*padded, *weight.shape[2:]))
        if len(node.input) > 2 and node.input[2]:
            bias = numpy_helper.to_array(self._weights[node.input[2]])
            self._replace(node.input[2], bias, (padded[0],))
        for item in node.attribute:
            if item.name == "group" and groups > 1:
                item.i = padded[0]

    def _replace(self, name: str, array: npt.NDArray[np.float32], shape: tuple[int, ...]) -> None:
        larger = np.zeros(shape, array.dtype)
        larger[tuple(slice(0, size) for size in array.shape)] = array
        self._weights[name].CopyFrom(numpy_helper.from_array(larger, name))

    # Groups

    def _leader(self, name: str) -> str:
        while name in self._leaders:
            name = self._leaders[name]
        return name

    def _join(self, one: str, other: str) -> None:
        first, second = self._leader(one), self._leader(other)
        if first == second:
            return
        self._leaders[second] = first
        known = {self._channels[name] for name in (first, second) if name in self._channels}
        if len(known) == 1:
            self._channels[first] = known.pop()
        if len(known) > 1 or second in self._fixed:  # one broadcasts
            self._fixed.add(first)

    def _state(self, name: str, channels: int) -> None:
        leader = self._leader(name)
        if self._channels.setdefault(leader, channels) != channels:
            self._fixed.add(leader)

    def _fix(self, names: Iterable[str]) -> None:
        self._fixed.update(self._leader(name) for name in names)
