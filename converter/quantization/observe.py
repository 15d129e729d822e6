"""One streaming pass over calibration data: ranges, histograms and channel means of the activations."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from converter.graph.build import inferred_types
from converter.program.programs import onnx_program
from converter.program.tensors import Arrays
from converter.quantization.layers import quantizable_layers
from converter.quantization.placement import placement
from converter.quantization.ranges import Histogram


@dataclass(frozen=True, eq=False, slots=True)
class Observations:
    """What was seen.

    Attributes:
        histograms: By tensor.
        means: By input of a layer with weights, the mean per channel ``(n_channels,)``: axis 1 of a convolution's
            input, the last axis of a product's.
    """

    histograms: dict[str, Histogram]
    means: dict[str, npt.NDArray[np.float64]]


def observe(model: onnx.ModelProto, batches: Iterable[Arrays]) -> Observations:
    """Run a float model on samples and note what its activations are like.

    Memory does not grow with the number of batches: each goes through the model once, and into histograms of fixed
    size.

    Args:
        model: Float, optimized.
        batches: Real inputs by name.
    """
    layers = {layer.name: layer for layer in quantizable_layers(model)}
    wanted = placement(model, layers.keys()).tensors
    nodes = {node.input[0]: node.op_type for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}
    types = inferred_types(model)
    watched = deepcopy(model)
    present = {info.name for info in [*model.graph.input, *model.graph.output]}
    watched.graph.output.extend(
        types.get(name, onnx.ValueInfoProto(name=name)) for name in sorted(wanted) if name not in present
    )
    run = onnx_program(watched, "the graph that is calibrated")
    histograms = {name: Histogram() for name in sorted(wanted)}
    sums: dict[str, npt.NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for batch in batches:
        values = {**batch, **run(batch)}
        for name, histogram in histograms.items():
            array = values[name]
            histogram.add(array)
            if name in nodes and array.ndim > 1:
                channel = 1 if nodes[name] == "Conv" else array.ndim - 1
                axes = tuple(i for i in range(array.ndim) if i != channel)
                sums[name] = sums.get(name, 0.0) + array.sum(axis=axes, dtype=np.float64)
                counts[name] = counts.get(name, 0) + array.size // array.shape[channel]
    return Observations(histograms, {name: total / counts[name] for name, total in sums.items()})
