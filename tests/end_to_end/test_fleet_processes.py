"""The demo's fleet as real processes on a real broker, killed with ``kill -9`` where it hurts (faults 11, 21, 31)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edge.agent.client import AgentClient
from edge.agent.model.on_device_model import OnDeviceModel
from edge.channel.mqtt import MqttTransport
from edge.channel.transport import Received, TransportEvent
from edge.channel.url import BrokerUrl
from edge.contract.errors import EdgeError

pytestmark = pytest.mark.broker
DEVICES = ["one", "two", "three"]
ROOT = Path(__file__).parents[2]


def samples(bundle: Path, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs labelled by the shipped model."""
    model = OnDeviceModel.open(bundle)
    x = np.random.default_rng(seed).random((n, *model.manifest.inputs[0].sample_shape), np.float32)
    return x, model.predict(x).argmax(axis=1)


def teach(fleet: Any, device: str, x: np.ndarray, y: np.ndarray) -> int:
    """Label samples until done or the agent is gone; how many were acknowledged."""
    acknowledged = 0
    try:
        with AgentClient(fleet.socket_path(device)) as agent:
            for i in range(len(x)):
                agent.predict(f"s{i}", x[i])
                acknowledged += bool(agent.label(f"s{i}", int(y[i])))
    except EdgeError:
        pass
    return acknowledged


def status(fleet: Any, device: str) -> dict[str, Any]:
    with AgentClient(fleet.socket_path(device)) as agent:
        return agent.status()


def contributions(fleet: Any) -> dict[str, int]:
    return {row["device"]: row["version"] for row in fleet.asked("contributions")}


def test_fleet_converges_after_kills_of_agent_coordinator_and_broker(
    processes: ModuleType, tmp_path: Path, digits_bundle: Path
) -> None:
    with processes.Fleet(tmp_path, digits_bundle, DEVICES) as fleet:
        x, y = samples(digits_bundle, 120, 1)
        # An agent dies while it learns.
        acknowledged: list[int] = []
        learning = threading.Thread(target=lambda: acknowledged.append(teach(fleet, "one", x, y)))
        learning.start()
        processes.wait_for("some labels", lambda: status(fleet, "one")["samples"] > 20)
        fleet.kill("one")
        learning.join()
        fleet.start_agent("one")
        processes.wait_for("one is back", lambda: answers(fleet, "one"))
        kept = status(fleet, "one")["samples"]
        assert acknowledged[0] <= kept <= acknowledged[0] + 1, "an acknowledged label was lost"
        for device in ("two", "three"):
            assert teach(fleet, device, x, y) == len(x)
        wanted = {"one": kept, "two": len(x), "three": len(x)}
        processes.wait_for("contributions", lambda: contributions(fleet) == wanted)
        # The coordinator dies as soon as it has decided to push.
        fleet.fleet("merge")
        fleet.kill("coordinator")
        # The broker dies too, with everything that it kept.
        fleet.kill("broker")
        time.sleep(1.0)
        fleet.start_broker()
        fleet.start_coordinator()
        processes.wait_for(
            "convergence",
            lambda: [row["state"] for row in fleet.known() if row["release"] == 1] == ["active"] * 3,
            timeout_s=90,
        )
        for device in DEVICES:
            assert status(fleet, device)["release"] == 1
            assert "merged" in status(fleet, device)["experts"]
        heads = {device: status(fleet, device)["head"] for device in DEVICES}
        processes.wait_for("the registry knows", lambda: {row["id"]: row["head"] for row in fleet.known()} == heads)


def test_a_coordinator_that_was_killed_has_all_telemetry_once_and_others_had_it_live(
    processes: ModuleType, tmp_path: Path, digits_bundle: Path
) -> None:
    """The broker was there all the time, and nobody at its other end."""
    with processes.Fleet(tmp_path, digits_bundle, ["one"]) as fleet:
        live: list[int] = []

        def read(event: TransportEvent) -> None:
            if isinstance(event, Received):
                live.append(json.loads(event.payload)["seq"])

        reader = MqttTransport(BrokerUrl.parse(fleet.broker_url), "reader", clean_start=True)
        reader.subscribe([("edge/v1/default/one/up/tele", 1)])
        reader.start(read)
        processes.wait_for("telemetry", lambda: fleet.asked("telemetry"))
        fleet.kill("coordinator")
        gone_at = live[-1] if live else 0
        processes.wait_for("five intervals", lambda: live and live[-1] >= gone_at + 5)
        assert status(fleet, "one")["outbox"]["waiting"] >= 5
        fleet.start_coordinator()
        processes.wait_for("made up for", lambda: status(fleet, "one")["outbox"]["waiting"] == 0, timeout_s=90)
        last = live[-1]
        assert live == list(range(live[0], last + 1)), "others had it when it was made"

        def kept() -> list[int]:
            rows = fleet.asked("telemetry?after=0&limit=1000")
            return sorted(row["seq"] for row in rows if row["seq"] <= last)

        processes.wait_for("the last one", lambda: last in kept())
        assert kept() == list(range(1, last + 1)), "each once, without a gap"
        reader.stop()


def answers(fleet: Any, device: str) -> bool:
    try:
        status(fleet, device)
    except EdgeError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_keeps_its_promise(tmp_path: Path) -> None:
    """`make demo`, without its installation."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples/01_digits_fleet/demo.py", "--output", tmp_path / "out"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "out" / "learning.png").stat().st_size > 10_000
    assert "mosquitto_sub -h 127.0.0.1" in done.stdout
    assert done.stdout.startswith("dashboard: http://127.0.0.1:"), done.stdout[:300]
    pictures = list((tmp_path / "out").glob("p*-*.png"))
    assert len(pictures) == (8 if shutil.which("chromium") else 0), done.stdout[-500:]
    for step in ("before", "after", "merge"):
        assert step in done.stdout
