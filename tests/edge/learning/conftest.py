"""Both learners over real graphs, made anew as often as a test asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.inference.onnx_trainer import OnnxTrainer
from edge.learning.closed_form import StatisticsLearner
from edge.learning.learner import Learner
from edge.learning.sgd import SgdLearner
from edge.learning.statistics import HeadStatistics

NewLearner = Callable[..., Learner]
N_FEATURES, N_CLASSES = 64, 10


def new_statistics(bundle: Bundle) -> StatisticsLearner:
    """A closed-form learner of the bundle's head."""
    assert bundle.manifest.head.linear is not None
    prior = HeadStatistics.from_tensors(bundle.tensors(m.STATISTICS), N_FEATURES, N_CLASSES)
    return StatisticsLearner(bundle.manifest.head.linear, bundle.head_parameters(), prior)


def new_sgd(bundle: Bundle, seed: int = 0) -> SgdLearner:
    """An SGD learner over the bundle's training graph."""
    step = OnnxTrainer(bundle.read(m.HEAD_TRAIN), bundle.manifest.head.features.name, bundle.head_parameters())
    return SgdLearner(step, (N_FEATURES,), N_CLASSES, 0.01, per_class=3, seed=seed)


@pytest.fixture(params=[new_statistics, new_sgd], ids=["statistics", "sgd"])
def new_learner(request: pytest.FixtureRequest, digits_bundle: Path) -> NewLearner:
    """Each kind of learner."""
    bundle = Bundle.open(digits_bundle)
    return lambda **options: request.param(bundle, **options)


@pytest.fixture
def new_sgd_learner(digits_bundle: Path) -> NewLearner:
    """The SGD learner only."""
    bundle = Bundle.open(digits_bundle)
    return lambda **options: new_sgd(bundle, **options)


@pytest.fixture
def new_statistics_learner(digits_bundle: Path) -> NewLearner:
    """The closed-form learner only."""
    bundle = Bundle.open(digits_bundle)
    return lambda: new_statistics(bundle)


@pytest.fixture
def samples() -> tuple[np.ndarray, np.ndarray]:
    """96 labelled features in ten overlapping clouds, such as a ReLU gives them."""
    rng = np.random.default_rng(5)
    centers = rng.random((N_CLASSES, N_FEATURES)) * 2
    labels = rng.integers(0, N_CLASSES, 96)
    features = np.maximum(centers[labels] + rng.normal(0, 0.5, (96, N_FEATURES)), 0)
    return features.astype(np.float32), labels
