"""Export keeps parameters whole and under their own names; the cut is a question of reachability."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from converter.export import export_onnx
from converter.gradient.differentiate import UnsupportedOperatorError
from converter.gradient.training_graph import build_training_graph
from converter.split import FEATURES, SplitModel, choose_trainable, split
from edge.contract.errors import ConfigError, ConversionError
from edge.contract.manifest import LinearHead
from tests.converter.models import cnn, mlp


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def halves_of(model: nn.Module, shape: Sequence[int], rule: str) -> SplitModel:
    exported = export_onnx(model.eval(), torch.zeros(1, *shape))
    return split(exported, choose_trainable(exported, names_of(model), rule))


def assert_halves_equal_the_whole(model: nn.Module, halves: SplitModel, shape: Sequence[int]) -> None:
    for n in (1, 2, 5):
        x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))
        features = run(halves.backbone, {"input": x.numpy()})
        found = run(halves.head, {FEATURES: features, **halves.parameters})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-4, atol=1e-5)


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
    exported = export_onnx(model, torch.zeros(1, 5, 6))
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
    exported = export_onnx(model, torch.zeros(1, 1, 8, 8))
    for n in (1, 2, 7):
        x = torch.randn(n, 1, 8, 8)
        with torch.no_grad():
            np.testing.assert_allclose(run(exported, {"input": x.numpy()}), model(x).numpy(), rtol=1e-4, atol=1e-5)


def test_refuses_a_model_with_two_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.a(x), x + 1

    with pytest.raises(ConversionError, match="2 outputs"):
        export_onnx(Two().eval(), torch.zeros(1, 3))


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
    exported = export_onnx(model, torch.zeros(1, 3))
    found = choose_trainable(exported, names_of(model), rule)
    assert found == [f"{module}.{kind}" for module in chosen for kind in ("weight", "bias")]


@pytest.mark.parametrize("rule", ["last:4", "last:99"])
def test_refuses_more_modules_than_there_are(rule: str) -> None:
    exported = export_onnx(UsedBackwards().eval(), torch.zeros(1, 3))
    with pytest.raises(ConfigError, match="3 modules"):
        choose_trainable(exported, names_of(UsedBackwards()), rule)


@pytest.mark.parametrize("rule", ["last", "last:0", "last:-1", "last:1.5", "first:1", "", "last:1 ", "LAST:1", "all"])
def test_refuses_a_rule_that_is_not_last_k(rule: str) -> None:
    exported = export_onnx(UsedBackwards().eval(), torch.zeros(1, 3))
    with pytest.raises(ConfigError, match="expected last:K"):
        choose_trainable(exported, names_of(UsedBackwards()), rule)


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


def test_refuses_a_head_that_needs_two_tensors_of_the_backbone_and_says_so() -> None:
    with pytest.raises(ConversionError, match=r"the head takes 2 tensors from the backbone \(.+\); one is supported"):
        halves_of(Bridge(), (6,), "last:1")


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
    exported = export_onnx(model, torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ConversionError, match="float"):
        split(exported, choose_trainable(exported, names_of(model), "last:2"))


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


# --- linear heads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_one_linear_layer_is_found_to_be_linear(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=bias))
    halves = halves_of(model, (6,), "last:1")
    assert halves.linear == LinearHead(weight="2.weight", bias="2.bias" if bias else None)


@pytest.mark.parametrize(
    ("tail", "rule"),
    [
        ([nn.Linear(5, 3), nn.ReLU()], "last:1"),
        ([nn.Linear(5, 3), nn.Softmax(dim=1)], "last:1"),
        ([nn.Linear(5, 4), nn.Linear(4, 3)], "last:2"),
        ([nn.Linear(5, 3), nn.BatchNorm1d(3)], "last:2"),
        ([nn.Linear(5, 3), nn.BatchNorm1d(3)], "last:1"),
    ],
    ids=["relu-behind", "softmax-behind", "two-layers", "norm-behind", "norm-alone"],
)
def test_anything_more_is_not_linear(tail: list[nn.Module], rule: str) -> None:
    assert halves_of(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), *tail), (6,), rule).linear is None


def test_a_matrix_used_twice_in_the_head_is_not_linear() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(self.a(x))

    halves = halves_of(Twice(), (4,), "last:1")
    assert halves.linear is None
