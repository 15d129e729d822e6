"""Whole networks, differentiated and trained for some steps on onnxruntime, end where torch in float64 ends."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from converter.graph.canonical import canonical
from converter.head.gradient.training_graph import build_training_graph
from converter.head.split import FEATURES, split
from converter.program.attention import traceable
from converter.program.programs import onnx_program
from edge.inference.onnx_trainer import OnnxTrainer
from tests.converter.models import export, rng


class Residual(nn.Module):
    """Blocks as in a small MobileNet: inverted residual, depthwise, ReLU6, batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(6, 12, 1), nn.BatchNorm2d(12), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.SiLU())
        self.project = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(x.mean((2, 3)))


class Gated(nn.Module):
    """Two branches that are split, multiplied, joined and padded."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(6, 8), nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.inside(x).chunk(2, dim=1)
        mixed = torch.cat([left * torch.sigmoid(right), nn.functional.pad(right[:, 1:], (1, 0)), x[:, ::6]], 1)
        return self.outside(mixed)


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "residual": (Residual(), (2, 8, 8)),
    "pools": (
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.PReLU(4), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(4, 6, 2, groups=2), nn.Tanh(),
            nn.AvgPool2d(2, 1, padding=1), nn.Flatten(), nn.Linear(96, 4),
        ),
        (1, 9, 9),
    ),
    "one dimension": (
        nn.Sequential(
            nn.Conv1d(3, 6, 5, stride=2, padding=2, dilation=1), nn.GroupNorm(2, 6), nn.ELU(), nn.Conv1d(6, 6, 3,
            dilation=2), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 4),
        ),
        (3, 16),
    ),
    "transposed": (
        nn.Sequential(
            nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), nn.InstanceNorm2d(3, affine=True), nn.Mish(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4),
        ),
        (2, 4, 4),
    ),
    "transformer": (
        nn.Sequential(
            nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, activation="gelu"),
            nn.Flatten(), nn.Linear(48, 4),
        ),
        (6, 5),
    ),
    "gated": (Gated(), (6,)),
    "activations": (
        nn.Sequential(nn.Linear(6, 8), nn.SELU(), nn.LayerNorm(8), nn.CELU(0.7), nn.Hardsigmoid(), nn.Softplus(),
                      nn.Linear(8, 4)),
        (6,),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_some_steps_on_the_whole_network_equal_torch(name: str) -> None:
    torch.manual_seed(3)
    model, shape = copy.deepcopy(NETWORKS[name][0]).eval(), NETWORKS[name][1]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    names = [key for key, _ in model.named_parameters()]
    with traceable():
        parts = split(canonical(export(model, shape)), names)
    head = parts.head
    assert head is not None
    backbone = onnx_program(parts.backbone, "the backbone")  # what does not depend on a parameter
    graph = build_training_graph(head.graph, FEATURES, list(head.parameters))
    trainer = OnnxTrainer(graph.SerializeToString(), FEATURES, head.parameters)
    reference = model.double()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.02)
    for n in (3, 1, 5):
        x, y = rng(n).normal(size=(n, *shape)).astype(np.float32), rng(n).integers(0, 4, n)
        loss = nn.functional.cross_entropy(reference(torch.from_numpy(x).double()), torch.from_numpy(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        features, weights = backbone({"input": x})[FEATURES], np.ones(n, np.float32)
        targets = np.eye(4, dtype=np.float32)[y]
        assert trainer.step(features, targets, weights, 0.02) == pytest.approx(float(loss.detach()), rel=1e-4)
    for key, expected in reference.named_parameters():
        wanted = expected.detach().numpy()
        found = trainer.parameters()[key]
        assert np.abs(found - wanted).max() <= 2e-5 * max(1.0, np.abs(wanted).max()), key
