"""Static int8: every layer runs in int8, 7-bit weights cannot saturate, and what was asked to stay float stays."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from converter.graph.build import make_model
from converter.program.programs import onnx_program
from converter.quantization.layers import optimize, quantizable_layers, running_in_int8
from converter.quantization.observe import observe
from converter.quantization.sensitivity import layer_sensitivity
from converter.quantization.static import quantize_static, quantized_weight
from edge.inference.session import sqnr_db
from tests.converter.models import rng
from tests.converter.quantization.conftest import Net, convolutions, net, profile

PROFILES = ("x86_64-vnni", "generic-x86_64", "generic-arm64")


def codes(graph: onnx.ModelProto) -> list[np.ndarray]:
    return [numpy_helper.to_array(t) for t in graph.graph.initializer if t.name.endswith(".weight.codes")]


def run_by(graph: onnx.ModelProto, x: dict[str, np.ndarray], **config: str) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    for key, value in config.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    return onnxruntime.InferenceSession(graph.SerializeToString(), options).run(None, x)[0]


@pytest.mark.parametrize("target", PROFILES)
def test_every_layer_really_runs_in_int8(conv_net: Net, mlp_net: Net, target: str) -> None:
    for made in (conv_net, mlp_net):
        quantized = quantize_static(made.graph, made.seen, profile(target))
        layers = len(quantizable_layers(made.graph))
        assert running_in_int8(quantized) == (layers, layers)
        assert running_in_int8(made.graph) == (0, layers)
        assert made.sqnr_db(quantized) > 25


@pytest.mark.parametrize("target", PROFILES)
def test_types_are_those_of_the_profile(conv_net: Net, target: str) -> None:
    wanted = profile(target)
    quantized = quantize_static(conv_net.graph, conv_net.seen, wanted)
    zeros = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer if t.name.endswith(".zero")}
    activations = {array.dtype.name for name, array in zeros.items() if array.ndim == 0 and ".weight" not in name}
    assert activations == {wanted.activation_type}
    assert {array.dtype.name for array in codes(quantized)} == {wanted.weight_type}
    scales = [t for t in quantized.graph.initializer if t.name.endswith(".weight.scale")]
    assert all(list(scale.dims) for scale in scales) == wanted.per_channel


def test_seven_bits_hold_whatever_comes() -> None:
    """Two products of 8-bit activations and weights up to 64 fit 16 bits; of weights up to 127 they do not.

    So on a CPU that adds them in 16 bits (AVX2 without VNNI) the reduced file is exact and the other one is not: this
    is arithmetic, and holds on every machine.
    """
    weight = rng().normal(size=(8, 64)).astype(np.float32)
    for largest, fits in ((64, True), (127, False)):
        found, scale = quantized_weight(weight, 0, largest)
        assert np.abs(found).max() == largest
        assert scale.shape == (8,)
        assert (255 * 2 * int(np.abs(found).max()) <= 2**15 - 1) is fits
        np.testing.assert_allclose(found * scale[:, None], weight, atol=float(scale.max()) / 2 + 1e-7)


def test_reduced_weights_keep_to_seven_bits_in_the_file(conv_net: Net) -> None:
    assert profile("generic-x86_64").reduce_range
    for array in codes(quantize_static(conv_net.graph, conv_net.seen, profile("generic-x86_64"))):
        assert np.abs(array.astype(int)).max() <= 64
    wide = codes(quantize_static(conv_net.graph, conv_net.seen, profile("x86_64-vnni")))
    assert max(np.abs(array.astype(int)).max() for array in wide) == 127


def test_the_reduced_file_gives_the_same_with_exact_arithmetic(conv_net: Net) -> None:
    quantized = quantize_static(conv_net.graph, conv_net.seen, profile("generic-x86_64"))
    usual, exact = run_by(quantized, conv_net.x), run_by(quantized, conv_net.x, session__x64quantprecision="1")
    np.testing.assert_allclose(usual, exact, atol=1e-6)


def test_the_quality_for_a_target_that_does_not_saturate_is_found_on_a_cpu_that_does() -> None:
    """One row of 8-bit products whose pairs do not fit 16 bits; a CPU without VNNI gives another sum for it."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["codes", "w", "zero"], ["y"]),
    ]
    weight = numpy_helper.from_array(np.full((64, 32), 127, np.int8), "w")
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 64])]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, ["batch", 32])]
    graph = make_model("g", nodes, inputs, outputs, [weight])
    x = np.ones((1, 64), np.float32)
    np.testing.assert_array_equal(onnx_program(graph, "it")({"x": x})["y"], np.full((1, 32), 64 * 255 * 127))


def test_layers_left_in_float_are_those_that_were_named(conv_net: Net) -> None:
    names = [layer.name for layer in quantizable_layers(conv_net.graph)]
    for exclude in (names[:1], names[1:3], names[-1:], names):
        quantized = quantize_static(conv_net.graph, conv_net.seen, profile(), exclude=exclude)
        assert running_in_int8(quantized) == (len(names) - len(exclude), len(names))
        weights = {t.name for t in quantized.graph.initializer}
        for layer in quantizable_layers(conv_net.graph):
            assert (layer.weight in weights) == (layer.name in exclude)
    np.testing.assert_allclose(conv_net.run(quantized), conv_net.run(), atol=1e-5)  # all in float


def test_onnxruntime_does_not_quantize_what_was_left_in_float_between_layers_in_int8() -> None:
    """Its optimizer takes float weights between 8 bits and 8 bits for forgotten ones."""
    torch.manual_seed(0)
    between = (nn.ReLU(), nn.ReLU6(), nn.Identity())
    chain = [nn.Conv2d(3, 16, 3)]
    for activation in between:
        chain += [activation, nn.Conv2d(16, 16, 3)]
    found = net(nn.Sequential(*chain), (3, 12, 12))
    layers = [layer.name for layer in quantizable_layers(found.graph)]
    for left in (*([name] for name in layers), layers[1:3]):
        quantized = quantize_static(found.graph, found.seen, profile("generic-x86_64"), exclude=left)
        assert running_in_int8(quantized) == (len(layers) - len(left), len(layers)), left
    up = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 16, 2, 2), nn.ReLU(), nn.Conv2d(16, 4, 3))
    found = net(up, (3, 12, 12))
    optimized = optimize(quantize_static(found.graph, found.seen, profile("generic-x86_64")))
    transposed = next(node for node in optimized.graph.node if node.op_type == "ConvTranspose")
    kinds = {tensor.name: tensor.data_type for tensor in optimized.graph.initializer}
    assert kinds[transposed.input[1]] == onnx.TensorProto.FLOAT


def test_onnxruntime_does_not_abort_where_a_branch_captures_what_was_8_bits(tmp_path: Path) -> None:
    """In a process of its own: it would take this one with it."""
    info = helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["batch", None, None])
    captured = ["sliced", "turned", "pooled", "wide"]
    branches = [
        helper.make_graph([helper.make_node("Concat", captured, ["z"], axis=axis)], f"along {axis}", [], [info])
        for axis in (1, 2)
    ]
    weights = {"w": rng(1).normal(size=(4, 4, 1)).astype(np.float32), "c": np.array(True)}
    weights |= {"a": np.array([0]), "b": np.array([4]), "axis": np.array([1]), "shape": np.array([0, 4, 4])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], "conv"),
        helper.make_node("Slice", ["y", "a", "b", "axis"], ["sliced"], "slice"),
        helper.make_node("Transpose", ["sliced"], ["turned"], "turn", perm=[0, 2, 1]),
        helper.make_node("MaxPool", ["y"], ["pooled"], "pool", kernel_shape=[1]),
        helper.make_node("Reshape", ["y", "shape"], ["wide"], "reshape"),
        helper.make_node("If", ["c"], ["o"], "if", then_branch=branches[0], else_branch=branches[1]),
    ]
    graph = make_model(
        "g",
        nodes,
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4, 4])],
        [helper.make_tensor_value_info("o", onnx.TensorProto.FLOAT, ["batch", None, None])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    x = {"x": rng(2).normal(size=(8, 4, 4)).astype(np.float32)}
    quantized = quantize_static(graph, observe(graph, [x]), profile("generic-x86_64"))
    file = tmp_path / "q.onnx"
    file.write_bytes(quantized.SerializeToString())
    code = f"import onnxruntime as o; o.InferenceSession({str(file)!r}, providers=['CPUExecutionProvider'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any(node.op_type == "QuantizeLinear" for node in quantized.graph.node)
    (wanted,), (found,) = (onnx_program(m, "it")(x).values() for m in (graph, quantized))
    assert sqnr_db(wanted, found) > 30


def test_the_addition_at_the_end_of_a_residual_network_is_done_in_int8() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 16, 1), nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.one(x))
            return torch.relu(x + self.two(x)).mean((2, 3))

    torch.manual_seed(0)
    made = net(Residual(), (2, 8, 8))
    quantized = quantize_static(made.graph, made.seen, profile())
    kinds = Counter(node.op_type for node in quantized.graph.node)
    assert kinds["Relu"] == 0  # both are in the range of what comes out
    (add,) = [node for node in quantized.graph.node if node.op_type == "Add"]
    made_by = {name: node.op_type for node in quantized.graph.node for name in node.output}
    assert {made_by[name] for name in add.input} == {"DequantizeLinear"}
    assert made.sqnr_db(quantized) > 30


def test_bias_correction_gives_the_mean_back(mlp_net: Net) -> None:
    """With coarse weights the mean output of a layer moves; the correction moves it back."""
    coarse = replace(profile("generic-x86_64"), per_channel=False)
    wanted = mlp_net.run().mean(axis=0)
    off = {
        corrected: np.abs(
            mlp_net.run(quantize_static(mlp_net.graph, mlp_net.seen, coarse, bias_correction=corrected)).mean(axis=0)
            - wanted
        ).mean()
        for corrected in (True, False)
    }
    assert off[True] < 0.7 * off[False]


def test_a_channel_that_is_much_smaller_needs_its_own_scale() -> None:
    model = convolutions()
    with torch.no_grad():
        model.depthwise[0].weight *= torch.logspace(-2, 1, 12).reshape(-1, 1, 1, 1)
        model.project.weight /= torch.logspace(-2, 1, 12).reshape(1, -1, 1, 1)
    made = net(model, (3, 12, 12))
    by_channel, by_tensor = (
        made.sqnr_db(quantize_static(made.graph, made.seen, replace(profile(), per_channel=choice)))
        for choice in (True, False)
    )
    assert by_channel > by_tensor + 2


def test_constant_and_dead_activations_do_not_divide_by_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)  # nothing comes through
        model[2].weight[0].zero_()
    made = net(model, (4,))
    found = made.run(quantize_static(made.graph, made.seen, profile()))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, made.run(), atol=1e-2)


def test_the_layer_that_hurts_is_found() -> None:
    """A depthwise layer whose channels differ ten-thousandfold, behind one scale for all of them."""
    model = convolutions()
    with torch.no_grad():
        model.depthwise[0].weight *= torch.logspace(-4, 0, 12).reshape(-1, 1, 1, 1)
        model.depthwise[0].bias *= torch.logspace(-4, 0, 12)
        model.project.weight /= torch.logspace(-4, 0, 12).reshape(1, -1, 1, 1)
    made = net(model, (3, 12, 12))
    few = {"input": made.x["input"][:4]}
    output = made.graph.graph.output[0].name
    run = lambda quantized, what: onnx_program(quantized, what)(few)  # noqa: E731
    found = layer_sensitivity(made.graph, made.seen, profile(), "minmax", {output: made.run()[:4]}, run)
    assert "depthwise" in found[0][0] or "project" in found[0][0]
    assert found[0][1] < found[-1][1] - 15
    assert len(found) == len(quantizable_layers(made.graph))
    none = layer_sensitivity(made.graph, made.seen, profile(), "minmax", {output: made.run()[:4]}, lambda *_: None)
    assert {decibels for _, decibels in none} == {-200.0}  # a layer that does not run hurts most
