"""Shapes and movement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from converter.head.torchscript.call import (
    FILL,
    Call,
    Host,
    Value,
    objects,
    operator,
    reversed_pads,
)


@operator("Shape")
def _shape(call: Call) -> Host:
    value = call.values[0]
    sizes = list(call.x().size()) if isinstance(value, torch.Tensor) else list(call.host(0).shape)
    rank = len(sizes)
    start, end = (call.at(name, default) for name, default in (("start", 0), ("end", rank)))
    return objects(sizes[slice(start, end)])


@operator("Size")
def _size(call: Call) -> Host:
    total: Any = 1
    for size in call.x().size():
        total = total * size
    return objects([total], ())


@operator("ConstantOfShape")
def _constant_of_shape(call: Call) -> Value:
    number, filled = call.constant(FILL + call.node.output[0])
    sizes = call.sizes(0)
    if number.dtype.kind in "iu" and not any(isinstance(size, torch.Tensor) for size in sizes):
        return np.full(sizes, number[0])
    return filled.expand(sizes)


@operator("Flatten")
def _flatten(call: Call) -> torch.Tensor:
    x, axis = call.x(), call.at("axis")
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 0:
        return x.reshape(1, -1)
    x = x.flatten(axis) if axis < x.dim() else x.unsqueeze(-1)
    return x.flatten(0, axis - 1)


@operator("Reshape")
def _reshape(call: Call) -> Value:
    sizes = call.sizes(1)
    if call.on_host():
        return call.host(0).reshape([int(size) for size in sizes])
    x = call.x()
    if not call.at("allowzero"):
        sizes = [x.size(i) if type(size) is int and size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Squeeze")
def _squeeze(call: Call) -> Value:
    axes = call.axes()
    if call.on_host():
        return np.squeeze(call.host(0), tuple(axes) or None)
    x = call.x()
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.squeeze(axis)
    return x if axes else x.squeeze()


@operator("Unsqueeze")
def _unsqueeze(call: Call) -> Value:
    axes = call.axes()
    if call.on_host():
        return np.expand_dims(call.host(0), tuple(axes))
    x = call.x()
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def _transpose(call: Call) -> torch.Tensor:
    x = call.x()
    return x.permute(list(call.at("perm", range(x.dim())[::-1])))


@operator("Expand")
def _expand(call: Call) -> torch.Tensor:
    x, sizes = call.x(), call.sizes(1)
    if all(type(size) is int for size in sizes):
        sizes = [1] * (x.dim() - len(sizes)) + sizes
        return x.expand([-1 if size == 1 and i >= len(sizes) - x.dim() else size for i, size in enumerate(sizes)])
    found: torch.Tensor = torch.broadcast_tensors(x, x.new_zeros(1).expand(sizes))[0]  # type: ignore[no-untyped-call]
    return found


@operator("Tile")
def _tile(call: Call) -> torch.Tensor:
    return call.x().repeat(call.sizes(1))


@operator("Concat")
def _concat(call: Call) -> Value:
    axis = call.at("axis")
    if call.on_host():
        return np.concatenate([call.host(i).astype(object) for i in range(len(call))], axis)
    return torch.cat([call.x(i) for i in range(len(call))], axis)


@operator("Split")
def _split(call: Call) -> list[torch.Tensor]:
    x, axis = call.x(), call.at("axis")
    if call.has(1):
        return list(torch.split(x, call.ints(1), axis))
    size, n = int(x.shape[axis]), len(call.node.output)
    step = -(-size // n)
    return list(torch.split(x, [min(step, size - i * step) for i in range(n)], axis))


@operator("Slice")
def _slice(call: Call) -> Value:
    starts, ends = call.ints(1), call.ints(2)
    value = call.values[0]
    assert value is not None
    axes = call.ints(3) if call.has(3) else list(range(len(starts)))
    steps = call.ints(4) if call.has(4) else [1] * len(starts)
    ranges = [slice(None)] * value.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0 and isinstance(value, torch.Tensor):  # torch has no steps backwards
            size = int(value.shape[axis])
            taken = range(size)[_python_slice(start, end, step)]
            parts = [value.narrow(axis, place, 1) for place in taken]
            value = torch.cat(parts, axis)
            continue
        ranges[axis] = _python_slice(start, end, step)
    return value[tuple(ranges)]


def _python_slice(start: int, end: int, step: int) -> slice:
    """ONNX marks a slice to the very beginning or end by a number far away."""
    far = 1 << 30
    return slice(start, None if (step < 0 and end < -far) or (step > 0 and end > far) else end, step)


@operator("Gather")
def _gather(call: Call) -> Value:
    axis = call.at("axis")
    if call.on_host():
        data, places = call.host(0), call.host(1).astype(np.int64)
        return objects(list(data[places].reshape(-1)), places.shape) if data.ndim == 1 else data.take(places, axis)
    x = call.x()
    axis = axis % x.dim()
    if isinstance(call.values[1], torch.Tensor):
        indices = call.x(1).long()
        flat = torch.where(indices < 0, indices + x.size(axis), indices).reshape(-1)
        return _unflattened(x.index_select(axis, flat), axis, list(indices.shape))
    places = call.host(1)
    if not places.ndim:
        return x.select(axis, int(places))
    if (places < 0).any():
        raise call.error("counts from the end")
    return _unflattened(x.index_select(axis, call.x(1).reshape(-1).long()), axis, list(places.shape))


def _unflattened(x: torch.Tensor, axis: int, sizes: Sequence[int]) -> torch.Tensor:
    """One axis as several, or as none."""
    if len(sizes) == 1:
        return x
    found: torch.Tensor = x.unflatten(axis, sizes) if sizes else x.squeeze(axis)  # type: ignore[no-untyped-call]
    return found


@operator("GatherElements")
def _gather_elements(call: Call) -> torch.Tensor:
    return torch.gather(call.x(), call.at("axis"), call.x(1).long())


@operator("Trilu")
def _trilu(call: Call) -> torch.Tensor:
    k = call.ints(1)[0] if call.has(1) else 0
    return torch.triu(call.x(), k) if call.at("upper") else torch.tril(call.x(), k)


@operator("CumSum")
def _cum_sum(call: Call) -> torch.Tensor:
    if call.at("exclusive") or call.at("reverse"):
        raise call.error("is exclusive or backwards")
    return torch.cumsum(call.x(), call.ints(1)[0])


@operator("Pad")
def _pad(call: Call) -> torch.Tensor:
    x, given = call.x(), call.ints(1)
    axes = [axis % x.dim() for axis in call.ints(3)] if call.has(3) else list(range(x.dim()))
    pads = [(0, 0)] * x.dim()
    for i, axis in enumerate(axes):
        pads[axis] = (given[i], given[len(axes) + i])
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    mode = call.at("mode")
    if mode not in modes:
        raise call.error(f"has the mode {mode}")
    if mode == "constant":
        value = float(call.host(2).reshape(-1)[0]) if call.has(2) else 0.0
        return functional.pad(x, reversed_pads(pads), value=value)
    if any(any(pair) for pair in pads[:2]):
        raise call.error(f"has the mode {mode} along the batch or the channels")
    return functional.pad(x, reversed_pads(pads[2:]), mode=modes[mode])
