"""LSTM and GRU, unrolled by the training graph, against torch in float64 and against the ONNX operators themselves."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from torch import nn

from converter.graph.build import GraphBuilder, infer_shapes, make_model, tensor_info
from converter.graph.canonical import canonical
from converter.head.gradient.differentiate import UnsupportedOperatorError, differentiate
from converter.head.gradient.recurrent import expanded
from converter.head.gradient.training_graph import build_training_graph
from converter.head.split import FEATURES, joined, split
from converter.program.programs import onnx_program
from edge.contract.errors import ConversionError
from edge.inference.onnx_trainer import OnnxTrainer
from tests.converter.models import export, rng

# How ONNX orders the gates (LSTM: input, output, forget, cell; GRU: update, reset, new), as positions in torch's order.
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
N_STATES = {"LSTM": 2, "GRU": 1}
STEPS = 30
RATE = 0.1
ONE_HOT = np.eye(4, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A layer."""

    op: str
    direction: str = "forward"
    steps: int = 5
    batch: int = 3
    n_in: int = 2
    hidden: int = 4
    bias: bool = True
    initial: tuple[bool, bool] = (True, True)
    reset_after: bool = True

    @property
    def n_directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    def arrays(self, seed: int) -> dict[str, np.ndarray]:
        """The inputs of the operator by the names of the standard, float64."""
        random, d, g = rng(seed), self.n_directions, len(GATES[self.op]) * self.hidden
        found = {
            "X": random.normal(size=(self.steps, self.batch, self.n_in)),
            "W": random.normal(size=(d, g, self.n_in)),
            "R": random.normal(size=(d, g, self.hidden)),
        }
        if self.bias:
            found["B"] = random.normal(size=(d, 2 * g))
        for name, is_given in zip(("initial_h", "initial_c")[: N_STATES[self.op]], self.initial, strict=False):
            if is_given:
                found[name] = random.normal(size=(d, self.batch, self.hidden))
        return found


def layer_graph(
    sizes: Sizes, dtype: type = np.float64, steps: int | str | None = None, **changes: Any
) -> onnx.ModelProto:
    """A layer alone with all its outputs; the batch is free."""
    given = sizes.arrays(0)
    names = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    given |= changes.pop("more", {})
    inputs = [name if name in given else "" for name in (names if sizes.op == "LSTM" else names[:6])]
    attributes = {"hidden_size": sizes.hidden, "direction": sizes.direction}
    if sizes.op == "GRU":
        attributes["linear_before_reset"] = int(sizes.reset_after)
    outputs = ["Y", "Y_h", "Y_c"][: 1 + N_STATES[sizes.op]]
    node = helper.make_node(sizes.op, inputs, outputs, name="layer", **(attributes | changes))
    infos = []
    for name, array in given.items():
        shape: list[int | str] = list(array.shape)
        if name in ("X", "initial_h", "initial_c"):
            shape[1] = "batch"
        if name == "X" and steps is not None:
            shape[0] = steps
        infos.append(tensor_info(name, shape, np.int32 if name == "sequence_lens" else dtype))
    d, h = sizes.n_directions, sizes.hidden
    shapes = [(sizes.steps if steps is None else steps, d, "batch", h), (d, "batch", h), (d, "batch", h)]
    return make_model(
        "layer",
        [node],
        infos,
        [tensor_info(name, shape, dtype) for name, shape in zip(outputs, shapes, strict=False)],
        [],
    )


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def in_torch(sizes: Sizes, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """``torch.nn.LSTM`` or ``torch.nn.GRU`` of the ONNX operator's inputs; with the outputs of the operator."""
    layer = getattr(nn, sizes.op)(
        sizes.n_in, sizes.hidden, bias=sizes.bias, bidirectional=sizes.n_directions == 2
    ).double()
    order = list(np.argsort(GATES[sizes.op]))

    def torch_order(value: torch.Tensor) -> torch.Tensor:
        return value.reshape(len(order), sizes.hidden, -1)[order].reshape(value.shape)

    weights = {}
    for d, suffix in zip(range(sizes.n_directions), ("", "_reverse"), strict=False):
        weights[f"weight_ih_l0{suffix}"] = torch_order(inputs["W"][d])
        weights[f"weight_hh_l0{suffix}"] = torch_order(inputs["R"][d])
        if sizes.bias:
            input_bias, recurrent_bias = inputs["B"][d].chunk(2)
            weights[f"bias_ih_l0{suffix}"] = torch_order(input_bias)
            weights[f"bias_hh_l0{suffix}"] = torch_order(recurrent_bias)
    zeros = torch.zeros(sizes.n_directions, sizes.batch, sizes.hidden, dtype=torch.float64)
    states = [inputs.get(name, zeros) for name in ("initial_h", "initial_c")[: N_STATES[sizes.op]]]
    backward = sizes.direction == "reverse"
    x = inputs["X"].flip(0) if backward else inputs["X"]
    state = tuple(states) if sizes.op == "LSTM" else states[0]
    y, last = torch.func.functional_call(layer, weights, (x, state))
    y = y.flip(0) if backward else y
    y = y.reshape(sizes.steps, sizes.batch, sizes.n_directions, sizes.hidden).transpose(1, 2)
    return [y, *(last if sizes.op == "LSTM" else [last])]


def gru_with_reset_before(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The other form of a GRU, forward, which torch does not have; written from the ONNX standard."""
    (wz, wr, wh), (rz, rr, rh) = inputs["W"][0].chunk(3), inputs["R"][0].chunk(3)
    bz, br, bh, cz, cr, ch = inputs["B"][0].chunk(6)
    h, seen = inputs["initial_h"][0], []
    for x in inputs["X"]:
        z = torch.sigmoid(x @ wz.T + h @ rz.T + bz + cz)
        r = torch.sigmoid(x @ wr.T + h @ rr.T + br + cr)
        h = (1 - z) * torch.tanh(x @ wh.T + (r * h) @ rh.T + bh + ch) + z * h
        seen.append(h)
    return [torch.stack(seen)[:, None], h[None]]


def gradients(sizes: Sizes, inputs: dict[str, np.ndarray], dy: list[np.ndarray]) -> tuple[list[Any], list[Any]]:
    """Outputs, and gradients of ``sum(dy * outputs)`` with respect to all inputs, by the rules, on onnxruntime."""
    layer = layer_graph(sizes)
    outputs = list(layer.graph.output)
    targets = [f"d{info.name}" for info in outputs]
    sums = GraphBuilder("sum.", np.float64)
    loss = sums.constant(0.0)
    for info, target in zip(outputs, targets, strict=True):
        loss = sums.op("Add", sums.op("ReduceSum", sums.op("Mul", info.name, target), keepdims=0), loss)
    infos = [tensor_info(name, array.shape, np.float64) for name, array in zip(targets, dy, strict=True)]
    whole = make_model(
        "g",
        [*layer.graph.node, *sums.nodes],
        [*layer.graph.input, *infos],
        [tensor_info(loss, (), np.float64)],
        sums.initializers,
    )
    model = expanded(whole)
    builder = GraphBuilder("grad.", np.float64)
    found = differentiate(
        model.graph.node,
        infer_shapes(model),
        loss,
        builder.constant(1.0),
        list(inputs),
        builder,
        model.graph.initializer,
    )
    step = make_model(
        "step",
        [*model.graph.node, *builder.nodes],
        model.graph.input,
        [*outputs, *(tensor_info(found[name], array.shape, np.float64) for name, array in inputs.items())],
        [*model.graph.initializer, *builder.initializers],
    )
    values = run(step, inputs | dict(zip(targets, dy, strict=True)))
    return values[: len(outputs)], values[len(outputs) :]


def assert_equals_torch(sizes: Sizes, seed: int) -> None:
    inputs = sizes.arrays(seed)
    tensors = {name: torch.from_numpy(array).requires_grad_() for name, array in inputs.items()}
    is_known = sizes.op == "LSTM" or sizes.reset_after
    wanted = in_torch(sizes, tensors) if is_known else gru_with_reset_before(tensors)
    dy = [rng(seed + 1 + i).normal(size=value.shape) for i, value in enumerate(wanted)]
    sum((torch.from_numpy(d) * value).sum() for d, value in zip(dy, wanted, strict=True)).backward()
    outputs, found = gradients(sizes, inputs, dy)
    for expected, value in zip(wanted, outputs, strict=True):
        np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-10, atol=1e-12)
    for (name, tensor), value in zip(tensors.items(), found, strict=True):
        assert tensor.grad is not None
        np.testing.assert_allclose(value, tensor.grad.numpy(), rtol=1e-9, atol=1e-11, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.builds(
        Sizes,
        op=st.sampled_from(["LSTM", "GRU"]),
        direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
        steps=st.integers(1, 9),
        batch=st.integers(1, 4),
        n_in=st.integers(1, 4),
        hidden=st.integers(1, 5),
        bias=st.booleans(),
        initial=st.tuples(st.booleans(), st.booleans()),
    ),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_equal_torch_in_float64(sizes: Sizes, seed: int) -> None:
    assert_equals_torch(sizes, seed)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_gru_that_resets_before_the_product_equals_its_formula_in_float64(steps: int) -> None:
    assert_equals_torch(Sizes(op="GRU", steps=steps, reset_after=False), 4)


@pytest.mark.parametrize("initial", [(True, True), (False, False), (True, False)], ids=["state", "zeros", "half"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("op", "reset_after"), [("LSTM", False), ("GRU", False), ("GRU", True)])
def test_gives_what_the_operator_gives(
    op: str, reset_after: bool, direction: str, bias: bool, initial: tuple[bool, bool]
) -> None:
    for steps in (1, 6):
        sizes = Sizes(op=op, direction=direction, steps=steps, bias=bias, initial=initial, reset_after=reset_after)
        layer = layer_graph(sizes, np.float32)
        feeds = {name: array.astype(np.float32) for name, array in sizes.arrays(1).items()}
        unrolled = expanded(layer)
        assert not {node.op_type for node in unrolled.graph.node} & {"LSTM", "GRU"}
        for value, wanted in zip(run(unrolled, feeds), run(layer, feeds), strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=2e-6)


class Network(nn.Module):
    """A recurrent layer over (batch, time, 3), something of its outputs, and a linear layer."""

    def __init__(self, op: str, take: str, **options: Any) -> None:
        super().__init__()
        self.layer = getattr(nn, op)(3, 5, batch_first=True, **options)
        self.take = take
        self.last = nn.Linear(10 if options.get("bidirectional") else 5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, state = self.layer(x)
        hidden = state[0] if isinstance(state, tuple) else state
        taken = {"last": y[:, -1], "mean": y.mean(1), "state": hidden[-1], "max": y.amax(1)}
        return self.last(taken[self.take])


class Enclosed(nn.Module):
    """A layer that is trained in front of a recurrent one, and a norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Conv1d(3, 4, 3, padding=1), nn.GRU(4, 5, bidirectional=True)
        self.norm, self.last = nn.LayerNorm(10), nn.Linear(60, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.layer(torch.relu(self.first(x.transpose(1, 2))).permute(2, 0, 1))
        return self.last(self.norm(y).transpose(0, 1).flatten(1))


NETWORKS: dict[str, nn.Module] = {
    "lstm, last step": Network("LSTM", "last"),
    "lstm, both directions, mean": Network("LSTM", "mean", bidirectional=True),
    "lstm, both directions, last step": Network("LSTM", "last", bidirectional=True),
    "lstm, two layers": Network("LSTM", "last", num_layers=2),
    "lstm, two layers, state": Network("LSTM", "state", num_layers=2, bias=False),
    "gru, last step": Network("GRU", "last"),
    "gru, two layers, both directions, max": Network("GRU", "max", num_layers=2, bidirectional=True),
    "gru between others": Enclosed(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_thirty_steps_on_the_whole_network_equal_torch(name: str) -> None:
    torch.manual_seed(3)
    model = copy.deepcopy(NETWORKS[name]).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    assert_trains_as_torch(model, [key for key, _ in model.named_parameters()], 6)


@pytest.mark.filterwarnings("ignore")
def test_a_sequence_of_one_step_trains_as_in_torch() -> None:
    torch.manual_seed(3)
    model = Network("LSTM", "last").eval()
    assert_trains_as_torch(model, [key for key, _ in model.named_parameters()], 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_the_upper_of_two_layers_trains_on_the_outputs_of_the_lower(op: str) -> None:
    """The features are then the outputs of a recurrent layer, which have the time in front of the batch."""
    torch.manual_seed(3)
    model = Network(op, "last", num_layers=2).eval()
    assert_trains_as_torch(model, [key for key, _ in model.named_parameters() if "l0" not in key], 6)


class Beside(nn.Module):
    """Two recurrent layers, and a linear one that takes the input again."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.LSTM(3, 5, batch_first=True), nn.LSTM(5, 5, batch_first=True)
        self.last = nn.Linear(5 + 18, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.upper(self.lower(x)[0])
        return self.last(torch.cat([y[:, -1], x.flatten(1)], 1))


@pytest.mark.filterwarnings("ignore")
def test_features_of_which_only_some_have_the_time_in_front() -> None:
    torch.manual_seed(3)
    model = Beside().eval()
    names = [key for key, _ in model.named_parameters() if "lower" not in key]
    parts = split(canonical(export(model, (6, 3))), names)
    assert parts.head is not None
    assert parts.head.features.shape == ("batch", 6 * 5 + 18)
    x = rng().normal(size=(3, 6, 3)).astype(np.float32)
    again = onnx_program(joined(parts.backbone, parts), "the joined halves")({"input": x, **parts.head.parameters})
    with torch.no_grad():
        np.testing.assert_allclose(again[parts.head.output], model(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)
    assert_trains_as_torch(model, names, 6)


def assert_trains_as_torch(model: nn.Module, names: list[str], n_steps: int) -> None:
    """By plain SGD, from features of the backbone, within 1e-5 of float64."""
    parts = split(canonical(export(model, (n_steps, 3))), names)
    head = parts.head
    assert head is not None
    assert head.features.shape[0] == "batch"
    backbone = onnx_program(parts.backbone, "the backbone")
    graph = build_training_graph(head.graph, FEATURES, list(head.parameters))
    trainer = OnnxTrainer(graph.SerializeToString(), FEATURES, head.parameters)
    reference = model.double()
    trained = {key: value for key, value in reference.named_parameters() if key in names}
    optimizer = torch.optim.SGD(trained.values(), lr=RATE)
    for step in range(STEPS):
        n = (3, 1, 5)[step % 3]
        x, y = rng(step).normal(size=(n, n_steps, 3)).astype(np.float32), rng(step).integers(0, 4, n)
        loss = nn.functional.cross_entropy(reference(torch.from_numpy(x).double()), torch.from_numpy(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        features = np.asarray(backbone({"input": x})[FEATURES])
        found = trainer.step(features, ONE_HOT[y], np.ones(n, np.float32), RATE)
        assert found == pytest.approx(float(loss.detach()), rel=2e-5)
    for key, expected in trained.items():
        wanted = expected.detach().numpy()
        error = np.linalg.norm(trainer.parameters()[key] - wanted) / np.linalg.norm(wanted)
        assert error <= 1e-5, f"{key}: relative error {error:.1e}"


def test_the_graph_grows_with_the_steps_and_no_faster() -> None:
    sizes = [len(expanded(layer_graph(Sizes(op="LSTM", steps=steps))).graph.node) for steps in (10, 20, 40)]
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])
    assert sizes[2] <= 40 * 13


def test_a_head_without_recurrent_layers_stays_as_it_is() -> None:
    head = make_model(
        "head", [helper.make_node("Relu", ["x"], ["y"])], [tensor_info("x", (2,))], [tensor_info("y", (2,))], []
    )
    assert expanded(head) is head


def test_names_that_the_head_has_already_are_not_taken() -> None:
    layer = layer_graph(Sizes(op="GRU"))
    layer.graph.input[0].name = layer.graph.node[0].input[0] = "unrolled.constant_1"
    onnx.checker.check_model(expanded(layer), full_check=True)


@pytest.mark.parametrize(
    ("op", "changes", "what"),
    [
        ("LSTM", {"clip": 1.0}, "LSTM with clip"),
        ("LSTM", {"input_forget": 1}, "LSTM with input_forget"),
        ("GRU", {"layout": 1}, "GRU with layout"),
        ("GRU", {"activations": ["Sigmoid", "Relu"]}, "GRU with the activations Sigmoid Relu"),
        ("LSTM", {"more": {"P": np.ones((1, 12))}}, "LSTM with peepholes"),
        ("GRU", {"more": {"sequence_lens": np.ones(3)}}, "GRU with sequence_lens"),
    ],
)
def test_refuses_what_it_does_not_unroll_by_name(op: str, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=f"no gradient for the operator {what}"):
        expanded(layer_graph(Sizes(op=op), **changes))


def test_takes_the_usual_activations_when_they_are_written_out() -> None:
    names = ["Sigmoid", "Tanh", "Tanh"] * 2
    expanded(layer_graph(Sizes(op="LSTM", direction="bidirectional"), activations=names))


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_refuses_a_free_number_of_steps(op: str) -> None:
    with pytest.raises(ConversionError, match=r"'layer' over a number of time steps that is not fixed.*a fixed length"):
        expanded(layer_graph(Sizes(op=op), steps="time"))
