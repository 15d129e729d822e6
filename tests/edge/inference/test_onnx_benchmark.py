"""Measuring happens in a process of its own, and a model that kills it does not stop the next measurement."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper

from edge.contract.errors import BundleError
from edge.inference.onnx_benchmark import Benchmark, Timing, measure_here, timed_yet


def model(n_megabytes: int = 0) -> bytes:
    """Doubles its input; with megabytes, makes a tensor of that size on the way."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    tensors = []
    if n_megabytes:
        tensors = [helper.make_tensor("shape", TensorProto.INT64, [1], [n_megabytes << 18])]
        nodes = [
            helper.make_node("Expand", ["x", "shape"], ["big"]),
            helper.make_node("ReduceSum", ["big"], ["sum"]),
            helper.make_node("Add", ["sum", "x"], ["y"]),
        ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(made)
    return made.SerializeToString()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.onnx").write_bytes(model())
    (tmp_path / "large.onnx").write_bytes(model(200))
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    safetensors.numpy.save_file({"x": np.ones(1, np.float32)}, tmp_path / "feeds")
    return tmp_path


def test_measures_latency_start_up_and_memory(folder: Path) -> None:
    with Benchmark(0.02) as benchmark:
        small = benchmark.measure(folder / "small.onnx", folder / "feeds")
        large = benchmark.measure(folder / "large.onnx", folder / "feeds")
        again = benchmark.measure(folder / "small.onnx", folder / "feeds")
    assert 0 < small.latency_ms <= small.latency_p90_ms
    assert small.runs >= 5
    assert small.load_s > 0
    assert large.latency_ms > small.latency_ms
    mib = 1 << 20
    assert large.peak_memory_bytes > small.peak_memory_bytes + 150 * mib
    assert again.peak_memory_bytes < small.peak_memory_bytes + 20 * mib  # a process of its own each time


def test_a_model_that_does_not_load_is_an_error_and_the_next_one_is_measured(folder: Path) -> None:
    with Benchmark(0.02) as benchmark:
        with pytest.raises(BundleError, match="does not load"):
            benchmark.measure(folder / "broken.onnx", folder / "feeds")
        with pytest.raises(BundleError, match="could not be measured"):
            benchmark.measure(folder / "missing.onnx", folder / "feeds")
        assert benchmark.measure(folder / "small.onnx", folder / "feeds").runs >= 5


def test_measuring_in_the_same_process_gives_the_same_kind_of_answer() -> None:
    assert isinstance(measure_here(model(), {"x": np.ones(1, np.float32)}, 1, 0.01), Timing)


def test_models_are_compared_in_turn_and_a_broken_one_is_an_error(folder: Path) -> None:
    small, large, broken = ((folder / f"{name}.onnx", folder / "feeds") for name in ("small", "large", "broken"))
    with Benchmark(0.02) as benchmark:
        latencies = benchmark.compare([large, small, small]).latencies_ms
        assert latencies[0] > 10 * latencies[1]
        assert latencies[1] < 10 * latencies[2]
        with pytest.raises(BundleError, match="could not be compared"):
            benchmark.compare([small, broken])
        found = benchmark.compare([small])
        assert len(found.latencies_ms) == 1
        assert 0.0 <= found.spread < 10.0


def test_who_is_clearly_slower_or_not_wanted_is_timed_for_the_first_rounds_only(folder: Path) -> None:
    """The first one, which ratios are to, is timed to the end, however slow it is."""
    first, fastest, near, spread, unwanted = np.ones(8), np.full(8, 0.5), np.full(8, 0.54), np.ones(8), np.full(8, 0.1)
    spread[:4] = 0.5  # half of the time it was as fast as the fastest
    ratios = np.array([first, fastest, np.full(8, 0.6), near, spread, unwanted])
    assert timed_yet([0, 2, 3, 5, 7, 8], ratios, {0, 2, 3, 5, 7}) == [0, 2, 5, 7]
    assert timed_yet([0, 8], ratios[[0, 5]], {2}) == [0]
    assert timed_yet([0, 3], ratios[[0, 2]], {3}) == [0, 3]

    (folder / "slower.onnx").write_bytes(model(1))
    files = [(folder / f"{name}.onnx", folder / "feeds") for name in ("slower", "small", "slower", "small")]
    with Benchmark(0.05) as benchmark:
        found = benchmark.compare(files, wanted=[0, 1, 2])
    assert found.rounds[0] == found.rounds[1] >= max(found.rounds[2:])
    assert min(found.rounds) >= 4
    slower, small, same, unwanted_small = found.latencies_ms
    assert min(slower, same) > 2 * max(small, unwanted_small)


def test_programs_share_a_process_and_what_one_left_behind_is_not_held_against_the_next(folder: Path) -> None:
    path, feeds = folder / "small.onnx", folder / "feeds"

    def children(benchmark: Benchmark) -> list[int]:
        assert benchmark._running is not None
        pid = benchmark._running.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    with Benchmark(0.02) as benchmark:
        with benchmark.program(path, feeds) as run:
            assert run({})["y"] == 2
            (process,) = children(benchmark)
        with benchmark.program(path, feeds) as run:
            assert children(benchmark) == [process]
            os.kill(process, signal.SIGSEGV)  # as if the one before had written into its memory
            assert run({})["y"] == 2  # what was sent to the dead one is not taken for requests
            (other,) = children(benchmark)
            assert other != process
            os.kill(other, signal.SIGSEGV)
            for _ in range(2):  # alone in its process it is blamed itself
                with pytest.raises(BundleError, match="ended the process that ran it"):
                    run({})
        with benchmark.program(path, feeds) as run:
            (process,) = children(benchmark)
        os.kill(process, signal.SIGSEGV)
        with benchmark.program(path, feeds) as run:
            assert run({})["y"] == 2
            (process,) = children(benchmark)
        benchmark.measure(path, feeds)
        assert process not in children(benchmark)  # what is measured has the machine alone


def test_a_program_runs_apart_on_whatever_it_is_given_and_its_death_is_an_error(folder: Path) -> None:
    """The same numbers as here, of all types and shapes; a crash of onnxruntime itself, and others run on."""
    names = {"f": "float32", "d": "float64", "i": "int64", "b": "bool", "s": "uint8"}
    nodes = [helper.make_node("Identity", [name], [f"o{name}"]) for name in names]
    kinds = {name: helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) for name, dtype in names.items()}
    given = [helper.make_tensor_value_info(name, kinds[name], None) for name in names]
    gives = [helper.make_tensor_value_info(f"o{name}", kinds[name], None) for name in names]
    path = folder / "identity.onnx"
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", given, gives), opset_imports=opsets, ir_version=8), path)
    rng = np.random.default_rng(0)
    batches = [
        {name: np.asarray(rng.normal(size=shape) * 3).astype(dtype) for name, dtype in names.items()}
        for shape in ((), (0, 3), (2, 3), (300, 400))
    ]
    product = ["q", "scale", "zero", "seven", "scale", "zero", "scale", "zero"]
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["q"]),
        helper.make_node("QLinearMul", product, ["y"], domain="com.microsoft"),
    ]
    tensors = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor("zero", TensorProto.UINT8, [], [0]),
        helper.make_tensor("seven", TensorProto.UINT8, [], [7]),
    ]
    shape = [helper.make_tensor_value_info("shape", TensorProto.INT64, [2])]
    out = [helper.make_tensor_value_info("y", TensorProto.UINT8, None)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", shape, out, tensors), opset_imports=opsets, ir_version=8),
        folder / "deadly.onnx",
    )
    safetensors.numpy.save_file({}, folder / "nothing")
    with Benchmark(0.02) as benchmark:
        with benchmark.program(path, folder / "nothing") as run:
            for batch in batches:
                found = run(batch)
                assert list(found) == [f"o{name}" for name in names]
                for name, array in batch.items():
                    assert found[f"o{name}"].dtype == array.dtype
                    np.testing.assert_array_equal(found[f"o{name}"], array, strict=True)
            with pytest.raises(BundleError, match=r"[Ii]nput"):
                run({})
            assert run(batches[0])["oi"] == batches[0]["i"]  # an error is no death
        with (
            pytest.raises(BundleError, match="does not load"),
            benchmark.program(folder / "broken.onnx", folder / "nothing"),
        ):
            pass
        with benchmark.program(folder / "deadly.onnx", folder / "nothing", threads=2) as run:
            assert run({"shape": np.array([2, 3])})["y"].shape == (2, 3)
            with pytest.raises(BundleError, match="ended the process that ran it"):
                run({"shape": np.array([1, 0])})
        with pytest.raises(ValueError, match="of ours"), benchmark.program(path, folder / "nothing"):
            raise ValueError("of ours")
        with benchmark.program(folder / "small.onnx", folder / "feeds") as run:
            assert run({})["y"] == 2  # its input is always the same
        assert benchmark.measure(folder / "small.onnx", folder / "feeds").runs >= 5
