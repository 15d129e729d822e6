"""A session takes batches of any size one after another, from several threads, and hands out arrays of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError
from edge.contract.manifest import MODEL
from edge.contract.tensorspec import TensorSpec
from edge.inference import onnx_session
from edge.inference.onnx_session import EXACT, OnnxSession, golden_inputs, lost_column, open_onnx, with_defaults


@pytest.fixture(scope="module", params=["gives memory back", "keeps it"])
def session(mlp_bundle: Path, request: pytest.FixtureRequest) -> OnnxSession:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_session, "_SMALL_BYTES", 0 if request.param == "keeps it" else 1 << 30)
        return OnnxSession(Bundle.open(mlp_bundle))


def samples(session: OnnxSession, n: int) -> np.ndarray:
    (spec,) = session.manifest.inputs
    return np.random.default_rng(n).normal(size=(n, *spec.shape[1:])).astype(np.float32)


def outputs(session: OnnxSession, x: np.ndarray) -> np.ndarray:
    (name,) = (spec.name for spec in session.manifest.outputs)
    return session.run({session.manifest.inputs[0].name: x})[name]


@pytest.mark.parametrize("keeps_memory", [True, False])
def test_memory_is_kept_by_the_size_of_the_model_and_one_sample(
    mlp_bundle: Path, monkeypatch: pytest.MonkeyPatch, keeps_memory: bool
) -> None:
    bundle = Bundle.open(mlp_bundle)
    (samples,) = golden_inputs(bundle).values()
    assert len(samples) > 1
    size = len(with_defaults(bundle.read(MODEL), bundle.head_parameters())) + samples[0].nbytes
    monkeypatch.setattr(onnx_session, "_SMALL_BYTES", size - keeps_memory)
    assert OnnxSession(bundle)._model.get_session_options().enable_cpu_mem_arena == keeps_memory


def test_batches_of_any_size_give_what_single_samples_give(session: OnnxSession) -> None:
    x = samples(session, 12)
    alone = np.concatenate([outputs(session, row[None]) for row in x])
    for start, end in ((0, 5), (5, 12), (0, 1), (0, 12)):
        np.testing.assert_allclose(outputs(session, x[start:end]), alone[start:end], atol=1e-5)


def test_what_was_handed_out_does_not_change(session: OnnxSession) -> None:
    first = outputs(session, samples(session, 3))
    kept = first.copy()
    outputs(session, samples(session, 3) + 1)
    np.testing.assert_array_equal(first, kept)


def test_inputs_need_not_lie_in_one_piece(session: OnnxSession) -> None:
    x = samples(session, 10)
    np.testing.assert_allclose(outputs(session, x[::2]), outputs(session, x)[::2], atol=1e-5)


def test_threads_do_not_get_each_others_outputs(session: OnnxSession) -> None:
    batches = [samples(session, n) for n in range(1, 41)]
    alone = [outputs(session, x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: outputs(session, x), batches))
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_parameters_take_the_place_of_the_shipped_head(session: OnnxSession, mlp_bundle: Path) -> None:
    shipped = Bundle.open(mlp_bundle).head_parameters()
    x = {session.manifest.inputs[0].name: samples(session, 4)}
    (name,) = (spec.name for spec in session.manifest.outputs)
    np.testing.assert_array_equal(session.run(x, shipped)[name], session.run(x)[name])
    zeros = {key: np.zeros_like(array) for key, array in shipped.items()}
    assert not session.run(x, zeros)[name].any()


def test_refuses_inputs_that_do_not_fit_after_ones_that_did(session: OnnxSession) -> None:
    x = samples(session, 4)
    outputs(session, x)
    for wrong in (x.astype(np.float64), x[:, :-1], x[0]):
        with pytest.raises(ConfigError):
            outputs(session, wrong)
    with pytest.raises(ConfigError, match="expected the inputs"):
        session.run({"nothing": x})


def test_defaults_written_behind_a_graph_are_initializers_of_it() -> None:
    """The bytes are those of onnx's own library: another protobuf reader takes them for one message."""
    names = ("x", "head.weight", "b" * 300)
    nodes = [helper.make_node("Gemm", list(names), ["y"], transB=1)]
    shapes = (["n", 200], [3, 200], [3])
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip(names, shapes, strict=True)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "g", infos, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    rng = np.random.default_rng(0)
    values = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in zip(names[1:], shapes[1:], strict=True)
    }
    data = with_defaults(model.SerializeToString(), values)
    found = onnx.load_from_string(data)
    onnx.checker.check_model(found)
    for tensor, (name, array) in zip(found.graph.initializer, values.items(), strict=True):
        assert tensor.name == name
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), array)
    assert list(found.graph.node) == list(graph.node)
    x = rng.normal(size=(2, 200)).astype(np.float32)
    session = open_onnx(data, "the test")
    np.testing.assert_allclose(
        session.run(None, {"x": x})[0], x @ values["head.weight"].T + values[names[2]], rtol=1e-4
    )
    assert with_defaults(b"graph", {}) == b"graph"


def test_a_lost_column_is_seen_beside_any_offset_and_what_rounding_does_is_not() -> None:
    rng = np.random.default_rng(0)
    wanted = (rng.normal(size=(16, 3)) * [3e3, 1e-2, 1.0] + [1e5, 0.03, 0.0]).astype(np.float32)
    spec = TensorSpec(name="y", dtype="float32", shape=("batch", 3))
    halved = wanted.copy()
    halved[:, 1] = (halved[:, 1] - 0.03) / 2 + 0.03
    assert (lost_column(spec, wanted, halved, False) or (0, ""))[1] == "y[1]"
    large = np.float32(1e25)  # whose square no float32 holds
    assert (lost_column(spec, wanted * large, halved * large, False) or (0, ""))[1] == "y[1]"
    image = np.broadcast_to(wanted[:, :, None, None], (16, 3, 2, 2))
    channels = TensorSpec(name="y", dtype="float32", shape=("batch", 3, 2, 2))
    halved_image = np.broadcast_to(halved[:, :, None, None], image.shape)
    assert (lost_column(channels, image, halved_image, False) or (0, ""))[1] == "y[1]"

    one_code = wanted.copy()
    one_code[4, 2] += 5.0
    constant, moved = wanted.copy(), wanted.copy()
    constant[:, 1], moved[:, 1] = 0.0, 1e-3
    flat = (1e5 + rng.normal(size=(16, 3)) * 1e-2).astype(np.float32)
    half = wanted * (1 + rng.normal(size=wanted.shape) * 1e-3).astype(np.float32)
    for a, b, is_half in (
        (wanted, wanted, False),
        (wanted, one_code, False),
        (constant, moved, False),  # a constant that moves a little, as an SQNR judges
        (flat, np.nextafter(flat, np.float32(np.inf)), False),
        (wanted, half, True),
        (wanted[:4], halved[:4], False),  # too few values to tell
    ):
        assert lost_column(spec, a, b, is_half) is None


def test_an_int8_operator_without_an_exact_form_runs_as_the_cpu_has_it() -> None:
    """Of two signed ones, as onnxruntime's QOperator files have them."""
    code = {"a_scale": 0.1, "b_scale": 0.1, "y_scale": 0.1}
    zero = np.zeros((), np.int8)
    weights = np.arange(12, dtype=np.int8).reshape(4, 3)
    tensors = [numpy_helper.from_array(np.float32(value), name) for name, value in code.items()]
    tensors += [numpy_helper.from_array(zero, "zero"), numpy_helper.from_array(weights, "w")]
    inputs = ["x", "a_scale", "zero", "w", "b_scale", "zero", "", "y_scale", "zero"]
    graph = helper.make_graph(
        [helper.make_node("QGemm", inputs, ["y"], domain="com.microsoft")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT8, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, ["n", 3])],
        tensors,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = open_onnx(model.SerializeToString(), "it", config=EXACT)
    x = np.ones((2, 4), np.int8)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], np.rint(0.1 * (x.astype(int) @ weights)))
