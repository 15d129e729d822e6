"""A recurrent network that reads an image row by row: two LSTM layers and a linear head on the last step."""

from __future__ import annotations

import torch
from torch import nn


class Recurrent(nn.Module):
    """``(batch, 28 rows, 28 pixels)`` to logits ``(batch, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        steps, _ = self.lstm(x)
        logits: torch.Tensor = self.head(steps[:, -1])
        return logits
