"""Which layers hurt: the error of the outputs when only one layer is int8."""

from __future__ import annotations

from collections.abc import Callable

import onnx

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
    reference: Arrays,
    run: Callable[[onnx.ModelProto, str], Arrays | None],
) -> tuple[tuple[str, float], ...]:
    """SQNR in dB of the outputs, by the one layer that is int8, the worst first.

    Args:
        model: Float.
        observations: Of it.
        profile: See `quantize_static`.
        method: See `quantize_static`.
        reference: The float model's outputs on a few samples.
        run: What a graph, with a name for messages, gives on them; None where it does not run.
    """
    names = [layer.name for layer in quantizable_layers(model)]
    found = []
    for name in names:
        others = [other for other in names if other != name]
        quantized = quantize_static(model, observations, profile, method=method, exclude=others)
        outputs = run(quantized, f"the model with {name} in int8")
        floats = [key for key, array in reference.items() if array.dtype.kind == "f"]
        ratios = [-200.0] if outputs is None else [sqnr_db(reference[key], outputs[key]) for key in floats]
        found.append((name, min(ratios, default=200.0)))
    return tuple(sorted(found, key=lambda item: item[1]))
