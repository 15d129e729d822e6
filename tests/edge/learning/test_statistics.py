"""Sufficient statistics: they add, subtract and travel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.errors import LearningError
from edge.learning.statistics import HeadStatistics, PackedStatistics, of_triangle, upper_triangle


def data(n: int, d: int, n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    return rng.normal(size=(n, d)) + rng.normal(size=(n_classes, d))[labels] * 2, labels


sizes = st.tuples(st.integers(1, 30), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(0, 30), st.randoms(use_true_random=False))
def test_order_and_batches_do_not_matter(size: tuple[int, int, int, int], cut: int, shuffler: object) -> None:
    features, labels = data(*size)
    whole = HeadStatistics.of(features, labels, size[2])
    order = np.arange(len(labels))
    shuffler.shuffle(order)  # type: ignore[attr-defined]
    parts = [HeadStatistics.of(features[part], labels[part], size[2]) for part in (order[:cut], order[cut:])]
    for total in (parts[0] + parts[1], parts[1] + parts[0]):
        np.testing.assert_allclose(total.gram, whole.gram, atol=1e-9)
        np.testing.assert_allclose(total.moment, whole.moment, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes)
def test_subtracting_a_device_is_never_having_had_it(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    d, n_classes = one[1:3]
    kept = HeadStatistics.of(*data(one[0], d, n_classes, one[3]), n_classes)
    gone = HeadStatistics.of(*data(other[0], d, n_classes, other[3]), n_classes)
    left = kept + gone - gone
    np.testing.assert_allclose(left.gram, kept.gram, atol=1e-9)
    np.testing.assert_allclose(left.moment, kept.moment, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_the_way_over_the_wire_keeps_float32(size: tuple[int, int, int, int]) -> None:
    _, d, n_classes, _ = size
    sent = HeadStatistics.of(*data(*size), n_classes)
    tensors = sent.to_tensors("p.")
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float32)}
    found = HeadStatistics.from_tensors(tensors, d, n_classes, "p.")
    np.testing.assert_allclose(found.gram, sent.gram, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.moment, sent.moment, rtol=1e-6, atol=1e-12)
    assert (found.gram == found.gram.T).all()
    again = found.to_tensors("p.")
    assert {name: array.tobytes() for name, array in again.items()} == {n: a.tobytes() for n, a in tensors.items()}


def test_counts_are_what_they_say() -> None:
    statistics = HeadStatistics.of(np.ones((4, 2)), np.array([0, 2, 2, 2]), 3)
    assert statistics.n_samples == 4
    assert statistics.class_counts.tolist() == [1, 0, 3]
    assert statistics.scaled_to(8).class_counts.tolist() == [2, 0, 6]
    assert HeadStatistics.empty(2, 3).n_samples == 0


def test_refuses_what_is_not_statistics() -> None:
    good = HeadStatistics.of(*data(20, 3, 2, 0), 2).to_tensors()
    HeadStatistics.from_tensors(good, 3, 2)

    def changed(name: str, index: tuple[int, ...] | int, value: float) -> dict[str, np.ndarray]:
        array = good[name].copy()
        array[index] = value
        return good | {name: array}

    bad = {
        "gram missing": {"moment": good["moment"]},
        "moment missing": {"gram": good["gram"]},
        "a square matrix": good | {"gram": np.zeros((4, 4), np.float32)},
        "another number of features": good | {"gram": good["gram"][:-1]},
        "another number of classes": good | {"moment": good["moment"][:, :1]},
        "no features": good | {"moment": good["moment"][:0]},
        "not a number": changed("gram", 1, np.nan),
        "infinite": changed("moment", (0, 0), np.inf),
        "beyond float32": good | {"gram": good["gram"].astype(np.float64) * 1e300},
        "integers": good | {"gram": good["gram"].astype(np.int64)},
        "complex": good | {"moment": good["moment"].astype(np.complex64)},
        "a negative sum of squares": changed("gram", 0, -1.0),
        "a negative count of a class": changed("moment", (3, 0), -1.0),
        "a negative count": changed("gram", 9, -20.0),
        "counts that do not add up": changed("gram", 9, 40.0),
    }
    for tensors in bad.values():
        with pytest.raises(LearningError):
            HeadStatistics.from_tensors(tensors, 3, 2)


def test_refuses_to_combine_other_shapes() -> None:
    one = HeadStatistics.empty(3, 2)
    for other in (HeadStatistics.empty(2, 2), HeadStatistics.empty(3, 3)):
        with pytest.raises(LearningError):
            one + other
        with pytest.raises(LearningError):
            one - other


def test_weights_count_samples_in_parts() -> None:
    features, labels = data(20, 3, 2, 0)
    one_hot = np.eye(2)[labels]
    halves = HeadStatistics.of_targets(features, one_hot, np.full(20, 0.5))
    whole = HeadStatistics.of(features, labels, 2)
    np.testing.assert_allclose(halves.gram, whole.gram / 2, atol=1e-12)
    np.testing.assert_allclose(halves.moment, whole.moment / 2, atol=1e-12)
    some = HeadStatistics.of_targets(features, one_hot, np.arange(20) < 7)
    np.testing.assert_allclose(some.gram, HeadStatistics.of(features[:7], labels[:7], 2).gram, atol=1e-12)


def test_quantities_have_no_counts_that_must_add_up() -> None:
    rng = np.random.default_rng(0)
    sent = HeadStatistics.of_targets(rng.normal(size=(9, 3)), rng.normal(size=(9, 2)) - 5, np.ones(9))
    found = HeadStatistics.from_tensors(sent.to_tensors(), 3, 2, is_classifier=False)
    np.testing.assert_allclose(found.moment, sent.moment, rtol=1e-6)
    with pytest.raises(LearningError):
        HeadStatistics.from_tensors(sent.to_tensors(), 3, 2)


def test_growing_adds_classes_without_samples() -> None:
    before = HeadStatistics.of(*data(20, 3, 2, 0), 2)
    after = before.grown(4)
    assert after.class_counts.tolist() == [*before.class_counts.tolist(), 0.0, 0.0]
    assert after.seen.tolist() == [True, True, False, False]
    assert (after.gram == before.gram).all()
    assert (after.moment[:, :2] == before.moment).all()
    assert before.moment.shape == (4, 2)


def test_what_rounding_leaves_of_a_class_is_no_class() -> None:
    features, labels = data(50, 3, 2, 0)
    features *= 1e3
    both = HeadStatistics.of(features, labels, 2)
    gone = HeadStatistics.of(features[labels == 1], labels[labels == 1], 2)
    halves = gone * 0.3 + gone * 0.7
    assert (both - halves).seen.tolist() == [True, False]


@given(st.integers(1, 9), st.integers(1, 4), st.floats(1e-3, 1e3))
def test_packed_statistics_are_what_is_sent_times_a_scale(d: int, n_classes: int, scale: float) -> None:
    rng = np.random.default_rng(d)
    statistics = HeadStatistics.of(rng.normal(size=(20, d)), rng.integers(0, n_classes, 20), n_classes)
    packed = PackedStatistics.of(statistics, scale)
    sent = HeadStatistics.from_tensors(statistics.to_tensors(), d, n_classes)
    for found in (packed.unpack(), (packed * 0.5).unpack() * 2.0, packed.grown(n_classes + 2).unpack()):
        np.testing.assert_allclose(found.gram, sent.gram * scale, rtol=1e-12)
        np.testing.assert_allclose(found.moment[:, :n_classes], sent.moment * scale, rtol=1e-12)
        assert (found.gram == found.gram.T).all()
        assert not found.moment[:, n_classes:].any()


def test_the_gram_matrix_of_a_batch_is_symmetric_to_the_last_digit() -> None:
    rng = np.random.default_rng(0)
    found = HeadStatistics.of_targets(rng.normal(size=(32, 65)), np.ones((32, 1)), rng.random(32))
    assert (found.gram == found.gram.T).all()
    assert (of_triangle(upper_triangle(found.gram), 66) == found.gram).all()
