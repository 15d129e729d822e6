"""A new bundle begins with what an earlier one learned, where their features mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edge.agent import OnDeviceModel
from edge.agent.model.candidates import Workshop
from edge.agent.model.warm_start import LEAST_DB
from edge.cli.agent import agent
from edge.contract.errors import ConfigError, LearningError

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, digits_bundle: Path) -> dict[str, Path]:
    """`digits_bundle` in float; with other class names; and a network of its shape that means something else."""
    import torch
    from torch import nn

    import converter
    from converter.plan import ConversionPlan
    from edge.contract.profile import load_profile
    from tests.converter.models import convert

    folder, checkpoint = tmp_path_factory.mktemp("warm"), digits_bundle.with_name("digits.pth")
    torch.manual_seed(1)
    other = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)
    ).eval()
    x = torch.rand(64, 1, 8, 8)
    with torch.no_grad():
        y = other(x).argmax(1)
    converter.save_checkpoint(
        other,
        folder / "other.pth",
        example_input=x[:1],
        class_names=[str(i) for i in range(10)],
        calibration=(x, y),
    )
    profile = load_profile("generic-x86_64")
    plans: dict[str, Any] = {
        "float": {"source": checkpoint, "quantize": "none"},
        "named": {"source": checkpoint, "quantize": "int8", "class_names": NAMES},
        "other": {"source": folder / "other.pth", "quantize": "none"},
    }
    for name, options in plans.items():
        convert(ConversionPlan(output=folder / f"{name}.edge", profile=profile, max_drop=100.0, **options))
    return {name: folder / f"{name}.edge" for name in plans}


@pytest.fixture(scope="module")
def turned(digits: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Digits turned by 90°, of which the shipped head knows nothing."""
    return np.ascontiguousarray(np.rot90(digits[0][:700], axes=(2, 3))), digits[1][:700]


@pytest.fixture(scope="module")
def taught(
    tmp_path_factory: pytest.TempPathFactory, digits_bundle: Path, turned: tuple[np.ndarray, np.ndarray]
) -> Path:
    """A state folder in which `digits_bundle` learned 300 of them."""
    state = tmp_path_factory.mktemp("taught")
    with OnDeviceModel.open(digits_bundle, state) as model:
        model.learn(turned[0][:300], turned[1][:300])
    return state


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def right(model: OnDeviceModel, turned: tuple[np.ndarray, np.ndarray]) -> float:
    return float((model.predict(turned[0][300:]).argmax(axis=1) == turned[1][300:]).mean())


def test_the_same_network_in_float_goes_on_where_its_int8_was_and_after_a_restart(
    bundles: dict[str, Path],
    digits_bundle: Path,
    taught: Path,
    tmp_path: Path,
    turned: tuple[np.ndarray, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with OnDeviceModel.open(digits_bundle, taught, read_only=True) as old:
        before = right(old, turned)
        assert before > 0.85
        with OnDeviceModel.open(bundles["float"], tmp_path) as new:
            assert right(new, turned) < 0.4
            untouched = new.learned
            with monkeypatch.context() as patched:
                patched.setattr("edge.agent.model.store.LearnedStore.append", full)
                with pytest.raises(LearningError, match="nothing was taken over"):
                    new.warm_start(old)
            assert new.learned is untouched
            found = new.warm_start(old)
            assert (found.how, found.samples) == ("statistics", 300)
            assert found.agreement_db is not None
            assert found.agreement_db > 30.0
            assert "300 labelled samples; the features agree to" in str(found)
            begun = right(new, turned)
            assert begun > before - 0.03
            assert new.n_samples == 0, "what this bundle learns itself is counted from here on"
    with OnDeviceModel.open(bundles["float"], tmp_path) as again:
        assert right(again, turned) == begun
        again.learn(turned[0][:60] * 0.9, turned[1][:60])
        assert right(again, turned) > before - 0.05
        with (
            OnDeviceModel.open(digits_bundle, taught, read_only=True) as old,
            pytest.raises(LearningError, match="has learned 60 samples already"),
        ):
            again.warm_start(old)


def test_sums_of_lifted_features_are_not_taken_for_those_of_features(
    digits_bundle: Path, turned: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Workshop, "_suitable", lambda self: ["lifted"])
        old = OnDeviceModel.open(digits_bundle)
    old.learn(turned[0][:100], turned[1][:100])
    with OnDeviceModel.open(digits_bundle) as new:
        assert new.warm_start(old).how == "head"
        assert np.isfinite(new.predict(turned[0][:9])).all()
    old.close()


def test_classes_go_by_their_names_or_by_what_is_said_they_are_called_now(
    bundles: dict[str, Path], digits_bundle: Path, taught: Path, turned: tuple[np.ndarray, np.ndarray]
) -> None:
    with OnDeviceModel.open(digits_bundle, taught, read_only=True) as old:
        before = right(old, turned)
        old.add_class("smudge")
        old.learn(np.zeros((3, 1, 8, 8), np.float32), np.full(3, 10))
        for names, words in (
            (None, "has no class '0'"),
            (NAMES[:4], "expected 11 different class names"),
            ((*NAMES[:9], "eight", "smudge"), "expected 11 different class names"),
            ({"0": "zero"}, "has no class '1'"),
            ({"x": "zero"}, "has no class 'x'"),
            ((*NAMES[:9], "ten", "smudge"), "has no class 'ten'"),
        ):
            with OnDeviceModel.open(bundles["named"]) as new, pytest.raises(LearningError, match=words):
                new.warm_start(old, class_names=names)
        order = list(reversed(range(10)))
        for given in ((*NAMES, "smudge"), {str(i): NAMES[i] for i in order}):
            with OnDeviceModel.open(bundles["named"]) as new:
                assert new.warm_start(old, class_names=given).agreement_db is None, "the frozen part is the same"
                assert new.class_names == (*NAMES, "smudge")
                assert right(new, turned) > before - 0.05
                assert new.predict(np.zeros((1, 1, 8, 8), np.float32)).argmax() == 10


def test_features_that_mean_something_else_are_refused_or_mapped_by_a_function(
    bundles: dict[str, Path],
    digits_bundle: Path,
    other_bundle: Path,
    taught: Path,
    turned: tuple[np.ndarray, np.ndarray],
) -> None:
    with OnDeviceModel.open(digits_bundle, taught, read_only=True) as old:
        with OnDeviceModel.open(bundles["other"]) as new:
            with pytest.raises(LearningError, match=rf"agree to -?\d.* {LEAST_DB:.0f} dB expected"):
                new.warm_start(old)
            assert new.learned.has_merge is False
            x, features = turned[0][:300], new.answering.features(turned[0][:300])
            seen = old.answering.features(x)
            mapping = np.linalg.lstsq(seen, features, rcond=1e-3)[0]
            for wrong in (
                lambda f: f[:, :3],
                lambda f: f * np.nan,
                lambda f: f[:2],
                lambda _: "nothing",
                lambda f: [f, 1],
            ):
                with pytest.raises(LearningError, match="the function that maps features gave"):
                    new.warm_start(old, features=wrong)
            assert new.n_samples == 0
            before = right(new, turned)
            found = new.warm_start(old, features=lambda f: f @ mapping)
            assert (found.how, found.samples) == ("samples", new.n_samples)
            assert 250 < found.samples <= 300, "those that are kept for replay"
            assert right(new, turned) > before + 0.3
        with (
            OnDeviceModel.open(other_bundle) as new,
            pytest.raises(LearningError, match=r"shape \(64,\), here of \(24,\)"),
        ):
            new.warm_start(old)
    with OnDeviceModel.open(digits_bundle) as empty, pytest.raises(LearningError, match="has not learned anything"):
        OnDeviceModel.open(bundles["float"]).warm_start(empty)


def test_the_command_lets_a_bundle_begin_in_the_folder_in_which_the_other_learned(
    bundles: dict[str, Path], digits_bundle: Path, taught: Path, tmp_path: Path, turned: tuple[np.ndarray, np.ndarray]
) -> None:
    def invoke(*arguments: object) -> Any:
        return CliRunner().invoke(agent, ["warm-start", *map(str, arguments)])

    for line, words in (
        ([bundles["float"], digits_bundle, "--state-dir", tmp_path / "no"], "no state folder"),
        ([bundles["float"], bundles["other"], "--from", taught, "--state-dir", tmp_path / "no"], "holds nothing"),
        ([bundles["named"], digits_bundle, "--state-dir", taught, "--rename", "x"], "OLD=NEW"),
    ):
        found = invoke(*line)
        assert isinstance(found.exception, ConfigError), found.output
        assert words in str(found.exception)
    renamed = [argument for i in range(10) for argument in ("--rename", f"{i}={NAMES[i]}")]
    found = invoke(bundles["named"], digits_bundle, "--from", taught, "--state-dir", tmp_path / "b", *renamed)
    assert found.exit_code == 0, found.output
    assert "took over the statistics and the head of 300 labelled samples" in found.output
    found = invoke(bundles["float"], digits_bundle, "--state-dir", taught)
    assert found.exit_code == 0, found.output
    with OnDeviceModel.open(bundles["float"], taught) as model:
        assert right(model, turned) > 0.8
