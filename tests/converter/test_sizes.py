"""What follows from fixed sizes becomes constant; what follows from the batch stays computed; no output changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from converter.canonical import canonical
from converter.program import onnx_program
from tests.converter.models import export, rng


class Chunks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third = x.chunk(3, dim=2)
        mixed = (first * second + third).reshape(x.shape[0], x.shape[1] * 2, -1)
        return mixed.transpose(1, 2).flatten(1) / x.shape[2]


class Batched(nn.Module):
    """Where the batch comes into a size, it must stay free."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0] * x.shape[1], x.shape[2]).cumsum(0).reshape(x.shape)[:, : x.shape[1] // 2]


MODELS = {
    "chunks": (Chunks(), (4, 6), 1),
    "batch": (Batched(), (4, 6), 1),
    "attention": (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), (4, 6), 0),
    "rounded up": (nn.Sequential(nn.Conv2d(4, 3, 1), nn.AvgPool2d(1, 2, ceil_mode=True), nn.Flatten()), (4, 4, 6), 1),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_no_output_changes_at_any_batch_size(name: str) -> None:
    model, shape, shapes_left = MODELS[name]
    exported = export(model.eval(), shape)
    found = canonical(exported)
    onnx.checker.check_model(found)
    before, after = (Counter(node.op_type for node in graph.graph.node) for graph in (exported, found))
    assert after["Shape"] <= before["Shape"]
    assert (after["Shape"] > 0) <= (shapes_left > 0)
    assert after.total() <= before.total()
    for n in (1, 2, 5):
        x = {"input": rng(n).normal(size=(n, *shape)).astype(np.float32)}
        (wanted,), (got,) = (tuple(onnx_program(graph, "the test")(x).values()) for graph in (exported, found))
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_transformer_loses_a_third_of_its_operators() -> None:
    from converter.attention import traceable

    with traceable():
        exported = export(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True).eval(), (4, 6))
    before = sum(node.op_type != "Constant" for node in exported.graph.node)
    assert len(canonical(exported).graph.node) < 0.67 * before
