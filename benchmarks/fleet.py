"""What a coordinator bears: telemetry in, a head out, a storm of connections; with real processes on one machine.

    python benchmarks/fleet.py [--devices 200] [--messages 8000] [--repeats 3] [--database URL] [--only ingest storm]

* ingest: so many telemetry messages of 500 devices are sent at once (fewer than the broker keeps), and the time is
  taken from the first one until the last one is in the database; beside it a bare paho receiver that only counts, on
  the same broker, by turns. Goal: 0.7 of its rate.
* push: `edge-fleet simulate` runs agents as they are; a head is pushed to all at once; the time until all say "active".
* storm: the broker is killed and started again; the time until each device has a new session at the coordinator.
* memory and CPU of the coordinator beside these devices, each with telemetry every 10 s.

Everything shares the cores of this machine: broker, coordinator, and 200 agents.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
from label_path import make_bundle
from paho.mqtt.enums import CallbackAPIVersion
from sklearn.datasets import load_digits

from edge.channel import topics
from edge.channel.codec import encode
from edge.channel.messages import Telemetry
from edge.contract.bundle import Bundle
from edge.coordinator.broker import DevelopmentBroker
from edge.learning.exchange import HeadRelease

FLEET = "bench"
GOAL_INGEST, GOAL_PUSH_S, GOAL_STORM_S, GOAL_MIB = 0.7, 60.0, 60.0, 250.0
SENDERS = 500
VALUES = {"accuracy": 0.93, "latency_p50_ms": 1.25, "latency_p99_ms": 4.5, "samples": 1200, "resident_mb": 71.5}

_SEND = """
import sys, time
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
port, path = int(sys.argv[1]), sys.argv[2]
rows = [line.rstrip(b"\\n").split(b" ", 1) for line in open(path, "rb")]
client = paho.Client(CallbackAPIVersion.VERSION2)
client.max_inflight_messages_set(1000); client.max_queued_messages_set(0)
client.connect("127.0.0.1", port); client.loop_start(); time.sleep(0.3)
print(time.monotonic(), flush=True)
for topic, payload in rows: last = client.publish(topic.decode(), payload, 1)
last.wait_for_publish(60); client.disconnect()
"""


def messages_of(count: int, round_: int) -> list[tuple[str, bytes]]:
    """Telemetry of many devices, in turn; no two are alike."""
    found = []
    for i in range(count):
        topic = topics.build(FLEET, f"load-{i % SENDERS:03}", topics.UP_TELE)
        seq = round_ * count + i
        values = {**VALUES, "boot": 1, "session": 1, "seq": seq, "ts_ms": 1_800_000_000_000 + seq, "model": "digits"}
        found.append((topic, encode(Telemetry(values=values))))
    return found


def sent(port: int, folder: Path, messages: list[tuple[str, bytes]]) -> tuple[subprocess.Popen[str], float]:
    """Start to send them from a process of its own; when the first one went."""
    path = folder / "messages"
    path.write_bytes(b"".join(topic.encode() + b" " + payload + b"\n" for topic, payload in messages))
    process = subprocess.Popen([sys.executable, "-c", _SEND, str(port), str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, float(process.stdout.readline())


class Counting:
    """The baseline: a paho client that subscribes to all of the fleet and counts."""

    def __init__(self, port: int) -> None:
        self.count = 0
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.subscribe(f"edge/v1/{FLEET}/#", 1)
        self._client.loop_start()
        time.sleep(0.5)

    def _on_message(self, *_: Any) -> None:
        self.count += 1

    def close(self) -> None:
        """End it."""
        self._client.disconnect()
        self._client.loop_stop()


def wait_for(what: str, is_so: Callable[[], bool], limit_s: float = 300.0) -> float:
    """When it was so."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if is_so():
            return time.monotonic()
        time.sleep(0.05)
    raise SystemExit(f"not within {limit_s:g} s: {what}")


class Coordinator:
    """`edge-coordinator serve` in a process of its own."""

    def __init__(self, port: int, folder: Path, bundle: Path, database: str) -> None:
        self._folder, self._database = folder, database
        with contextlib.closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.http = probe.getsockname()[1]
        command = [
            sys.executable, "-m", "edge.cli.coordinator", "serve", "--broker", f"mqtt://127.0.0.1:{port}",
            "--fleet", FLEET, "--http", f"127.0.0.1:{self.http}", "--data-dir", str(folder), "--bundle", str(bundle),
            "--no-merge",
            *(("--database", database) if database else ()),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("the coordinator answers", lambda: self.get("health") is not None)
        time.sleep(1.0)

    def get(self, path: str) -> Any:
        """What the HTTP API says; None where it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/api/{path}", timeout=30) as answer:
                return json.load(answer)
        except OSError:
            return None

    def query(self, sql: str) -> int:
        """A number out of the database."""
        if self._database:
            import psycopg

            with psycopg.connect(self._database.replace("+psycopg", "")) as connection:
                return int(connection.execute(sql).fetchone()[0])  # type: ignore[index, arg-type]
        path = self._folder / "coordinator.sqlite"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return int(connection.execute(sql).fetchone()[0])

    @property
    def resident_mib(self) -> float:
        """Memory of the process."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024

    @property
    def cpu_s(self) -> float:
        """CPU time of the process."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def ingest(port: int, folder: Path, coordinator: Coordinator, count: int, repeats: int) -> bool:
    """Prints the rates."""
    rates: dict[str, list[float]] = {"paho": [], "coordinator": []}
    lost, cpu = 0, []
    for round_ in range(repeats):
        counting = Counting(port)
        # The coordinator hears these as well: it is stopped meanwhile, and the broker forgets what it was to hear.
        coordinator.process.send_signal(signal.SIGSTOP)
        process, begin = sent(
            port, folder, [(topic.replace("load", "bare"), p) for topic, p in messages_of(count, round_)]
        )
        rates["paho"].append(count / (wait_for("all counted", lambda c=counting: c.count >= count) - begin))  # type: ignore[misc]
        process.wait()
        counting.close()
        coordinator.process.send_signal(signal.SIGCONT)
        wait_for("quiet", lambda: _is_quiet(coordinator))
        before, cpu_before = coordinator.query("select count(*) from telemetry"), coordinator.cpu_s
        process, begin = sent(port, folder, messages_of(count, round_))
        last = {"count": -1, "at": begin}

        def is_through(last: dict[str, Any] = last, before: int = before) -> bool:
            found = coordinator.query("select count(*) from telemetry") - before
            if found != last["count"]:
                last.update(count=found, at=time.monotonic())
            return bool(found >= count or time.monotonic() - last["at"] > 5.0)

        wait_for("all stored", is_through)
        process.wait()
        rates["coordinator"].append(last["count"] / (last["at"] - begin))
        cpu.append(1e3 * (coordinator.cpu_s - cpu_before) / count)
        lost += count - last["count"]
    bare, ours = statistics.median(rates["paho"]), statistics.median(rates["coordinator"])
    print(f"ingest: {ours:,.0f} messages/s into the database, {cpu and statistics.median(cpu):.2f} ms of CPU each; "
          f"{lost} of {count * repeats} lost")  # fmt: skip
    print(f"        a bare paho receiver: {bare:,.0f}/s; ratio {ours / bare:.2f} (goal {GOAL_INGEST})")
    return ours / bare >= GOAL_INGEST and not lost


def _is_quiet(coordinator: Coordinator) -> bool:
    before = coordinator.query("select count(*) from telemetry")
    time.sleep(1.5)
    return coordinator.query("select count(*) from telemetry") == before


@contextlib.contextmanager
def simulated(port: int, bundle: Path, data: Path, devices: int) -> Iterator[None]:
    """So many agents."""
    command = [
        sys.executable, "-m", "edge.cli.fleet", "simulate", str(bundle), "--data", str(data), "--broker",
        f"mqtt://127.0.0.1:{port}", "--fleet", FLEET, "--devices", str(devices), "--processes", "2",
        "--duration", "0 s", "--scenario", str(data.with_suffix(".toml")), "--learner", "statistics",
        "--telemetry-interval", "10", "--probation", "2", "--json",
    ]  # fmt: skip
    data.with_suffix(".toml").write_text("[samples]\nper_minute = 6\n")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def with_devices(
    port: int,
    folder: Path,
    coordinator: Coordinator,
    bundle: Path,
    devices: int,
    only: set[str],
    restart: Callable[[], None],
) -> bool:
    """Push, storm and what the coordinator needs, beside simulated devices."""
    found = load_digits()
    np.savez(folder / "digits.npz", x=(found.images / 16.0).astype(np.float32)[900:, None], y=found.target[900:])
    good = True
    online = "select count(*) from device where id like 'sim-%' and online"
    with simulated(port, bundle, folder / "digits.npz", devices):
        begin = time.monotonic()
        at = wait_for("all devices are online", lambda: coordinator.query(online) == devices, 600.0)
        print(f"start:  {devices} agents online after {at - begin:.0f} s, with what it takes to open them")
        time.sleep(5.0)
        if "push" in only:
            opened = Bundle.open(bundle)
            head = HeadRelease(
                backbone=opened.manifest.backbone_digest, parameters=opened.head_parameters(), origin="bench"
            )
            (folder / "head").write_bytes(head.encode())
            begin = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "edge.cli.fleet", "--coordinator", f"http://127.0.0.1:{coordinator.http}",
                 "push", str(folder / "head"), "--all-at-once"], check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            active = "select count(*) from device_model where device like 'sim-%' and state = 'active'"
            took = wait_for("all active", lambda: coordinator.query(active) == devices) - begin
            print(
                f"push:   a head active on {devices} devices after {took:.1f} s, with 2 s of probation "
                f"(goal {GOAL_PUSH_S:g})"
            )
            good &= took <= GOAL_PUSH_S
        if "storm" in only:
            sessions = "select coalesce(sum(session), 0) from device where id like 'sim-%'"
            before = coordinator.query(sessions)
            restart()
            begin = time.monotonic()
            took = wait_for("all are back", lambda: coordinator.query(sessions) >= before + devices) - begin
            print(f"storm:  {devices} devices back {took:.1f} s after the broker (goal {GOAL_STORM_S:g})")
            good &= took <= GOAL_STORM_S
        if "memory" in only:
            cpu, begin = coordinator.cpu_s, time.monotonic()
            time.sleep(20.0)
            share = (coordinator.cpu_s - cpu) / (time.monotonic() - begin)
            print(f"memory: coordinator {coordinator.resident_mib:.0f} MiB (goal {GOAL_MIB:g}), {share:.1%} of a core "
                  f"for {devices / 10:g} telemetry messages/s")  # fmt: skip
            good &= coordinator.resident_mib <= GOAL_MIB
    return good


def main() -> int:
    """Print the numbers; the exit code says whether the goals were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--messages", type=int, default=8000, help="at most 9000: the broker keeps 10000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--database", default="", help="of PostgreSQL; else SQLite")
    parts = ("ingest", "push", "storm", "memory")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = load_digits()
        x, y = (found.images / 16.0).astype(np.float32)[:400, None], found.target[:400].astype(np.int64)
        bundle = make_bundle(folder, x, y)
        broker = DevelopmentBroker.start(folder / "broker")
        port = int(broker.url.rpartition(":")[2])
        coordinator = Coordinator(port, folder / "coordinator", bundle, options.database)

        def restart() -> None:
            nonlocal broker
            broker.stop()
            broker = DevelopmentBroker.start(folder / "broker", port)

        try:
            if "ingest" in options.only:
                good &= ingest(port, folder, coordinator, options.messages, options.repeats)
            if set(options.only) - {"ingest"}:
                good &= with_devices(port, folder, coordinator, bundle, options.devices, set(options.only), restart)
        finally:
            coordinator.close()
            broker.stop()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
