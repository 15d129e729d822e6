"""Small float graphs, and what they see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from converter.graph.canonical import canonical
from converter.program.programs import onnx_program
from converter.program.tensors import Arrays
from converter.quantization.layers import optimize
from converter.quantization.observe import Observations, observe
from edge.contract.profile import QuantizationProfile, load_profile
from edge.inference.session import sqnr_db
from tests.converter.models import export, rng


@dataclass
class Net:
    """A float graph, samples, and what was seen of them."""

    graph: onnx.ModelProto
    x: Arrays
    seen: Observations

    def run(self, graph: onnx.ModelProto | None = None) -> np.ndarray:
        (output,) = onnx_program(graph or self.graph, "the test")(self.x).values()
        return output

    def sqnr_db(self, graph: onnx.ModelProto) -> float:
        return sqnr_db(self.run(), self.run(graph))


def net(model: nn.Module, shape: Sequence[int], n: int = 64) -> Net:
    """A torch model as the quantizer gets it."""
    graph = optimize(canonical(export(model.eval(), shape)))
    x = {"input": rng(5).normal(size=(n, *shape)).astype(np.float32)}
    return Net(graph, x, observe(graph, [x]))


def convolutions(seed: int = 0) -> nn.Module:
    """Dense, depthwise and strided convolutions, a shortcut, ReLU and ReLU6."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
            self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU6())
            self.project = nn.Conv2d(12, 12, 1)
            self.last = nn.Conv2d(12, 20, 3, stride=2)
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            x = torch.relu(x + self.project(self.depthwise(x)))
            return self.pool(torch.relu(self.last(x))).flatten(1)

    torch.manual_seed(seed)
    return Block().eval()


def profile(name: str = "x86_64-vnni") -> QuantizationProfile:
    return load_profile(name).quantization


@pytest.fixture(scope="session")
def conv_net() -> Net:
    return net(convolutions(), (3, 12, 12))


@pytest.fixture(scope="session")
def mlp_net() -> Net:
    torch.manual_seed(1)
    return net(nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 6)), (24,))
