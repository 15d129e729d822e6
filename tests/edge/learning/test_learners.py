"""One battery for every learner."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray
from edge.learning.learner import Learner
from edge.learning.task import Targets
from edge.learning.tree import Arrays, build, flatten
from tests.edge.learning.conftest import Rig, Samples, clouds, quantities, same

# What is lost by those that do not learn as well: plain SGD unlearns slowly, and ridge shrinks slopes by a tenth. The
# quantities have a variance of 7 about their mean.
GOOD = {"sgd-plain": 0.3, "ridge-quantities": 1.2}
CHANGED = {"sgd-plain": 0.7, "ridge-quantities": 2.5}
Snapshot = dict[str, tuple[str, tuple[int, ...], bytes]]


def saved(learner: Learner) -> Arrays:
    """What a learner knows, as it is written down."""
    return flatten(learner.value)


def restore(learner: Learner, arrays: Mapping[str, npt.NDArray[Any]], n_outputs: int) -> None:
    """Let a learner go on from what was written down."""
    learner.load(build(learner.template(n_outputs), arrays))


def snapshot(learner: Learner) -> Snapshot:
    """Everything that a learner is, byte for byte."""
    everything = saved(learner) | {f"parameters.{n}": a for n, a in learner.parameters().items()}
    everything["n_samples"] = np.array(learner.n_samples)
    everything["n_contributed"] = np.array(learner.n_contributed)
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in everything.items()}


def plain(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def size_bytes(arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    """Of what was written down, but for samples that wait: there are never more than half as many as features."""
    assert len(arrays.get("block.weights", ())) < 32
    return sum(array.nbytes for name, array in arrays.items() if not name.startswith("block."))


def part(samples: Samples, start: int, stop: int | None = None) -> Samples:
    return samples[0][start:stop], samples[1][start:stop]


def teach_one_by_one(learner: Learner, samples: Samples) -> None:
    for i in range(len(samples[0])):
        learner.learn_many(samples[0][i : i + 1], samples[1][i : i + 1])


def further(rig: Rig, turn: bool = False) -> Samples:
    """More samples of the same world; of another one, where the classes have changed their names."""
    if rig.task.is_regression:
        return quantities(200, 11, turn=-1.0 if turn else 1.0)
    shape, k = rig.samples[0].shape[1], rig.task.n_outputs
    features, labels = clouds(200, shape, k, 5)
    return features, (labels + turn) % k


def test_starts_with_the_shipped_head(rig: Rig) -> None:
    one, other = rig.new(), rig.new()
    assert snapshot(one) == snapshot(other)
    assert one.n_samples == one.n_contributed == 0
    assert rig.loss(one, rig.samples) > 0.2


def test_learns(rig: Rig) -> None:
    learner = rig.new()
    before = rig.loss(learner, rig.samples)
    for _ in range(4):
        learner.learn_many(*rig.samples)
    assert rig.loss(learner, rig.samples) < before - 0.3
    assert rig.loss(learner, rig.samples) < GOOD.get(rig.name, 0.15)
    assert learner.n_samples == 4 * 96
    assert learner.n_contributed == (4 * 96 if learner.kind else 0)


def test_the_same_calls_give_the_same_parameters(rig: Rig) -> None:
    first, second = rig.new(), rig.new()
    for learner in (first, second):
        learner.learn_many(*part(rig.samples, 0, 50), np.linspace(0, 1, 50))
        learner.distrust_the_past(*part(rig.samples, 40, 50))
        learner.learn_many(*part(rig.samples, 50))
        learner.parameters()
    assert plain(first.parameters()) == plain(second.parameters())
    assert snapshot(first) == snapshot(second)


def test_the_seed_decides(rig: Rig) -> None:
    first, other = rig.new(seed=1), rig.new(seed=2)
    for learner in (first, other):
        learner.learn_many(*rig.samples)
    without_chance = rig.is_closed or rig.name == "sgd-plain"
    assert (snapshot(first) == snapshot(other)) is without_chance


def test_one_by_one_is_the_batch(rig: Rig) -> None:
    one, batch = rig.new(), rig.new()
    teach_one_by_one(one, rig.samples)
    batch.learn_many(*rig.samples)
    if rig.is_closed or rig.name == "layered":
        same(one.parameters(), batch.parameters(), 1e-5)
    else:
        assert snapshot(one) == snapshot(batch)
    assert one.n_samples == batch.n_samples == 96


def test_parameters_are_a_head(rig: Rig) -> None:
    learner = rig.new()
    shapes = {name: array.shape for name, array in learner.parameters().items()}
    learner.learn_many(*rig.samples)
    found = learner.parameters()
    assert {name: array.shape for name, array in found.items()} == shapes
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    assert all(np.isfinite(array).all() for array in found.values())


def test_memory_does_not_grow_with_samples(rig: Rig) -> None:
    learner = rig.new()
    for _ in range(2):  # on lifted features 192 samples wait beside the sums
        learner.learn_many(*rig.samples)
    size = size_bytes(saved(learner))
    for _ in range(2):
        learner.learn_many(*rig.samples)
    assert size_bytes(saved(learner)) == size


def test_memory_does_not_grow_with_contributions(rig: Rig) -> None:
    learner = rig.new()
    if not learner.kind:
        assert not learner.contribution().tensors
        return
    sizes = []
    for i in range(8):
        learner.learn_many(*part(rig.samples, i, i + 1))
        learner.contribution()
        sizes.append(size_bytes(saved(learner)))
    assert sizes[3] == sizes[-1]


# State


def test_a_restored_learner_is_the_same_and_goes_on_the_same(rig: Rig) -> None:
    first = rig.new()
    first.learn_many(*part(rig.samples, 0, 37))
    first.contribution()
    first.learn_many(*part(rig.samples, 37, 50))
    merged = first.contribution().tensors if first.kind == "statistics" else {}
    first.rebase({n: a * 0.5 for n, a in first.parameters().items()}, merged, 37)
    second = rig.new()
    restore(second, saved(first), rig.task.n_outputs)
    assert snapshot(second) == snapshot(first)
    for learner in (first, second):
        learner.learn_many(*part(rig.samples, 50))
        learner.rebase(learner.parameters(), learner.contribution().tensors if learner.kind == "statistics" else {}, 50)
        learner.distrust_the_past(*part(rig.samples, 90))
        learner.learn_many(*part(rig.samples, 0, 5))
    assert snapshot(second) == snapshot(first)


def test_restoring_at_every_sample_changes_nothing(rig: Rig) -> None:
    whole, cut = rig.new(), rig.new()
    for i in range(40 if rig.is_closed else 12):  # those that solve do so for a block of 32
        again = rig.new()
        restore(again, saved(cut), rig.task.n_outputs)
        cut = again
        for learner in (whole, cut):
            learner.learn_many(*part(rig.samples, i, i + 1))
        assert snapshot(cut) == snapshot(whole)


def frozen(value: object) -> None:
    """Let whoever writes into an array of a value fail."""
    for array in flatten(value).values():
        array.flags.writeable = False


def live_through_everything(learner: Learner, rig: Rig) -> None:
    """Whatever can happen to a learner, but for classes that are added."""
    learner.learn_many(*part(rig.samples, 40, 47))
    learner.learn_many(*part(rig.samples, 47, 50), np.array([0.5, 0.0, 1.0]))
    merged = learner.contribution().tensors if learner.kind == "statistics" else {}
    learner.learn_many(*part(rig.samples, 50, 90))
    learner.rebase({name: array * 0.9 for name, array in learner.parameters().items()}, merged, 50)
    learner.learn_many(*part(rig.samples, 90, 93))
    learner.rebase(learner.parameters(), {}, 0)
    learner.learn_many(*part(rig.samples, 93))
    learner.distrust_the_past(*part(rig.samples, 90))
    for i in range(20):
        learner.learn_many(*part(rig.samples, i, i + 1))


def test_an_older_value_stays_as_it_was_and_what_follows_from_it_is_the_same_again(rig: Rig) -> None:
    learner = rig.new()
    for i in range(40):
        learner.learn_many(*part(rig.samples, i, i + 1))
    older, before = learner.value, snapshot(learner)
    frozen(older)
    live_through_everything(learner, rig)
    newer, after = learner.value, snapshot(learner)
    frozen(newer)
    learner.load(older)
    assert learner.value is older
    assert snapshot(learner) == before != after
    live_through_everything(learner, rig)
    assert snapshot(learner) == after
    fresh = rig.new()
    restore(fresh, {name: array.copy() for name, array in flatten(older).items()}, rig.task.n_outputs)
    live_through_everything(fresh, rig)
    assert snapshot(fresh) == after
    fresh.load(newer)
    assert snapshot(fresh) == after


def test_a_value_of_another_learner_is_refused_and_nothing_changes(rig: Rig) -> None:
    learner = rig.new()
    learner.learn_many(*part(rig.samples, 0, 5))
    before = snapshot(learner)
    with pytest.raises(LearningError):
        learner.load(None)
    assert snapshot(learner) == before


def test_refuses_a_state_that_is_not_its_own_and_nothing_changes(rig: Rig) -> None:
    giver, learner = rig.new(), rig.new()
    giver.learn_many(*rig.samples)
    giver.contribution()
    learner.learn_many(*part(rig.samples, 0, 30))
    before = snapshot(learner)
    good = saved(giver)
    for name, damage in itertools.product(good, ("missing", "another shape", "scalar")):
        bad = dict(good)
        if damage == "missing":
            del bad[name]
        else:
            is_number = good[name].ndim == 0  # then of another type
            shape = (2, 2, 2, 2) if damage == "another shape" else ()
            bad[name] = np.zeros(shape, np.float16 if is_number else good[name].dtype)
        with pytest.raises(LearningError):
            restore(learner, bad, rig.task.n_outputs)
        assert snapshot(learner) == before, (name, damage)
    restore(learner, good, rig.task.n_outputs)
    assert snapshot(learner) == snapshot(giver)


def test_refuses_a_state_with_negative_numbers_and_nothing_changes(rig: Rig) -> None:
    learner = rig.new()
    learner.learn_many(*rig.samples)
    before = snapshot(learner)
    state = saved(learner)
    names = [name for name in state if name.endswith(("n_samples", "version", "seen"))]
    assert len(names) > 1
    for name in names:
        with pytest.raises(LearningError):
            restore(learner, state | {name: np.asarray(-state[name] - 1)}, rig.task.n_outputs)
        assert snapshot(learner) == before


# What it takes


def with_feature(samples: Samples, value: float, dtype: type = np.float32) -> npt.NDArray[Any]:
    changed: npt.NDArray[Any] = samples[0][:9].astype(dtype)
    changed[5, 3] = value
    return changed


BAD_FEATURES: dict[str, Callable[[Samples], Any]] = {
    "not a number": lambda s: with_feature(s, np.nan),
    "infinite": lambda s: with_feature(s, np.inf),
    "finite in float64 only": lambda s: with_feature(s, 1e300, np.float64),
    "so large that its square is not finite": lambda s: with_feature(s, 3e38),
    "negative and as large": lambda s: with_feature(s, -3e38),
    "one feature too few": lambda s: s[0][:9, 1:],
    "one axis too many": lambda s: s[0][:9, :, None],
    "one axis too few": lambda s: s[0][0],
    "no axis": lambda s: s[0][0, 0],
    "texts": lambda s: s[0][:9].astype(str),
    "objects": lambda s: s[0][:9].astype(object),
    "complex": lambda s: s[0][:9].astype(complex),
}
BAD_TARGETS: dict[str, Callable[[Targets], Any]] = {
    "one too few": lambda y: y[1:9],
    "one too many": lambda y: y[:10],
    "an axis too many": lambda y: y[:9, ..., None],
    "no axis": lambda y: np.array(1),
    "texts": lambda y: y[:9].astype(str),
    "not a number": lambda y: y[:9] * np.nan,
    "infinite": lambda y: np.where(y[:9] > y[:9].min(), np.inf, 0.0),
}
BAD_CLASSES: dict[str, Callable[[Targets], Any]] = {
    "not integers": lambda y: y[:9] + 0.5,
    "negative": lambda y: np.where(np.arange(9) == 5, -1, y[:9]),
    "beyond the classes": lambda y: np.where(np.arange(9) == 5, 10, y[:9]),
    "2 to the 63": lambda y: np.full(9, 2**63, np.uint64),
    "true or false": lambda y: y[:9] > 1,
}
BAD_WEIGHTS = {
    "above one": np.linspace(0.5, 1.001, 9),
    "below zero": np.linspace(-0.001, 1, 9),
    "not a number": np.where(np.arange(9) == 5, np.nan, 1.0),
    "infinite": np.full(9, np.inf),
    "one too few": np.ones(8),
    "one too many": np.ones(10),
    "an axis too many": np.ones((9, 1)),
    "a scalar": np.array(0.5),
    "texts": np.array(["1"] * 9),
    "complex": np.ones(9, complex),
}


def test_refuses_what_cannot_be_learned_and_nothing_changes(rig: Rig) -> None:
    learner, twin = rig.new(), rig.new()
    for each in (learner, twin):
        each.learn_many(*part(rig.samples, 0, 20))
    features, targets = part(rig.samples, 0, 9)
    bad: dict[str, tuple[Any, ...]] = {f"features: {n}": (f(rig.samples), targets) for n, f in BAD_FEATURES.items()}
    bad |= {f"targets: {name}": (features, f(rig.samples[1])) for name, f in BAD_TARGETS.items()}
    if rig.task.is_classifier:
        bad |= {f"classes: {name}": (features, f(rig.samples[1])) for name, f in BAD_CLASSES.items()}
    bad |= {f"weights: {name}": (features, targets, weights) for name, weights in BAD_WEIGHTS.items()}
    before = snapshot(learner)
    for what, batch in bad.items():
        try:
            learner.learn_many(*batch)
        except LearningError:
            pass
        else:
            pytest.fail(f"took {what}")
        assert snapshot(learner) == before, what
    assert snapshot(twin) == before
    for each in (learner, twin):
        each.learn_many(*part(rig.samples, 20, 40))
    assert snapshot(learner) == snapshot(twin)


def test_an_empty_batch_changes_nothing(rig: Rig) -> None:
    learner = rig.new()
    learner.learn_many(*rig.samples)
    before = snapshot(learner)
    learner.learn_many(*part(rig.samples, 0, 0))
    learner.learn_many(*part(rig.samples, 0, 0), np.zeros(0))
    assert snapshot(learner) == before
    fresh = rig.new()
    fresh.learn_many(*part(rig.samples, 0, 0))
    assert snapshot(fresh) == snapshot(rig.new())


def test_inputs_are_copied_and_left_alone(rig: Rig) -> None:
    features, targets = (array.copy() for array in rig.samples)
    weights = np.full(96, 0.5, np.float32)
    learner, twin = rig.new(), rig.new()
    learner.learn_many(features, targets, weights)
    assert (features == rig.samples[0]).all()
    assert (targets == rig.samples[1]).all()
    assert (weights == 0.5).all()
    features[:], targets[:], weights[:] = 7.0, 0, 0.0
    parameters = {name: np.ones_like(array) for name, array in learner.parameters().items()}
    merged = {name: array.copy() for name, array in learner.contribution().tensors.items()}
    learner.rebase(parameters, merged, 0)
    for array in [*parameters.values(), *merged.values()]:
        array[:] = 9.0
    restored = rig.new()
    restore(restored, copy := {name: array.copy() for name, array in saved(learner).items()}, rig.task.n_outputs)
    for array in copy.values():
        array[...] = 1
    twin.learn_many(*rig.samples, np.full(96, 0.5))
    twin.rebase({name: np.ones_like(a) for name, a in twin.parameters().items()}, twin.contribution().tensors, 0)
    for each in (learner, restored, twin):
        each.learn_many(*rig.samples)
    assert snapshot(learner) == snapshot(restored) == snapshot(twin)


def test_integers_and_float64_are_learned_as_float32(rig: Rig) -> None:
    features = np.clip(np.rint(rig.samples[0]), 0, 9) + 0.0  # and no zero with a sign
    targets = np.abs(np.rint(rig.samples[1])).astype(rig.samples[1].dtype)
    first, second, third = rig.new(), rig.new(), rig.new()
    first.learn_many(features.astype(np.float32), targets, np.ones(96))
    second.learn_many(features.astype(np.float64), targets.astype(np.uint8), np.ones(96, int))
    third.learn_many(features.astype(np.uint8), targets.astype(np.int32), np.ones(96, bool))
    assert snapshot(first) == snapshot(second) == snapshot(third)


# Weights


def test_no_weights_are_weights_of_one(rig: Rig) -> None:
    one, other = rig.new(), rig.new()
    one.learn_many(*rig.samples)
    other.learn_many(*rig.samples, np.ones(96, np.float32))
    assert snapshot(one) == snapshot(other)


def test_a_sample_without_weight_is_not_learned(rig: Rig) -> None:
    def new() -> Learner:
        learner = rig.new()
        learner.learn_many(*part(rig.samples, 0, 60))
        return learner

    wrong, learner = rig.samples[1][::-1].copy(), new()
    before = learner.parameters()
    learner.learn_many(rig.samples[0][60:], wrong[60:], np.zeros(36))
    if rig.is_closed or rig.name == "sgd-plain":
        same(learner.parameters(), before)
    else:  # what it replayed meanwhile may move it, whatever the sample without weight says
        other = new()
        other.learn_many(rig.samples[0][60:], rig.samples[1][60:], np.zeros(36))
        same(learner.parameters(), other.parameters())
    assert learner.n_samples == 96


def test_a_sample_without_weight_leaves_the_shipped_head(rig: Rig) -> None:
    learner = rig.new()
    before = rig.run(rig.samples[0], learner.parameters())
    learner.learn_many(*part(rig.samples, 0, 1), np.zeros(1))
    after = rig.run(rig.samples[0], learner.parameters())
    if rig.is_whitened and rig.task.is_classifier:  # with less confidence from its first step on
        assert (after.argmax(axis=1) == before.argmax(axis=1)).all()
    else:
        np.testing.assert_allclose(after, before, atol=1e-4)


def test_what_is_trusted_less_is_followed_less(rig: Rig) -> None:
    features, targets = part(rig.samples, 60, 61)
    other = (targets + 5) % rig.task.n_outputs if rig.task.is_classifier else targets + 5

    def loss(weight: float) -> float:
        learner = rig.new()
        learner.learn_many(*part(rig.samples, 0, 60))
        learner.learn_many(features, other, np.full(1, weight))
        return float(rig.task.losses(rig.run(features, learner.parameters()), other)[0])

    assert loss(1.0) < loss(0.1) < loss(0.0)


def test_wrong_labels_of_little_weight_do_little_harm(rig: Rig) -> None:
    def loss(weight: float) -> float:
        learner = rig.new()
        features, targets = further(rig)
        wrong = further(rig, turn=True)[1]
        weights = np.ones(200)
        weights[::3] = weight
        targets = targets.copy()
        targets[::3] = wrong[::3]
        learner.learn_many(features, targets, weights)
        return rig.loss(learner, rig.samples)

    assert loss(0.01) < loss(1.0)


# A changed world


def test_distrusting_the_past_lets_the_new_world_win(rig: Rig) -> None:
    losses = []
    for distrusts in (True, False):
        learner = rig.new()
        learner.learn_many(*further(rig))
        new = further(rig, turn=True)
        learner.learn_many(*part(new, 0, 30))
        if distrusts:
            learner.distrust_the_past(*part(new, 0, 30))
        learner.learn_many(*part(new, 30, 120))
        losses.append(rig.loss(learner, part(new, 120)))
    if rig.name == "sgd-plain":  # it has no past
        assert losses[0] == losses[1]
    else:
        assert losses[0] < losses[1]
    assert losses[0] < CHANGED.get(rig.name, 0.25)


def test_distrusting_an_empty_past_does_no_harm(rig: Rig) -> None:
    learner, twin = rig.new(), rig.new()
    learner.distrust_the_past(*part(rig.samples, 0, 0))
    for each in (learner, twin):
        each.learn_many(*rig.samples)
    if rig.name == "lifted":  # of what was shipped, it trusts more than of a past
        assert rig.loss(learner, rig.samples) <= rig.loss(twin, rig.samples)
    else:
        same(learner.parameters(), twin.parameters(), 1e-6)


# Merging


def test_rebasing_twice_on_the_same_merge_is_rebasing_once(rig: Rig) -> None:
    once, twice = rig.new(), rig.new()
    for learner in (once, twice):
        learner.learn_many(*part(rig.samples, 0, 40))
        merged = learner.contribution().tensors if learner.kind == "statistics" else {}
        learner.contribution()
        learner.learn_many(*part(rig.samples, 40, 56))
        head = {name: array * 0.5 for name, array in learner.parameters().items()}
        for _ in range(2 if learner is twice else 1):
            learner.rebase(head, merged, 40)
    same(twice.parameters(), once.parameters(), 1e-5)
    assert once.n_samples == twice.n_samples == 56
    assert once.n_contributed == twice.n_contributed


def test_a_merge_that_includes_everything_is_taken_as_it_is(rig: Rig) -> None:
    learner = rig.new()
    learner.learn_many(*rig.samples)
    merged = learner.contribution().tensors
    head = {name: array + 1 for name, array in learner.parameters().items()}
    learner.rebase(head, merged, learner.n_samples)
    same(learner.parameters(), head, 1e-5 if rig.is_whitened else 0.0)


def test_a_version_that_nobody_remembers_is_taken_as_all_of_it(rig: Rig) -> None:
    older, newer, twin = rig.new(), rig.new(), rig.new()
    for each, version in ((older, 13), (newer, 10**9), (twin, 40)):
        each.learn_many(*part(rig.samples, 0, 40))
        merged = each.contribution().tensors
        each.rebase({name: array + 1 for name, array in each.parameters().items()}, merged, version)
        each.learn_many(*part(rig.samples, 40, 60))
    assert snapshot(older) == snapshot(newer) == snapshot(twin)


def test_learning_goes_on_after_a_head_without_statistics(rig: Rig) -> None:
    learner = rig.new()
    learner.learn_many(*part(rig.samples, 0, 48))
    learner.rebase(learner.parameters(), {}, learner.n_samples)
    before = rig.loss(learner, rig.samples)
    learner.learn_many(*part(rig.samples, 48))
    assert rig.loss(learner, rig.samples) <= before + 0.02
    new = further(rig, turn=True)
    learner.learn_many(*part(new, 0, 30))
    learner.distrust_the_past(*part(new, 0, 30))
    learner.learn_many(*part(new, 30, 150))
    assert rig.loss(learner, part(new, 150)) < CHANGED.get(rig.name, 0.25)


# Further classes


def samples_of_a_further_class(rig: Rig, n: int) -> Samples:
    """Of class k, beside the others."""
    k = rig.task.n_outputs
    rng = np.random.default_rng(3)
    features = np.maximum(rng.normal(0, 0.3, (n, rig.samples[0].shape[1])), 0) + np.float32(0.0)
    features[:, ::2] += 2.5
    return features.astype(np.float32), np.full(n, k)


def answers(rig: Rig, learner: Learner, features: FloatArray) -> npt.NDArray[np.int64]:
    return np.asarray(rig.run(features, learner.parameters()).argmax(axis=1))


@pytest.mark.parametrize("learned", [0, 96])
def test_growing_leaves_the_answers(class_rig: Rig, learned: int) -> None:
    rig, learner = class_rig, class_rig.new()
    k = rig.task.n_outputs
    learner.learn_many(*part(rig.samples, 0, learned))
    before = rig.run(rig.samples[0], learner.parameters())
    learner.grow(k + 2)
    after = rig.run(rig.samples[0], learner.parameters())
    assert after.shape == (96, k + 2)
    np.testing.assert_allclose(after[:, :k], before, rtol=0, atol=1e-5 * np.abs(before).max())
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()
    assert learner.n_samples == learned


def test_a_further_class_is_not_answered_before_it_was_seen(class_rig: Rig) -> None:
    rig, learner = class_rig, class_rig.new()
    k = rig.task.n_outputs
    learner.learn_many(*part(rig.samples, 0, 40))
    learner.grow(k + 1)
    far = np.random.default_rng(0).normal(0, 20, (500, rig.samples[0].shape[1])).astype(np.float32)
    for stop in (40, 41, 60, 96):
        learner.learn_many(*part(rig.samples, 40, stop))
        features = far if rig.is_closed else rig.samples[0]
        assert not (answers(rig, learner, features) == k).any()


@pytest.mark.parametrize("merges", [False, True])
def test_a_further_class_is_learned(class_rig: Rig, merges: bool) -> None:
    rig, learner = class_rig, class_rig.new()
    k = rig.task.n_outputs
    for _ in range(2):
        learner.learn_many(*rig.samples)
    if merges:
        learner.rebase(learner.parameters(), {}, learner.n_samples)
    before = rig.loss(learner, rig.samples)
    learner.grow(k + 1)
    features, labels = samples_of_a_further_class(rig, 60)
    for i in range(30):
        learner.learn_many(features[i : i + 1], labels[i : i + 1])
        learner.learn_many(*part(rig.samples, i, i + 1))
    assert (answers(rig, learner, features[30:]) == k).mean() > 0.9
    grown_loss = float((answers(rig, learner, rig.samples[0]) != rig.samples[1]).mean())
    assert grown_loss < before + (0.35 if rig.name == "sgd-plain" else 0.1)
    with pytest.raises(LearningError):
        learner.learn_many(features[:1], labels[:1] + 1)


def test_a_grown_learner_is_restored_and_one_can_go_back_behind_its_classes(class_rig: Rig) -> None:
    rig, first = class_rig, class_rig.new()
    k = rig.task.n_outputs
    first.learn_many(*part(rig.samples, 0, 30))
    first.contribution()
    first.grow(k + 1)
    first.learn_many(*samples_of_a_further_class(rig, 10))
    second, small = rig.new(), rig.new()
    restore(second, saved(first), k + 1)
    assert snapshot(second) == snapshot(first)
    before, value = snapshot(small), small.value
    with pytest.raises(LearningError):
        restore(small, saved(first), k)
    assert snapshot(small) == before
    small.load(second.value)
    assert snapshot(small) == snapshot(first)
    small.load(value)  # back to before there was that class
    assert snapshot(small) == before
    for learner in (first, second):
        learner.learn_many(*part(rig.samples, 30))
        learner.rebase(learner.parameters(), learner.contribution().tensors if learner.kind == "statistics" else {}, 30)
        learner.learn_many(*samples_of_a_further_class(rig, 10))
    assert snapshot(second) == snapshot(first)


def test_growing_is_remembered_in_what_is_on_its_way(class_rig: Rig) -> None:
    rig, learner = class_rig, class_rig.new()
    k = rig.task.n_outputs
    if not learner.kind:  # nothing of it is ever on its way
        return
    learner.learn_many(*part(rig.samples, 0, 30))
    learner.contribution()
    learner.grow(k + 1)
    contribution = learner.contribution().tensors
    widths = {array.shape[-1] if learner.kind == "statistics" else len(array) for array in contribution.values()}
    assert k + 1 in widths
    assert k not in widths
    assert all(np.isfinite(array).all() for array in contribution.values())
    merged = contribution if learner.kind == "statistics" else {}
    head = learner.parameters()
    learner.rebase(head, merged, 30)
    same(learner.parameters(), head, 1e-5)
