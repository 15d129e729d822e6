"""Rules of operators that slide a window: convolutions and pooling, over one axis or several."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from converter.gradient.tape import Gradients, Tape, attribute, rule
from edge.contract.errors import ConversionError


@dataclass(frozen=True, slots=True)
class _Window:
    """How a window slides; one number for each axis of space, two pads."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def pads(self) -> list[int]:
        return [*self.begins, *self.ends]


def _window(node: onnx.NodeProto, size: tuple[int, ...]) -> _Window:
    if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET"):
        raise ConversionError(f"{node.op_type} {node.name!r} has auto_pad; export it with stated pads")
    n = len(size)
    strides = tuple(attribute(node, "strides", [1] * n))
    dilations = tuple(attribute(node, "dilations", [1] * n))
    pads = tuple(attribute(node, "pads", [0] * (2 * n)))
    return _Window(size, strides, dilations, pads[:n], pads[n:])


def _space(tape: Tape, name: str) -> tuple[int, ...]:
    """Sizes of the axes behind batch and channels."""
    return tape.sizes(name, range(2, len(tape.shape(name))))


@rule("Conv")
def _conv(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """``dX`` is the transposed convolution of ``dY``; ``dW`` the convolution of X by ``dY``."""
    b = tape.builder
    x, weight = node.input[0], node.input[1]
    rank = len(tape.shape(weight))
    window = _window(node, tape.sizes(weight, range(2, rank)))
    group = int(attribute(node, "group", 1))
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
            group=group, output_padding=left,
        )  # fmt: skip
    if weight in tape.active:
        gradients[1] = _correlation(tape, x, _space(tape, x), dy, _space(tape, node.output[0]), window, group)
    return _with_bias(tape, node, dy, gradients)


@rule("ConvTranspose")
def _conv_transpose(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """The other way round: ``dX`` is the convolution of ``dY``, ``dW`` the convolution of ``dY`` by X."""
    b = tape.builder
    x, weight = node.input[0], node.input[1]
    window = _window(node, tape.sizes(weight, range(2, len(tape.shape(weight)))))
    group = int(attribute(node, "group", 1))
    more = attribute(node, "output_padding", [0] * len(window.size))
    if attribute(node, "output_shape", None) or any(a >= s for a, s in zip(more, window.strides, strict=True)):
        raise ConversionError(f"ConvTranspose {node.name!r} has an output_shape or output_padding that has no gradient")
    gradients: list[str | None] = [None, None]
    if x in tape.active:
        gradients[0] = b.op(
            "Conv", dy, weight, strides=window.strides, dilations=window.dilations, pads=window.pads, group=group
        )
    if weight in tape.active:
        gradients[1] = _correlation(tape, dy, _space(tape, node.output[0]), x, _space(tape, x), window, group)
    return _with_bias(tape, node, dy, gradients)


def _with_bias(tape: Tape, node: onnx.NodeProto, dy: str, gradients: list[str | None]) -> Gradients:
    if len(node.input) > 2 and node.input[2]:
        axes = [0, *range(2, len(tape.shape(node.output[0])))]
        summed = tape.builder.op("ReduceSum", dy, tape.builder.ints(*axes), keepdims=0)
        gradients.append(summed if node.input[2] in tape.active else None)
    return gradients


def _correlation(
    tape: Tape, image: str, space: tuple[int, ...], pattern: str, out: tuple[int, ...], window: _Window, group: int
) -> str:
    """``W[o, i, k] = sum over n, p of pattern[n, o, p] image[n, i, p stride + k dilation - pad]``.

    A convolution whose batch are the channels and whose channels are the batch; stride and dilation change places.

    Args:
        tape: Gets the nodes.
        image: ``(batch, i group, *space)``.
        space: See there.
        pattern: ``(batch, o, *out)``.
        out: See there.
        window: Of the convolution whose weights these are.
        group: Channels are split in so many.
    """
    b = tape.builder
    n = len(space)
    behind = [*range(2, 2 + n)]
    if group == 1:
        image, pattern = (b.op("Transpose", name, perm=[1, 0, *behind]) for name in (image, pattern))
    else:
        apart = b.op("Reshape", image, b.ints(0, group, -1, *space))
        mixed = b.op("Transpose", apart, perm=[2, 1, 0, *range(3, 3 + n)])  # channels of a group, group, batch
        image = b.op("Reshape", mixed, b.op("Concat", *_merged(tape, mixed, space), axis=0))
        pattern = b.op("Transpose", pattern, perm=[1, 0, *behind])
    full = b.op(
        "Conv", image, pattern, strides=window.dilations, dilations=window.strides, pads=window.pads, group=group
    )
    wide = any(
        (size + begin + end - stride * (o - 1) - 1) // dilation + 1 != k
        for size, begin, end, stride, o, dilation, k in zip(
            space, window.begins, window.ends, window.strides, out, window.dilations, window.size, strict=True
        )
    )
    if wide:  # pixels that no window reached
        full = b.op("Slice", full, b.ints(*[0] * n), b.ints(*window.size), b.ints(*behind))
    return b.op("Transpose", full, perm=[1, 0, *behind])


def _merged(tape: Tape, mixed: str, space: tuple[int, ...]) -> list[str]:
    """The shape ``(channels, group batch, *space)`` of ``(channels, group, batch, *space)``."""
    b = tape.builder
    first = b.op("Slice", b.op("Shape", mixed), b.ints(0), b.ints(1))
    return [first, b.ints(-1, *space)]


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
    b.nodes[-1].attribute.extend(node.attribute)
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
    out = _pooled(space, window, ceil=bool(attribute(node, "ceil_mode", 0)))
    padded = bool(attribute(node, "count_include_pad", 0))
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
