"""Three coordinators on one PostgreSQL take in together; each part is killed in a rollout and while devices learn."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psycopg
import pytest
from safetensors.numpy import save_file

from edge.agent.client import AgentClient
from edge.contract.bundle import Bundle
from tests.end_to_end.test_standby import answers, asked
from tests.support.postgres import PostgresServer, find_binaries, serve
from tests.support.rabbitmq import RabbitServer

# Minutes for each broker: `pytest -m long`.
pytestmark = [
    pytest.mark.broker,
    pytest.mark.long,
]

BACK_S = 30.0
DEVICES = ["one", "two", "three"]


class Together:
    """All of it as processes, in one folder."""

    def __init__(
        self, processes: ModuleType, folder: Path, bundle: Path, server: PostgresServer, rabbit: RabbitServer | None
    ) -> None:
        self.processes, self.folder, self.server, self.rabbit = processes, folder, server, rabbit
        self.fleet = processes.Fleet(folder, bundle, DEVICES)
        self.address = server.new()
        self.ports = {name: processes.free_port() for name in ("c1", "c2", "c3")}
        self.bundle = bundle
        if rabbit is not None:
            self.fleet.broker_port = rabbit.mqtt_port

    def coordinator(self, name: str) -> None:
        intake = "share" if self.rabbit is None else self.rabbit.amqp_url
        options = ["--broker", self.fleet.broker_url, "--database", self.address, "--bundle", self.bundle]
        options += ["--data-dir", self.folder / "shared", "--merge-delay", "2", "--min-samples", "1"]
        options += ["--min-merge-samples", "1", "--name", name, "--intake", intake]
        options += ["--http", f"127.0.0.1:{self.ports[name]}"]
        self.fleet.start(name, self.processes.command("edge-coordinator", "serve", *options))

    def broker(self) -> None:
        if self.rabbit is not None:
            self.rabbit.start()
        else:
            self.fleet.start_broker()

    def kill_broker(self) -> None:
        if self.rabbit is not None:
            self.rabbit.kill()
        else:
            children = f"/proc/{self.fleet.processes['broker'].pid}/task/{self.fleet.processes['broker'].pid}/children"
            for child in Path(children).read_text().split():
                os.kill(int(child), signal.SIGKILL)
            self.fleet.kill("broker")

    def leader(self) -> str | None:
        return next((name for name, port in self.ports.items() if answers(port)), None)

    def rows(self, query: str) -> list[Any]:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.address.replace("+psycopg", "")) as db:
            return db.execute(query).fetchall()  # type: ignore[call-overload,no-any-return]
        return []

    def heard_since(self, moment_ms: int) -> bool:
        found = self.rows(f"SELECT device FROM telemetry WHERE received_ms > {moment_ms} GROUP BY device")
        return len(found) >= len(DEVICES)

    def back(self, what: str, kill: Callable[[], None]) -> float:
        """Kill something; how long from then (of what is started again: from when it listens) all are heard again."""
        kill()
        killed_ms, start = time.time_ns() // 1_000_000, time.monotonic()
        self.processes.wait_for(
            f"all after the end of {what}", lambda: self.leader() and self.heard_since(killed_ms + 500), 90.0
        )
        return time.monotonic() - start

    def postgres_again(self) -> None:
        """``kill -9`` of the server, and its start, as a service manager does it."""
        line = self.server.process.args
        assert isinstance(line, list)
        folder = Path(line[line.index("-D") + 1]).parent
        children = subprocess.run(
            ["pgrep", "-P", str(self.server.process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        self.server.process.kill()
        self.server.process.wait(10)
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(int(child), signal.SIGKILL)
        (folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        time.sleep(1.0)
        import pwd

        account = pwd.getpwnam("nobody") if os.getuid() == 0 else None
        options: dict[str, Any] = {}
        if account is not None:
            options = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        with (folder / "log").open("ab") as log:
            self.server.process = subprocess.Popen(
                line, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options
            )

    def teach(self, x: np.ndarray, y: np.ndarray, at: int) -> None:
        for k, device in enumerate(DEVICES):
            with AgentClient(self.fleet.socket_path(device)) as client:
                i = (at * len(DEVICES) + k) % len(x)
                client.predict(f"s{at}", x[i])
                client.label(f"s{at}", int(y[i]))


@contextlib.contextmanager
def running(kind: str, processes: ModuleType, folder: Path, bundle: Path) -> Iterator[Together]:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serve())
        rabbit = stack.enter_context(RabbitServer(folder / "rabbit")) if kind == "rabbitmq" else None
        made = Together(processes, folder, bundle, server, rabbit)
        stack.callback(made.fleet.__exit__, None, None, None)
        if rabbit is None:
            made.broker()
        yield made


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["mosquitto", "rabbitmq"])
def test_each_part_is_killed_and_nothing_is_lost_or_doubled(
    kind: str, processes: ModuleType, tmp_path: Path, digits_bundle: Path, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    if find_binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    x, y = digits
    with running(kind, processes, tmp_path, digits_bundle) as all_of:
        fleet, took = all_of.fleet, {}
        all_of.coordinator("c1")
        processes.wait_for("a leader", all_of.leader)
        for name in ("c2", "c3"):
            all_of.coordinator(name)
        for device in DEVICES:
            fleet.start_agent(device)
        processes.wait_for("telemetry", lambda: all_of.heard_since(0), 90.0)
        fleet.http_port = all_of.ports["c1"]
        head = tmp_path / "head.safetensors"
        save_file(dict(Bundle.open(digits_bundle).head_parameters()), head)
        processes.wait_for("devices", lambda: len(asked(fleet.http_port, "devices")) == len(DEVICES))
        fleet.fleet("release", "add", str(head))
        plan = tmp_path / "plan.toml"
        counter = max(each["counter"] for each in asked(fleet.http_port, "releases"))
        plan.write_text(f'release = {counter}\nmodel = "off"\nwaves = ["40 %", "100 %"]\nsoak = ["20 s"]\n')
        fleet.fleet("rollout", "start", str(plan))

        all_of.teach(x, y, 0)
        leader = all_of.leader()
        assert leader is not None
        took["leader"] = all_of.back("the leader", lambda: fleet.kill(leader))
        all_of.coordinator(leader)
        all_of.teach(x, y, 1)
        other = next(name for name in all_of.ports if name not in (leader, all_of.leader()))
        took["taker"] = all_of.back("one that takes", lambda: fleet.kill(other))
        all_of.coordinator(other)
        all_of.teach(x, y, 2)
        took["broker"] = all_of.back("the broker", lambda: (all_of.kill_broker(), all_of.broker()))  # type: ignore[func-returns-value]
        all_of.teach(x, y, 3)
        took["database"] = all_of.back("the database", all_of.postgres_again)
        all_of.teach(x, y, 4)

        def port() -> int:
            found = all_of.leader()
            return all_of.ports[found] if found else 0

        def ended() -> bool:
            return bool(port()) and asked(port(), "v1/rollouts/1")["state"] == "completed"

        (tmp_path / "took").write_text(repr(took))
        processes.wait_for("the end of the rollout", ended, 120.0)
        query = "SELECT device, version, merged_version FROM contribution"
        processes.wait_for(
            "all labels in a merge", lambda: sorted(all_of.rows(query)) == [(d, 5, 5) for d in sorted(DEVICES)], 120.0
        )
        found = asked(port(), "v1/rollouts/1")
        active = [m["subject"] for m in found["transitions"] if m["subject"] and m["now"] == "active"]
        assert sorted(active) == sorted(DEVICES), "one outcome a device"
        processes.wait_for("the outboxes", lambda: not gaps(all_of, "event"), 90.0)
        lost = gaps(all_of, "telemetry")
        if lost:  # what waits for the next backfill
            with contextlib.suppress(TimeoutError):
                processes.wait_for("backfill", lambda: not gaps(all_of, "telemetry"), 90.0)
            lost = gaps(all_of, "telemetry")
        record = {"kind": kind, "back_s": took, "telemetry_lost": sum(lost.values())}
        (tmp_path / "record.json").write_text(json.dumps(record, indent=1))
        assert max(took.values()) < BACK_S, took
        if kind == "rabbitmq":
            assert not lost


def gaps(all_of: Together, table: str) -> dict[Any, int]:
    """By device, folder and start of its agent, numbers that are missing; twice there is none, by a unique index."""
    query = f"""SELECT device, state_id, boot, max(seq) - count(*), count(*) - count(DISTINCT seq) FROM {table}
                WHERE seq > 0 GROUP BY device, state_id, boot"""
    found = all_of.rows(query)
    assert all(doubled == 0 for *_, doubled in found)
    return {(device, boot): missing for device, _, boot, missing, _ in found if missing}
