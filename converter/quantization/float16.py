"""Weights and arithmetic in 16-bit floats: half the size, and fast only where the processor has such arithmetic."""

from __future__ import annotations

import warnings
from copy import deepcopy

import onnx

from converter.graph.names import FreshNames
from edge.contract.errors import ConversionError
from edge.contract.foreign import foreign


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert, with float32 inputs and outputs kept.

    Raises:
        ConversionError: The converter does not take the graph.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    copy = deepcopy(model)
    outputs, fixed = _without_fixed_outputs(copy.graph)
    with warnings.catch_warnings(), foreign("the graph cannot be converted to float16", ConversionError):
        warnings.simplefilter("ignore")  # about weights below the smallest float16, which become the smallest
        found: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True)
        OnnxModel(found).topological_sort()  # it appends the casts of inputs behind the nodes that read them
    del found.graph.output[:]
    found.graph.output.extend(outputs)  # with their denotations; their types are kept
    found.graph.initializer.extend(fixed)
    return found


def _without_fixed_outputs(graph: onnx.GraphProto) -> tuple[list[onnx.ValueInfoProto], list[onnx.TensorProto]]:
    """Take outputs that no node makes off a graph, which the converter does not know; nodes read copies of them.

    Returns:
        All outputs as they were, and the initializers that are outputs.
    """
    outputs = list(graph.output)
    made = {name for node in graph.node for name in node.output}
    names = {info.name for info in outputs}
    fixed = [tensor for tensor in graph.initializer if tensor.name in names]
    fresh = FreshNames(graph)
    del graph.output[:]
    graph.output.extend(info for info in outputs if info.name in made)
    kept = [tensor for tensor in graph.initializer if tensor.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for tensor in fixed:
        copy = deepcopy(tensor)
        copy.name = fresh(f"{tensor.name}.half")
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == tensor.name:
                    node.input[i] = copy.name
        if any(copy.name in node.input for node in graph.node):
            graph.initializer.append(copy)
    return outputs, fixed
