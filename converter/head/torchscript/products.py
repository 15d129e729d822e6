"""Products."""

from __future__ import annotations

import torch
from torch.nn import functional

from converter.head.torchscript.call import (
    Call,
    operator,
)


@operator("MatMul")
def _matmul(call: Call) -> torch.Tensor:
    return torch.matmul(call.x(0), call.x(1))


@operator("Gemm")
def _gemm(call: Call) -> torch.Tensor:
    alpha, beta = call.at("alpha"), call.at("beta")
    left = call.x(0).t() if call.at("transA") else call.x(0)
    bias = call.x(2) if call.has(2) else None
    if call.at("transB") and alpha == beta == 1.0 and (bias is None or bias.dim() == 1):
        return functional.linear(left, call.x(1), bias)
    product = torch.matmul(left, call.x(1).t() if call.at("transB") else call.x(1))
    product = product if alpha == 1.0 else product * alpha
    return product if bias is None else product + (bias if beta == 1.0 else bias * beta)


@operator("Einsum")
def _einsum(call: Call) -> torch.Tensor:
    return torch.einsum(call.at("equation"), *(call.x(i) for i in range(len(call))))
