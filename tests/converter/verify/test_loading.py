"""What everything is compared with must be a function of its inputs, and is given each of them as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converter.plan import InputOption
from edge.contract.bundle import Bundle
from edge.contract.errors import ConversionError
from edge.inference.onnx_session import OnnxSession
from tests.converter.models import convert, plan

NETS = """
import torch
from torch import nn
from torch.nn import functional

class InPlace(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.25))

class Drops(InPlace):
    def forward(self, x):
        return functional.dropout(nn.Sequential.forward(self, x), 0.2, training=True)

class Counts(InPlace):
    calls = 0
    def forward(self, x):
        self.calls += 1
        return nn.Sequential.forward(self, x) * (1 + 0.001 * self.calls)

class Adds(InPlace):
    total = torch.zeros(1)
    def forward(self, x):
        self.total += x.mean()
        return nn.Sequential.forward(self, x) + self.total

class Decides(InPlace):
    def forward(self, x):
        y = nn.Sequential.forward(self, x)
        if y.sum() > 6:  # of 64 samples always, of one now and then
            y = y + 100
        return y

class Peaks(InPlace):
    def forward(self, x):
        return nn.Sequential.forward(self, x / x.max().clamp(min=50.0))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("loading")
    (found / "nets.py").write_text(NETS)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    torch.save(layers.state_dict(), found / "weights.pth")
    np.savez(found / "x.npz", x=np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32))
    return found


def options(folder: Path, net: str) -> dict[str, Any]:
    return {
        "arch": f"{folder / 'nets.py'}:{net}",
        "inputs": (InputOption(name="", shape=("batch", 6)),),
        "calibration": str(folder / "x.npz"),
        "output": folder / f"{net}.edge",
    }


def test_a_model_that_works_on_its_inputs_in_place_is_given_copies(folder: Path) -> None:
    report = convert(plan(folder / "weights.pth", **options(folder, "InPlace"))).report
    assert report["chosen"]
    weights = torch.load(folder / "weights.pth", weights_only=True)
    x = np.load(folder / "x.npz")["x"]
    hidden = np.maximum((x - 0.5) / 0.25 @ weights["0.weight"].numpy().T + weights["0.bias"].numpy(), 0)
    wanted = hidden @ weights["2.weight"].numpy().T + weights["2.bias"].numpy()
    (found,) = OnnxSession(Bundle.open(folder / "InPlace.edge")).run({"input": x}).values()
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("net", ["Drops", "Counts", "Adds"])
def test_a_model_that_gives_something_else_each_time_is_refused_with_the_reason(folder: Path, net: str) -> None:
    with pytest.raises(ConversionError, match="each time it is given the same input: it draws random numbers"):
        convert(plan(folder / "weights.pth", **options(folder, net)))
    assert not (folder / f"{net}.edge").exists()


def test_a_model_that_decides_over_the_batch_is_refused_whatever_the_batches_decided(folder: Path) -> None:
    """All batches go one way, and most samples alone the other: as a device would see them."""
    weights = torch.load(folder / "weights.pth", weights_only=True)
    weights["2.bias"] += torch.tensor([0.5, 0.5, 0.5])
    torch.save(weights, folder / "decides.pth")
    with pytest.raises(ConversionError, match="answers a sample alone otherwise than among others"):
        convert(plan(folder / "decides.pth", **options(folder, "Decides")))
    assert not (folder / "Decides.edge").exists()


def test_a_model_that_does_so_only_where_values_are_unusual_is_refused_though_the_data_do_not_show_it(
    folder: Path,
) -> None:
    with pytest.raises(ConversionError, match="output is another beside samples that are 100 times as large"):
        convert(plan(folder / "weights.pth", **options(folder, "Peaks")))
    assert not (folder / "Peaks.edge").exists()
