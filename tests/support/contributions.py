"""Contributions made of numbers: samples of classes that lie apart, as features of the digits bundle's head."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.contract.bundle import Bundle
from edge.contract.recipe import TrainingRecipe
from edge.contract.training import Parameters
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.learning.statistics import HeadStatistics
from edge.merging.merge import merge
from edge.merging.policy import MergePolicy

Samples = tuple[np.ndarray, np.ndarray]
Make = Callable[..., HeadUpdate]


def samples(names: Sequence[str], seed: int, n: int = 60, d: int = 64) -> Samples:
    """Features ``(n, d)`` and labels ``(n,)``, indices into `names`; a name has the same mean everywhere."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(names), n)
    means = np.array([np.random.default_rng([5, *name.encode()]).normal(0, 2.0, d) for name in names])
    return means[labels] + rng.normal(0, 1.0, (n, d)), labels


def shuffled(bundle: Bundle, seed: int, lineage: str) -> HeadUpdate:
    """A device whose labels mean nothing."""
    x, y = samples(bundle.manifest.class_names, seed, 100)
    wrong = (y + 1 + np.random.default_rng(seed).integers(0, 9, len(y))) % 10
    return HeadUpdate(
        learner="statistics",
        backbone=bundle.manifest.backbone_digest,
        lineage=lineage,
        version=100,
        n_samples=100,
        base_release=0,
        tensors=dict(HeadStatistics.of(x, wrong, 10).to_tensors()),
    )


def with_loss(bundle: Bundle, loss: str) -> Bundle:
    """The same head, asked for something else."""
    found = copy.copy(bundle)
    assert bundle.manifest.head is not None
    head = dataclasses.replace(bundle.manifest.head, training=TrainingRecipe(loss=loss))
    found.manifest = dataclasses.replace(bundle.manifest, head=head, class_names=())
    return found


def policy_of(**options: Any) -> MergePolicy:
    """A policy by which contributions of any size are merged."""
    return MergePolicy(**{"min_samples": 1, "min_merge_samples": 1} | options)


def merged_head(
    bundle: Bundle,
    updates: Sequence[HeadUpdate],
    current: Parameters | None = None,
    already: dict[str, int] | None = None,
    **options: Any,
) -> HeadRelease:
    """A merge of updates that come from one device each, however few their samples; options are the policy's."""
    current = bundle.head_parameters() if current is None else current
    found = merge(
        bundle, [(update.lineage, update) for update in updates], current, 0, already or {}, policy=policy_of(**options)
    )
    assert found.release is not None, found.refused
    return found.release


@pytest.fixture(scope="session")
def bundle(digits_bundle: Path) -> Bundle:
    return Bundle.open(digits_bundle)


@pytest.fixture(scope="session")
def statistics_update(bundle: Bundle) -> Make:
    """An update of one device that knows further classes."""

    def make(seed: int, added: Sequence[str] = (), n: int = 60, lineage: str | None = None) -> HeadUpdate:
        names = (*bundle.manifest.class_names, *added)
        x, y = samples(names, seed, n)
        return HeadUpdate(
            learner="statistics",
            backbone=bundle.manifest.backbone_digest,
            lineage=lineage or f"l{seed}",
            version=n,
            n_samples=n,
            base_release=0,
            tensors=dict(HeadStatistics.of(x, y, len(names)).to_tensors()),
            class_names=names if added else (),
        )

    return make


@pytest.fixture(scope="session")
def delta_update(bundle: Bundle) -> Make:
    """A change of all parameters by one value; rows of added classes too."""

    def make(
        value: float, added: Sequence[str] = (), n: int = 10, lineage: str = "l", base_release: int = 0
    ) -> HeadUpdate:
        names = (*bundle.manifest.class_names, *added)
        shipped = bundle.head_parameters()
        tensors = {name: np.full((len(names), *array.shape[1:]), value, np.float32) for name, array in shipped.items()}
        return HeadUpdate(
            learner="delta",
            backbone=bundle.manifest.backbone_digest,
            lineage=lineage,
            version=n,
            n_samples=n,
            base_release=base_release,
            tensors=dict(tensors),
            class_names=names if added else (),
        )

    return make
