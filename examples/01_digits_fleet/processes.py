"""The processes of the demo: started with our own commands, stopped together, their output kept in files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

# The commands, as modules of the same interpreter: the demo needs no activated environment.
COMMANDS = {
    "edge-convert": "converter.cli",
    "edge-agent": "edge.cli.agent",
    "edge-coordinator": "edge.cli.coordinator",
    "edge-fleet": "edge.cli.fleet",
}


def command(name: str, *arguments: str | Path) -> list[str]:
    """The command line of one of our commands."""
    return [sys.executable, "-m", COMMANDS[name], *map(str, arguments)]


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(what: str, ready: Callable[[], Any], timeout_s: float = 60.0, why: Callable[[], str] = lambda: "") -> Any:
    """Ask until the answer is true, and return it; where it stays false, `why` is asked for the reason."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if answer := ready():
            return answer
        time.sleep(0.1)
    raise TimeoutError(f"{what}: did not happen within {timeout_s:.0f} s{why()}; see the logs")


class Fleet:
    """A broker, a coordinator and agents as real processes in one folder.

    Args:
        folder: Logs and state.
        bundle: What the devices come with; where there is none yet, `add_bundle` gives it to the coordinator later.
        devices: Their ids; they start with the coordinator.
    """

    def __init__(self, folder: Path, bundle: Path, devices: list[str]) -> None:
        self.folder, self.bundle, self.devices = folder, bundle, devices
        self.broker_port, self.http_port = free_port(), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def broker_url(self) -> str:
        """Address of the broker."""
        return f"mqtt://127.0.0.1:{self.broker_port}"

    @property
    def http_url(self) -> str:
        """Address of the coordinator."""
        return f"http://127.0.0.1:{self.http_port}"

    def __enter__(self) -> Fleet:
        self.start_broker()
        self.start_coordinator()
        self.start_agents()
        return self

    def start(self, name: str, line: list[str]) -> None:
        """Start a process; its output goes to ``<name>.log``."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                line, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
            )

    def start_broker(self) -> None:
        """Start the development broker."""
        self.start("broker", command("edge-coordinator", "broker", "--port", str(self.broker_port)))
        wait_for("broker", self._broker_answers)

    def _broker_answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.broker_port)) == 0

    def start_coordinator(self) -> None:
        """Start, or start again, the coordinator."""
        options = ["--broker", self.broker_url, "--http", f"127.0.0.1:{self.http_port}", "--no-merge"]
        if self.bundle.exists():
            options += ["--bundle", str(self.bundle)]
        folder = self.folder / "coordinator"
        self.start("coordinator", command("edge-coordinator", "serve", *options, "--data-dir", folder))

    def add_bundle(self) -> None:
        """Have the running coordinator know the bundle."""
        address = f"{self.http_url}/api/artifacts?file={self.bundle.name}"
        kind = {"Content-Type": "application/octet-stream"}
        asked = urllib.request.Request(address, data=self.bundle.read_bytes(), headers=kind, method="POST")
        with urllib.request.urlopen(asked, timeout=60) as answer:
            answer.read()

    def start_agents(self) -> None:
        """Start the agents of all devices, and wait until the coordinator knows them."""
        for device in self.devices:
            self.start_agent(device)
        for device in self.devices:
            wait_for(f"{device} ready", self.socket_path(device).exists)
        wait_for("all devices known", lambda: self.answers() and len(self.known()) == len(self.devices))

    def answers(self) -> bool:
        """Whether the coordinator is there."""
        try:
            self.asked("health")
        except OSError:
            return False
        return True

    def start_agent(self, device: str) -> None:
        """Start, or start again, an agent."""
        options = ["--sync-interval", "1", "--probation", "2", "--telemetry-interval", "2", "--broker", self.broker_url]
        line = command(
            "edge-agent", "run", self.bundle, "--device", device, "--state-dir", self.folder / device, *options
        )
        self.start(device, line)

    def socket_path(self, device: str) -> Path:
        """Where an agent listens for its application."""
        return self.folder / device / "agent.sock"

    def fleet(self, *arguments: str) -> str:
        """Run ``edge-fleet`` and return what it printed."""
        line = command("edge-fleet", "--coordinator", self.http_url, *arguments)
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        return done.stdout.strip()

    def started(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Run ``edge-fleet`` beside this process; what it prints is kept in it."""
        line = command("edge-fleet", "--coordinator", self.http_url, *arguments)
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def asked(self, what: str) -> Any:
        """What the coordinator's HTTP API answers: ``edge-fleet`` without a process of its own."""
        with urllib.request.urlopen(f"{self.http_url}/api/{what}", timeout=10) as answer:
            return json.load(answer)

    def known(self) -> list[dict[str, Any]]:
        """The devices as the coordinator knows them; none while it does not answer."""
        try:
            rows: list[dict[str, Any]] = self.asked("devices")
        except OSError:
            return []
        return [row for row in rows if row["born"]]

    def kill(self, name: str) -> None:
        """``kill -9``."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
