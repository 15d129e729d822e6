"""A learner on lifted features beside the others: kept over restarts, begun in older folders, never sent away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from edge.agent import OnDeviceModel
from edge.agent.model.candidates import Workshop
from edge.learning.exchange import HeadRelease
from edge.learning.lift import LIFTED
from tests.support.killed import kill
from tests.support.values import same


def turned(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits turned by 90 degrees, which the bundle gets wrong."""
    data = load_digits()
    x = np.rot90(data.images[500 : 500 + n, None].astype(np.float32) / 16, axes=(2, 3))
    return np.ascontiguousarray(x), data.target[500 : 500 + n]


def teach(model: OnDeviceModel, x: np.ndarray, y: np.ndarray) -> None:
    for i in range(0, len(x), 4):
        model.learn(x[i : i + 4], y[i : i + 4])


def test_a_head_on_lifted_features_is_trusted_and_kept_over_restarts(
    tmp_path: Path, digits_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = turned(300)
    monkeypatch.setattr(Workshop, "_suitable", lambda self: ["lifted"])
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    teach(model, x[:200], y[:200])
    assert model.learned.mixture.believed == "lifted"
    assert model.learned.trusted == "lifted"
    assert LIFTED in model.learned.experts["trusted"].parameters
    assert (model.predict(x[200:]).argmax(axis=1) == y[200:]).mean() > 0.8
    model.state.save()  # a snapshot, and the journal behind it
    teach(model, x[200:220], y[200:220])
    kill(model)
    again = OnDeviceModel.open(digits_bundle, tmp_path)
    assert not again.state.warnings
    assert same(again.learned, model.learned)
    assert again.add_class("z") == 10
    again.learn(x[220:224], np.full(4, 10))
    assert np.isfinite(again.predict(x)).all()
    again.close()
    last = OnDeviceModel.open(digits_bundle, tmp_path)
    assert same(last.learned, again.learned)
    assert last.class_names[-1] == "z"
    last.close()


def test_a_head_that_leaves_the_device_has_the_form_of_the_bundles(tmp_path: Path, digits_bundle: Path) -> None:
    x, y = turned(120)
    model = OnDeviceModel.open(digits_bundle)
    assert model.learning.learners == ("statistics", "lifted", "sgd")
    teach(model, x, y)
    mixture = model.learned.mixture
    weights = np.where([name == "lifted" for name in mixture.names], 1.0, 0.1 * mixture.weights)
    model.state.value = replace(model.learned, mixture=replace(mixture, weights=weights / weights.sum()))
    assert model.learned.mixture.believed == "lifted"
    model.export_head(tmp_path / "head.safetensors")
    release = HeadRelease.decode((tmp_path / "head.safetensors").read_bytes(), "the head")
    assert release.parameters.keys() == model.bundle.head_parameters().keys()
    assert release.origin.split(" of ")[0] in ("statistics", "sgd")
    kind, packed = model.learning.contribution(model.learned)
    assert (kind, packed.tensors.keys()) == ("statistics", {"gram", "moment"})
    model.close()


def test_a_folder_from_before_goes_on_and_the_new_learner_begins_beside_the_others(
    tmp_path: Path, digits_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = turned(120)
    with monkeypatch.context() as patch:
        patch.setattr(Workshop, "_suitable", lambda self: ["statistics", "sgd"])  # as it was
        before = OnDeviceModel.open(digits_bundle, tmp_path)
        before.add_class("z")
        teach(before, x[:60], y[:60])
        before.state.save()
        teach(before, x[60:80], y[60:80])
        kill(before)
        assert "lifted" not in before.learned.experts
    model = OnDeviceModel.open(digits_bundle, tmp_path)
    assert not model.state.warnings
    assert (model.n_samples, model.learned.lineage) == (80, before.learned.lineage)
    for name in ("statistics", "sgd"):
        expected = before.learning.parameters(before.learned, name)
        for key, array in model.learning.parameters(model.learned, name).items():
            np.testing.assert_allclose(array, expected[key], atol=1e-5)
    teach(model, x[80:], y[80:])
    assert model.learning.machine("lifted").n_samples == 60, "it has learned what the journal held, and what came since"
    model.close()
    again = OnDeviceModel.open(digits_bundle, tmp_path)
    assert same(again.learned, model.learned)
    again.close()


def test_a_head_that_is_pushed_takes_its_place_and_is_learned_on(digits_bundle: Path) -> None:
    x, y = turned(160)
    model = OnDeviceModel.open(digits_bundle)
    teach(model, x[:100], y[:100])
    learning, lifted = model.learning, model.learning.machine("lifted")
    lifted.load(model.learned.experts["lifted"])
    pushed = {name: array * 0.5 for name, array in model.bundle.head_parameters().items()}
    lifted.rebase(pushed, {}, 0)
    features = model.answering.features(x)
    np.testing.assert_allclose(
        learning.run(features, lifted.parameters()), learning.run(features, pushed), rtol=1e-4, atol=1e-4
    )
    for _ in range(3):
        lifted.learn_many(features[100:], y[100:])
    found = learning.run(features, lifted.parameters()).argmax(axis=1)
    assert (found == y).mean() > (learning.run(features, pushed).argmax(axis=1) == y).mean() + 0.2
    model.close()
