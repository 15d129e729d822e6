"""Rewriting to one form changes no output, and leaves out what says nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from converter.graph.canonical import canonical
from converter.graph.nodes import linear
from converter.program.programs import onnx_program
from tests.converter.models import export, rng


class Recurrent(nn.Module):
    """A recurrent layer that begins with zeros, with ones, or with a state that depends on the input."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], begin: str) -> None:
        super().__init__()
        self.layer, self.begin = kind(4, 5, num_layers=2, batch_first=True, bidirectional=True), begin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = None
        if self.begin != "nothing":
            state = (torch.ones if self.begin == "ones" else torch.zeros)(4, x.shape[0], 5)
            if isinstance(self.layer, nn.LSTM):
                state = (state, state)
        return self.layer(x, state)[0][:, -1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("begin", ["nothing", "zeros", "ones"])
def test_a_state_of_zeros_is_left_out_and_no_other(kind: type[nn.LSTM | nn.GRU], begin: str) -> None:
    torch.manual_seed(0)
    model = Recurrent(kind, begin).eval()
    exported = export(model, (6, 4))
    found = canonical(exported)
    onnx.checker.check_model(found)
    layers = [node for node in found.graph.node if node.op_type in ("LSTM", "GRU")]
    assert len(layers) == 2
    for node in layers:
        assert (len(node.input) > 5 and bool(node.input[5])) == (begin == "ones")
    if begin != "ones":
        assert Counter(node.op_type for node in found.graph.node)["ConstantOfShape"] == 0
        assert Counter(node.op_type for node in found.graph.node)["Shape"] == 0
    x = rng().normal(size=(3, 6, 4)).astype(np.float32)
    (output,) = onnx_program(found, "the test")({"input": x}).values()
    with torch.no_grad():
        np.testing.assert_allclose(output, model(torch.from_numpy(x)).numpy(), atol=1e-5)


def test_what_nobody_reads_and_where_a_node_came_from_are_left_out() -> None:
    exported = export(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (4,))
    exported.graph.initializer.append(numpy_helper.from_array(np.ones(1000, np.float32), "unused"))
    for node in exported.graph.node:
        node.doc_string = "/home/somebody/net.py"
        node.metadata_props.add(key="source", value="/home/somebody/net.py")
    found = canonical(exported)
    assert b"somebody" not in found.SerializeToString()
    assert "unused" not in {tensor.name for tensor in found.graph.initializer}
    x = rng().normal(size=(3, 4)).astype(np.float32)
    (before,), (after,) = (tuple(onnx_program(model, "it")({"input": x}).values()) for model in (exported, found))
    np.testing.assert_array_equal(before, after)


def test_factors_of_a_product_are_taken_into_its_constants_where_nobody_else_reads_them() -> None:
    random = rng(0)
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in (("w", (4, 3)), ("b", (3,)))}
    x = random.normal(size=(5, 4)).astype(np.float32)
    for shared in (False, True):
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=3.0)]
        if shared:
            nodes += [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Add", ["y", "z"], ["o"])]
        output = "o" if shared else "y"
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["batch", 3])],
            [numpy_helper.from_array(array, name) for name, array in tensors.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        found = canonical(model)
        wanted, given = (onnx_program(m, "it")({"x": x})[output] for m in (model, found))
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)
        assert (linear(found.graph.node[0]) is None) == shared
