"""Convolutions and pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from converter.head.torchscript.call import (
    Call,
    operator,
    reversed_pads,
)


def _window(call: Call, n: int) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Strides, dilations and pads for each axis of space."""
    auto = call.at("auto_pad")
    if auto not in ("NOTSET", "VALID"):
        raise call.error("has auto_pad; export it with stated pads")
    pads = list(call.at("pads", [0] * (2 * n))) if auto == "NOTSET" else [0] * (2 * n)
    pairs = list(zip(pads[:n], pads[n:], strict=True))
    return list(call.at("strides", [1] * n)), list(call.at("dilations", [1] * n)), pairs


def _of_rank(call: Call, functions: Sequence[Any], n: int) -> Any:
    if not 1 <= n <= 3:
        raise call.error(f"has {n} axes of space")
    return functions[n - 1]


@operator("Conv")
def _conv(call: Call) -> torch.Tensor:
    x, weight = call.x(), call.x(1)
    n = weight.dim() - 2
    strides, dilations, pads = _window(call, n)
    if any(begin != end for begin, end in pads):
        x, pads = functional.pad(x, reversed_pads(pads)), [(0, 0)] * n
    convolve = _of_rank(call, (functional.conv1d, functional.conv2d, functional.conv3d), n)
    bias = call.x(2) if call.has(2) else None
    found: torch.Tensor = convolve(x, weight, bias, strides, [begin for begin, _ in pads], dilations, call.at("group"))
    return found


@operator("ConvTranspose")
def _conv_transpose(call: Call) -> torch.Tensor:
    x, weight = call.x(), call.x(1)
    n = weight.dim() - 2
    strides, dilations, pads = _window(call, n)
    if call.at("output_shape") is not None:
        raise call.error("has an output_shape; export it with stated pads")
    more = list(call.at("output_padding", [0] * n))
    uneven = any(begin != end for begin, end in pads)
    functions = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
    found: torch.Tensor = _of_rank(call, functions, n)(
        x, weight, call.x(2) if call.has(2) else None, strides, [0 if uneven else begin for begin, _ in pads],
        more, call.at("group"), dilations,
    )  # fmt: skip
    return functional.pad(found, reversed_pads([(-begin, -end) for begin, end in pads])) if uneven else found


@operator("MaxPool")
def _max_pool(call: Call) -> torch.Tensor:
    x, size = call.x(), list(call.at("kernel_shape"))
    strides, dilations, pads = _window(call, len(size))
    if any(begin != end or begin > k // 2 for (begin, end), k in zip(pads, size, strict=True)):
        x, pads = functional.pad(x, reversed_pads(pads), value=-math.inf), [(0, 0)] * len(size)
    pool = _of_rank(call, (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d), len(size))
    found: torch.Tensor = pool(
        x, size, strides, [begin for begin, _ in pads], dilations, ceil_mode=bool(call.at("ceil_mode"))
    )
    return found


@operator("AveragePool")
def _average_pool(call: Call) -> torch.Tensor:
    x, size = call.x(), list(call.at("kernel_shape"))
    strides, dilations, pads = _window(call, len(size))
    if any(dilation != 1 for dilation in dilations):
        raise call.error("has dilations")
    pool = _of_rank(call, (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d), len(size))
    ceil, counted = bool(call.at("ceil_mode")), bool(call.at("count_include_pad"))
    found: torch.Tensor
    if all(begin == end <= k // 2 for (begin, end), k in zip(pads, size, strict=True)):
        found = pool(x, size, strides, [begin for begin, _ in pads], ceil, counted)
        return found
    flat = reversed_pads(pads)
    found = pool(functional.pad(x, flat), size, strides, 0, ceil)
    if counted:
        return found
    share: torch.Tensor = pool(functional.pad(torch.ones_like(x[:1, :1]), flat), size, strides, 0, ceil)
    return found / share


@operator("GlobalAveragePool")
def _global_average_pool(call: Call) -> torch.Tensor:
    return call.x().mean(list(range(2, call.x().dim())), keepdim=True)


@operator("GlobalMaxPool")
def _global_max_pool(call: Call) -> torch.Tensor:
    return torch.amax(call.x(), list(range(2, call.x().dim())), keepdim=True)
