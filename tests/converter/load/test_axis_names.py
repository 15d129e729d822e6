"""Axes of ONNX files by their names and by larger sizes: which are of samples, and which only look so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from edge.contract.bundle import Bundle
from edge.contract.errors import ConversionError
from edge.inference.onnx_session import OnnxSession
from tests.converter.models import convert, plan

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def graph(path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, list[Any]], output: list[Any]) -> Path:
    def value(name: str, shape: list[Any]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    made = helper.make_graph(nodes, "g", [value(*each) for each in inputs.items()], [value("y", output)])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def check(file: Path, **arrays: np.ndarray[Any, Any]) -> Bundle:
    """The bundle gives what the file gives."""
    bundle = Bundle.open(file.with_suffix(".edge"))
    (wanted,) = ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, arrays)
    (found,) = OnnxSession(bundle).run(arrays).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    return bundle


@pytest.mark.parametrize(
    ("operator", "a", "b", "shapes"),
    [
        ("MatMul", ["m", "k"], ["k", "n"], ((3, 5), (5, 4))),
        ("Add", ["batch", "seq"], ["seq"], ((3, 5), (5,))),
        ("Add", ["h", "w"], ["w"], ((3, 5), (5,))),
        ("Mul", ["x_axis_0", 4], ["y_axis_0", 4], ((3, 4), (3, 4))),  # as torch names the axes of lists
    ],
)
def test_a_first_axis_that_is_another_ones_second_is_none_of_samples(
    tmp_path: Path, operator: str, a: list[Any], b: list[Any], shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    output = [a[0], b[-1]]
    file = graph(tmp_path / "m.onnx", [helper.make_node(operator, ["a", "b"], ["y"])], {"a": a, "b": b}, output)
    convert(plan(file, quantize="none"))
    bundle = check(file, a=normal(*shapes[0]), b=normal(*shapes[1]))
    assert bundle.manifest.fixed_batch is None


class Places(nn.Module):
    """Strides that leave one place of a small input; the example has a batch of one, as exporters write it down."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.out = nn.Conv1d(1, 8, 65, 64, 32), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.relu(self.down(x)).transpose(1, 2)
        places = torch.arange(found.shape[1]).reshape(1, -1, 1).to(found.dtype)
        return self.out(found + 0.1 * places)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("with_data", [False, True])
def test_places_that_small_inputs_have_one_of_are_not_taken_for_samples(tmp_path: Path, with_data: bool) -> None:
    file = tmp_path / "places.onnx"
    torch.onnx.export(
        Places().eval(), (torch.zeros(1, 1, 640),), file, dynamo=False, input_names=["x"], output_names=["y"],
        dynamic_axes={"x": {2: "t"}, "y": {1: "n"}}, opset_version=17,
    )  # fmt: skip
    data = {}
    if with_data:
        np.savez(tmp_path / "x.npz", x=normal(40, 1, 60))
        data = {"calibration": str(tmp_path / "x.npz")}
    report = convert(plan(file, quantize="none", **data)).report
    for size in (60, 640, 1000):
        check(file, x=normal(1, 1, size))
    assert isinstance(report["outputs"][0]["shape"][1], str)


@pytest.mark.parametrize("batch", [1, "n"])
def test_windows_and_images_that_small_inputs_do_not_fill_are_made_up_larger(tmp_path: Path, batch: Any) -> None:
    file = tmp_path / "m.onnx"
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 1, 400], normal(2, 1, 400).tobytes(), raw=True)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("Conv", ["x", "w"], ["all"], strides=[160]),
        helper.make_node("ReduceMean", ["all"], ["y"], axes=[2], keepdims=0),
    ]
    graph(file, nodes, {"x": [batch, 1, "t"]}, [batch, 2])
    convert(plan(file, quantize="none", trainable="none"))
    check(file, x=normal(1, 1, 1000))


def test_what_no_made_up_size_fills_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 900], normal(1, 1, 900).tobytes(), raw=True)
    nodes = [helper.make_node("Constant", [], ["w"], value=weight), helper.make_node("Conv", ["x", "w"], ["y"])]
    graph(file, nodes, {"x": [1, 1, "t"]}, [1, 1, "u"])
    with pytest.raises(ConversionError, match="x=AXIS@SIZE"):
        convert(plan(file, quantize="none", trainable="none"))
