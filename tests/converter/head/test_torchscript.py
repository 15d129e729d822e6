"""Heads as TorchScript: every operator with a gradient rule is mapped and gives what onnxruntime gives."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from converter.graph.build import make_model, tensor_info
from converter.head.gradient.rules import RULES
from converter.head.gradient.training_graph import build_training_graph
from converter.head.split import FEATURES
from converter.head.torchscript.archive import HEAD_FILE, torch_head
from converter.head.torchscript.operators import OPERATORS
from edge.contract.errors import ConversionError
from edge.contract.recipe import TrainingRecipe
from edge.inference.onnx_trainer import OnnxTrainer
from edge.inference.torchscript_trainer import HEAD_FILE as READ_FILE
from edge.inference.torchscript_trainer import TorchScriptTrainer
from tests.edge.inference.reference import NETWORKS, distance, head_of, network

W = (4, 6)


def graph(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Any] | None = None,
    features: tuple[int, ...] = (6,),
    output: int = 4,
    weight: tuple[int, ...] = W,
) -> onnx.ModelProto:
    """A head of ``features`` and the parameter ``w`` whose last value is ``y``."""
    return make_model(
        "head",
        nodes,
        [tensor_info("features", ("batch", *features)), tensor_info("w", weight)],
        [tensor_info("y", ("batch", output))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """Inputs are separated by spaces, ``-`` is one left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op_type, names, output.split(), name=output, **attributes)


GEMM = node("Gemm", "features w", "z", transB=1)
FLAT = node("Gemm", "flat w", "y", transB=1)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def flat_head(nodes: list[onnx.NodeProto], n: int, features: tuple[int, ...], **constants: Any) -> onnx.ModelProto:
    """Nodes that end in ``x``, flattened and put through a linear layer."""
    return graph([*nodes, node("Flatten", "x", "flat"), FLAT], constants, features, weight=(4, n))


def through(op_type: str, *inputs: str, constants: dict[str, Any] | None = None, **attributes: Any) -> onnx.ModelProto:
    """A linear layer, then an operator on what it gives."""
    return graph([GEMM, node(op_type, " ".join(["z", *inputs]), "y", **attributes)], constants)


def positive(op_type: str) -> onnx.ModelProto:
    """The same for an operator of positive numbers."""
    return graph([GEMM, node("Mul", "z z", "s"), node("Add", "s one", "p"), node(op_type, "p", "y")],
                 {"one": np.float32(1)})  # fmt: skip


F32 = np.float32
UNARY = ["Abs", "Exp", "Neg", "Relu", "Sigmoid", "Tanh", "Erf", "Softplus", "Mish", "HardSwish", "Identity", "Dropout"]
UNARY += ["Selu", "Celu", "Elu", "LeakyRelu", "HardSigmoid", "Softmax", "LogSoftmax", "Sign", "Floor", "Softsign"]
IMAGE = (2, 5, 6)
KERNEL = np.random.default_rng(0).normal(size=(4, 2, 3, 2)).astype(F32)
HEADS: dict[str, onnx.ModelProto] = {
    **{
        name: through(name)
        for name in UNARY
    },
    **{name: positive(name) for name in ("Log", "Sqrt", "Reciprocal")},
    **{
        name: through(name, "c", constants={"c": F32([1, 2, -3, 4])})
        for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")
    },
    "Pow": through("Pow", "c", constants={"c": F32(2)}),
    "PRelu": through("PRelu", "c", constants={"c": F32([0.1, 0.2, 0.3, 0.4])}),
    "Clip": through("Clip", "low", "high", constants={"low": F32(-0.5), "high": F32(0.7)}),
    "Clip from below": through("Clip", "low", constants={"low": F32(-0.5)}),
    "Clip from above": through("Clip", "-", "high", constants={"high": F32(0.2)}),
    "Elu alpha": through("Elu", alpha=0.5),
    "Selu alpha": through("Selu", alpha=0.5, gamma=2.0),
    "Where": graph([GEMM, node("Greater", "z c", "g"), node("Where", "g z c", "y")], {"c": F32(0)}),
    "Cast": graph([GEMM, node("Cast", "z", "d", to=onnx.TensorProto.DOUBLE), node("Cast", "d", "y", to=1)]),
    "CastLike": graph([GEMM, node("Cast", "z", "d", to=onnx.TensorProto.DOUBLE), node("CastLike", "d z", "y")]),
    "MatMul": graph([node("Transpose", "w", "t"), node("MatMul", "features t", "y")]),
    "Gemm all": graph(
        [node("Transpose", "features", "t"), node("Gemm", "t w c", "y", transA=1, transB=1, alpha=0.5, beta=2.0)],
        {"c": F32([[1, 2, 3, 4]])},
    ),
    "Einsum": graph([node("Einsum", "features w", "y", equation="ni,oi->no")]),
    **{
        f"{name} {keep}": graph(
            [node(name, "features axes", "r", keepdims=keep), node("Reshape", "r s", "c"),
             node("Mul", "features c", "p"), node("Gemm", "p w", "y", transB=1)],
            {"axes": ints(1), "s": ints(-1, 1)},
        )
        for name in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
        for keep in (0, 1)
    },
    "Concat and Split": flat_head(
        [node("Split", "features sizes", "a b", axis=1), node("Concat", "b a b", "x", axis=-1)], 11, (6,),
        sizes=ints(1, 5),
    ),
    "Split evenly": flat_head(
        [node("Split", "features", "a b c", axis=1, num_outputs=3), node("Concat", "c a", "x", axis=1)], 4, (6,)
    ),
    "Slice": flat_head([node("Slice", "features s e a t", "x")], 6, (4, 5), s=ints(1, -4), e=ints(1 << 62, -1),
                       a=ints(1, 2), t=ints(1, 2)),
    "Slice backwards": flat_head([node("Slice", "features s e a t", "x")], 6, (4, 5), s=ints(-1, 4),
                                 e=ints(-(1 << 62), 1), a=ints(1, 2), t=ints(-2, -1)),
    "Gather": flat_head([node("Gather", "features i", "x", axis=2)], 12, (3, 4), i=np.array([[0, 3], [3, 1]])),
    "Gather one": flat_head([node("Gather", "features i", "x", axis=1)], 4, (3, 4), i=np.int64(-1)),
    "Transpose and Squeeze": flat_head(
        [node("Transpose", "features", "t", perm=[0, 3, 1, 2]), node("Unsqueeze", "t a", "u"),
         node("Squeeze", "u b", "x")], 12, (3, 1, 4), a=ints(-1), b=ints(3, 4)),
    "Expand": flat_head([node("Expand", "features s", "x")], 12, (1, 4), s=ints(1, 3, 1)),
    "Expand with the batch": flat_head(
        [node("Shape", "features", "n", end=1), node("Concat", "n s", "ns", axis=0),
         node("ConstantOfShape", "ns", "c", value=numpy_helper.from_array(F32([2]))),
         node("Expand", "features ns", "e"),
         node("Mul", "e c", "x")], 12, (1, 4), s=ints(3, 4)),
    "Reshape with a computed batch": flat_head(
        [node("Shape", "features", "n"), node("Gather", "n i", "u"),
         node("Mul", "u two", "m"), node("Concat", "m s", "to", axis=0), node("Reshape", "features to", "r"),
         node("Div", "m two", "h"), node("Concat", "h r1", "back", axis=0), node("Reshape", "r back", "x")],
        12, (4, 3), i=ints(0), two=ints(2), s=ints(2, 3), r1=ints(-1)),
    "Reshape that copies": flat_head([node("Reshape", "features s", "x")], 12, (4, 3), s=ints(0, 3, -1)),
    "Flatten all": flat_head([node("Flatten", "features", "f", axis=2), node("Reshape", "f s", "x")], 12, (4, 3),
                             s=ints(-1, 12)),
    "Tile": flat_head([node("Tile", "features r", "x")], 12, (6,), r=ints(1, 2)),
    "Pad": flat_head([node("Pad", "features p v", "x")], 8, (4, 3), p=ints(0, -1, 1, 0, 1, -2), v=F32(1.5)),
    "Pad axes": flat_head([node("Pad", "features p - a", "x")], 20, (4, 3), p=ints(1, 1), a=ints(-1)),
    "Pad reflect": flat_head([node("Pad", "features p", "x", mode="reflect")], 20, (4, 3), p=ints(0, 0, 1, 0, 0, 1)),
    "Conv": flat_head([node("Conv", "features k b", "x", pads=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2])], 60,
                      IMAGE, k=KERNEL, b=F32([1, 2, 3, 4])),
    "Conv grouped": flat_head([node("Conv", "features k", "x", group=2, pads=[1, 1, 1, 1])], 140, IMAGE,
                              k=KERNEL[:, :1]),
    "ConvTranspose": flat_head(
        [node("ConvTranspose", "features k", "x", strides=[2, 1], pads=[1, 1, 1, 1], output_padding=[1, 0])], 200,
        IMAGE, k=KERNEL.transpose(1, 0, 2, 3)[:, :4]),
    "ConvTranspose uneven": flat_head([node("ConvTranspose", "features k", "x", pads=[1, 0, 0, 1])], 144, IMAGE,
                                      k=KERNEL.transpose(1, 0, 2, 3)),
    "MaxPool": flat_head([node("MaxPool", "features", "x", kernel_shape=[2, 3], strides=[2, 2], pads=[0, 1, 1, 1],
                               ceil_mode=1)], 24, IMAGE),
    "AveragePool": flat_head([node("AveragePool", "features", "x", kernel_shape=[2, 2], pads=[1, 1, 1, 1])], 84, IMAGE),
    "AveragePool counted": flat_head([node("AveragePool", "features", "x", kernel_shape=[2, 2], pads=[1, 1, 1, 1],
                                           count_include_pad=1, strides=[2, 2])], 24, IMAGE),
    "AveragePool uneven": flat_head([node("AveragePool", "features", "x", kernel_shape=[2, 2], pads=[0, 1, 1, 0])], 60,
                                    IMAGE),
    "GlobalAveragePool": flat_head([node("GlobalAveragePool", "features", "x")], 2, IMAGE),
    "GlobalMaxPool": flat_head([node("GlobalMaxPool", "features", "x")], 2, IMAGE),
    "BatchNormalization": flat_head([node("BatchNormalization", "features s b m v", "x")], 60, IMAGE,
                                    s=F32([1, 2]), b=F32([3, 4]), m=F32([0.5, -1]), v=F32([2, 0.3])),
    "InstanceNormalization": flat_head([node("InstanceNormalization", "features s b", "x")], 60, IMAGE,
                                       s=F32([1, 2]), b=F32([3, 4])),
    "LayerNormalization": flat_head([node("LayerNormalization", "features s b", "x", axis=-2)], 12, (4, 3),
                                    s=np.arange(12, dtype=F32).reshape(4, 3), b=np.ones((4, 3), F32)),
    "LayerNormalization, one scale": flat_head([node("LayerNormalization", "features s", "x", axis=1)], 12, (4, 3),
                                               s=F32([2])),
    "Constant": graph([node("Constant", "", "c", value_float=2.0), GEMM, node("Mul", "z c", "y")]),
}  # fmt: skip


def test_every_operator_with_a_gradient_is_mapped_and_tried() -> None:
    tried = {each.op_type for model in HEADS.values() for each in model.graph.node}
    assert set(RULES) - set(OPERATORS) == set()
    assert set(RULES) - tried == set()


@pytest.mark.parametrize("name", HEADS)
def test_the_archive_gives_and_learns_what_the_graph_does(name: str) -> None:
    """`torch_head` compares the outputs at three batch sizes itself; here they and a step are compared once more."""
    model = HEADS[name]
    (shape,) = ([d.dim_value for d in info.type.tensor_type.shape.dim][1:] for info in model.graph.input[:1])
    weight = tuple(d.dim_value for d in model.graph.input[1].type.tensor_type.shape.dim)
    rng = np.random.default_rng(4)
    parameters = {"w": (rng.normal(size=weight) * weight[1] ** -0.5).astype(F32)}
    recipe = TrainingRecipe()
    other = TorchScriptTrainer(torch_head(model, "features", ["w"]), recipe, parameters)
    ops = {each.op_type for each in model.graph.node}
    if ops - set(RULES) - {"Split", "Greater", "Shape", "ConstantOfShape", "Constant"}:
        return  # no gradient on onnxruntime to compare with
    training = build_training_graph(model, "features", ["w"], recipe).SerializeToString()
    one = OnnxTrainer(training, "features", parameters)
    for n in (7, 1):
        x = rng.normal(size=(n, *shape)).astype(F32)
        t = np.eye(4, dtype=F32)[rng.integers(0, 4, n)]
        losses = [trainer.step(x, t, np.ones(n, F32), 0.02) for trainer in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert distance(other.parameters(), one.parameters()) <= 1e-5


@pytest.mark.parametrize("kind", NETWORKS)
def test_exported_heads(kind: str) -> None:
    head = head_of(*network(kind))
    archive = torch_head(head.graph, FEATURES, head.parameters)
    assert torch_head(head.graph, FEATURES, list(head.parameters))  # with random parameters
    extra = {HEAD_FILE: b""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(io.BytesIO(archive), _extra_files=extra)
    about = json.loads(extra[HEAD_FILE])
    assert about["parameters"] == list(head.parameters)
    last = list(head.parameters)[-1].rpartition(".")[0]
    assert about["output_layer"] == [name for name in head.parameters if name.rpartition(".")[0] == last]
    assert READ_FILE == HEAD_FILE


def test_an_operator_that_is_not_mapped_is_named() -> None:
    with pytest.raises(ConversionError, match=r"no function of torch is known for Asinh, Sinh$"):
        torch_head(graph([GEMM, node("Sinh", "z", "s"), node("Asinh", "s", "y")]), "features", ["w"])


def test_another_set_of_parameters_is_refused() -> None:
    for names in ([], ["w", "v"], ["v"]):
        with pytest.raises(ConversionError, match="inputs are not"):
            torch_head(through("Relu"), "features", names)


def test_a_wrong_translation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "Relu", lambda call: call.x() * 1.0001)
    with pytest.raises(ConversionError, match="gives other outputs on 3 samples"):
        torch_head(through("Relu"), "features", ["w"])


def test_a_translation_that_fixes_the_batch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "Relu", lambda call: torch.relu(call.x()).reshape(3, 4))
    with pytest.raises(ConversionError, match="1 samples"):
        torch_head(through("Relu"), "features", ["w"])


def test_training_mode_is_refused() -> None:
    model = through("Dropout", "r", "t", constants={"r": F32(0.5), "t": np.array(True)})
    with pytest.raises(ConversionError, match="Dropout 'y' is in training mode"):
        torch_head(model, "features", ["w"])


def test_a_translation_that_fixes_the_number_of_classes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "Gemm", lambda call: (call.x() @ call.x(1).t()).reshape(-1, 4))
    with pytest.raises(ConversionError, match="on 3 samples"):
        torch_head(graph([node("Gemm", "features w", "y", transB=1)]), "features", ["w"])
