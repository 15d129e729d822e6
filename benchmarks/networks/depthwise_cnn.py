"""A small MobileNetV2: inverted residuals with depthwise convolutions, batch norm and ReLU6.

Depthwise weights differ widely from channel to channel, so this is the network that 8-bit weights hurt most.
"""

from __future__ import annotations

import torch
from torch import nn

# Expansion, channels, stride of each block: MobileNetV2 (Sandler et al. 2018, table 2), half as wide, fewer repeats.
BLOCKS = ((1, 8, 1), (6, 12, 2), (6, 12, 1), (6, 16, 2), (6, 16, 1), (6, 32, 2), (6, 32, 1))
FEATURES = 128


def convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.layers = nn.Sequential(
            *([convolution(inputs, hidden, 1)] if expansion > 1 else []),
            convolution(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        filtered: torch.Tensor = self.layers(x)
        return x + filtered if self.residual else filtered


class DepthwiseCNN(nn.Module):
    """``(batch, 1, 32, 32)`` to logits ``(batch, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(1, 16, 3, 1)]
        channels = 16
        for expansion, outputs, stride in BLOCKS:
            layers.append(InvertedResidual(channels, outputs, stride, expansion))
            channels = outputs
        self.features = nn.Sequential(*layers, convolution(channels, FEATURES, 1))
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(self.features(x).mean((2, 3)))
        return logits
