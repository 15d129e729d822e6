"""A head of quantities on a device: what its status says, and that labels of nothing do not move it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.agent.model.on_device_model import OnDeviceModel
from edge.cli.running import _status_lines
from tests.converter.models import convert


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers that give the sum of eight numbers, nearly."""
    import torch
    from torch import nn

    import converter
    from converter.plan import ConversionPlan
    from edge.contract.profile import load_profile

    folder = tmp_path_factory.mktemp("sum")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.randn(200, 8)
    with torch.no_grad():
        model[0].weight[:8], model[0].weight[8:] = torch.eye(8), -torch.eye(8)
        model[0].bias.zero_()
        model[2].weight[:, :8], model[2].weight[:, 8:] = 1.0, -1.0
        model[2].bias.zero_()
    source = folder / "sum.pth"
    y = x.sum(dim=1, keepdim=True)
    converter.save_checkpoint(model.eval(), source, example_input=x[:1], calibration=(x, y))
    convert(ConversionPlan(source=source, output=folder / "sum.edge", profile=load_profile("generic-x86_64")))
    return folder / "sum.edge"


def test_status_speaks_of_losses_and_of_labels_that_do_not_go_with_the_samples(bundle: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 8)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    test = rng.normal(size=(50, 8)).astype(np.float32)

    def said(model: OnDeviceModel) -> str:
        status = model.status()
        found = {"device": "d", "release": 0, "models": {"sum": {"bundle": "0" * 64, **status}}, "connected": False}
        return "\n".join(_status_lines(found))

    with OnDeviceModel.open(bundle) as model:
        assert "quantities" in model.status()
        assert "right on" not in said(model)
        before = model.predict(test)
        model.learn(x, rng.permutation(y))
        text = said(model)
        assert "too little to be believed: the head that was trusted before answers" in text
        assert "times the usual one on late labels" in text
        assert "right on" not in text
        np.testing.assert_array_equal(model.predict(test), before)
    with OnDeviceModel.open(bundle) as model:
        model.learn(x, y + 3)
        found = model.status()["quantities"]
        assert found["counts"] == 1.0
        assert found["goes_with"] > 0.9
        assert "mean loss" in said(model)
        assert np.abs(model.predict(test) - test.sum(axis=1, keepdims=True) - 3).mean() < 1.0
