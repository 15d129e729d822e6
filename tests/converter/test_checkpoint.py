"""What `converter.save_checkpoint` takes, and refuses before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import converter
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError, ConversionError
from tests.converter.models import convert, mlp, plan


class Step(nn.Module):
    """A cell that gives an answer and its state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.out = nn.GRUCell(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.cell(x, h)
        return self.out(h), h


class Sum(nn.Module):
    """Two inputs, of which one has the name that labels usually have."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x + y).sum(1, keepdim=True)


def held(path: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    document = torch.load(path, weights_only=True)
    return document["calibration_x"], document.get("calibration_y")


def test_calibration_data_are_taken_in_every_usual_form(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(20, 12), torch.arange(20) % 4
    forms: list[tuple[Any, bool]] = [
        ((x, y), True), ([x, y], True), ((x, y.tolist()), True), ((x.numpy().astype(np.float64), y.numpy()), True),
        ((x, None), False), (x, False), (x.numpy(), False),
        ({"input": x}, False), ({"x": x}, False), ({"x": x, "y": y}, True), ({"input": x, "y": None}, False),
        (({"x": x}, y), True),
    ]  # fmt: skip
    for given, labelled in forms:
        converter.save_checkpoint(mlp(), tmp_path / "m.pth", example_input=x[:1], calibration=given)
        samples, labels = held(tmp_path / "m.pth")
        torch.testing.assert_close(samples, {"input": x})
        assert (labels is not None) == labelled
        assert labels is None or torch.equal(labels, y)
    both = {"x": x, "y": x + 1}
    example = {name: array[:1] for name, array in both.items()}
    for of_two, labelled in ((both, False), ((both, y), True), ((dict(reversed(both.items())), None), False)):
        converter.save_checkpoint(Sum(), tmp_path / "m.pth", example_input=example, calibration=of_two)  # type: ignore[arg-type]
        samples, labels = held(tmp_path / "m.pth")
        assert list(samples) == ["x", "y"]
        torch.testing.assert_close(samples, both)
        assert (labels is not None) == labelled


def test_calibration_data_of_another_form_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    x, y = torch.rand(20, 12), torch.arange(20) % 4
    data = torch.utils.data.TensorDataset(x, y)
    wrong: list[tuple[Any, str]] = [
        ((x,), "tuple of 1"), ((x, y, y), "tuple of 3"), ([x[0], x[1]], r"expected shape \(batch, 12\)"),
        ((y, x), "expected shape"), ((x, y[:-1]), r"y of the shape \(19,\) for 20 samples"),
        ((x, torch.tensor(1)), "y of the shape"), ((x, [[1], [1, 2]] * 10), "y cannot be used"),
        (data, "TensorDataset"), (torch.utils.data.DataLoader(data), "DataLoader"), (7, "int"), ("data.npz", "str"),
        ({}, "named none"), ({0: x}, "named 0"), ({"images": x}, "images, expected input"), ({"y": y}, "named none"),
        ({"x": x, "labels": y}, "labels"), ((x, [["a"]] * 20), "y cannot be used"), ((x, "y"), "y is str"),
        ((np.array([["a"] * 12]), None), "cannot be used"), ((x[None], y), "expected shape"),
        ((x.to(torch.complex64), y), "plain"),
        ((x, torch.zeros(20, 3, 3, dtype=torch.int64)), r"integers y of the shape \(n, 3, 3\)"),
        ((x, y[:, None]), r"y\[:, 0\]"),
    ]  # fmt: skip
    for given, words in wrong:
        with pytest.raises(ConfigError, match=words):
            converter.save_checkpoint(mlp(), tmp_path / "m.pth", example_input=x[:1], calibration=given)
    two = {"x": x[:1], "y": x[:1]}
    for given, words in (
        ((x, x), "dictionary"),
        ({"x": x, "y": x[1:]}, "x 20, y 19"),
        ({"x": x}, "named x, expected x, y"),
    ):
        with pytest.raises(ConfigError, match=words):
            converter.save_checkpoint(Sum(), tmp_path / "m.pth", example_input=two, calibration=given)  # type: ignore[arg-type]
    tokens = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 4)).eval()
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ConfigError, match="float32, expected int64"):
        converter.save_checkpoint(tokens, tmp_path / "m.pth", example_input=ids, calibration=torch.rand(9, 2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_samples_of_a_model_that_remembers_need_not_hold_its_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, example = Step().eval(), torch.randn(60, 4), {"x": torch.zeros(1, 4), "h": torch.zeros(1, 6)}
    path = tmp_path / "m.pth"
    for given in ({"x": x}, ({"x": x}, None)):
        converter.save_checkpoint(model, path, example_input=example, calibration=given)  # type: ignore[arg-type]
    report = convert(plan(path, quantize="none", trainable="none")).report
    assert "one stream in its order" in report["data"]
    assert [pair.input for pair in Bundle.open(path.with_suffix(".edge")).manifest.states] == ["h"]
    with pytest.raises(ConfigError, match=r"have no h, which is no state: say --state h=OUTPUT"):
        convert(plan(path, quantize="none", trainable="none", states=()))
    with pytest.raises(ConfigError, match="named h, expected x, h"):
        converter.save_checkpoint(model, path, example_input=example, calibration={"h": torch.zeros(60, 6)})
    document = torch.load(path, weights_only=True)
    torch.save({**document, "calibration_x": {"h": torch.zeros(60, 6)}}, path)
    with pytest.raises((ConfigError, ConversionError), match="have no x"):
        convert(plan(path, quantize="none", trainable="none"))


def test_two_classes_of_one_name_are_refused_wherever_names_come_in(tmp_path: Path) -> None:
    example, path = torch.zeros(1, 12), tmp_path / "m.pth"
    for names, words in (
        (["a"] * 4, "'a' and 'a'"), (["a", "b", "c", " b "], "'b' and ' b '"),
        (["a b", "c", "d", "a\u00a0\tb"], "one name"),
        (["\u00e4", "c", "d", "a\u0308"], "one name"), (["a", "b", "", "c"], "class 2 .* is empty"),
        ("abcd", "expected a list"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            converter.save_checkpoint(mlp(), path, example_input=example, class_names=names)
    assert not path.exists()
    converter.save_checkpoint(mlp(), path, example_input=example, class_names=["a", "A", "b", "b 2"])
    with pytest.raises(ConfigError, match="'x' and 'x'"):
        convert(plan(path, class_names=("x", "x", "y", "z")))
    torch.save({**torch.load(path, weights_only=True), "class_names": ["x", "y", "z", "x "]}, path)
    with pytest.raises(ConfigError, match="0 and 3, from 0"):
        convert(plan(path))
    assert list(tmp_path.iterdir()) == [path]


def test_what_no_bundle_can_be_made_of_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"save_checkpoint\(model, path.*got str"):
        converter.save_checkpoint("m.pth", mlp(), example_input=torch.zeros(1, 12))  # type: ignore[arg-type]
    path = tmp_path / "m.pth"
    with pytest.raises(ConversionError, match=r"torch\.float16; call model\.float\(\)"):
        converter.save_checkpoint(mlp().half(), path, example_input=torch.zeros(1, 12).half())
    forgetful = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8, track_running_stats=False)).eval()
    with pytest.raises(ConversionError, match=r"layer 1 .* normalizes over the samples of a batch"):
        converter.save_checkpoint(forgetful, path, example_input=torch.zeros(4, 12))
    assert not path.exists()


class Writing(nn.Module):
    """Writes into what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.mul_(0.5)
        return x.sum(1, keepdim=True)


def test_a_model_that_writes_into_its_input_changes_no_samples_of_the_caller(tmp_path: Path) -> None:
    x = torch.rand(8, 4)
    kept = x.clone()
    converter.save_checkpoint(Writing(), tmp_path / "m.pth", example_input=x[:2], calibration=x)
    assert torch.equal(x, kept)
    document = torch.load(tmp_path / "m.pth", weights_only=True)
    assert torch.equal(document["calibration_x"]["input"], kept)
    assert torch.equal(document["example_inputs"]["input"], kept[:1])
