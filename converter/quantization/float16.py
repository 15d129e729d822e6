"""Weights and arithmetic in 16-bit floats: half the size, and fast only where the processor has such arithmetic."""

from __future__ import annotations

import warnings

import onnx

from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert, with float32 inputs and outputs kept.

    Raises:
        ConversionError: The converter does not take the graph.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with warnings.catch_warnings(), foreign("the graph cannot be converted to float16", ConversionError):
        warnings.simplefilter("ignore")  # about weights below the smallest float16, which become the smallest
        found: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True)
        OnnxModel(found).topological_sort()  # it appends the casts of inputs behind the nodes that read them
    return found
