"""A second bundle, of another network, for pushes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear-head bundle for the digits' input shape, with weights of its own."""
    import torch
    from torch import nn

    import converter
    from converter.plan import ConversionPlan
    from edge.contract.profile import load_profile
    from tests.converter.models import convert

    folder = tmp_path_factory.mktemp("other")
    torch.manual_seed(11)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 24), nn.ReLU(), nn.Linear(24, 10))
    rng = np.random.default_rng(3)
    x = rng.random((200, 1, 8, 8), np.float32)
    with torch.no_grad():
        y = model(torch.from_numpy(x)).argmax(dim=1).numpy()
    converter.save_checkpoint(
        model,
        folder / "other.pth",
        example_input=torch.from_numpy(x[:1]),
        class_names=[str(i) for i in range(10)],
        calibration=(x, y),
    )
    convert(
        ConversionPlan(
            source=folder / "other.pth",
            output=folder / "other.edge",
            profile=load_profile("generic-x86_64"),
            max_drop=100.0,
        )
    )
    return folder / "other.edge"
