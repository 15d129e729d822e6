"""What one message costs a coordinator, by kind: seconds of a core in this process, and in the database's.

The numbers of docs/capacity.md. Telemetry and events are taken as they come by the door that coordinators share
(`edge.coordinator.taking`), in batches as large as a busy coordinator's.

    python benchmarks/intake.py --database postgresql+psycopg://edge@127.0.0.1/empty [--postgres-pid 1234]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from edge.channel import topics
from edge.channel.codec import encode
from edge.channel.messages import Birth, Conn, Event, State, Telemetry
from edge.channel.transport import Received
from edge.contract.clock import Now
from edge.coordinator.devices.registry import Registry
from edge.coordinator.events import Events
from edge.coordinator.store.store import Store
from edge.coordinator.taking import Taker

FLEET, FOLDER = "bench", "a" * 32
_TICKS = 100  # of a second, in /proc


def telemetry(device: int, seq: int) -> Received:
    """As an agent sends it."""
    values = {
        "ts": 1_800_000_000_000 + seq, "seq": seq, "boot": 1, "state_id": FOLDER, "model": "digits", "release": 3,
        "infer_per_s": 31.2, "lat_p50_ms": 8.1, "lat_p99_ms": 19.4, "acc": 0.941, "samples": seq, "cpu_pct": 37,
        "mem_mb": 71, "temp_c": 54.1, "disk_free_mb": 830, "outbox": 0,
    }  # fmt: skip
    topic = topics.build(FLEET, f"device-{device}", topics.UP_TELE)
    return Received(topic=topic, payload=encode(Telemetry(values=values)), retained=False)


def event(device: int, seq: int) -> Received:
    """As an agent sends it."""
    message = Event(
        ts_ms=1, name="drift", detail="the world has changed", model="digits", boot=1, seq=seq, state_id=FOLDER
    )
    return Received(
        topic=topics.build(FLEET, f"device-{device}", topics.UP_EVENT), payload=encode(message), retained=False
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", default="intake.sqlite", help="of PostgreSQL, empty; else a file of SQLite")
    parser.add_argument("--postgres-pid", type=int, default=0, help="of the server: its processes are counted")
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--messages", type=int, default=10_000)
    options = parser.parse_args()
    where = options.database if "://" in options.database else Path(options.database)
    store = Store(where)
    taker = Taker(FLEET, store, "approved", lambda _: None)
    moment = Now(1.0, 1_800_000_000_000)
    taker.take([telemetry(i, 1) for i in range(options.devices)], moment)  # all are known
    found: dict[str, float] = {}

    def measure(name: str, run: object, count: int) -> None:
        own, others, wall = time.process_time(), server_s(options.postgres_pid), time.perf_counter()
        run()  # type: ignore[operator]
        found[f"{name}_us"] = round(1e6 * (time.process_time() - own) / count, 1)
        if options.postgres_pid:
            found[f"{name}_database_us"] = round(1e6 * (server_s(options.postgres_pid) - others) / count, 1)
        found[f"{name}_wall_us"] = round(1e6 * (time.perf_counter() - wall) / count, 1)

    def batches(make: object, size: int, first: int) -> None:
        each = [make(i % options.devices, first + i // options.devices) for i in range(options.messages)]  # type: ignore[operator]
        for start in range(0, options.messages, size):
            taker.take(each[start : start + size], moment)

    measure("telemetry_by_500", lambda: batches(telemetry, 500, 2), options.messages)
    measure("event_by_500", lambda: batches(event, 500, 1), options.messages)
    registry = Registry(store, Events(store))

    def ones(make: object) -> None:
        for i in range(options.devices):
            make(f"device-{i}", i)  # type: ignore[operator]

    conn = Conn(online=True, session=1, boot=1, ts_ms=1, state_id=FOLDER)
    birth = Birth(
        agent_version="1", boot=1, session=1, ts_ms=1, profile="p", hardware={}, bundle="a" * 64, backbone="b" * 64,
        head="", release=0, n_labels=0, limits={}, state_id=FOLDER,
    )  # fmt: skip
    state = State(ts_ms=1, seq=1 << 33, slot="head", state="active", release=1, digest="c" * 64, state_id=FOLDER)
    measure("conn", lambda: ones(lambda d, _: registry.conn(d, conn, moment)), options.devices)
    measure("birth", lambda: ones(lambda d, _: registry.birth(d, birth, moment)), options.devices)
    measure("state", lambda: ones(lambda d, _: registry.state(d, state, moment)), options.devices)
    store.close()
    print(json.dumps(found, indent=1))


def server_s(pid: int) -> float:
    """Seconds that a server and its children have used."""
    if not pid:
        return 0.0
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(path.parent.name) == pid or int(fields[1]) == pid:
            total += sum(map(int, fields[11:15])) / _TICKS
    return total


if __name__ == "__main__":
    main()
