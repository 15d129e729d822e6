"""What a graph gives on values that no data were like is what torch gives there."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.nn import functional as fn

from converter.export import exporters
from converter.export.exporters import by_tracing
from converter.export.symbolics import right_symbolics
from converter.export.translations import TRANSLATIONS
from converter.stages import exporting
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError
from edge.inference.onnx_bound_run import BoundRun
from edge.inference.onnx_session import OnnxSession, open_onnx
from tests.converter.models import convert, plan

Pair = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

OF_FLOATS: tuple[Pair, ...] = (
    lambda x, y: x // 0.5, torch.floor_divide, lambda x, y: x % 1.3, torch.remainder, torch.fmod,
    lambda x, y: torch.div(x, y, rounding_mode="trunc"), lambda x, y: torch.div(x, y, rounding_mode="floor"),
    lambda x, y: x // 0.1, lambda x, y: x % 0.1, lambda x, y: torch.div(x, 0.1, rounding_mode="floor"),
    torch.atan2, lambda x, y: x**3, lambda x, y: fn.softplus(x), lambda x, y: fn.softplus(x, beta=2.0, threshold=3.0),
    lambda x, y: fn.logsigmoid(x), lambda x, y: torch.round(x), lambda x, y: torch.round(x, decimals=1),
    lambda x, y: fn.gelu(x), lambda x, y: fn.gelu(x, approximate="tanh"), lambda x, y: fn.mish(x),
    lambda x, y: fn.elu(x, 1.5),
    lambda x, y: fn.celu(x, 1.5), lambda x, y: fn.hardswish(x), lambda x, y: fn.softshrink(x, 0.7), torch.maximum,
    lambda x, y: torch.logsumexp(100 * x, -1), lambda x, y: fn.cosine_similarity(x, y, -1), lambda x, y: x.argmin(-1),
    lambda x, y: torch.roll(x, -2, -1), lambda x, y: torch.nan_to_num(x / 0.0, nan=1.0, posinf=2.0, neginf=-3.0),
    lambda x, y: x.to(torch.int64), lambda x, y: x.to(torch.int32), lambda x, y: torch.norm(x, 3, -1),
)  # fmt: skip
OF_INTEGERS: tuple[Pair, ...] = (
    lambda i, j: i // 3, lambda i, j: i // -3, lambda i, j: i // j, lambda i, j: i % 5, lambda i, j: i % -5,
    torch.remainder, torch.fmod, lambda i, j: torch.div(i, j, rounding_mode="trunc"), lambda i, j: i / j,
    lambda i, j: torch.div(i, j, rounding_mode="floor"), lambda i, j: i >> 2, lambda i, j: i << 2, lambda i, j: i & 7,
    lambda i, j: i % 1.5, lambda i, j: i // 0.5,
    lambda i, j: i.int() // 3, lambda i, j: torch.floor_divide(i.int(), j.int()), lambda i, j: i // 3 * 1.5,
)  # fmt: skip


class Each(nn.Module):
    def __init__(self, functions: tuple[Pair, ...]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(function(x, y) for function in self.functions)


def test_operators_are_written_as_torch_computes_them_whatever_the_sign() -> None:
    torch.manual_seed(0)
    x, y = 3 * torch.randn(6, 8), 3 * torch.randn(6, 8)
    x[0, :4], y[0, :4] = torch.tensor([0.0, -0.0, 0.0, 0.0]), torch.tensor([-1.0, -2.0, 0.5, 3.0])
    x[1, 1:3] = torch.tensor([60.0, -60.0])
    x[2:4], y[3] = torch.round(x[2:4], decimals=1), torch.round(y[3] * 2).clamp(min=1) / 2
    i, j = torch.randint(-50, 50, (6, 8)), torch.randint(1, 7, (6, 8)) * torch.where(torch.rand(6, 8) > 0.5, 1, -1)
    for functions, values in ((OF_FLOATS, (x, y)), (OF_INTEGERS, (i, j))):
        model = Each(functions).eval()
        near = tuple(value.abs() + 1 for value in values)
        for graph in (traced(model, *near), exported(model, *near)):
            found = ort.InferenceSession(graph).run(None, {"x": values[0].numpy(), "y": values[1].numpy()})
            for number, (one, other) in enumerate(zip(model(*values), found, strict=True)):
                assert one.numpy().dtype == other.dtype, number
                np.testing.assert_allclose(other, one.numpy(), rtol=1e-4, atol=1e-5, err_msg=str(number))


TABLE = torch.randn(5, 3)
# Of rows i of a table of 5 rows, or of values y.
OF_ROWS: tuple[Pair, ...] = (
    lambda i, y: fn.embedding(i, TABLE), lambda i, y: fn.embedding(i.int(), TABLE),
    lambda i, y: fn.embedding_bag(i, TABLE, mode="sum"), lambda i, y: TABLE.index_select(0, i[0]),
    lambda i, y: y.gather(1, i), lambda i, y: fn.one_hot(i, 5), lambda i, y: y.scatter(1, i, 2 * y),
    lambda i, y: y.scatter(1, i, 7.0), lambda i, y: y.scatter_add(1, i, y),
)  # fmt: skip


class EachOfItsOwn(nn.Module):
    def forward(self, y: torch.Tensor, *rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(function(i, y) for function, i in zip(OF_ROWS, rows, strict=True))


def test_a_row_that_does_not_exist_is_refused_as_torch_refuses_it() -> None:
    torch.manual_seed(0)
    model, y, rows = EachOfItsOwn(), torch.randn(4, 5), torch.randint(0, 4, (4, 5))
    rows[0] = torch.arange(5)
    values = (y, *(rows.clone() for _ in OF_ROWS))
    wanted = model(*values)
    for graph in (traced(model, *values), exported(model, *values)):
        session = open_onnx(graph, "the graph")
        run = BoundRun(session, [item.name for item in session.get_outputs()])
        feeds = {item.name: rows.numpy() if i else y.numpy() for i, item in enumerate(session.get_inputs())}
        for one, other in zip(wanted, run(feeds).values(), strict=True):
            np.testing.assert_allclose(other, one.numpy(), rtol=1e-5)
        for function, name in zip(OF_ROWS, list(feeds)[1:], strict=True):
            for wrong in (-1, -5, 5):
                others = rows.clone()
                others[0, 2] = wrong
                with pytest.raises((IndexError, RuntimeError)):
                    function(others, y)
                with pytest.raises(ConfigError, match=rf"the number {wrong} names nothing .* 0 to 4|a number names"):
                    run({**feeds, name: others.numpy()})


def traced(model: nn.Module, *values: torch.Tensor) -> bytes:
    file = io.BytesIO()
    with right_symbolics(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, values, file, dynamo=False, opset_version=18,  # type: ignore[arg-type]
            input_names=["x", "y", *(f"x_{i}" for i in range(2, len(values)))], do_constant_folding=False,
        )  # fmt: skip
    return file.getvalue()


def exported(model: nn.Module, *values: torch.Tensor) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, values, dynamo=True, opset_version=18, verbose=False, custom_translation_table=dict(TRANSLATIONS),
            input_names=["x", "y", *(f"x_{i}" for i in range(2, len(values)))],
        )  # fmt: skip
    assert program is not None
    graph: bytes = program.model_proto.SerializeToString()
    return graph


ROUNDED = """
from torch import nn
class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
    def forward(self, x):
        return self.linear(x // 0.5)
"""


def test_a_graph_that_is_right_on_the_data_only_gives_way_or_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporters, "right_symbolics", contextlib.nullcontext)  # torch's exporter as it is
    linear, data = nn.Linear(4, 3), np.abs(np.random.default_rng(0).normal(size=(64, 4))).astype(np.float32)
    path, samples, net = tmp_path / "m.pth", tmp_path / "x.npz", tmp_path / "net.py"
    net.write_text(ROUNDED)
    torch.save({f"linear.{name}": tensor for name, tensor in linear.state_dict().items()}, path)
    np.savez(samples, x=data)
    made = plan(path, calibration=str(samples), quantize="none", trainable="none", arch=f"{net}:Rounded")
    report = convert(made).report
    found = OnnxSession(Bundle.open(path.with_suffix(".edge"))).run({"input": -data})["output"]
    assert report["exporter"] == "torch.export"
    np.testing.assert_allclose(found, linear(torch.from_numpy(-data // 0.5)).detach(), atol=1e-5)
    monkeypatch.setattr(exporting, "exporters", lambda source: (by_tracing,))
    notes = " ".join(convert(made).report["notes"])
    assert "than the model on samples with the other sign" in notes
    assert "on the data it is right" in notes
