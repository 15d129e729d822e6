"""Where the samples of an ONNX file lie: made free, found behind an axis without a name, or given one run at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnxruntime.quantization import quantize_dynamic

from edge.agent.model.serving import Serving
from edge.cli.bundle import bundle as command
from edge.contract.bundle import Bundle
from edge.contract.errors import ConversionError
from edge.inference.onnx_session import OnnxSession
from tests.converter.load.test_carried import graph, node
from tests.converter.models import convert, plan

RNG = np.random.default_rng(3)
IN, HIDDEN = 12, 24
WEIGHTS = {
    "w": RNG.standard_normal((1, 3 * HIDDEN, IN)).astype(np.float32) / 4,
    "r": RNG.standard_normal((1, 3 * HIDDEN, HIDDEN)).astype(np.float32) / 4,
    "v": RNG.standard_normal((HIDDEN, 3)).astype(np.float32) / 4,
    "u": RNG.standard_normal((IN, 64)).astype(np.float32) / 4,
    "u2": RNG.standard_normal((64, 5)).astype(np.float32) / 4,
    "one": np.ones((1, IN), np.float32),
}


def built_in(size: int) -> onnx.ModelProto:
    """Two layers behind a mean that was written down for so many samples."""
    weights = {name: WEIGHTS[name] for name in ("u", "u2")} | {"c": np.zeros((size, IN), np.float32)}
    nodes = [node("Concat", "x c", "k", axis=1), node("Split", "k", "a b", axis=1, num_outputs=2)]
    nodes += [node("Add", "a b", "s"), node("MatMul", "s u", "h"), node("Relu", "h", "g"), node("MatMul", "g u2", "y")]
    return graph(nodes, {"x": [size, IN]}, {"y": [size, 5]}, weights)


def squeezed() -> onnx.ModelProto:
    """Its batch is said to be free, but all axes of one are taken off the answer."""
    weights = {name: WEIGHTS[name] for name in ("u", "u2")}
    nodes = [node("MatMul", "x u", "h"), node("Relu", "h", "g"), node("MatMul", "g u2", "k")]
    nodes += [node("ReduceMax", "k last", "m", keepdims=1), node("Squeeze", "m", "y")]
    return graph(nodes, {"x": ["n", IN]}, {"y": []}, weights | {"last": np.array([1])})


def with_state(batch: Any, state: list[Any], *, open_: bool = True) -> onnx.ModelProto:
    """A GRU on one step; where it is not `open_`, its state goes through a reshape for one stream."""
    weights = {name: WEIGHTS[name] for name in ("w", "r", "v")} | {"zero": np.array([0])}
    if not open_:
        weights["shape"] = np.array([1, 1, HIDDEN])
    nodes = [node("Unsqueeze", "x zero", "t")]
    nodes += [] if open_ else [node("Reshape", "h0 shape", "h1")]
    reads = ["t", "w", "r", "", "", "h0" if open_ else "h1"]
    nodes.append(onnx.helper.make_node("GRU", reads, ["s", "hN"], "gru", hidden_size=HIDDEN))
    nodes += [node("Squeeze", "hN zero", "q"), node("MatMul", "q v", "y")]
    return graph(nodes, {"x": [batch, IN], "h0": state}, {"y": [batch, 3], "hN": state}, weights)


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return path


def one_by_one(path: Path, x: np.ndarray, size: int, output: int = 0) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, {"x": x[i : i + size]})[output] for i in range(0, len(x), size)])


def test_a_batch_that_cannot_be_freed_is_quantized_one_run_at_a_time(tmp_path: Path) -> None:
    x = RNG.standard_normal((96, IN)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    for model, size in ((built_in(1), 1), (built_in(3), 3), (squeezed(), 1)):
        path = saved(tmp_path, model)
        data = {"calibration": str(tmp_path / "x.npz"), "max_drop": 5.0}
        report = convert(plan(path, quantize="int8", **data)).report
        bundle = Bundle.open(path.with_suffix(".edge"))
        manifest = bundle.manifest
        assert (manifest.fixed_batch, manifest.carried, manifest.head) == (size, "", None)
        assert manifest.quantization["scheme"] == "int8"
        assert manifest.quantization["int8_layers"] == 2
        assert any("devices give" in note for note in report["notes"])
        wanted = one_by_one(path, x, size)
        session = OnnxSession(bundle)
        found = np.stack([session.run({"x": x[i : i + size]})["y"] for i in range(0, len(x), size)])
        assert found.shape == wanted.shape
        error, signal = np.square(found - wanted).mean(), np.square(wanted).mean()
        assert 1e-7 < error / signal < 1e-2  # int8, and right
        target = tmp_path / "out.npz"
        done = CliRunner().invoke(command, ["run", str(bundle.path), str(tmp_path / "x.npz"), "--output", str(target)])
        assert done.exit_code == 0, done.output
        np.testing.assert_allclose(np.load(target)["y"], found.reshape(np.load(target)["y"].shape), atol=1e-6)
        with pytest.raises(ConversionError, match=r"samples? at once, and devices learn on many"):
            convert(plan(path, trainable="last:1", quantize="none"))


def two_layers(batch: Any) -> onnx.ModelProto:
    weights = {name: WEIGHTS[name] for name in ("u", "u2")}
    nodes = [node("MatMul", "x u", "h"), node("Relu", "h", "g"), node("MatMul", "g u2", "y")]
    return graph(nodes, {"x": [batch, IN]}, {"y": [batch, 5]}, weights)


def test_samples_that_would_share_a_scale_are_judged_and_run_one_at_a_time(tmp_path: Path) -> None:
    """Dynamic int8, of our own and of a file: beside one that is 1000 times as large nothing is left of a sample."""
    x = (RNG.standard_normal((96, IN)) * 10.0 ** RNG.integers(-2, 3, (96, 1))).astype(np.float32)
    path = saved(tmp_path, two_layers("n"))
    y = one_by_one(path, x, 1)[:, 0].argmax(-1)
    np.savez(tmp_path / "x.npz", x=x, y=y)
    np.savez(tmp_path / "in.npz", x=x)
    quantize_dynamic(path, tmp_path / "q.onnx")
    (tmp_path / "named").mkdir()
    quantize_dynamic(saved(tmp_path / "named", two_layers("batch")), tmp_path / "b.onnx")  # as our own graphs call it
    for source, scheme in ((path, "dynamic"), (tmp_path / "q.onnx", "none"), (tmp_path / "b.onnx", "none")):
        data = {"calibration": str(tmp_path / "x.npz"), "max_drop": 5.0, "quantize": scheme, "trainable": "none"}
        report = convert(plan(source, **data)).report
        bundle = Bundle.open(source.with_suffix(".edge"))
        assert bundle.manifest.carried == ""
        assert bundle.manifest.one_by_one
        assert (report["chosen"] == "the int8 of the file") == (scheme == "none")
        assert bundle.manifest.fixed_batch == (1 if scheme == "none" else None)
        assert report["classes"]["right"] == report["classes"]["right_original"]
        session = OnnxSession(bundle)
        alone = np.concatenate([session.run({"x": x[i : i + 1]})["y"] for i in range(len(x))])
        assert (alone.argmax(-1) == y).mean() > 0.9
        if scheme == "dynamic":
            assert (session.run({"x": x})["y"].argmax(-1) == y).mean() < 0.8  # what it is not judged by
        arguments = ["run", str(bundle.path), str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.npz")]
        done = CliRunner().invoke(command, arguments)
        assert done.exit_code == 0, done.output
        np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["y"], alone)
        np.testing.assert_array_equal(Serving(bundle).run({"x": x})["y"], alone)


def test_states_have_their_samples_where_recurrent_layers_have_them(tmp_path: Path) -> None:
    kinds = {
        "fixed everywhere": (with_state(1, [1, 1, HIDDEN]), "free"),
        "fixed in the state alone": (with_state("n", [1, 1, HIDDEN]), "free"),
        "without a name": (with_state("n", [1, "?", HIDDEN]), "free"),
        "built in": (with_state("n", [1, 1, HIDDEN], open_=False), "fixed at 1"),
    }
    for what, (model, batch) in kinds.items():
        path = saved(tmp_path, model)
        convert(plan(path, quantize="none"))
        bundle = Bundle.open(path.with_suffix(".edge"))
        assert bundle.manifest.batch == batch, what
        axes = [spec.batch_axis for spec in bundle.manifest.inputs]
        assert axes == ([0, 1] if batch == "free" else [None, None]), what
        given = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        x = RNG.standard_normal((3, IN)).astype(np.float32)
        h = RNG.standard_normal((1, 3, HIDDEN)).astype(np.float32)
        session = OnnxSession(bundle)
        alone = [{"x": x[i : i + 1], "h0": h[:, i : i + 1]} for i in range(3)]
        for one in alone:
            for name, wanted in zip(("y", "hN"), given.run(None, one), strict=True):
                np.testing.assert_allclose(session.run(one)[name], wanted, rtol=1e-4, atol=1e-6, err_msg=what)
        if batch == "free":
            many = session.run({"x": x, "h0": h})
            np.testing.assert_allclose(many["y"], np.concatenate([session.run(one)["y"] for one in alone]), atol=1e-6)
            assert [(pair.input, pair.output) for pair in bundle.manifest.states] == [("h0", "hN")], what


def test_a_branch_reads_an_activation_that_became_int8(tmp_path: Path) -> None:
    info = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)
    inner = onnx.helper.make_graph([node("Neg", "g", "i")], "inner", [], [_named("i")])
    same = onnx.helper.make_graph([node("Identity", "g", "j")], "same", [], [_named("j")])
    then = onnx.helper.make_graph(
        [node("If", "many", "k", then_branch=same, else_branch=inner), node("MatMul", "k u2", "z")], "then", [], [info]
    )
    other = onnx.helper.make_graph([node("MatMul", "g u2", "z")], "other", [], [info])
    nodes = [node("MatMul", "x u", "h"), node("Relu", "h", "g"), node("MatMul", "g u2", "y")]
    nodes += [node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s much", "many"), node("Less", "s much", "few")]
    nodes += [node("If", "few", "b", then_branch=then, else_branch=other)]
    weights = {name: WEIGHTS[name] for name in ("u", "u2")} | {"much": np.array(1e9, np.float32)}
    path = saved(tmp_path, graph(nodes, {"x": ["n", IN]}, {"y": ["n", 5], "b": ["n", 5]}, weights))
    x = RNG.standard_normal((96, IN)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    asked = {"quantize": "int8", "trainable": "none", "calibration": str(tmp_path / "x.npz"), "max_drop": 5.0}
    convert(plan(path, **asked))
    found = OnnxSession(Bundle.open(path.with_suffix(".edge"))).run({"x": x})
    for name, wanted in zip(("y", "b"), ort.InferenceSession(path).run(None, {"x": x}), strict=True):
        assert 1e-7 < np.square(found[name] - wanted).mean() / np.square(wanted).mean() < 1e-2, name


def _named(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
