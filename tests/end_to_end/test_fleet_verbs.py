"""Every verb of ``edge-fleet`` against a real coordinator, broker and agents: what it says, its JSON, its exit code."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from edge.agent.client import AgentClient
from edge.cli import rollouts
from edge.cli.fleet import fleet as group
from edge.cli.fleet import main
from edge.contract.bundle import Bundle
from edge.contract.clock import Now
from edge.contract.errors import EdgeError
from edge.coordinator.http.api import build_api
from edge.coordinator.line import LineState
from edge.coordinator.store.store import Store
from tests.support.answers import Described

pytestmark = pytest.mark.broker
DOCS = Path(__file__).parents[2] / "docs"
# Processes and clocks of its own: tests/edge/simulator has it.
ELSEWHERE = {"simulate"}
# Operations that no verb uses and that need more than to be asked, and old names of those that are used.
UNUSED = {
    "GET /api/signing/bundles", "GET /api/v1/checkpoints/{digest}", "POST /api/signing/bundles",
    "POST /api/v1/alerts/{number}/acknowledge", "POST /api/v1/alerts/{number}/silence", "POST /api/v1/artifacts",
    "GET /api/v1/questions/{number}", "GET /api/v1/questions/{number}/picture",
    "POST /api/v1/questions/{number}/answer", "POST /api/v1/questions/{number}/skip",
    "POST /api/v1/enrol", "POST /api/v1/forget", "POST /api/v1/merge", "POST /api/v1/parcel", "POST /api/v1/tags",
}  # fmt: skip


def verbs(command: click.Command = group, path: str = "") -> dict[str, click.Command]:
    """All that ``edge-fleet`` can do, by name."""
    if not isinstance(command, click.Group):
        return {path: command}
    found: dict[str, click.Command] = {}
    for name, each in command.commands.items():
        found |= verbs(each, f"{path} {name}".strip())
    return found


def test_each_verb_has_json_an_example_in_its_help_and_one_in_the_docs() -> None:
    docs = "\n".join(path.read_text() for path in DOCS.glob("*.md"))
    lacking = []
    for name, command in verbs().items():
        has_json = any("--json" in parameter.opts for parameter in command.params)
        shows = f"edge-fleet {name}"
        told = f"{command.help} {command.epilog}"
        is_shown = shows in told
        lacking += [f"{name}: {what}" for what, is_there in
                    (("--json", has_json), ("help", is_shown), ("docs", shows in docs)) if not is_there]  # fmt: skip
    assert lacking == []


class Operator:
    """Somebody at a terminal."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.used: set[str] = set()

    def __call__(self, *arguments: str | Path, code: int = 0) -> str:
        """What a command prints on standard output; it ends as it should."""
        words = [str(each) for each in arguments]
        self.used |= {name for name in verbs() if words[: len(name.split())] == name.split()}
        out, err, argv = io.StringIO(), io.StringIO(), sys.argv
        sys.argv = ["edge-fleet", "--coordinator", self.url, *words]
        ended: Any = 0
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as exc:
            ended = exc.code or 0
        finally:
            sys.argv = argv
        assert ended == code, f"{words}: {ended}, {out.getvalue()} {err.getvalue()}"
        self.err = err.getvalue()
        return out.getvalue()

    def json(self, *arguments: str | Path, code: int = 0) -> Any:
        """The same for a program: all of standard output is one document."""
        return json.loads(self(*arguments, "--json", code=code))


@pytest.fixture
def labels(digits: tuple[np.ndarray, np.ndarray]) -> Iterator[Callable[[Any], None]]:
    """Give devices digits and labels until the test is over, ten a second: by them they judge what they are given."""
    ended, threads = threading.Event(), []

    def give(fleet: Any) -> None:
        def run() -> None:
            with contextlib.ExitStack() as stack:
                paths = [fleet.socket_path(device) for device in fleet.devices]
                agents = [stack.enter_context(AgentClient(path)) for path in paths]
                pairs = enumerate(itertools.cycle(zip(*digits, strict=True)))
                for i, (x, y) in itertools.takewhile(lambda _: not ended.wait(0.1), pairs):
                    with contextlib.suppress(EdgeError):  # it was stopped meanwhile
                        for agent in agents:
                            agent.predict(f"s{i}", x)
                            agent.label(f"s{i}", int(y))

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield give
    ended.set()
    for thread in threads:
        thread.join()


@pytest.fixture
def described(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Described]:
    """Looks at all that the commands of a test are answered."""

    def submit(_: Any) -> Any:
        raise AssertionError("only its description is wanted")

    store = Store(tmp_path_factory.mktemp("described") / "db.sqlite")
    found = Described(build_api(store, submit, "default", None, clock=lambda: Now(0.0, 0), line=LineState))
    send = httpx.Client.send

    def sent(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        response = send(client, request, **options)
        response.read()
        found.look(response)
        return response

    monkeypatch.setattr(httpx.Client, "send", sent)
    yield found
    store.close()


@pytest.mark.timeout(300)
def test_every_verb_of_edge_fleet(
    processes: ModuleType, tmp_path: Path, digits_bundle: Path, labels: Callable[[Any], None],
    described: Described, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("EDGE_")]:
        monkeypatch.delenv(name)
    with processes.Fleet(tmp_path, digits_bundle, ["one", "two"]) as fleet:
        ask = Operator(fleet.http_url)
        labels(fleet)
        shipped = Bundle.open(digits_bundle).head_parameters()
        good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
        save_file({name: array + np.float32(1e-4) for name, array in shipped.items()}, good)
        rng = np.random.default_rng(0)
        save_file({name: rng.normal(size=a.shape).astype(np.float32) for name, a in shipped.items()}, bad)

        # Who is there, and what they say.
        assert {row["id"] for row in ask.json("devices")} == {row["id"] for row in ask.json("device", "list")}
        assert "two" in ask("devices")
        assert ask.json("status")["troubles"] == []
        assert ask.json("device", "show", "one")["online"] is True
        assert ask("tag", "one", "site=north") == "one: site=north\n"
        ask.json("tag", "two", "site=south")
        assert ask("device", "show", "nobody", code=8) == ""
        processes.wait_for("telemetry", lambda: ask.json("metrics", "one", "samples", "--since", "1h")["points"])
        watched = [json.loads(line) for line in ask("watch", "--seconds", "1", "--json").splitlines()]
        assert {row["device"] for row in watched} <= {"one", "two"}
        processes.wait_for("experts", lambda: all(each["experts"] for each in fleet.known()[0]["models"]))
        assert {row["device"] for row in ask.json("experts")} <= {"one", "two"}

        # What they learned.
        processes.wait_for("contributions", lambda: sum(r["version"] >= 20 for r in fleet.asked("contributions")) == 2)
        synced = ask.json("cmd", "one", "sync", "--wait", "30")
        assert (synced["state"], synced["kind"]) == ("done", "sync")
        ask("cmd", "nobody", "sync", code=8)
        assert ask.json("merge")[0]["counter"] == 1
        processes.wait_for("merge", lambda: all(row["release"] == 1 for row in fleet.known()))

        # What nobody is asked here; tests/edge/agent/test_questions.py has devices that ask.
        assert ask.json("question", "list") == []
        assert "--ask-labels" in ask("question", "list")
        for order in (("show", "1"), ("show", "1", "--picture", "1.png"), ("answer", "1", "3"), ("skip", "1")):
            ask("question", *order, code=8)

        # Releases and rollouts.
        found = ask.json("push", bad, "--name", "noise", "--wait", "60", code=8)
        assert (found["signed"], found["rollout"]["state"]) == (False, "paused")
        assert "unsigned: this fleet has no keys" in ask("push", bad, "--device", "one", "--reason", "again")
        ask.json("rollout", "abort", "2", "--reason", "noise")
        number = ask.json("release", "add", good)["counter"]
        assert number == 4
        plan = tmp_path / "plan.toml"
        plan.write_text(f'release = {number}\nwaves = ["50 %", "100 %"]\nsoak = ["10 min"]\n')
        assert "to 2 devices" in ask("rollout", "plan", plan)
        assert len(ask.json("rollout", "plan", plan)["waves"]) == 2
        rollout = ask.json("rollout", "start", plan, "--supersede")["id"]
        soaking = processes.wait_for("a wave", lambda: _is(ask, rollout, "soaking"))
        assert soaking["counts"] == {"active": 1, "waiting": 1}
        ask("rollout", "status", str(rollout), "--wait", "0.2", code=10)
        assert ask.json("rollout", "pause", str(rollout))["state"] == "paused"
        ask("rollout", "status", str(rollout), "--wait", "1", code=8)
        ask("rollout", "resume", str(rollout), code=2)
        assert ask.json("rollout", "resume", str(rollout), "--reason", "seen")["state"] == "soaking"
        ask("rollout", "retry", str(rollout), code=8)
        assert ask.json("pause-all", "--reason", "night")["paused"] == "night"
        assert "the whole fleet is paused" in ask("rollout", "status", str(rollout))
        assert ask.json("resume-all")["paused"] == ""
        out = next(row["device"] for row in soaking["targets"] if row["state"] == "active")
        (target,) = ask.json("rollout", "exclude", str(rollout), out, "--reason", "odd")
        assert target["state"] == "reverting"
        processes.wait_for("back", lambda: _is(ask, rollout, "soaking", reverted=1))
        ask.json("rollout", "revert", str(rollout), "--reason", "enough")
        processes.wait_for("reverted", lambda: _is(ask, rollout, "reverted"))
        assert ask("rollout", "list").splitlines()[0].startswith(f"rollout {rollout}: release {number} (head)")
        assert [row["id"] for row in ask.json("rollout", "list")] == [rollout, 2, 1]
        plan.write_text(
            f'release = {number}\nwaves = ["50 %", "100 %"]\nsoak = ["10 min"]\nstart = {{ approvals = 1 }}\n'
        )
        ask("rollout", "start", plan, code=8)  # older than what devices had since
        again = ask.json("release", "add", good)["counter"]
        plan.write_text(plan.read_text().replace(f"release = {number}", f"release = {again}"))
        draft = ask.json("rollout", "start", plan)
        assert draft["state"] == "draft"
        ask("rollout", "approve", str(draft["id"]), code=8)  # its author sits here
        monkeypatch.setattr(rollouts, "who", lambda: "kim")
        ask("rollout", "approve", str(draft["id"]), "--if-version", "99", code=8)
        assert ask.json("rollout", "approve", str(draft["id"]))["state"] in ("ready", "opening")
        processes.wait_for("a wave", lambda: _is(ask, draft["id"], "soaking"))
        ask.json("rollout", "widen", str(draft["id"]), "1")
        ask.json("rollout", "abort", str(draft["id"]))
        plan.write_text(plan.read_text() + 'colour = "red"\n')
        ask("rollout", "start", plan, code=3)

        # What was pushed, and back.
        found = ask.json("push", good, "--all-at-once", "--wait", "60")
        assert {row["counter"] for row in ask.json("release", "list")} >= {1, 2, 3, 4, found["counter"]}
        assert ask.json("release", "show", str(number))["file"] == "good.safetensors"
        assert ask.json("release", "diff", "2", str(number))["same_bytes"] is False
        assert ask.json("release", "download", str(number), "-o", tmp_path / "again")["digest"]
        assert ask.json("rollback", "--plan")["devices"]
        assert ask.json("rollback", "--reason", "it was better")["restores"] == 1
        text = tmp_path / "text.edge"
        text.write_text("no bundle")
        ask("push", text, code=5)
        assert ask.json("export-release", "stick.parcel", "--device", "one")["devices"] == ["one"]
        ask("import", text, code=5)
        assert any(json.loads(line)["name"] == "rollout" for line in ask("events", "--json").splitlines())

        # What is kept of what they learned, and what is forgotten.
        assert ask.json("device", "checkpoint", "one", "--wait", "60")["state"] == "done"
        assert ask.json("device", "checkpoints", "one")[0]["model"]
        # It is taken up when the release is no more on probation.
        assert ask.json("device", "restore", "one", "--wait", "0")["state"] == "open"
        forgotten = ask.json("forget", "two")
        assert forgotten["device"] == "two"
        ask.json("merge")
        (receipt,) = ask.json("receipt", "list")
        assert ask.json("receipt", "show", str(forgotten["receipt"]))["id"] == receipt["id"]
        assert ask.json("receipt", "download", "1", "-o", "receipt.json", "--key", "key.pem")["key"] == "key.pem"
        devices = [{part["device"] for part in ask.json("release", "lineage", str(each["release"]))["parts"]}
                   for each in receipt["statement"]["heads_without"]]  # fmt: skip
        assert all("two" not in each for each in devices)

        assert all(row["n"] >= 0 for asked in ((), ("one",)) for row in ask.json("confusion", *asked))

        # Who belongs to the fleet.
        assert ask.json("device", "quarantine", "two", "--reason", "odd")["admission"] == "quarantined"
        assert [row["id"] for row in ask.json("devices", "--where", 'tag.site = "south"')] == ["two"]
        assert ask("device", "approve", "two") == "two is approved\n"
        assert ask.json("device", "note", "two", "behind the door")["note"] == "behind the door"
        assert ask.json("device", "tag", "two", "site=west") == {"site": "west"}
        join = ask.json("enrolment", "new", "--uses", "2", "--tag", "site=east")
        assert join["token"].startswith("join_")
        assert ask.json("device", "replace", "two")["replaces"] == "two"
        assert len(ask.json("enrolment", "list")) == 2
        assert ask.json("enrolment", "revoke", "1")["holds"] is False
        assert "pattern write edge/v1" in ask.json("broker-config", "mosquitto")["acl"]
        hosts = ("--broker-host", "mq.lan", "--database-host", "db.lan")
        assert all(Path(path).exists() for path in ask.json("deploy", "deployed", *hosts).values())
        ask("deploy", "deployed", *hosts, code=3)
        ask("deploy", "deployed", *hosts, "--force")
        assert ask.json("device", "decommission", "two")["admission"] == "decommissioned"
        assert "two" not in ask("device", "list")

        # What no verb reads; and all answers were what their description says, see `described`.
        with httpx.Client(base_url=fleet.http_url) as client:
            for operation in sorted(described.operations - described.answered - UNUSED):
                method, _, path = operation.partition(" ")
                if method == "GET" and path != "/api/v1/tokens":
                    assert client.get(path).status_code == 200, path

        # Keys and tokens.
        assert ask.json("keys", "seal", "seal.pem")["public"] == "seal.pem.pub"
        assert ask.json("keys", "show")["signed"] is False
        assert set(ask.json("keys", "init", "fleet-keys", "--root-keys", "1", "--threshold", "1")) >= {"device"}
        ask("keys", "sign", digits_bundle, "--key", "fleet-keys/workstation/bundles.pem", code=8)
        assert ask.json("keys", "rotate", "fleet-keys", "online")["metadata"]
        token = ask.json("token", "new", "kim", "--role", "admin")
        ask("devices", code=3)
        monkeypatch.setenv("EDGE_TOKEN", token["token"])
        assert ask.json("token", "list")[0]["name"] == "kim"
        assert any(json.loads(line)["who"] for line in ask("audit", "--json").splitlines())
        ask.json("token", "revoke", str(token["id"]))
        fleet.kill("coordinator")
        ask("devices", code=6)
        assert ask.used == set(verbs()) - ELSEWHERE
        assert described.operations - described.answered == UNUSED


def _is(ask: Operator, rollout: int, state: str, **counts: int) -> Any:
    found = ask.json("rollout", "status", str(rollout))
    time.sleep(0.1)
    return found if found["state"] == state and found["counts"].items() >= counts.items() else None
