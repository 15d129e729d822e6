"""Where quantize-dequantize pairs go, so that onnxruntime turns the layers and what lies between them into int8.

* The input of every quantized layer is quantized, and the output of every convolution (there is no int8 convolution
  with a float output). A product keeps a float output unless a quantized layer reads it.
* Operators that only move data pass 8-bit integers on, with one scale on both sides.
* Additions and the like are done in int8 between tensors that are quantized anyway: where what comes out is, too, or
  where nothing but them could follow, as at the end of a residual network.
* Relu and Clip behind a layer are dropped where its output is quantized: the range of the integers does the same, and
  left there they would keep the layer in float (seen: 13 of 52 convolutions in int8 instead of 52).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from converter.graph.build import inferred_types
from converter.graph.links import Links

_MOVES = {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "DepthToSpace", "SpaceToDepth"}
_MOVES |= {"Identity"}
_COMPUTES = {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"}
_LAYERS = {"Conv", "Gemm", "MatMul"}
_GOES_ON = {"Add", "Concat", "AveragePool"}


@dataclass(frozen=True, slots=True)
class Placement:
    """See the module.

    Attributes:
        layers: Names of the layers to quantize.
        tensors: Activations to quantize.
        dropped: Names of Relu and Clip nodes that the range of their output replaces.
        roots: For a tensor that takes over another one's scale, that one.
    """

    layers: frozenset[str]
    tensors: frozenset[str]
    dropped: frozenset[str]
    roots: dict[str, str]

    def root(self, tensor: str) -> str:
        """The tensor whose range decides."""
        while tensor in self.roots:
            tensor = self.roots[tensor]
        return tensor


def placement(model: onnx.ModelProto, layers: Collection[str]) -> Placement:
    """Decide what is quantized.

    Args:
        model: Float; its nodes have names.
        layers: Names of the nodes to quantize, out of `quantizable_layers`.
    """
    return _Placer(model, frozenset(layers)).place()


class _Placer:
    def __init__(self, model: onnx.ModelProto, layers: frozenset[str]) -> None:
        self._nodes = model.graph.node
        self._layers = layers
        self._links = Links(model.graph)
        self._made_by = self._links.made_by
        types = inferred_types(model)
        self._floats = {n for n, i in types.items() if i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
        # By node: the Relu or Clip behind it that could be dropped.
        self._behind = {self._made_by[node.input[0]].output[0]: node for node in self._nodes if self._droppable(node)}
        self._tensors: set[str] = set()

    def place(self) -> Placement:
        for node in self._nodes:
            if node.name in self._layers:
                self._tensors.add(node.input[0])
                if node.op_type == "Conv":
                    self._tensors.add(self._effective(node.output[0]))
        before = -1
        while before != len(self._tensors):
            before = len(self._tensors)
            for node in reversed(self._nodes):
                if self._effective(node.output[0]) in self._tensors if node.output else False:
                    self._reach_up(node)
                elif node.op_type in _GOES_ON and all(name in self._tensors for name in node.input):
                    self._tensors.add(self._effective(node.output[0]))
        dropped = {
            node.name for node in self._behind.values() if node.output[0] in self._tensors and self._is_int8(node)
        }
        roots = {
            node.output[0]: node.input[0]
            for node in self._nodes
            if node.op_type in _MOVES and node.output[0] in self._tensors and node.input[0] in self._tensors
        }
        return Placement(self._layers, frozenset(self._tensors), frozenset(dropped), roots)

    def _is_int8(self, activation: onnx.NodeProto) -> bool:
        """Whether what stands before a Relu or Clip is a kernel that rounds its output to 8 bits."""
        node = self._made_by[activation.input[0]]
        if node.op_type in _LAYERS:
            return node.name in self._layers
        return all(name in self._tensors for name in node.input)

    def _effective(self, tensor: str) -> str:
        """The tensor behind a Relu or Clip that could be dropped."""
        behind = self._behind.get(tensor)
        return tensor if behind is None else behind.output[0]

    def _reach_up(self, node: onnx.NodeProto) -> None:
        """The output is quantized: quantize the inputs, too, where the operator then runs on integers."""
        if node.op_type in _MOVES and node.input[0] in self._floats and node.output[0] in self._tensors:
            self._tensors.add(node.input[0])
        elif node.op_type in _COMPUTES and all(self._could_be(name) for name in node.input):
            self._tensors.update(node.input)

    def _could_be(self, tensor: str) -> bool:
        if tensor in self._tensors:
            return True
        node = self._made_by.get(tensor)
        if node is None or tensor not in self._floats:
            return False
        if node.op_type in ("Relu", "Clip"):
            before = node.input[0]
            if before in self._behind and self._behind[before] is node:
                return self._could_be_made(self._made_by[before])
        return self._could_be_made(node)

    def _could_be_made(self, node: onnx.NodeProto) -> bool:
        if node.name in self._layers:
            return True
        if node.op_type in _MOVES:
            return self._could_be(node.input[0])
        return node.op_type in _COMPUTES and all(self._could_be(name) for name in node.input)

    def _droppable(self, node: onnx.NodeProto) -> bool:
        made_by = self._made_by.get(node.input[0]) if node.input else None
        if made_by is None or node.op_type not in ("Relu", "Clip"):
            return False
        if made_by.op_type not in ("Add", *_LAYERS) or self._links.only_reader(node.input[0]) is None:
            return False
        return node.op_type == "Relu" or self._holds_zero(node)

    def _holds_zero(self, node: onnx.NodeProto) -> bool:
        """Whether the limits of a Clip are constants around 0."""
        limits = []
        for i, default in ((1, -np.inf), (2, np.inf)):
            name = node.input[i] if len(node.input) > i else ""
            if name and name not in self._links.constants:
                return False
            limits.append(float(numpy_helper.to_array(self._links.constants[name])) if name else default)
        return limits[0] <= 0.0 <= limits[1]
