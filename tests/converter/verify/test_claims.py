"""Data that cannot carry a claim carry none: what is printed was measured on samples that could contradict it."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from torch import nn

from converter.cli import convert_command
from converter.report.html import render_html
from converter.report.text import print_report
from converter.report.values import candidate_cells
from converter.verify.evidence import chance_of_classes, chance_of_targets, one_class
from converter.verify.training_range import out_of_range
from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError, ConversionError
from tests.converter.models import convert, mlp, plan, save, vector


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(balanced(), tmp_path_factory.mktemp("claims") / "mlp.pth", (12,))


def balanced() -> nn.Sequential:
    """A network that gives every class."""
    model = mlp()
    with torch.no_grad():
        model[4].bias -= model(torch.from_numpy(x_of(1000, seed=7))).mean(dim=0)
    return model


def x_of(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 12)).astype(np.float32)


def classes_of(x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return balanced()(torch.from_numpy(x)).argmax(dim=1).numpy()


def converted(source: Path, folder: Path, **arrays: Any) -> dict[str, Any]:
    options = arrays.pop("options", {})
    np.savez(folder / "data.npz", **arrays)
    return convert(plan(source, output=folder / "m.edge", calibration=str(folder / "data.npz"), **options)).report


def shown(report: dict[str, Any]) -> str:
    file = io.StringIO()
    print_report(Console(file=file, width=200), report)
    return file.getvalue() + re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", render_html(report), flags=re.DOTALL)


ONE = x_of(1)
POOR = {
    "one sample": (ONE, {"few"}),
    "one sample repeated": (np.repeat(ONE, 200, axis=0), {"repeated", "few"}),
    "three samples repeated": (np.tile(x_of(3), (60, 1)), {"repeated", "few"}),
    "zeros": (np.zeros((200, 12), np.float32), {"zero", "few"}),
    "thirty-one samples": (x_of(31), {"few"}),
}


@pytest.mark.parametrize("kind", POOR)
def test_poor_data_give_a_float_bundle_and_no_figure(source: Path, tmp_path: Path, kind: str) -> None:
    x, what = POOR[kind]
    report = converted(source, tmp_path, x=x, y=classes_of(x))
    assert {finding["what"] for finding in report["findings"]} == what
    assert report["chosen"] == "float"
    assert [c["scheme"] for c in report["candidates"]] == ["none", "none"]
    assert all(c["score"] is c["agreement"] is c["quality"] is None for c in report["candidates"])
    text = shown(report)
    assert "100.00" not in text
    assert "accuracy" not in text
    assert "cannot be known" in text
    assert "what it keeps is not known" in text
    assert Bundle.open(tmp_path / "m.edge").has(m.STATISTICS) == (kind == "thirty-one samples")
    if kind == "one sample":
        assert "start learning from: 1 different labelled sample, 20 are the least" in text


def test_statistics_of_fewer_samples_than_devices_count_them_for_are_not_shipped(source: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", x=x_of(60, seed=5))  # enough to measure on, so that nothing else is wrong
    options = {"quantize": "none", "evaluation": str(tmp_path / "test.npz")}
    for count, ships in ((19, False), (20, True)):
        x = np.repeat(x_of(count), 3, axis=0)
        report = converted(source, tmp_path, x=x, y=classes_of(x), options=options)
        assert report["findings"] == []
        assert Bundle.open(tmp_path / "m.edge").has(m.STATISTICS) == ships
        assert any("19 different labelled samples, 20 are" in note for note in report["notes"]) != ships


def test_int8_on_poor_data_needs_force_and_then_still_claims_nothing(source: Path, tmp_path: Path) -> None:
    x = x_of(8)
    for quantize in ("int8", "dynamic", "int4"):
        with pytest.raises(ConversionError, match=r"on these data needs --force: 8 different samples"):
            converted(source, tmp_path, x=x, options={"quantize": quantize})
    assert not (tmp_path / "m.edge").exists()
    report = converted(source, tmp_path, x=x, options={"quantize": "int8", "force": True, "max_drop": 100.0})
    assert report["forced"]
    assert report["chosen"].startswith("int8 static")
    assert "100.00" not in shown(report)


def test_what_is_measured_on_was_held_out_or_is_left_out(source: Path, tmp_path: Path) -> None:
    x = x_of(60)
    report = converted(source, tmp_path, x=x, y=classes_of(x), options={"quantize": "none"})
    assert report["data"] == "30 samples of data.npz, held out of 60"
    assert report["findings"] == []
    assert report["candidates"][1]["score"] == 1.0
    np.savez(tmp_path / "test.npz", x=np.concatenate([x[:50], x_of(20, seed=5)]))
    options = {"quantize": "none", "evaluation": str(tmp_path / "test.npz")}
    report = converted(source, tmp_path, x=x, options=options)
    assert report["data"] == "20 samples of test.npz"
    assert any("50 of 70 samples of --evaluate are repeated or among those" in note for note in report["notes"])
    np.savez(tmp_path / "test.npz", x=x)  # all of them: then half of them are held out
    report = converted(source, tmp_path, x=x, options=options)
    assert report["data"] == "30 samples of data.npz, held out of 60"


def test_labels_that_the_model_gets_by_chance_are_said_and_not_learned_from(source: Path, tmp_path: Path) -> None:
    x = x_of(400)
    y = np.random.default_rng(9).permutation(classes_of(x))
    report = converted(source, tmp_path, x=x, y=y)
    assert [finding["what"] for finding in report["findings"]] == ["chance"]
    assert re.search(r"right on \d+\.\d % of your labels.*check preprocessing and labels", shown(report))
    assert report["chosen"] == "float"
    assert not Bundle.open(tmp_path / "m.edge").has(m.STATISTICS)
    some = np.where(np.arange(400) % 2, y, classes_of(x))  # better than chance is enough
    assert converted(source, tmp_path, x=x, y=some, options={"quantize": "none"})["findings"] == []


def test_constant_outputs_are_no_success(tmp_path: Path) -> None:
    dead = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        dead[0].bias.fill_(-100.0)
    source = save(dead, tmp_path / "m.pth", (12,), classes=3)
    x = x_of(100)
    report = converted(source, tmp_path, x=x, y=np.full((100, 3), 2.0, np.float32))
    assert [finding["what"] for finding in report["findings"]] == ["constant"]
    text = shown(report)
    assert "every output has the same value" in text
    assert "100.00" not in text
    assert "1.0000" not in text


def test_a_report_names_the_worst_column_and_those_that_are_constant(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    x = x_of(300)
    with torch.no_grad():
        model[2].weight[1] = 0.0
        model[2].weight[0] *= 1e5
    source = tmp_path / "m.pth"
    torch.jit.save(torch.jit.trace(model, torch.from_numpy(x[:2])), source)
    options = {"kinds": {"output": "quantities"}, "trainable": "none", "max_drop": 0.5}
    report = converted(source, tmp_path, x=x, options=options)
    (judged,) = report["judged"]
    assert (judged["kind"], judged["because"]) == ("quantities", "the user says so")
    assert (judged["constant"], judged["n_columns"]) == ([1], 3)
    chosen = next(c for c in report["candidates"] if c["name"] == report["chosen"])
    assert chosen["quality"]["of"] in ("output[0]", "output[2]")
    assert chosen["agreement"] is None
    text = shown(report)
    assert "constant in output on these samples: column 1" in text
    assert re.search(r"R2 0\.99\d\d of output\[[02]\], which of 3 loses most|R2 1\.0000 of output", text)
    assert "agreement" not in text
    assert "100.00 %" not in text
    speeds = {c["name"]: candidate_cells(report, c)[5] for c in report["candidates"]}
    assert speeds["float"] == "1.00 ×"
    with pytest.raises(ConfigError, match="the model gives output"):
        converted(source, tmp_path, x=x, options={"kinds": {"logits": "classes"}})


# --- the range of training -------------------------------------------------------------------------------------------


class Trained(nn.Module):
    """A batch normalization that saw pictures from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.train()
        for _ in range(60):
            self.norm(self.conv(torch.rand(32, 3, 8, 8)))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3))


def test_inputs_outside_the_range_of_training_are_found_in_every_form_of_torch() -> None:
    model, x = Trained(), np.random.default_rng(0).random((64, 3, 8, 8)).astype(np.float32)
    program = torch.export.export(model, (torch.from_numpy(x),)).module()
    for module in (model, torch.jit.trace(model, torch.from_numpy(x)), torch.jit.script(model), program):
        assert out_of_range(module, [vector(3, 8, 8)], {"input": x}) is None
        assert out_of_range(module, [vector(3, 8, 8)], {"input": 2 * x}) is None
        for factor in (255.0, 1 / 255, -255.0):
            finding = out_of_range(module, [vector(3, 8, 8)], {"input": x * np.float32(factor)})
            assert finding is not None
            assert "check preprocessing" in finding.text
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()  # saw nothing: knows nothing
    assert out_of_range(fresh, [vector(3, 8, 8)], {"input": 255 * x}) is None


def test_inputs_outside_the_range_of_training_are_found_in_onnx_and_nothing_is_quantized(tmp_path: Path) -> None:
    trained = Trained().norm
    values = [trained.weight, trained.bias, trained.running_mean, trained.running_var]
    names = ["scale", "shift", "mean", "var"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node("BatchNormalization", ["c", *names], ["n"], name="norm"),
            helper.make_node("GlobalAveragePool", ["n"], ["p"], name="pool"),
            helper.make_node("Flatten", ["p"], ["o"], name="flat"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(Trained().conv.weight.detach().numpy(), "w"),
            *(numpy_helper.from_array(value.detach().numpy(), name) for value, name in zip(values, names, strict=True)),
        ],
    )
    source = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), source)
    x = np.random.default_rng(0).random((100, 3, 8, 8)).astype(np.float32)
    report = converted(source, tmp_path, x=255 * x, y=np.arange(100) % 4)
    assert "range" in [finding["what"] for finding in report["findings"]]
    assert report["chosen"] == "float"
    assert not Bundle.open(tmp_path / "m.edge").has(m.STATISTICS)
    report = converted(source, tmp_path, x=x, options={"quantize": "none"})
    assert report["findings"] == []


# --- pure ------------------------------------------------------------------------------------------------------------


def test_chance_is_told_from_knowing_and_from_labels_that_could_not_tell() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 500)
    assert chance_of_classes(y, rng.integers(0, 10, 500)) is not None
    assert chance_of_classes(y, np.full(500, 3)) is not None  # always the same answer
    assert chance_of_classes(y, (y + 1) % 10) is not None  # labels counted from 1
    assert chance_of_classes(y, y) is None
    assert chance_of_classes(y, np.where(np.arange(500) % 4, rng.integers(0, 10, 500), y)) is None
    most = np.r_[np.zeros(99, int), 1]
    assert chance_of_classes(most, most) is None
    assert one_class(np.zeros(100, int)) is not None
    assert one_class(most) is None
    assert chance_of_classes(y[:5], (y[:5] + 1) % 10) is None
    names = ["o[0]", "o[1]"]
    assert chance_of_targets(np.array([0.9, 0.2]), names, 100) is None
    assert chance_of_targets(np.array([0.9, -0.3]), names, 100) is None  # poor in one, useful in the other
    for r2 in ([0.9, -50.0], [-0.1, -0.2]):
        finding = chance_of_targets(np.array(r2), names, 100)
        assert finding is not None
        assert "o[1]" in finding.text


def test_an_output_is_a_path_unless_its_end_is_a_kind(tmp_path: Path) -> None:
    parameter = next(p for p in convert_command.params if p.name == "output")
    parse = parameter.callback
    assert parse is not None
    assert parse(None, parameter, ()) == (None, {})
    assert parse(None, parameter, ("a=b.edge",)) == (Path("a=b.edge"), {})
    assert parse(None, parameter, ("out.edge", "a=b=boxes", "logits=classes")) == (
        Path("out.edge"),
        {"a=b": "boxes", "logits": "classes"},
    )
    with pytest.raises(Exception, match="expected one path; NAME=KIND knows the kinds classes"):
        parse(None, parameter, ("out.edge", "logits=clases"))


def test_one_hot_classes_are_not_taken_for_answers_of_their_own(source: Path, tmp_path: Path) -> None:
    x = x_of(64)
    classes = classes_of(x)
    rows = np.eye(classes.max() + 1, dtype=np.float32)[classes]
    with pytest.raises(ConfigError, match="as one-hot classes are: give class numbers"):
        converted(source, tmp_path, x=x, y=rows)
    assert not (tmp_path / "m.edge").exists()
