"""What devices told under noise becomes statistics that samples can have, and noise is not taken for knowledge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError, LearningError
from edge.learning.disclosure import Disclosed, Noise
from edge.learning.exchange import HeadUpdate, Noised
from edge.learning.statistics import HeadStatistics
from edge.learning.subspace import Subspace, frame_of
from edge.merging.contributions import check_update
from edge.merging.merge import merge
from edge.merging.noised import likely
from edge.merging.pooling import pooled
from edge.merging.summaries import summary_of
from edge.merging.sums import shipped_statistics
from tests.support.contributions import merged_head, policy_of

R = 16


def subspace_of(bundle: Bundle) -> Subspace:
    return Subspace(shipped_statistics(bundle, 1.0))


def world(bundle: Bundle, seed: int, n: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Samples as the shipped statistics have them, each class moved by so many standard deviations."""
    subspace, rng = subspace_of(bundle), np.random.default_rng(seed)
    root, y = np.linalg.cholesky(subspace.covariance), rng.integers(0, 10, n)
    away = np.random.default_rng(5).normal(0, 1, (10, R))
    away *= shift / np.linalg.norm(away, axis=1, keepdims=True)
    steps = away * np.sqrt(subspace.within) @ subspace.outward.T
    return (subspace.means + steps)[y] + rng.normal(0, 1, (n, len(root))) @ root.T, y


def told(
    bundle: Bundle, seed: int, *, n: int = 60, epsilon: float = 8.0, shift: float = 3.0, added: tuple[str, ...] = ()
) -> HeadUpdate:
    """What a device says under noise."""
    noise, names = Noise(epsilon), (*bundle.manifest.class_names, *added)
    frame = frame_of(bundle.tensors(m.STATISTICS))
    x, y = world(bundle, seed, n, shift)
    if added:
        y[: n // 4] = 10
    points = subspace_of(bundle).coordinates(frame).of(x)
    found = Disclosed.nothing(R, len(names)).learned(points, y, np.ones(n)).closed(noise, seed.to_bytes(32, "big"), n)
    return HeadUpdate(
        learner="statistics",
        backbone=bundle.manifest.backbone_digest,
        lineage=f"noised{seed}",
        version=n,
        n_samples=n,
        base_release=0,
        tensors=dict(found.tensors),
        class_names=names if added else (),
        noised=Noised(epsilon=epsilon, delta=1e-5, variance=found.variance, frame=frame),
    )


def accuracy(bundle: Bundle, parameters: dict[str, np.ndarray], shift: float = 3.0) -> float:
    x, y = world(bundle, 99, 1000, shift)
    assert bundle.manifest.head is not None
    weight, bias = (parameters[spec.name] for spec in bundle.manifest.head.parameters)
    return float(((x @ weight.T + bias).argmax(axis=1) == y).mean())


merged_noised = partial(merged_head, merge_noised=True)


def test_many_devices_teach_through_the_noise(bundle: Bundle) -> None:
    """A fleet whose world has moved learns that; with more noise less, and never to its harm."""
    before = accuracy(bundle, bundle.head_parameters())
    after = {
        epsilon: accuracy(
            bundle, merged_noised(bundle, [told(bundle, i, n=200, epsilon=epsilon) for i in range(20)]).parameters
        )
        for epsilon in (0.5, 4.0, 16.0)
    }
    assert after[16.0] > before + 0.05
    assert after[16.0] > after[0.5] - 0.01
    assert after[4.0] >= before - 0.01
    assert after[0.5] >= before - 0.01


def test_what_comes_out_samples_can_have_whatever_the_noise_was(bundle: Bundle) -> None:
    subspace, frame = subspace_of(bundle), frame_of(bundle.tensors(m.STATISTICS))
    x, y = world(bundle, 1, 12, 2.0)
    begun = Disclosed.nothing(R, 10).learned(subspace.coordinates(frame).of(x), y, np.ones(12))
    was_negative = False
    for epsilon in (0.1, 2.0, 20.0):
        for seed in range(10):
            found = begun.closed(Noise(epsilon), seed.to_bytes(32, "big"), 12)
            was_negative |= bool((found.told.counts < 0).any() or np.linalg.eigvalsh(found.told.gram)[0] < 0)
            statistics, worth = likely(found.told, 12.0, found.variance, subspace)
            assert 0.0 <= worth <= 1.0
            assert statistics.n_samples == pytest.approx(12 * worth)
            if worth > 0:
                assert not isinstance(summary_of(statistics, is_classifier=True), str)
    assert was_negative, "else there was nothing to mend"


SHIPPED: dict[str, Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "constant": lambda rng: (np.ones((50, 20)), rng.integers(0, 3, 50)),
    "one class": lambda rng: (rng.normal(size=(50, 20)), np.zeros(50, int)),
    "a class without samples": lambda rng: (rng.normal(size=(50, 20)), rng.integers(0, 2, 50)),
    "one feature": lambda rng: (rng.normal(size=(50, 1)), rng.integers(0, 3, 50)),
    "fewer samples than features": lambda rng: (rng.normal(size=(6, 64)), np.arange(6) % 3),
    "far from zero": lambda rng: (rng.normal(size=(200, 30)) + 1e4, rng.integers(0, 3, 200)),
    "tiny": lambda rng: (1e-6 * rng.normal(size=(200, 30)), rng.integers(0, 3, 200)),
    "huge": lambda rng: (1e12 * rng.normal(size=(200, 30)), rng.integers(0, 3, 200)),
    "dead features": lambda rng: (rng.normal(size=(200, 30)) * (np.arange(30) < 10), rng.integers(0, 3, 200)),
}


@pytest.mark.parametrize("what", SHIPPED)
def test_whatever_was_shipped_there_are_coordinates_and_sums_that_samples_can_have(what: str) -> None:
    rng = np.random.default_rng(0)
    x, y = SHIPPED[what](rng)
    shipped = HeadStatistics.of(x.astype(np.float32), y, 3)
    subspace = Subspace(HeadStatistics.from_tensors(shipped.to_tensors(), x.shape[1], 3))
    there = np.tile(x, (20, 1)) + 3.0 * (x.std(axis=0) + 1e-9) * rng.normal(size=(20 * len(x), x.shape[1])).mean(axis=0)
    points = subspace.coordinates("").of(there)
    assert np.isfinite(points).all()
    begun = Disclosed.nothing(points.shape[1], 3).learned(points, np.tile(y, 20), np.ones(len(there)))
    for seed in range(5):
        told = begun.closed(Noise(20.0), bytes([seed]) * 32, 1)
        statistics, worth = likely(told.told, float(len(there)), told.variance, subspace)
        assert np.isfinite(statistics.gram).all()
        assert worth == 0 or not isinstance(summary_of(statistics, is_classifier=True), str)


def test_noise_alone_counts_nothing(bundle: Bundle) -> None:
    """Nobody who sends what it learned as it is counts less because others sent noise."""
    plain = told(bundle, 3, epsilon=0.2)
    release = merged_noised(bundle, [plain])
    assert "worth 0%" in release.origin
    shipped = shipped_statistics(bundle, 100.0)
    np.testing.assert_allclose(release.merged["moment"], shipped.moment, rtol=1e-4, atol=1e-3)
    assert release.included == {"noised3": 60}


def test_to_forget_a_device_is_the_merge_without_it(bundle: Bundle) -> None:
    updates = [told(bundle, i, n=200) for i in range(6)]
    without = merged_noised(bundle, updates[1:])
    again = merged_noised(bundle, updates[:0:-1])
    assert "noised0" not in without.included
    for name, array in without.parameters.items():
        np.testing.assert_allclose(again.parameters[name], array, rtol=1e-4, atol=1e-5)


def test_who_would_add_more_noise_than_knowledge_waits(bundle: Bundle) -> None:
    updates = [told(bundle, i, n=300) for i in range(4)] + [told(bundle, 9, n=10, epsilon=0.1)]
    found = merge(
        bundle, [(u.lineage, u) for u in updates], bundle.head_parameters(), 0, {}, policy=policy_of(merge_noised=True)
    )
    assert found.release is not None
    assert set(found.release.included) == {u.lineage for u in updates[:4]}
    assert "noise" in found.waiting["noised9"]
    alone = merged_noised(bundle, updates[:4])
    np.testing.assert_array_equal(found.release.merged["moment"], alone.merged["moment"])


def test_who_claims_far_more_samples_than_others_waits(bundle: Bundle) -> None:
    """Else one device that lies about its labels by a factor is the merge."""
    updates = [told(bundle, i) for i in range(4)]
    liar = dataclasses.replace(updates[0], n_samples=10**9)
    found = merge(
        bundle, [(u.lineage, u) for u in (liar, *updates[1:])], bundle.head_parameters(), 0, {},
        policy=policy_of(merge_noised=True),
    )  # fmt: skip
    assert found.release is not None
    assert set(found.release.included) == {u.lineage for u in updates[1:]}
    assert "far more samples" in found.waiting[liar.lineage]


def test_noised_contributions_are_merged_where_an_operator_says_so(bundle: Bundle, statistics_update: object) -> None:
    update, plain = told(bundle, 1), statistics_update(0)  # type: ignore[operator]
    updates = [("one", update), ("two", plain)]
    for policy in (policy_of(), policy_of(merge_by="cluster")):
        found = merge(bundle, updates, bundle.head_parameters(), 0, {}, policy=policy)
        assert "--merge-noised" in found.refused[update.lineage]
        assert found.release is not None
        assert set(found.release.included) == {plain.lineage}
    both = merge(bundle, updates, bundle.head_parameters(), 0, {}, policy=policy_of(merge_noised=True))
    assert both.release is not None
    assert set(both.release.included) == {plain.lineage, update.lineage}
    with pytest.raises(ConfigError, match="cannot be compared"):
        policy_of(merge_noised=True, merge_by="cluster")


def test_classes_that_devices_added_are_lined_up(bundle: Bundle) -> None:
    updates = [
        told(bundle, 1, n=400, epsilon=50.0, added=("b", "a")),
        told(bundle, 2, n=200, epsilon=50.0, added=("a",)),
    ]
    release = merged_noised(bundle, updates)
    assert release.class_names[10:] == ("a", "b")
    counts = HeadStatistics.from_tensors(release.merged, 64, 12).class_counts
    assert counts[11] == pytest.approx(2 * counts[10], rel=0.15), "of b a hundred, of a fifty"


def test_a_site_gives_the_coordinator_above_sums_that_samples_can_have(
    bundle: Bundle, statistics_update: object
) -> None:
    noised = [(f"device {i}", told(bundle, i, n=200)) for i in range(4)]
    plain = [("plain", statistics_update(0))]  # type: ignore[operator]
    one = pooled(bundle, [*noised, *plain], lineage="site", version=1)
    check_update(one, bundle)
    found = HeadStatistics.from_tensors(one.tensors, 64, 10)
    alone = HeadStatistics.from_tensors(pooled(bundle, plain, lineage="site", version=1).tensors, 64, 10)
    assert not isinstance(summary_of(found, is_classifier=True), str)
    assert found.n_samples > alone.n_samples + 1
    assert one.parts.keys() == {update.lineage for _, update in (*noised, *plain)}


def changed(update: HeadUpdate, **tensors: np.ndarray) -> HeadUpdate:
    return dataclasses.replace(update, tensors={**update.tensors, **tensors})


def test_what_no_samples_and_no_noise_give_is_refused(bundle: Bundle) -> None:
    update = told(bundle, 1, epsilon=8.0)
    check_update(update, bundle)
    again = HeadUpdate.decode(update.encode(), "it")
    check_update(again, bundle)
    assert again.noised == update.noised
    assert update.noised is not None
    points = update.tensors["points"]
    frame = dataclasses.replace(update.noised, frame="0" * 64)
    for bad, why in (
        (changed(update, points=points + np.float32(100)), "points"),
        (changed(update, counts=update.tensors["counts"] - np.float32(100)), "counts"),
        (changed(update, products=update.tensors["products"] * np.float32(100)), "products"),
        (changed(update, points=points[:5]), "coordinates"),
        (changed(update, points=points.astype(np.float64)), "float32"),
        (dataclasses.replace(update, noised=frame), "other shipped statistics"),
        (dataclasses.replace(update, learner="delta"), "linear head"),
        (dataclasses.replace(update, tensors={}), "coordinates"),
    ):
        with pytest.raises(LearningError, match=why):
            check_update(bad, bundle)
