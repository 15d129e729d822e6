"""``edge-coordinator serve --standby``: the active one is killed in the middle of a rollout, the other one ends it."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.numpy import save_file

from edge.contract.bundle import Bundle
from tests.support.postgres import serve

pytestmark = pytest.mark.broker


@pytest.mark.timeout(240)
def test_a_standby_takes_over_within_30_seconds_after_kill_9(
    processes: ModuleType, tmp_path: Path, digits_bundle: Path
) -> None:
    fleet = processes.Fleet(tmp_path, digits_bundle, ["one", "two"])
    second = processes.free_port()
    with serve() as server:
        options = ["--broker", fleet.broker_url, "--database", server.new(), "--no-merge", "--bundle", digits_bundle]
        line = processes.command("edge-coordinator", "serve", *options, "--data-dir", tmp_path / "shared")
        try:
            fleet.start_broker()
            fleet.start("first", [*line, "--http", f"127.0.0.1:{fleet.http_port}"])
            processes.wait_for("the first", lambda: answers(fleet.http_port))
            fleet.start("second", [*line, "--http", f"127.0.0.1:{second}", "--standby"])
            for device in fleet.devices:
                fleet.start_agent(device)
            processes.wait_for("devices", lambda: len(fleet.known()) == 2)
            head = tmp_path / "head.safetensors"
            save_file({name: array * 1 for name, array in Bundle.open(digits_bundle).head_parameters().items()}, head)
            fleet.fleet("release", "add", str(head))
            plan = tmp_path / "plan.toml"
            plan.write_text('release = 1\nmodel = "off"\nwaves = ["50 %", "100 %"]\nsoak = ["8 s"]\n')
            fleet.fleet("rollout", "start", str(plan))
            processes.wait_for("a wave", lambda: rollout(fleet.http_port)["state"] == "soaking")
            assert not answers(second), "it waits"
            fleet.kill("first")
            killed = time.monotonic()
            processes.wait_for("the second", lambda: answers(second), timeout_s=60)
            assert time.monotonic() - killed < 30
            found = processes.wait_for("the end", lambda: _ended(second), timeout_s=60)
            assert found["counts"] == {"active": 2}
            moved = [(m["event"], m["now"]) for m in found["transitions"] if not m["subject"]]
            assert [now for event, now in moved if event == "pass"] == ["opening", "completed"], moved
            active = [m["subject"] for m in found["transitions"] if m["subject"] and m["now"] == "active"]
            assert sorted(active) == ["one", "two"], "one outcome a device"
        finally:
            fleet.__exit__(None, None, None)


def answers(port: int) -> bool:
    try:
        return bool(asked(port, "health"))
    except OSError:
        return False


def asked(port: int, what: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{what}", timeout=10) as answer:
        return json.load(answer)


def rollout(port: int) -> dict[str, Any]:
    found: dict[str, Any] = asked(port, "v1/rollouts/1")
    return found


def _ended(port: int) -> dict[str, Any] | None:
    found = rollout(port)
    return found if found["state"] == "completed" else None
