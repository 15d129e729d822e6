"""A run that is bound gives what the usual one gives, whatever comes between; memory is kept for one like it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edge.inference.onnx_bound_run import BoundRun
from edge.inference.onnx_session import open_onnx

Array = npt.NDArray[np.generic]


def session(*nodes: onnx.NodeProto, outputs: Mapping[str, int], **inputs: int) -> ort.InferenceSession:
    """Of tensors with one free axis, by name and type."""
    infos = [
        [helper.make_tensor_value_info(name, kind, [None]) for name, kind in some.items()] for some in (inputs, outputs)
    ]
    graph = helper.make_graph(list(nodes), "g", *infos)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return open_onnx(made.SerializeToString(), "the test")


@pytest.fixture(scope="module")
def sums() -> ort.InferenceSession:
    nodes = helper.make_node("Add", ["x", "w"], ["sum"]), helper.make_node("Greater", ["x", "w"], ["more"])
    outputs = {"sum": TensorProto.FLOAT, "more": TensorProto.BOOL}
    return session(*nodes, outputs=outputs, x=TensorProto.FLOAT, w=TensorProto.FLOAT)


def test_gives_what_the_usual_run_gives_whatever_shapes_come_in_turn(sums: ort.InferenceSession) -> None:
    run, rng = BoundRun(sums, ["sum", "more"]), np.random.default_rng(0)
    kept = []
    for size in (3, 3, 3, 3, 5, 3, 3, 3, 5, 5, 5, 1, 40_000, 40_000, 40_000, 0, 0, 0):
        x, w = rng.normal(size=(2, size)).astype(np.float32)
        found = run({"x": x, "w": w})
        assert list(found) == ["sum", "more"]
        kept.append((found, {"sum": x + w, "more": x > w}))
    for found, wanted in kept:  # what was given is not written to again
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)


def test_takes_what_is_not_contiguous_and_other_names_and_types_as_the_usual_run_does(
    sums: ort.InferenceSession,
) -> None:
    run, x = BoundRun(sums, ["sum"]), np.arange(8, dtype=np.float32)
    for _ in range(4):
        np.testing.assert_array_equal(run({"x": x[::2], "w": x[1::2]})["sum"], x[::2] + x[1::2])
    for wrong in ({"x": x}, {"x": x, "w": x.astype(np.float64)}, {"x": x, "v": x}):
        with pytest.raises((ValueError, ort.capi.onnxruntime_pybind11_state.InvalidArgument)):
            run(wrong)
    np.testing.assert_array_equal(run({"x": x, "w": x})["sum"], 2 * x)


def test_outputs_whose_size_goes_by_values_are_right() -> None:
    run = BoundRun(
        session(
            helper.make_node("Compress", ["x", "keep"], ["kept"], axis=0),
            outputs={"kept": TensorProto.FLOAT},
            x=TensorProto.FLOAT,
            keep=TensorProto.BOOL,
        ),
        ["kept"],
    )
    x = np.arange(4, dtype=np.float32)
    for bits in (3, 3, 3, 7, 7, 7, 0, 15, 15, 15, 15, 1):
        keep = np.array([bits >> i & 1 for i in range(4)], bool)
        np.testing.assert_array_equal(run({"x": x, "keep": keep})["kept"], x[keep])


def test_asks_about_feeds_that_differ_from_those_before(sums: ort.InferenceSession) -> None:
    asked: list[int] = []

    def check(feeds: Mapping[str, Array]) -> None:
        asked.append(feeds["x"].size)
        if feeds["x"].size == 2:
            raise ValueError("two")

    run = BoundRun(sums, ["sum"])
    for size in (3, 3, 3, 4, 3, 3, 3, 3):
        run({"x": np.ones(size, np.float32), "w": np.ones(size, np.float32)}, check)
    assert asked == [3, 4, 3]
    for _ in range(3):  # also when it was refused before
        with pytest.raises(ValueError, match="two"):
            run({"x": np.ones(2, np.float32), "w": np.ones(2, np.float32)}, check)


def test_threads_do_not_mix_their_samples(sums: ort.InferenceSession) -> None:
    run, wrong = BoundRun(sums, ["sum"]), []

    def work(value: int) -> None:
        x = np.full(500, value, np.float32)
        for _ in range(400):
            if not (run({"x": x, "w": x})["sum"] == 2 * value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


_MIB = 1 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("keeps_memory", [True, False])
def test_memory_is_kept_for_the_next_run_of_about_that_size_only(keeps_memory: bool) -> None:
    """glibc gives blocks of more than 32 MiB back in any case; the agent tells it to do so from 256 KiB on."""
    repeats = helper.make_tensor("repeats", TensorProto.INT64, [1], [160])
    nodes = [helper.make_node("Tile", ["x", "repeats"], ["large"]), helper.make_node("ReduceSum", ["large"], ["sum"])]
    x, total = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in ("x", "sum"))
    graph = helper.make_graph(nodes, "g", [x], [total], [repeats])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    run = BoundRun(open_onnx(model.SerializeToString(), "the test", keeps_memory=keeps_memory), ["sum"], keeps_memory)
    one, text, many = (np.ones(64 * n << 10, np.float32) for n in (1, 2, 8))  # of which 40, 80 and 320 MiB are made
    before = resident_bytes()

    def kept_after(array: Array) -> int:
        assert run({"x": array})["sum"] == array.size * 160
        return (resident_bytes() - before) // _MIB

    kept_after(one)
    for array in (one, one, text, one):
        assert (kept_after(array) >= 38) == keeps_memory
    most = 130 if keeps_memory else 10  # a block in which an output lies stays
    assert kept_after(many) < most
    assert (kept_after(many) >= 300) == keeps_memory  # the same again
    assert kept_after(one) < most
