"""Networks of one layer again and again: what one more of it costs is the layer's time, without that of a call."""

from __future__ import annotations

import torch
from torch import nn

LENGTHS = (4, 12)
# Channels, height and width, size of the kernel, and whether each layer's input is added to its output.
KINDS = {
    "conv16": (16, 16, 3, False),
    "conv32": (32, 8, 3, False),
    "conv64": (64, 4, 3, False),
    "pointwise64": (64, 8, 1, False),
    "residual16": (16, 16, 3, True),
    "residual32": (32, 8, 3, True),
    "residual64": (64, 4, 3, True),
}


class Chain(nn.Module):
    """``(batch, channels, h, w)`` to the same; convolutions with bias and ReLU."""

    def __init__(self, channels: int, kernel: int, adds: bool, length: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, kernel, padding=kernel // 2) for _ in range(length))
        self.adds = adds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Through all layers."""
        for layer in self.layers:
            y = layer(x)
            x = torch.relu(y + x if self.adds else y)
        return x


def __getattr__(name: str) -> type[nn.Module]:
    """``KIND_LENGTH`` as a class without arguments, which is what ``FILE.py:NAME`` means."""
    kind, _, length = name.partition("_")
    if kind not in KINDS or not length.isdigit():
        raise AttributeError(name)
    channels, _, kernel, adds = KINDS[kind]

    class Found(Chain):
        def __init__(self) -> None:
            super().__init__(channels, kernel, adds, int(length))

    return Found
