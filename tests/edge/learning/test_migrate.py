"""Checkpoints of the schema EDGESTATE2, from before values: `tests/edge/agent/data/state-2`, by the code of then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent.model.candidates import Workshop
from edge.contract import tensorfile
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.inference.onnx_session import OnnxSession
from edge.learning.learner import Learner, State, part
from edge.learning.migrate import of_schema_2
from edge.learning.task import Task
from tests.support.archives import unpack

ARCHIVE = Path(__file__).parents[1] / "agent" / "data" / "state-2" / "folders.tar.xz"
CASES = ("linear/auto", "linear/sgd", "layered/auto")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state-2")
    unpack(ARCHIVE, folder)
    return folder


def learners(bundle: Bundle, name: str) -> dict[str, Learner]:
    assert bundle.manifest.head is not None
    workshop = Workshop(
        bundle=bundle,
        session=OnnxSession(bundle, 1),
        task=Task(bundle.manifest.head.training, 3),
        executor="auto",
        per_class=6,
        max_state_mb=256,
        seed=5,
    )
    found = {each: workshop.learner(each) for each in workshop.learning(name).learners}
    return {each: learner for each, learner in found.items() if each != "lifted"}  # it is newer


def checkpoint(folders: Path, case: str) -> State:
    (path,) = (folders / case).rglob("state.bin")
    return tensorfile.decode(path.read_bytes()[len(b"EDGESTATE2") + 32 :], "learned-state", "x")[1]


def same_head(learner: Learner, expected: dict[str, Any]) -> None:
    found = learner.parameters()
    assert found.keys() == expected["parameters"].keys()
    for name, values in expected["parameters"].items():
        np.testing.assert_array_equal(found[name], np.array(values, np.float32), err_msg=name)
    assert (learner.n_samples, learner.n_contributed) == (expected["n_samples"], expected["n_contributed"])


@pytest.mark.parametrize("case", CASES)
def test_each_learner_knows_what_it_knew(folders: Path, case: str) -> None:
    bundle = Bundle.open(folders / case.split("/", maxsplit=1)[0] / "bundle.edge")
    expected = json.loads((folders / "expected.json").read_text())[case]["checkpoint"]
    tensors = checkpoint(folders, case)
    for name, learner in learners(bundle, case.split("/")[1]).items():
        old = part(tensors, f"candidate.{name}.")
        like, before = learner.template(4), learner.value
        learner.load(of_schema_2(old, like))
        same_head(learner, expected["learners"][name])
        # From before the last release, which was on probation.
        previous = of_schema_2(part(tensors, f"previous.candidate.{name}."), like)
        learner.load(previous)
        assert learner.n_samples == expected["n_samples"] - 6
        learner.load(before)
        for missing in old:
            if not missing.startswith("offset."):
                with pytest.raises(LearningError):
                    of_schema_2({n: a for n, a in old.items() if n != missing}, like)
            with pytest.raises(LearningError):
                of_schema_2(old | {missing: np.zeros((2, 2, 2, 2), old[missing].dtype)}, like)
        with pytest.raises(LearningError):
            of_schema_2(old, learner.template(3))
        assert learner.value is before


def test_beside_the_layered_learner_sgd_begins_with_what_the_shipped_head_names_so(folders: Path) -> None:
    bundle = Bundle.open(folders / "layered" / "bundle.edge")
    found = learners(bundle, "auto")
    assert list(found) == ["layered", "sgd"]
    (sgd, layered) = (found[name].value for name in ("sgd", "layered"))
    assert len(sgd.replay) == sgd.replay.seen.sum() > 0
    assert sgd.n_samples == len(layered.below.replay) == 0
    features, labels = sgd.replay.everything(bundle.manifest.head.features.sample_shape)
    outputs = OnnxSession(bundle, 1).logits(features, bundle.head_parameters())
    assert (outputs.argmax(axis=1) == labels).mean() > 0.9  # but for rounding to int8
