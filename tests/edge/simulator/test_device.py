"""A simulated device is an agent: what it answers, learns and keeps is the product's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.agent.config import AgentConfig
from edge.channel.topics import UP_BIRTH
from edge.channel.transport import Connected
from edge.contract.clock import Now
from edge.contract.profile import load_profile
from edge.simulator.device import SimulatedDevice
from edge.simulator.scenario import Fault, Samples, Scenario
from edge.simulator.world import Recording

SCENARIO = Scenario(samples=Samples(per_minute=60.0, labelled=1.0, late="2 s"))


def at(second: float) -> Now:
    return Now(1000.0 + second, 1_800_000_000_000 + int(second * 1000))


@pytest.fixture
def recording(digits: tuple[np.ndarray, np.ndarray]) -> Recording:
    x, y = digits
    return Recording(x[500:700], y[500:700])


@pytest.fixture
def config(tmp_path: Path, digits_bundle: Path) -> AgentConfig:
    return AgentConfig(
        fleet="lab", device="sim-00000", state_dir=tmp_path, bundles={"digits": digits_bundle},
        profile=load_profile("generic-x86_64"), learner="statistics", executor="numpy", provider="cpu",
    )  # fmt: skip


def run(device: SimulatedDevice, begin: float, end: float) -> None:
    """Let it do what is due, and nothing else."""
    while (due := device.due_s - 1000.0) < end:
        device.step(at(max(due, begin)))


def test_it_asks_and_labels_as_the_scenario_says_and_goes_on_from_its_disk(
    config: AgentConfig, recording: Recording
) -> None:
    device = SimulatedDevice(config, recording, SCENARIO, 0, at(0))
    run(device, 0, 60)
    assert device.tally.samples == 60
    assert device.tally.labels == 58, "the last ones come two seconds late"
    assert device.tally.right / device.tally.judged > 0.8
    learned = device.core.status()["samples"]
    assert learned == 58
    device.stop(at(60))
    assert not device.is_running
    assert device.step(at(61))[0] == []
    device.start()
    assert device.core.status()["samples"] == learned
    device.take(Connected(session_present=False, max_packet_bytes=1 << 20), at(62))
    assert any(each.topic.endswith(UP_BIRTH) for each in device.step(at(62))[0])
    device.stop(at(63))


def test_the_truth_is_not_what_wrong_labels_say_and_faults_pass(config: AgentConfig, recording: Recording) -> None:
    device = SimulatedDevice(config, recording, replace(SCENARIO, seed=1), 0, at(0))
    wrong, drift = Fault(kind="wrong", at="0 s"), Fault(kind="drift", at="0 s")
    run(device, 0, 20)
    before = device.tally.right
    device.begin(wrong)
    run(device, 20, 23)
    assert device.tally.right >= before, "answers are compared with what was seen"
    device.end(wrong)
    device.begin(drift)
    device.end(drift)
    asked = device.tally.samples
    device.stop(at(23))
    assert device.tally.refused == 0
    assert asked == 23
