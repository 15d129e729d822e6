"""``edge-fleet simulate`` with real processes and a real broker; some of them killed with ``kill -9``."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge.coordinator.machine.broker import DevelopmentBroker

pytestmark = pytest.mark.broker

SCENARIO = """
devices = 6
lasts = "12 s"
[samples]
per_minute = 120
labelled = 1.0
[[faults]]
kind = "kill"
at = "6 s"
lasts = "1 s"
share = 0.5
[[faults]]
kind = "offline"
at = "5 s"
lasts = "2 s"
share = 0.5
[[faults]]
kind = "restart"
at = "4 s"
"""


def test_a_fleet_lives_through_its_scenario(
    tmp_path: Path, digits_bundle: Path, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = digits
    np.savez(tmp_path / "d.npz", x=x[500:], y=y[500:])
    (tmp_path / "s.toml").write_text(SCENARIO)
    with DevelopmentBroker.start(tmp_path, 0) as broker:
        command = [
            sys.executable, "-m", "edge.cli.fleet", "simulate", str(digits_bundle), "--data", str(tmp_path / "d.npz"),
            "--broker", broker.url, "--scenario", str(tmp_path / "s.toml"), "--processes", "2", "--json",
            "--learner", "statistics", "--state-dir", str(tmp_path / "kept"),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert found["started"] == found["connected"] == 6
    assert [row["device"] for row in found["devices"]] == [f"sim-{i:05}" for i in range(6)]
    assert found["accuracy"] > 0.8
    assert found["refused"] == 0
    boots = [
        json.loads((tmp_path / "kept" / row["device"] / "device.json").read_text())["boot"] for row in found["devices"]
    ]
    assert sorted(boots) == [2, 2, 2, 3, 3, 3], "all began again, half of them twice, from their disks"
    again = [*command[:3], "simulate", str(digits_bundle), "--data", str(tmp_path / "none.npz"), "--broker", broker.url]
    refused = subprocess.run(again, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 3
    assert "none.npz does not exist" in refused.stderr
