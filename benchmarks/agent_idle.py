"""What an agent costs that has nothing to do: resident memory and CPU time, alone, with a broker, with HTTP and a page.

    python benchmarks/agent_idle.py [--bundle model.edge] [--seconds 60]

Starts the real process `edge-agent run` with the digits bundle (made first when none is given), lets it answer one
sample, waits 5 s, and then counts its CPU time by /proc for as long as asked. The broker is mosquitto where it is
installed (the agent connects, says who it is, and sends telemetry every 60 s); the page is asked for `/status` and
`/samples` every 2 s, as a browser that shows it does. The goals, alone and with a broker: at most 80 MiB and 0.5 % of
one core.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.agent_footprint import ENVIRONMENT, make_bundle, resident_mib
from edge.agent.client import AgentClient
from edge.contract.bundle import Bundle
from edge.contract.errors import ChannelError
from edge.coordinator.machine.broker import find_mosquitto

SETTLE_S = 5.0
MOST_MIB, MOST_PERCENT = 80.0, 0.5


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def broker(folder: Path) -> Iterator[str | None]:
    """The address of a broker; None where there is none."""
    program = find_mosquitto()
    if program is None:
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n")
    process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def measure(bundle: Path, folder: Path, seconds: float, *options: str, page: bool = False) -> tuple[float, float]:
    """MiB and percent of one core of an agent that has nothing to do."""
    line = [sys.executable, "-m", "edge.cli.agent", "run", bundle, "--state-dir", folder, "--device", "bench", *options]
    log = folder.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen(line, env=ENVIRONMENT, stderr=file)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                with AgentClient(folder / "agent.sock") as agent:
                    agent.predict("first", np.zeros(Bundle.open(bundle).manifest.inputs[0].sample_shape, np.float32))
                break
            except ChannelError:
                if time.monotonic() > end or process.poll() is not None:
                    raise SystemExit(f"the agent did not start: {log.read_text()}") from None
                time.sleep(0.05)
        time.sleep(SETTLE_S)
        begin_s, begin_cpu_s = time.monotonic(), cpu_s(process.pid)
        while (passed := time.monotonic() - begin_s) < seconds:
            time.sleep(min(2.0, seconds - passed))
            if page:
                address = log.read_text().split("HTTP: ")[1].split()[0]
                for path in ("status", "samples"):
                    with urllib.request.urlopen(address + path, timeout=10) as answer:
                        answer.read()
        used_s = cpu_s(process.pid) - begin_cpu_s
        return resident_mib(process.pid), 100 * used_s / (time.monotonic() - begin_s)
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    """Print the table; the exit code says whether the goals were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = options.bundle or make_bundle(folder)
        with broker(folder) as address:
            ways: list[tuple[str, list[str], bool]] = [("alone", [], False)]
            if address is not None:
                ways.append(("with a broker", ["--broker", address], False))
            http = ["--http", "127.0.0.1:0", "--keep-hard", "50"]
            ways += [("with --http, nobody asks", http, False), ("with --http, a page is open", http, True)]
            print(f"{'nothing to do, ' + format(options.seconds, 'g') + ' s':<32} {'MiB':>7} {'CPU %':>7}")
            met = True
            for i, (text, more, page) in enumerate(ways):
                mib, percent = measure(bundle, folder / f"state{i}", options.seconds, *more, page=page)
                print(f"{text:<32} {mib:7.1f} {percent:7.2f}", flush=True)
                if "http" not in text:
                    met &= mib <= MOST_MIB and percent <= MOST_PERCENT
        print(f"goals without HTTP: at most {MOST_MIB:g} MiB and {MOST_PERCENT:g} %: {'met' if met else 'MISSED'}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
