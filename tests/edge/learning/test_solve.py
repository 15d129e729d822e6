"""Closed-form heads: against their definitions, against scikit-learn, and the factor against one made anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.learning import solve as solve_module
from edge.learning.solve import RIDGE_SAMPLES, SHRINKAGE, UNSEEN_LOGIT, Factor, Method, head_of, solve
from edge.learning.statistics import HeadStatistics

Array = npt.NDArray[np.float64]
METHODS: tuple[Method, ...] = ("discriminant", "ridge", "means")


def data(n: int, d: int, n_classes: int, seed: int) -> tuple[Array, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    return rng.normal(size=(n, d)) + rng.normal(size=(n_classes, d))[labels] * 2, labels


def of(features: npt.NDArray[Any], labels: npt.NDArray[Any], k: int, weights: Array | None = None) -> HeadStatistics:
    return HeadStatistics.of_targets(features, np.eye(k)[labels], np.ones(len(labels)) if weights is None else weights)


# What is solved


def lda(features: Array, labels: npt.NDArray[np.int64], n_classes: int, x: Array, weights: Array) -> Array:
    """Discriminant scores from the definition: class means, pooled covariance shrunk to the mean variance."""
    means = np.stack(
        [np.average(features[labels == c], axis=0, weights=weights[labels == c]) for c in range(n_classes)]
    )
    residuals = features - means[labels]
    covariance = (residuals.T * weights) @ residuals / weights.sum()
    d = features.shape[1]
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / d * np.eye(d)
    inverse = np.linalg.inv(covariance + 1e-9 * np.eye(d))
    return np.stack([x @ inverse @ mu - mu @ inverse @ mu / 2 for mu in means], axis=1)


@pytest.mark.parametrize("seed", range(5))
def test_the_discriminant_is_linear_discriminant_analysis(seed: int) -> None:
    features, labels = data(80, 5, 3, seed)
    rng = np.random.default_rng(seed)
    weights = rng.random(80)
    found_weights, biases = solve(of(features, labels, 3, weights))
    x = rng.normal(size=(50, 5)) * 3
    expected = lda(features, labels, 3, x, weights)
    expected -= expected.mean(axis=1, keepdims=True)  # the same for all classes: neither argmax nor softmax sees it
    np.testing.assert_allclose(x @ found_weights.T + biases, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_ridge_is_that_of_scikit_learn(seed: int) -> None:
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(seed)
    features = rng.normal(3.0, 1.0, size=(60, 5)) * np.array([1.0, 2.0, 0.5, 1.0, 3.0])
    targets = features @ rng.normal(size=(5, 2)) + 7.0 + rng.normal(size=(60, 2))
    weights = rng.random(60)
    statistics = HeadStatistics.of_targets(features, targets, weights)
    mean = np.average(features, axis=0, weights=weights)
    scatter = ((features - mean).T * weights) @ (features - mean)
    rho = RIDGE_SAMPLES / weights.sum() * np.trace(scatter) / 5 + 1e-9 * weights.sum()
    expected = Ridge(alpha=rho).fit(features, targets, sample_weight=weights)
    found, biases = solve(statistics, "ridge")
    np.testing.assert_allclose(found, expected.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(biases, expected.intercept_, rtol=1e-7, atol=1e-7)


def test_ridge_on_classes_is_least_squares_on_their_one_hot_rows() -> None:
    features, labels = data(80, 5, 3, 0)
    weights, biases = solve(of(features, labels, 3), "ridge")
    outputs = features @ weights.T + biases
    np.testing.assert_allclose(outputs.sum(axis=1), 1.0, atol=1e-9)  # as the rows that it is fitted to
    assert (outputs.argmax(axis=1) == labels).mean() > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_means_answers_the_nearest_class_mean(seed: int) -> None:
    features, labels = data(80, 5, 3, seed)
    weights, biases = solve(of(features, labels, 3), "means")
    means = np.stack([features[labels == c].mean(axis=0) for c in range(3)])
    x = np.random.default_rng(seed).normal(size=(200, 5)) * 3
    distances = np.square(x[:, None] - means).sum(axis=2)
    assert ((x @ weights.T + biases).argmax(axis=1) == distances.argmin(axis=1)).all()


@pytest.mark.parametrize("method", ["discriminant", "means"])  # ridge is shrunk less, the more samples there are
def test_scaling_all_samples_alike_does_not_move_the_head(method: Method) -> None:
    statistics = of(*data(80, 5, 3, 1), 3)
    for found, expected in zip(solve(statistics.scaled_to(7), method), solve(statistics, method), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("d", [200, 1040])
def test_a_thousand_features_that_depend_on_each_other_are_solved_as_exactly_as_a_few(d: int) -> None:
    """Samples are few and features many, as of a wide network: without the ridge there would be nothing to invert."""
    rng = np.random.default_rng(0)
    features = np.maximum(rng.random((120, 64)) @ rng.normal(size=(64, d)), 0.0)
    labels = rng.integers(0, 4, 120)
    statistics = of(features, labels, 4)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(4)])
    scatter = (features - means[labels]).T @ (features - means[labels])
    ridge = SHRINKAGE / (1.0 - SHRINKAGE) * np.trace(scatter) / d
    wanted = np.linalg.solve(scatter + ridge * np.eye(d), (means - means.mean(axis=0)).T).T * 120 / (1.0 - SHRINKAGE)
    np.testing.assert_allclose(solve(statistics)[0], wanted, rtol=1e-6, atol=1e-8 * np.abs(wanted).max())


@pytest.mark.parametrize("method", METHODS)
def test_a_class_that_stands_alone_gives_finite_heads(method: Method) -> None:
    weights, biases = solve(of(np.full((5, 3), 2.0), np.zeros(5, int), 3), method)
    assert np.isfinite(weights).all()
    assert (np.array([[2.0, 2.0, 2.0], [-50.0, 9.0, 0.0]]) @ weights.T + biases).argmax(axis=1).tolist() == [0, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["discriminant", "means"]),
    st.integers(0, 2**32 - 1),
    st.floats(1e-3, 1e3),
    st.floats(0, 1e3),
    st.floats(0, 1e3),
)
def test_a_class_that_was_never_seen_is_never_predicted(
    method: Method, seed: int, scale: float, offset: float, far: float
) -> None:
    features, labels = data(30, 4, 3, seed)
    labels[labels == 1] = 0
    offset *= scale
    features = features * scale + offset
    weights, biases = (array.astype(np.float32) for array in solve(of(features, labels, 3), method))
    x = (np.random.default_rng(seed).normal(size=(50, 4)) * far * scale + offset).astype(np.float32)
    assert np.isfinite(weights).all()
    assert not ((x @ weights.T + biases).argmax(axis=1) == 1).any()
    assert not weights[1].any()
    assert biases[1] == UNSEEN_LOGIT


def test_ridge_never_predicts_a_class_that_was_never_seen() -> None:
    features, labels = data(30, 4, 3, 0)
    labels[labels == 1] = 0
    weights, biases = solve(of(features, labels, 3), "ridge")
    x = np.random.default_rng(0).normal(size=(500, 4)) * 100
    assert not ((x @ weights.T + biases).argmax(axis=1) == 1).any()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(METHODS),
    st.integers(1, 12),
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
)
def test_any_shape_gives_a_finite_head_that_answers_what_was_seen(
    method: Method, n: int, d: int, k: int, seed: int
) -> None:
    features, labels = data(n, d, k, seed)
    weights, biases = solve(of(features, labels, k), method)
    assert weights.shape == (k, d)
    assert biases.shape == (k,)
    assert np.isfinite(weights).all()
    assert np.isfinite(biases).all()
    assert set((features @ weights.T + biases).argmax(axis=1)) <= set(labels)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 7), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_ridge_gives_the_mean_at_the_mean(n: int, d: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, targets = rng.normal(size=(n, d)), rng.normal(size=(n, k))
    weights, biases = solve(HeadStatistics.of_targets(features, targets, np.ones(n)), "ridge")
    np.testing.assert_allclose(features.mean(axis=0) @ weights.T + biases, targets.mean(axis=0), atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_refuses_to_solve_from_nothing(method: Method) -> None:
    with pytest.raises(LearningError, match="no samples"):
        solve(HeadStatistics.empty(3, 2), method)


@pytest.mark.parametrize("method", METHODS)
def test_gives_a_finite_head_or_refuses_sums_that_no_samples_have(method: Method) -> None:
    huge = HeadStatistics(np.diag([4.0, 4.0]), np.array([[1e200, 0.0], [2.0, 2.0]]))
    # Of variance -1e-9 / 0.98, which is what the constant on the diagonal makes zero.
    singular = HeadStatistics(np.diag([1.0 - 1e-9 / 0.98, 1.0]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    negative = HeadStatistics(np.diag([-4.0, 4.0]), np.array([[1.0, 0.0], [2.0, 2.0]]))
    not_numbers = HeadStatistics(np.full((2, 2), np.nan), np.full((2, 2), np.nan))
    not_numbers.gram[-1, -1], not_numbers.moment[-1] = 4.0, 2.0
    for crafted in (huge, singular, negative, not_numbers):
        try:
            found = solve(crafted, method)
        except LearningError:
            continue
        assert all(np.isfinite(array.astype(np.float32)).all() for array in found)
    with pytest.raises(LearningError):
        solve(not_numbers, method)


# The factor


def near(found: tuple[Array, Array], expected: tuple[Array, Array], tolerance: float) -> None:
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def added(factor: Factor, x: npt.NDArray[Any], target: npt.NDArray[Any], label: int, weight: float = 1.0) -> bool:
    return factor.add(x[None], target[None], [label], [weight])


@pytest.mark.parametrize("method", METHODS)
def test_samples_that_are_added_together_are_as_those_that_come_alone(method: Method) -> None:
    rng = np.random.default_rng(7)
    features, labels = data(400, 12, 5, 4)
    features, one_hot = features + 3.0, np.eye(5)[labels]
    total = HeadStatistics.of_targets(features[:10], one_hot[:10], np.ones(10))  # of some classes only
    factor, at, kept = Factor(total, method), 10, 0
    while at < len(features):
        rows = slice(at, min(at + int(rng.integers(1, 40)), len(features)))
        weights = rng.random(rows.stop - at) * (rng.random(rows.stop - at) > 0.2)
        at = rows.stop
        total = total + HeadStatistics.of_targets(features[rows], one_hot[rows], weights)
        if factor.add(features[rows], one_hot[rows], labels[rows].tolist(), weights.tolist()):
            kept += 1
        else:
            factor = Factor(total, method)
        near(factor.head(), Factor(total, method).head(), 1e-9)
    assert kept > 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_factor_kept_up_to_date_is_one_made_anew(method: Method, weighted: bool) -> None:
    rng = np.random.default_rng(4)
    features, labels = data(600, 12, 5, 4)
    features += 3.0
    weights = rng.random(600) * (rng.random(600) > 0.1) if weighted else np.ones(600)
    one_hot = np.eye(5)[labels]
    total = HeadStatistics.of_targets(features[:10], one_hot[:10], weights[:10])
    factor = Factor(total, method)
    kept = 0
    for i in range(10, 600):
        total = total + HeadStatistics.of_targets(features[i : i + 1], one_hot[i : i + 1], weights[i : i + 1])
        if added(factor, features[i], one_hot[i], int(labels[i]), float(weights[i])):
            kept += 1
        else:
            factor = Factor(total, method)
        if i % 50 == 0 or i == 599:
            near(factor.head(), Factor(total, method).head(), 1e-9)
    assert kept > 500  # it is hardly ever made anew


@pytest.mark.parametrize("seed", range(3))
def test_a_factor_of_quantities_is_one_made_anew(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, targets, weights = rng.normal(2, 1, (300, 6)), rng.normal(-4, 2, (300, 3)), rng.random(300)
    total = HeadStatistics.of_targets(features[:5], targets[:5], weights[:5])
    factor = Factor(total, "ridge")
    for i in range(5, 300):
        total = total + HeadStatistics.of_targets(features[i : i + 1], targets[i : i + 1], weights[i : i + 1])
        if not added(factor, features[i], targets[i], 0, float(weights[i])):
            factor = Factor(total, "ridge")
        near(factor.head(), Factor(total, "ridge").head(), 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_factor_takes_in_a_class_that_it_had_not_seen(method: Method) -> None:
    features, labels = data(60, 4, 4, 0)
    first = labels < 3
    total = of(features[first], labels[first], 4)
    factor = Factor(total, method)
    assert factor.sampled.tolist() == [True, True, True, False]
    for x, label in zip(features[~first], labels[~first], strict=True):
        total = total + of(x[None], np.array([label]), 4)
        if not added(factor, x, np.eye(4)[label], int(label)):
            factor = Factor(total, method)
        near(factor.head(), Factor(total, method).head(), 1e-9)
    assert factor.seen.all()
    assert factor.sampled.all()


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_without_weight_changes_nothing(method: Method) -> None:
    features, labels = data(30, 4, 3, 0)
    factor = Factor(of(features, labels, 3), method)
    before = factor.head()
    assert added(factor, features[0] + 9, np.eye(3)[1], 1, 0.0)
    for found, expected in zip(factor.head(), before, strict=True):
        assert (found == expected).all()


@pytest.mark.parametrize("method", ["discriminant", "ridge"])
def test_says_when_it_must_be_made_anew(method: Method) -> None:
    features, labels = data(30, 4, 3, 0)
    factor = Factor(of(features, labels, 3), method)
    assert not added(factor, features[0] + 1e3, np.eye(3)[1], 1)  # the scatter is another one now


@pytest.mark.parametrize("method", METHODS)
def test_the_statistics_that_were_given_stay_as_they_are(method: Method) -> None:
    features, labels = data(30, 4, 3, 0)
    given = of(features, labels, 3)
    gram, moment = given.gram.copy(), given.moment.copy()
    factor = Factor(given, method)
    added(factor, features[0], np.eye(3)[1], 1)
    factor.head()
    assert (given.gram == gram).all()
    assert (given.moment == moment).all()


@pytest.mark.parametrize("n_features", [5, 64, 300])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_one_sample_a_class_is_told_apart_though_rounding_is_all_that_is_in_the_scatter(
    n_features: int, offset: float
) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x = np.abs(rng.normal(offset, 1.0, (3, n_features))).astype(np.float32)
        total = HeadStatistics.empty(n_features, 4)
        for i in range(3):
            tensors = HeadStatistics.of(x[i : i + 1], np.array([i]), 4).to_tensors()
            total = total + HeadStatistics.from_tensors(tensors, n_features, 4)
        weights, biases = solve(total)
        near = x + rng.normal(0.0, 0.02, x.shape)
        assert (near @ weights.T + biases).argmax(axis=1).tolist() == [0, 1, 2]


def test_identical_samples_of_a_quantity_are_answered_by_their_mean_and_not_by_noise() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x = np.repeat(np.abs(rng.normal(3.0, 1.0, (1, 64))), 7, axis=0).astype(np.float32)
        own = HeadStatistics.of_targets(x, np.full((7, 1), 0.3), np.ones(7))
        weights, biases = solve(HeadStatistics.from_tensors(own.to_tensors(), 64, 1, is_classifier=False), "ridge")
        answers = (x + rng.normal(0.0, 0.1, x.shape)) @ weights.T + biases
        assert np.abs(answers - 0.3).max() < 0.05


def test_the_head_of_statistics_has_the_names_of_the_head_and_is_solved_by_the_method_that_is_asked_for() -> None:
    statistics = of(*data(20, 3, 2, 0), 2)
    for method in METHODS:
        weights, biases = solve(statistics, method)
        head = head_of(statistics, LinearLayer(weight="fc.weight", bias="fc.bias", input="features"), method)
        assert (head["fc.weight"] == weights.astype(np.float32)).all()
        assert (head["fc.bias"] == biases.astype(np.float32)).all()
        assert list(head_of(statistics, LinearLayer(weight="w", bias=None, input="features"), method)) == ["w"]


@pytest.mark.parametrize("n", [1, 2, 63, 191, 192, 193, 385, 400])
def test_an_inverse_is_right_and_exactly_symmetric_whatever_its_size(n: int) -> None:
    x = np.random.default_rng(n).normal(size=(2 * n, n))
    for matrix in (
        x.T @ x + np.eye(n),
        np.eye(n) - 2.0 * np.outer(np.ones(n), np.ones(n)),
    ):  # one is indefinite
        inverse = solve_module._inverse(matrix)
        assert np.array_equal(inverse, inverse.T)
        np.testing.assert_allclose(inverse @ matrix, np.eye(n), atol=1e-9)
