"""``kill -9`` at random moments while labels come over HTTP: is every label that was acknowledged kept, and once?

    python benchmarks/kill_http.py [--bundle model.edge] [--runs 1000] [--clients 4] [--seed 0]

The real process ``edge-agent run --http`` is asked by several clients at once, each on a connection of its own, for
answers, and is told labels of what it answered, alone and several in one request. It is killed after a random time,
some times while it starts, and started again on the same folder. Then it must have learned or hold in its journal
every label that it acknowledged in its life so far, and none twice: no more than those that were sent. A request
without an answer may have been kept or not; what was found of those counts as acknowledged from then on. The exit
status is 1 if a count is wrong.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agent_footprint import ENVIRONMENT, make_bundle

START_S, MOST_S = 180.0, 0.3
READY = "http://127.0.0.1:"


@dataclass
class Client:
    """One connection that asks until it breaks.

    Attributes:
        name: Of its samples.
        port: Of the agent.
        acknowledged: Labels that the agent said it has.
        sent: All labels that were sent.
        refused: What the agent said of others.
    """

    name: str
    port: int
    acknowledged: int = 0
    sent: int = 0
    refused: list[Any] = field(default_factory=list)

    def run(self) -> None:
        """Until the agent is gone."""
        rng = np.random.default_rng(abs(hash(self.name)) % 2**32)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            for number in itertools.count():
                names = [f"{self.name}-{number}-{i}" for i in range(number % 3 + 1)]
                for name in names:
                    x = rng.random(64).tolist()
                    given = {"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": x}
                    _ask(connection, "/v2/models/m/infer", {"id": name, "inputs": [given]})
                labels = [{"id": name, "label": int(rng.integers(0, 10))} for name in names]
                self.sent += len(labels)
                answer = _ask(connection, "/labels", labels if len(labels) > 1 else labels[0])
                for each in answer if isinstance(answer, list) else [answer]:
                    self.acknowledged += bool(each.get("joined"))
                    self.refused += [] if each.get("joined") else [each]
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            return
        finally:
            connection.close()


def _ask(connection: http.client.HTTPConnection, path: str, document: Any) -> Any:
    connection.request("POST", path, json.dumps(document), {"Content-Type": "application/json"})
    return json.load(connection.getresponse())


def start(bundle: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The agent."""
    line = [sys.executable, "-m", "edge.cli.agent", "run", f"m={bundle}", "--state-dir", folder, "--device", "bench"]
    with (folder.with_suffix(".log")).open("wb") as log:
        return subprocess.Popen([*line, "--http", "127.0.0.1:0"], env=ENVIRONMENT, stderr=log)


def ready(process: subprocess.Popen[bytes], log: Path) -> int:
    """Its port, as soon as it answers."""
    begun = time.monotonic()
    while "ready: " not in (said := log.read_text()):
        if process.poll() is not None or time.monotonic() > begun + START_S:
            ended, cpu_s = process.poll(), 0.0
            if ended is None:  # it hangs, or has not had the processor
                cpu_s = sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().rsplit(")")[1].split()[11:13])) / 100
                process.kill()
            how = f"still runs, {cpu_s:.1f} s of CPU" if ended is None else f"ended with {ended}"
            last = "".join(f"\n  {line}" for line in said.splitlines()[-20:]) or " nothing"
            raise SystemExit(
                f"the agent did not start: it {how} after {time.monotonic() - begun:.0f} s, and said{last}"
            )
        time.sleep(0.01)
    return int(said.split(READY)[1].split("/")[0])


def kept(port: int) -> int:
    """Labels that were learned, and that wait in the journal."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/status")
        found = json.load(connection.getresponse())
    finally:
        connection.close()
    if found["unsafe"] or found["refused"]:
        raise SystemExit(f"labels are not safe or were refused: {found['unsafe']} {found['refused']}")
    return int(found["samples"]) + int(found["waiting"])


def main() -> int:
    """Kill, start, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, began_s, lost, doubled, refused = random.Random(options.seed), time.monotonic(), 0, 0, 0
    before = acknowledged = sent = early = unanswered = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "state"
        bundle = options.bundle or make_bundle(Path(name))
        for run in range(options.runs + 1):
            if run % 20 == 0:
                print(f"{run} kills: {before} labels, {lost} lost, {doubled} doubled", flush=True)
            process = start(bundle, folder)
            if run and rng.random() < 0.1:  # while it reads what is there
                time.sleep(rng.random() * 1.5)
                process.kill()
                process.wait()
                early += 1
                continue
            port = ready(process, folder.with_suffix(".log"))
            found = kept(port)
            lost += max(0, before + acknowledged - found)
            doubled += max(0, found - before - sent)
            before = found
            clients = [Client(f"{run}-{i}", port) for i in range(options.clients if run < options.runs else 0)]
            threads = [threading.Thread(target=client.run) for client in clients]
            for thread in threads:
                thread.start()
            time.sleep(rng.random() * MOST_S)
            process.kill()
            process.wait()
            for thread in threads:
                thread.join()
            acknowledged, sent = sum(each.acknowledged for each in clients), sum(each.sent for each in clients)
            unanswered += sent - acknowledged
            for each in itertools.chain.from_iterable(client.refused for client in clients):
                refused += 1
                print(f"run {run}: refused: {each}", flush=True)
    took_s = time.monotonic() - began_s
    print(f"{options.runs} kills in {took_s:.0f} s, {early} of them before the agent was ready")
    print(f"{before} labels kept, {unanswered} without an answer when it was killed; {refused} refused")
    print(f"acknowledged and lost: {lost}; more than were sent: {doubled}")
    return int(bool(lost or doubled or refused))


if __name__ == "__main__":
    sys.exit(main())
