"""Rules of operators that slide a window: convolutions and pooling, over one axis or several."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from converter.graph.nodes import attribute
from converter.head.gradient.tape import Gradients, Tape, rule
from edge.contract.errors import ConversionError


@dataclass(frozen=True, slots=True)
class _Window:
    """How a window slides; one number for each axis of space, two pads. Channels are split in `group`."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    group: int

    @property
    def pads(self) -> list[int]:
        return [*self.begins, *self.ends]


def _window(node: onnx.NodeProto, size: tuple[int, ...]) -> _Window:
    if attribute(node, "auto_pad") != "NOTSET":
        raise ConversionError(f"{node.op_type} {node.name!r} has auto_pad; export it with stated pads")
    n = len(size)
    strides = tuple(attribute(node, "strides", [1] * n))
    dilations = tuple(attribute(node, "dilations", [1] * n))
    pads = tuple(attribute(node, "pads", [0] * (2 * n)))
    return _Window(size, strides, dilations, pads[:n], pads[n:], attribute(node, "group", 1))


def _space(tape: Tape, name: str) -> tuple[int, ...]:
    """Sizes of the axes behind batch and channels."""
    return tape.sizes(name, range(2, len(tape.shape(name))))


@rule("Conv")
def _conv(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``dX`` is the transposed convolution of ``dY``; ``dW`` the correlation of X with ``dY``."""
    b = tape.builder
    x, weight = node.input[0], node.input[1]
    rank = len(tape.shape(weight))
    window = _window(node, tape.sizes(weight, range(2, rank)))
    gradients: list[str | None] = [None, None]
    if x in tape.active:
        left = [
            size - ((out - 1) * stride + dilation * (k - 1) + 1 - begin - end)
            for size, out, stride, dilation, k, begin, end in zip(
                _space(tape, x), _space(tape, node.output[0]), window.strides, window.dilations, window.size,
                window.begins, window.ends, strict=True,
            )
        ]  # fmt: skip
        gradients[0] = b.op(
            "ConvTranspose", dy, weight, strides=window.strides, dilations=window.dilations, pads=window.pads,
            group=window.group, output_padding=left,
        )  # fmt: skip
    if weight in tape.active:
        gradients[1] = _correlation(tape, weight, x, _space(tape, x), dy, _space(tape, node.output[0]), window)
    return _with_bias(tape, node, dy, gradients)


@rule("ConvTranspose")
def _conv_transpose(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """The other way round: ``dX`` is the convolution of ``dY``, ``dW`` the correlation of ``dY`` with X."""
    b = tape.builder
    x, weight = node.input[0], node.input[1]
    window = _window(node, tape.sizes(weight, range(2, len(tape.shape(weight)))))
    more = attribute(node, "output_padding", [0] * len(window.size))
    if attribute(node, "output_shape", None) or any(a >= s for a, s in zip(more, window.strides, strict=True)):
        raise ConversionError(f"ConvTranspose {node.name!r} has an output_shape or output_padding that has no gradient")
    gradients: list[str | None] = [None, None]
    if x in tape.active:
        gradients[0] = b.op(
            "Conv", dy, weight, strides=window.strides, dilations=window.dilations, pads=window.pads, group=window.group
        )
    if weight in tape.active:
        gradients[1] = _correlation(tape, weight, dy, _space(tape, node.output[0]), x, _space(tape, x), window)
    return _with_bias(tape, node, dy, gradients)


def _with_bias(tape: Tape, node: onnx.NodeProto, dy: str, gradients: list[str | None]) -> Gradients:
    if len(node.input) > 2 and node.input[2]:
        axes = [0, *range(2, len(tape.shape(node.output[0])))]
        summed = tape.builder.op("ReduceSum", dy, tape.builder.ints(*axes), keepdims=0)
        gradients.append(summed if node.input[2] in tape.active else None)
    return gradients


def _correlation(
    tape: Tape, weight: str, image: str, space: tuple[int, ...], pattern: str, out: tuple[int, ...], window: _Window
) -> str:
    """``W[o, i, k] = sum over n, p of pattern[n, o, p] image[n, i, p stride + k dilation - pad]``.

    For each place k of the window the pixels under it are taken from the image, so that one matrix product sums over
    them and the batch. With the axes of space in front, a pixel of the whole batch is taken in one piece. The image is
    there once for each k then; a Conv with batch and channels swapped needs it once and takes three times as long.

    Args:
        tape: Gets the nodes.
        weight: ``(o, i, *window)``, whose gradient this is.
        image: ``(batch, i group, *space)``.
        space: See there.
        pattern: ``(batch, o, *out)``.
        out: See there.
        window: Of the convolution whose weights these are.
    """
    b = tape.builder
    shape = tape.sizes(weight, range(2 + len(space)))
    n_out, n_in, n_places = shape[0], shape[1], math.prod(window.size)
    channels = n_in * window.group
    space_first = [*range(2, 2 + len(space)), 0, 1]
    pixels = b.op("Reshape", b.op("Transpose", image, perm=space_first), b.ints(math.prod(space), -1, channels))
    places = _places(space, out, window)
    if places.max() == math.prod(space):
        pixels = b.op("Pad", pixels, b.ints(0, 0, 0, 1, 0, 0))
    under = b.op("Gather", pixels, b.constant(places, np.int64))  # (places, out, batch, channels)
    if window.group == n_out == channels > 1:  # each channel by itself
        pattern = b.op("Reshape", b.op("Transpose", pattern, perm=space_first), b.ints(math.prod(out), -1, channels))
        found = b.op("ReduceSum", b.op("Mul", under, pattern), b.ints(1, 2), keepdims=0)
        return b.op("Reshape", b.op("Transpose", found, perm=[1, 0]), b.ints(*shape))
    pattern = b.op("Transpose", pattern, perm=[1, *space_first[:-1]])
    if window.group == 1:
        rows = b.op("Reshape", pattern, b.ints(n_out, -1))
        found = b.op("MatMul", rows, b.op("Reshape", under, b.ints(n_places, -1, channels)))
        return b.op("Reshape", b.op("Transpose", found, perm=[1, 2, 0]), b.ints(*shape))
    rows = b.op("Reshape", pattern, b.ints(window.group, 1, n_out // window.group, -1))
    under = b.op("Reshape", under, b.ints(n_places, -1, window.group, n_in))
    found = b.op("MatMul", rows, b.op("Transpose", under, perm=[2, 0, 1, 3]))
    return b.op("Reshape", b.op("Transpose", found, perm=[0, 2, 3, 1]), b.ints(*shape))


def _places(space: tuple[int, ...], out: tuple[int, ...], window: _Window) -> npt.NDArray[np.int64]:
    """Which pixel each place of the window meets at each pixel that comes out: ``(places, out)``, both flattened.

    What lies outside is the pixel behind the last.
    """
    found, inside = np.zeros((1, 1), np.int64), np.ones((1, 1), bool)
    for size, n, k, stride, dilation, begin in zip(
        space, out, window.size, window.strides, window.dilations, window.begins, strict=True
    ):
        met = np.arange(k)[:, None] * dilation + np.arange(n) * stride - begin
        shape = (len(found) * k, found.shape[1] * n)
        found = (found[:, None, :, None] * size + met[None, :, None]).reshape(shape)
        inside = (inside[:, None, :, None] & ((met >= 0) & (met < size))[None, :, None]).reshape(shape)
    return np.where(inside, found, math.prod(space))


def _pooled(space: tuple[int, ...], window: _Window, *, ceil: bool) -> tuple[int, ...]:
    """Sizes of what comes out: a last window that would begin behind the image is left out (onnx infers that wrong)."""
    found = []
    for size, k, stride, begin, end in zip(space, window.size, window.strides, window.begins, window.ends, strict=True):
        left = size + begin + end - k
        count = (-(-left // stride) if ceil else left // stride) + 1
        found.append(count - 1 if ceil and (count - 1) * stride >= size + begin else count)
    return tuple(found)


@rule("MaxPool")
def _max_pool(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """The first largest value of each window gets the gradient, as in torch: the operator itself says where it was."""
    b = tape.builder
    x = node.input[0]
    again, places = b.fresh("MaxPool"), b.fresh("places")
    b.nodes.append(helper.make_node("MaxPool", [x], [again, places], name=again))
    # In whatever order the node counts places, here it is that of memory.
    b.nodes[-1].attribute.extend(item for item in node.attribute if item.name != "storage_order")
    zeros = b.op("Expand", b.constant(0.0), b.op("Unsqueeze", b.op("Size", x), b.ints(0)))
    flat = [b.op("Reshape", name, b.ints(-1)) for name in (places, dy)]
    summed = b.op("ScatterElements", zeros, *flat, axis=0, reduction="add")
    return [b.op("Reshape", summed, b.op("Shape", x))]


@rule("AveragePool")
def _average_pool(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """Each pixel of a window gets an equal share: a transposed convolution with ones."""
    b = tape.builder
    x = node.input[0]
    window = _window(node, tuple(attribute(node, "kernel_shape", [])))
    if any(dilation != 1 for dilation in window.dilations):
        raise ConversionError(f"AveragePool {node.name!r} has dilations; that has no gradient")
    space = _space(tape, x)
    out = _pooled(space, window, ceil=bool(attribute(node, "ceil_mode")))
    padded = bool(attribute(node, "count_include_pad"))
    counts = np.ones((1, 1, *[1] * len(out)))
    for i, axis in enumerate(zip(space, out, window.size, window.strides, window.begins, window.ends, strict=True)):
        size, n, k, stride, begin, end = axis
        starts = np.arange(n) * stride - begin
        stops = np.minimum(starts + k, size + end)
        if not padded:
            starts, stops = np.maximum(starts, 0), np.minimum(stops, size)
        counts = counts * (stops - starts).reshape([-1 if j == i + 2 else 1 for j in range(2 + len(out))])
    share = b.op("Reshape", b.op("Div", dy, b.constant(counts)), b.ints(-1, 1, *out))
    spread = b.op("ConvTranspose", share, b.constant(np.ones((1, 1, *window.size))), strides=window.strides)
    before = [-begin for begin in window.begins]
    after = [
        begin + size - ((n - 1) * stride + k)
        for begin, size, n, stride, k in zip(window.begins, space, out, window.strides, window.size, strict=True)
    ]
    if any(before) or any(after):
        spread = b.op("Pad", spread, b.ints(0, 0, *before, 0, 0, *after))
    return [b.op("Reshape", spread, b.op("Shape", x))]


@rule("GlobalAveragePool")
def _global_average_pool(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    b = tape.builder
    x = node.input[0]
    share = b.op("Div", dy, b.constant(float(math.prod(_space(tape, x)))))
    return [b.op("Expand", share, b.op("Shape", x))]
