"""Rules of operators that move values, repeat them or leave some out."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from converter.graph.nodes import attribute
from converter.head.gradient.tape import Gradients, Tape, rule
from edge.contract.errors import ConversionError


@rule("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def _reshape(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """The gradient takes the shape of the input again; the second input, where there is one, is not differentiated."""
    b = tape.builder
    return [b.op("Reshape", dy, b.op("Shape", node.input[0])), *[None] * (len(node.input) - 1)]


@rule("Transpose")
def _transpose(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    rank = len(tape.shape(node.input[0]))
    order = list(attribute(node, "perm", range(rank)[::-1]))
    return [tape.builder.op("Transpose", dy, perm=[order.index(axis) for axis in range(rank)])]


@rule("Expand")
def _expand(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    return [tape.unbroadcast(dy, node.input[0], tape.shape(node.output[0])), None]


@rule("Concat")
def _concat(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    b = tape.builder
    axis = attribute(node, "axis") % len(tape.shape(node.output[0]))
    gradients: list[str | None] = []
    start = 0
    for name in node.input:
        (size,) = tape.sizes(name, [axis])
        part = [b.ints(start), b.ints(start + size), b.ints(axis)]
        gradients.append(b.op("Slice", dy, *part) if name in tape.active else None)
        start += size
    return gradients


def slices_of(node: onnx.NodeProto, tape: Tape) -> list[onnx.NodeProto]:
    """A Split as one Slice for each output."""
    axis = attribute(node, "axis") % len(tape.shape(node.input[0]))
    (size,) = tape.sizes(node.input[0], [axis])
    if len(node.input) > 1 and node.input[1]:
        parts = [int(part) for part in tape.value(node.input[1])]
    else:
        step = -(-size // len(node.output))
        parts = [min(step, size - i * step) for i in range(len(node.output))]
    nodes, start = [], 0
    for name, part in zip(node.output, parts, strict=True):
        limits = [tape.builder.ints(start), tape.builder.ints(start + part), tape.builder.ints(axis)]
        nodes.append(helper.make_node("Slice", [node.input[0], *limits], [name], name=name))
        start += part
    return nodes


@rule("Slice")
def _slice(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """Zeros where nothing was taken: around it, or with a step between."""
    b = tape.builder
    x = node.input[0]
    rank = len(tape.shape(x))
    given = [[int(v) for v in tape.value(name)] if name else None for name in node.input[1:]]
    starts, ends = given[0] or [], given[1] or []
    axes = (given[2] if len(given) > 2 else None) or list(range(len(starts)))
    steps = (given[3] if len(given) > 3 else None) or [1] * len(starts)
    before, after = [0] * rank, [0] * rank
    gradient = dy
    for start, end, axis, step in zip(starts, ends, (axis % rank for axis in axes), steps, strict=True):
        if tape.shape(x)[axis] == tape.shape(node.output[0])[axis] and step == 1:
            continue  # all of it
        (size,) = tape.sizes(x, [axis])
        taken = np.arange(size)[_python_slice(start, end, step)]
        if step == 1:
            first = int(taken[0]) if len(taken) else 0
            before[axis], after[axis] = first, size - first - len(taken)
            continue
        one_more = [0] * (2 * rank)
        one_more[rank + axis] = 1
        places = np.full(size, len(taken), np.int64)  # a zero, which is put behind
        places[taken] = np.arange(len(taken))
        padded = b.op("Pad", gradient, b.ints(*one_more))
        gradient = b.op("Gather", padded, b.constant(places, np.int64), axis=axis)
    cut = [axis for axis in range(rank) if before[axis] or after[axis]]
    if len(cut) == 1:
        (size,) = tape.sizes(x, cut)
        gradient = tape.placed(gradient, x, cut[0], before[cut[0]], size - before[cut[0]] - after[cut[0]])
    elif cut:
        gradient = b.op("Pad", gradient, b.ints(*before, *after))
    return [gradient, *[None] * (len(node.input) - 1)]


def _python_slice(start: int, end: int, step: int) -> slice:
    """ONNX marks a backward slice to the very beginning by an end far below zero."""
    return slice(start, None if step < 0 and end < -(1 << 30) else end, step)


@rule("Gather")
def _gather(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """Each row gets the sum of the gradients of the places it was taken to."""
    b = tape.builder
    data, indices = node.input
    rank, n_index = len(tape.shape(data)), len(tape.shape(indices))
    axis = attribute(node, "axis") % rank
    if indices in tape.constants and not n_index and isinstance(size := tape.shape(data)[axis], int):
        (place,) = tape.value(indices).reshape(1)
        return [tape.placed(b.op("Unsqueeze", dy, b.ints(axis)), data, axis, int(place) % size, 1), None]
    to_front = [axis, *(i for i in range(rank) if i != axis)]
    moved = dy
    if axis:
        taken = list(range(axis, axis + n_index))
        moved = b.op("Transpose", dy, perm=[*taken, *(i for i in range(rank - 1 + n_index) if i not in taken)])
    shape = b.op("Gather", b.op("Shape", data), b.ints(*to_front))
    zeros = b.op("Expand", b.constant(0.0), shape)
    places = b.op("Unsqueeze", b.op("Cast", indices, to=onnx.TensorProto.INT64), b.ints(-1))
    summed = b.op("ScatterND", zeros, places, moved, reduction="add")
    if axis:
        summed = b.op("Transpose", summed, perm=[to_front.index(i) for i in range(rank)])
    return [summed, None]


@rule("Pad")
def _pad(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """Cut off what was put around."""
    mode = attribute(node, "mode")
    if mode not in (b"constant", "constant"):
        name = mode.decode() if isinstance(mode, bytes) else mode
        raise ConversionError(f"Pad {node.name!r} in the mode {name} cannot be trained; only with a constant")
    b = tape.builder
    rank = len(tape.shape(node.input[0]))
    pads = [int(pad) for pad in tape.value(node.input[1])]
    named = [int(axis) for axis in tape.value(node.input[3])] if len(node.input) > 3 and node.input[3] else None
    axes = range(rank) if named is None else [axis % rank for axis in named]
    back = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        back[axis], back[rank + axis] = -pads[i], -pads[len(pads) // 2 + i]
    return [b.op("Pad", dy, b.ints(*back)), *[None] * (len(node.input) - 1)]
