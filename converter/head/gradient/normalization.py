"""Rules of normalization: ``y = scale (x - mean) / sqrt(var + epsilon) + bias``.

Where mean and variance are those of x itself, with ``x' = (x - mean) / sqrt(var + epsilon)`` and ``g = dy scale``:
``dx = (g - mean(g) - x' mean(g x')) / sqrt(var + epsilon)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from converter.graph.nodes import attribute
from converter.head.gradient.tape import Gradients, Tape, rule
from edge.contract.errors import ConversionError


@rule("BatchNormalization")
def _batch_normalization(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """Mean and variance are those of the training, and stay."""
    if attribute(node, "training_mode"):
        raise ConversionError(f"BatchNormalization {node.name!r} is in training mode; export it in evaluation mode")
    b = tape.builder
    x, scale, bias, mean, var = node.input
    rank = len(tape.shape(x))
    scale_, mean_, var_ = (_along_channels(tape, name, rank) for name in (scale, mean, var))
    inverse = _inverse(tape, node, var_)
    gradients: list[str | None] = [None] * 5
    if x in tape.active:
        gradients[0] = b.op("Mul", dy, b.op("Mul", scale_, inverse))
    if scale in tape.active:
        gradients[1] = _summed(tape, b.op("Mul", dy, b.op("Mul", b.op("Sub", x, mean_), inverse)), rank)
    if bias in tape.active:
        gradients[2] = _summed(tape, dy, rank)
    return gradients


@rule("InstanceNormalization")
def _instance_normalization(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """Mean and variance of each channel of each sample."""
    x, scale, bias = node.input
    rank = len(tape.shape(x))
    dx, dscale = _normalized(tape, node, dy, _along_channels(tape, scale, rank), range(2, rank))
    return [
        dx if x in tape.active else None,
        _summed(tape, dscale, rank) if scale in tape.active else None,
        _summed(tape, dy, rank) if bias in tape.active else None,
    ]


@rule("LayerNormalization")
def _layer_normalization(tape: Tape, node: onnx.NodeProto, dy: str) -> Gradients:
    """Mean and variance over the last axes."""
    x, scale = node.input[0], node.input[1]
    shape = tape.shape(x)
    axis = attribute(node, "axis") % len(shape)
    dx, dscale = _normalized(tape, node, dy, scale, range(axis, len(shape)))
    gradients: list[str | None] = [
        dx if x in tape.active else None,
        tape.unbroadcast(dscale, scale, shape) if scale in tape.active else None,
    ]
    if len(node.input) > 2 and node.input[2]:
        bias = node.input[2]
        gradients.append(tape.unbroadcast(dy, bias, shape) if bias in tape.active else None)
    return gradients


def _normalized(tape: Tape, node: onnx.NodeProto, dy: str, scale: str, over: Sequence[int]) -> tuple[str, str]:
    """``dx`` and ``dy x'``, which summed up is the gradient of the scale. `over` are the last axes."""
    b = tape.builder
    x, axes = node.input[0], b.ints(*over)
    normal, mean, inverse = b.fresh("normal"), b.fresh("mean"), b.fresh("inverse")
    ones = b.constant(np.ones(tape.sizes(x, over)))
    again = helper.make_node("LayerNormalization", [x, ones], [normal, mean, inverse], name=normal, axis=over[0])
    again.attribute.append(helper.make_attribute("epsilon", attribute(node, "epsilon")))
    b.nodes.append(again)
    g = b.op("Mul", dy, scale)
    along = b.op("Mul", normal, b.op("ReduceMean", b.op("Mul", g, normal), axes, keepdims=1))
    rest = b.op("Sub", b.op("Sub", g, b.op("ReduceMean", g, axes, keepdims=1)), along)
    # The operator gives the inverse in float32 always.
    return b.op("Mul", rest, b.op("CastLike", inverse, x)), b.op("Mul", dy, normal)


def _inverse(tape: Tape, node: onnx.NodeProto, variance: str) -> str:
    b = tape.builder
    epsilon = b.constant(attribute(node, "epsilon"))
    return b.op("Reciprocal", b.op("Sqrt", b.op("Add", variance, epsilon)))


def _along_channels(tape: Tape, name: str, rank: int) -> str:
    """A value for each channel, with the axes behind that of the channels."""
    return tape.builder.op("Unsqueeze", name, tape.builder.ints(*range(1, rank - 1))) if rank > 2 else name


def _summed(tape: Tape, gradient: str, rank: int) -> str:
    return tape.builder.op("ReduceSum", gradient, tape.builder.ints(0, *range(2, rank)), keepdims=0)
