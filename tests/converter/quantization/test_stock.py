"""onnxruntime's own recipe: tried where it takes more than ours, in the target's types."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from dataclasses import replace

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from converter.graph.canonical import canonical
from converter.quantization.layers import optimize, running_in_int8
from converter.quantization.stock import is_another, quantize_stock
from edge.contract.errors import ConversionError
from edge.contract.profile import load_profile
from tests.converter.models import cnn, mlp
from tests.converter.quantization.conftest import Net, convolutions, net

PROFILE = load_profile("generic-x86_64").quantization


class Upward(nn.Module):
    """A network with a transposed convolution beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(11, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.deep(torch.relu(self.down(x))))
        return self.last(torch.cat([self.up(y), x], 1))


class Attention(nn.Module):
    """Products of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1) @ self.v(x))


class Resized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(nn.functional.interpolate(self.one(x), scale_factor=2.0))


@pytest.fixture(scope="module")
def upward() -> Net:
    torch.manual_seed(0)
    return net(Upward(), (3, 8, 8))


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_is_another_recipe_only_where_it_takes_an_operator_that_ours_leaves(upward: Net) -> None:
    for model, shape in ((mlp(), (12,)), (cnn(), (1, 8, 8)), (convolutions(), (3, 9, 9))):
        assert not is_another(net(model, shape, n=1).graph, PROFILE)
    for model, shape in ((Attention(), (5, 8)), (Resized(), (3, 8, 8)), (nn.LayerNorm(8), (8,))):
        assert is_another(net(model, shape, n=1).graph, PROFILE)
    arm = load_profile("generic-arm64").quantization
    assert is_another(upward.graph, arm)
    assert not is_another(net(Attention(), (5, 8), n=1).graph, arm)  # the products of its activations would overflow


def test_keeps_the_outputs_in_the_types_of_the_profile(upward: Net) -> None:
    batches = [{"input": sample[None]} for sample in upward.x["input"]]
    found = {
        name: quantize_stock(upward.graph, iter(batches), profile)
        for name, profile in {
            "reduced": PROFILE,
            "tensor": replace(PROFILE, per_channel=False),
            "full": replace(PROFILE, reduce_range=False),
            "arm": load_profile("generic-arm64").quantization,
        }.items()
    }
    largest = {}
    for name, model in found.items():
        assert upward.sqnr_db(model) > 25, name
        assert running_in_int8(model)[0] == 3
        tensors = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
        largest[name] = max(abs(int(array.min())) for array in tensors if array.dtype == "int8" and array.ndim == 4)
    assert largest == {"reduced": 64, "tensor": 64, "full": 127, "arm": 127}
    assert kinds(found["tensor"])["DequantizeLinear"] == kinds(found["reduced"])["DequantizeLinear"]


def test_what_onnxruntime_raises_is_a_conversion_error(upward: Net) -> None:
    with pytest.raises(ConversionError, match="onnxruntime's own recipe fails"):
        quantize_stock(upward.graph, iter([]), PROFILE)


class Experts(nn.Module):
    """Which layer answers is decided by values: a branch of the graph reads what stands before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.last = nn.Linear(8, 3), nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen, y = self.gate(x).argmax(1), torch.zeros(x.shape[0], 4)
        for i, expert in enumerate(self.experts):
            mine = chosen == i
            if mine.any():
                y[mine] = expert(x[mine])
        out: torch.Tensor = self.last(y)
        return out


def test_what_the_recipe_writes_behind_its_readers_is_put_in_order() -> None:
    file, x = io.BytesIO(), torch.randn(40, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            torch.jit.script(Experts().eval()), (x[:2],), file, dynamo=False, opset_version=18,  # type: ignore[arg-type]
            input_names=["x"], dynamic_axes={"x": {0: "batch"}},
        )  # fmt: skip
    model = optimize(canonical(onnx.load_from_string(file.getvalue())))
    found = quantize_stock(model, iter([{"x": x.numpy()}]), PROFILE)
    onnx.checker.check_model(found)
