"""Which layers hurt: the error of the outputs when only one layer is int8."""

from __future__ import annotations

import onnx

from converter.program.programs import onnx_program
from converter.program.tensors import Arrays
from converter.quantization.layers import quantizable_layers
from converter.quantization.observe import Observations
from converter.quantization.static import quantize_static
from edge.contract.profile import QuantizationProfile
from edge.inference.session import sqnr_db


def layer_sensitivity(
    model: onnx.ModelProto,
    observations: Observations,
    profile: QuantizationProfile,
    method: str,
    inputs: Arrays,
    reference: Arrays,
) -> tuple[tuple[str, float], ...]:
    """SQNR in dB of the outputs, by the one layer that is int8, the worst first.

    Args:
        model: Float.
        observations: Of it.
        profile: See `quantize_static`.
        method: See `quantize_static`.
        inputs: A few samples.
        reference: The float model's outputs on them.
    """
    names = [layer.name for layer in quantizable_layers(model)]
    found = []
    for name in names:
        others = [other for other in names if other != name]
        quantized = quantize_static(model, observations, profile, method=method, exclude=others)
        outputs = onnx_program(quantized, f"the model with {name} in int8")(inputs)
        ratios = [sqnr_db(reference[key], outputs[key]) for key in reference if reference[key].dtype.kind == "f"]
        found.append((name, min(ratios, default=200.0)))
    return tuple(sorted(found, key=lambda item: item[1]))
