"""Static int8: quantize-dequantize pairs with ranges that were observed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from converter.graph.build import make_model, reads, renamed, used_initializers
from converter.graph.links import Links
from converter.graph.names import FreshNames, named
from converter.graph.nodes import inner_graphs
from converter.quantization.layers import Layer, quantizable_layers
from converter.quantization.observe import Observations
from converter.quantization.placement import Placement, placement
from converter.quantization.ranges import activation_range
from edge.contract.profile import QuantizationProfile

_LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}
# Without 8-bit dot products x86 adds two products of 8 bits in 16: 255 * 64 * 2 = 32640 fits, 255 * 127 * 2 does not.
_REDUCED = 64
_FULL = 127
_PULLED_OVER = {"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True, slots=True)
class _Scale:
    scale: float
    zero: int


def quantize_static(
    model: onnx.ModelProto,
    observations: Observations,
    profile: QuantizationProfile,
    *,
    method: str = "minmax",
    exclude: Collection[str] = (),
    bias_correction: bool = True,
) -> onnx.ModelProto:
    """Quantize the layers of a float model.

    Args:
        model: Float, optimized.
        observations: Of this model.
        profile: Types, per-channel weights, and whether weights keep to 7 bits.
        method: How ranges are chosen, see `activation_range`.
        exclude: Names of layers to leave in float.
        bias_correction: Add what rounding the weights takes from a layer's mean output, ``(W - W_q) E[x]``, to its bias
            (Nagel et al. 2019, arXiv 1906.04721, section 4.2, with measured means; padding is not considered).
    """
    return _Writer(named(model), observations, profile, method, frozenset(exclude), bias_correction).write()


def quantized_weight(
    weight: npt.NDArray[np.float32], axis: int | None, largest: int, least_scale: npt.NDArray[np.float64] | float = 0.0
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Symmetric int8 codes, and their scales: ``()``, or ``(n,)`` along `axis`.

    Args:
        weight: To be rounded.
        axis: Of the output channels; None for one scale.
        largest: Largest code, 64 or 127.
        least_scale: Scales are not smaller.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    reach = np.abs(weight).max(axis=None if axis is None else others).astype(np.float64)
    scale = np.maximum(np.maximum(reach / largest, 1e-20), least_scale).astype(np.float32)
    spread = scale if axis is None else scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    codes = np.clip(np.rint(weight / spread), -largest, largest).astype(np.int8)
    return codes, scale


class _Writer:
    def __init__(
        self,
        model: onnx.ModelProto,
        observations: Observations,
        profile: QuantizationProfile,
        method: str,
        exclude: frozenset[str],
        bias_correction: bool,
    ) -> None:
        self._model = model
        self._fresh = FreshNames(model.graph)
        self._observations = observations
        self._profile = profile
        self._method = method
        self._correct = bias_correction
        self._layers = {layer.name: layer for layer in quantizable_layers(model) if layer.name not in exclude}
        self._place: Placement = placement(model, self._layers)
        self._links = Links(model.graph)
        self._outputs = {info.name for info in model.graph.output}
        self._captured = {name for node in model.graph.node if any(inner_graphs(node)) for name in reads(node)}
        self._nodes: list[onnx.NodeProto] = []
        self._made: dict[str, onnx.TensorProto] = {}
        self._scales: dict[str, _Scale] = {}
        self._shields: dict[str, str] = {}

    def write(self) -> onnx.ModelProto:
        graph = self._model.graph
        names: dict[str, str] = {}  # what a value is called now
        for info in graph.input:
            if info.name in self._place.tensors:
                names[info.name] = self._pair(info.name, info.name, self._fresh(f"{info.name}.dequantized"))
        behind = {n.input[0]: n for n in graph.node if n.name in self._place.dropped}
        for node in graph.node:
            if node.name in self._place.dropped:
                continue
            copy = renamed(node, {name: names.get(name, name) for name in reads(node)})
            # `renamed` also renames outputs of the same name; there are none, as every value is made once.
            if node.name in self._place.layers:
                self._quantize_parameters(self._layers[node.name], node, copy)
            elif self._would_be_quantized(node) or self._would_abort(node):
                copy.input[0] = self._shielded(copy.input[0])
            for i, output in enumerate(node.output):
                final = behind[output].output[0] if output in behind else output
                if final not in self._place.tensors:
                    continue
                copy.output[i] = self._fresh(f"{final}.float")
                wanted = final if final in self._outputs else self._fresh(f"{final}.dequantized")
                self._append(copy)
                names[final] = self._pair(final, copy.output[i], wanted)
                break
            else:
                self._append(copy)
        return make_model(
            graph.name or "model",
            self._nodes,
            list(graph.input),
            list(graph.output),
            [*used_initializers(self._nodes, graph.initializer, graph.output), *self._made.values()],
        )

    def _would_be_quantized(self, node: onnx.NodeProto) -> bool:
        """Whether onnxruntime would quantize the weights of a layer that stays in float, unasked, in 8 bits.

        It does so where the input comes from 8 bits and the output, perhaps behind a Relu or Clip, goes into 8 bits.
        """
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or node.input[0] not in self._place.tensors:
            return False
        behind = [n.output[0] for n in self._links.readers.get(node.output[0], []) if n.op_type in ("Relu", "Clip")]
        return any(name in self._place.tensors for name in (node.output[0], *behind))

    def _would_abort(self, node: onnx.NodeProto) -> bool:
        """Whether onnxruntime would end the process.

        It pulls a DequantizeLinear over operators that only move data, to all that read what comes out, and does not
        know that bodies of If, Loop and Scan read without having it among their inputs (1.32; a failed assertion).
        """
        return node.op_type in _PULLED_OVER and node.output[0] in self._captured and self._was_8_bits(node.output[0])

    def _was_8_bits(self, tensor: str) -> bool:
        while tensor not in self._place.tensors:
            node = self._links.made_by.get(tensor)
            if node is None or node.op_type not in _PULLED_OVER:
                return False
            tensor = node.input[0]
        return True

    def _shielded(self, dequantized: str) -> str:
        """The same value behind an operator that no optimizer takes away."""
        if dequantized not in self._shields:
            lowest = self._constant("lowest", np.array(np.finfo(np.float32).min, np.float32))
            self._shields[dequantized] = self._fresh(f"{dequantized}.shielded")
            node = helper.make_node("Max", [dequantized, lowest], [self._shields[dequantized]])
            node.name = self._shields[dequantized]
            self._nodes.append(node)
        return self._shields[dequantized]

    def _append(self, node: onnx.NodeProto) -> None:
        if not self._nodes or self._nodes[-1] is not node:
            self._nodes.append(node)

    # Activations

    def _scale(self, tensor: str) -> _Scale:
        root = self._place.root(tensor)
        if root not in self._scales:
            low, high = activation_range(self._observations.histograms[root], self._method)
            least, most = _LIMITS[self._profile.activation_type]
            scale = float(np.float32(max((high - low) / (most - least), 1e-12)))
            self._scales[root] = _Scale(scale, int(np.clip(round(least - low / scale), least, most)))
        return self._scales[root]

    def _pair(self, tensor: str, source: str, target: str) -> str:
        """Append a quantize-dequantize pair and return the name of what comes out."""
        found = self._scale(tensor)
        root = self._place.root(tensor)
        scale = self._constant(f"{root}.scale", np.array(found.scale, np.float32))
        zero = self._constant(f"{root}.zero", np.array(found.zero, self._profile.activation_type))
        quantized = self._fresh(f"{tensor}.quantized")
        self._nodes.append(helper.make_node("QuantizeLinear", [source, scale, zero], [quantized], f"{tensor}.q"))
        self._nodes.append(helper.make_node("DequantizeLinear", [quantized, scale, zero], [target], f"{tensor}.dq"))
        return target

    def _constant(self, name: str, array: npt.NDArray[np.generic]) -> str:
        name = self._fresh(name)
        self._made.setdefault(name, numpy_helper.from_array(array, name))
        return name

    # Weights

    def _quantize_parameters(self, layer: Layer, node: onnx.NodeProto, copy: onnx.NodeProto) -> None:
        """Make a layer read its weight and bias through DequantizeLinear."""
        weight, channel = self._links.array(layer.weight), layer.out_axis
        bias = self._bias(layer)
        axis = channel if self._profile.per_channel else None
        step = self._scale(node.input[0]).scale
        # A bias becomes int32 with the scale of the products: it must not overflow where the weights are tiny.
        least = 0.0 if bias is None else np.abs(bias).astype(np.float64) / (step * 2**30)
        if axis is None and bias is not None:
            least = float(np.max(least))
        largest = _REDUCED if self._profile.reduce_range else _FULL
        codes, scale = quantized_weight(weight, axis, largest, least)
        name = node.name
        kinds: dict[str, Any] = {"axis": axis} if axis is not None else {}
        zeros = np.zeros(scale.shape, np.int8)
        if self._profile.weight_type == "uint8":
            codes, zeros = (codes.astype(np.int16) + 128).astype(np.uint8), np.full(scale.shape, 128, np.uint8)
        inputs = [
            self._constant(f"{name}.weight.codes", codes),
            self._constant(f"{name}.weight.scale", scale),
            self._constant(f"{name}.weight.zero", zeros),
        ]
        self._nodes.append(
            helper.make_node("DequantizeLinear", inputs, [self._fresh(f"{name}.weight")], f"{name}.weight.dq", **kinds)
        )
        copy.input[1] = self._fresh(f"{name}.weight")
        if bias is None:
            return
        spread = scale if axis is None else scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        if self._correct and node.input[0] in self._observations.means:
            lost = weight - (codes.astype(np.float32) - (128 if codes.dtype == np.uint8 else 0)) * spread
            bias = bias + self._mean_of(node, lost, channel)
        product = (step * scale).astype(np.float32)
        integers = np.clip(np.rint(bias / product), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        product = np.broadcast_to(product, integers.shape).copy() if axis is not None else product
        inputs = [
            self._constant(f"{name}.bias.codes", integers),
            self._constant(f"{name}.bias.scale", product),
            self._constant(f"{name}.bias.zero", np.zeros(product.shape, np.int32)),
        ]
        kinds = {"axis": 0} if axis is not None else {}
        self._nodes.append(
            helper.make_node("DequantizeLinear", inputs, [self._fresh(f"{name}.bias")], f"{name}.bias.dq", **kinds)
        )
        del copy.input[2:]
        copy.input.append(self._fresh(f"{name}.bias"))

    def _bias(self, layer: Layer) -> npt.NDArray[np.float32] | None:
        """The bias of a layer; a convolution or Gemm without one gets zeros, which a correction may fill."""
        if layer.bias is not None:
            return self._links.array(layer.bias)
        if layer.op_type == "MatMul" or not self._correct:
            return None
        return np.zeros(self._links.constants[layer.weight].dims[layer.out_axis], np.float32)

    def _mean_of(self, node: onnx.NodeProto, lost: npt.NDArray[np.float32], channel: int) -> npt.NDArray[np.float32]:
        """What the lost part of the weights gives on the mean input: ``(n_out,)``."""
        mean = self._observations.means[node.input[0]]
        if node.op_type != "Conv":
            product = lost @ mean if channel == 0 else mean @ lost
            return product.astype(np.float32)
        taps = lost.reshape(*lost.shape[:2], -1).sum(axis=2)  # (n_out, n_in / groups)
        groups = len(mean) // taps.shape[1]
        by_group = mean.reshape(groups, 1, -1)
        result: npt.NDArray[np.float32] = (taps.reshape(groups, -1, taps.shape[1]) * by_group).sum(axis=2)
        return result.reshape(-1).astype(np.float32)
