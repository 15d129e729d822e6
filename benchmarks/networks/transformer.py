"""A transformer encoder that takes the rows of an image as its tokens: two layers, width 64, four attention heads."""

from __future__ import annotations

import torch
from torch import nn


class Transformer(nn.Module):
    """``(batch, 28 tokens, 28 pixels)`` to logits ``(batch, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(28, 64)
        self.position = nn.Parameter(torch.randn(28, 64) * 0.02)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        tokens = self.encoder(self.embedding(x) + self.position)
        logits: torch.Tensor = self.head(self.norm(tokens).mean(1))
        return logits
