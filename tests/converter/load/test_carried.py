"""ONNX as it comes: what stock onnxruntime runs is worked on or carried, and gives what the file gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.onnx_suite import cases, outcome, passes
from converter.report.values import headline
from edge.agent.model.on_device_model import OnDeviceModel
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError, ConversionError
from edge.inference.onnx_session import OnnxSession
from tests.converter.models import benchmark_server, convert, plan

# Each for a trait of its own.
SUITE = set(
    """
    test_add_bcast test_argmax_keepdims_random test_bitshift_left_uint64 test_cast_FLOAT_to_FLOAT16
    test_clip_splitbounds_expanded test_compress_0 test_constant test_cumsum_1d test_dynamicquantizelinear
    test_gelu_tanh_1 test_if test_isinf test_layer_normalization_default_axis test_loop11 test_lstm_with_initial_bias
    test_nonmaxsuppression_two_batches test_nonzero_example test_onehot_with_axis test_qlinearconv
    test_reduce_sum_empty_set test_resize_upsample_scales_linear test_scan9_sum test_sce_mean_weight_log_prob
    test_slice_neg test_tril_zero test_unique_not_sorted_without_axis test_ai_onnx_ml_tree_ensemble_single_tree
    test_Conv2d_groups test_expand_shape_model1 test_training_dropout_zero_ratio_mask
    test_attention_4d_attn_mask_bool_4d test_and_bcast3v2d
""".split()  # noqa: SIM905  # quotes would double its length
)
MODULES = """
    add and_ argmax attention bitshift cast clip compress constant cumsum dropout dynamicquantizelinear gelu if_ isinf
    layernormalization loop lstm nonmaxsuppression nonzero onehot qlinearconv reducesum resize scan slice
    softmax_cross_entropy_loss trilu unique ai_onnx_ml.tree_ensemble
""".split()  # noqa: SIM905


def test_what_onnxruntime_runs_is_carried_and_right(tmp_path: Path) -> None:
    chosen = [case for case in cases(MODULES) if case.name in SUITE]
    ran = {}
    for case in chosen:
        own = passes(case)
        assert own is not None, case.name
        ran[case.name] = outcome(case, own, tmp_path, benchmark_server(), given_data=False)
    assert {name: (found.status, found.why) for name, found in ran.items() if found.status != "right"} == {}
    assert set(ran) == set(SUITE)
    assert sum(any("carried as it is" in note for note in found.notes) for found in ran.values()) > 10
    assert sum(not any("carried as it is" in note for note in found.notes) for found in ran.values()) > 3


def graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 18,
    ir_version: int = 8,
    elements: dict[str, int] | None = None,
    **more: Any,
) -> onnx.ModelProto:
    kinds = elements or {}
    infos = [
        [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), shape) for n, shape in each.items()]
        for each in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    made = helper.make_graph(nodes, "g", infos[0], infos[1], tensors)
    domains = sorted({node.domain for node in nodes} - {""})
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(made, opset_imports=opsets, ir_version=ir_version, **more)


def node(op_type: str, reads: str, gives: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, reads.split(), gives.split(), name, **attributes)


RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 4)).astype(np.float32)


def unsorted() -> onnx.ModelProto:
    nodes = [
        node("Relu", "h", "y"),
        node("Cast", "m", "h", to=1),
        node("Gemm", "k w", "m"),
        node("Cast", "x", "k", to=10),
    ]
    return graph(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": W.astype(np.float16)})


def captured() -> onnx.ModelProto:
    info = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    then = helper.make_graph([node("Mul", "h w", "z")], "then", [], [info])
    other = helper.make_graph([node("Neg", "h", "z")], "else", [], [info])
    nodes = [node("Relu", "x", "h"), node("If", "flag", "y", then_branch=then, else_branch=other)]
    return graph(nodes, {"x": [2, 4], "flag": []}, {"y": [2, 4]}, {"w": W[0]}, elements={"flag": TensorProto.BOOL})


def with_function() -> onnx.ModelProto:
    twice = helper.make_function("own", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 18)])
    return graph([node("Twice", "x", "y", domain="own")], {"x": ["n", 3]}, {"y": ["n", 3]}, functions=[twice])


def sparse() -> onnx.ModelProto:
    model = graph([node("Add", "x s", "y")], {"x": ["n", 4]}, {"y": ["n", 4]})
    values = numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "s")
    indices = numpy_helper.from_array(np.array([1, 3]), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    model.ir_version = 10
    return model


def recurrent() -> onnx.ModelProto:
    """As torch writes it where the batch is fixed: the initial state is a constant of one sample."""
    weights = {"w": RNG.standard_normal((1, 9, 4)), "r": RNG.standard_normal((1, 9, 3)), "h": np.zeros((1, 1, 3))}
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        helper.make_node("GRU", ["t", "w", "r", "", "", "h"], ["", "s"], hidden_size=3),
        node("Squeeze", "s zero", "y"),
    ]
    tensors = {name: array.astype(np.float32) for name, array in weights.items()} | {"zero": np.array([0])}
    return graph(nodes, {"x": [1, 5, 4]}, {"y": [1, 3]}, tensors)


def initializers_are_inputs() -> onnx.ModelProto:
    return graph(
        [node("MatMul", "x w", "y")], {"x": [1, 4], "w": [4, 4]}, {"y": [1, 4]}, {"w": W}, opset=9, ir_version=3
    )


F: dict[str, list[Any]] = {"x": ["n", 4]}
G: dict[str, list[Any]] = {"y": ["n", 4]}
BY_HAND = {
    "nodes out of order, in half precision": (unsorted(), "free"),
    "a branch captures values": (captured(), "free"),
    "a function in the model": (with_function(), "free"),
    "a sparse initializer": (sparse(), "free"),
    "a batch fixed at 1": (graph([node("Gemm", "x w", "y")], {"x": [1, 4]}, {"y": [1, 4]}, {"w": W}), "free"),
    "a batch fixed at 3": (graph([node("Softmax", "x", "y")], {"x": [3, 4]}, {"y": [3, 4]}), "free"),
    "a batch of 1 that is built in": (
        graph([node("Concat", "x c", "y", axis=1)], {"x": [1, 4]}, {"y": [1, 8]}, {"c": W[:1]}),
        "fixed at 1",
    ),
    "time in front": (graph([node("CumSum", "x zero", "y")], F, G, {"zero": np.array(0)}), "no batch axis"),
    "a recurrent layer with a state for one sample": (recurrent(), "free"),
    "initializers that are inputs": (initializers_are_inputs(), "free"),
    "an operator of onnxruntime's own": (
        graph([node("FusedMatMul", "x w", "y", domain="com.microsoft", alpha=0.5)], F, G, {"w": W}),
        "free",
    ),
    "no inputs": (graph([node("Neg", "w", "y")], {}, {"y": [4, 4]}, {"w": W}), "no batch axis"),
    "outputs that are an input and an initializer": (
        graph([node("Neg", "x", "y")], {"x": [2, 4]}, {"y": [2, 4], "x": [2, 4], "w": [4, 4]}, {"w": W}),
        "free",
    ),
    "nothing in a tensor": (graph([node("Neg", "x", "y")], {"x": [0, 4]}, {"y": [0, 4]}), "no batch axis"),
    "a scalar": (graph([node("Neg", "x", "y")], {"x": []}, {"y": []}), "no batch axis"),
    "an infinite mask": (
        graph([node("Add", "x m", "y")], F, G, {"m": np.array([0, -np.inf, 0, 0], np.float32)}),
        "free",
    ),
    "an older operator set": (
        graph(
            [node("Upsample", "x s", "y")],
            {"x": ["n", 1, 2, 2]},
            {"y": ["n", 1, 4, 4]},
            {"s": np.array([1, 1, 2, 2], np.float32)},
            opset=9,
        ),
        "free",
    ),
    "an operator that came later": (graph([node("Swish", "x", "y")], F, G, opset=24, ir_version=10), "free"),
}


def made_for(info: onnx.ValueInfoProto, rng: np.random.Generator) -> np.ndarray:
    tensor = info.type.tensor_type
    shape = [axis.dim_value if axis.HasField("dim_value") else 3 for axis in tensor.shape.dim]
    return np.asarray(rng.standard_normal(shape)).astype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def test_traits_of_files_are_carried_and_the_manifest_says_what_the_batch_is(tmp_path: Path) -> None:
    for what, (model, batch) in BY_HAND.items():
        path = tmp_path / "m.onnx"
        path.write_bytes(model.SerializeToString())
        convert(plan(path, quantize="none"))
        bundle = Bundle.open(path.with_suffix(".edge"))
        assert bundle.manifest.batch == batch, what
        session = OnnxSession(bundle)
        given = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = {item.name for item in given.get_inputs()}
        rng = np.random.default_rng(1)
        x = {info.name: made_for(info, rng) for info in model.graph.input if info.name in names}
        found = session.run(x)
        for item, wanted in zip(given.get_outputs(), given.run(None, x), strict=True):
            np.testing.assert_allclose(found[item.name], wanted, rtol=1e-3, atol=1e-5, err_msg=what)
        if batch == "free" and model.graph.input[0].type.tensor_type.shape.dim[0].dim_value:
            name, size = "x", len(x["x"])
            more = {**x, name: rng.standard_normal((5 * size, *x[name].shape[1:])).astype(np.float32)}
            alone = [given.run(None, {**x, name: more[name][i : i + size]})[0] for i in range(0, 5 * size, size)]
            np.testing.assert_allclose(
                session.run(more)["y"], np.concatenate(alone), rtol=1e-3, atol=1e-5, err_msg=what
            )


def test_outputs_that_no_node_makes_stay_as_they_are_in_every_scheme(tmp_path: Path) -> None:
    weights = {
        "w": RNG.standard_normal((4, 32)).astype(np.float32),
        "v": RNG.standard_normal((32, 5)).astype(np.float32),
        "table": np.array([1.0, 2.0, 3.0], np.float32),
    }
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")]
    outputs: dict[str, list[Any]] = {"y": ["n", 5], "table": [3], "w": [4, 32], "x": ["n", 4]}
    path = tmp_path / "m.onnx"
    onnx.save(graph(nodes, {"x": ["n", 4]}, outputs, weights), path)
    x = RNG.standard_normal((120, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    for scheme, trainable in (("int8", "none"), ("dynamic", "none"), ("int4", "none"), ("fp16", "none"), ("none", "v")):
        asked = {"calibration": str(tmp_path / "x.npz"), "quantize": scheme, "trainable": trainable, "max_drop": 100.0}
        convert(plan(path, **asked))
        found = OnnxSession(Bundle.open(path.with_suffix(".edge"))).run({"x": x})
        for name, array in (("table", weights["table"]), ("w", weights["w"]), ("x", x)):
            np.testing.assert_array_equal(found[name], array, err_msg=f"{scheme}: {name}")


def test_weights_count_wherever_they_stand(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    inner = numpy_helper.from_array(RNG.standard_normal((4, 30)).astype(np.float32), "v")
    then = helper.make_graph([node("MatMul", "h v", "z")], "then", [], [info], [inner])
    constant = numpy_helper.from_array(RNG.standard_normal((4, 30)).astype(np.float32))
    other = helper.make_graph([node("Constant", "", "u", value=constant), node("MatMul", "h u", "z")], "e", [], [info])
    outer = node("Constant", "", "w", value=numpy_helper.from_array(W))
    nodes = [outer, node("MatMul", "x w", "h"), node("If", "flag", "y", then_branch=then, else_branch=other)]
    path = tmp_path / "m.onnx"
    elements = {"flag": TensorProto.BOOL}
    onnx.save(graph(nodes, {"x": [2, 4], "flag": []}, {"y": [2, 30]}, elements=elements), path)
    report = convert(plan(path, quantize="none")).report
    n = 16 + 2 * 120
    assert report["n_parameters"] == n
    assert {c["name"]: c["size_bytes"] for c in report["candidates"]}["ONNX file"] == 4 * n


def test_weights_of_other_float_types_are_called_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for dtype, kind, element in ((np.float64, "float64", 11),):
        nodes = [node("Cast", "x", "k", to=element), node("MatMul", "k w", "h"), node("Relu", "h", "r")]
        nodes.append(node("MatMul", "r v", "y"))
        weights = {"w": W.astype(dtype), "v": W.astype(dtype)}
        onnx.save(graph(nodes, F, G, weights, elements={"y": element}), path)
        notes = "\n".join(convert(plan(path)).report["notes"])
        assert f"its weights are {kind}, and only float32 ones are trained" in notes
        assert f"weights that are {kind} are not quantized" in notes
        assert "no layer with parameters" not in notes
        assert "no convolution or matrix product" not in notes
        with pytest.raises(ConversionError, match=f"the weights are {kind}, and only float32 ones are quantized"):
            convert(plan(path, quantize="int8"))


INT64, INT32 = TensorProto.INT64, TensorProto.INT32
# An input beside x that decides what an axis of x is; values that it may have.
DECIDES: dict[str, tuple[onnx.ModelProto, list[np.ndarray]]] = {
    "sums along an axis": (
        graph([node("CumSum", "x a", "y")], {"x": [2, 3], "a": []}, {"y": [2, 3]}, elements={"a": INT32}),
        [np.array(0, np.int32), np.array(1, np.int32)],
    ),
    "sums along an axis, the first one free": (
        graph([node("CumSum", "x a", "y")], {"x": ["n", 3], "a": []}, {"y": ["n", 3]}, elements={"a": INT32}),
        [np.array(0, np.int32), np.array(1, np.int32)],
    ),
    "the axis that is summed up": (
        graph([node("ReduceSum", "x a", "y")], {"x": [2, 3], "a": [1]}, {"y": [1, 3]}, elements={"a": INT64}),
        [np.array([0]), np.array([1])],
    ),
    "a rim": (
        graph([node("Pad", "x a", "y")], {"x": [1, 4], "a": [4]}, {"y": [1, 6]}, elements={"a": INT64}),
        [np.array([0, 1, 0, 1]), np.array([1, 0, 2, 0]), np.zeros(4, np.int64)],
    ),
    "scales": (
        graph([node("Resize", "x e a", "y")], {"x": [1, 1, 2, 2], "a": [4]}, {"y": [1, 1, 4, 6]},
              {"e": np.zeros(0, np.float32)}),
        [np.array([1, 1, 2, 3], np.float32), np.array([2, 1, 1, 1], np.float32)],
    ),
    "new axes": (
        graph([node("Unsqueeze", "x a", "y")], {"x": [3, 4], "a": [2]}, {"y": [3, 1, 4, 1]}, elements={"a": INT64}),
        [np.array([1, 3]), np.array([0, 1])],
    ),
    "repetitions": (
        graph([node("Tile", "x a", "y")], {"x": [2, 3], "a": [2]}, {"y": [2, 6]}, elements={"a": INT64}),
        [np.array([1, 2]), np.array([3, 1])],
    ),
}  # fmt: skip


def test_an_input_that_decides_what_an_axis_is_may_have_any_value(tmp_path: Path) -> None:
    for what, (model, values) in DECIDES.items():
        path = tmp_path / "m.onnx"
        path.write_bytes(model.SerializeToString())
        convert(plan(path, quantize="none"))
        session, given = OnnxSession(Bundle.open(path.with_suffix(".edge"))), ort.InferenceSession(path)
        is_one = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1  # which may be a sample
        assert is_one or session.manifest.batch == "no batch axis", what
        x = made_for(model.graph.input[0], np.random.default_rng(1))
        for value in values:
            wanted = given.run(None, {"x": x, "a": value})[0]
            np.testing.assert_allclose(session.run({"x": x, "a": value})["y"], wanted, err_msg=what)


def test_a_detector_that_gives_as_many_rows_as_it_finds_is_carried_also_with_samples(tmp_path: Path) -> None:
    """With a batch of 1, as exporters fix it, and with one that is free but of which no output has samples."""
    for batch in (1, "n"):
        axes: dict[str, list[int | str]] = {"boxes": [batch, 6, 4], "scores": [batch, 1, 6]}
        weights = {"most": np.array([6]), "overlap": np.float32([0.5]), "least": np.float32([0.3])}
        suppressed = node("NonMaxSuppression", "boxes scores most overlap least", "found")
        path = tmp_path / "nms.onnx"
        model = graph([suppressed], axes, {"found": ["k", 3]}, weights, elements={"found": TensorProto.INT64})
        path.write_bytes(model.SerializeToString())
        corners = RNG.random((40, 6, 2)).astype(np.float32)
        boxes = np.concatenate([corners, corners + 0.2], axis=2)
        scores = RNG.random((40, 1, 6)).astype(np.float32)
        np.savez(tmp_path / "data.npz", boxes=boxes, scores=scores)
        report = convert(plan(path, calibration=str(tmp_path / "data.npz"))).report
        assert report["chosen"] == "as it is"
        assert any("NonMaxSuppression gives as many rows as it finds" in note for note in report["notes"])
        assert not report["says_quality"]
        session, given = OnnxSession(Bundle.open(path.with_suffix(".edge"))), ort.InferenceSession(path)
        rows = set()
        for i in range(10):
            one = {"boxes": boxes[i : i + 1], "scores": scores[i : i + 1]}
            found = session.run(one)["found"]
            np.testing.assert_array_equal(found, given.run(None, one)[0])
            rows.add(len(found))
        assert len(rows) > 1
        with pytest.raises(ConversionError, match="let the model end in front of it"):
            convert(plan(path, calibration=str(tmp_path / "data.npz"), quantize="int8"))


def test_what_cannot_be_carried_is_refused_by_name(tmp_path: Path) -> None:
    text = graph([node("StringConcat", "x x", "y")], {"x": [2]}, {"y": [2]}, opset=20, elements={"x": 8, "y": 8})
    listed = graph([node("SequenceConstruct", "x", "y")], {"x": [2]}, {})
    listed.graph.output.append(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [2]))
    refused = {
        "is text, and a bundle is given numbers": text,
        "y is of the type sequence": listed,
        "operator Fancy of the domain 'com.example'": graph(
            [node("Fancy", "x", "y", domain="com.example")], {"x": [2]}, {"y": [2]}
        ),
        "a matter of chance, by RandomNormalLike": graph([node("RandomNormalLike", "x", "y")], {"x": [2]}, {"y": [2]}),
    }
    for reason, model in refused.items():
        path = tmp_path / "m.onnx"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ConversionError, match=reason):
            convert(plan(path, quantize="none"))
        assert not path.with_suffix(".edge").exists()


def test_a_carried_model_is_not_quantized_and_is_served_as_it_is(tmp_path: Path) -> None:
    model, _ = BY_HAND["time in front"]
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    for asked in ({"quantize": "dynamic"}, {"trainable": "last:1"}):
        with pytest.raises(ConversionError):
            convert(plan(path, **asked))
        assert not path.with_suffix(".edge").exists()
    report = convert(plan(path)).report
    assert report["reason"] == "carried as its file has it: nothing is quantized, nothing learns"
    bundle = Bundle.open(path.with_suffix(".edge"))
    assert bundle.manifest.head is None
    assert bundle.manifest.carried
    assert bundle.manifest.inputs[0].batch_axis is None
    x = np.random.default_rng(0).random((3, 4), np.float32)
    with OnDeviceModel.open(bundle.path, tmp_path / "state") as model:
        np.testing.assert_allclose(model.predict(x), np.cumsum(x, axis=0), rtol=1e-5)
        np.testing.assert_allclose(model.predict_sample("a", x, 0.0), np.cumsum(x, axis=0), rtol=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_samples_are_served_one_by_one_and_together_by_a_graph_that_takes_so_many(tmp_path: Path, size: int) -> None:
    same = np.repeat(W[:1], size, axis=0)
    built_in = graph([node("Concat", "x c", "y", axis=1)], {"x": [size, 4]}, {"y": [size, 8]}, {"c": same})
    path = tmp_path / "m.onnx"
    path.write_bytes(built_in.SerializeToString())
    convert(plan(path))
    x = np.random.default_rng(0).random((7, 4), np.float32)
    expected = np.concatenate([x, np.repeat(W[:1], 7, axis=0)], axis=1)
    with OnDeviceModel.open(path.with_suffix(".edge")) as model:
        assert model.manifest.fixed_batch == size
        for n in (1, 2, 3, 7):
            np.testing.assert_array_equal(model.predict(x[:n]), expected[:n])
        np.testing.assert_array_equal(model.predict_sample("a", x[0], 0.0), expected[0])
        np.testing.assert_array_equal(model.predict_sample("a", x[:1], 0.0), expected[0])


def test_of_a_model_that_is_given_whole_tensors_no_samples_are_counted(tmp_path: Path) -> None:
    """Products of all rows with all: 200 rows are one input."""
    turned = [node("Transpose", "x", "t", perm=[1, 0]), node("MatMul", "x t", "y")]
    np.savez(tmp_path / "x.npz", x=RNG.standard_normal((200, 4)).astype(np.float32))
    np.savez(tmp_path / "xy.npz", x=np.ones((200, 4), np.float32), y=np.arange(200) % 2)
    path = tmp_path / "m.onnx"
    onnx.save(graph(turned, {"x": ["n", 4]}, {"y": ["n", "n"]}), path)
    report = convert(plan(path, calibration=str(tmp_path / "x.npz"))).report
    text = " ".join([*report["notes"], *(finding["text"] for finding in report["findings"])])
    assert "several rows give other outputs than each alone" in text
    assert "the model is given whole tensors, and one was" in text
    assert "different sample" not in text
    assert "dynamic_axes" not in text
    assert report["data"] == "one whole input, of x.npz"
    assert headline(report).endswith("; the graph of the file, 200.0 dB against it")
    with pytest.raises((ConversionError, ConfigError), match=r"none of their axes is one of samples.*Leave y out"):
        convert(plan(path, calibration=str(tmp_path / "xy.npz")))
