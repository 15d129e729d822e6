"""One battery for every learner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from edge.contract.errors import LearningError
from edge.learning.learner import Learner, State

Samples = tuple[np.ndarray, np.ndarray]
NewLearner = Callable[..., Learner]


def snapshot(learner: Learner) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Everything that a learner is, byte for byte."""
    everything: State = learner.state() | {f"parameters.{n}": a for n, a in learner.parameters().items()}
    everything["n_samples"] = np.array(learner.n_samples)
    everything["n_contributed"] = np.array(learner.n_contributed)
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in everything.items()}


def size_bytes(state: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in state.values())


def teach_one_by_one(learner: Learner, samples: Samples) -> None:
    for i in range(len(samples[0])):
        learner.learn_many(samples[0][i : i + 1], samples[1][i : i + 1])


def test_starts_with_the_shipped_head(new_learner: NewLearner) -> None:
    one, other = new_learner(), new_learner()
    assert snapshot(one) == snapshot(other)
    assert one.n_samples == one.n_contributed == 0


def test_learns(new_learner: NewLearner, samples: Samples) -> None:
    learner = new_learner()
    features, labels = samples

    def accuracy() -> float:
        biases, weights = sorted(learner.parameters().values(), key=np.ndim)
        return float(((features @ weights.T + biases).argmax(axis=1) == labels).mean())

    before = accuracy()
    for _ in range(4):
        learner.learn_many(features, labels)
    assert accuracy() > before + 0.3
    assert learner.n_samples == learner.n_contributed == 4 * len(labels)


def test_memory_does_not_grow_with_samples(new_learner: NewLearner, samples: Samples) -> None:
    learner = new_learner()
    learner.learn_many(*samples)
    size = size_bytes(learner.state())
    for _ in range(10):
        learner.learn_many(*samples)
    assert size_bytes(learner.state()) == size


def test_memory_does_not_grow_with_contributions(new_learner: NewLearner, samples: Samples) -> None:
    learner = new_learner()
    sizes = []
    for i in range(8):
        learner.learn_many(samples[0][i : i + 1], samples[1][i : i + 1])
        learner.contribution()
        sizes.append(size_bytes(learner.state()))
    assert sizes[3] == sizes[-1]


def test_a_restored_learner_is_the_same_and_goes_on_the_same(new_learner: NewLearner, samples: Samples) -> None:
    features, labels = samples
    first = new_learner()
    first.learn_many(features[:37], labels[:37])
    first.contribution()
    first.learn_many(features[37:50], labels[37:50])
    first.rebase({n: a * 0.5 for n, a in first.parameters().items()}, first.contribution(), 37)
    second = new_learner()
    second.restore(first.state())
    assert snapshot(second) == snapshot(first)
    for learner in (first, second):
        learner.learn_many(features[50:], labels[50:])
        learner.rebase(learner.parameters(), learner.contribution(), 50)
        learner.learn_many(features[:5], labels[:5])
    assert snapshot(second) == snapshot(first)


def test_a_saved_state_does_not_change_when_learning_goes_on(new_learner: NewLearner, samples: Samples) -> None:
    learner = new_learner()
    learner.learn_many(samples[0][:40], samples[1][:40])
    state = learner.state()
    before = snapshot(learner)
    learner.learn_many(samples[0][40:], samples[1][40:])
    learner.restore(state)
    assert snapshot(learner) == before


def bad_batches(samples: Samples) -> dict[str, tuple[Any, Any]]:
    features, labels = (array[:9].copy() for array in samples)

    def with_feature(value: float, dtype: type = np.float32) -> np.ndarray:
        changed = features.astype(dtype)
        changed[5, 3] = value
        return changed

    def with_label(value: int) -> np.ndarray:
        changed = labels.copy()
        changed[5] = value
        return changed

    return {
        "not a number": (with_feature(np.nan), labels),
        "infinite": (with_feature(np.inf), labels),
        "finite in float64 only": (with_feature(1e300, np.float64), labels),
        "so large that its square is not finite": (with_feature(3e38), labels),
        "negative and as large": (with_feature(-3e38), labels),
        "one feature too few": (features[:, 1:], labels),
        "one axis too many": (features[:, :, None], labels),
        "one axis too few": (features[0], labels),
        "texts": (features.astype(str), labels),
        "objects": (features.astype(object), labels),
        "complex": (features.astype(complex), labels),
        "one label too few": (features, labels[1:]),
        "one label too many": (features, samples[1][:10]),
        "labels of two axes": (features, labels[:, None]),
        "labels that are no integers": (features, labels + 0.5),
        "a label that is negative": (features, with_label(-1)),
        "a label beyond the classes": (features, with_label(10)),
        "a label of 2 to the 63": (features, np.full(9, 2**63, np.uint64)),
    }


def test_refuses_what_cannot_be_learned_and_nothing_changes(new_learner: NewLearner, samples: Samples) -> None:
    learner = new_learner()
    learner.learn_many(samples[0][:20], samples[1][:20])
    before = snapshot(learner)
    for what, (features, labels) in bad_batches(samples).items():
        with pytest.raises(LearningError):
            learner.learn_many(features, labels)
        assert snapshot(learner) == before, what
    twin = new_learner()
    for each in (learner, twin):
        if each is twin:
            each.learn_many(samples[0][:20], samples[1][:20])
        each.learn_many(samples[0][20:40], samples[1][20:40])
    assert snapshot(learner) == snapshot(twin)


def test_an_empty_batch_changes_nothing(new_learner: NewLearner, samples: Samples) -> None:
    learner = new_learner()
    learner.learn_many(*samples)
    before = snapshot(learner)
    learner.learn_many(samples[0][:0], samples[1][:0])
    assert snapshot(learner) == before


def test_inputs_are_copied_and_left_alone(new_learner: NewLearner, samples: Samples) -> None:
    features, labels = (array.copy() for array in samples)
    learner, twin = new_learner(), new_learner()
    learner.learn_many(features, labels)
    assert (features == samples[0]).all()
    assert (labels == samples[1]).all()
    features[:], labels[:] = 7.0, 0
    parameters = {name: np.ones_like(array) for name, array in learner.parameters().items()}
    merged = {name: array.copy() for name, array in learner.contribution().items()}
    learner.rebase(parameters, merged, 0)
    for array in [*parameters.values(), *merged.values()]:
        array[:] = 9.0
    state = learner.state()
    restored = new_learner()
    restored.restore(copy := {name: array.copy() for name, array in state.items()})
    for array in copy.values():
        array[...] = 1
    twin.learn_many(*samples)
    twin.rebase({name: np.ones_like(a) for name, a in twin.parameters().items()}, twin.contribution(), 0)
    for each in (learner, restored, twin):
        each.learn_many(*samples)
    assert snapshot(learner) == snapshot(restored) == snapshot(twin)


def test_integers_and_float64_are_learned_as_float32(new_learner: NewLearner, samples: Samples) -> None:
    features = np.rint(samples[0])
    first, second, third = new_learner(), new_learner(), new_learner()
    first.learn_many(features.astype(np.float32), samples[1])
    second.learn_many(features.astype(np.float64), samples[1].astype(np.uint8))
    third.learn_many(features.astype(np.uint8), samples[1].astype(np.int32))
    assert snapshot(first) == snapshot(second) == snapshot(third)


@pytest.mark.parametrize("damage", ["missing", "another shape", "scalar"])
def test_refuses_a_state_that_is_not_its_own_and_nothing_changes(
    new_learner: NewLearner, samples: Samples, damage: str
) -> None:
    giver, learner = new_learner(), new_learner()
    giver.learn_many(*samples)
    giver.contribution()
    learner.learn_many(samples[0][:30], samples[1][:30])
    before = snapshot(learner)
    good = giver.state()
    for name in good:
        bad = dict(good)
        if damage == "missing":
            del bad[name]
        else:
            bad[name] = np.zeros((2, 2, 2, 2) if damage == "another shape" else (), good[name].dtype)
        with pytest.raises(LearningError):
            learner.restore(bad)
        assert snapshot(learner) == before, name
    learner.restore(good)
    assert snapshot(learner) == snapshot(giver)


def test_refuses_a_state_with_negative_numbers_and_nothing_changes(new_learner: NewLearner, samples: Samples) -> None:
    learner = new_learner()
    learner.learn_many(*samples)
    before = snapshot(learner)
    state = learner.state()
    with pytest.raises(LearningError):
        learner.restore(state | {"counts": -state["counts"] - 1})
    assert snapshot(learner) == before


def test_rebasing_twice_on_the_same_merge_is_rebasing_once(new_learner: NewLearner, samples: Samples) -> None:
    features, labels = samples
    once, twice = new_learner(), new_learner()
    for learner in (once, twice):
        learner.learn_many(features[:40], labels[:40])
        merged = learner.contribution()
        learner.learn_many(features[40:56], labels[40:56])
        head = {name: array * 0.5 for name, array in learner.parameters().items()}
        learner.rebase(head, merged, 40)
        if learner is twice:
            learner.rebase(head, merged, 40)
    for name, array in once.parameters().items():
        np.testing.assert_allclose(twice.parameters()[name], array, rtol=1e-5, atol=1e-6)
    assert once.n_samples == twice.n_samples == 56
    assert once.n_contributed == twice.n_contributed


def test_a_merge_that_includes_everything_is_taken_as_it_is(new_learner: NewLearner, samples: Samples) -> None:
    learner = new_learner()
    learner.learn_many(*samples)
    merged = learner.contribution()
    head = {name: array + 1 for name, array in learner.parameters().items()}
    learner.rebase(head, merged, learner.n_samples)
    for name, array in learner.parameters().items():
        assert (array == head[name]).all()


@pytest.mark.parametrize("included", [13, 10**9])
def test_a_version_that_nobody_remembers_is_taken_as_all_of_it(
    new_learner: NewLearner, samples: Samples, included: int
) -> None:
    learner, twin = new_learner(), new_learner()
    for each, version in ((learner, included), (twin, 40)):
        each.learn_many(samples[0][:40], samples[1][:40])
        merged = each.contribution()
        each.rebase({name: array + 1 for name, array in each.parameters().items()}, merged, version)
        each.learn_many(samples[0][40:], samples[1][40:])
    assert snapshot(learner) == snapshot(twin)
