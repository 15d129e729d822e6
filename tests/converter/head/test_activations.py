"""A model that ends in a Softmax or a Sigmoid learns by what stands before it, and answers as it always did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import converter
from edge.agent.model.on_device_model import OnDeviceModel
from edge.contract.bundle import Bundle
from tests.converter.models import convert, fair, plan

# Where class k means class k + 1.
TURNED = [1, 2, 3, 0]


def network() -> nn.Sequential:
    """6-16-4, sure of its answers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[2].weight.mul_(6)
    return fair(model, (6,))


@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_shares_are_answered_and_logits_are_learned(tmp_path: Path, kind: str, quantize: str) -> None:
    model = nn.Sequential(network(), nn.Softmax(1) if kind == "softmax" else nn.Sigmoid()).eval()
    rng = torch.Generator().manual_seed(1)
    x, fresh = torch.randn(400, 6, generator=rng), torch.randn(100, 6, generator=rng)
    with torch.no_grad():
        shares, wanted = model(x).numpy(), model(fresh).numpy()
    y = shares.argmax(1) if kind == "softmax" else (shares > 0.5).astype(np.float32)
    path = tmp_path / "m.pth"
    converter.save_checkpoint(model, path, example_input=x[:1], calibration=(x, torch.from_numpy(y)))
    convert(plan(path, quantize=quantize, max_drop=5.0))
    bundle = Bundle.open(tmp_path / "m.edge")
    head = bundle.manifest.head
    assert head is not None
    assert (head.activation, head.is_linear) == (kind, True)
    with OnDeviceModel.open(tmp_path / "m.edge", tmp_path / "state") as device:
        near = 1e-5 if quantize == "none" else 0.1
        np.testing.assert_allclose(device.predict(fresh.numpy()), wanted, atol=near)
        np.testing.assert_allclose(device.probabilities(fresh.numpy()), wanted, atol=near)
        said = device.respond("one", fresh[0].numpy(), 0.0)
        if kind == "softmax":
            assert said["confidence"] == pytest.approx(wanted[0].max(), abs=near)
            assert device.add_class("another") == 4
        else:
            assert said["values"] == pytest.approx(wanted[0], abs=near)
        turned = np.array(TURNED)[y] if kind == "softmax" else y[:, TURNED]
        for i in range(200):
            device.learn(x[i : i + 1].numpy(), turned[i : i + 1])
        found = device.predict(fresh.numpy())
        if kind == "softmax":
            assert (found.argmax(1) == np.array(TURNED)[wanted.argmax(1)]).mean() > 0.65
            np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-5)
        else:
            assert ((found > 0.5) == (wanted > 0.5)[:, TURNED]).mean() > 0.85
            assert found.min() >= 0
            assert found.max() <= 1
