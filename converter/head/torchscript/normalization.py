"""Normalization."""

from __future__ import annotations

import torch
from torch.nn import functional

from converter.head.torchscript.call import (
    Call,
    operator,
)


@operator("BatchNormalization")
def _batch_normalization(call: Call) -> torch.Tensor:
    """By hand, because all five inputs may be parameters."""
    if call.at("training_mode"):
        raise call.error("is in training mode; export the model in evaluation mode")
    x = call.x()
    scale, bias, mean, var = (_along_channels(call.x(i), x.dim()) for i in range(1, 5))
    return (x - mean) * (torch.rsqrt(var + call.at("epsilon")) * scale) + bias


@operator("InstanceNormalization")
def _instance_normalization(call: Call) -> torch.Tensor:
    x = call.x()
    space = list(range(2, x.dim()))
    centered = x - x.mean(space, keepdim=True)
    variance = (centered * centered).mean(space, keepdim=True)
    normal = centered * torch.rsqrt(variance + call.at("epsilon"))
    return normal * _along_channels(call.x(1), x.dim()) + _along_channels(call.x(2), x.dim())


@operator("LayerNormalization")
def _layer_normalization(call: Call) -> torch.Tensor:
    x, scale = call.x(), call.x(1)
    axis = call.at("axis") % x.dim()
    bias = call.x(2) if call.has(2) else None
    sizes, epsilon = [int(size) for size in x.shape[axis:]], call.at("epsilon")
    if list(scale.shape) == sizes and (bias is None or list(bias.shape) == sizes):
        return functional.layer_norm(x, sizes, scale, bias, epsilon)
    normal = functional.layer_norm(x, sizes, None, None, epsilon) * scale
    return normal if bias is None else normal + bias


def _along_channels(value: torch.Tensor, rank: int) -> torch.Tensor:
    """A value for each channel, with the axes behind that of the channels."""
    return value.reshape([-1, *[1] * (rank - 2)]) if rank > 2 else value
