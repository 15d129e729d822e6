"""Dynamic int8: weights in 8 bits, activations quantized as they come. For products and LSTMs, never for convolutions.

Dynamic int8 convolutions were measured at 0.08 to 0.28 times the speed of float.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from converter.graph.build import make_model, used_initializers
from converter.graph.links import Links
from converter.graph.names import FreshNames, named
from converter.graph.nodes import attribute, stated
from converter.quantization.layers import Layer, quantizable_layers
from converter.quantization.static import quantized_weight
from edge.contract.profile import QuantizationProfile


def quantize_dynamic(
    model: onnx.ModelProto, profile: QuantizationProfile, *, exclude: Collection[str] = ()
) -> onnx.ModelProto:
    """Quantize products with constant weights, and LSTMs.

    ``y = s_x s_w (x_q - z_x) W_q + b`` with ``s_x``, ``z_x`` of each run: DynamicQuantizeLinear, MatMulInteger, Cast
    and Mul, which onnxruntime runs as one kernel. One scale for each output column.

    Args:
        model: Float, optimized.
        profile: Whether weights keep to 7 bits, and whether each column gets its own scale.
        exclude: Names of layers to leave in float.
    """
    return _Writer(named(model), profile, frozenset(exclude)).write()


class _Writer:
    def __init__(self, model: onnx.ModelProto, profile: QuantizationProfile, exclude: frozenset[str]) -> None:
        self._model = model
        self._fresh = FreshNames(model.graph)
        self._largest = 64 if profile.reduce_range else 127
        self._per_channel = profile.per_channel
        self._layers = {x.name: x for x in quantizable_layers(model) if x.op_type != "Conv" and x.name not in exclude}
        self._exclude = exclude
        self._links = Links(model.graph)
        self._nodes: list[onnx.NodeProto] = []
        self._made: dict[str, onnx.TensorProto] = {}
        self._quantized: dict[str, tuple[str, str, str]] = {}

    def write(self) -> onnx.ModelProto:
        graph = self._model.graph
        for node in graph.node:
            if node.name in self._layers:
                self._product(node, self._layers[node.name])
            elif node.op_type == "LSTM" and node.name not in self._exclude and self._is_plain(node):
                self._lstm(node)
            else:
                self._nodes.append(node)
        return make_model(
            graph.name or "model",
            self._nodes,
            list(graph.input),
            list(graph.output),
            [*used_initializers(self._nodes, graph.initializer, graph.output), *self._made.values()],
        )

    def _constant(self, name: str, array: npt.NDArray[np.generic]) -> str:
        name = self._fresh(name)
        self._made.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _input(self, tensor: str) -> tuple[str, str, str]:
        """Codes, scale and zero point of an activation; made once for all that read it."""
        if tensor not in self._quantized:
            codes, scale, zero = (self._fresh(f"{tensor}.{what}") for what in ("codes", "scale", "zero"))
            names = (codes, scale, zero)
            self._nodes.append(helper.make_node("DynamicQuantizeLinear", [tensor], list(names), f"{tensor}.quantize"))
            self._quantized[tensor] = names
        return self._quantized[tensor]

    def _product(self, node: onnx.NodeProto, layer: Layer) -> None:
        weight = self._links.array(layer.weight).T if layer.out_axis == 0 else self._links.array(layer.weight)
        codes, scale = quantized_weight(weight, 1 if self._per_channel else None, self._largest)
        name, output = node.name, node.output[0]
        column = self._constant(f"{name}.weight.codes", codes)
        steps = self._constant(f"{name}.weight.scale", scale)
        zeros = self._constant(f"{name}.weight.zero", np.zeros(scale.shape, np.int8))
        x, x_scale, x_zero = self._input(node.input[0])
        total, as_float, step = (self._fresh(f"{name}.{what}") for what in ("sum", "float", "step"))
        last = output if layer.bias is None else self._fresh(f"{name}.product")
        self._nodes += [
            helper.make_node("MatMulInteger", [x, column, x_zero, zeros], [total], f"{name}.integer"),
            helper.make_node("Cast", [total], [as_float], f"{name}.cast", to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [x_scale, steps], [step], f"{name}.steps"),
            helper.make_node("Mul", [as_float, step], [last], f"{name}.scaled"),
        ]
        if layer.bias is not None:
            self._nodes.append(helper.make_node("Add", [last, layer.bias], [output], f"{name}.biased"))

    def _is_plain(self, node: onnx.NodeProto) -> bool:
        """Whether the LSTM has constant weights and none of the options that the quantized kernel lacks."""
        return all(name in self._links.constants for name in node.input[1:3]) and not attribute(node, "layout")

    def _lstm(self, node: onnx.NodeProto) -> None:
        """com.microsoft.DynamicQuantizeLSTM: weights ``(directions, in, 4 hidden)``, one scale for each direction."""
        inputs = [*node.input, *[""] * (8 - len(node.input))]
        extra = []
        for kind, name in (("W", node.input[1]), ("R", node.input[2])):
            weight = self._links.array(name).transpose(0, 2, 1)
            codes, scale = quantized_weight(weight, 0, self._largest)
            inputs[1 if kind == "W" else 2] = self._constant(f"{node.name}.{kind}.codes", codes)
            extra.append(self._constant(f"{node.name}.{kind}.scale", scale))
            extra.append(self._constant(f"{node.name}.{kind}.zero", np.zeros(scale.shape, np.int8)))
        kept = stated(node)
        kept.pop("layout", None)
        self._nodes.append(
            helper.make_node(
                "DynamicQuantizeLSTM",
                [*inputs, *extra],
                list(node.output),
                node.name,
                domain="com.microsoft",
                **kept,
            )
        )
