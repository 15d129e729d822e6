""" "None of these": answers that say so, what they rest on, and where nobody can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.agent import LearningLimits, OnDeviceModel
from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import ConfigError, LearningError

Samples = tuple[np.ndarray, np.ndarray]


def with_share(bundle: Path, share: float, state_dir: Path | None = None, **options: str) -> OnDeviceModel:
    return OnDeviceModel.open(bundle, state_dir, limits=LearningLimits(reject_unknown=share), **options)  # type: ignore[arg-type]


def test_known_samples_are_named_and_strange_ones_are_none_of_these(digits_bundle: Path, digits: Samples) -> None:
    x, y = digits[0][:400], digits[1][:400]
    noise = np.random.default_rng(0).random((100, *x.shape[1:]), np.float32)
    with with_share(digits_bundle, 0.1) as model:
        assert model.status()["unknown"] == {"share": 0.1, "counted_on": "500 samples of the bundle", "rejected": 0}
        assert (model.novelty(x) > 1).mean() < 0.25  # the network was trained on those of the bundle
        assert (model.novelty(noise) > 1).mean() > 0.9
        for i in range(10):
            answer = model.respond(f"n{i}", noise[i], 0.0)
            is_unknown = float(model.novelty(noise[i : i + 1])[0]) > 1
            assert answer["novelty"] == pytest.approx(float(model.novelty(noise[i : i + 1])[0]), abs=1e-4)
            assert (answer["class"] is None) == is_unknown
            if is_unknown:
                assert "name" not in answer
                assert answer["nearest"].keys() == {"class", "name", "confidence"}
                assert answer["nearest"]["class"] == int(np.argmax(answer["logits"]))
        rejected = model.status()["unknown"]["rejected"]
        assert rejected == model.telemetry(0.0)["unknown"] > 5
        known = next(i for i in range(50) if model.novelty(x[i : i + 1])[0] <= 1)
        assert model.respond("known", x[known], 0.0).keys() >= {"class", "name", "confidence", "novelty"}
        assert model.explain(noise[0]).novelty == pytest.approx(float(model.novelty(noise[:1])[0]), abs=1e-4)
        # What looks so is known from its labels on, and the labels say how far is too far.
        for start in range(0, 60, 20):
            model.learn(noise[start : start + 20], np.arange(20) % 10)
        assert model.status()["unknown"]["counted_on"] == "the last 60 labels of this device"
        assert (model.novelty(noise[60:]) > 1).mean() < 0.4
        model.learn(x[:64], y[:64])
        assert (model.novelty(x[64:]) > 1).mean() == pytest.approx(0.1, abs=0.06)  # as seldom as was asked


def test_what_it_rests_on_is_there_after_a_restart(digits_bundle: Path, digits: Samples, tmp_path: Path) -> None:
    x, y = digits[0][:100], digits[1][:100]
    with with_share(digits_bundle, 0.05, tmp_path) as model:
        model.learn(x[:40], y[:40])
        before = model.novelty(x)
    with with_share(digits_bundle, 0.05, tmp_path) as again:
        np.testing.assert_allclose(again.novelty(x), before, rtol=1e-4)


def test_where_nobody_can_tell_it_is_said(
    digits_bundle: Path, digits: Samples, mlp_bundle: Path, tmp_path: Path
) -> None:
    x = digits[0][:10]
    with OnDeviceModel.open(digits_bundle) as off:
        assert off.respond("a", x[0], 0.0).keys().isdisjoint({"novelty", "nearest"})
        assert off.explain(x[0]).novelty is None
        assert "unknown" not in off.status() | off.telemetry(0.0)
        with pytest.raises(LearningError, match="not asked for"):
            off.novelty(x)
    with with_share(mlp_bundle, 0.05) as bare:  # without data: nothing is known of known samples
        sample = np.zeros(bare.manifest.inputs[0].sample_shape, np.float32)
        assert bare.respond("a", sample, 0.0)["novelty"] is None
        assert bare.respond("a", sample, 0.0)["class"] is not None
        assert "says nothing of known samples" in bare.status()["unknown"]["why"]
        with pytest.raises(LearningError, match="says nothing of known samples"):
            bare.novelty(sample[None])
    with with_share(digits_bundle, 0.0001) as strict:
        assert "too few" in strict.status()["unknown"]["why"]
    for share in (-0.1, 0.6, float("nan")):
        with pytest.raises(ConfigError, match="reject_unknown"):
            LearningLimits(reject_unknown=share)


def test_a_bundle_brings_how_far_its_samples_are(digits_bundle: Path) -> None:
    bundle = Bundle.open(digits_bundle)
    found = bundle.tensors(m.STATISTICS)[m.DISTANCES]
    assert found.shape == (500, 2)
    assert found.dtype == np.float32
    assert (found[:, 0] > 0).all()
