"""A small convolutional network for scikit-learn's handwritten digits (8x8 pixels, 1,797 samples), and its training.

    python model.py model.pth

writes a checkpoint that says what it is, so that ``edge-convert model.pth`` needs no option.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SEED = 7
TRAINED, STREAMED = 500, 897  # the remaining 400 are for testing only


@dataclass(frozen=True)
class Digits:
    """The data, split: images ``(n, 1, 8, 8)`` float32 in 0..1, labels ``(n,)`` int64."""

    train_x: npt.NDArray[np.float32]
    train_y: npt.NDArray[np.int64]
    stream_x: npt.NDArray[np.float32]
    stream_y: npt.NDArray[np.int64]
    test_x: npt.NDArray[np.float32]
    test_y: npt.NDArray[np.int64]


def load_digits_split() -> Digits:
    """Shuffle once, cut in three."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(SEED).permutation(len(data.target))
    x = (data.images[order, None] / 16.0).astype(np.float32)
    y = data.target[order].astype(np.int64)
    a, b = TRAINED, TRAINED + STREAMED
    return Digits(x[:a], y[:a], x[a:b], y[a:b], x[b:], y[b:])


def turned(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The camera turned by 90 degrees."""
    return np.ascontiguousarray(np.rot90(images, 1, (2, 3)))


def train(path: str) -> None:
    """Train on upright digits and save."""
    import torch
    from torch import nn

    import converter

    class DigitNet(nn.Module):
        """Two convolutions, averaged to 192 features, and a linear head."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
            self.norm1 = nn.BatchNorm2d(16)
            self.conv2 = nn.Conv2d(16, 12, 3, padding=1)
            self.norm2 = nn.BatchNorm2d(12)
            self.head = nn.Linear(12 * 4 * 4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.norm1(self.conv1(x)))
            x = torch.relu(self.norm2(self.conv2(x)))
            return self.head(torch.flatten(nn.functional.avg_pool2d(x, 2), 1))

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    data = load_digits_split()
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    model = DigitNet()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for epoch in range(25):
        total = 0.0
        for batch in torch.randperm(len(x)).split(50):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        if epoch % 8 == 0:
            print(f"epoch {epoch:2d}  loss {total / len(x):.3f}", flush=True)
    model.eval()
    with torch.no_grad():
        right = model(torch.from_numpy(data.test_x)).argmax(1) == torch.from_numpy(data.test_y)
    print(f"trained on {len(x)} upright digits: {right.float().mean():.3f} on {len(right)} others", flush=True)
    converter.save_checkpoint(
        model,
        path,
        example_input=x[:1],
        class_names=[str(digit) for digit in range(10)],
        calibration=(x, y),
        preprocessing={"layout": "NCHW", "scale": "pixel / 16, so 0 to 1"},
    )


if __name__ == "__main__":
    train(sys.argv[1] if len(sys.argv) > 1 else "model.pth")
