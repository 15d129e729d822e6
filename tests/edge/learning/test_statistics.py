"""Sufficient statistics: they add, subtract, travel, and determine a head."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.errors import LearningError
from edge.learning.solve import SHRINKAGE, solve
from edge.learning.statistics import HeadStatistics


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


def lda(features: np.ndarray, labels: np.ndarray, n_classes: int, x: np.ndarray) -> np.ndarray:
    """Discriminant scores from the definition: class means, pooled covariance shrunk to the mean variance."""
    means = np.stack([features[labels == c].mean(axis=0) for c in range(n_classes)])
    residuals = features - means[labels]
    covariance = sum(np.outer(r, r) for r in residuals) / len(features)
    d = features.shape[1]
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / d * np.eye(d)
    inverse = np.linalg.inv(covariance + 1e-9 * np.eye(d))
    return np.stack([x @ inverse @ mu - mu @ inverse @ mu / 2 for mu in means], axis=1)


@pytest.mark.parametrize("seed", range(5))
def test_the_solution_is_linear_discriminant_analysis(seed: int) -> None:
    features, labels = data(80, 5, 3, seed)
    weights, biases = solve(HeadStatistics.of(features, labels, 3))
    x = np.random.default_rng(seed).normal(size=(50, 5)) * 3
    expected = lda(features, labels, 3, x)
    expected -= expected.mean(axis=1, keepdims=True)  # the same for all classes: neither argmax nor softmax sees it
    np.testing.assert_allclose(x @ weights.T + biases, expected, rtol=1e-6, atol=1e-6)


def test_scaling_all_samples_alike_does_not_move_the_head() -> None:
    statistics = HeadStatistics.of(*data(80, 5, 3, 1), 3)
    for found, expected in zip(solve(statistics.scaled_to(7)), solve(statistics), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.floats(0, 1e3), st.floats(0, 1e3))
def test_a_class_that_was_never_seen_is_never_predicted(seed: int, scale: float, offset: float, far: float) -> None:
    features, labels = data(30, 4, 3, seed)
    labels[labels == 1] = 0
    offset *= scale
    features = features * scale + offset
    weights, biases = solve(HeadStatistics.of(features, labels, 3))
    weights, biases = weights.astype(np.float32), biases.astype(np.float32)
    x = (np.random.default_rng(seed).normal(size=(50, 4)) * far * scale + offset).astype(np.float32)
    assert np.isfinite(weights).all()
    assert not ((x @ weights.T + biases).argmax(axis=1) == 1).any()


def test_a_single_sample_gives_a_head() -> None:
    weights, biases = solve(HeadStatistics.of(np.array([[1.0, 2.0]]), np.array([1]), 3))
    assert (np.array([[1.0, 2.0], [-50.0, 9.0]]) @ weights.T + biases).argmax(axis=1).tolist() == [1, 1]


def test_refuses_to_solve_from_nothing_or_from_what_no_samples_are() -> None:
    with pytest.raises(LearningError, match="no samples"):
        solve(HeadStatistics.empty(3, 2))
    huge = HeadStatistics(np.diag([4.0, 4.0]), np.array([[1e200, 0.0], [2.0, 2.0]]))
    # Of variance -1e-9 / 0.98, which is what the constant on the diagonal makes zero.
    singular = HeadStatistics(np.diag([1.0 - 1e-9 / 0.98, 1.0]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    for crafted in (huge, singular):
        try:
            found = solve(crafted)
        except LearningError:
            continue
        assert all(np.isfinite(array.astype(np.float32)).all() for array in found)
