"""Attention, and RMSNorm, in plain operators, for whatever traces a model.

PyTorch's own has a fast path that no exporter knows, and a usual path that comes out as twice the operators, with the
sequence length of the example written into them. What is exported is compared with the model as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

_torch_forward, _torch_rms_norm = nn.MultiheadAttention.forward, functional.rms_norm


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Within this, every `torch.nn.MultiheadAttention` runs as plain operators."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    nn.MultiheadAttention.forward = _forward  # type: ignore[method-assign]
    functional.rms_norm = _rms_norm  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.rms_norm = _torch_rms_norm
        nn.MultiheadAttention.forward = _torch_forward  # type: ignore[method-assign]
        torch.backends.mha.set_fastpath_enabled(fast)


def _rms_norm(
    x: torch.Tensor, normalized_shape: Sequence[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    """``x / sqrt(mean(x²) + eps) * weight`` (Zhang and Sennrich 2019), which no exporter to opset 18 knows."""
    axes = tuple(range(-len(normalized_shape), 0))
    found = x * torch.rsqrt(x.square().mean(axes, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps))
    return found if weight is None else found * weight


def _forward(
    self: nn.MultiheadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``softmax(Q K^T / sqrt(d) + mask) V`` for each head (Vaswani et al. 2017, section 3.2.2)."""
    unusual = query.dim() != 3 or self.bias_k is not None or self.add_zero_attn or self.training
    if unusual or (is_causal and attn_mask is None):
        return _torch_forward(
            self, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        )
    projected = _projected(self, query, key, value)
    if not self.batch_first:
        projected = [tensor.transpose(0, 1) for tensor in projected]
    heads, size = self.num_heads, self.head_dim
    q, k, v = (t.reshape(t.shape[0], t.shape[1], heads, size).transpose(1, 2) for t in projected)
    scores = torch.matmul(q * size**-0.5, k.transpose(2, 3))
    if attn_mask is not None:
        if attn_mask.dim() == 3:  # one for each sample and head
            attn_mask = attn_mask.reshape(-1, heads, attn_mask.shape[1], attn_mask.shape[2])
        scores = scores + _added(attn_mask, scores)
    if key_padding_mask is not None:
        scores = scores + _added(key_padding_mask, scores)[:, None, None, :]
    weights = scores.softmax(-1)
    mixed = torch.matmul(weights, v).transpose(1, 2)
    output = self.out_proj(mixed.reshape(mixed.shape[0], mixed.shape[1], heads * size))
    if not self.batch_first:
        output = output.transpose(0, 1)
    if not need_weights:
        return output, None
    return output, weights.mean(1) if average_attn_weights else weights


def _projected(
    attention: nn.MultiheadAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> list[torch.Tensor]:
    bias = attention.in_proj_bias
    if attention.in_proj_weight is not None and query is key and key is value:
        both, size = functional.linear(query, attention.in_proj_weight, bias), attention.embed_dim
        # Not chunk(): an exporter would compute a third of the size of the last axis each time.
        return [both[..., start : start + size] for start in range(0, 3 * size, size)]
    weights = (
        (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        if attention.in_proj_weight is None
        else attention.in_proj_weight.chunk(3)
    )
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return [functional.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]


def _added(mask: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A mask as numbers to add: a boolean one is true where nothing may be looked at."""
    if mask.dtype != torch.bool:
        return mask.to(scores.dtype)
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, float("-inf"))
