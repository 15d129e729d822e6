"""The 784-128-10 perceptron."""

from __future__ import annotations

import torch
from torch import nn


class MLP(nn.Module):
    """``(batch, 784)`` to logits ``(batch, 10)``; 101,770 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(784, 128)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(torch.relu(self.hidden(x)))
        return logits
