"""Training steps by torch's autograd against torch in float64; what is refused changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from converter.head.split import FEATURES, Head
from converter.head.torchscript.archive import torch_head
from edge.contract.errors import BundleError, ConfigError, LearningError
from edge.contract.recipe import LOSSES, OPTIMIZERS, TrainingRecipe
from edge.contract.training import FloatArray
from edge.inference.torchscript_trainer import TorchScriptTrainer
from tests.edge.inference.reference import (
    RATES,
    VARIANTS,
    Reference,
    batches,
    distance,
    head_of,
    network,
    onnx_trainer,
    torch_trainer,
)

STEPS = 50
EVERYTHING = TrainingRecipe(optimizer="adamw", **VARIANTS["all"])
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device that torch can use")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def mlp() -> tuple[Head, bytes]:
    head = head_of(*network("mlp"))
    return head, torch_head(head.graph, FEATURES, head.parameters)


def state(trainer: TorchScriptTrainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in {**trainer.parameters(), **trainer.memory()}.items()}


def batch(seed: int = 5) -> tuple[FloatArray, FloatArray, FloatArray]:
    return next(batches("cross-entropy", (6,), 4, 1, seed))


# Each loss with each optimizer, and each of both with each variant; the trainer in numpy is tried on all combinations.
@pytest.mark.parametrize(
    ("loss", "optimizer", "variant"),
    [
        (loss, optimizer, list(VARIANTS)[(i + j) % len(VARIANTS)])
        for i, loss in enumerate(LOSSES)
        for j, optimizer in enumerate(OPTIMIZERS)
    ],
)
def test_every_recipe_ends_where_torch_in_float64_ends(
    mlp: tuple[Head, bytes], loss: str, optimizer: str, variant: str
) -> None:
    recipe = TrainingRecipe(loss=loss, optimizer=optimizer, **VARIANTS[variant])
    head, archive = mlp
    trainer, reference = TorchScriptTrainer(archive, recipe, head.parameters), Reference(network("mlp")[0], recipe)
    for one in batches(loss, (6,), 4, STEPS):
        wanted = reference.step(*one, RATES[optimizer])
        assert trainer.step(*one, RATES[optimizer]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert distance(trainer.parameters(), reference.parameters()) <= 1e-5
    assert distance(trainer.parameters(), head.parameters) > 1e-2


def spoilt() -> dict[str, tuple[FloatArray, FloatArray, FloatArray, float]]:
    features, targets, weights = batch()
    bad = features.copy()
    bad[2, 3] = np.nan
    infinite = features.copy()
    infinite[0, 0] = np.inf
    return {
        "nan feature": (bad, targets, weights, 0.1),
        "infinite feature": (infinite, targets, weights, 0.1),
        "nan target": (features, np.where(targets == targets.max(), np.float32(np.nan), targets), weights, 0.1),
        "infinite weight": (features, targets, np.full_like(weights, np.inf), 0.1),
        "infinite rate": (features, targets, weights, float("inf")),
        "nan rate": (features, targets, weights, float("nan")),
        "no sample": (features[:0], targets[:0], weights[:0], 0.1),
        "one feature less": (features[:, 1:], targets, weights, 0.1),
        "one class less": (features, targets[:, 1:], weights, 0.1),
        "one class, repeated": (features, targets[:, :1], weights, 0.1),
        "one sample less": (features, targets[1:], weights, 0.1),
        "one weight": (features, targets, weights[:1], 0.1),
        "weights as a column": (features, targets, weights[:, None], 0.1),
    }


@pytest.mark.parametrize(
    "recipe", [TrainingRecipe(), EVERYTHING, TrainingRecipe(optimizer="momentum")], ids=("sgd", "all", "momentum")
)
@pytest.mark.parametrize("fault", spoilt())
def test_a_refused_step_changes_nothing(mlp: tuple[Head, bytes], fault: str, recipe: TrainingRecipe) -> None:
    head, archive = mlp
    trainer = TorchScriptTrainer(archive, recipe, head.parameters)
    trainer.step(*batch(), 0.01)
    before = state(trainer)
    with pytest.raises(LearningError):
        trainer.step(*spoilt()[fault])
    assert state(trainer) == before
    again = TorchScriptTrainer(archive, recipe, head.parameters)
    again.load(trainer.parameters(), trainer.memory())
    for one in (trainer, again):  # nothing that cannot be seen is spoilt, either
        one.step(*batch(seed=6), 0.01)
    assert state(trainer) == state(again)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_loaded_memory_goes_on_where_it_stopped(mlp: tuple[Head, bytes], optimizer: str) -> None:
    head, archive = mlp
    recipe = TrainingRecipe(optimizer=optimizer, proximal=0.1)
    one, other = (TorchScriptTrainer(archive, recipe, head.parameters) for _ in range(2))
    data = list(batches(recipe.loss, (6,), 4, 20))
    for item in data[:10]:
        one.step(*item, 0.01)
    other.load(one.parameters(), one.memory())
    assert state(other) == state(one)
    for item in data[10:]:
        one.step(*item, 0.01)
        other.step(*item, 0.01)
    assert state(other) == state(one)
    assert set(one.memory()) == set(onnx_trainer(head, recipe).memory())


def test_arguments_are_not_written_to(mlp: tuple[Head, bytes]) -> None:
    head, archive = mlp
    first = {name: array.copy() for name, array in head.parameters.items()}
    given = batch()
    trainer = TorchScriptTrainer(archive, EVERYTHING, first)
    trainer.step(*given, 0.1)
    assert all(np.array_equal(array, head.parameters[name]) for name, array in first.items())
    assert all(np.array_equal(one, other) for one, other in zip(given, batch(), strict=True))
    for array in (*trainer.parameters().values(), *trainer.memory().values()):
        array[...] = 7.0
    assert not any((array == 7.0).any() for array in trainer.parameters().values())


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        ("mlp", TrainingRecipe()),
        ("mlp", EVERYTHING),
        ("attention", TrainingRecipe()),
        # Not Adam: the true gradient of a key's bias is zero, and Adam would divide noise by noise.
        ("attention", TrainingRecipe(optimizer="nesterov", **VARIANTS["all"])),
    ],
    ids=["mlp plain", "mlp everything", "attention plain", "attention everything"],
)
def test_a_class_more(kind: str, recipe: TrainingRecipe) -> None:
    head = head_of(*network(kind))
    last = list(head.parameters)[-1].rpartition(".")[0]
    larger = {
        name: np.concatenate([array, array[:1]]) if name.startswith(last + ".") else array
        for name, array in head.parameters.items()
    }
    one, other = torch_trainer(head, recipe), onnx_trainer(head, recipe)
    shape = head.features.sample_shape
    for trainer in (one, other):
        trainer.step(*next(batches(recipe.loss, shape, 4, 1)), 0.01)
        trainer.load(larger)
    for item in batches(recipe.loss, shape, 5, 10):
        losses = [trainer.step(*item, 0.01) for trainer in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert distance(one.parameters(), other.parameters()) <= 1e-5


def test_other_parameters_are_refused_and_nothing_changes(mlp: tuple[Head, bytes]) -> None:
    head, archive = mlp
    trainer = TorchScriptTrainer(archive, EVERYTHING, head.parameters)
    trainer.step(*batch(), 0.01)
    before, good, memory = state(trainer), dict(head.parameters), trainer.memory()
    names = list(good)
    first, last = names[0], names[-1]
    wrong: list[tuple[dict[str, FloatArray], dict[str, FloatArray] | None]] = [
        ({}, None),
        ({first: good[first]}, None),
        ({**good, "more": good[last]}, None),
        ({**good, last: good[last][1:]}, None),
        ({**good, first: good[first][1:]}, None),
        ({**good, last: good[last] * np.float32(np.nan)}, None),
        (good, {}),
        (good, {**memory, "more": good[last]}),
        (good, {**memory, "slot.steps": np.zeros(1, np.float32)}),
        (good, {**memory, f"slot.mean.{last}": good[last] * np.float32(np.nan)}),
    ]
    for parameters, remembered in wrong:
        with pytest.raises(LearningError):
            trainer.load(parameters, remembered)
        assert state(trainer) == before


def test_what_is_no_archive_of_this_head_is_refused(mlp: tuple[Head, bytes]) -> None:
    head, archive = mlp
    for data in (b"", b"PK", archive[:-100], archive[: len(archive) // 2]):
        with pytest.raises(BundleError, match="does not load in torch"):
            TorchScriptTrainer(data, TrainingRecipe(), head.parameters)
    with pytest.raises(BundleError, match="has the parameters"):
        TorchScriptTrainer(archive, TrainingRecipe(), {"other": np.zeros(3, np.float32)})
    with pytest.raises(ConfigError, match="expected cpu or cuda"):
        TorchScriptTrainer(archive, TrainingRecipe(), head.parameters, "tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_gpu_is_refused(mlp: tuple[Head, bytes]) -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        TorchScriptTrainer(mlp[1], TrainingRecipe(), mlp[0].parameters, "cuda")


@needs_cuda
@pytest.mark.parametrize("kind", ["linear", "mlp", "conv", "attention"])
@pytest.mark.parametrize("recipe", [TrainingRecipe(), EVERYTHING], ids=["plain", "everything"])
def test_cuda_equals_the_cpu(kind: str, recipe: TrainingRecipe) -> None:
    head = head_of(*network(kind))
    one, other = torch_trainer(head, recipe), torch_trainer(head, recipe, "cuda")
    for item in batches(recipe.loss, head.features.sample_shape, 4, 20):
        losses = [trainer.step(*item, 0.01) for trainer in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert distance(other.parameters(), one.parameters()) <= 1e-4
    before = state(other)
    other.load(other.parameters(), other.memory())
    assert state(other) == before
    with pytest.raises(LearningError):
        other.step(item[0] * np.float32(np.nan), *item[1:], 0.01)
    assert state(other) == before
