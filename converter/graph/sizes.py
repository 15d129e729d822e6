"""Computing beforehand what follows from sizes that are fixed.

An exporter that keeps the batch axis free writes every size down as a computation on the shape of a tensor, the fixed
ones, too: a small transformer spends a third of its operators on that. Where the sizes are known, what follows from
them becomes a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from converter.graph.build import infer_shapes, reads, upstream
from converter.graph.nodes import attribute

Known = npt.NDArray[Any]
_LARGEST = 64
"""Elements of a tensor that may hold sizes."""


def fold_sizes(model: onnx.ModelProto) -> None:
    """Replace what follows from fixed sizes by constants, in place; the function stays the same."""
    graph = model.graph
    if any(attribute(node, "ceil_mode") for node in graph.node):
        return  # onnx infers some of these sizes wrong: a last window that begins behind the image is left out
    before = -1
    while before != len(graph.node):  # what was folded lets more sizes be inferred
        before = len(graph.node)
        _fold_once(model)


def _fold_once(model: onnx.ModelProto) -> None:
    graph = model.graph
    shapes = infer_shapes(model)
    known: dict[str, Known] = {}
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 and np.prod(tensor.dims, dtype=np.int64) <= _LARGEST:
            known[tensor.name] = numpy_helper.to_array(tensor).astype(object)
    made: set[str] = set()
    for node in graph.node:
        value = _shape(node, shapes) if node.op_type == "Shape" else _computed(node, known)
        if value is not None:
            known[node.output[0]] = value
            made.add(node.output[0])
    whole = {name: known[name].astype(np.int64) for name in made if all(size is not None for size in known[name].flat)}
    for node in graph.node:
        if node.op_type == "Reshape" and (shape := _with_rest(known.get(node.input[1]))) is not None:
            node.input[1] = f"{node.output[0]}/shape"
            whole[node.input[1]] = shape
    outputs = {info.name for info in graph.output}
    nodes = [node for node in graph.node if node.output[0] not in whole or node.output[0] in outputs]
    read = {name for node in nodes for name in reads(node)}
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in whole.items() if name in read)
    del graph.node[:]
    graph.node.extend(upstream(nodes, outputs))


def _with_rest(sizes: Known | None) -> Known | None:
    """A shape of which one size is not known, as Reshape takes it: -1 is what is left."""
    if (
        sizes is None
        or sum(size is None for size in sizes) != 1
        or any(size is not None and size < 1 for size in sizes)
    ):
        return None
    return np.array([-1 if size is None else size for size in sizes], np.int64)


def _shape(node: onnx.NodeProto, shapes: dict[str, tuple[int | str, ...]]) -> Known | None:
    """Sizes, None for those that are free."""
    shape = shapes.get(node.input[0])
    if shape is None:
        return None
    part = shape[attribute(node, "start") : attribute(node, "end", len(shape))]
    found: Known = np.empty(len(part), object)
    found[:] = [size if isinstance(size, int) else None for size in part]
    return found


def _computed(node: onnx.NodeProto, known: dict[str, Known]) -> Known | None:
    """What comes out, None where it is not known or no size."""
    rule = _RULES.get(node.op_type)
    if rule is None or not all(name in known for name in node.input if name) or not node.input:
        return None
    try:
        return rule([known[name] for name in node.input if name], node)
    except (TypeError, ValueError, IndexError, ZeroDivisionError):  # a size that is free, or no size at all
        return None


def _binary(function: Callable[[int, int], int]) -> Callable[[Sequence[Known], onnx.NodeProto], Known]:
    over = np.frompyfunc(lambda a, b: None if a is None or b is None else function(a, b), 2, 1)
    return lambda inputs, _: np.asarray(over(*inputs), object)


def _cast(inputs: Sequence[Known], node: onnx.NodeProto) -> Known:
    if attribute(node, "to") != onnx.TensorProto.INT64:
        raise TypeError
    return inputs[0]


def _axes(inputs: Sequence[Known]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in inputs[1])


_RULES: dict[str, Callable[[Sequence[Known], onnx.NodeProto], Known]] = {
    "Add": _binary(lambda a, b: a + b),
    "Sub": _binary(lambda a, b: a - b),
    "Mul": _binary(lambda a, b: a * b),
    "Div": _binary(lambda a, b: int(a / b)),  # towards zero
    "Cast": _cast,
    "Identity": lambda inputs, _: inputs[0],
    "Gather": lambda inputs, node: np.asarray(
        np.take(inputs[0], inputs[1].astype(np.int64), axis=attribute(node, "axis")), object
    ),
    "Unsqueeze": lambda inputs, _: np.expand_dims(inputs[0], _axes(inputs)),
    "Squeeze": lambda inputs, _: np.asarray(np.squeeze(inputs[0], _axes(inputs) if len(inputs) > 1 else None), object),
    "Concat": lambda inputs, node: np.concatenate(inputs, axis=attribute(node, "axis")),
    "Slice": lambda inputs, _: _sliced(*inputs),
    "Reshape": lambda inputs, node: _reshaped(inputs[0], inputs[1], node),
    "Size": lambda inputs, _: np.asarray(inputs[0].size, object),
    "Range": lambda inputs, _: np.arange(*(int(each) for each in inputs)).astype(object),
}


def _reshaped(data: Known, shape: Known, node: onnx.NodeProto) -> Known:
    sizes = [int(size) for size in shape]
    if 0 in sizes or attribute(node, "allowzero"):
        raise ValueError
    return data.reshape(sizes)


def _sliced(data: Known, starts: Known, ends: Known, axes: Known | None = None, steps: Known | None = None) -> Known:
    if data.ndim != 1 or len(starts) != 1 or (axes is not None and axes[0] not in (0, -1)):
        raise ValueError
    return data[int(starts[0]) : int(ends[0]) : 1 if steps is None else int(steps[0])]
