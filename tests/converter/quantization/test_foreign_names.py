"""ONNX files as people have them: nodes without names, several of one name, values named like ours, shared weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.inference.onnx_session import EXACT, OnnxSession
from edge.inference.session import sqnr_db
from tests.converter.models import convert, plan


def network(names: tuple[str, str, str], *, shared: bool = False, weights: str = "layer") -> onnx.ModelProto:
    """Three linear layers of 8, the first two of which may share their weight."""
    rng = np.random.default_rng(0)
    tensors = {}
    for i in range(3):
        tensors[f"{weights}{i}.weight"] = (rng.standard_normal((8, 8)) / 3).astype(np.float32)
        tensors[f"{weights}{i}.bias"] = rng.standard_normal(8).astype(np.float32)
    second = f"{weights}0" if shared else f"{weights}1"
    nodes = [
        helper.make_node("Gemm", ["x", f"{weights}0.weight", f"{weights}0.bias"], ["a"], names[0]),
        helper.make_node("Relu", ["a"], ["b"], names[1]),
        helper.make_node("Gemm", ["b", f"{second}.weight", f"{second}.bias"], ["c"], names[1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", f"{weights}2.weight", f"{weights}2.bias"], ["y"], names[2]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


FILES = {
    "no names": network(("", "", "")),
    "one name for all": network(("fc", "fc", "fc")),
    "a node named like the weights that it reads": network(("fc0", "fc1", "fc2"), weights="fc"),
    "a node named like another's output": network(("b", "", "a")),
    "a shared weight": network(("p", "q", "r"), shared=True),
}


def test_files_with_such_names_are_quantized_and_right(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((96, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    for what, model in FILES.items():
        path = tmp_path / "m.onnx"
        path.write_bytes(model.SerializeToString())
        for node in model.graph.node:  # onnxruntime refuses two of one name
            node.ClearField("name")
        (wanted,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )
        for scheme in ("int8", "dynamic"):
            made = plan(path, quantize=scheme, calibration=str(tmp_path / "x.npz"), trainable="none", max_drop=5.0)
            convert(made)
            bundle = Bundle.open(path.with_suffix(".edge"))
            assert bundle.manifest.quantization["scheme"] == scheme, what
            assert bundle.manifest.quantization["int8_layers"] == 3, f"{what} {scheme}"
            names = [node.name for node in onnx.load_from_string(bundle.read(m.MODEL)).graph.node]
            assert len(set(names)) == len(names), f"{what} {scheme}"
            found = OnnxSession(bundle, config=EXACT).run({"x": x})["y"]
            assert sqnr_db(wanted, found) > 20, f"{what} {scheme}"
    convert(plan(path, quantize="auto", calibration=str(tmp_path / "x.npz")))
    assert OnnxSession(Bundle.open(path.with_suffix(".edge")), config=EXACT).manifest.head is not None


def test_a_free_axis_of_an_output_has_a_name_whatever_the_output_is_called(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((2, 3, 3), np.float32), "w")
    long = "StatefulPartitionedCall/model_of_many_parts/" * 2 + "Identity:0"
    for name in ("387", "a/b:0", "größe 1", long, "batch"):
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], [name], strides=[2])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "time"])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, None])],
            [weight],
        )
        path = tmp_path / "m.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
        convert(plan(path, quantize="none"))
        session = OnnxSession(Bundle.open(path.with_suffix(".edge")))
        assert [session.run({"x": np.ones((2, 3, n), np.float32)})[name].shape for n in (9, 16)] == [
            (2, 2, 4),
            (2, 2, 7),
        ]
