"""Export keeps parameters whole and under their own names; the cut is a question of reachability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from converter.export.exporters import Exported, by_scripting, by_torch_export, by_tracing
from converter.graph.build import make_model, tensor_info
from converter.graph.canonical import canonical
from converter.head.gradient.differentiate import UnsupportedOperatorError
from converter.head.gradient.training_graph import build_training_graph
from converter.head.split import (
    FEATURES,
    SplitModel,
    choose_trainable,
    joined,
    split,
    trainable_groups,
    with_constants,
    with_layer_input,
)
from converter.load.source import Source
from converter.program.programs import onnx_program, output_specs, resized, torch_program
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.manifest import LinearLayer
from edge.contract.tensorspec import TensorSpec
from tests.converter.models import cnn, export, exported_by, mlp, source_of, vector


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def halves_of(model: nn.Module, shape: Sequence[int], rule: str) -> Halves:
    exported = canonical(export(model, shape))
    parts = split(exported, choose_trainable(trainable_groups(exported, names_of(model)), rule))
    assert parts.head is not None
    return Halves(parts.backbone, parts.head.graph, parts.head.parameters, parts.head.linear, parts)


class Halves(NamedTuple):
    backbone: onnx.ModelProto
    head: onnx.ModelProto
    parameters: dict[str, np.ndarray]
    linear: LinearLayer | None
    parts: SplitModel


def assert_halves_equal_the_whole(model: nn.Module, halves: Halves, shape: Sequence[int]) -> None:
    for n in (1, 2, 5):
        x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))
        features = run(halves.backbone, {"input": x.numpy()})
        found = run(halves.head, {FEATURES: features, **halves.parameters})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-4, atol=1e-5)
        whole = run(joined(halves.backbone, halves.parts), {"input": x.numpy(), **halves.parameters})
        np.testing.assert_array_equal(whole, found)


class TwoNorms(nn.Module):
    """Linear layers on sequences (so products with a transposed matrix), and two LayerNorms at their initial values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + torch.relu(self.first(x)))
        x = self.norm2(x + torch.relu(self.second(x)))
        return self.out(x.mean(dim=1))


def test_every_parameter_keeps_its_own_name_shape_and_values() -> None:
    model = TwoNorms().eval()
    exported = export(
        model,
        (
            5,
            6,
        ),
    )
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in exported.graph.initializer}
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(tensors[name], parameter.detach().numpy())
    used = [name for node in exported.graph.node for name in node.input]
    for name in names_of(model):  # equal ones were not merged: each is used once
        assert used.count(name) == 1, name


def test_two_layer_norms_at_their_initial_values_stay_two_in_a_head() -> None:
    model = TwoNorms()
    halves = halves_of(model, (5, 6), "last:4")
    assert {"norm1.weight", "norm2.weight", "norm1.bias", "norm2.bias"} <= set(halves.parameters)
    assert_halves_equal_the_whole(model.eval(), halves, (5, 6))
    changed = {**halves.parameters, "norm2.weight": np.full(6, 2, np.float32)}
    feed = {FEATURES: np.random.default_rng(0).normal(size=(1, 5, 6)).astype(np.float32)}
    assert not np.allclose(run(halves.head, feed | changed), run(halves.head, feed | halves.parameters))


def test_a_transposed_matrix_is_not_folded_into_the_parameter() -> None:
    halves = halves_of(TwoNorms(), (5, 6), "last:5")
    assert "Transpose" in {node.op_type for node in halves.head.graph.node}
    assert halves.parameters["first.weight"].shape == (6, 6)


def test_a_batch_norm_in_the_head_keeps_its_four_tensors_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    model(torch.randn(32, 6))  # running statistics that are not 0 and 1
    halves = halves_of(model, (6,), "last:2")
    assert list(halves.parameters) == ["1.weight", "1.bias", "3.weight", "3.bias"]
    fixed = {tensor.name for tensor in halves.head.graph.initializer}
    assert {"1.running_mean", "1.running_var"} <= fixed
    assert_halves_equal_the_whole(model.eval(), halves, (6,))


def test_the_batch_axis_is_free() -> None:
    model = cnn()
    exported = export(
        model,
        (
            1,
            8,
            8,
        ),
    )
    for n in (1, 2, 7):
        x = torch.randn(n, 1, 8, 8)
        with torch.no_grad():
            np.testing.assert_allclose(run(exported, {"input": x.numpy()}), model(x).numpy(), rtol=1e-4, atol=1e-5)


class Stateful(nn.Module):
    """A recurrent state in and out, beside the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True)
        self.out = nn.Linear(5, 3)

    def forward(
        self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
        y, (h, c) = self.lstm(x, (h, c))
        return self.out(y[:, -1]), {"h": h, "c": c, "nothing": None}


def stateful() -> Source:
    state = [TensorSpec(name=name, dtype="float32", shape=(2, "batch", 5)) for name in ("h", "c")]
    return source_of(Stateful(), TensorSpec(name="x", dtype="float32", shape=("batch", "time", 6)), *state)


@pytest.mark.parametrize("exporter", [by_tracing, by_torch_export])
def test_names_and_free_axes_of_several_inputs_and_outputs_are_kept(
    exporter: Callable[[Source, Sequence[TensorSpec]], Exported],
) -> None:
    source = stateful()
    assert isinstance(source.model, nn.Module)
    program = torch_program(source.model, source.inputs)
    outputs = output_specs(program, source.inputs, source.example)
    assert [(spec.name, spec.shape) for spec in outputs] == [
        ("output_0", ("batch", 3)),
        ("output_1.h", (2, "batch", 5)),
        ("output_1.c", (2, "batch", 5)),
    ]
    exported = exporter(source, outputs)
    for batch, time in ((1, 5), (3, 9), (4, 2)):
        feeds = resized(source.example, source.inputs, {"batch": batch, "time": time})
        wanted, found = program(feeds), onnx_program(exported.model, "it")(feeds)
        assert list(found) == list(wanted)
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)


def test_a_state_that_goes_in_and_out_under_one_name_gets_two() -> None:
    class Counter(nn.Module):
        def forward(self, x: torch.Tensor, state: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": x + state, "state": state + 1}

    source = source_of(Counter(), vector(3, name="x"), vector(3, name="state"))
    exported = exported_by(by_tracing, source)
    assert [output.name for output in exported.model.graph.output] == ["y", "state_out"]


def test_an_input_that_is_not_read_is_refused_by_name() -> None:
    class Deaf(nn.Module):
        def forward(self, x: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
            return x * 2

    with pytest.raises(ConversionError, match="does not use its input ignored"):
        exported_by(by_tracing, source_of(Deaf(), vector(3, name="x"), vector(3, name="ignored")))


class Branching(nn.Module):
    """Goes another way for negative sums, which a trace cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x)) if bool(x.sum() > 0) else self.b(-x)


def test_a_branch_on_values_is_baked_in_by_tracing_and_kept_by_scripting() -> None:
    source = source_of(Branching(), vector(4))
    assert isinstance(source.model, nn.Module)
    program = torch_program(source.model, source.inputs)
    traced, scripted = exported_by(by_tracing, source), exported_by(by_scripting, source)
    assert (traced.decides or "").startswith("test_export_and_split.py")
    assert (traced.sizes, scripted.decides) == (None, None)
    same = {True: 0, False: 0}
    for sign in (1, -1):
        feeds = {"input": np.full((2, 4), sign, np.float32)}
        wanted = program(feeds)["output"]
        np.testing.assert_allclose(onnx_program(scripted.model, "it")(feeds)["output"], wanted, rtol=1e-5, atol=1e-6)
        same[np.allclose(onnx_program(traced.model, "it")(feeds)["output"], wanted, atol=1e-4)] += 1
    assert same == {True: 1, False: 1}


# --- choosing --------------------------------------------------------------------------------------------------------


class UsedBackwards(nn.Module):
    """Declared in the opposite order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.middle, self.first = nn.Linear(4, 2), nn.Linear(5, 4), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.middle(torch.relu(self.first(x)))))


@pytest.mark.parametrize(
    ("rule", "chosen"), [("last:1", ["last"]), ("last:2", ["middle", "last"]), ("last:3", ["first", "middle", "last"])]
)
def test_last_k_counts_modules_in_the_order_in_which_they_are_used(rule: str, chosen: list[str]) -> None:
    model = UsedBackwards().eval()
    exported = export(model, (3,))
    found = choose_trainable(trainable_groups(exported, names_of(model)), rule)
    assert found == [f"{module}.{kind}" for module in chosen for kind in ("weight", "bias")]


@pytest.mark.parametrize("rule", ["last:4", "last:99"])
def test_refuses_more_modules_than_there_are(rule: str) -> None:
    exported = export(UsedBackwards().eval(), (3,))
    with pytest.raises(ConfigError, match="3 layers"):
        choose_trainable(trainable_groups(exported, names_of(UsedBackwards())), rule)


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        ("last.*", ["last.weight", "last.bias"]),
        ("*.bias", ["first.bias", "middle.bias", "last.bias"]),
        ("last.weight, middle.*", ["middle.weight", "middle.bias", "last.weight"]),
    ],
)
def test_names_with_wildcards_are_taken_in_the_order_of_use(rule: str, chosen: list[str]) -> None:
    exported = export(UsedBackwards().eval(), (3,))
    assert choose_trainable(trainable_groups(exported, names_of(UsedBackwards())), rule) == chosen


def test_a_graph_without_names_of_parameters_is_grouped_by_its_nodes() -> None:
    exported = canonical(export(UsedBackwards().eval(), (3,)))
    groups = trainable_groups(exported, [])
    assert list(groups.values()) == [
        ["first.weight", "first.bias"],
        ["middle.weight", "middle.bias"],
        ["last.weight", "last.bias"],
    ]


@pytest.mark.parametrize("rule", ["last:0", "last:-1", "last:1.5", "last:1 ", "last:"])
def test_refuses_a_rule_that_is_not_last_k(rule: str) -> None:
    exported = export(UsedBackwards().eval(), (3,))
    with pytest.raises(ConfigError, match="expected last:K"):
        choose_trainable(trainable_groups(exported, names_of(UsedBackwards())), rule)


@pytest.mark.parametrize("rule", ["last", "first:1", "", "LAST:1", "all", "lst.*", "last.*,nothing"])
def test_refuses_names_that_no_parameter_has_and_names_some_that_exist(rule: str) -> None:
    exported = export(UsedBackwards().eval(), (3,))
    with pytest.raises(ConfigError, match=r"no parameter has such a name; there are e\.g\. \w+\.(weight|bias)"):
        choose_trainable(trainable_groups(exported, names_of(UsedBackwards())), rule)


# --- cutting ---------------------------------------------------------------------------------------------------------


class Skips(nn.Module):
    """A skip connection inside what `last:2` makes the backbone, and one inside the head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        x = x + torch.tanh(self.b(x))
        x = torch.sigmoid(x)
        x = x + torch.tanh(self.c(x))
        return self.d(x)


@pytest.mark.parametrize("rule", ["last:1", "last:2", "last:4"])
def test_skip_connections_inside_either_half_are_cut_right(rule: str) -> None:
    model = Skips().eval()
    halves = halves_of(model, (6,), rule)
    assert_halves_equal_the_whole(model, halves, (6,))
    build_training_graph(halves.head, FEATURES, list(halves.parameters))  # and the head can be trained


class Bridge(nn.Module):
    """The head needs the output of `a` and that of `b`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        y = torch.relu(self.b(x))
        return self.c(y) + x[:, :3]


def test_the_features_of_a_head_that_needs_two_tensors_are_both() -> None:
    model = Bridge().eval()
    halves = halves_of(model, (6,), "last:1")
    assert halves.parts.head is not None
    assert halves.parts.head.features.shape == ("batch", 9)
    assert halves.linear is None
    assert_halves_equal_the_whole(model, halves, (6,))
    build_training_graph(halves.head, FEATURES, list(halves.parameters))


def test_the_other_outputs_of_a_model_come_from_the_backbone() -> None:
    source = stateful()
    exported = exported_by(by_tracing, source).model
    parts = split(exported, choose_trainable(trainable_groups(exported, names_of(source.model)), "out.*"))  # type: ignore[arg-type]
    assert parts.head is not None
    whole = onnx_program(joined(parts.backbone, parts), "it", parts.head.parameters)(source.example)
    assert list(whole) == ["output_0", "output_1.h", "output_1.c", FEATURES]
    plain = onnx_program(with_constants(joined(parts.backbone, parts), parts.head.parameters), "it")(source.example)
    for name, array in onnx_program(exported, "it")(source.example).items():
        np.testing.assert_allclose(whole[name], array, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(plain[name], whole[name], rtol=1e-5, atol=1e-6)


def test_refuses_trainable_layers_that_lead_to_several_outputs() -> None:
    source = stateful()
    exported = exported_by(by_tracing, source).model
    with pytest.raises(ConversionError, match=r"must lead to one output, they lead to 3 \(output_0"):
        split(exported, choose_trainable(trainable_groups(exported, names_of(source.model)), "lstm.*_l1"))  # type: ignore[arg-type]


def test_the_same_model_can_be_cut_elsewhere() -> None:
    model = Bridge().eval()
    assert_halves_equal_the_whole(model, halves_of(model, (6,), "last:3"), (6,))


def test_when_everything_is_trainable_the_backbone_passes_its_input_through() -> None:
    model = mlp()
    halves = halves_of(model, (12,), "last:3")
    assert [node.op_type for node in halves.backbone.graph.node] == ["Identity"]
    assert list(halves.parameters) == names_of(model)
    assert_halves_equal_the_whole(model, halves, (12,))


def test_refuses_features_that_are_not_floats() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 3)).eval()
    exported = export(model, (2,), "int64")
    with pytest.raises(ConversionError, match="float"):
        split(exported, choose_trainable(trainable_groups(exported, names_of(model)), "last:2"))


def test_a_head_with_an_operator_that_has_no_gradient_is_refused_by_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.cos(self.a(x)))

    halves = halves_of(Odd(), (6,), "last:2")
    with pytest.raises(UnsupportedOperatorError, match="Cos"):
        build_training_graph(halves.head, FEATURES, list(halves.parameters))


def test_a_product_and_an_addition_become_one_linear_layer_of_torchs_shape() -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((6, 3)).astype(np.float32), rng.standard_normal(3).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "W"], ["xw"]), helper.make_node("Add", ["b", "xw"], ["y"])]
    tensors = [numpy_helper.from_array(weight, "W"), numpy_helper.from_array(bias, "b")]
    model = make_model("m", nodes, [tensor_info("x", ("batch", 6))], [tensor_info("y", ("batch", 3))], tensors)
    found = canonical(model)
    assert [node.op_type for node in found.graph.node] == ["Gemm"]
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Add"]  # its input is not changed
    x = rng.standard_normal((4, 6)).astype(np.float32)
    np.testing.assert_allclose(run(found, {"x": x}), x @ weight + bias, rtol=1e-5, atol=1e-6)
    parts = split(found, choose_trainable(trainable_groups(found, []), "last:1"))
    assert parts.head is not None
    assert parts.head.linear == LinearLayer(weight="W", bias="b", input=FEATURES)
    np.testing.assert_array_equal(parts.head.parameters["W"], weight.T)


# --- linear heads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_one_linear_layer_is_found_to_be_linear(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=bias))
    halves = halves_of(model, (6,), "last:1")
    assert halves.linear == LinearLayer(weight="2.weight", bias="2.bias" if bias else None, input=FEATURES)


@pytest.mark.parametrize(
    ("tail", "rule"),
    [
        ([nn.Linear(5, 3), nn.ReLU()], "last:1"),
        ([nn.Linear(5, 3), nn.Softmax(dim=1)], "last:1"),
        ([nn.Linear(5, 3), nn.BatchNorm1d(3)], "last:2"),
        ([nn.Linear(5, 3), nn.BatchNorm1d(3)], "last:1"),
    ],
    ids=["relu-behind", "softmax-behind", "norm-behind", "norm-alone"],
)
def test_anything_more_is_not_linear(tail: list[nn.Module], rule: str) -> None:
    assert halves_of(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), *tail), (6,), rule).linear is None


def test_the_last_of_several_layers_is_found_and_what_it_takes_can_be_had() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
    head = halves_of(model, (6,), "last:2").parts.head
    assert head is not None
    assert head.linear is not None
    assert not head.is_linear
    assert (head.linear.weight, head.linear.bias, head.n_outputs) == ("4.weight", "4.bias", 3)
    wide = with_layer_input(head)
    assert [info.name for info in wide.graph.output] == [head.output, head.linear.input]
    features = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    found = onnx_program(wide, "the head", head.parameters)({head.features.name: features})
    with torch.no_grad():
        expected = model[2:4](torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(found[head.linear.input], expected, rtol=1e-5, atol=1e-6)


class Twice(nn.Module):
    """A head whose features are read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.a(x))
        return self.c(torch.cat([x, torch.relu(self.b(x))], 1))


@pytest.mark.parametrize(
    ("model", "rule", "entry"),
    [
        (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), "last:2", ("0.weight", "0.bias")),
        (nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)), "last:2", ("0.weight", None)),
        (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), "last:1", ("2.weight", "2.bias")),
        (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.Softmax(1)), "last:1", ("2.weight", "2.bias")),
        (nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)), "last:2", None),
        (Twice(), "last:2", None),
    ],
    ids=["two layers", "without a bias", "one layer", "softmax behind", "a norm in front", "features read twice"],
)
def test_the_linear_layer_that_alone_takes_the_features_is_found(
    model: nn.Module, rule: str, entry: tuple[str, str | None] | None
) -> None:
    head = halves_of(model, (6,), rule).parts.head
    assert head is not None
    expected = None if entry is None else LinearLayer(weight=entry[0], bias=entry[1], input=FEATURES)
    assert head.entry == expected


def test_a_matrix_used_twice_in_the_head_is_not_linear() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(self.a(x))

    halves = halves_of(Twice(), (4,), "last:1")
    assert halves.linear is None


class Turned(nn.Module):
    """With an operator of integers that the tracing exporter does not know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.bitwise_not(x.to(torch.int64)).to(torch.float32)


def test_torch_does_not_write_a_graph_that_it_cannot_export_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConversionError, match="bitwise Not"):
        exported_by(by_tracing, source_of(Turned(), vector(4)))
    assert capfd.readouterr() == ("", "")
