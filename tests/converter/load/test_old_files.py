"""Files of old operator sets, in half precision, and too large with what lies beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional

from edge.contract.bundle import Bundle
from edge.contract.errors import ConversionError
from edge.inference.onnx_session import OnnxSession
from tests.converter.load.test_carried import graph, node
from tests.converter.models import convert, plan

RNG = np.random.default_rng(5)


def f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def old(
    nodes: list[onnx.NodeProto], x: list[object], y: list[object], weights: dict[str, np.ndarray]
) -> onnx.ModelProto:
    model = graph(nodes, {"x": x}, {"y": y}, weights, opset=6, ir_version=3)
    for tensor in model.graph.initializer:  # before IR 4 these are inputs, too
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


def test_an_operator_set_that_onnxruntime_does_not_run_is_brought_to_ours(tmp_path: Path) -> None:
    w, b, slope = f(4, 2, 3, 3), f(4), f(4)
    # As wide as there are channels: laid along the wrong axis the bias would fit as well.
    convolution = [
        node("Conv", "x w", "c", kernel_shape=[3, 3]),
        node("Add", "c b", "d", broadcast=1, axis=1),
        node("PRelu", "d s", "y"),
    ]
    x = f(3, 2, 6, 6)
    torch_y = functional.prelu(
        functional.conv2d(torch.tensor(x), torch.tensor(w), torch.tensor(b)), torch.tensor(slope)
    )
    v, c = f(3, 4), f(3)
    linear = [node("Gemm", "x v c", "g", broadcast=1, transB=1), node("Dropout", "g", "y", is_test=1, ratio=0.5)]
    flat = f(5, 4)
    tried = (
        (old(convolution, ["n", 2, 6, 6], ["n", 4, 4, 4], {"w": w, "b": b, "s": slope}), x, torch_y.numpy()),
        (old(linear, ["n", 4], ["n", 3], {"v": v, "c": c}), flat, flat @ v.T + c),
    )
    for model, given, wanted in tried:
        path = tmp_path / "m.onnx"
        onnx.save(model, path)
        with pytest.raises(Exception, match=r"NOT_IMPLEMENTED"):
            ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        report = convert(plan(path, quantize="none")).report
        assert any("operator set 6, which onnxruntime does not run" in note for note in report["notes"])
        found = OnnxSession(Bundle.open(path.with_suffix(".edge"))).run({"x": given})
        np.testing.assert_allclose(found["y"], wanted, rtol=1e-4, atol=1e-5)


def test_half_precision_is_raised_to_be_quantized_and_kept_where_nothing_is(tmp_path: Path) -> None:
    weights = {"w": f(16, 64) / 4, "v": f(64, 5) / 8, "zero": np.zeros(5, np.float32)}
    halves = {name: array.astype(np.float16) for name, array in weights.items()}
    inner = [node("MatMul", "k w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "m"), node("Add", "m zero", "n")]
    all_half = {"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16}
    tried = {
        "inside": ([node("Cast", "x", "k", to=10), *inner, node("Cast", "n", "y", to=1)], {}),
        "outside, too": ([node("Identity", "x", "k"), *inner, node("Identity", "n", "y")], all_half),
    }
    x = f(128, 16)
    np.savez(tmp_path / "x.npz", x=x)
    for what, (nodes, elements) in tried.items():
        path = tmp_path / "m.onnx"
        onnx.save(graph(nodes, {"x": ["n", 16]}, {"y": ["n", 5]}, halves, elements=elements), path)
        given = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        x_ = x.astype(np.float16) if elements else x
        (wanted,) = given.run(None, {"x": x_})
        for scheme in ("int8", "none"):
            asked = plan(path, quantize=scheme, calibration=str(tmp_path / "x.npz"), max_drop=5.0, trainable="none")
            report = convert(asked).report
            bundle = Bundle.open(path.with_suffix(".edge"))
            raised = [note for note in report["notes"] if "raised to float32" in note]
            assert bool(raised) == (scheme == "int8"), what
            assert bundle.manifest.quantization["int8_layers"] == (2 if scheme == "int8" else 0), what
            found = OnnxSession(bundle).run({"x": x_})["y"]
            assert found.dtype == wanted.dtype, what
            error = np.abs(found.astype(np.float64) - wanted).max() / np.abs(wanted.astype(np.float64)).max()
            assert error < (0.15 if scheme == "int8" else 2e-3), what


def test_weights_beside_a_file_are_measured_before_they_are_read(tmp_path: Path) -> None:
    model = graph([node("MatMul", "x w", "y")], {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": f(4, 4)})
    (weight,) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.bin")
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(ConversionError, match=r"3\.0 GiB of weights with its external data"):
        convert(plan(path, quantize="none"))
    weight.external_data.add(key="length", value="64")
    path.write_bytes(model.SerializeToString())
    convert(plan(path, quantize="none"))
    assert not OnnxSession(Bundle.open(path.with_suffix(".edge"))).run({"x": f(2, 4)})["y"].any()
