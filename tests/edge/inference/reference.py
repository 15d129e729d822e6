"""What the executors of training steps are compared with: torch in float64, and heads of several kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from converter.graph.canonical import canonical
from converter.head.gradient.training_graph import build_training_graph
from converter.head.split import FEATURES, Head, split
from converter.head.torchscript.archive import torch_head
from converter.program.attention import traceable
from edge.contract.recipe import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, HUBER, TrainingRecipe
from edge.contract.training import FloatArray
from edge.inference.onnx_trainer import OnnxTrainer
from edge.inference.torchscript_trainer import TorchScriptTrainer
from tests.converter.models import export

RATES = {"sgd": 0.05, "momentum": 0.02, "nesterov": 0.02, "adam": 0.005, "adamw": 0.005}
VARIANTS: dict[str, dict[str, float]] = {
    "plain": {},
    "weight decay": {"weight_decay": 0.05},
    "proximal": {"proximal": 0.3},
    "clipped": {"clip_norm": 0.2},
    "all": {
        "weight_decay": 0.05,
        "proximal": 0.3,
        "clip_norm": 0.2,
        "momentum": 0.8,
        "beta1": 0.8,
        "beta2": 0.95,
        "epsilon": 1e-4,
        "huber_delta": 0.4,
    },
}

Batch = tuple[FloatArray, FloatArray, FloatArray]


def batches(loss: str, shape: tuple[int, ...], n_outputs: int, steps: int, seed: int = 0) -> Iterator[Batch]:
    """Random features, targets as the loss wants them, and weights, some of which are 0; of several batch sizes."""
    rng = np.random.default_rng(seed)
    for i in range(steps):
        n = (9, 1, 4)[i % 3]
        features = rng.normal(size=(n, *shape))
        if loss == CROSS_ENTROPY:
            targets = rng.dirichlet(np.full(n_outputs, 0.3), n)
        elif loss == BINARY_CROSS_ENTROPY:
            targets = rng.random((n, n_outputs))
        else:
            targets = rng.normal(size=(n, n_outputs)) * 2
        weights = rng.choice([0.0, 0.5, 1.0, 2.0], n)
        yield features.astype(np.float32), targets.astype(np.float32), weights.astype(np.float32)


class Reference:
    """A step of a recipe by torch in float64; FedProx's term is a part of the loss, as in its paper."""

    def __init__(self, model: nn.Module, recipe: TrainingRecipe) -> None:
        self.model, self.recipe = model.double(), recipe
        self.anchors = [parameter.detach().clone() for parameter in self.model.parameters()]
        parameters, decay = list(self.model.parameters()), recipe.weight_decay
        if recipe.optimizer in ("adam", "adamw"):
            kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
            betas = (recipe.beta1, recipe.beta2)
            self.optimizer: torch.optim.Optimizer = kind(
                parameters, betas=betas, eps=recipe.epsilon, weight_decay=decay
            )
        else:
            momentum = 0.0 if recipe.optimizer == "sgd" else recipe.momentum
            nesterov = recipe.optimizer == "nesterov"
            self.optimizer = torch.optim.SGD(parameters, momentum=momentum, nesterov=nesterov, weight_decay=decay)

    def step(self, features: FloatArray, targets: FloatArray, weights: FloatArray, rate: float) -> float:
        x, t, w = (torch.from_numpy(array).double() for array in (features, targets, weights))
        z, recipe = self.model(x), self.recipe
        if recipe.loss == CROSS_ENTROPY:
            each = functional.cross_entropy(z, t, reduction="none")
        elif recipe.loss == BINARY_CROSS_ENTROPY:
            each = functional.binary_cross_entropy_with_logits(z, t, reduction="none").mean(1)
        elif recipe.loss == HUBER:
            each = functional.huber_loss(z, t, reduction="none", delta=recipe.huber_delta).mean(1)
        else:
            each = functional.mse_loss(z, t, reduction="none").mean(1)
        loss = (each * w).sum() / len(w)
        pull = sum(((p - a) ** 2).sum() for p, a in zip(self.model.parameters(), self.anchors, strict=True))
        self.optimizer.zero_grad()
        (loss + recipe.proximal / 2 * pull).backward()
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        return float(loss.detach())

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: parameter.detach().numpy() for name, parameter in self.model.named_parameters()}


def distance(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """Largest difference of two sets of arrays, each in proportion to its largest entry."""
    assert {name: array.shape for name, array in found.items()} == {name: a.shape for name, a in wanted.items()}
    return max(float(np.abs(found[name] - a).max() / max(np.abs(a).max(), 1e-3)) for name, a in wanted.items())


class Attention(nn.Module):
    """A transformer block and a linear layer on six tokens of eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, activation="gelu")
        self.out = nn.Linear(48, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.block(x).flatten(1))


def network(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of four outputs whose parameters are all trainable, and the shape of what it takes."""
    torch.manual_seed(3)
    if kind == "linear":
        return nn.Sequential(nn.Linear(6, 4)).eval(), (6,)
    if kind == "linear without bias":
        return nn.Sequential(nn.Linear(6, 4, bias=False)).eval(), (6,)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4)).eval(), (6,)
    if kind == "conv":
        layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Hardswish(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(4, 4, 3, stride=2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 4)]
        return nn.Sequential(*layers).eval(), (2, 7, 7)
    assert kind == "attention"
    return Attention().eval(), (6, 8)


NETWORKS = ("linear", "linear without bias", "mlp", "conv", "attention")


def head_of(model: nn.Module, shape: tuple[int, ...]) -> Head:
    with traceable():
        head = split(canonical(export(model, shape)), [name for name, _ in model.named_parameters()]).head
    assert head is not None
    return head


def onnx_trainer(head: Head, recipe: TrainingRecipe) -> OnnxTrainer:
    graph = build_training_graph(head.graph, FEATURES, list(head.parameters), recipe)
    return OnnxTrainer(graph.SerializeToString(), FEATURES, head.parameters)


def torch_trainer(head: Head, recipe: TrainingRecipe, device: str = "cpu") -> TorchScriptTrainer:
    return TorchScriptTrainer(torch_head(head.graph, FEATURES, head.parameters), recipe, head.parameters, device)
