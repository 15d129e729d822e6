"""What learning remembers: packed features, the replay buffer, the label ring."""

from __future__ import annotations

import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge.contract.errors import LearningError
from edge.contract.recipe import MEAN_SQUARED_ERROR, TrainingRecipe
from edge.learning.draws import Draws
from edge.learning.events import Labelled
from edge.learning.labels import Given, LabelRing, Remembered
from edge.learning.packing import PackedFeatures, pack
from edge.learning.replay import GROUPS_OF_QUANTITIES, ReplayBuffer
from edge.learning.task import Task
from edge.learning.tree import build, flatten

# Packing


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(1, 2)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
@example(np.array([[[190 * 2.0**-149]]], np.float32))  # its scale would be subnormal
@example(np.array([[[2.0**-149]]], np.float32))  # its scale would be zero
@example(np.array([[[1e-36], [-1e-38]]], np.float32))
def test_the_error_of_packing_is_at_most_half_a_step(features: np.ndarray) -> None:
    packed = pack(features)
    found = packed.unpack(features.shape[1:])
    assert found.shape == features.shape
    assert found.dtype == np.float32
    assert packed.codes.dtype == np.int8
    assert np.isfinite(found).all()
    largest = np.abs(features).max(axis=(1, 2), initial=0).astype(np.float64)
    bound = np.maximum(largest / 254 * (1 + 1e-4), 6e-39)[:, None, None]
    assert (np.abs(found.astype(np.float64) - features) <= bound).all()


def test_packing_what_was_packed_changes_nothing() -> None:
    features = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    once = pack(features)
    twice = pack(once.unpack((7,)))
    assert (once.codes == twice.codes).all()
    np.testing.assert_allclose(once.scales, twice.scales, rtol=1e-6)


def test_packed_features_take_a_quarter_and_are_copies() -> None:
    features = np.ones((10, 100), np.float32)
    packed = pack(features)
    assert packed.codes.nbytes + packed.scales.nbytes == 10 * (100 + 4)
    features[:] = 5.0
    assert (packed.unpack((100,)) == 1.0).all()


# Replay


def classes(n: int) -> Task:
    return Task(TrainingRecipe(), n)


QUANTITIES = Task(TrainingRecipe(loss=MEAN_SQUARED_ERROR), 2)


def filled(buffer: ReplayBuffer, labels: np.ndarray, seed: int = 0) -> ReplayBuffer:
    """Offer samples whose only feature is their number, from 1."""
    draws = Draws([seed])
    for i, label in enumerate(labels):
        buffer = buffer.put(np.array([[i + 1.0]], np.float32), np.array([label]), draws)
    return buffer


def size_of(buffer: ReplayBuffer) -> int:
    return sum(array.nbytes for array in (buffer.seen, buffer.scales, buffer.targets, *buffer.codes))


def test_replay_draws_classes_equally_often_whatever_was_seen() -> None:
    buffer = filled(ReplayBuffer.empty((1,), classes(4), 5), np.array([0] * 500 + [1] * 20 + [3]))
    _, labels = buffer.draw(3000, (1,), Draws([1]))
    shares = np.bincount(labels, minlength=4) / 3000
    np.testing.assert_allclose(shares, [1 / 3, 1 / 3, 0, 1 / 3], atol=0.04)


def test_every_sample_of_a_class_is_as_likely_to_be_kept() -> None:
    kept = np.zeros(20)
    for seed in range(2000):
        buffer = filled(ReplayBuffer.empty((1,), classes(1), 5), np.zeros(20, int), seed)
        numbers = np.unique(np.rint(buffer.draw(200, (1,), Draws([seed]))[0]).astype(int))
        kept[numbers - 1] += 1
    # Binomial of 2000 draws with p = 1/4: a standard deviation of 0.01; 4.5 of them.
    np.testing.assert_allclose(kept / 2000, 0.25, atol=0.045)


def test_replay_memory_is_fixed_and_counts_what_it_keeps() -> None:
    buffer = ReplayBuffer.empty((2, 3), classes(4), 5)
    size = size_of(buffer)
    assert size == 4 * 5 * (6 + 4) + 4 * 8
    draws = Draws([0])
    for n in (1, 10, 100):
        buffer = buffer.put(np.ones((n, 2, 3), np.float32), np.full(n, 2), draws)
        assert len(buffer) == min(5, 1 + (n > 1) * 10)
    assert size_of(buffer) == size
    assert buffer.draw(7, (2, 3), draws)[0].shape == (7, 2, 3)


def test_a_buffer_without_places_and_an_empty_one_give_nothing() -> None:
    for per_class in (0, 5):
        buffer = ReplayBuffer.empty((3,), classes(2), per_class)
        if per_class == 0:
            buffer = buffer.put(np.ones((4, 3), np.float32), np.array([0, 1, 0, 1]), Draws([0]))
        features, labels = buffer.draw(8, (3,), Draws([0]))
        assert features.shape == (0, 3)
        assert labels.shape == (0,)
        assert len(buffer) == 0


def test_a_buffer_that_was_written_down_draws_the_same() -> None:
    first = filled(ReplayBuffer.empty((1,), classes(3), 4), np.arange(30) % 3)
    second = build(ReplayBuffer.empty((1,), classes(3), 0), flatten(first))
    assert second.fits(first)
    for found, expected in zip(second.draw(50, (1,), Draws([3])), first.draw(50, (1,), Draws([3])), strict=True):
        assert (found == expected).all()
    assert not second.fits(ReplayBuffer.empty((1,), classes(3), 2))


def test_an_older_buffer_stays_as_it_was_and_shares_what_did_not_change() -> None:
    draws = Draws([0])
    older = filled(ReplayBuffer.empty((1,), classes(3), 4), np.arange(9) % 3)
    before = {name: array.tobytes() for name, array in flatten(older).items()}
    newer = older.put(np.array([[7.0]], np.float32), np.array([1]), draws)
    assert {name: array.tobytes() for name, array in flatten(older).items()} == before
    assert [one is other for one, other in zip(older.codes, newer.codes, strict=True)] == [True, False, True]


def test_what_is_no_buffer_is_refused() -> None:
    good = flatten(filled(ReplayBuffer.empty((1,), classes(3), 4), np.arange(30) % 3))
    like = ReplayBuffer.empty((1,), classes(3), 0)
    for bad in (
        {},
        good | {"seen": -good["seen"]},
        good | {"seen": good["seen"][1:]},
        good | {"codes": np.array(2)},
        good | {"codes.0": good["codes.0"].astype(np.float32)},
        good | {"codes.0": np.zeros((4, 2), np.int8)},
        good | {"targets": np.zeros((), np.float32)},
        {name: array for name, array in good.items() if name != "targets"},
    ):
        with pytest.raises(LearningError):
            build(like, bad)
    for odd in (
        {"scales": good["scales"][:, 1:]},
        {"targets": good["targets"][:, 1:]},
        {"codes.2": good["codes.2"][1:]},
    ):
        assert not build(like, good | odd).fits(ReplayBuffer.empty((1,), classes(3), 4))


def test_quantities_share_one_reservoir_and_keep_their_targets() -> None:
    buffer = ReplayBuffer.empty((1,), QUANTITIES, 5)
    draws = Draws([0])
    for i in range(200):
        buffer = buffer.put(np.array([[i + 1.0]], np.float32), np.array([[i, -i]], np.float32), draws)
    assert len(buffer) == 5 * GROUPS_OF_QUANTITIES
    features, targets = buffer.draw(100, (1,), draws)
    assert targets.shape == (100, 2)
    np.testing.assert_allclose(targets[:, 0], features[:, 0] - 1, atol=1e-3)
    np.testing.assert_allclose(targets[:, 1], 1 - features[:, 0], atol=1e-3)
    restored = build(ReplayBuffer.empty((1,), QUANTITIES, 0), flatten(buffer))
    for found, expected in zip(restored.draw(50, (1,), Draws([3])), buffer.draw(50, (1,), Draws([3])), strict=True):
        assert (found == expected).all()


def test_a_cleared_buffer_gives_nothing_and_fills_again() -> None:
    buffer = filled(ReplayBuffer.empty((1,), classes(3), 4), np.arange(30) % 3)
    buffer = buffer.cleared()
    assert len(buffer) == 0
    assert len(buffer.draw(9, (1,), Draws([0]))[0]) == 0
    buffer = buffer.put(np.array([[7.0]], np.float32), np.array([1]), Draws([0]))
    features, labels = buffer.draw(9, (1,), Draws([0]))
    assert set(labels.tolist()) == {1}
    np.testing.assert_allclose(features, 7.0, rtol=1e-6)


def test_a_grown_buffer_keeps_what_it_had() -> None:
    buffer = filled(ReplayBuffer.empty((1,), classes(2), 4), np.arange(30) % 2)
    buffer = buffer.grown(3)
    assert len(buffer) == 8
    assert set(buffer.draw(200, (1,), Draws([0]))[1].tolist()) == {0, 1}
    buffer = buffer.put(np.array([[7.0]], np.float32), np.array([2]), Draws([0]))
    assert set(buffer.draw(200, (1,), Draws([0]))[1].tolist()) == {0, 1, 2}
    assert buffer.fits(ReplayBuffer.empty((1,), classes(3), 4))


# Labels


def sample(answer: int, seen_s: float) -> Remembered:
    return Remembered(pack(np.full((1, 2), answer, np.float32)), np.array([answer], np.float32), seen_s)


def test_a_label_joins_the_sample_of_its_id_once() -> None:
    ring = LabelRing(10, 60.0)
    ring.put("a", sample(1, 0.0))
    ring.put("b", sample(2, 1.0))
    found = ring.join("a", 5.0)
    assert found is not None
    assert (found.answer.tolist(), found.seen_s, found.features.unpack((2,)).tolist()) == ([1.0], 0.0, [[1.0, 1.0]])
    assert ring.join("a", 5.0) is None
    assert ring.join("never seen", 5.0) is None
    assert len(ring) == 1


def test_a_late_label_joins_until_it_expires() -> None:
    ring = LabelRing(10, 60.0)
    for name in ("a", "b"):
        ring.put(name, sample(1, 100.0))
    assert ring.join("a", 160.0) is not None
    assert ring.join("b", 160.001) is None
    assert len(ring) == 0


def test_the_oldest_samples_make_room() -> None:
    ring = LabelRing(3, 60.0)
    for i in range(10):
        ring.put(str(i), sample(i, float(i)))
        assert len(ring) <= 3
    assert [ring.join(str(i), 10.0) is not None for i in range(10)] == [False] * 7 + [True] * 3


def test_the_same_id_again_replaces_the_older_sample() -> None:
    ring = LabelRing(2, 60.0)
    ring.put("a", sample(1, 0.0))
    ring.put("b", sample(2, 1.0))
    ring.put("a", sample(3, 2.0))
    ring.put("c", sample(4, 3.0))  # "b" is the oldest now
    found = ring.join("a", 4.0)
    assert found is not None
    assert found.answer.tolist() == [3.0]
    assert ring.join("b", 4.0) is None


def test_samples_whose_id_came_again_show_what_is_seen_and_take_nobody_s_place() -> None:
    """An application that never labels may call all of its samples the same."""
    ring = LabelRing(100, 60.0)
    for i in range(40):
        ring.put("frame", sample(i, float(i)))
    assert [each.answer.item() for each in ring.newest(20)] == list(range(20, 40))
    for i in range(99):
        ring.put(str(i), sample(i, 50.0))
    assert len(ring) == 100
    assert all(ring.join(name, 51.0) for name in ["frame", *map(str, range(99))])
    assert len(ring) == 0, "no label can name the others"
    for i in range(2000):
        ring.put("frame", sample(i, float(i)))
    assert len(ring) == 100


def test_a_sample_whose_label_was_not_learned_waits_again_as_the_oldest() -> None:
    ring = LabelRing(2, 60.0)
    ring.put("a", sample(1, 0.0))
    found = ring.join("a", 1.0)
    assert found is not None
    label = Labelled(found.features, np.array([1]), np.ones(1, np.float32))
    ring.give("a", label, found)
    assert ring.given("a") == Given((1,), 1.0, label)
    ring.put("b", sample(2, 2.0))
    assert ring.put_back(label) == "a"
    assert ring.given("a") is None
    assert ring.put_back(label) == "", "once"
    ring.put("c", sample(3, 3.0))
    assert [ring.join(name, 4.0) is not None for name in "abc"] == [False, True, True]


def test_of_a_label_that_was_learned_nothing_but_what_it_says_is_kept() -> None:
    ring, seen = LabelRing(2, 60.0), []
    for i, name in enumerate("abc"):
        ring.put(name, sample(i, 0.0))
        found = ring.join(name, 1.0)
        assert found is not None
        label = Labelled(found.features, np.array([i]), np.full(1, 0.5, np.float32))
        ring.give(name, label, found)
        seen.append(weakref.ref(label.features.codes))
        ring.learned(label)
        assert ring.put_back(label) == "", "it is learned"
    del found, label
    assert [each() for each in seen] == [None] * 3
    assert [ring.given(name) for name in "abc"] == [None, Given((1,), 0.5, None), Given((2,), 0.5, None)]
    ring.put("b", sample(7, 2.0))
    assert ring.given("b") is None, "another sample of this name"


ASKED = st.tuples(st.sampled_from(["put", "join", "refuse"]), st.integers(0, 5), st.sampled_from([(1, 1), (3, 2)]))


@settings(max_examples=100)
@given(st.lists(ASKED, max_size=40), st.integers(1, 4))
def test_every_sample_that_waits_is_what_was_put_there(asked: list[Any], capacity: int) -> None:
    """Places are used again, also by samples of another shape, as when a class was added."""
    ring, waits, nameless = LabelRing(capacity, 1e9), dict[str | int, Remembered](), list[int]()
    for number, (what, name, (n_features, n_outputs)) in enumerate(asked):
        sample_id = str(name)
        if what == "put":
            features = pack(np.full((1, n_features), number + 1, np.float32))
            put = Remembered(features, np.full(n_outputs, number, np.float32), float(number))
            if (older := waits.pop(sample_id, None)) is not None:
                waits[len(nameless)] = older
                nameless.append(len(nameless))
            waits[sample_id] = put
            ring.put(sample_id, put)
        else:
            found, expected = ring.join(sample_id, 0.0), waits.pop(sample_id, None)
            assert (found is None) == (expected is None)
            if found is not None and what == "refuse":
                label = Labelled(found.features, np.array([1]), np.ones(1, np.float32))
                ring.give(sample_id, label, found)
                assert ring.put_back(label) == sample_id
                waits = {sample_id: found, **waits}
        for over in sorted(waits, key=lambda key: isinstance(key, str))[: max(0, len(waits) - capacity)]:
            del waits[over]
        assert len(ring) == len(waits)
        for seen, put in zip(ring.newest(capacity), waits.values(), strict=True):
            np.testing.assert_array_equal(seen.features.codes, put.features.codes)
            np.testing.assert_array_equal(seen.features.scales, put.features.scales)
            np.testing.assert_array_equal(seen.answer, put.answer)
            assert seen.seen_s == put.seen_s


def test_a_sample_that_waits_takes_little_more_than_its_features() -> None:
    features, answer, ring = pack(np.ones((1, 200), np.float32)), np.ones(10, np.float32), LabelRing(2000, 60.0)
    tracemalloc.start()
    try:
        for i in range(2000):
            ring.put(f"frame-{i:08d}", Remembered(PackedFeatures(*map(np.copy, (features.codes, features.scales))),
                                                  answer.copy(), 0.0))  # fmt: skip
        each = tracemalloc.get_traced_memory()[0] / 2000
    finally:
        tracemalloc.stop()
    assert each < 200 + 4 * 10 + 400
