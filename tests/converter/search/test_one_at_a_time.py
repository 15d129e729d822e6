"""A graph that takes its int8 scales of a whole run is measured, and run, one sample at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from converter.export.exporters import by_tracing
from converter.graph.canonical import canonical
from converter.program.one_run import as_judged, shares_scales
from converter.program.programs import onnx_program
from converter.program.tensors import Arrays
from converter.quantization.dynamic import quantize_dynamic
from converter.quantization.layers import optimize
from converter.search.candidates import Bench
from edge.agent.model.serving import Serving
from edge.contract.bundle import Bundle
from edge.contract.tensorspec import TensorSpec
from edge.inference.onnx_session import EXACT, open_onnx
from edge.inference.session import sqnr_db
from tests.converter.models import benchmark_server, convert, export, exported_by, plan, rng, save, source_of, vector
from tests.converter.quantization.conftest import profile


class Direction(nn.Module):
    """Samples of very different sizes, which it normalizes behind its first product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 24, bias=False), nn.Linear(24, 24), nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x))
        return self.last(torch.relu(self.second(h / (h.norm(dim=1, keepdim=True) + 1e-12))))


class Remembering(nn.Module):
    """An LSTM whose state has its samples along the second axis; and what is the same for all."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.scale = nn.Parameter(torch.ones(1, 3))

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> dict[str, torch.Tensor]:
        y, (hn, cn) = self.lstm(x, (h, c))
        return {"y": y[:, -1], "hn": hn, "cn": cn, "same": self.scale * 2}


def unlike(count: int, *shape: int) -> np.ndarray:
    """Samples of which some are a thousand times as large as others."""
    sizes = 10.0 ** rng(1).uniform(-1.5, 1.5, (count, *[1] * len(shape)))
    return (rng(0).normal(size=(count, *shape)) * sizes).astype(np.float32)


def remembering() -> tuple[onnx.ModelProto, Arrays]:
    torch.manual_seed(0)
    given = {"x": unlike(5, 4, 6), "h": unlike(5, 1, 8).swapaxes(0, 1), "c": unlike(5, 1, 8).swapaxes(0, 1)}
    states = [TensorSpec(name=name, dtype="float32", shape=(1, "batch", 8)) for name in ("h", "c")]
    model = exported_by(by_tracing, source_of(Remembering(), vector(4, 6, name="x"), *states)).model
    return model, {name: np.asarray(array, order="C") for name, array in given.items()}


def alone(model: onnx.ModelProto, given: Arrays, axes: Sequence[int]) -> list[Arrays]:
    """What onnxruntime itself gives for each sample."""
    session = open_onnx(model.SerializeToString(), "it", 1, EXACT)
    names = [output.name for output in session.get_outputs()]
    count = next(iter(given.values())).shape[axes[0]]
    rows = [{n: np.take(a, [i], axis) for (n, a), axis in zip(given.items(), axes, strict=True)} for i in range(count)]
    return [dict(zip(names, session.run(None, row), strict=True)) for row in rows]


def test_samples_together_get_what_each_gets_alone_here_and_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = quantize_dynamic(optimize(canonical(export(Direction().eval(), (12,)))), profile())
    recurrent, given = remembering()
    recurrent = quantize_dynamic(optimize(canonical(recurrent)), profile())
    x = {dense.graph.input[0].name: unlike(9, 12)}
    for model, inputs, axes in ((dense, x, [0]), (recurrent, given, [0, 1, 1])):
        assert shares_scales(model.graph)
        wanted = alone(model, inputs, axes)
        found = onnx_program(model, "it")(inputs)
        with Bench(benchmark_server(), tmp_path, inputs).program(model, "it", {}) as run:
            apart = run(inputs)
        for name, array in wanted[0].items():
            axis = 1 if name in ("hn", "cn") else 0
            every = array if name == "same" else np.concatenate([one[name] for one in wanted], axis)
            for got in (found[name], apart[name]):
                assert got.shape == every.shape
                np.testing.assert_allclose(got, every, rtol=1e-5, atol=1e-5)
    # In one run they are others: what is measured there says nothing of a device.
    name = dense.graph.output[0].name
    every = np.concatenate([one[name] for one in alone(dense, x, [0])])
    assert sqnr_db(every, open_onnx(dense.SerializeToString(), "it", 1, EXACT).run(None, x)[0]) < 20


def test_graphs_whose_samples_do_not_touch_are_run_together() -> None:
    torch.manual_seed(0)
    model = optimize(canonical(export(Direction().eval(), (12,))))
    assert as_judged(model) is None
    inner = quantize_dynamic(model, profile()).graph
    branch = onnx.helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
    assert shares_scales(onnx.helper.make_graph([branch], "outer", [], []))


def test_a_bundle_is_judged_and_answers_one_sample_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Direction().eval()
    x = unlike(160, 12)
    source = save(model, tmp_path / "direction.pth", (12,))
    y = model(torch.from_numpy(x)).argmax(1).numpy()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    made = plan(
        source, output=tmp_path / "o.edge", quantize="dynamic", max_drop=5.0, calibration=str(tmp_path / "data.npz")
    )
    report = convert(made).report
    assert any("one at a time" in note for note in report["notes"])

    bundle = Bundle.open(tmp_path / "o.edge")
    assert bundle.manifest.one_by_one
    serving = Serving(bundle, threads=1)
    name, output = bundle.manifest.inputs[0].name, bundle.manifest.outputs[0].name
    rows = [{name: x[i : i + 1]} for i in range(len(x))]
    each = np.concatenate([serving.session.run(row)[output] for row in rows])
    assert (each.argmax(1) == y).mean() > 0.95
    features = bundle.manifest.head.features.name if bundle.manifest.head else ""
    wanted = np.concatenate([serving.session.features(row) for row in rows])
    np.testing.assert_allclose(serving.run({name: x})[features], wanted, rtol=1e-5, atol=1e-6)
