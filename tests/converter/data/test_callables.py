"""Samples from the user's own code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter.data.samples import SampleStream
from converter.data.stream import open_samples
from converter.data.subset import subset
from edge.contract.errors import ConfigError
from edge.contract.tensorspec import TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=("batch", 2))
STATE = TensorSpec(name="state", dtype="float32", shape=(1, "batch", 3))
FREE = TensorSpec(name="x", dtype="float32", shape=("batch", "time"))


def opened(folder: Path, code: str, *specs: TensorSpec) -> SampleStream:
    file = folder / "data.py"
    file.write_text(f"import numpy as np\nimport torch\n{code}")
    return open_samples(f"{file}:samples", "--calibrate", specs)


@pytest.mark.parametrize(
    "batch",
    [
        "(np.full((5, 2), 2.0), np.arange(5))",
        "[torch.full((5, 2), 2), torch.arange(5)]",
        "({'x': torch.full((5, 2), 2.0, dtype=torch.bfloat16, requires_grad=True)}, list(range(5)))",
    ],
)
def test_batches_are_cut_to_the_size_wanted(tmp_path: Path, batch: str) -> None:
    stream = opened(tmp_path, f"def samples():\n    yield {batch}\n    yield {batch}", X)
    assert stream.origin.endswith("data.py:samples")
    for _ in range(2):
        batches = list(stream.batches(3))
        assert [batch.x["x"].shape for batch in batches] == [(3, 2), (2, 2), (3, 2), (2, 2)]
        assert batches[1].y is not None
        assert (batches[1].y.dtype, batches[1].y.tolist()) == (np.int64, [3, 4])
        assert (batches[1].x["x"] == 2).all()


@pytest.mark.parametrize("batch", ["np.ones((1, 2))", "(np.ones((1, 2)),)", "(np.ones((1, 2)), None)"])
def test_labels_may_be_left_out(tmp_path: Path, batch: str) -> None:
    assert next(opened(tmp_path, f"def samples(): return [{batch}]", X).batches(3)).y is None


def test_several_inputs_come_by_name(tmp_path: Path) -> None:
    code = "def samples(): return [{'x': np.ones((4, 2)), 'state': np.ones((4, 1, 3))}]"
    stream = opened(tmp_path, code, X, STATE)
    batch = next(stream.batches(3))
    assert (batch.x["x"].shape, batch.x["state"].shape) == ((3, 2), (1, 3, 3))


def test_a_data_loader_does(tmp_path: Path) -> None:
    code = """
from torch.utils.data import DataLoader, TensorDataset
def samples():
    return DataLoader(TensorDataset(torch.ones(10, 2), torch.arange(10)), batch_size=4)
"""
    assert subset(opened(tmp_path, code, X), [X], max_samples=100, max_bytes=1 << 20).x["x"].shape == (10, 2)


def test_code_may_import_its_neighbours_while_it_runs(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_data.py").write_text("WIDTH = 2")
    code = "def samples():\n    from neighbour_of_data import WIDTH\n    yield np.ones((1, WIDTH))"
    assert next(opened(tmp_path, code, X).batches(1)).x["x"].shape == (1, 2)


@pytest.mark.parametrize(
    ("code", "specs", "message"),
    [
        ("def samples(): return 1 / 0", [X], "failed: ZeroDivisionError: division by zero"),
        ("def samples():\n    yield np.ones((1, 2))\n    1 / 0", [X], "failed: ZeroDivisionError"),
        ("def samples(): raise SystemExit(3)", [X], "failed: SystemExit"),
        ("def samples(): return None", [X], "failed: TypeError"),
        ("def samples(n): return []", [X], "failed: TypeError"),
        ("def samples(): return []", [X], "gives no batches"),
        ("def samples(): return [np.ones((0, 2))]", [X], "no samples in an array"),
        ("def samples(): return [(np.ones((1, 2)), None, None)]", [X], "gives 3 things for a batch"),
        ("def samples(): return [np.ones((1, 3))]", [X], r"of the shape \(3,\), but the model takes \(2,\)"),
        ("def samples(): return [[1, 2]]", [X], r"of the shape \(\), but"),
        ("def samples(): return ['text']", [X], "samples of the type <U4"),
        ("def samples(): return [([[1], [1, 2]], None)]", [X], "gives list; expected a numpy array"),
        ("def samples(): return [torch.ones(1, 2).to_sparse()]", [X], "gives Tensor; expected a numpy array"),
        ("def samples(): return [{'z': np.ones((1, 2)), 'w': 1}]", [X], "no array named x; it has z, w"),
        ("def samples(): return [np.ones((1, 2))]", [X, STATE], "one for each input: x, state"),
        ("def samples(): return [(np.ones((1, 2)), [1]), np.ones((1, 2))]", [X], "y with some batches only"),
        (
            "def samples(): return [(np.ones((1, 2)), [1]), (np.ones((1, 2)), [1.0])]",
            [X],
            r"y are targets of the shape \(\) after class numbers",
        ),
        (
            "def samples(): return [np.ones((1, 2)), np.ones((1, 3))]",
            [FREE],
            "size 3 along time after .* 2: .* pad them",
        ),
    ],
)
def test_what_goes_wrong_is_said(tmp_path: Path, code: str, specs: list[TensorSpec], message: str) -> None:
    with pytest.raises(ConfigError, match=r"--calibrate: .*data\.py:samples.*" + message):
        list(opened(tmp_path, code, *specs).batches(2))


def test_an_iterator_that_is_used_up_is_refused(tmp_path: Path) -> None:
    stream = opened(tmp_path, "ONE = iter([np.ones((1, 2))])\ndef samples(): return ONE", X)
    assert len(list(stream.batches(1))) == 1
    with pytest.raises(ConfigError, match="the same iterator again"):
        list(stream.batches(1))
