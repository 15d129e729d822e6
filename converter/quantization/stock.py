"""onnxruntime's own static recipe: quantize-dequantize pairs around every operator that it knows.

`converter.quantization.static` quantizes the layers and what lies between them. The stock recipe also takes products of
two activations, transposed convolutions, Resize, Split, Pad, Gather, Where and Softmax, which is at times faster:
a U-Net with transposed convolutions was measured at 1.15 times the speed, transformers at 0.7 times. So it is tried.

Its other recipes are not: S8S8 and U8U8 were slower on all of 16 networks on AVX2 (1.0 to 8 times), operators instead
of pairs (``QuantFormat.QOperator``) never faster by more than noise.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import onnx

from converter.graph.names import named
from converter.graph.order import sort_nodes
from converter.program.scratch import scratch_folder
from converter.program.tensors import Arrays
from converter.quantization.layers import quantizable_layers
from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign
from edge.contract.profile import QuantizationProfile

# What it quantizes and `converter.quantization.placement` leaves in float.
_ITS_OWN = {"ConvTranspose", "Resize", "Split", "Pad", "Gather", "GatherElements", "Where", "Softmax", "TopK", "CumSum"}
_ITS_OWN |= {"LayerNormalization", "InstanceNormalization", "BatchNormalization", "Relu", "Clip"}
_PRODUCTS = {"Gemm", "MatMul"}


def is_another(model: onnx.ModelProto, profile: QuantizationProfile) -> bool:
    """Whether the stock recipe takes an operator that ours leaves in float, and may take all that it does.

    Relu and Clip behind layers and sums go into their ranges in both. Two int8 activations must not be multiplied: both
    may be -128, with which Arm's sums overflow.
    """
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    layers = {layer.name for layer in quantizable_layers(model)}
    if any(node.op_type in _PRODUCTS and node.name not in layers for node in named(model).graph.node):
        return profile.activation_type != "int8"
    return any(
        node.op_type in _ITS_OWN
        and not (node.op_type in ("Relu", "Clip") and made_by.get(node.input[0]) in ("Conv", "Add", *_PRODUCTS))
        for node in model.graph.node
    )


def quantize_stock(model: onnx.ModelProto, batches: Iterable[Arrays], profile: QuantizationProfile) -> onnx.ModelProto:
    """Quantize with ``onnxruntime.quantization.quantize_static``, in the types of the profile.

    Args:
        model: Float, optimized.
        batches: Real inputs by name, of which it takes smallest and largest values.
        profile: Types, per-channel weights, and whether weights keep to 7 bits.

    Raises:
        ConversionError: onnxruntime cannot do it.
    """
    from onnxruntime import quantization as q  # a tenth of a second, which only some conversions need

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]  # it has no types
        """One batch after the other."""

        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> Arrays | None:
            """The next one, None after the last."""
            return next(self._batches, None)

    types = {"uint8": q.QuantType.QUInt8, "int8": q.QuantType.QInt8}
    with scratch_folder() as folder, _silenced(), foreign("onnxruntime's own recipe fails", ConversionError):
        target = folder / "stock.onnx"
        q.quantize_static(
            named(model),  # it writes into what it gets
            target,
            Reader(),
            activation_type=types[profile.activation_type],
            weight_type=types[profile.weight_type],
            per_channel=profile.per_channel,
            reduce_range=profile.reduce_range,
        )
        found = onnx.load(target)
        sort_nodes(found.graph)  # what a branch reads may stand behind it
        onnx.checker.check_model(found)
        return found


@contextmanager
def _silenced() -> Iterator[None]:
    """It recommends steps on the root logger that were taken before, and numpy warns of masks with infinities."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(before)
