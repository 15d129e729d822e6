"""A state folder that an older version wrote is taken over whole: see ``data/state-2``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent.model import releases
from edge.agent.model.answering import LearningLimits
from edge.agent.model.on_device_model import OnDeviceModel
from edge.contract import tensorfile
from edge.contract.errors import BundleError
from tests.support.archives import unpack
from tests.support.killed import kill
from tests.support.values import same

ARCHIVE = Path(__file__).parent / "data" / "state-2" / "folders.tar.xz"
CASES = ["linear/auto", "linear/sgd", "layered/auto"]


def opened(folder: Path, case: str) -> OnDeviceModel:
    bundle, learner = case.split("/")
    limits = LearningLimits(replay_per_class=6)
    path = folder / bundle / "bundle.edge"
    return OnDeviceModel.open(path, folder / case, learner=learner, seed=5, limits=limits)


def told(folder: Path, case: str) -> dict[str, Any]:
    """What the older version made of it: eight labels behind the snapshot, three of which had waited."""
    unpack(ARCHIVE, folder)
    found: dict[str, Any] = json.loads((folder / "expected.json").read_text())[case]
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_folder_of_schema_2_goes_on_where_it_was(tmp_path: Path, case: str) -> None:
    found = told(tmp_path, case)
    expected, x = found["opened"], np.array(found["test"], np.float32)
    (state,) = (tmp_path / case).rglob("state.bin")
    assert state.read_bytes().startswith(b"EDGESTATE2")
    model = opened(tmp_path, case)
    assert model.state.warnings == []
    learned = model.learned
    assert (model.n_samples, list(model.class_names)) == (expected["n_samples"], expected["class_names"])
    assert (learned.release, learned.lineage) == (expected["base_release"], expected["lineage"])
    for name, learner in expected["learners"].items():
        head = model.learning.parameters(learned, name)
        for key, array in learner["parameters"].items():
            np.testing.assert_allclose(head[key], np.array(array), rtol=1e-3, atol=1e-3)
    assert model.learning.n_contributed(learned) == next(iter(expected["learners"].values()))["n_contributed"]
    # The head that was live is the one that is trusted, and it answers as it did.
    assert learned.mixture.weight_of("trusted") > 0.5
    for key, array in expected["head"].items():
        np.testing.assert_allclose(model.learning.parameters(learned, "trusted")[key], np.array(array), rtol=1e-5)
    was = np.array(expected["predictions"])
    trusted = model.learning.run(model.answering.features(x), model.learning.parameters(learned, "trusted"))
    np.testing.assert_allclose(trusted, was, rtol=1e-4, atol=1e-4)
    answers = model.predict(x).argmax(axis=1)
    # Who has learned the class that was added is heard about it at once; the old head had to be replaced for that.
    assert ((answers == was.argmax(axis=1)) | (answers == 3)).all()
    assert (answers == was.argmax(axis=1)).sum() >= 2
    assert learned.trial is not None
    assert (learned.trial.before.release, len(learned.trial.since)) == (expected["previous_release"], 14)
    kill(model)
    assert state.read_bytes().startswith(b"EDGESTATE3"), "it is written anew at once"
    again = opened(tmp_path, case)
    assert again.state.warnings == []
    assert same(again.learned, learned)
    releases.roll_back(again)
    assert (again.learned.release, again.learned.trial) == (expected["previous_release"], None)
    assert again.n_samples == expected["n_samples"], "with the labels since"
    again.close()


@pytest.mark.parametrize("is_old", [True, False])
def test_a_snapshot_with_classes_of_its_own_that_cannot_be_used_is_refused_and_stays(
    tmp_path: Path, is_old: bool
) -> None:
    told(tmp_path, "linear/sgd")
    state_dir = tmp_path / "linear" / "sgd"
    if not is_old:
        opened(tmp_path, "linear/sgd").close()
    for path in state_dir.rglob("state*.bin"):
        data = path.read_bytes()
        description, tensors = tensorfile.decode(data[42:], "learned-state", "")
        name = next(name for name in tensors if name.endswith("replay.scales"))
        body = tensorfile.encode("learned-state", description, {**tensors, name: np.zeros((1, 2, 3), np.float32)})
        path.write_bytes(data[:10] + hashlib.sha256(body).digest() + body)
    before = {path: path.read_bytes() for path in state_dir.rglob("*.bin")}
    with pytest.raises(BundleError, match="delete it to start anew"):
        opened(tmp_path, "linear/sgd")
    assert {path: path.read_bytes() for path in state_dir.rglob("*.bin")} == before


@pytest.mark.parametrize("position", [0, 20, 60])
def test_a_damaged_record_of_an_old_journal_costs_itself_only(tmp_path: Path, position: int) -> None:
    expected = told(tmp_path, "linear/sgd")["opened"]
    path = max((tmp_path / "linear/sgd").rglob("journal-*.bin"), key=lambda each: int(each.stem.split("-")[1]))
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    model = opened(tmp_path, "linear/sgd")
    assert expected["n_samples"] > model.n_samples >= expected["n_samples"] - 5
    assert "damaged" in model.state.warnings[0]
    model.close()
