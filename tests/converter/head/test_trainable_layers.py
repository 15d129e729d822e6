"""Layers as people's models have them: which of their parameters are trained, and what is refused and why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import converter
from edge.contract.bundle import Bundle
from edge.contract.errors import ConversionError
from tests.converter.models import convert, plan, save


class CosineHead(nn.Module):
    """Prototypes, answered by the angle to them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.prototypes = nn.Linear(6, 5), nn.Parameter(torch.randn(4, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.cosine_similarity(self.first(x)[:, None], self.prototypes[None], dim=2)


SHARED = nn.Linear(5, 5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "shape", "rule", "names"),
    [
        (
            nn.Sequential(
                nn.Conv1d(3, 4, 3, padding="same"), nn.ReLU(), nn.Conv1d(4, 2, 4, padding="same", dilation=2),
                nn.Flatten(), nn.Linear(12, 4),
            ),
            (3, 6),
            "*",
            ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"],
        ),
        (
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))),
            (6,),
            "last:1",
            ["2.bias", "2.parametrizations.weight.original0", "2.parametrizations.weight.original1"],
        ),
        (
            nn.Sequential(nn.Linear(6, 5), nn.RMSNorm(5), nn.Linear(5, 4)),
            (6,),
            "*",
            ["0.weight", "0.bias", "1.weight", "2.weight", "2.bias"],
        ),
        (CosineHead(), (6,), "*", ["first.weight", "first.bias", "prototypes"]),
        (
            nn.Sequential(nn.Linear(6, 5), nn.Tanh(), SHARED, nn.Tanh(), SHARED, nn.Tanh(), nn.Linear(5, 4)),
            (6,),
            "4.*,6.*",
            ["2.weight", "2.bias", "6.weight", "6.bias"],
        ),
    ],
    ids=["padding same", "weight norm", "RMSNorm", "cosine", "second name of a shared layer"],
)  # fmt: skip
def test_common_layers_can_be_trained(
    tmp_path: Path, model: nn.Module, shape: tuple[int, ...], rule: str, names: list[str]
) -> None:
    save(model.eval(), tmp_path / "m.pth", shape)
    convert(plan(tmp_path / "m.pth", trainable=rule, quantize="none"))
    head = Bundle.open(tmp_path / "m.edge").manifest.head
    assert head is not None
    assert sorted(parameter.name for parameter in head.parameters) == sorted(names)


@pytest.mark.filterwarnings("ignore")
def test_statistics_of_a_batch_norm_in_an_onnx_file_are_no_parameters(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()
    torch.onnx.export(
        model, (torch.zeros(2, 6),), tmp_path / "m.onnx", dynamo=False, opset_version=17, input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
    )  # fmt: skip
    convert(plan(tmp_path / "m.onnx", trainable="*", quantize="none"))
    head = Bundle.open(tmp_path / "m.edge").manifest.head
    assert head is not None
    assert [p.name for p in head.parameters] == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]


@pytest.mark.filterwarnings("ignore")
def test_an_lstm_of_the_newer_exporter_can_be_cut_behind_and_in_front(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(x)[0][:, -1])

    torch.onnx.export(
        Net().eval(), (torch.zeros(2, 7, 5),), tmp_path / "m.onnx", dynamo=True, opset_version=18, input_names=["x"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False,
    )  # fmt: skip
    for rule, features in (("last:1", (6,)), ("last:2", (7, 5))):
        convert(plan(tmp_path / "m.onnx", trainable=rule, quantize="none"))
        head = Bundle.open(tmp_path / "m.edge").manifest.head
        assert head is not None
        assert head.features.sample_shape == features


def test_a_head_that_would_learn_nothing_right_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)).eval()
    converter.save_checkpoint(model, tmp_path / "m.pth", example_input=torch.randn(1, 6))
    with pytest.raises(ConversionError, match="one output"):
        convert(plan(tmp_path / "m.pth", trainable="last:1", quantize="none"))
    report = convert(plan(tmp_path / "m.pth", quantize="none")).report
    assert any("one output" in note for note in report["notes"])
    assert Bundle.open(tmp_path / "m.edge").manifest.head is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [18, 23])
def test_scales_of_a_normalization_in_an_onnx_file_are_trained_and_no_placeholders(tmp_path: Path, opset: int) -> None:
    """Torch writes GroupNorm as an operator with ones and zeros, a product and a sum."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.Flatten(),
        nn.Linear(128, 6), nn.RMSNorm(6), nn.Linear(6, 4),
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    torch.onnx.export(
        model, (torch.zeros(2, 3, 6, 6),), tmp_path / "m.onnx", dynamo=True, opset_version=opset, input_names=["x"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False,
    )  # fmt: skip
    convert(plan(tmp_path / "m.onnx", trainable="*", quantize="none"))
    bundle = Bundle.open(tmp_path / "m.edge")
    shipped = sorted(tuple(sorted(array.reshape(-1).tolist())) for array in bundle.head_parameters().values())
    expected = sorted(tuple(sorted(p.detach().reshape(-1).tolist())) for p in model.parameters())
    assert [len(values) for values in shipped] == [len(values) for values in expected]
    for found, wanted in zip(shipped, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


class TwoAnswers(nn.Module):
    """Three classes of the one and five of the other; the last layer is that of the five."""

    def __init__(self) -> None:
        super().__init__()
        self.three, self.five = nn.Linear(6, 3), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.three(x), self.five(x)


def test_labels_are_learned_by_the_layers_that_lead_to_what_they_are_about(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, path = TwoAnswers().eval(), torch.randn(200, 6), tmp_path / "m.pth"
    with torch.no_grad():
        of_three, of_five = (answer.argmax(1) for answer in model(x))
    for y, about, rule, trained in (
        (of_three, "output_0", "auto", None), (of_three, "output_0", "three.*", "output_0"),
        (of_five.clamp(max=2), "output_1", "auto", "output_1"),
    ):  # fmt: skip
        converter.save_checkpoint(model, path, example_input=x[:1], calibration=(x, y))
        report = convert(plan(path, quantize="none", trainable=rule)).report
        head = Bundle.open(tmp_path / "m.edge").manifest.head
        assert (head and head.output) == trained
        assert [row["output"] for row in report["judged"] if row["labelled"]] == [about]
        told = any(f"the labels are about {about}" in note and "right there" in note for note in report["notes"])
        assert told == (trained is None)
    converter.save_checkpoint(model, path, example_input=x[:1], calibration=(x, of_three))
    with pytest.raises(ConversionError, match=r"the labels are about output_0, .*lead to output_1"):
        convert(plan(path, quantize="none", trainable="five.*"))


class Directions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.linear(x), dim=1)


class Boxed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kind, self.box = nn.Linear(6, 3), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.softmax(self.kind(x), dim=1), torch.sigmoid(self.box(x))


def test_what_is_learned_without_labels_is_what_the_output_is(tmp_path: Path) -> None:
    x, path = torch.randn(100, 6), tmp_path / "m.pth"
    scores = nn.Sequential(nn.Linear(6, 4), nn.Sigmoid())
    for model, loss, words in (
        (
            nn.Linear(6, 4),
            "cross-entropy",
            "nothing says what output is: devices take its 4 values for as many classes",
        ),
        (scores, "binary-cross-entropy", ""),
        (Directions(), None, "nothing stays trainable: output is judged as embedding"),
        (Boxed(), None, "nothing stays trainable: output_1 is judged as scores"),
    ):
        converter.save_checkpoint(model.eval(), path, example_input=x[:1], calibration=x)
        report = convert(plan(path, quantize="none")).report
        head = Bundle.open(tmp_path / "m.edge").manifest.head
        assert (head and head.training.loss) == loss
        assert words in " ".join(report["notes"])
    converter.save_checkpoint(nn.Linear(6, 4).eval(), path, example_input=x[:1], class_names=list("abcd"))
    assert not any("nothing says" in note for note in convert(plan(path, quantize="none")).report["notes"])
