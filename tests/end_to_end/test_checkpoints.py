"""What was learned survives the device: real processes, a real broker, ``kill -9`` in the middle (faults 21, 53)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edge.agent.client import AgentClient
from edge.agent.model.on_device_model import OnDeviceModel
from edge.contract.errors import EdgeError

pytestmark = pytest.mark.broker


def status(fleet: Any, device: str) -> dict[str, Any]:
    try:
        with AgentClient(fleet.socket_path(device)) as agent:
            return agent.status()
    except EdgeError:
        return {}


def test_a_killed_device_s_knowledge_goes_on_in_another_and_over_a_stick(
    processes: ModuleType, tmp_path: Path, digits_bundle: Path
) -> None:
    with OnDeviceModel.open(digits_bundle) as model:
        x = np.random.default_rng(1).random((30, *model.manifest.inputs[0].sample_shape), np.float32)
        y = model.predict(x).argmax(axis=1)
    with processes.Fleet(tmp_path, digits_bundle, ["old"]) as fleet:
        with AgentClient(fleet.socket_path("old")) as agent:
            for i in range(30):
                agent.predict(f"s{i}", x[i])
                assert agent.label(f"s{i}", int(y[i]))
        assert "30 labels" in fleet.fleet("device", "checkpoint", "old")
        (row,) = fleet.asked("v1/devices/old/checkpoints")
        assert (row["samples"], row["has_samples"]) == (30, False)
        fleet.kill("old")
        fleet.start_agent("new")
        processes.wait_for("new is known", lambda: len(fleet.known()) == 2)
        order = fleet.fleet("device", "restore", "new", "--from", "old", "--force", "--wait", "0", "--json")
        fleet.kill("new")  # wherever it is with it
        fleet.start_agent("new")
        number = json.loads(order)["number"]
        processes.wait_for("the answer", lambda: fleet.asked(f"v1/orders/{number}")["state"] == "done")
        assert processes.wait_for("a status", lambda: status(fleet, "new"))["samples"] == 30
        # And a site without a network.
        line = ["--device", "island", "--state-dir", str(tmp_path / "island"), "--probation", "1"]
        fleet.start("island", processes.command("edge-agent", "run", digits_bundle, *line))
        processes.wait_for("the island answers", lambda: status(fleet, "island"))

        def on_the_island(*arguments: str) -> None:
            command = processes.command("edge-agent", *arguments, "--state-dir", tmp_path / "island")
            subprocess.run(command, check=True, capture_output=True)

        on_the_island("export", str(tmp_path / "out"), "--for-fleet")
        assert "island: kept 0 documents" in fleet.fleet("import", str(tmp_path / "out"))
        fleet.fleet("device", "restore", "island", "--from", "old", "--force", "--wait", "0")
        fleet.fleet("export-release", str(tmp_path / "in"), "--device", "island")
        on_the_island("import", str(tmp_path / "in"))
        processes.wait_for("it goes on", lambda: status(fleet, "island").get("samples") == 30)
