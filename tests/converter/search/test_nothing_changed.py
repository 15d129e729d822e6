"""A scheme that was asked for and changes nothing is an error that says what it would take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import converter
from converter.report.values import headline
from edge.contract.errors import ConversionError
from tests.converter.load.test_carried import graph, node
from tests.converter.models import convert, plan


class Recurrent(nn.Module):
    """A recurrent layer behind nothing, and a head."""

    def __init__(self, kind: type[nn.GRU | nn.RNN | nn.LSTM]) -> None:
        super().__init__()
        self.recurrent, self.head = kind(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(x)[0][:, -1])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, found = tmp_path_factory.mktemp("models"), {}
    torch.manual_seed(0)
    for name, model, shape in (
        ("gru", Recurrent(nn.GRU), (5, 6)),
        ("lstm", Recurrent(nn.LSTM), (5, 6)),
        ("conv", nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)), (1, 4, 4)),
    ):
        found[name] = folder / f"{name}.pth"
        x = torch.randn(32, *shape)
        converter.save_checkpoint(model.eval(), found[name], example_input=x[:1], calibration=(x, None))
    return found


def test_is_refused_with_what_it_takes_and_nothing_is_written(sources: dict[str, Path], tmp_path: Path) -> None:
    for name, scheme, words in (
        ("gru", "int8", "none of its .* layers would run in int8.*not GRUs"),
        ("gru", "dynamic", "none of its .* layers would run in int8.*not GRUs"),
        ("conv", "int4", "nothing in it would be int4"),
        ("lstm", "int4", "nothing in it would be int4"),
    ):
        with pytest.raises(ConversionError, match=words):
            convert(plan(sources[name], quantize=scheme, output=tmp_path / "out.edge", torchscript=False))
        assert not list(tmp_path.iterdir()), (name, scheme)


def test_auto_never_calls_a_gru_int8(sources: dict[str, Path], tmp_path: Path) -> None:
    report = convert(plan(sources["gru"], output=tmp_path / "out.edge", torchscript=False)).report
    dynamic = [c for c in report["candidates"] if c["scheme"] == "dynamic"]
    assert dynamic
    assert all(c["status"] == "failed" and "none of its" in c["why"] for c in dynamic)


def test_an_lstm_is_int8_where_it_was_asked_for(sources: dict[str, Path], tmp_path: Path) -> None:
    report = convert(
        plan(sources["lstm"], quantize="int8", max_drop=100.0, output=tmp_path / "out.edge", torchscript=False)
    ).report
    (chosen,) = (c for c in report["candidates"] if c["name"] == report["chosen"])
    assert chosen["int8_layers"] == 1


def test_a_file_that_is_int8_already_is_called_so(tmp_path: Path) -> None:
    scale = {"s": np.array(0.02, np.float32), "z": np.array(128, np.uint8), "zw": np.array(0, np.int8)}
    weight = np.random.default_rng(0).integers(-60, 60, (8, 4)).astype(np.int8)
    nodes = [node("QuantizeLinear", "x s z", "q"), node("QLinearMatMul", "q s z w s zw s z", "p")]
    nodes.append(node("DequantizeLinear", "p s z", "y"))
    path = tmp_path / "m.onnx"
    onnx.save(graph(nodes, {"x": ["n", 8]}, {"y": ["n", 4]}, scale | {"w": weight}), path)
    report = convert(plan(path)).report
    assert headline(report).startswith("the int8 of the file: ")
    assert any("the file is int8 already; nothing more is quantized" in note for note in report["notes"])
    assert any("the file is int8 already, and only float layers are trained" in note for note in report["notes"])
    with pytest.raises(ConversionError, match="give the float model that it was made of"):
        convert(plan(path, quantize="int8"))
