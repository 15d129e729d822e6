"""A head that a device learned, back in PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import converter
from edge.agent import OnDeviceModel
from edge.contract.errors import BundleError, ConversionError


def network(n_classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, n_classes)).eval()


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A head that learned on a device, samples, and the device's answers with that head alone."""
    from converter.pipeline import convert
    from converter.plan import ConversionPlan
    from edge.contract.profile import load_profile

    folder = tmp_path_factory.mktemp("device")
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (120, 6)).astype(np.float32))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    converter.save_checkpoint(network(), folder / "m.pth", example_input=x[:1], calibration=(x, y))
    profile = load_profile("generic-x86_64")
    convert(
        ConversionPlan(source=folder / "m.pth", output=folder / "m.edge", profile=profile, quantize="none", force=True)
    )
    with OnDeviceModel.open(folder / "m.edge", learner="statistics", mixture=False) as model:
        model.learn(x.numpy(), y.numpy())
        model.export_head(folder / "head.safetensors")
        return folder / "head.safetensors", x.numpy(), model.predict(x.numpy())


def test_the_model_answers_as_the_device_does(learned: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, x, answers = learned
    model = network()
    assert sorted(converter.load_head_into(model, path)) == ["2.bias", "2.weight"]
    with torch.no_grad():
        found = model(torch.from_numpy(x)).numpy()
    assert (found.argmax(axis=1) == answers.argmax(axis=1)).mean() > 0.97


def test_a_convolution_of_one_pixel_is_a_linear_layer(learned: tuple[Path, np.ndarray, np.ndarray]) -> None:
    one = nn.Sequential(nn.Conv2d(6, 16, 1), nn.ReLU(), nn.Conv2d(16, 3, 1))
    assert sorted(converter.load_head_into(one, learned[0])) == ["2.bias", "2.weight"]
    linear = network()
    converter.load_head_into(linear, learned[0])
    torch.testing.assert_close(one.get_parameter("2.weight")[:, :, 0, 0], linear.get_parameter("2.weight"))
    with pytest.raises(ConversionError, match=r"2\.weight: the head has the shape \(3, 16\), .* \(3, 16, 3, 3\)"):
        converter.load_head_into(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Conv2d(16, 3, 3)), learned[0])


def test_refuses_another_model_and_changes_nothing(
    learned: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    other = network(4)
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(ConversionError, match=r"2\.(weight|bias): the head has the shape"):
        converter.load_head_into(other, learned[0])
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
    with pytest.raises(ConversionError, match=r"no parameter 2\."):
        converter.load_head_into(nn.Linear(2, 2), learned[0])
    with pytest.raises(ConversionError, match=r"expected the model, a torch\.nn\.Module, got dict"):
        converter.load_head_into({}, learned[0])  # type: ignore[arg-type]
    (tmp_path / "odd").write_bytes(b"no head")
    for path in (tmp_path / "odd", tmp_path / "nothing"):
        with pytest.raises(BundleError):
            converter.load_head_into(network(), path)
