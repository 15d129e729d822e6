"""Merging on the coordinator: values in, a release out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.agent import OnDeviceModel
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.coordinator.aggregate import check_update, merge
from edge.learning.exchange import HeadUpdate


def update_of(bundle: Path, seed: int, n: int = 40, learner: str = "statistics") -> HeadUpdate:
    model = OnDeviceModel.open(bundle, learner=learner)
    rng = np.random.default_rng(seed)
    x = rng.random((n, *model.manifest.inputs[0].sample_shape), np.float32)
    model.learn(x, rng.integers(0, 10, n))
    return model.contribution()


def test_statistics_merge_does_not_depend_on_the_order(digits_bundle: Path) -> None:
    bundle = Bundle.open(digits_bundle)
    updates = [update_of(digits_bundle, seed) for seed in range(3)]
    one = merge(bundle, updates, bundle.head_parameters(), 0, {})
    two = merge(bundle, updates[::-1], bundle.head_parameters(), 0, {})
    for name in one.parameters:
        np.testing.assert_allclose(one.parameters[name], two.parameters[name], rtol=1e-5, atol=1e-6)
    assert one.n_samples == 120
    assert one.included == {update.lineage: 40 for update in updates}


def test_deltas_are_weighted_by_samples(digits_bundle: Path) -> None:
    bundle = Bundle.open(digits_bundle)
    base = bundle.head_parameters()
    small, large = (update_of(digits_bundle, s, n, "sgd") for s, n in ((1, 10), (2, 30)))
    merged = merge(bundle, [small, large], base, 0, {"earlier": 5})
    for name, array in merged.parameters.items():
        expected = base[name] + (10 * small.tensors[name] + 30 * large.tensors[name]) / 40
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-7)
    assert merged.included["earlier"] == 5, "what an earlier merge included stays included"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone": "0" * 64}, "another backbone"),
        ({"tensors": {}}, "need a gram"),
        ({"n_samples": 4000}, "claim"),
        ({"learner": "delta"}, "other parameters"),
    ],
)
def test_updates_that_cannot_be_merged_are_refused_by_name(
    digits_bundle: Path, change: dict[str, object], words: str
) -> None:
    import dataclasses

    update = dataclasses.replace(update_of(digits_bundle, 1), **change)  # type: ignore[arg-type]
    with pytest.raises(LearningError, match=words):
        check_update(update, Bundle.open(digits_bundle))


def test_nothing_to_merge_is_refused(digits_bundle: Path) -> None:
    bundle = Bundle.open(digits_bundle)
    with pytest.raises(LearningError):
        merge(bundle, [], bundle.head_parameters(), 0, {})
