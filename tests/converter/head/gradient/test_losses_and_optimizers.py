"""Every loss with every optimizer against torch in float64, run as a device runs it: `OnnxTrainer`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from torch import nn

from converter.graph.build import make_model, shape_of, tensor_info
from converter.graph.canonical import canonical
from converter.head.gradient.training_graph import HYPER, build_training_graph, class_layer, free_classes
from converter.head.split import FEATURES, Head, split
from edge.contract.errors import BundleError, ConversionError, LearningError
from edge.contract.recipe import (
    BINARY_CROSS_ENTROPY,
    CROSS_ENTROPY,
    HUBER,
    LOSSES,
    MEAN_SQUARED_ERROR,
    OPTIMIZERS,
    TrainingRecipe,
)
from edge.contract.training import Parameters
from edge.inference.onnx_trainer import ANCHOR, LEARNING_RATE, LOSS, SAMPLE_WEIGHTS, SLOT, TARGETS, UPDATED, OnnxTrainer
from tests.converter.models import export, rng

STEPS = 20
RATES = {"sgd": 0.05, "momentum": 0.02, "nesterov": 0.02, "adam": 0.005, "adamw": 0.005}
VARIANTS: dict[str, dict[str, float]] = {
    "plain": {},
    "weight decay": {"weight_decay": 0.05},
    "proximal": {"proximal": 0.3},
    "clipped": {"clip_norm": 0.2},
    "all": {"weight_decay": 0.05, "proximal": 0.3, "clip_norm": 0.2, "momentum": 0.8, "beta1": 0.8, "beta2": 0.95},
}


def mlp(n_in: int = 6, n_hidden: int = 5, n_out: int = 4, *, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.Tanh(), nn.Linear(n_hidden, n_out, bias=bias))


def head_of(model: nn.Module, shape: tuple[int, ...]) -> Head:
    head = split(canonical(export(model, shape)), [name for name, _ in model.named_parameters()]).head
    assert head is not None
    return head


def trainer_of(head: Head, recipe: TrainingRecipe, **options: Any) -> OnnxTrainer:
    graph = build_training_graph(head.graph, FEATURES, list(head.parameters), recipe)
    return OnnxTrainer(graph.SerializeToString(), FEATURES, head.parameters, **options)


def targets_of(loss: str, n: int, n_outputs: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    if loss == CROSS_ENTROPY:  # some hard, some soft
        soft = random.dirichlet(np.ones(n_outputs), n)
        hard = np.eye(n_outputs)[random.integers(0, n_outputs, n)]
        return np.where(random.random((n, 1)) < 0.5, soft, hard).astype(np.float32)
    if loss == BINARY_CROSS_ENTROPY:
        return random.random((n, n_outputs)).round(1).astype(np.float32)
    return random.normal(0, 2, (n, n_outputs)).astype(np.float32)


def torch_loss(recipe: TrainingRecipe, outputs: torch.Tensor, targets: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """From torch's own losses."""
    if recipe.loss == CROSS_ENTROPY:
        each = nn.functional.cross_entropy(outputs, targets, reduction="none")
    elif recipe.loss == BINARY_CROSS_ENTROPY:
        each = nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)
    elif recipe.loss == MEAN_SQUARED_ERROR:
        each = nn.functional.mse_loss(outputs, targets, reduction="none").mean(1)
    else:
        each = nn.functional.huber_loss(outputs, targets, reduction="none", delta=recipe.huber_delta).mean(1)
    return (each * w).sum() / len(outputs)


def torch_optimizer(recipe: TrainingRecipe, parameters: Any, rate: float) -> torch.optim.Optimizer:
    decay, betas = recipe.weight_decay, (recipe.beta1, recipe.beta2)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, weight_decay=decay)
    if recipe.optimizer in ("momentum", "nesterov"):
        nesterov = recipe.optimizer == "nesterov"
        return torch.optim.SGD(parameters, rate, momentum=recipe.momentum, weight_decay=decay, nesterov=nesterov)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, rate, betas=betas, eps=recipe.epsilon, weight_decay=decay)


class Reference:
    """The same steps in torch, in float64."""

    def __init__(self, model: nn.Module, recipe: TrainingRecipe, rate: float) -> None:
        self.model, self.recipe = model.double(), recipe
        self.parameters = list(model.parameters())
        self.anchor = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch_optimizer(recipe, self.parameters, rate)

    def step(self, x: npt.NDArray[Any], targets: npt.NDArray[Any], weights: npt.NDArray[Any]) -> float:
        tensors = [torch.from_numpy(array).double() for array in (x, targets, weights)]
        loss = torch_loss(self.recipe, self.model(tensors[0]), tensors[1], tensors[2])
        self.optimizer.zero_grad()
        pull = sum((p - a).square().sum() for p, a in zip(self.parameters, self.anchor, strict=True))
        (loss + self.recipe.proximal / 2 * pull).backward()
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        self.optimizer.step()
        return float(loss.detach())


def assert_near(found: Mapping[str, npt.NDArray[Any]], model: nn.Module, bound: float = 1e-5) -> None:
    for name, expected in model.named_parameters():
        wanted = expected.detach().numpy()
        error = np.linalg.norm(found[name] - wanted) / np.linalg.norm(wanted)
        assert error <= bound, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_many_steps_equal_torch(loss: str, optimizer: str, variant: str) -> None:
    torch.manual_seed(5)
    recipe = TrainingRecipe(loss=loss, optimizer=optimizer, huber_delta=0.7, **VARIANTS[variant])
    model = mlp()
    trainer = trainer_of(head_of(model, (6,)), recipe)
    reference = Reference(model, recipe, RATES[optimizer])
    random = rng(11)
    for step in range(STEPS):
        n = (1, 32, 5, 17)[step % 4]
        x = random.normal(size=(n, 6)).astype(np.float32)
        targets, weights = targets_of(loss, n, 4, random), (random.random(n) * 2).astype(np.float32)
        wanted = reference.step(x, targets, weights)
        assert trainer.step(x, targets, weights, RATES[optimizer]) == pytest.approx(wanted, rel=2e-5, abs=1e-6)
    assert_near(trainer.parameters(), model)


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    batches=st.lists(st.integers(1, 12), min_size=3, max_size=3),
    loss=st.sampled_from(LOSSES),
    optimizer=st.sampled_from(OPTIMIZERS),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_steps_of_any_shape_equal_torch(
    sizes: tuple[int, int, int], batches: list[int], loss: str, optimizer: str, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    # Adam's first steps are the sign of the gradient where that is far above epsilon; make it so everywhere.
    recipe = TrainingRecipe(loss=loss, optimizer=optimizer, epsilon=1e-2, weight_decay=0.01)
    model = mlp(*sizes, bias=bias)
    trainer = trainer_of(head_of(model, sizes[:1]), recipe)
    reference, random = Reference(model, recipe, 0.02), rng(seed)
    for n in batches:
        x = random.normal(size=(n, sizes[0])).astype(np.float32)
        targets, weights = targets_of(loss, n, sizes[2], random), random.random(n).astype(np.float32)
        wanted = reference.step(x, targets, weights)
        assert trainer.step(x, targets, weights, 0.02) == pytest.approx(wanted, rel=2e-5, abs=1e-6)
    assert_near(trainer.parameters(), model)


# The gradient alone


def step_in_float64(graph: onnx.ModelProto, feed: Mapping[str, Any]) -> dict[str, npt.NDArray[np.float64]]:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, {k: np.asarray(v, np.float64) for k, v in feed.items()}), strict=True))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_equal_finite_differences_in_float64(loss: str) -> None:
    gemm = helper.make_node("Gemm", [FEATURES, "W", "b"], ["z"], transB=1)
    infos = [tensor_info(FEATURES, ("batch", 5), np.float64), tensor_info("W", (3, 5), np.float64)]
    infos.append(tensor_info("b", (3,), np.float64))
    head = make_model("head", [gemm], infos, [tensor_info("z", ("batch", 3), np.float64)], [])
    recipe = TrainingRecipe(loss=loss, huber_delta=0.6)
    graph = build_training_graph(head, FEATURES, ["W", "b"], recipe, np.float64)
    random = rng(2)
    feed = {
        FEATURES: random.normal(size=(4, 5)),
        TARGETS: targets_of(loss, 4, 3, random),
        SAMPLE_WEIGHTS: random.random(4) + 0.2,
        "W": random.normal(size=(3, 5)),
        "b": random.normal(size=3),
    }
    if loss == CROSS_ENTROPY:  # rows that sum to 1 in float64 as well
        feed[TARGETS] = feed[TARGETS].astype(np.float64)
        feed[TARGETS] /= feed[TARGETS].sum(axis=1, keepdims=True)
    found = step_in_float64(graph, {**feed, LEARNING_RATE: 1.0})
    eps = 1e-6
    for name in ("W", "b"):
        for index in np.ndindex(feed[name].shape):
            sides = []
            for sign in (1, -1):
                moved = feed[name].copy()
                moved[index] += sign * eps
                sides.append(float(step_in_float64(graph, {**feed, name: moved, LEARNING_RATE: 0.0})[LOSS]))
            gradient = feed[name][index] - found[UPDATED + name][index]
            assert gradient == pytest.approx((sides[0] - sides[1]) / (2 * eps), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
def test_large_outputs_give_a_finite_loss(loss: str) -> None:
    torch.manual_seed(5)
    model = mlp()
    recipe = TrainingRecipe(loss=loss)
    trainer = trainer_of(head_of(model, (6,)), recipe)
    big = {name: array * 3e3 for name, array in trainer.parameters().items()}
    trainer.load(big)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in big.items()})
    reference, random = Reference(model, recipe, 0.1), rng(0)
    x, targets = random.normal(size=(8, 6)).astype(np.float32), targets_of(loss, 8, 4, random)
    wanted = reference.step(x, targets, np.ones(8))
    assert wanted > 100
    assert trainer.step(x, targets, np.ones(8, np.float32), 0.1) == pytest.approx(wanted, rel=1e-4)
    assert_near(trainer.parameters(), model)


# What the graph is made of


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_graph_has_the_slots_and_numbers_that_the_recipe_uses_and_no_more(optimizer: str, variant: str) -> None:
    recipe = TrainingRecipe(optimizer=optimizer, **VARIANTS[variant])
    head = head_of(mlp(), (6,))
    graph = build_training_graph(head.graph, FEATURES, list(head.parameters), recipe)
    onnx.checker.check_model(graph, full_check=True)
    kinds = {"sgd": [], "momentum": ["momentum"], "nesterov": ["momentum"]}.get(optimizer, ["mean", "square"])
    slots = {f"{SLOT}{kind}.{name}" for kind in kinds for name in head.parameters}
    slots |= {SLOT + "steps"} if optimizer.startswith("adam") else set()
    numbers = {"momentum"} if kinds == ["momentum"] else {"beta1", "beta2", "epsilon"} if kinds else set()
    numbers |= {name for name in ("weight_decay", "proximal", "clip_norm") if getattr(recipe, name)}
    anchors = {ANCHOR + name for name in head.parameters} if recipe.proximal else set()
    found = {info.name for info in graph.graph.input}
    given = {FEATURES, TARGETS, SAMPLE_WEIGHTS, LEARNING_RATE, *head.parameters}
    assert found == given | slots | anchors | {HYPER + name for name in numbers}
    outputs = {info.name for info in graph.graph.output}
    assert outputs == {UPDATED + name for name in slots | set(head.parameters)} | {LOSS, head.output}
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    assert {item.name for item in session.get_overridable_initializers()} == {HYPER + name for name in numbers}


def test_a_number_of_the_recipe_can_be_given_at_a_step() -> None:
    head = head_of(mlp(), (6,))
    feed: dict[str, Any] = {
        FEATURES: np.ones((2, 6), np.float32),
        TARGETS: np.eye(4, dtype=np.float32)[:2],
        SAMPLE_WEIGHTS: np.ones(2, np.float32),
        LEARNING_RATE: np.array(0.1, np.float32),
        **head.parameters,
    }

    def updated(recipe: TrainingRecipe, extra: dict[str, Any]) -> npt.NDArray[Any]:
        graph = build_training_graph(head.graph, FEATURES, list(head.parameters), recipe)
        session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        found: npt.NDArray[Any] = session.run([UPDATED + "0.weight"], {**feed, **extra})[0]
        return found

    decay, other = (TrainingRecipe(weight_decay=value) for value in (0.01, 0.5))
    np.testing.assert_array_equal(
        updated(decay, {HYPER + "weight_decay": np.array(0.5, np.float32)}), updated(other, {})
    )
    assert (updated(decay, {}) != updated(other, {})).any()


def test_parameters_with_one_gradient_are_both_moved() -> None:
    """The product that makes the gradient must not be folded into the update of one of them."""
    nodes = [
        helper.make_node("Add", ["A", "B"], ["W"]),
        helper.make_node("Gemm", [FEATURES, "W"], ["z"], transB=1),
    ]
    infos = [tensor_info(FEATURES, ("batch", 5)), tensor_info("A", (3, 5)), tensor_info("B", (3, 5))]
    head = make_model("head", nodes, infos, [tensor_info("z", ("batch", 3))], [])
    graph = build_training_graph(head, FEATURES, ["A", "B"])
    start = {name: rng(i).normal(size=(3, 5)).astype(np.float32) for i, name in enumerate("AB")}
    trainer = OnnxTrainer(graph.SerializeToString(), FEATURES, start)
    trainer.step(np.ones((2, 5), np.float32), np.eye(3, dtype=np.float32)[:2], np.ones(2, np.float32), 0.5)
    change = {name: array - start[name] for name, array in trainer.parameters().items()}
    assert np.abs(change["A"]).max() > 0.01
    np.testing.assert_allclose(change["A"], change["B"], atol=1e-6)


@pytest.mark.parametrize("name", ["targets", "loss", "slot.steps"])
def test_a_head_with_a_value_of_a_reserved_name_is_refused(name: str) -> None:
    nodes = [helper.make_node("Gemm", [FEATURES, "W"], [name], transB=1), helper.make_node("Relu", [name], ["z"])]
    infos = [tensor_info(FEATURES, ("batch", 5)), tensor_info("W", (3, 5))]
    head = make_model("head", nodes, infos, [tensor_info("z", ("batch", 3))], [])
    with pytest.raises(ConversionError, match=f"named {name}"):
        build_training_graph(head, FEATURES, ["W"], TrainingRecipe(optimizer="adam"))


# Memory


def some_steps(trainer: OnnxTrainer, count: int, seed: int, n_outputs: int = 4) -> list[float]:
    random = rng(seed)
    return [
        trainer.step(
            random.normal(size=(3, 6)).astype(np.float32),
            targets_of(CROSS_ENTROPY, 3, n_outputs, random),
            np.ones(3, np.float32),
            0.01,
        )
        for _ in range(count)
    ]


def assert_equal(found: Parameters, wanted: Parameters) -> None:
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_trainer_goes_on_from_what_it_remembered_bit_by_bit(optimizer: str) -> None:
    torch.manual_seed(5)
    recipe = TrainingRecipe(optimizer=optimizer, proximal=0.1)
    head = head_of(mlp(), (6,))
    one, other = trainer_of(head, recipe), trainer_of(head, recipe)
    some_steps(one, 7, seed=1)
    saved = one.parameters(), one.memory()
    wanted = some_steps(one, 5, seed=2)
    some_steps(other, 4, seed=9)
    other.load(*saved)
    assert_equal(other.memory(), saved[1])
    assert some_steps(other, 5, seed=2) == wanted
    assert_equal(other.parameters(), one.parameters())
    assert_equal(other.memory(), one.memory())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_loading_parameters_alone_forgets(optimizer: str) -> None:
    torch.manual_seed(5)
    recipe = TrainingRecipe(optimizer=optimizer, proximal=0.1)
    head = head_of(mlp(), (6,))
    used = trainer_of(head, recipe)
    some_steps(used, 7, seed=1)
    now = used.parameters()
    used.load(now)
    for name, array in used.memory().items():
        wanted = now[name.removeprefix(ANCHOR)] if name.startswith(ANCHOR) else np.zeros_like(array)
        np.testing.assert_array_equal(array, wanted)
    fresh = trainer_of(dataclasses.replace(head, parameters=now), recipe)
    assert some_steps(used, 3, seed=2) == some_steps(fresh, 3, seed=2)


def test_a_refused_step_leaves_parameters_and_memory() -> None:
    torch.manual_seed(5)
    trainer = trainer_of(head_of(mlp(), (6,)), TrainingRecipe(optimizer="adam", proximal=0.1))
    some_steps(trainer, 3, seed=1)
    before = trainer.parameters(), trainer.memory()
    good = np.ones((2, 6), np.float32), np.eye(4, dtype=np.float32)[:2], np.ones(2, np.float32)
    refused = [
        (np.full((2, 6), np.nan, np.float32), good[1], good[2], "not finite"),
        (good[0], good[1], np.full(2, np.inf, np.float32), "not finite"),
        (good[0][:, :5], good[1], good[2], "this batch"),
        (good[0], good[1][:, :1], good[2], "this batch"),
        (good[0], good[1][:1], good[2], "this batch"),
        (good[0], good[1], good[2][:1], "this batch"),
        (good[0], good[1], good[2][:, None], "this batch"),
        (good[0][:0], good[1][:0], good[2][:0], "this batch"),
    ]
    for features, targets, weights, message in refused:
        with pytest.raises(LearningError, match=message):
            trainer.step(features, targets, weights, 0.01)
        assert_equal(trainer.parameters(), before[0])
        assert_equal(trainer.memory(), before[1])
    trainer.step(*good, 0.01)
    assert trainer.memory()[SLOT + "steps"] == 4


@pytest.mark.parametrize("fault", ["name", "shape", "nan", "memory name", "memory shape", "memory nan", "no memory"])
def test_refuses_to_load_what_is_not_this_heads(fault: str) -> None:
    torch.manual_seed(5)
    trainer = trainer_of(head_of(mlp(), (6,)), TrainingRecipe(optimizer="adam", proximal=0.1))
    some_steps(trainer, 3, seed=1)
    before = trainer.parameters(), trainer.memory()
    parameters, memory = trainer.parameters(), trainer.memory()
    changed, name = (memory, SLOT + "mean.0.weight") if "memory" in fault else (parameters, "0.weight")
    if "name" in fault:
        changed[name + "_"] = changed.pop(name)
    elif "shape" in fault:
        changed[name] = changed[name][:, 1:]
    elif "nan" in fault:
        changed[name] = np.full_like(changed[name], np.nan)
    else:
        memory = {}
    with pytest.raises(LearningError):
        trainer.load(parameters, memory)
    assert_equal(trainer.parameters(), before[0])
    assert_equal(trainer.memory(), before[1])


def test_refuses_a_graph_of_other_parameters() -> None:
    head = head_of(mlp(), (6,))
    graph = build_training_graph(head.graph, FEATURES, list(head.parameters)).SerializeToString()
    with pytest.raises(BundleError, match="inputs"):
        OnnxTrainer(graph, FEATURES, {**head.parameters, "more": np.zeros(3, np.float32)})
    with pytest.raises(BundleError, match="shape"):
        OnnxTrainer(graph, FEATURES, {**head.parameters, "0.weight": np.zeros((5, 7), np.float32)})


def test_another_provider_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of other devices, which copies parameters at each step, on this CPU."""
    torch.manual_seed(5)
    head, recipe = head_of(mlp(), (6,)), TrainingRecipe(optimizer="adam", proximal=0.1)
    here = trainer_of(head, recipe)
    monkeypatch.setattr("edge.inference.onnx_trainer.CPU", "another")
    there = trainer_of(head, recipe, providers=("CPUExecutionProvider",))
    assert not there._on_cpu
    assert some_steps(there, 5, seed=1) == some_steps(here, 5, seed=1)
    assert_equal(there.parameters(), here.parameters())
    assert_equal(there.memory(), here.memory())


# A free number of classes


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_head_grows_by_a_class(optimizer: str, bias: bool) -> None:
    """Four classes, then six: as a torch head that was made with six."""
    torch.manual_seed(5)
    recipe = TrainingRecipe(optimizer=optimizer, weight_decay=0.01)
    trainer = trainer_of(head_of(mlp(bias=bias), (6,)), recipe)
    some_steps(trainer, 3, seed=1)
    model = mlp(n_out=6, bias=bias)
    grown = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    for name, array in trainer.parameters().items():
        grown[name][: len(array)] = array
    model.load_state_dict({name: torch.from_numpy(array) for name, array in grown.items()})
    trainer.load(grown)
    assert_equal(trainer.parameters(), grown)
    reference, random = Reference(model, recipe, 0.01), rng(3)
    for n in (1, 5, 8):
        x, targets = random.normal(size=(n, 6)).astype(np.float32), targets_of(CROSS_ENTROPY, n, 6, random)
        wanted = reference.step(x, targets, np.ones(n))
        assert trainer.step(x, targets, np.ones(n, np.float32), 0.01) == pytest.approx(wanted, rel=2e-5)
    assert_near(trainer.parameters(), model)
    with pytest.raises(LearningError, match="batch"):
        trainer.step(x, targets[:, :4], np.ones(8, np.float32), 0.01)
    uneven = trainer.parameters()
    uneven["2.weight"] = uneven["2.weight"][:5]
    if bias:
        with pytest.raises(LearningError, match="shape"):
            trainer.load(uneven)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_freeing_the_classes_changes_shapes_only(bias: bool) -> None:
    torch.manual_seed(5)
    head = head_of(mlp(bias=bias), (6,))
    layer = class_layer(head.graph, list(head.parameters))
    assert layer == ("2.weight", "2.bias" if bias else None)
    before = head.graph.SerializeToString()
    freed = free_classes(head.graph, *layer)
    assert head.graph.SerializeToString() == before
    onnx.checker.check_model(freed, full_check=True)
    shapes = {info.name: shape_of(info) for info in [*freed.graph.input, *freed.graph.output]}
    assert shapes["2.weight"] == ("classes", 5)
    assert shapes[head.output] == ("batch", "classes")
    assert shapes["0.weight"] == (5, 6)
    feed = {FEATURES: rng(1).normal(size=(3, 6)).astype(np.float32), **head.parameters}
    sessions = [ort.InferenceSession(model.SerializeToString()) for model in (head.graph, freed)]
    outputs = [session.run(None, feed)[0] for session in sessions]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-6)
    more = {**feed, "2.weight": np.concatenate([feed["2.weight"]] * 2)}
    more |= {"2.bias": np.concatenate([feed["2.bias"]] * 2)} if bias else {}
    np.testing.assert_allclose(sessions[1].run(None, more)[0][:, 4:], outputs[0], rtol=1e-5, atol=1e-6)


def test_classes_stay_fixed_where_something_follows_the_last_layer() -> None:
    head = head_of(nn.Sequential(nn.Linear(6, 4), nn.Softmax(dim=1)), (6,))
    assert class_layer(head.graph, list(head.parameters)) is None
    with pytest.raises(ConversionError, match="last linear layer"):
        free_classes(head.graph, "0.weight", "0.bias")
    graph = build_training_graph(head.graph, FEATURES, list(head.parameters))
    shapes = {info.name: shape_of(info) for info in graph.graph.input}
    assert shapes[TARGETS] == ("batch", 4)
    trainer = OnnxTrainer(graph.SerializeToString(), FEATURES, head.parameters)
    with pytest.raises(LearningError, match="shape"):
        trainer.load({"0.weight": np.zeros((5, 6), np.float32), "0.bias": np.zeros(5, np.float32)})


def test_huber_reaches_both_of_its_parts() -> None:
    """The comparison with torch would be worth little if all errors were on one side of delta."""
    errors = targets_of(HUBER, 200, 4, rng(11))
    assert 0.1 < (np.abs(errors) < 0.7).mean() < 0.9
