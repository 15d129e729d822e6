"""A state folder that an older version wrote is taken over whole: see ``data/state-2``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edge.agent.on_device_model import LearningLimits, OnDeviceModel

ARCHIVE = Path(__file__).parent / "data" / "state-2" / "folders.tar.xz"


@pytest.mark.parametrize("case", ["linear/auto", "linear/sgd", "layered/auto"])
def test_a_folder_of_schema_2_goes_on_where_it_was(tmp_path: Path, case: str) -> None:
    shutil.unpack_archive(ARCHIVE, tmp_path, filter="data")
    bundle, learner = case.split("/")
    told = json.loads((tmp_path / "expected.json").read_text())[case]
    expected = told["opened"]
    path, limits = tmp_path / bundle / "bundle.edge", LearningLimits(replay_per_class=6)
    for _ in range(2):  # as the older version left it, and as this one does
        model = OnDeviceModel.open(path, tmp_path / case, learner=learner, seed=5, limits=limits)
        assert model.warnings == []
        assert model.n_samples == expected["n_samples"]
        assert list(model.class_names) == expected["class_names"]
        assert model.base_release == expected["base_release"]
        x = np.array(told["test"], np.float32)
        np.testing.assert_allclose(model.predict(x), np.array(expected["predictions"]), rtol=1e-4, atol=1e-4)
        model.close()
