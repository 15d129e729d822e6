"""Attention in plain operators gives what PyTorch's own gives, for every way to call it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from converter.program.attention import traceable

CAUSAL = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
PADDED = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no weights": {"need_weights": False},
    "weights of each head": {"average_attn_weights": False},
    "boolean mask": {"attn_mask": CAUSAL},
    "causal": {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
    "numbers to add": {"attn_mask": torch.linspace(-1, 1, 25).reshape(5, 5)},
    "a mask for each head": {"attn_mask": torch.linspace(-1, 1, 150).reshape(6, 5, 5)},
    "padding": {"key_padding_mask": PADDED},
    "padding and mask": {"key_padding_mask": PADDED, "attn_mask": CAUSAL},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["self", "cross", "other sizes", "no bias", "extra key", "zero key"])
def test_the_same_as_torch(kind: str, batch_first: bool, call: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "other sizes": {"kdim": 6, "vdim": 4},
        "no bias": {"bias": False},
        "extra key": {"add_bias_kv": True},
        "zero key": {"add_zero_attn": True},
    }.get(kind, {})
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options).eval()
    if attention.in_proj_bias is not None:
        nn.init.normal_(attention.in_proj_bias)
    query = torch.randn(3, 5, 8)
    key, value = (query, query) if kind in ("self", "no bias") else (torch.randn(3, 5, 8), torch.randn(3, 5, 8))
    if kind == "other sizes":
        key, value = torch.randn(3, 5, 6), torch.randn(3, 5, 4)
    if not batch_first:
        one_and_all = query is key
        query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        if one_and_all:
            key = value = query
    with torch.no_grad():
        wanted = attention(query, key, value, **CALLS[call])
        with traceable():
            found = attention(query, key, value, **CALLS[call])
    torch.testing.assert_close(found[0], wanted[0])
    if wanted[1] is not None:
        torch.testing.assert_close(found[1], wanted[1])


def test_torch_is_left_as_it_was() -> None:
    before = nn.MultiheadAttention.forward, torch.backends.mha.get_fastpath_enabled()
    with traceable():
        assert nn.MultiheadAttention.forward is not before[0]
    with pytest.raises(ZeroDivisionError), traceable():
        _ = 1 / 0
    assert (nn.MultiheadAttention.forward, torch.backends.mha.get_fastpath_enabled()) == before
