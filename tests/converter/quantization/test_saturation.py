"""int8 weights of -128 in files of other programs, for Arm targets: found however they are written, and mended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converter.quantization.saturation import layers_with_least_weight, multiplies_int8, without_least_weight
from converter.search.search import judged_sums
from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import BundleError, ConversionError
from edge.contract.profile import load_profile
from edge.inference.onnx_session import EXACT, OnnxSession, check_golden
from tests.converter.models import convert, plan

CODES = np.random.default_rng(0).integers(-127, 128, (6, 8)).astype(np.int8)
CODES[0, :2] = -128


def graph(kind: str, codes: np.ndarray = CODES) -> onnx.ModelProto:
    """A quantized layer ``(batch, 8) -> (batch, 6)``, as different programs write it."""
    scale, zero = np.array(0.02, np.float32), np.array(0, np.int8)
    tensors = {"codes": codes, "scale": scale, "zero": zero, "step": np.array(0.03, np.float32)}
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "step", "zero"], ["x.q"]),
        node("DequantizeLinear", ["x.q", "step", "zero"], ["x.dq"]),
    ]
    if kind in ("gemm", "transposed", "constant"):
        nodes.append(node("DequantizeLinear", ["codes", "scale", "zero"], ["w"]))
    if kind == "float":  # folded by the runtime when the file is opened
        tensors["codes"] = codes.astype(np.float32) * scale
        nodes.append(node("QuantizeLinear", ["codes", "scale", "zero"], ["w.q"]))
        nodes.append(node("DequantizeLinear", ["w.q", "scale", "zero"], ["w"]))
    if kind == "constant":
        nodes.insert(0, node("Constant", [], ["codes"], value=numpy_helper.from_array(tensors.pop("codes"))))
    if kind in ("gemm", "float", "constant"):
        nodes.append(node("Gemm", ["x.dq", "w"], ["y"], "layer", transB=1))
    if kind == "transposed":
        nodes += [node("Transpose", ["w"], ["w.t"]), node("MatMul", ["x.dq", "w.t"], ["y"], "layer")]
    if kind == "convolution":
        tensors["codes"] = codes[..., None]
        tensors["two"] = np.array([2], np.int64)
        nodes += [
            node("DequantizeLinear", ["codes", "scale", "zero"], ["w"]),
            node("Unsqueeze", ["x.dq", "two"], ["image"]),
            node("Conv", ["image", "w"], ["image.y"], "layer"),
            node("Squeeze", ["image.y", "two"], ["y"]),
        ]
    if kind == "integer":
        tensors["codes"] = np.ascontiguousarray(codes.T)
        nodes += [
            node("MatMulInteger", ["x.q", "codes", "zero", "zero"], ["sum"], "layer"),
            node("Cast", ["sum"], ["float"], to=TensorProto.FLOAT),
            node("Mul", ["float", "scale"], ["y"]),
        ]
    if kind == "qlinear":
        tensors["codes"] = np.ascontiguousarray(codes.T)
        operands = ["x.q", "step", "zero", "codes", "scale", "zero", "step", "zero"]
        nodes += [
            node("QLinearMatMul", operands, ["y.q"], "layer"),
            node("DequantizeLinear", ["y.q", "step", "zero"], ["y"]),
        ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6])],
            [numpy_helper.from_array(array, name) for name, array in tensors.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    return model


KINDS = ("gemm", "transposed", "constant", "float", "convolution", "integer", "qlinear")


def test_every_way_of_writing_int8_weights_is_known_and_mended() -> None:
    for kind in KINDS:
        model = graph(kind)
        before = model.SerializeToString()
        assert multiplies_int8(model), kind
        assert layers_with_least_weight(model) == ["layer"], kind
        mended, layers = without_least_weight(model)
        assert layers == ["layer"]
        assert layers_with_least_weight(mended) == [], kind
        assert model.SerializeToString() == before
        harmless = graph(kind, np.maximum(CODES, -127))
        assert without_least_weight(harmless) == (harmless, []), kind


def test_pairs_of_products_fit_16_bits_once_no_weight_is_least() -> None:
    """The kernel's own sums, in numpy: two products in an int16, then into an int32."""

    def pairwise(x: np.ndarray, w: np.ndarray) -> int:
        with np.errstate(over="ignore"):
            pair = x[0::2].astype(np.int16) * w[0::2] + x[1::2].astype(np.int16) * w[1::2]
        return int(pair.astype(np.int32).sum())

    worst = np.full(8, -128, np.int8)
    exact = int(worst.astype(np.int32) @ CODES[0].astype(np.int32))
    assert pairwise(worst, CODES[0]) == exact - 65536
    (codes,) = (t for t in without_least_weight(graph("gemm"))[0].graph.initializer if t.name == "codes")
    for row in numpy_helper.to_array(codes):
        for x in (worst, np.full(8, 127, np.int8), np.where(row < 0, -128, 127).astype(np.int8)):
            assert pairwise(x, row) == int(x.astype(np.int32) @ row.astype(np.int32))


def test_a_foreign_int8_file_is_mended_for_arm_and_the_cost_is_told(tmp_path: Path) -> None:
    for kind in ("gemm", "convolution"):
        source = tmp_path / f"{kind}.onnx"
        onnx.save(graph(kind), source)
        report = convert(plan(source, profile=load_profile("raspberry-pi-3"), trainable="none")).report
        shipped = onnx.load_from_string(Bundle.open(source.with_suffix(".edge")).read(m.MODEL))
        assert layers_with_least_weight(shipped) == []
        (note,) = (note for note in report["notes"] if "-128" in note)
        assert "are -127 now" in note
        assert "dB" in note
        vnni = load_profile("x86_64-vnni")  # where no such sum is
        convert(plan(source, profile=vnni, trainable="none", output=tmp_path / "x86.edge"))
        shipped = onnx.load_from_string(Bundle.open(tmp_path / "x86.edge").read(m.MODEL))
        assert len(layers_with_least_weight(shipped)) == 1


def test_a_foreign_file_that_mending_changes_too_much_is_refused(tmp_path: Path) -> None:
    codes = np.zeros((6, 8), np.int8)
    codes[:, 0], codes[:, 1] = -128, 127  # what is left of x0 - x1 is one step
    source = tmp_path / "model.onnx"
    model = graph("gemm", codes)
    # Both columns of the same input, so that only their difference counts.
    pick = helper.make_node("Gather", ["x", "zeros"], ["x.same"], axis=1)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.int64), "zeros"))
    model.graph.node.insert(0, pick)
    model.graph.node[1].input[0] = "x.same"
    onnx.save(model, source)
    with pytest.raises(ConversionError, match="-127 instead"):
        convert(plan(source, profile=load_profile("raspberry-pi-3"), trainable="none"))
    assert not source.with_suffix(".edge").exists()


# --- x86 without VNNI ------------------------------------------------------------------------------------------------


class X86:
    """Runs a quantized linear layer as the kernels of an x86 CPU do: unsigned activations times signed weights.

    Without VNNI two products are added in 16 bits, which saturate (``vpmaddubsw``); with it all are added in 32.
    """

    provider = "cpu"

    def __init__(self, model: onnx.ModelProto, *, vnni: bool) -> None:
        self._model, self._vnni = model, vnni

    def run(self, inputs: Mapping[str, np.ndarray], parameters: object = None) -> dict[str, np.ndarray]:
        values = {t.name: numpy_helper.to_array(t) for t in self._model.graph.initializer} | dict(inputs)
        codes: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for node in self._model.graph.node:
            given = [values[name] for name in node.input]
            if node.op_type == "QuantizeLinear":
                x, scale, zero = given
                limits = np.iinfo(zero.dtype)
                found = np.clip(np.rint(x / scale) + zero, limits.min, limits.max).astype(zero.dtype)
            elif node.op_type == "DequantizeLinear":
                stored, *given = given
                codes[node.output[0]] = (stored, *given)
                shape = (-1, *[1] * (stored.ndim - 1))
                scale, zero = (array.reshape(shape) if array.ndim else array for array in given)
                found = ((stored.astype(np.int64) - zero) * scale).astype(np.float32)
            else:
                assert node.op_type == "Gemm"
                found = self._product(codes[node.input[0]], codes[node.input[1]])
                found = found + (given[2] if len(given) > 2 else 0)
            values[node.output[0]] = found.astype(np.float32) if found.dtype.kind == "f" else found
        return {item.name: values[item.name] for item in self._model.graph.output}

    def _product(self, of_x: tuple[np.ndarray, ...], of_w: tuple[np.ndarray, ...]) -> np.ndarray:
        (x, x_scale, x_zero), (w, w_scale, w_zero) = of_x, of_w
        assert w.dtype == np.int8
        assert not w_zero.any()
        shift = 128 if x.dtype == np.int8 else 0  # signed activations are shifted first
        pairs = ((x.astype(np.int64) + shift)[:, None] * w).reshape(len(x), len(w), -1, 2).sum(-1)
        if not self._vnni:
            pairs = np.clip(pairs, -(2**15), 2**15 - 1)
        sums = pairs.sum(-1) - (int(x_zero) + shift) * w.astype(np.int64).sum(-1)
        return sums * np.float64(x_scale) * w_scale.astype(np.float64)


def about_the_mean_db(wanted: np.ndarray, found: np.ndarray) -> float:
    """Of the worst column."""
    signal, noise = wanted.var(axis=0), np.square(wanted - found).mean(axis=0)
    return float(10 * np.log10(signal / np.maximum(noise, 1e-12 * signal)).min())


def test_files_say_what_a_saturating_cpu_gives_which_refuses_them_though_an_offset_hides_the_loss(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    tensors = {"w": rng.uniform(0.9, 1.0, (6, 8)).astype(np.float32), "offset": np.full(6, 1e4, np.float32)}
    layer = helper.make_node("Gemm", ["x", "w", "offset"], ["y"], "layer", transB=1)
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", k]) for n, k in (("x", 8), ("y", 6))]
    made = helper.make_graph(
        [layer], "g", infos[:1], infos[1:], [numpy_helper.from_array(a, n) for n, a in tensors.items()]
    )
    source, x = tmp_path / "model.onnx", rng.uniform(0, 1, (200, 8)).astype(np.float32)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), source)
    np.savez(tmp_path / "x.npz", x=x)
    wanted = x.astype(np.float64) @ tensors["w"].T + tensors["offset"]
    for target, saturates in (("raspberry-pi-4", True), ("x86_64-vnni", True), ("generic-x86_64", False)):
        profile = load_profile(target)
        asked = {"calibration": str(tmp_path / "x.npz"), "trainable": "none", "quantize": "int8"}
        said = convert(plan(source, profile=profile, **asked)).report["saturation"]
        assert ("of this CPU saturate" in said["text"]) == (said["difference_db"] > 3)  # whatever CPU this is
        bundle = Bundle.open(source.with_suffix(".edge"))
        model = onnx.load_from_string(bundle.read(m.MODEL))
        usual, exact = X86(model, vnni=False), X86(model, vnni=True)
        found = OnnxSession(bundle, config=EXACT).run({"x": x})["y"]  # as the device adds
        np.testing.assert_allclose(exact.run({"x": x})["y"], found, rtol=1e-6)
        ratios = [about_the_mean_db(wanted, cpu.run({"x": x})["y"]) for cpu in (usual, exact)]
        check_golden(exact, bundle)
        if not saturates:
            assert ratios[0] == ratios[1] > 30
            check_golden(usual, bundle)
            assert (
                "exact arithmetic changes the outputs by 0.0 dB"
                in judged_sums(ratios[0], ratios[1], profile, "int8")[0]
            )
            continue
        assert ratios[0] < 10 < 30 < ratios[1]
        assert "saturate" in judged_sums(ratios[0], ratios[1], profile, "int8")[0]
        with pytest.raises(BundleError, match=r"about its mean"):
            check_golden(usual, bundle)
        with pytest.raises(ConversionError, match="use a target with reduce_range"):
            judged_sums(ratios[0], ratios[1], load_profile("generic-x86_64"), "int8")


def test_a_foreign_file_that_saturates_without_vnni_is_refused_for_such_a_target() -> None:
    x = np.random.default_rng(0).uniform(-4, 4, (64, 8)).astype(np.float32)
    model, generic = graph("gemm"), load_profile("generic-x86_64")
    (codes, scale) = (numpy_helper.to_array(t) for t in model.graph.initializer if t.name in ("codes", "scale"))
    wanted = x @ (codes * scale).T
    ratios = [about_the_mean_db(wanted, X86(model, vnni=vnni).run({"x": x})["y"]) for vnni in (False, True)]
    with pytest.raises(ConversionError, match=r"saturate on this CPU.*quantize it again with 7-bit weights"):
        judged_sums(ratios[0], ratios[1], generic, "none")
    said, gap = judged_sums(42.7, 200.0, generic, "none")  # a little is what its maker's users get, too
    assert "saturate a little" in said
    assert gap > 100
    with pytest.raises(ConversionError, match="saturate"):
        judged_sums(42.7, 200.0, generic, "int8")
    narrow = graph("gemm", (CODES // 2).astype(np.int8))
    found = [X86(narrow, vnni=vnni).run({"x": x})["y"] for vnni in (False, True)]
    np.testing.assert_array_equal(found[0], found[1])


def test_sums_that_have_no_exact_form_are_said_not_to_have_been_compared(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = [numpy_helper.from_array(np.float32(0.1), f"{name}_scale") for name in "xwy"]
    tensors += [numpy_helper.from_array(np.zeros((), np.int8), "zero")]
    tensors += [numpy_helper.from_array(random.integers(-100, 100, (4, 3)).astype(np.int8), "w")]
    codes = ["x_scale", "zero"]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", *codes], ["q"]),
            helper.make_node(
                "QGemm", ["q", *codes, "w", "w_scale", "zero", "", "y_scale", "zero"], ["p"], domain="com.microsoft"
            ),
            helper.make_node("DequantizeLinear", ["p", "y_scale", "zero"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3])],
        tensors,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=random.normal(size=(64, 4)).astype(np.float32))
    report = convert(plan(tmp_path / "m.onnx", calibration=str(tmp_path / "x.npz"), quantize="none")).report
    assert "its sums were not compared" in report["saturation"]["text"]
    assert report["saturation"]["difference_db"] is None
