"""What follows from fixed sizes becomes constant; what follows from the batch stays computed; no output changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from converter.graph.canonical import canonical
from converter.program.programs import onnx_program
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
    from converter.program.attention import traceable

    with traceable():
        exported = export(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True).eval(), (4, 6))
    before = sum(node.op_type != "Constant" for node in exported.graph.node)
    assert len(canonical(exported).graph.node) < 0.67 * before


def test_a_size_that_a_branch_reads_is_still_there() -> None:
    """The bodies of If and Loop read values of the graph around them."""
    f, i = TensorProto.FLOAT, TensorProto.INT64
    bodies = [
        helper.make_graph(
            [helper.make_node("Reshape", ["x", "shape"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, f, None)],
        )
        for name in ("yes", "no")
    ]
    nodes = [
        helper.make_node("Shape", ["x"], ["all"], start=1),
        helper.make_node("Concat", ["rest", "all"], ["shape"], axis=0),
        helper.make_node("If", ["flag"], ["y"], then_branch=bodies[0], else_branch=bodies[1]),
    ]
    infos = [helper.make_tensor_value_info("x", f, ["batch", 4]), helper.make_tensor_value_info("flag", 9, [])]
    graph = helper.make_graph(
        nodes,
        "g",
        infos,
        [helper.make_tensor_value_info("y", f, ["batch", 4])],
        [helper.make_tensor("rest", i, [1], [-1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    found = canonical(model)
    onnx.checker.check_model(found)
    assert not any(node.op_type in ("Shape", "Concat") for node in found.graph.node)
    x = rng().normal(size=(3, 4)).astype(np.float32)
    (output,) = onnx_program(found, "the test")({"x": x, "flag": np.array(True)}).values()
    np.testing.assert_array_equal(output, x)
