"""A linear head's training step in numpy against torch in float64; what is refused changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.contract.recipe import LOSSES, OPTIMIZERS, TrainingRecipe
from edge.contract.training import FloatArray
from edge.inference.numpy_trainer import NumpyTrainer
from tests.edge.inference.reference import RATES, VARIANTS, Reference, batches, distance

N_INPUTS, N_OUTPUTS, STEPS = 6, 4, 50
HEAD = LinearLayer(weight="weight", bias="bias", input="features")
EVERYTHING = TrainingRecipe(optimizer="adamw", **VARIANTS["all"])


def start(n_outputs: int = N_OUTPUTS, n_inputs: int = N_INPUTS, seed: int = 1) -> dict[str, FloatArray]:
    rng = np.random.default_rng(seed)
    found = {"weight": rng.normal(size=(n_outputs, n_inputs)), "bias": rng.normal(size=n_outputs)}
    return {name: array.astype(np.float32) for name, array in found.items()}


def batch(n_outputs: int = N_OUTPUTS, seed: int = 5) -> tuple[FloatArray, FloatArray, FloatArray]:
    return next(batches("cross-entropy", (N_INPUTS,), n_outputs, 1, seed))


def layer(parameters: dict[str, FloatArray]) -> nn.Linear:
    weight = parameters["weight"]
    made = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in parameters)
    made.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in parameters.items()})
    return made


def state(trainer: NumpyTrainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in {**trainer.parameters(), **trainer.memory()}.items()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_recipe_ends_where_torch_in_float64_ends(loss: str, optimizer: str, variant: str) -> None:
    recipe = TrainingRecipe(loss=loss, optimizer=optimizer, **VARIANTS[variant])
    trainer, reference = NumpyTrainer(recipe, HEAD, start()), Reference(layer(start()), recipe)
    for one in batches(loss, (N_INPUTS,), N_OUTPUTS, STEPS):
        wanted = reference.step(*one, RATES[optimizer])
        assert trainer.step(*one, RATES[optimizer]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert distance(trainer.parameters(), reference.parameters()) <= 1e-5
    assert distance(trainer.parameters(), start()) > 1e-2


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_layer_without_a_bias(optimizer: str) -> None:
    recipe = TrainingRecipe(optimizer=optimizer)
    first = {"weight": start()["weight"]}
    trainer = NumpyTrainer(recipe, LinearLayer(weight="weight", bias=None, input="features"), first)
    reference = Reference(layer(first), recipe)
    for one in batches(recipe.loss, (N_INPUTS,), N_OUTPUTS, STEPS):
        assert trainer.step(*one, 0.01) == pytest.approx(reference.step(*one, 0.01), rel=1e-5)
    assert distance(trainer.parameters(), reference.parameters()) <= 1e-5


def test_a_weight_of_more_than_one_block_is_changed_whole() -> None:
    recipe = TrainingRecipe()
    first = start(n_outputs=70, n_inputs=1500)
    trainer, reference = NumpyTrainer(recipe, HEAD, first), Reference(layer(first), recipe)
    for one in batches(recipe.loss, (1500,), 70, 6):
        assert trainer.step(*one, 0.01) == pytest.approx(reference.step(*one, 0.01), rel=1e-5)
    assert distance(trainer.parameters(), reference.parameters()) <= 1e-5


def test_large_outputs_do_not_overflow() -> None:
    big = {name: array * np.float32(1e4) for name, array in start().items()}
    for loss in ("cross-entropy", "binary-cross-entropy"):
        recipe = TrainingRecipe(loss=loss)
        trainer, reference = NumpyTrainer(recipe, HEAD, big), Reference(layer(big), recipe)
        assert trainer.step(*batch(), 0.1) == pytest.approx(reference.step(*batch(), 0.1), rel=1e-5)
        assert distance(trainer.parameters(), reference.parameters()) <= 1e-5


def test_values_near_the_end_of_float32_are_looked_at_one_by_one() -> None:
    """Beyond what the bound on the change allows, a step is still taken when everything is finite."""
    features = np.full((1, N_INPUTS), 1e25, np.float32)  # its square is not finite
    zero = {name: np.zeros_like(array) for name, array in start().items()}
    trainer = NumpyTrainer(TrainingRecipe(), HEAD, zero)
    targets = np.eye(N_OUTPUTS, dtype=np.float32)[:1]
    trainer.step(features, targets, np.ones(1, np.float32), 1.0)
    assert trainer.parameters()["weight"][0, 0] == pytest.approx(0.75e25)
    before = state(trainer)
    with pytest.raises(LearningError, match="not finite"):
        trainer.step(features, targets[:, ::-1], np.ones(1, np.float32), 1e20)
    assert state(trainer) == before


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
        "too far": (features * np.float32(1e10), targets, weights, 1e39),
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
def test_a_refused_step_changes_nothing(fault: str, recipe: TrainingRecipe) -> None:
    trainer = NumpyTrainer(recipe, HEAD, start())
    trainer.step(*batch(), 0.01)
    before = state(trainer)
    with pytest.raises(LearningError):
        trainer.step(*spoilt()[fault])
    assert state(trainer) == before
    again = NumpyTrainer(recipe, HEAD, start())
    again.load(trainer.parameters(), trainer.memory())
    for one in (trainer, again):  # nothing that cannot be seen is spoilt, either
        one.step(*batch(seed=6), 0.01)
    assert state(trainer) == state(again)


def test_arguments_are_not_written_to() -> None:
    for recipe in (TrainingRecipe(), EVERYTHING):
        first, given = start(), batch()
        trainer = NumpyTrainer(recipe, HEAD, first)
        trainer.step(*given, 0.1)
        assert all(np.array_equal(array, start()[name]) for name, array in first.items())
        assert all(np.array_equal(one, other) for one, other in zip(given, batch(), strict=True))
        copies = trainer.parameters()
        copies["weight"][...] = 0
        assert trainer.parameters()["weight"].any()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_loaded_memory_goes_on_where_it_stopped(optimizer: str) -> None:
    recipe = TrainingRecipe(optimizer=optimizer, proximal=0.1)
    one, other = NumpyTrainer(recipe, HEAD, start()), NumpyTrainer(recipe, HEAD, start(seed=2))
    data = list(batches(recipe.loss, (N_INPUTS,), N_OUTPUTS, 20))
    for item in data[:10]:
        one.step(*item, 0.01)
    other.load(one.parameters(), one.memory())
    assert state(other) == state(one)
    for item in data[10:]:
        one.step(*item, 0.01)
        other.step(*item, 0.01)
    assert state(other) == state(one)


def test_names_of_what_is_remembered() -> None:
    def names(**options: float | str) -> set[str]:
        return set(NumpyTrainer(TrainingRecipe(**options), HEAD, start()).memory())  # type: ignore[arg-type]

    assert names() == set()
    assert names(proximal=0.1) == {"anchor.weight", "anchor.bias"}
    assert names(optimizer="nesterov") == {"slot.momentum.weight", "slot.momentum.bias"}
    assert names(optimizer="adam") == {
        "slot.mean.weight", "slot.mean.bias", "slot.square.weight", "slot.square.bias", "slot.steps",
    }  # fmt: skip


def test_without_memory_slots_become_zero_and_the_parameters_the_anchor() -> None:
    trainer = NumpyTrainer(EVERYTHING, HEAD, start())
    trainer.step(*batch(), 0.01)
    trainer.load(start(seed=3))
    fresh = NumpyTrainer(EVERYTHING, HEAD, start(seed=3))
    assert state(trainer) == state(fresh)
    assert np.array_equal(trainer.memory()["anchor.weight"], start(seed=3)["weight"])


@pytest.mark.parametrize("recipe", [TrainingRecipe(), EVERYTHING], ids=["plain", "everything"])
def test_a_class_more(recipe: TrainingRecipe) -> None:
    trainer = NumpyTrainer(recipe, HEAD, start())
    trainer.step(*batch(), 0.01)
    larger = start(n_outputs=N_OUTPUTS + 1)
    trainer.load(larger)
    reference = Reference(layer(larger), recipe)
    for one in batches(recipe.loss, (N_INPUTS,), N_OUTPUTS + 1, 10):
        trainer.step(*one, 0.01)
        reference.step(*one, 0.01)
    assert distance(trainer.parameters(), reference.parameters()) <= 1e-5


def test_other_parameters_are_refused_and_nothing_changes() -> None:
    trainer = NumpyTrainer(EVERYTHING, HEAD, start())
    trainer.step(*batch(), 0.01)
    before, good, memory = state(trainer), start(), trainer.memory()
    wrong: list[tuple[dict[str, FloatArray], dict[str, FloatArray] | None]] = [
        ({}, None),
        ({"weight": good["weight"]}, None),
        ({**good, "more": good["bias"]}, None),
        ({**good, "bias": good["bias"][1:]}, None),
        ({**good, "weight": good["weight"][:, 1:]}, None),
        ({**good, "weight": good["weight"][0]}, None),
        ({**good, "bias": good["bias"] * np.float32(np.nan)}, None),
        (good, {}),
        (good, {**memory, "more": good["bias"]}),
        (good, {**memory, "slot.steps": np.zeros(1, np.float32)}),
        (good, {**memory, "slot.mean.bias": good["bias"] * np.float32(np.inf)}),
        (start(n_outputs=5), memory),
    ]
    for parameters, remembered in wrong:
        with pytest.raises(LearningError):
            trainer.load(parameters, remembered)
        assert state(trainer) == before
