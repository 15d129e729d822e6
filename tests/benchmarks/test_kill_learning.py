"""The life that `benchmarks/kill_learning.py` lets a device live: each of its steps can be taken, by all of `auto`."""

from __future__ import annotations

from pathlib import Path

from benchmarks import kill_learning
from edge.agent.model.on_device_model import OnDeviceModel
from tests.support.killed import kill


def test_a_whole_round_of_steps_and_what_is_found_after_it(tmp_path: Path, digits_bundle: Path) -> None:
    model = OnDeviceModel.open(digits_bundle, tmp_path, executor="numpy")
    assert "lifted" in model.learning.learners
    for number in range(kill_learning.N_STEPS):
        kill_learning.step(model, number)
    assert len(model.class_names) == 11
    assert {"pushed", "merged"} & set(model.learned.mixture.names)
    kill(model)
    again = OnDeviceModel.open(digits_bundle, tmp_path, executor="numpy")
    assert again.state.warnings == []
    assert kill_learning.same(again.learned, model.learned)
    kill_learning.step(again, kill_learning.N_STEPS)
    assert not kill_learning.same(again.learned, model.learned), "a step makes a difference"
    again.close()
