"""What a coordinator bears: telemetry in, a head out, a storm of connections; with real processes on one machine.

    python benchmarks/fleet.py [--devices 200] [--messages 8000] [--repeats 3] [--database URL] [--only ingest storm]

* ingest: so many telemetry messages of 500 devices are sent at once (fewer than the broker keeps), and the time is
  taken from the first one until the last one is in the database; beside it a bare paho receiver that only counts, on
  the same broker, by turns. Goal: 0.7 of its rate. Whoever sends, a paho client, too, may be what takes longest: the
  CPU of both receivers says what is left.
* fair: one of these devices sends as many as all others together: those of the others are all kept.
* many: 10,000 devices that have introduced themselves, each with a message a minute.
* two: as ingest, into two coordinators that take in together; with PostgreSQL only.
* merge: 1,000 heads of 66,954 parameters by turns with Flower's functions, where `flwr` is installed.
* push: `edge-fleet simulate` runs agents as they are; a head is pushed to all at once; the time until all say "active",
  or have taken it back because labels speak against it.
* storm: the broker is killed and started again; the time until each device has a new session at the coordinator.
* memory and CPU of the coordinator beside these devices, each with telemetry every 10 s.

Everything shares the cores of this machine: broker, coordinator, and 200 agents.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
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
from edge.channel.messages import Birth, Served, Telemetry
from edge.contract.bundle import Bundle
from edge.coordinator.machine.broker import DevelopmentBroker
from edge.learning.exchange import HeadRelease
from edge.merging.deltas import Delta, apply_change, mean_change
from edge.merging.robust import trimmed_mean

FLEET = "bench"
MANY = 10_000
STORED = "select count(*) from telemetry"
GOAL_OF_TWO, GOAL_SHARE, GOAL_MERGE = 5000.0, 0.5, {"mean": 0.6, "trimmed mean": 0.3}
GOAL_INGEST, GOAL_PUSH_S, GOAL_STORM_S, GOAL_MIB = 0.7, 60.0, 60.0, 250.0
SENDERS = 500
VALUES = {"accuracy": 0.93, "latency_p50_ms": 1.25, "latency_p99_ms": 4.5, "samples": 1200, "resident_mb": 71.5}

_SEND = """
import sys, time
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
port, path, pause_s = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
rows = [line.rstrip(b"\\n").split(b" ", 1) for line in open(path, "rb")]
client = paho.Client(CallbackAPIVersion.VERSION2)
client.max_inflight_messages_set(1000); client.max_queued_messages_set(0)
client.connect("127.0.0.1", port); client.loop_start(); time.sleep(0.3)
print(time.monotonic(), flush=True)
begin = time.monotonic()
for i, (topic, payload) in enumerate(rows):
    last = client.publish(topic.decode(), payload, 1)
    if pause_s: time.sleep(max(0.0, begin + i * pause_s - time.monotonic()))
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


def sent(
    port: int, folder: Path, messages: list[tuple[str, bytes]], pause_s: float = 0.0
) -> tuple[subprocess.Popen[str], float]:
    """Start to send them from a process of its own, so long after each other; when the first one went."""
    path = folder / "messages"
    path.write_bytes(b"".join(topic.encode() + b" " + payload + b"\n" for topic, payload in messages))
    command = [sys.executable, "-c", _SEND, str(port), str(path), str(pause_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
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

    def __init__(self, port: int, folder: Path, bundle: Path, database: str, *options: str, leads: bool = True) -> None:
        self._folder, self._database = folder, database
        self._asking: Any = None
        with contextlib.closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.http = probe.getsockname()[1]
        command = [
            sys.executable, "-m", "edge.cli.coordinator", "serve", "--broker", f"mqtt://127.0.0.1:{port}",
            "--fleet", FLEET, "--http", f"127.0.0.1:{self.http}", "--data-dir", str(folder), "--bundle", str(bundle),
            "--no-merge",
            *(("--database", database) if database else ()), *options,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if leads:
            wait_for("the coordinator answers", lambda: self.get("health") is not None)
        time.sleep(1.0 if leads else 8.0)

    def get(self, path: str) -> Any:
        """What the HTTP API says; None where it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/api/{path}", timeout=30) as answer:
                return json.load(answer)
        except OSError:
            return None

    def query(self, sql: str) -> int:
        """A number out of the database, by a connection that is kept: to make one costs more than to ask."""
        if self._asking is None and self._database:
            import psycopg

            self._asking = psycopg.connect(self._database.replace("+psycopg", ""), autocommit=True)
        elif self._asking is None:
            path = self._folder / "coordinator.sqlite"
            self._asking = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        return int(self._asking.execute(sql).fetchone()[0])

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
        if self._asking is not None:
            self._asking.close()
            self._asking = None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def ingest(port: int, folder: Path, coordinators: list[Coordinator], count: int, repeats: int) -> bool:
    """Prints the rates; of one coordinator beside those of a bare receiver."""
    bare, ours, bare_ms, ours_ms, lost = [], [], [], [], 0
    first = 100 * len(coordinators)  # whatever was sent before would be a repeat
    for round_ in range(repeats):
        # The coordinator hears these as well: it is stopped meanwhile, and the broker forgets what it was to hear.
        for each in coordinators:
            each.process.send_signal(signal.SIGSTOP)
        counting = Counting(port)
        messages = [(topic.replace("load", "bare"), payload) for topic, payload in messages_of(count, first + round_)]
        process, begin = sent(port, folder, messages)
        cpu_s = time.process_time()
        bare.append(count / (wait_for("all counted", lambda c=counting: c.count >= count) - begin))  # type: ignore[misc]
        bare_ms.append(1e3 * (time.process_time() - cpu_s) / count)
        process.wait()
        counting.close()
        for each in coordinators:
            each.process.send_signal(signal.SIGCONT)
        wait_for("quiet", lambda: _is_quiet(coordinators[0]))
        cpu_s = sum(each.cpu_s for each in coordinators)
        kept, took_s = stored(port, folder, coordinators[0], messages_of(count, first + round_))
        ours.append(kept / took_s)
        ours_ms.append(1e3 * (sum(each.cpu_s for each in coordinators) - cpu_s) / count)
        lost += count - kept
    rate, of_paho = statistics.median(ours), statistics.median(bare)
    name = "ingest" if len(coordinators) == 1 else "two"
    goal = GOAL_INGEST * of_paho if len(coordinators) == 1 else GOAL_OF_TWO
    cpu_ms = statistics.median(ours_ms)
    print(f"{name + ':':<8}{rate:,.0f} messages/s into the database (goal {goal:,.0f}), {cpu_ms:.3f} ms of CPU each; "
          f"{lost} of {count * repeats} lost")  # fmt: skip
    print(f"        a bare paho receiver: {of_paho:,.0f}/s, {statistics.median(bare_ms):.3f} ms; "
          f"ratio {rate / of_paho:.2f}")  # fmt: skip
    return rate >= goal and not lost


def stored(
    port: int, folder: Path, coordinator: Coordinator, messages: list[tuple[str, bytes]], pause_s: float = 0.0
) -> tuple[int, float]:
    """Send messages, so long after each other: how many are kept, and the seconds until the last one was."""
    newest = coordinator.query("select coalesce(max(id), 0) from telemetry")
    process, begin = sent(port, folder, messages, pause_s)
    last: dict[str, Any] = {"count": -1, "at": begin}

    def is_through() -> bool:
        found = coordinator.query(f"{STORED} where id > {newest}")
        if found != last["count"]:
            last.update(count=found, at=time.monotonic())
        return bool(found >= len(messages) or time.monotonic() - last["at"] > 15.0)

    wait_for("all stored", is_through)
    process.wait()
    return last["count"], last["at"] - begin


def _is_quiet(coordinator: Coordinator) -> bool:
    before = coordinator.query(STORED)
    time.sleep(1.5)
    return coordinator.query(STORED) == before


def fair(port: int, folder: Path, coordinator: Coordinator) -> bool:
    """One device floods: prints what is kept of it and of the others."""
    honest = [(topic.replace("load", "good"), payload) for topic, payload in messages_of(4000, 0)]
    flood = topics.build(FLEET, "flood", topics.UP_TELE)
    mixed = [each for good, (_, payload) in zip(honest, messages_of(4000, 1), strict=True)
             for each in (good, (flood, payload))]  # fmt: skip
    stored(port, folder, coordinator, mixed)
    of_good = coordinator.query(f"{STORED} where device like 'good-%'")
    of_flood = coordinator.query(f"{STORED} where device = 'flood'")
    print(f"fair:   of 500 devices {of_good} of {len(honest)} are kept, of one that sends as much as they all "
          f"{of_flood} of 4000")  # fmt: skip
    return of_good == len(honest) and of_flood < 4000


def many(port: int, folder: Path, coordinator: Coordinator) -> bool:
    """10,000 devices with a message a minute: prints what they cost."""
    names = [f"many-{i:05}" for i in range(MANY)]
    served = Served(model="digits", bundle="", backbone="e" * 64, head="", release=0, n_labels=0)
    birth = encode(Birth(
        agent_version="", boot=1, session=1, ts_ms=0, profile="", hardware={}, bundle="", backbone="e" * 64, head="",
        release=0, n_labels=0, limits={"telemetry_s": 60.0}, models=(served,), state_id="a" * 32,
    ))  # fmt: skip
    born = "select count(*) from device where id like 'many-%' and born"
    for start in range(0, MANY, 2000):  # a broker keeps no more than it is told to
        process, _ = sent(
            port, folder, [(topics.build(FLEET, n, topics.UP_BIRTH), birth) for n in names[start:][:2000]]
        )
        wait_for("births", lambda n=start + 2000: coordinator.query(born) >= min(n, MANY))  # type: ignore[misc]
        process.wait()
    values = {**VALUES, "boot": 1, "session": 1, "ts_ms": 0, "model": "digits"}
    messages = [
        (topics.build(FLEET, names[i * 7 % MANY], topics.UP_TELE), encode(Telemetry(values=values | {"seq": i})))
        for i in range(MANY // 2)
    ]
    wait_for("quiet", lambda: _is_quiet(coordinator))
    cpu_s = coordinator.cpu_s
    kept, took_s = stored(port, folder, coordinator, messages, 60.0 / MANY)
    share = (coordinator.cpu_s - cpu_s) / took_s
    print(f"many:   {MANY} devices with a message a minute: {share:.1%} of a core (goal {GOAL_SHARE:.0%}), "
          f"{coordinator.resident_mib:.0f} MiB; {kept} of {len(messages)} kept")  # fmt: skip
    return share <= GOAL_SHARE and kept == len(messages)


def merge() -> bool:
    """1,000 heads of an MLP: prints what it takes, by turns with Flower."""
    rng = np.random.default_rng(0)
    shapes = {"hidden.weight": (512, 128), "hidden.bias": (128,), "out.weight": (128, 10), "out.bias": (10,)}
    base = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    deltas = [
        Delta(change={name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()},
              n_samples=int(rng.integers(10, 200)))
        for _ in range(1000)
    ]  # fmt: skip
    ours: dict[str, Callable[[], Any]] = {
        "mean": lambda: apply_change(base, mean_change(base, deltas)),
        "trimmed mean": lambda: trimmed_mean(base, deltas, 200),
    }
    theirs: dict[str, Callable[[], Any]] = {}
    with contextlib.suppress(ImportError):
        flower = importlib.import_module("flwr.server.strategy.aggregate")
        heads = [([*delta.change.values()], delta.n_samples) for delta in deltas]
        theirs = {
            "mean": lambda: flower.aggregate(heads),
            "trimmed mean": lambda: flower.aggregate_trimmed_avg(heads, 0.2),
        }
    good = True
    for name, run in ours.items():
        times, of_flower = [], []
        for _ in range(9 if name == "mean" else 3):
            times.append(_cpu_ms(run))
            of_flower += [_cpu_ms(theirs[name])] if theirs else []
        text = f"merge:  {name} of 1000 heads of 66,954 parameters: {statistics.median(times):.0f} ms of CPU"
        if theirs:
            ratio, goal = statistics.median(times) / statistics.median(of_flower), GOAL_MERGE[name]
            good &= ratio <= goal
            text += f", Flower's {statistics.median(of_flower):.0f}: {ratio:.2f} (goal {goal})"
        print(text if theirs else f"{text}; flwr is not installed, so it is not compared")
    return good


def _cpu_ms(run: Callable[[], Any]) -> float:
    begin = time.process_time()
    run()
    return 1e3 * (time.process_time() - begin)


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
            of_state = "select count(*) from device_model where device like 'sim-%' and state = 'active'"
            # One whose labels speak against the head takes it back, as it should: it has dealt with it, too.
            settled = of_state.replace("= 'active'", "in ('active', 'rolled-back')")
            took = wait_for("all have dealt with it", lambda: coordinator.query(settled) == devices) - begin
            print(
                f"push:   a head active on {coordinator.query(of_state)} of {devices} devices (the rest took it back) "
                f"after {took:.1f} s, with 2 s of probation (goal {GOAL_PUSH_S:g})"
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
    parts = ("merge", "ingest", "fair", "many", "push", "storm", "memory", "two")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    if "two" in options.only and not options.database:
        why = "two coordinators share a PostgreSQL database: give its address with --database"
        if options.only is not parts:
            parser.error(f"--only two: {why}")
        print(f"two:    not run, so neither met nor missed; {why}")
    good = merge() if "merge" in options.only else True
    if not set(options.only) - {"merge"}:
        return 0 if good else 1
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

        others: list[Coordinator] = []
        try:
            if "ingest" in options.only:
                good &= ingest(port, folder, [coordinator], options.messages, options.repeats)
            if "fair" in options.only:
                good &= fair(port, folder, coordinator)
            if "many" in options.only:
                good &= many(port, folder, coordinator)
            if set(options.only) & {"push", "storm", "memory"}:
                good &= with_devices(port, folder, coordinator, bundle, options.devices, set(options.only), restart)
            if "two" in options.only and options.database:
                coordinator.close()
                shared = [port, folder / "coordinator", bundle, options.database, "--intake", "share", "--name"]
                others = [Coordinator(*shared, "c1"), Coordinator(*shared, "c2", leads=False)]  # type: ignore[arg-type]
                good &= ingest(port, folder, others, options.messages, options.repeats)
        finally:
            for each in [coordinator, *others]:
                each.close()
            broker.stop()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
