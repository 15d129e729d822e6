"""Every differentiation rule against central finite differences and torch autograd, on stock onnxruntime.

All in float64, except Erf: onnxruntime 1.32 has no float64 kernel for it, so its gradient runs in float32 on
onnxruntime (compared with float64 autograd), and its finite differences are those of `math.erf`, since onnx's reference
evaluator computes Erf in float32, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from converter.gradient.differentiate import UnsupportedOperatorError, differentiate
from converter.gradient.rules import RULES
from converter.graph import GraphBuilder, infer_shapes, make_model, tensor_info
from edge.contract.errors import ConversionError

TOLERANCE = 1e-5
STEP = 1e-5


@dataclass
class Case:
    """One node: float inputs, int64 inputs behind them, and the same function in torch."""

    op: str
    inputs: list[np.ndarray]
    torch: Callable[..., torch.Tensor]
    constants: list[np.ndarray] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)


def forward_graph(case: Case, dtype: type, output: tuple[int, ...]) -> onnx.ModelProto:
    """The node, and an Identity so that the shape of its output is inferred, not stated.

    The first axis of the largest inputs is free, as a batch axis is.
    """
    names = [f"x{i}" for i in range(len(case.inputs))]
    rank = max(array.ndim for array in case.inputs)
    infos = []
    for name, array in zip(names, case.inputs, strict=True):
        shape: list[int | str] = list(array.shape)
        if shape and array.ndim == rank and shape[0] != 1 and case.op not in {"Gemm", "Transpose", "MatMul"}:
            shape[0] = "batch"
        infos.append(tensor_info(name, shape, dtype))
    constants = [numpy_helper.from_array(array, f"c{i}") for i, array in enumerate(case.constants)]
    node = helper.make_node(case.op, [*names, *(item.name for item in constants)], ["inner"], **case.attributes)
    outer = helper.make_node("Identity", ["inner"], ["y"])
    return make_model("forward", [node, outer], infos, [tensor_info("y", output, dtype)], constants)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def gradients(model: onnx.ModelProto, dy: np.ndarray, feeds: dict[str, np.ndarray], wanted: list[str]) -> list[Any]:
    """Gradients of ``sum(dy * y)`` by the rules, on onnxruntime."""
    dtype = dy.dtype
    builder = GraphBuilder("grad.", dtype)
    found = differentiate(model.graph.node, infer_shapes(model), "y", "dy", wanted, builder)
    outputs = [builder.op("Identity", found[name], output=f"d.{name}") for name in wanted]
    graph = make_model(
        "backward",
        [*model.graph.node, *builder.nodes],
        [*model.graph.input, tensor_info("dy", dy.shape, dtype)],
        [tensor_info(name, feeds[name[2:]].shape, dtype) for name in outputs],
        [*model.graph.initializer, *builder.initializers],
    )
    return session(graph).run(None, {**feeds, "dy": dy})


def finite_differences(
    run: Callable[[dict[str, np.ndarray]], np.ndarray], dy: np.ndarray, feeds: dict[str, np.ndarray], name: str
) -> np.ndarray:
    """``(f(x + h) - f(x - h)) / 2h`` for every element of one input, f being ``sum(dy * y)``."""
    result = np.zeros_like(feeds[name])
    for index in np.ndindex(result.shape):
        ends = []
        for sign in (1, -1):
            moved = feeds[name].copy()
            moved[index] += sign * STEP
            ends.append(float((dy * run({**feeds, name: moved})).sum()))
        result[index] = (ends[0] - ends[1]) / (2 * STEP)
    return result


def assert_near(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    assert found.shape == expected.shape, what
    scale = max(float(np.abs(expected).max(initial=0.0)), 1e-2)
    error = float(np.abs(found - expected).max(initial=0.0)) / scale
    assert error <= TOLERANCE, f"{what}: relative error {error:.1e}"


def check(case: Case, wanted: list[int]) -> None:
    in_float64 = case.op != "Erf"
    dtype = np.float64 if in_float64 else np.float32
    feeds = {f"x{i}": array for i, array in enumerate(case.inputs)}
    tensors = [torch.from_numpy(array.copy()).requires_grad_() for array in case.inputs]
    y = case.torch(*tensors)
    dy = normal(1, tuple(y.shape))
    by_torch = torch.autograd.grad(y, tensors, torch.from_numpy(dy))

    model = forward_graph(case, dtype, tuple(y.shape))
    cast = {name: array.astype(dtype) for name, array in feeds.items()}
    names = [f"x{i}" for i in wanted]
    found = gradients(model, dy.astype(dtype), cast, names)

    if in_float64:
        opened = session(model)
        forward = lambda values: opened.run(None, values)[0]  # noqa: E731
    else:
        forward = lambda values: np.vectorize(math.erf, otypes=[np.float64])(values["x0"])  # noqa: E731
    assert_near(forward(feeds), y.detach().numpy(), f"{case.op} forward")
    for i, name, gradient in zip(wanted, names, found, strict=True):
        assert_near(gradient, by_torch[i].numpy(), f"{case.op} d{name} against autograd")
        assert_near(gradient, finite_differences(forward, dy, feeds, name), f"{case.op} d{name} against differences")


# --- strategies ------------------------------------------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 3)


def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape))


def off_zero(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Away from the kink at zero, where a difference quotient is not a derivative."""
    x = normal(seed, shape)
    return np.asarray(np.where(x < 0, x - 0.05, x + 0.05))


def positive(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.abs(normal(seed, shape)) + 0.3


shapes = st.lists(sizes, min_size=1, max_size=3).map(tuple)


def unary(op: str, function: Callable[..., Any], make: Callable[..., np.ndarray] = normal) -> st.SearchStrategy[Case]:
    return st.builds(lambda seed, shape: Case(op, [make(seed, shape)], function), seeds, shapes)


@st.composite
def broadcasting(draw: st.DrawFn, op: str, function: Callable[..., Any]) -> Case:
    full = draw(shapes)
    operands = []
    for _ in range(2):
        shape = tuple(1 if draw(st.booleans()) else size for size in full)
        operands.append(shape[draw(st.integers(0, len(full))) :])
    left, right = operands if draw(st.booleans()) else (full, operands[1])
    make = off_zero if op == "Div" else normal
    return Case(op, [normal(draw(seeds), left), make(draw(seeds), right)], function)


@st.composite
def gemm(draw: st.DrawFn) -> Case:
    m, k, n = draw(sizes), draw(sizes), draw(sizes)
    trans_a, trans_b = draw(st.integers(0, 1)), draw(st.integers(0, 1))
    alpha, beta = draw(st.sampled_from([1.0, 0.5, -2.0])), draw(st.sampled_from([1.0, 0.25]))
    a = normal(draw(seeds), (k, m) if trans_a else (m, k))
    b = normal(draw(seeds), (n, k) if trans_b else (k, n))
    c = draw(st.sampled_from([None, (), (1,), (n,), (1, n), (m, 1), (m, n)]))

    def function(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        product = alpha * (a.T if trans_a else a) @ (b.T if trans_b else b)
        return product if c is None else product + beta * c

    attributes = {"alpha": alpha, "beta": beta, "transA": trans_a, "transB": trans_b}
    inputs = [a, b] if c is None else [a, b, normal(draw(seeds), c)]
    return Case("Gemm", inputs, function, attributes=attributes)


@st.composite
def matmul(draw: st.DrawFn) -> Case:
    m, k, n, batch, other = (draw(sizes) for _ in range(5))
    left, right = draw(
        st.sampled_from(
            [
                ((), ()),
                ((batch,), ()),
                ((batch, other), ()),
                ((), (batch,)),
                ((batch,), (batch,)),
                ((batch,), (1,)),
                ((1,), (batch,)),
                ((batch, other), (other,)),
                ((batch, 1), (1, other)),
            ]
        )
    )
    inputs = [normal(draw(seeds), (*left, m, k)), normal(draw(seeds), (*right, k, n))]
    return Case("MatMul", inputs, torch.matmul)


@st.composite
def along_axis(draw: st.DrawFn, op: str, function: Callable[..., Any]) -> Case:
    shape = draw(shapes)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    attributes = {} if axis == -1 else {"axis": axis}
    return Case(op, [normal(draw(seeds), shape)], lambda x: function(x, axis), attributes=attributes)


@st.composite
def transpose(draw: st.DrawFn) -> Case:
    shape = draw(shapes)
    order = draw(st.none() | st.permutations(range(len(shape))))
    given_order = list(range(len(shape)))[::-1] if order is None else list(order)
    attributes = {} if order is None else {"perm": given_order}
    return Case("Transpose", [normal(draw(seeds), shape)], lambda x: x.permute(given_order), attributes=attributes)


@st.composite
def reshape(draw: st.DrawFn) -> Case:
    a, b, c = draw(sizes), draw(sizes), draw(sizes)
    shape, target = draw(
        st.sampled_from(
            [((a, b, c), (0, -1)), ((a, b * c), (a, b, c)), ((a, b), (-1,)), ((a, b, c), (b, a * c)), ((a,), (a, 1))]
        )
    )
    result = tuple(np.zeros(shape).reshape([shape[i] if n == 0 else n for i, n in enumerate(target)]).shape)
    return Case("Reshape", [normal(draw(seeds), shape)], lambda x: x.reshape(result), [np.array(target, np.int64)])


@st.composite
def flatten(draw: st.DrawFn) -> Case:
    shape = draw(shapes)
    axis = draw(st.integers(-len(shape), len(shape)))
    cut = axis + len(shape) if axis < 0 else axis
    result = (int(np.prod(shape[:cut])), int(np.prod(shape[cut:])))
    return Case("Flatten", [normal(draw(seeds), shape)], lambda x: x.reshape(result), attributes={"axis": axis})


@st.composite
def squeeze(draw: st.DrawFn) -> Case:
    a, b = draw(st.integers(2, 3)), draw(st.integers(2, 3))
    shape, axes = draw(
        st.sampled_from([((a, 1), [1]), ((a, 1, b), [-2]), ((a, 1, b, 1), [1, 3]), ((1, a), [0]), ((a, 1, 1), [-1, 1])])
    )
    result = np.squeeze(np.zeros(shape), tuple(axes)).shape
    return Case("Squeeze", [normal(draw(seeds), shape)], lambda x: x.reshape(result), [np.array(axes, np.int64)])


@st.composite
def unsqueeze(draw: st.DrawFn) -> Case:
    shape = draw(shapes)
    axes = draw(st.sampled_from([[0], [-1], [1], [0, 2], [-1, 0]]))
    result = np.expand_dims(np.zeros(shape), tuple(axes)).shape
    return Case("Unsqueeze", [normal(draw(seeds), shape)], lambda x: x.reshape(result), [np.array(axes, np.int64)])


@st.composite
def reduce(draw: st.DrawFn, op: str) -> Case:
    shape = draw(shapes)
    keep = draw(st.booleans())
    axes = draw(st.none() | st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    attributes: dict[str, int] = {} if keep and draw(st.booleans()) else {"keepdims": int(keep)}
    if axes is None and draw(st.booleans()):
        attributes["noop_with_empty_axes"] = 1
        return Case(op, [normal(draw(seeds), shape)], lambda x: x * 1.0, attributes=attributes)
    named = torch.mean if op == "ReduceMean" else torch.sum
    over = tuple(range(len(shape))) if axes is None else tuple(axes)
    negative = [] if axes is None else [axis - len(shape) if draw(st.booleans()) else axis for axis in axes]
    constants = [] if axes is None else [np.array(negative, np.int64)]
    return Case(op, [normal(draw(seeds), shape)], lambda x: named(x, over, keepdim=keep), constants, attributes)


@st.composite
def slope(draw: st.DrawFn, op: str, function: Callable[..., Any], default: float) -> Case:
    alpha = draw(st.none() | st.sampled_from([0.2, 0.5, 1.5]))
    attributes = {} if alpha is None else {"alpha": alpha}
    value = float(np.float32(default if alpha is None else alpha))  # an ONNX attribute is a float32
    return Case(op, [off_zero(draw(seeds), draw(shapes))], lambda x: function(x, value), attributes=attributes)


CASES: dict[str, st.SearchStrategy[Case]] = {
    "Gemm": gemm(),
    "MatMul": matmul(),
    "Add": broadcasting("Add", torch.add),
    "Sub": broadcasting("Sub", torch.sub),
    "Mul": broadcasting("Mul", torch.mul),
    "Div": broadcasting("Div", torch.div),
    "LeakyRelu": slope("LeakyRelu", torch.nn.functional.leaky_relu, 0.01),
    "Elu": slope("Elu", torch.nn.functional.elu, 1.0),
    "Relu": unary("Relu", torch.relu, off_zero),
    "Neg": unary("Neg", torch.neg),
    "Identity": unary("Identity", lambda x: x * 1.0),
    "Exp": unary("Exp", torch.exp),
    "Log": unary("Log", torch.log, positive),
    "Sqrt": unary("Sqrt", torch.sqrt, positive),
    "Reciprocal": unary("Reciprocal", torch.reciprocal, positive),
    "Tanh": unary("Tanh", torch.tanh),
    "Sigmoid": unary("Sigmoid", torch.sigmoid),
    "Softplus": unary("Softplus", torch.nn.functional.softplus),
    "Erf": unary("Erf", torch.erf),
    "Softmax": along_axis("Softmax", torch.softmax),
    "LogSoftmax": along_axis("LogSoftmax", torch.log_softmax),
    "Reshape": reshape(),
    "Flatten": flatten(),
    "Squeeze": squeeze(),
    "Unsqueeze": unsqueeze(),
    "Transpose": transpose(),
    "ReduceMean": reduce("ReduceMean"),
    "ReduceSum": reduce("ReduceSum"),
}


def test_every_rule_is_checked_here() -> None:
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("op", sorted(CASES))
def test_rule_agrees_with_finite_differences_and_autograd(op: str) -> None:
    @settings(max_examples=12, deadline=None, database=None)
    @given(case=CASES[op], data=st.data())
    def agrees(case: Case, data: st.DataObject) -> None:
        positions = range(len(case.inputs))
        check(case, sorted(data.draw(st.sets(st.sampled_from(positions), min_size=1))))

    agrees()


# --- the accumulation ------------------------------------------------------------------------------------------------


def graph_of(nodes: list[onnx.NodeProto], inputs: dict[str, np.ndarray], output: tuple[int, ...]) -> onnx.ModelProto:
    infos = [tensor_info(name, array.shape, np.float64) for name, array in inputs.items()]
    return make_model("g", nodes, infos, [tensor_info("y", output, np.float64)], [])


def test_a_value_used_twice_sums_its_gradients() -> None:
    """A skip connection: ``y = tanh(x w) + x w``, and ``x w`` is used a third time in a square."""
    rng = np.random.default_rng(3)
    feeds = {"x": rng.normal(size=(4, 3)), "w": rng.normal(size=(3, 3))}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Add", ["t", "h"], ["s"]),
        helper.make_node("Mul", ["h", "h"], ["q"]),
        helper.make_node("Add", ["s", "q"], ["y"]),
    ]
    dy = rng.normal(size=(4, 3))
    found = gradients(graph_of(nodes, feeds, (4, 3)), dy, feeds, ["w", "x"])
    w, x = (torch.from_numpy(feeds[name]).requires_grad_() for name in ("w", "x"))
    h = x @ w
    expected = torch.autograd.grad(torch.tanh(h) + h + h * h, (w, x), torch.from_numpy(dy))
    assert_near(found[0], expected[0].numpy(), "dw")
    assert_near(found[1], expected[1].numpy(), "dx")


def test_a_branch_that_does_not_reach_the_output_changes_nothing() -> None:
    feeds = {"x": np.ones((2, 2)), "w": np.ones((2, 2))}
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"]), helper.make_node("Exp", ["w"], ["unused"])]
    dy = np.array([[1.0, 2.0], [3.0, 4.0]])
    (found,) = gradients(graph_of(nodes, feeds, (2, 2)), dy, feeds, ["w"])
    np.testing.assert_array_equal(found, dy)


def test_refuses_an_operator_without_a_rule_by_name_and_appends_nothing() -> None:
    feeds = {"x": np.ones((2, 2)), "w": np.ones((2, 2))}
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["h"]),
        helper.make_node("Cos", ["h"], ["c"]),
        helper.make_node("Asinh", ["c"], ["y"]),
    ]
    model = graph_of(nodes, feeds, (2, 2))
    builder = GraphBuilder("grad.", np.float64)
    with pytest.raises(UnsupportedOperatorError, match="Asinh, Cos") as caught:
        differentiate(model.graph.node, infer_shapes(model), "y", "dy", ["w"], builder)
    assert caught.value.op_types == ["Asinh", "Cos"]
    assert isinstance(caught.value, ConversionError)
    assert builder.nodes == []


def test_an_operator_without_a_rule_in_front_of_the_parameters_does_not_matter() -> None:
    feeds = {"x": np.ones((2, 2)), "w": np.ones((2, 2))}
    nodes = [helper.make_node("Cos", ["x"], ["c"]), helper.make_node("Mul", ["c", "w"], ["y"])]
    (found,) = gradients(graph_of(nodes, feeds, (2, 2)), np.ones((2, 2)), feeds, ["w"])
    np.testing.assert_allclose(found, np.cos(np.ones((2, 2))))


def test_refuses_a_parameter_that_does_not_reach_the_output() -> None:
    feeds = {"x": np.ones((2, 2)), "w": np.ones((2, 2)), "idle": np.ones((2, 2))}
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"]), helper.make_node("Exp", ["idle"], ["unused"])]
    model = graph_of(nodes, feeds, (2, 2))
    with pytest.raises(ConversionError, match="does not depend on idle"):
        differentiate(
            model.graph.node, infer_shapes(model), "y", "dy", ["w", "idle"], GraphBuilder("grad.", np.float64)
        )


def test_refuses_a_matrix_product_with_a_vector() -> None:
    feeds = {"x": np.ones((2, 2)), "w": np.ones(2)}
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], feeds, (2,))
    with pytest.raises(ConversionError, match="one-dimensional"):
        differentiate(model.graph.node, infer_shapes(model), "y", "dy", ["w"], GraphBuilder("grad.", np.float64))
