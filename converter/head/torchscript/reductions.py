"""Operators along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from converter.head.torchscript.call import (
    OPERATORS,
    Call,
    Host,
    Operator,
    objects,
    operator,
)


@operator("Softmax")
def _softmax(call: Call) -> torch.Tensor:
    return torch.softmax(call.x(), call.at("axis"))


@operator("LogSoftmax")
def _log_softmax(call: Call) -> torch.Tensor:
    return torch.log_softmax(call.x(), call.at("axis"))


_REDUCTIONS: dict[str, Callable[[torch.Tensor, list[int], bool], torch.Tensor]] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: torch.amax(x, axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: torch.amin(x, axes, keepdim=keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keepdim=keep),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}


def _reduction(op_type: str) -> Operator:
    def apply(call: Call) -> torch.Tensor:
        axes = call.axes()
        if not axes and call.at("noop_with_empty_axes"):
            return call.x()
        return _REDUCTIONS[op_type](call.x(), axes or list(range(call.x().dim())), bool(call.at("keepdims")))

    return apply


for _name in _REDUCTIONS:
    OPERATORS[_name] = _reduction(_name)


@operator("ReduceProd")
def _reduce_prod(call: Call) -> Host:
    total: Any = 1
    for size in call.sizes(0):
        total = total * size
    return objects([total], (1,) if call.at("keepdims") else ())


@operator("ArgMax")
def _arg_max(call: Call) -> torch.Tensor:
    return torch.argmax(call.x(), call.at("axis"), keepdim=bool(call.at("keepdims")))
