"""A scheme that was asked for and changes nothing is an error that says what it would take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import converter
from edge.contract.errors import ConversionError
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
