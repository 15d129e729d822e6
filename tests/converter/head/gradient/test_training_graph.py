"""The training step against torch autograd and ``torch.optim.SGD``, run as a device runs it: `OnnxTrainer`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from converter.graph.canonical import canonical
from converter.head.gradient.training_graph import build_training_graph
from converter.head.split import FEATURES, Head, split
from edge.contract.errors import ConversionError, LearningError
from edge.inference.onnx_trainer import LEARNING_RATE, OnnxTrainer
from tests.converter.models import export

STEPS = 100
RATE = 0.05
ONE_HOT = np.eye(7, dtype=np.float32)


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 7))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 7))


def trainer_of(model: nn.Module) -> OnnxTrainer:
    """Whole model trainable, so the features are the input."""
    head = head_of(model, [name for name, _ in model.named_parameters()])
    graph = build_training_graph(head.graph, FEATURES, list(head.parameters))
    return OnnxTrainer(graph.SerializeToString(), FEATURES, head.parameters)


def head_of(model: nn.Module, trainable: list[str]) -> Head:
    head = split(canonical(export(model, (20,))), trainable).head
    assert head is not None
    return head


@pytest.mark.parametrize("weighted", [False, True], ids=["equal-weights", "sample-weights"])
@pytest.mark.parametrize("batch", [1, 32, "changing"])
@pytest.mark.parametrize("make", [linear, mlp])
def test_a_hundred_steps_equal_torch_sgd(make: Callable[[], nn.Module], batch: int | str, weighted: bool) -> None:
    torch.manual_seed(5)
    model = make()
    trainer = trainer_of(model)
    reference = make().double()
    reference.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(reference.parameters(), lr=RATE)
    rng = np.random.default_rng(11)
    for step in range(STEPS):
        n = (1, 32, 5, 17)[step % 4] if batch == "changing" else int(batch)
        x = rng.normal(size=(n, 20)).astype(np.float32)
        y = rng.integers(0, 7, n)
        weights = (rng.random(n) * 2 if weighted else np.ones(n)).astype(np.float32)
        losses = nn.functional.cross_entropy(
            reference(torch.from_numpy(x).double()), torch.from_numpy(y), reduction="none"
        )
        loss = (losses * torch.from_numpy(weights).double()).sum() / n
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert trainer.step(x, ONE_HOT[y], weights, RATE) == pytest.approx(float(loss.detach()), rel=2e-5, abs=1e-6)
    found = trainer.parameters()
    for name, expected in reference.named_parameters():
        wanted = expected.detach().numpy()
        error = np.linalg.norm(found[name] - wanted) / np.linalg.norm(wanted)
        assert error <= 1e-5, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("make", [linear, mlp])
def test_a_step_with_values_that_are_not_finite_is_refused_and_the_parameters_stay(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(5)
    trainer = trainer_of(make())
    good = np.ones((3, 20), np.float32)
    targets, weights = ONE_HOT[:3], np.ones(3, np.float32)
    trainer.step(good, targets, weights, RATE)
    before = trainer.parameters()
    for x, rate in ((np.full((3, 20), np.nan, np.float32), RATE), (good, float("inf")), (good, float("nan"))):
        with pytest.raises(LearningError, match="not finite"):
            trainer.step(x, targets, weights, rate)
        for name, array in trainer.parameters().items():
            np.testing.assert_array_equal(array, before[name])
    trainer.step(good, targets, weights, RATE)
    assert any((array != before[name]).any() for name, array in trainer.parameters().items())


def test_a_weight_of_zero_takes_a_sample_out_of_the_gradient() -> None:
    torch.manual_seed(5)
    model = linear()
    x = np.random.default_rng(0).normal(size=(2, 20)).astype(np.float32)
    both, alone = trainer_of(model), trainer_of(model)
    both.step(x, ONE_HOT[1:3], np.array([1, 0], np.float32), RATE)
    alone.step(x[:1], ONE_HOT[1:2], np.array([0.5], np.float32), RATE)  # the loss is divided by the batch: 2 and 1
    for name, array in both.parameters().items():
        np.testing.assert_allclose(array, alone.parameters()[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("make", "most"), [(linear, 17), (mlp, 26)])
def test_the_graph_is_small(make: Callable[[], nn.Module], most: int) -> None:
    """design/learning.md: differentiated together, softmax and cross-entropy keep a linear head to some 15 nodes.

    A layer's weight takes one Gemm, its bias a sum and a difference; the learning rate is multiplied in once for all.
    """
    model = make()
    head = head_of(model, [name for name, _ in model.named_parameters()])
    graph = build_training_graph(head.graph, FEATURES, list(head.parameters)).graph
    assert len(graph.node) <= most
    assert sum(LEARNING_RATE in node.input for node in graph.node) == 1
    assert not [node.name for node in graph.node if node.op_type in ("OneHot", "Transpose", "MatMul")]


def test_refuses_to_train_a_head_whose_output_does_not_depend_on_a_parameter() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(20, 7), nn.Linear(20, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    head = head_of(Idle(), ["used.weight", "used.bias"])
    with pytest.raises(ConversionError, match=r"does not depend on features\.not_there"):
        build_training_graph(head.graph, FEATURES, [*head.parameters, "features.not_there"])
