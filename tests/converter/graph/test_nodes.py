"""One view of a node: stated attributes, those of ONNX's table, linear layers, and who reads what."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from converter.graph.build import make_model, tensor_info
from converter.graph.links import Links
from converter.graph.nodes import Linear, attribute, inner_graphs, linear, stated


def test_an_attribute_is_what_the_node_states_else_what_the_operator_is_defined_with() -> None:
    pool = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3], auto_pad="SAME_UPPER")
    assert attribute(pool, "auto_pad") == "SAME_UPPER"
    assert attribute(pool, "ceil_mode") == 0
    assert attribute(pool, "strides", [1]) == [1]  # which ONNX leaves to the number of axes
    assert attribute(pool, "no_such") is None
    assert stated(pool) == {"kernel_shape": [3], "auto_pad": "SAME_UPPER"}
    recurrent = helper.make_node("GRU", ["x", "w", "r"], ["y"], activations=["Sigmoid", "Tanh"], hidden_size=4)
    assert attribute(recurrent, "activations") == ["Sigmoid", "Tanh"]
    assert attribute(recurrent, "direction") == "forward"


def test_an_operator_that_onnx_does_not_define_has_what_it_states_and_no_more() -> None:
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=4)
    assert (attribute(node, "K"), attribute(node, "bits"), attribute(node, "bits", 4)) == (4, None, 4)
    assert attribute(helper.make_node("Selu", ["x"], ["y"], domain="mine"), "alpha") is None


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (helper.make_node("MatMul", ["x", "w"], ["y"]), Linear("x", "w", None, transposed=False)),
        (helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1), Linear("x", "w", "b", transposed=True)),
        (helper.make_node("Gemm", ["x", "w", ""], ["y"], beta=2.0), Linear("x", "w", None, transposed=False)),
        (helper.make_node("Gemm", ["x", "w", "b"], ["y"], beta=2.0), None),
        (helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5), None),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), None),
        (helper.make_node("Conv", ["x", "w"], ["y"]), None),
        (helper.make_node("MatMul", ["x", "w"], ["y"], domain="mine"), None),
    ],
)
def test_linear_is_what_scales_nothing_and_transposes_no_input(node: onnx.NodeProto, expected: Linear | None) -> None:
    assert linear(node) == expected


def test_links_know_who_makes_and_reads_a_value_branches_included() -> None:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("Neg", ["double"], [name])], name, [], [out])

    w = numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")
    two = helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32(2.0)))
    double = helper.make_node("Mul", ["x", "two"], ["double"])
    either = helper.make_node("If", ["flag"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    scaled = helper.make_node("Mul", ["y", "w"], ["z"])
    model = make_model(
        "links",
        [two, double, either, scaled],
        [tensor_info("x", ("batch", 3)), tensor_info("flag", (), np.bool_)],
        [tensor_info("y", ("batch", 3)), tensor_info("z", ("batch", 3))],
        [w],
    )
    assert {graph.name for graph in inner_graphs(either)} == {"a", "b"}
    links = Links(model.graph)
    assert links.array("two") == 2.0
    assert links.array("w").tolist() == [0.0, 1.0, 2.0]
    assert links.made_by["double"].op_type == "Mul"
    assert [node.op_type for node in links.readers["double"]] == ["If"]
    assert links.only_reader("double") == either
    assert links.only_reader("y") is None, "it is an output, too"
    assert links.only_reader("z") is None
