"""A linear head of more features than a device can keep statistics of: from the converter to the merge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge.agent import OnDeviceModel
from edge.agent.model import releases
from edge.agent.model.answering import LearningLimits
from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError
from edge.contract.profile import load_profile
from tests.converter.models import convert, fair, labelled, plan, save
from tests.support.contributions import merged_head

FEATURES, MAX_STATE_MB, PROJECTED = 300, 1, 129


def converted(folder: Path, max_state_mb: int) -> Bundle:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, FEATURES), nn.ReLU(), nn.Linear(FEATURES, 4)).eval()
    source = save(model, folder / "m.pth", (12,), calibrated=200)
    profile = load_profile("raspberry-pi-4")
    profile = replace(profile, learning=replace(profile.learning, max_state_mb=max_state_mb))
    convert(plan(source, profile=profile, max_drop=20.0, quantize="none"))
    return Bundle.open(source.with_suffix(".edge"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return converted(tmp_path_factory.mktemp("wide"), MAX_STATE_MB)


@pytest.fixture(scope="module")
def samples() -> tuple[np.ndarray, np.ndarray]:
    torch.manual_seed(3)
    x, y = labelled(nn.Linear(12, 4), (12,), 600)
    return x.numpy(), y.numpy()


def opened(bundle: Bundle, state_dir: Path | None = None, learner: str = "statistics") -> OnDeviceModel:
    limits = LearningLimits(max_state_mb=MAX_STATE_MB)
    return OnDeviceModel.open(bundle.path, state_dir, limits=limits, mixture=False, learner=learner)


def test_the_bundle_says_to_what_length_features_are_projected(bundle: Bundle, tmp_path: Path) -> None:
    head = bundle.manifest.head
    assert head is not None
    assert (head.n_inputs, head.projection, head.n_statistics) == (FEATURES, PROJECTED, PROJECTED)
    # Shipped as they are: SGD is preconditioned by them, and changes of the inputs are noticed.
    assert bundle.tensors(m.STATISTICS)["gram"].shape == ((FEATURES + 1) * (FEATURES + 2) // 2,)
    roomy = converted(tmp_path, 64).manifest.head
    assert roomy is not None
    assert roomy.projection is None


def test_a_device_with_less_memory_than_the_target_says_so(bundle: Bundle, tmp_path: Path) -> None:
    wide = converted(tmp_path, 64)
    assert opened(wide, learner="auto").learning.learners == ("sgd",)
    with pytest.raises(ConfigError, match=r"300 features take 5 MiB, allowed are 1.*--target"):
        opened(wide)


def test_what_is_learned_of_projected_features_is_kept_over_a_restart(
    bundle: Bundle, samples: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    x, y = samples
    model = opened(bundle, tmp_path, "auto")
    assert model.learning.learners == ("statistics", "sgd")
    model.learn(x[:300], y[:300])
    before = model.predict(x[300:])
    model.close()
    assert (before.argmax(axis=1) == y[300:]).mean() > 0.65
    again = opened(bundle, tmp_path, "auto")
    np.testing.assert_array_equal(again.predict(x[300:]), before)
    again.close()


def test_a_merge_of_projected_statistics_is_as_if_one_device_had_learned_all(
    bundle: Bundle, samples: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = samples
    devices, everything = [opened(bundle) for _ in range(3)], opened(bundle)
    for i, device in enumerate(devices):  # none sees all classes
        rows = np.flatnonzero(np.isin(y[:450], [i, i + 1]))
        device.learn(x[rows], y[rows])
        everything.learn(x[rows], y[rows])
    updates = [releases.contribution(device) for device in devices]
    assert updates[0].tensors["gram"].shape == ((PROJECTED + 1) * (PROJECTED + 2) // 2,)
    release = merged_head(bundle, updates, prior_samples=20.0)  # what a device begins with
    for device in devices:
        alone = (device.predict(x[450:]).argmax(axis=1) == y[450:]).mean()
        releases.take(device, releases.look_at(device, release, competes=True), 1)
        merged = device.learning.run(
            device.answering.features(x[450:]), device.learning.parameters(device.learned, "merged")
        )
        np.testing.assert_allclose(merged, everything.predict(x[450:]), rtol=0.02, atol=0.05)
        assert (merged.argmax(axis=1) == y[450:]).mean() > max(alone, 0.7)
        device.learn(x[:5], y[:5])  # and goes on from there


def test_a_head_with_hidden_layers_and_too_many_features_for_statistics_of_them_learns_without(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = fair(nn.Sequential(nn.Linear(12, 2100), nn.ReLU(), nn.Linear(2100, 8), nn.ReLU(), nn.Linear(8, 4)), (12,))
    source = save(model, tmp_path / "m.pth", (12,), calibrated=100)
    convert(plan(source, trainable="last:2", quantize="none", max_drop=20.0))
    bundle = Bundle.open(source.with_suffix(".edge"))
    assert set(bundle.tensors(m.STATISTICS)) == {"gram", "moment", "distances"}, "of the last layer only"
    found = OnDeviceModel.open(bundle.path)
    assert found.learning.learners == ("layered", "sgd")
    x, y = labelled(model, (12,), 12)
    found.learn(x.numpy(), y.numpy())
    assert found.n_samples == 12
