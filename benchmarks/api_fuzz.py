"""The HTTP API of a real coordinator under schemathesis, by its own OpenAPI document.

    python -m venv fuzz && fuzz/bin/pip install -c constraints.txt schemathesis -e '.[coordinator,demo]'
    fuzz/bin/python -m benchmarks.api_fuzz --max-examples 30 --seed 1

Options are those of ``schemathesis run``. A coordinator with a device, releases, a rollout, contributions, tokens and
enrolments is asked for everything, with a token of an admin. Looked for: answers of 500 and above, answers that are not
described, wrong requests that are let through, and rows of the database that changed although the request was refused.
It ends with schemathesis's exit code, 1 for a finding.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import schemathesis  # type: ignore[import-not-found]  # not installed with the house

from benchmarks.agent_footprint import make_bundle
from edge.agent.client import AgentClient
from edge.contract.bundle import Bundle

ROOT = Path(__file__).parents[1]
DATABASE, TOKEN = "EDGE_API_FUZZ_DATABASE", "EDGE_API_FUZZ_TOKEN"
# What is written whatever is asked, or by the clock: who asked, what was refused, whose turn it is.
BY_ITSELF = frozenset({"age", "audit", "event", "lease", "answer", "telemetry", "alembic_version"})
# Of these tables the clock goes on in other columns and rows, and these are what people ask for.
PARTS = {
    "target": "SELECT rollout, device, model, wave, place, state, attempt FROM target",
    "fleet": "SELECT * FROM fleet WHERE key = 'paused'",
    "alert": "SELECT id, rule, subject, acknowledged_by, silenced_by, silenced_ms FROM alert",
}
# Numbers that this fleet does not have are refused by right, so nothing is said of right requests; tokens are tried at
# each route by the tests.
# What a request brings about comes within so long.
FOLLOWS_S = 0.3
# It would take away the token of all other requests.
REVOKES = "/api/v1/tokens/{number}/revoke"
# So long nobody asks for anything, and what changes is said: that a refused request changed it is not proven.
CONTROL_S = 20.0
WITHOUT = "positive_data_acceptance,ignored_auth,missing_required_header"


def is_offline(path: str) -> bool:
    """Whether the coordinator has written that its device is gone."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
        return database.execute("SELECT max(online) FROM device").fetchone() == (0,)


def settle(path: str, written_s: float) -> None:
    """Wait until nothing follows any more from earlier requests: rollouts open by the clock, and are overtaken."""
    time.sleep(max(0.0, written_s + FOLLOWS_S - time.monotonic()))
    deadline = time.monotonic() + 2.0
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
        while (
            database.execute("SELECT 1 FROM rollout WHERE state = 'ready'").fetchone() and time.monotonic() < deadline
        ):
            time.sleep(0.02)


def rows(path: str) -> set[str]:
    """All that is in the database, row by row."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            f"{name} {row}"
            for name in set(names) - BY_ITSELF
            for row in database.execute(PARTS.get(name, f'SELECT * FROM "{name}"'))
        }


if DATABASE in os.environ:  # in schemathesis's process
    BEFORE: dict[str, set[str]] = {}
    WRITTEN = {"s": -FOLLOWS_S}  # when a request was last taken

    @schemathesis.hook  # type: ignore[untyped-decorator]
    def before_call(context: Any, case: Any, kwargs: Any) -> None:  # noqa: ARG001  # as schemathesis calls it
        """What is there before a request, which has the right token in any case: who shows wrong ones has to wait."""
        others = {name: value for name, value in (case.headers or {}).items() if name.lower() != "authorization"}
        case.headers = others | {"Authorization": f"Bearer {os.environ[TOKEN]}"}
        if case.method.upper() != "GET":
            settle(os.environ[DATABASE], WRITTEN["s"])
            BEFORE[case.id] = rows(os.environ[DATABASE])

    @schemathesis.check  # type: ignore[untyped-decorator]
    def refused_changes_nothing(ctx: Any, response: Any, case: Any) -> None:  # noqa: ARG001
        """What is refused leaves the database as it was."""
        before = BEFORE.pop(case.id, None)
        if before is None or response.status_code < 400:
            WRITTEN["s"] = time.monotonic() if before is not None else WRITTEN["s"]
            return
        changed = sorted(before ^ rows(os.environ[DATABASE]))
        assert not changed, f"refused with {response.status_code}, and these rows changed: {changed}"


def fill(client: httpx.Client, bundle: Path) -> str:
    """Give a coordinator with one device something of everything; returns the token of an admin."""

    def post(path: str, **body: Any) -> Any:
        answer = client.post(f"/api/v1/{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json()

    kept = client.post("/api/v1/artifacts", params={"file": bundle.name}, content=bundle.read_bytes()).json()
    token = post("enrolments", uses=5)["token"]
    for i in range(3):
        post("enrol", token=token, device=f"cam-{i}", number=f"{i:016}")
        post("tags", device=f"cam-{i}", tags={"site": "north"})
    what = {"digest": kept["digest"], "kind": "bundle", "backbone": kept["backbone"]}
    counters = [post("releases", **what, name=name)["counter"] for name in ("one", "two")]
    post("rollouts", plan={"release": counters[-1]}, reason="tried")
    post("devices/one/checkpoint")
    return str(post("tokens", name="kim", role="admin")["token"])


def main() -> int:
    """Run schemathesis against a coordinator of its own; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="of the digits example; made first when none is given")
    arguments, options = parser.parse_known_args()
    sys.path.insert(0, str(ROOT / "examples/01_digits_fleet"))
    from processes import Fleet, wait_for  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory(prefix="edgeloop-api-") as name:
        bundle = arguments.bundle or make_bundle(Path(name))
        with Fleet(Path(name), bundle, ["one"]) as fleet:
            x = np.zeros(Bundle.open(bundle).manifest.inputs[0].sample_shape, np.float32)
            with AgentClient(fleet.socket_path("one")) as agent:
                for i in range(30):
                    agent.predict(f"s{i}", x)
                    agent.label(f"s{i}", i % 2)
            wait_for("contributions", lambda: fleet.asked("contributions"))
            fleet.kill("one")
            database = Path(name) / "coordinator" / "coordinator.sqlite"
            # The broker says so half a minute later; from then on nothing changes but by requests and by the clock.
            wait_for("the end of the device", lambda: is_offline(str(database)), 120.0)
            with httpx.Client(base_url=fleet.http_url) as client:
                token = fill(client, bundle)
            time.sleep(20)  # the rollout has gone as far as it goes without devices
            quiet = rows(str(database))
            time.sleep(CONTROL_S)
            for each in sorted(quiet ^ rows(str(database))):
                print(f"changed in {CONTROL_S:g} s without a request: {each}")
            line = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{fleet.http_url}/openapi.json"]
            line += ["-H", f"Authorization: Bearer {token}", "--exclude-path", REVOKES, "--checks", "all"]
            line += ["--exclude-checks", WITHOUT, *options]
            environment = {"SCHEMATHESIS_HOOKS": "benchmarks.api_fuzz", "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                line, cwd=name, env=os.environ | environment | {DATABASE: str(database), TOKEN: token}, check=False
            )
            is_alive = fleet.processes["coordinator"].poll() is None
            print("the coordinator lives" if is_alive else "the coordinator ended")
            return done.returncode or int(not is_alive)


if __name__ == "__main__":
    sys.exit(main())
