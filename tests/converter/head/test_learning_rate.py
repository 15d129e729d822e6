"""Rates at which heads learn on devices: found on trial, shipped with the evidence, or the head is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import converter
from edge.agent.model.on_device_model import OnDeviceModel
from edge.contract.bundle import Bundle
from edge.contract.errors import ConversionError
from edge.contract.manifest import HeadSpec, LearningTrial
from edge.contract.recipe import TrainingRecipe
from tests.converter.models import convert, plan

N_TRAIN = 400


def conv_bn_relu() -> nn.Sequential:
    """Three blocks as every vision network has them."""

    def block(n_in: int, n_out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]

    return nn.Sequential(
        *block(1, 8, 1), *block(8, 16, 2), *block(16, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )


def deep_mlp() -> nn.Sequential:
    """A linear layer takes the features, so devices whiten them."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


class Gru(nn.Module):
    """Rows as a sequence; the last state answers."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(x)[0][:, -1])  # type: ignore[no-any-return]


def trained(model: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def networks(
    tmp_path_factory: pytest.TempPathFactory, digits: tuple[np.ndarray, np.ndarray]
) -> dict[str, tuple[Path, np.ndarray, np.ndarray]]:
    """By name: a trained checkpoint with labelled calibration data beside it, and digits for the device."""
    folder = tmp_path_factory.mktemp("networks")
    found = {}
    for name, model, shape in (
        ("conv", conv_bn_relu(), (1, 8, 8)),
        ("mlp", deep_mlp(), (64,)),
        ("gru", Gru(), (8, 8)),
    ):
        x, y = digits[0].reshape(-1, *shape), digits[1]
        trained(model, x[:N_TRAIN], y[:N_TRAIN], 7)
        for labels, suffix in ((y[:N_TRAIN], ""), (None, "-unlabelled")):
            converter.save_checkpoint(
                model,
                folder / f"{name}{suffix}.pth",
                example_input=x[:1],
                class_names=list("0123456789"),
                calibration=(x[:N_TRAIN], labels),
            )
        found[name] = folder / f"{name}.pth", x[N_TRAIN:], y[N_TRAIN:]
    return found


def converted(source: Path, **options: Any) -> tuple[Path, HeadSpec, dict[str, Any]]:
    """A bundle of which everything is trainable."""
    given = {"trainable": "*", "torchscript": False, "output": source.with_name("out.edge")} | options
    report = convert(plan(source, **given)).report
    head = Bundle.open(given["output"]).manifest.head
    assert head is not None
    return given["output"], head, report


def learned(
    bundle: Path, x: np.ndarray, y: np.ndarray, n_labels: int, learner: str = "sgd", *, mixture: bool = False
) -> list[float]:
    """Accuracy on what is not learned: as shipped, after 1, 2, 4, 8, ... labels; of the learner, or with its rivals."""
    model = OnDeviceModel.open(bundle, learner=learner, mixture=mixture)
    rest = slice(n_labels, None)

    def accuracy() -> float:
        return float((model.predict(x[rest]).argmax(axis=1) == y[rest]).mean())

    found = [accuracy()]
    for i in range(n_labels):
        model.learn(x[i : i + 1], y[i : i + 1])
        if (i + 1) & i == 0 or i + 1 == n_labels:
            found.append(accuracy())
    model.close()
    return found


@pytest.mark.parametrize(("network", "suffix"), [("conv", ""), ("conv", "-unlabelled"), ("mlp", ""), ("gru", "")])
def test_a_whole_network_learns_on_the_device_from_the_first_labels_on(
    networks: dict[str, tuple[Path, np.ndarray, np.ndarray]], network: str, suffix: str
) -> None:
    source, x, y = networks[network]
    bundle, head, report = converted(source.with_stem(source.stem + suffix))
    trial = head.trial
    assert trial is not None
    assert report["learning"]["rate"] == trial.rate
    assert trial.own_answers == bool(suffix)
    assert trial.turned_after < 0.7 * trial.turned_before
    assert trial.loss_after < 1.1 * trial.loss_before + 0.07
    assert report["label_ms"] > 0
    noisy = x + np.random.default_rng(1).normal(size=x.shape).astype(np.float32) * np.float32(0.3)
    others = learned(bundle, noisy, y, 50)  # another camera
    assert min(others) > others[0] - 0.12, others
    assert others[-1] > others[0] - 0.03, others
    served = learned(bundle, noisy, y, 50, mixture=True)  # what a device answers: rivals keep what the learner loses
    assert min(served) > served[0] - 0.03, served
    renamed = learned(bundle, x, (y + 1) % 10, 100)
    assert renamed[0] < 0.1, renamed
    assert renamed[-1] > renamed[0] + 0.1, renamed


def test_a_head_with_hidden_layers_follows_a_world_that_has_changed_much_and_one_that_has_not(
    tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = digits
    body = [nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 4, 3, 1, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
    model = nn.Sequential(*body, nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    trained(model, x[:N_TRAIN], y[:N_TRAIN], 12)
    source = tmp_path / "hidden.pth"
    names, calibration = list("0123456789"), (x[:N_TRAIN], y[:N_TRAIN])
    converter.save_checkpoint(model, source, example_input=x[:1], class_names=names, calibration=calibration)
    bundle, head, _ = converted(source, trainable="last:2")
    assert head.trial is not None
    assert head.trial.whitened == 1.0
    x, y = x[N_TRAIN:], y[N_TRAIN:]
    turned = np.ascontiguousarray(np.rot90(x, axes=(2, 3)))
    found = learned(bundle, turned, y, 500, "auto", mixture=True)
    assert found[0] < 0.3, found
    assert found[-1] > 0.84, found  # 0.77 where features are not whitened
    noisy = x + np.random.default_rng(1).normal(size=x.shape).astype(np.float32) * np.float32(0.3)
    others = learned(bundle, noisy, y, 50, "auto", mixture=True)
    assert min(others) > others[0] - 0.03, others


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_each_optimizer_gets_a_rate_of_its_own(
    networks: dict[str, tuple[Path, np.ndarray, np.ndarray]], optimizer: str
) -> None:
    source, x, y = networks["mlp"]
    recipe = TrainingRecipe(optimizer=optimizer)
    bundle, head, _ = converted(source, trainable="last:1", quantize="none", training=recipe)
    assert head.trial is not None
    assert head.trial.whitened is None  # the usual rate there is that of plain SGD
    noisy = x + np.random.default_rng(1).normal(size=x.shape).astype(np.float32) * np.float32(0.3)
    found = learned(bundle, noisy, y, 50)
    assert min(found) > found[0] - 0.12, found


class Scaled(nn.Module):
    """Logits times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def dead() -> nn.Sequential:
    """A layer of which nothing comes out: no label can move it."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    nn.init.constant_(model[0].bias, -1e4)
    return model


@pytest.mark.parametrize(
    ("model", "rule", "words"),
    [
        (nn.Sequential(nn.Linear(6, 4), Scaled(1e7)), "*", "no rate was found"),
        (dead(), "0.*", "does not fall"),
    ],
    ids=["steep", "dead"],
)
def test_what_no_rate_trains_is_refused_and_auto_keeps_nothing_trainable(
    tmp_path: Path, model: nn.Module, rule: str, words: str
) -> None:
    torch.manual_seed(0)
    source = tmp_path / "model.pth"
    x = torch.randn(64, 6)
    converter.save_checkpoint(model, source, example_input=x[:1], calibration=(x, torch.arange(64) % 4))
    with pytest.raises(ConversionError, match=words):
        convert(plan(source, trainable=rule, quantize="none"))
    assert not source.with_suffix(".edge").exists()
    if rule == "*":
        report = convert(plan(source, quantize="none")).report
        assert report["learning"] is None
        assert any("nothing stays trainable" in note and words in note for note in report["notes"])


def test_one_sample_says_little_and_the_evidence_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6)
    source = tmp_path / "model.pth"
    converter.save_checkpoint(nn.Linear(6, 4), source, example_input=x, calibration=(x, torch.tensor([1])))
    _, head, _ = converted(source, quantize="none")
    assert head.trial is not None
    assert head.trial.held_out == 0


def test_bundles_from_before_the_trial_are_read(networks: dict[str, tuple[Path, np.ndarray, np.ndarray]]) -> None:
    bundle, head, _ = converted(networks["mlp"][0], trainable="last:1", quantize="none")
    manifest = Bundle.open(bundle).manifest
    older = type(manifest).decode(replace(manifest, head=replace(head, trial=None)).encode())
    assert older.head is not None
    assert older.head.trial is None
    assert type(manifest).decode(manifest.encode()).head == head
    assert isinstance(head.trial, LearningTrial)
