"""Which statistics are taken for garbage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge.contract.errors import LearningError
from edge.learning.solve import solve
from edge.learning.statistics import HeadStatistics
from edge.merging.screening import Screening, _medians_of_others, screen_statistics

Generator = np.random.Generator

# Statistics: ten classes in 24 dimensions, features not below zero as after a ReLU.

N_CLASSES, N_FEATURES = 10, 24
MEANS = np.random.default_rng(7).uniform(0, 4, (N_CLASSES, N_FEATURES))


def samples(labels: np.ndarray, rng: Generator, shift: float = 0.0) -> np.ndarray:
    """Features of these classes; `shift` is what is special about a device."""
    return np.maximum(
        0, MEANS[labels] + rng.normal(size=(len(labels), N_FEATURES)) + shift * rng.normal(size=N_FEATURES)
    )


def of(features: np.ndarray, labels: np.ndarray) -> HeadStatistics:
    """As they arrive: through float32."""
    sent = HeadStatistics.of(features, labels, N_CLASSES).to_tensors()
    return HeadStatistics.from_tensors(sent, N_FEATURES, N_CLASSES)


def fleet(rng: Generator, n_devices: int = 30, shift: float = 0.2) -> list[tuple[np.ndarray, np.ndarray]]:
    """Features and labels of devices with two classes each, 10 to 60 samples."""
    found = []
    for i in range(n_devices):
        labels = rng.permutation(np.resize([2 * i % N_CLASSES, (2 * i + 1) % N_CLASSES], rng.integers(10, 61)))
        found.append((samples(labels, rng, shift), labels))
    return found


def prior() -> HeadStatistics:
    """Of the world before the devices came: the features were mirrored."""
    rng = np.random.default_rng(99)
    labels = rng.integers(0, N_CLASSES, 500)
    return of(samples(labels, rng)[:, ::-1], labels).scaled_to(20)


def accuracy(statistics: HeadStatistics) -> float:
    weights, biases = solve(statistics)
    rng = np.random.default_rng(5)
    labels = rng.integers(0, N_CLASSES, 1000)
    return float(((samples(labels, rng) @ weights.T + biases).argmax(axis=1) == labels).mean())


def random_matrices(x: np.ndarray, y: np.ndarray, rng: Generator) -> HeadStatistics:
    honest = of(x, y)
    gram = rng.normal(size=honest.gram.shape) * np.abs(honest.gram).mean()
    gram = gram + gram.T
    gram[np.diag_indices_from(gram)] = np.abs(np.diag(gram))
    moment = rng.normal(size=honest.moment.shape) * np.abs(honest.moment).mean()
    gram[-1, -1], moment[-1] = len(y), honest.class_counts
    return HeadStatistics(gram, moment)


def not_of_samples(x: np.ndarray, y: np.ndarray, rng: Generator) -> HeadStatistics:
    """Sums that agree with each other, of a Gram matrix with a negative eigenvalue."""
    honest = of(x, y)
    direction = np.append(rng.normal(size=N_FEATURES), 0.0)
    direction /= np.linalg.norm(direction)
    gram = honest.gram - 0.5 * float(np.trace(honest.gram)) * np.outer(direction, direction) / N_FEATURES
    gram[np.diag_indices_from(gram)] = np.maximum(np.diag(gram), np.diag(honest.gram) * 0.1)
    return HeadStatistics(gram, honest.moment)


def flipped_bits(x: np.ndarray, y: np.ndarray, rng: Generator) -> HeadStatistics:
    honest = of(x, y)
    gram = honest.gram.astype(np.float32)
    i, j = rng.integers(0, N_FEATURES, 2)
    gram[i, j] = gram[j, i] = -16 * (1 + np.abs(gram[i, j]))
    return HeadStatistics(gram.astype(np.float64), honest.moment)


def moments_flipped(x: np.ndarray, y: np.ndarray, rng: Generator) -> HeadStatistics:
    honest = of(x, y)
    return HeadStatistics(honest.gram, np.concatenate([-honest.moment[:-1], honest.moment[-1:]]))


def classes_permuted(x: np.ndarray, y: np.ndarray, rng: Generator) -> HeadStatistics:
    return of(x, (y + 3) % N_CLASSES)


def classes_swapped(x: np.ndarray, y: np.ndarray, rng: Generator) -> HeadStatistics:
    return of(x, np.where(y == y.min(), y.max(), y.min()))


def not_finite(x: np.ndarray, y: np.ndarray, rng: Generator) -> HeadStatistics:
    honest = of(x, y)
    return HeadStatistics(honest.gram, np.where(honest.moment > 3, np.nan, honest.moment))


GARBAGE: dict[str, Callable[[np.ndarray, np.ndarray, Generator], HeadStatistics]] = {
    "random matrices": random_matrices,
    "not of samples": not_of_samples,
    "flipped bits": flipped_bits,
    "not finite": not_finite,
    "moments flipped": moments_flipped,
    "features flipped": lambda x, y, rng: of(-x, y),
    "features scaled": lambda x, y, rng: of(1e3 * x, y),
    "features scaled down": lambda x, y, rng: of(1e-3 * x, y),
    "sums scaled": lambda x, y, rng: of(x, y).scaled_to(1e3 * len(y)),
    "a noisy sensor": lambda x, y, rng: of(x + 4 * rng.normal(size=x.shape), y),
    "features of noise": lambda x, y, rng: of(np.abs(rng.normal(size=x.shape)) * np.sqrt((x**2).mean()), y),
    "classes permuted": classes_permuted,
    "classes swapped": classes_swapped,
    "labels shuffled": lambda x, y, rng: of(x, rng.permutation(y)),
    "no samples": lambda x, y, rng: HeadStatistics.empty(N_FEATURES, N_CLASSES),
    "features of zeros": lambda x, y, rng: of(0 * x, y),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_refused_and_honest_devices_with_two_classes_are_let_through(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bad = {0, 11, 22}  # of three different pairs of classes
    sent = [GARBAGE[kind](x, y, rng) if i in bad else of(x, y) for i, (x, y) in enumerate(fleet(rng))]
    refused = screen_statistics(sent, prior()).refused
    assert refused.keys() == bad
    merged = sum((s for i, s in enumerate(sent) if i not in refused), start=prior())
    assert accuracy(merged) >= 0.97


REASONS = {
    "not finite": "not finite",
    "moments flipped": "not those of its Gram matrix",
    "not of samples": "negative eigenvalues",
    "features scaled": "larger or smaller",
    "features scaled down": "larger or smaller",
    "features of zeros": "larger or smaller",
    "sums scaled": "far more samples",
    "features flipped": "other names",
    "a noisy sensor": "say little",
    "classes permuted": "not closest",
    "classes swapped": "other names",
    "labels shuffled": "say little",
    "no samples": "no samples",
}


@pytest.mark.parametrize(("kind", "reason"), REASONS.items())
def test_says_why(kind: str, reason: str) -> None:
    rng = np.random.default_rng(0)
    sent = [GARBAGE[kind](x, y, rng) if i == 7 else of(x, y) for i, (x, y) in enumerate(fleet(rng))]
    refused = screen_statistics(sent, prior()).refused
    assert refused.keys() == {7}
    assert reason in refused[7]


def test_says_what_no_sums_have() -> None:
    sent = [of(x, y) for x, y in fleet(np.random.default_rng(0), 10)]
    honest = sent[3]
    askew, negative = honest.gram.copy(), honest.moment.copy()
    askew[2, 5] *= 1.1
    negative[-1, :2] += [-1e3, 1e3]  # the sum stays
    for bad, reason in (
        (HeadStatistics(askew, honest.moment), "symmetric"),
        (HeadStatistics(honest.gram, negative), "negative count"),
    ):
        refused = screen_statistics([*sent[:3], bad, *sent[4:]]).refused
        assert refused.keys() == {3}
        assert reason in refused[3]


def test_classes_that_moved_apart_are_found_though_their_mean_did_not_move() -> None:
    devices = fleet(np.random.default_rng(0))
    x, y = devices[7]
    x, y = np.concatenate([x[y == c][:5] for c in np.unique(y)]), np.repeat(np.unique(y), 5)
    # No class lies in this direction from another.
    direction = np.linalg.svd(MEANS - MEANS.mean(axis=0))[2][-1]
    sides = np.where(y == y.min(), 1.0, -1.0)
    sent = [of(*device) for device in devices]
    sent[7] = of(x + 15 * sides[:, None] * direction, y)
    refused = screen_statistics(sent).refused
    assert refused.keys() == {7}
    assert "far from other devices' means of the same classes" in refused[7]


@given(hnp.arrays(np.float64, (7, 2), elements=st.integers(0, 5)), hnp.arrays(bool, 7))
def test_the_median_of_the_others_is_its_definition(values: np.ndarray, has: np.ndarray) -> None:
    found = _medians_of_others(values, has) if has.any() else np.full((7, 2), np.nan)
    for i in range(7):
        others = values[has & (np.arange(7) != i)]
        np.testing.assert_array_equal(found[i], np.median(others, axis=0) if len(others) else np.full(2, np.nan))


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_refused_when_a_third_of_the_devices_are_lost(kind: str) -> None:
    rng = np.random.default_rng(4)
    devices = fleet(rng)
    kept = [i for i in range(30) if i % 10 not in (1, 4, 8)]
    bad = {0, 12, 26}
    sent = {i: GARBAGE[kind](*devices[i], rng) if i in bad else of(*devices[i]) for i in kept}
    refused = screen_statistics(list(sent.values()), prior()).refused
    merged = sum((s for k, s in enumerate(sent.values()) if k not in refused), start=prior())
    assert {kept[i] for i in refused} == bad
    assert accuracy(merged) >= 0.95


@pytest.mark.parametrize("n_devices", [1, 2, 3, 5, 30, 60])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_honest_devices_pass_however_many_they_are(n_devices: int, shift: float) -> None:
    for seed in range(3):
        sent = [of(x, y) for x, y in fleet(np.random.default_rng(seed), n_devices, shift)]
        assert screen_statistics(sent, prior()) == Screening({}, {}, {})
        assert screen_statistics(sent) == Screening({}, {}, {})


def test_honest_devices_with_a_single_sample_pass() -> None:
    rng = np.random.default_rng(3)
    labels = [np.resize(rng.integers(0, N_CLASSES, 2), n) for n in (1, 1, 1, 2, 3, 5, 200, 8, 8, 20) * 4]
    sent = [of(samples(y, rng), y) for y in labels]
    assert screen_statistics(sent, prior()) == Screening({}, {}, {})


# At 3 standard deviations a single sample is often nearer to another class.
@pytest.mark.parametrize(("noise", "tolerated"), [(0.0, 0), (1.5, 0), (3.0, 3)])
def test_honest_devices_with_few_samples_pass_in_hard_tasks_too(noise: float, tolerated: int) -> None:
    refused = 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        labels = [np.resize(rng.permutation(N_CLASSES)[:2], n) for n in (1, 1, 2, 3, 40, 5, 60, 8) * 6]
        x = [np.maximum(0, samples(y, rng) + noise * rng.normal(size=(len(y), N_FEATURES))) for y in labels]
        refused += len(screen_statistics([of(*device) for device in zip(x, labels, strict=True)]).refused)
    assert refused <= tolerated


def pair_of_classes(first: int, n: int, rng: Generator, *, is_swapped: bool = False) -> HeadStatistics:
    y = np.resize([first, first + 1], n)
    x = samples(y, rng)
    return classes_swapped(x, y, rng) if is_swapped else of(x, y)


def test_two_that_swapped_a_pair_of_labels_against_two_that_did_not_are_undecided() -> None:
    rng = np.random.default_rng(0)
    others = [pair_of_classes(first, 40, rng) for first in (2, 4, 6, 8) for _ in range(3)]
    disputed = [pair_of_classes(0, 40, rng, is_swapped=i < 2) for i in range(4)]
    found = screen_statistics([*others, *disputed])
    assert not found.refused
    assert len(found.undecided) == 2
    assert min(found.undecided) >= len(others)
    third = screen_statistics([*others, *disputed, pair_of_classes(0, 40, rng)])
    assert third == Screening(dict.fromkeys([12, 13], third.refused[12]), {}, {})


def test_garbage_is_refused_though_it_has_a_few_samples_of_a_class_that_only_one_other_device_has() -> None:
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.resize([0, 1], 40), np.full(4, 9)])
    sent = [pair_of_classes(0, 40, rng) for _ in range(4)]
    swapped = np.where(labels < 9, 1 - labels, labels)
    sent += [of(samples(labels, rng), labels), of(samples(labels, rng), swapped)]
    assert screen_statistics(sent).refused.keys() == {5}


def test_three_of_which_no_two_agree_are_undecided() -> None:
    rng = np.random.default_rng(0)
    sent = [of(samples(y, rng), (y + i) % N_CLASSES) for i in range(3) for y in [np.resize([0, 1, 2, 3], 80)]]
    found = screen_statistics(sent)
    assert not found.refused
    assert len(found.undecided) == 2


def test_a_class_that_only_one_device_has_passes() -> None:
    rng = np.random.default_rng(0)
    devices = [np.resize([0, 1], 30)] * 5 + [np.full(30, 9)]
    assert screen_statistics([of(samples(y, rng), y) for y in devices]) == Screening({}, {}, {})


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)), st.sampled_from(sorted(GARBAGE)))
def test_what_is_refused_does_not_depend_on_the_order(order: list[int], kind: str) -> None:
    rng = np.random.default_rng(1)
    devices = fleet(rng, 12)
    sent = [GARBAGE[kind](x, y, rng) if i == 5 else of(x, y) for i, (x, y) in enumerate(devices)]
    refused = screen_statistics([sent[i] for i in order]).refused
    assert {order[i] for i in refused} == set(screen_statistics(sent).refused)


def sent(statistics: HeadStatistics) -> HeadStatistics:
    """As it arrives: rounded to float32, which leaves a scatter that is neither zero nor one of samples."""
    n_features, n_outputs = len(statistics.gram) - 1, statistics.moment.shape[1]
    return HeadStatistics.from_tensors(statistics.to_tensors(), n_features, n_outputs)


NO_SCATTER = {
    "one label each, of other classes": [[0], [1], [2]],
    "one label each, of one class": [[4], [4], [4]],
    "one label of each class": [[0, 1, 2], [1, 2, 3], [2, 3, 4]],
    "one device": [[0]],
    "many devices": [[i % N_CLASSES] for i in range(25)],
}


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("labels", NO_SCATTER.values(), ids=NO_SCATTER.keys())
def test_statistics_without_scatter_pass(labels: list[list[int]], offset: float) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        found = [sent(of(samples(np.array(y), rng) + offset, np.array(y))) for y in labels]
        assert screen_statistics(found) == Screening({}, {}, {})


def test_identical_samples_pass_though_other_devices_have_others() -> None:
    rng = np.random.default_rng(0)
    found = []
    for c in (0, 0, 0, 1, 2):
        y = np.full(10, c)
        found.append(sent(of(np.repeat(samples(y[:1], rng), 10, axis=0), y)))
    assert screen_statistics(found) == Screening({}, {}, {})


@pytest.mark.parametrize("is_classifier", [True, False])
@pytest.mark.parametrize("value", [0.0, 1e-20, 3.0, 1e15])
def test_features_without_variance_pass(value: float, is_classifier: bool) -> None:
    x, y = np.full((6, 7), value), np.arange(6) % 3
    assert screen_statistics([sent(HeadStatistics.of(x, y, 3))] * 4, None, is_classifier) == Screening({}, {}, {})


def test_devices_with_scatter_are_not_the_odd_ones_among_devices_without() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        labels = [[0], [1], [2], [3], np.resize([4, 5], 40), np.resize([6, 7], 40)]
        found = [sent(of(samples(np.array(y), rng), np.array(y))) for y in labels]
        assert screen_statistics(found) == Screening({}, {}, {})


def test_garbage_is_found_though_most_devices_have_no_scatter() -> None:
    rng = np.random.default_rng(0)
    single = [sent(of(samples(y, rng), y)) for y in np.arange(8)[:, None] % N_CLASSES]
    plain = [sent(of(samples(y, rng), y)) for y in np.resize([0, 1, 2, 3], (4, 40))]
    y = np.resize([0, 1, 2, 3], 40)
    noisy = sent(of(samples(y, rng) + 4 * rng.normal(size=(40, N_FEATURES)), y))
    found = screen_statistics([*single, *plain, noisy])
    assert found.left_out.keys() == {12}
    assert not found.refused, "its labels are right all the same"


def test_eigenvalues_below_zero_that_pass_for_rounding_end_no_screening() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(4):
        y = np.resize([0, 1], 20)
        honest = of(300 + samples(y, rng), y)
        direction = rng.normal(size=N_FEATURES)
        direction -= direction.mean()  # the features' mean is large
        direction = np.append(direction / np.linalg.norm(direction), 0.0)
        gram = honest.gram - 0.9e-5 * np.trace(honest.gram) * np.outer(direction, direction)
        found.append(HeadStatistics(gram, honest.moment))
    assert not any("negative" in reason for reason in screen_statistics(found).refused.values())


def test_quantities_have_no_classes_to_compare() -> None:
    rng = np.random.default_rng(2)
    sent = []
    for i in range(9):
        x = rng.normal(size=(40, 5)) * (100.0 if i == 4 else 1.0)
        sent.append(HeadStatistics.of_targets(x, x[:, :2] - 3.0, np.ones(40)))
    assert screen_statistics(sent, is_classifier=False).refused.keys() == {4}


def test_nothing_comes_of_nothing_and_other_shapes_are_refused() -> None:
    assert screen_statistics([]) == Screening({}, {}, {})
    with pytest.raises(LearningError, match="different heads"):
        screen_statistics([HeadStatistics.empty(3, 2), HeadStatistics.empty(3, 3)])
    with pytest.raises(LearningError, match="different heads"):
        screen_statistics([HeadStatistics.empty(3, 2)], HeadStatistics.empty(4, 2))


# Worlds of their own


def camera(seed: int, rng: Generator, n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """What a device with other gains and offsets sees; the labels are right. The seed 0 is the common world."""
    y = rng.permutation(np.resize(np.arange(N_CLASSES), n))
    own = np.random.default_rng(seed)
    gain, offset = own.uniform(0.5, 1.5, N_FEATURES), own.uniform(0, 3, N_FEATURES)
    x = samples(y, rng)
    return (x, y) if seed == 0 else (x * gain + offset, y)


MEANINGLESS = (
    "features flipped",
    "features of noise",
    "classes permuted",
    "classes swapped",
    "labels shuffled",
)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_device_with_a_world_of_its_own_is_set_aside_and_garbage_is_refused_beside_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sent = [of(*camera(0, rng)) for _ in range(7)] + [of(*camera(seed, rng))]
    found = screen_statistics(sent)
    assert (set(found.refused), set(found.set_aside), set(found.undecided)) == (set(), {7}, set())
    assert found.left_out.keys() == {7}
    for kind in MEANINGLESS:
        sent[2] = GARBAGE[kind](*camera(0, rng), rng)
        found = screen_statistics(sent)
        assert (set(found.refused), set(found.set_aside)) == ({2}, {7}), kind
        # The same garbage from a world of its own is no less garbage.
        bad = GARBAGE[kind](*camera(seed + 10, rng), rng)
        assert screen_statistics([*(of(*camera(0, rng)) for _ in range(7)), bad]).refused.keys() == {7}, kind


def test_where_every_device_has_its_own_world_all_are_merged_but_garbage() -> None:
    rng = np.random.default_rng(0)
    cameras = [camera(seed, rng) for seed in range(1, 8)]
    honest = [of(*each) for each in cameras]
    assert not screen_statistics(honest).left_out
    for kind in MEANINGLESS:
        for bad in (0, 4):
            sent = [GARBAGE[kind](*cameras[i], rng) if i == bad else each for i, each in enumerate(honest)]
            assert screen_statistics(sent).left_out.keys() == {bad}, kind
