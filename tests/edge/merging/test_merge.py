"""Merging on the coordinator: values in, a release out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.contract.recipe import MEAN_SQUARED_ERROR
from edge.learning.closed_form import PRIOR_SAMPLES
from edge.learning.exchange import HeadUpdate
from edge.learning.familiarity import means_of
from edge.learning.solve import head_of, solve
from edge.learning.statistics import HeadStatistics
from edge.merging.contributions import check_update
from edge.merging.merge import merge, shipped_head
from edge.merging.policy import MergePolicy
from tests.support.contributions import Make, merged_head, policy_of, samples, shuffled, with_loss

ADDED = ("smudge", "blank")


def shipped_of(bundle: Bundle) -> HeadStatistics:
    return HeadStatistics.from_tensors(bundle.tensors(m.STATISTICS), 64, 10)


# Statistics


def test_statistics_merge_does_not_depend_on_the_order(bundle: Bundle, statistics_update: Make) -> None:
    updates = [statistics_update(seed) for seed in range(3)]
    one = merged_head(bundle, updates)
    two = merged_head(bundle, updates[::-1])
    for name in one.parameters:
        np.testing.assert_allclose(one.parameters[name], two.parameters[name], rtol=1e-5, atol=1e-6)
    assert one.n_samples == 180
    assert one.included == {update.lineage: 60 for update in updates}
    assert one.class_names == ()


def test_classes_added_in_another_order_are_lined_up_by_name(bundle: Bundle, statistics_update: Make) -> None:
    updates = [statistics_update(0, ADDED), statistics_update(1, ADDED[::-1]), statistics_update(2)]
    found = merged_head(bundle, updates)
    known = bundle.manifest.class_names
    names = (*known, "blank", "smudge")
    assert found.class_names == names
    total = shipped_of(bundle).scaled_to(PRIOR_SAMPLES).grown(len(names))  # the shipped head knows none of these
    for seed, own in ((0, (*known, *ADDED)), (1, (*known, *ADDED[::-1])), (2, known)):
        x, y = samples(own, seed)
        total = total + HeadStatistics.of(x, np.array([names.index(own[label]) for label in y]), len(names))
    assert bundle.manifest.head is not None
    assert bundle.manifest.head.linear is not None
    for name, array in head_of(total, bundle.manifest.head.linear).items():
        np.testing.assert_allclose(found.parameters[name], array, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.merged["moment"], total.moment, rtol=1e-4, atol=1e-3)
    again = merged_head(bundle, updates[::-1])
    assert again.class_names == names
    x, y = samples(names, 99, 200)
    weight, bias = (found.parameters[spec.name] for spec in bundle.manifest.head.parameters)
    assert ((x @ weight.T + bias).argmax(axis=1) == y).mean() > 0.95


def test_added_class_without_samples_stays_with_its_device(bundle: Bundle, statistics_update: Make) -> None:
    update = statistics_update(0)
    tensors = {**update.tensors, "moment": np.pad(update.tensors["moment"], ((0, 0), (0, 1)))}
    names = (*bundle.manifest.class_names, "empty")
    found = merged_head(bundle, [dataclasses.replace(update, tensors=tensors, class_names=names)])
    assert found.class_names == ()
    assert found.merged["moment"].shape == (65, 10)


@pytest.mark.parametrize(
    ("n_right", "most", "least_worth", "most_worth"),
    [(10, 100, 100, 100), (0, 100, 20, 20), (3, 100, 25, 95), (10, 5, 5, 5), (0, 5, 5, 5), (0, 1000, 20, 20)],
)
def test_shipped_statistics_are_worth_as_much_as_the_shipped_head_is_right_on_what_was_learned(
    bundle: Bundle, n_right: int, most: float, least_worth: float, most_worth: float
) -> None:
    """Devices see what the bundle was made with, and name so many classes as it does; only their sum counts."""
    named = [*range(n_right), *np.roll(np.arange(n_right, 10), 1)]
    seen = shipped_of(bundle)
    seen = HeadStatistics(seen.gram, seen.moment[:, named])

    def sent(lineage: str, n: int) -> HeadUpdate:
        tensors = dict(seen.scaled_to(n).to_tensors())
        return HeadUpdate(
            learner="statistics", backbone=bundle.manifest.backbone_digest, lineage=lineage, version=n, n_samples=n,
            base_release=0, tensors=tensors,
        )  # fmt: skip

    found = merged_head(bundle, [sent("a", 150), sent("b", 250)], prior_samples=most)
    worth = float(found.merged["moment"][-1].sum()) - 400
    assert least_worth - 0.01 <= worth <= most_worth + 0.01
    one = merged_head(bundle, [sent("both", 400)], prior_samples=most)
    for name, array in one.parameters.items():
        np.testing.assert_allclose(found.parameters[name], array, rtol=1e-3, atol=1e-3)


def test_labels_that_mean_nothing_take_no_weight_from_what_was_shipped(bundle: Bundle) -> None:
    """The shipped head is right on neither; only of those that lie apart by their labels there is another world."""
    rng, centers = np.random.default_rng(0), means_of(shipped_of(bundle))
    for n in (20, 300):
        y = np.arange(n) % 10
        x = (centers[(y + 1) % 10] + rng.normal(0, 0.2 * centers.std(), (n, 64))).astype(np.float32)
        worth = []
        for labels in (y, rng.permutation(y), np.full(n, 3)):
            tensors = dict(HeadStatistics.of(x, labels, 10).to_tensors())
            update = HeadUpdate(
                learner="statistics", backbone=bundle.manifest.backbone_digest, lineage="a", version=n, n_samples=n,
                base_release=0, tensors=tensors,
            )  # fmt: skip
            worth.append(float(merged_head(bundle, [update]).merged["moment"][-1].sum()) - n)
        assert worth == pytest.approx([20, 100, 100], abs=0.5)


def test_statistics_of_a_regression_head_are_solved_by_ridge(bundle: Bundle) -> None:
    regression = with_loss(bundle, MEAN_SQUARED_ERROR)
    rng = np.random.default_rng(0)
    x, targets = rng.normal(0, 1, (80, 64)), rng.normal(0, 1, (80, 10))
    own = HeadStatistics.of_targets(x, targets, np.ones(80))
    update = HeadUpdate(
        learner="statistics",
        backbone=bundle.manifest.backbone_digest,
        lineage="l",
        version=80,
        n_samples=80,
        base_release=0,
        tensors=dict(own.to_tensors()),
    )
    check_update(update, regression)
    found = merged_head(regression, [update])
    weights, biases = solve(shipped_of(bundle).scaled_to(MergePolicy().prior_samples) + own, "ridge")
    np.testing.assert_allclose(found.parameters["7.weight"], weights, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.parameters["7.bias"], biases, rtol=1e-3, atol=1e-3)
    with pytest.raises(LearningError, match="negative count"):
        check_update(update, bundle)
    names = tuple("abcdefghij")
    with pytest.raises(LearningError, match="added classes"):
        check_update(dataclasses.replace(update, class_names=names), regression)


def test_statistics_for_a_head_with_a_hidden_layer_are_refused(mlp_bundle: Path) -> None:
    mlp = Bundle.open(mlp_bundle)
    head = mlp.manifest.head
    assert head is not None
    assert head.linear is not None
    assert not head.is_linear
    tensors = HeadStatistics.empty(head.n_inputs, 10).to_tensors()
    update = HeadUpdate(
        learner="statistics",
        backbone=mlp.manifest.backbone_digest,
        lineage="l",
        version=0,
        n_samples=0,
        base_release=0,
        tensors=dict(tensors),
    )
    with pytest.raises(LearningError, match="not one linear layer"):
        check_update(update, mlp)
    change = {name: np.ones_like(array) for name, array in mlp.head_parameters().items()}
    delta = dataclasses.replace(update, learner="delta", tensors=change, n_samples=4)
    check_update(delta, mlp)
    found = merged_head(mlp, [delta])
    for name, array in mlp.head_parameters().items():
        np.testing.assert_allclose(found.parameters[name], array + 1, rtol=1e-6)


# Screening


def test_garbage_is_left_out_and_named(bundle: Bundle, statistics_update: Make) -> None:
    honest = [(f"d{seed}", statistics_update(seed)) for seed in range(4)]
    garbage = ("bad", shuffled(bundle, 9, "garbage"))
    found = merge(bundle, [*honest, garbage], bundle.head_parameters(), 0, {"garbage": 40})
    without = merge(bundle, honest, bundle.head_parameters(), 0, {})
    assert found.release is not None
    assert without.release is not None
    assert list(found.refused) == ["garbage"]
    assert "other names" in found.refused["garbage"]
    assert not without.refused
    for name, array in without.release.parameters.items():
        np.testing.assert_array_equal(found.release.parameters[name], array)
    unscreened = merge(bundle, [*honest, garbage], bundle.head_parameters(), 0, {}, policy=MergePolicy(screen=False))
    assert unscreened.release is not None
    assert not unscreened.refused
    assert unscreened.release.included["garbage"] == 100


def test_lineages_of_one_device_have_one_voice(bundle: Bundle, statistics_update: Make) -> None:
    honest = [(f"d{seed}", statistics_update(seed)) for seed in range(3)]
    garbage = [("bad", shuffled(bundle, 20 + i, f"g{i}")) for i in range(4)]
    found = merge(bundle, [*honest, *garbage], bundle.head_parameters(), 0, {})
    assert set(found.refused) == {f"g{i}" for i in range(4)}


def test_two_that_disagree_are_both_merged_and_said_to_be_undecided(bundle: Bundle, statistics_update: Make) -> None:
    updates = [("a", statistics_update(0, n=200)), ("b", shuffled(bundle, 9, "garbage"))]
    found = merge(bundle, updates, bundle.head_parameters(), 0, {})
    assert found.release is not None
    assert found.release.n_samples == 300
    assert not found.refused
    assert len(found.undecided) == 1


def test_sums_that_no_samples_have_are_left_out_even_alone(bundle: Bundle, statistics_update: Make) -> None:
    update = statistics_update(0)
    gram = update.tensors["gram"].copy()
    gram[1] *= 100  # a product of two features, far beyond what their squares allow
    bad = dataclasses.replace(update, tensors={**update.tensors, "gram": gram})
    found = merge(bundle, [("a", bad)], bundle.head_parameters(), 0, {})
    assert found.release is None
    assert "no samples have these sums" in found.refused[update.lineage]


def test_statistics_are_left_out_where_noise_is_asked_for(
    bundle: Bundle, statistics_update: Make, delta_update: Make
) -> None:
    policy = MergePolicy(noise_multiplier=1.0, clip_norm=1.0, expected_devices=2)
    alone = merge(bundle, [("a", statistics_update(0))], bundle.head_parameters(), 0, {}, policy=policy)
    assert alone.release is None
    assert "noise" in alone.refused["l0"]
    updates = [("a", statistics_update(0)), ("b", delta_update(0.1))]
    with pytest.raises(LearningError, match="generator"):
        merge(bundle, updates, bundle.head_parameters(), 0, {}, policy=policy)
    both = merge(bundle, updates, bundle.head_parameters(), 0, {}, policy=policy, rng=np.random.default_rng(0))
    assert both.release is not None
    assert set(both.release.included) == {"l"}
    assert not both.release.merged
    assert both.memory.account


# Changes


def test_deltas_are_weighted_by_samples(bundle: Bundle, delta_update: Make) -> None:
    base = bundle.head_parameters()
    small, large = delta_update(1.0, n=10, lineage="a"), delta_update(2.0, n=30, lineage="b")
    merged = merged_head(bundle, [small, large], base, {"earlier": 5})
    for name, array in merged.parameters.items():
        np.testing.assert_allclose(array, base[name] + 1.75, rtol=1e-5, atol=1e-6)
    assert merged.included == {"earlier": 5, "a": 10, "b": 30}, "what an earlier merge included stays included"


def test_rows_of_classes_that_the_current_head_lacks_are_cut_off(bundle: Bundle, delta_update: Make) -> None:
    base = bundle.head_parameters()
    merged = merged_head(bundle, [delta_update(1.0, ADDED)], base)
    assert merged.class_names == ()
    for name, array in merged.parameters.items():
        np.testing.assert_allclose(array, base[name] + 1.0, rtol=1e-5, atol=1e-6)


def test_rows_of_added_classes_are_averaged_over_the_devices_that_have_them(bundle: Bundle, delta_update: Make) -> None:
    names = (*bundle.manifest.class_names, "blank", "smudge")
    base = {name: np.zeros((12, *array.shape[1:]), np.float32) for name, array in bundle.head_parameters().items()}
    has_both = delta_update(1.0, ADDED, 10, "a", base_release=4)
    for array in has_both.tensors.values():
        array[10] = 7.0  # smudge, the device's first
    updates = [
        has_both,
        delta_update(3.0, (), 30, "b", base_release=4),
        # A row that began elsewhere says nothing of this one.
        delta_update(100.0, ("smudge",), 1, "c", base_release=3),
    ]
    found = merge(
        bundle, [(u.lineage, u) for u in updates], base, 4, {}, current_names=names, policy=policy_of()
    ).release
    assert found is not None
    assert found.class_names == names
    weight = 1 / np.sqrt(2)
    common = (10 * 1.0 + 30 * 3.0 + weight * 100.0) / (40 + weight)
    for array in found.parameters.values():
        np.testing.assert_allclose(array[:10], common, rtol=1e-5)
        np.testing.assert_allclose(array[10], 1.0, rtol=1e-5)  # blank
        np.testing.assert_allclose(array[11], 7.0, rtol=1e-5)  # smudge


# What is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone": "0" * 64}, "another backbone"),
        ({"tensors": {}}, "need a gram"),
        ({"n_samples": 4}, "claim"),
        ({"learner": "delta"}, "other parameters"),
        ({"class_names": tuple("abcdefghij")}, "do not begin with"),
        ({"class_names": tuple("012345678")}, "do not begin with"),
        ({"class_names": (*"0123456789", "a", "a")}, "repeat"),
        ({"class_names": (*"0123456789", "0")}, "repeat"),
        ({"class_names": (*"0123456789", "")}, "not names"),
        ({"class_names": (*"0123456789", "x" * 129)}, "not names"),
        ({"class_names": (*"0123456789", "new")}, "11 classes"),
    ],
)
def test_updates_that_cannot_be_merged_are_refused_by_name(
    bundle: Bundle, statistics_update: Make, change: dict[str, object], words: str
) -> None:
    update = dataclasses.replace(statistics_update(1), **change)  # type: ignore[arg-type]
    with pytest.raises(LearningError, match=words):
        check_update(update, bundle)


def test_change_with_rows_for_other_classes_than_it_names_is_refused(bundle: Bundle, delta_update: Make) -> None:
    check_update(delta_update(1.0, ADDED), bundle)
    with pytest.raises(LearningError, match="other parameters"):
        check_update(dataclasses.replace(delta_update(1.0, ADDED), class_names=()), bundle)


def test_statistics_may_stand_for_fewer_samples_than_were_seen(bundle: Bundle, statistics_update: Make) -> None:
    check_update(dataclasses.replace(statistics_update(1), n_samples=4000), bundle)
    # A device that saw the world change counts what came since a second time.
    check_update(dataclasses.replace(statistics_update(1), n_samples=41), bundle)
    with pytest.raises(LearningError, match="60 samples that claim 39"):
        check_update(dataclasses.replace(statistics_update(1), n_samples=39), bundle)


def test_nothing_to_merge_is_refused(bundle: Bundle) -> None:
    with pytest.raises(LearningError):
        merge(bundle, [], bundle.head_parameters(), 0, {})


def test_shipped_head_brings_the_shipped_statistics(bundle: Bundle) -> None:
    found = shipped_head(bundle)
    own = HeadStatistics.from_tensors(found.merged, 64, 10)
    assert own.n_samples == pytest.approx(PRIOR_SAMPLES)
    for name, array in bundle.head_parameters().items():
        np.testing.assert_array_equal(found.parameters[name], array)
