"""What the local HTTP interface costs over the bare session, and what answering together saves.

    python benchmarks/http_api.py [--bundle model.edge] [--requests 2000] [--clients 16]

Starts the real process `edge-agent run --http` with the digits bundle (made first when none is given) and asks it for
one sample at a time over HTTP, with binary tensors and with JSON; the requests are made before, so what is measured is
the agent's and the kernel's time, and not that of a client's library. Beside it, over its socket with `AgentClient`.
The baseline, in the same run: the same graphs in an onnxruntime session of this process, called with an array that is
there. Then many clients at once, each in a process of its own, with `--batch-ms 5` and with 0. One thread of
onnxruntime everywhere. The goal: the median over HTTP (binary) at most 0.5 ms above that of the session.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np

from benchmarks.agent_footprint import ENVIRONMENT, make_bundle
from edge.agent.client import AgentClient
from edge.contract.bundle import Bundle
from edge.contract.errors import ChannelError
from edge.inference.onnx_session import OnnxSession

GOAL_MS = 0.5


@contextmanager
def agent(bundle: Path, folder: Path, *options: str) -> Iterator[tuple[int, Path]]:
    """A running agent: the port of its HTTP interface and its socket."""
    line = [sys.executable, "-m", "edge.cli.agent", "run", f"m={bundle}", "--state-dir", folder, "--device", "bench"]
    log = folder.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen([*line, "--http", "127.0.0.1:0", *options], env=ENVIRONMENT, stderr=file)
    try:
        end = time.monotonic() + 30
        while "ready: " not in log.read_text():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the agent did not start: {log.read_text()}")
            time.sleep(0.02)
        yield int(log.read_text().split("http://127.0.0.1:")[1].split("/")[0]), folder / "agent.sock"
    finally:
        process.terminate()
        process.wait()


def median_ms(ask: Callable[[], Any], count: int) -> tuple[float, float]:
    """Median and 99th percentile of one call, after a tenth of them to warm up."""
    times = []
    for i in range(count + count // 10):
        start = time.perf_counter()
        ask()
        if i >= count // 10:
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times), float(np.percentile(times, 99))


class Client:
    """One connection that sends bytes which were made before: what it waits for is the agent."""

    def __init__(self, port: int, x: np.ndarray, *, binary: bool) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tensor: dict[str, Any] = {"name": "input", "shape": list(x.shape), "datatype": "FP32"}
        blob = x.tobytes() if binary else b""
        tensor |= {"parameters": {"binary_data_size": len(blob)}} if binary else {"data": x.reshape(-1).tolist()}
        text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary}}).encode()
        head = [b"POST /v2/models/m/infer HTTP/1.1", b"Host: 127.0.0.1", b"Content-Length: %d" % len(text + blob)]
        head += [b"Inference-Header-Content-Length: %d" % len(text)] if binary else []
        self._request = b"\r\n".join([*head, b"", text + blob])

    def __call__(self) -> bytes:
        """Ask once; the body of the answer."""
        self._socket.sendall(self._request)
        answer = self._socket.recv(1 << 16)
        head, _, body = answer.partition(b"\r\n\r\n")
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += self._socket.recv(1 << 16)
        if not head.startswith(b"HTTP/1.1 200"):
            raise ChannelError(f"{head[:40]!r}: {body[:200]!r}")
        return body


def _ask_for(port: int, x: np.ndarray, until_s: float, found: Any) -> None:
    ask, times = Client(port, x, binary=True), []
    while time.monotonic() < until_s:
        start = time.perf_counter()
        ask()
        times.append((time.perf_counter() - start) * 1e3)
    found.put(times)


def many_clients(port: int, x: np.ndarray, clients: int, seconds: float) -> tuple[float, float]:
    """Answers a second of all clients together, and their median in ms."""
    context = multiprocessing.get_context("fork")
    found, until_s = context.SimpleQueue(), time.monotonic() + seconds
    processes = [context.Process(target=_ask_for, args=(port, x, until_s, found)) for _ in range(clients)]
    for process in processes:
        process.start()
    times = [each for _ in processes for each in found.get()]
    for process in processes:
        process.join()
    return len(times) / seconds, statistics.median(times)


def main() -> int:
    """Print the table; the exit code says whether the goal was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = options.bundle or make_bundle(folder)
        opened = Bundle.open(bundle)
        spec = opened.manifest.inputs[0]
        x = np.random.default_rng(0).random((1, *spec.sample_shape), np.float32)
        session = OnnxSession(opened)
        rows = [
            ("onnxruntime session, same process", *median_ms(lambda: session.served({spec.name: x}), options.requests))
        ]
        with agent(bundle, folder / "one") as (port, path), AgentClient(path) as client:
            rows.append(("HTTP, binary tensors", *median_ms(Client(port, x, binary=True), options.requests)))
            rows.append(("HTTP, JSON", *median_ms(Client(port, x, binary=False), options.requests)))
            rows.append(("socket, AgentClient", *median_ms(lambda: client.predict("s", x[0]), options.requests)))
        bare = rows[0][1]
        print(f"{'one client':<36} {'p50 ms':>8} {'p99 ms':>8} {'p50 - session':>14} {'ratio':>7}")
        for text, p50, p99 in rows:
            print(f"{text:<36} {p50:8.3f} {p99:8.3f} {p50 - bare:14.3f} {p50 / bare:7.1f}")
        rates = {}
        for bound in ("5", "0"):
            with agent(bundle, folder / f"many{bound}", "--batch-ms", bound) as (port, _):
                rates[bound] = many_clients(port, x, options.clients, 5.0)
        print(f"{options.clients} clients at once: answers/s, p50 ms")
        for bound, (rate, p50) in rates.items():
            print(f"  --batch-ms {bound:<3} {rate:8.0f} {p50:8.2f}")
        print(f"  together / one by one: {rates['5'][0] / rates['0'][0]:.2f} x the answers")
        print(f"goal: HTTP binary at most {GOAL_MS} ms above the session: {rows[1][1] - bare:.3f}")
        return int(rows[1][1] - bare > GOAL_MS)


if __name__ == "__main__":
    sys.exit(main())
