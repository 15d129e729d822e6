"""A day of a small fleet in simulated time: nothing may grow in its second half.

    python benchmarks/soak.py [--bundle model.edge] [--hours 24] [--devices 2] [--no-kills]

Real agents and a real coordinator on the in-memory broker, with a clock that is handed in. Each hour a device loses its
line for ten minutes, learns labels (in the second half of each six hours of a world that has turned by 90 degrees), and
every other hour everybody is pushed a head or a bundle; every four hours an agent and the coordinator are killed and
started again. After each hour the process's resident memory, threads, open files and Python objects, the files of
each state folder and of the coordinator, and what the agents hold in queues are counted. The counts of the last quarter
may not be above those of the second one by more than the bounds below, which the end says line by line. What is kept by
design (on a device the journal of labels and heads up to the next snapshot, on the coordinator releases, events, and
telemetry up to its retention) is told and not judged: how much came in each of the two quarters. Samples that wait for
labels, and labels, are remembered up to a number that a device would not reach in a day; here it is 64. A coordinator
that is killed is only let go of in this process, where SQLAlchemy keeps its engine, some 8,000 objects; `--no-kills`
leaves them out.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sqlite3
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agent_footprint import make_bundle
from edge.agent.device.health import resident_mb
from edge.contract.bundle import Bundle
from edge.learning.exchange import HeadRelease
from tests.support.fleet import SimulatedFleet, unhurried

BOUNDS = {
    "resident MiB": 8.0, "threads": 0.0, "open files": 2.0, "thousand objects": 8.0, "queued": 4.0, "device files": 4.0,
}  # fmt: skip
REMEMBERED = 64
STEP_S = 10.0


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Of scikit-learn, ``(1797, 1, 8, 8)`` and labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images[:, None] / 16.0).astype(np.float32), found.target.astype(np.int64)


def folder_mib(path: Path) -> float:
    """Of all files below."""
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) / 2**20


def n_files(path: Path) -> int:
    """Below a folder."""
    return sum(each.is_file() for each in path.rglob("*"))


def queued(fleet: SimulatedFleet) -> float:
    """Messages that wait somewhere in memory."""
    agents = fleet.agents.values()
    held = sum(len(each.core._out) + len(each.core._events) + len(each.core._reports._between) for each in agents)
    assert fleet.coordinator is not None
    return float(held + len(fleet.coordinator.dialogue._out))


def counts(fleet: SimulatedFleet) -> dict[str, float]:
    """What may not grow."""
    gc.collect()
    return {
        "resident MiB": resident_mb() or 0.0,
        "threads": float(threading.active_count()),
        "open files": float(len(list(Path("/proc/self/fd").iterdir()))),
        "thousand objects": len(gc.get_objects()) / 1000,
        "queued": queued(fleet),
        "device files": float(max(n_files(fleet.folder / name) for name in fleet.agents)),
    }


def kept(fleet: SimulatedFleet) -> dict[str, float]:
    """What grows by design."""
    device, coordinator = fleet.folder / min(fleet.agents), fleet.folder / "coordinator"
    with sqlite3.connect(f"file:{coordinator / 'db.sqlite'}?mode=ro", uri=True) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = sum(database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables)
    database.close()
    return {
        "device MiB": folder_mib(device),
        "coordinator MiB": folder_mib(coordinator),
        "coordinator files": float(n_files(coordinator)),
        "coordinator rows": float(rows),
    }


def push(fleet: SimulatedFleet, bundle: Path, hour: int) -> None:
    """A head that differs from the shipped one by a little noise, or the bundle once more."""
    assert fleet.coordinator is not None
    if hour % 4 == 0:
        kept = fleet.coordinator.add_artifact(bundle.read_bytes(), bundle)
    else:
        opened, rng = Bundle.open(bundle), np.random.default_rng(hour)
        head = {
            name: (array + 1e-3 * rng.standard_normal(array.shape)).astype(np.float32)
            for name, array in opened.head_parameters().items()
        }
        data = HeadRelease(backbone=opened.manifest.backbone_digest, parameters=head, origin="soak").encode()
        kept = fleet.coordinator.add_artifact(data, Path("head.safetensors"))
    fleet.coordinator.push(kept["digest"], kept["kind"], kept["backbone"], [], f"hour {hour}", fleet.now)


def an_hour(
    fleet: SimulatedFleet, bundle: Path, hour: int, data: tuple[np.ndarray, np.ndarray], kills: bool = True
) -> None:
    """See the module."""
    x, y = data
    names = sorted(fleet.agents)
    away, rng = names[hour % len(names)], np.random.default_rng(hour)
    if hour % 2:
        push(fleet, bundle, hour)
    if kills and hour % 4 == 2:
        fleet.crash_agent(away)
        fleet.start_agent(away)
        fleet.crash_coordinator()
        fleet.start_coordinator()
    rows = rng.choice(len(x), 40, replace=False)
    seen = np.rot90(x[rows], axes=(2, 3)) if hour % 6 >= 3 else x[rows]
    for name in names:
        fleet.teach(name, np.ascontiguousarray(seen), y[rows], f"{hour}-")
    begin_s = fleet.now_s
    while fleet.now_s < begin_s + 3600.0:
        if fleet.now_s == begin_s + 600.0:
            fleet.broker.disconnect(away)
        if fleet.now_s == begin_s + 1200.0:
            agent = fleet.agents[away]
            agent.transport = fleet.connect(away)
            agent.start(fleet.now)
        fleet.step(STEP_S)


def main() -> None:
    """Let it run, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--kills", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    data, began_s = digits(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or make_bundle(Path(folder))
        names = [f"device-{n}" for n in range(options.devices)]
        profile = unhurried()
        profile = replace(profile, learning=replace(profile.learning, label_ring_size=REMEMBERED))
        times: dict[str, Any] = {"telemetry_interval_s": 60.0, "sync_interval_s": 600.0}
        fleet = SimulatedFleet(Path(folder) / "fleet", bundle, names, profile=profile, **times)
        found: list[dict[str, float]] = []
        told: list[dict[str, float]] = []
        try:
            for hour in range(options.hours):
                an_hour(fleet, bundle, hour, data, options.kills)
                found.append(counts(fleet))
                told.append(kept(fleet))
                shown = ", ".join(f"{name} {value:.1f}" for name, value in {**found[-1], **told[-1]}.items())
                print(f"hour {hour + 1}: {shown}", flush=True)
            events = {row.name for row in fleet.store.events.newest(1000)}
        finally:
            fleet.close()
    quarter = max(1, options.hours // 4)
    failed = events & {"fault", "model-fault", "bad-message"}
    for name, bound in BOUNDS.items():
        before = max(row[name] for row in found[quarter : 2 * quarter] or found[:1])
        after = max(row[name] for row in found[-quarter:])
        verdict = "no growth" if after - before <= bound else "GROWN"
        failed |= {name} if verdict == "GROWN" else set()
        print(f"{name}: {before:.1f} in the second quarter, {after:.1f} in the last: {verdict} (bound {bound:g})")
    for name in told[0] if options.hours >= 4 else ():
        second, last = (told[end - 1][name] - told[end - quarter - 1][name] for end in (2 * quarter, options.hours))
        print(f"{name}: {second:+.1f} in the second quarter, {last:+.1f} in the last: kept by design")
    cpu_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    print(f"{options.hours} h in {time.monotonic() - began_s:.0f} s, {cpu_s:.0f} s of CPU")
    print(f"events: {', '.join(sorted(events))}")
    if failed:
        raise SystemExit(f"failed: {', '.join(sorted(failed))}")


if __name__ == "__main__":
    main()
