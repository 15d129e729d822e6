"""The server in a real process: sockets, many at once, half requests, tokens, and an unchanged client of others."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge.agent.client import AgentClient
from edge.agent.http.server import MAX_CONNECTIONS, parse_address
from edge.agent.model.on_device_model import OnDeviceModel
from edge.cli.agent import agent
from edge.contract.errors import ConfigError, LearningError, NoAgentError

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, digits_bundle: Path) -> Iterator[tuple[int, Path]]:
    """An agent with two models: the port and the state folder."""
    state = tmp_path_factory.mktemp("agent") / "state"
    line = [sys.executable, "-m", "edge.cli.agent", "run", f"digits={digits_bundle}", f"again={digits_bundle}"]
    line += ["--state-dir", str(state), "--device", "cam-1", "--http", "127.0.0.1:0"]
    log = state.with_suffix(".log")
    with (
        log.open("wb") as file,
        subprocess.Popen(line, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=file) as process,
    ):
        end = time.monotonic() + 60
        while log.read_text().count("ready: ") < 2 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert "ready: digits, learners statistics, lifted, sgd, on cpu" in log.read_text()
        yield int(log.read_text().split("http://127.0.0.1:")[1].split("/")[0]), state
        process.terminate()
        assert process.wait(20) == 0, log.read_text()
        assert "Traceback" not in log.read_text()


def exchange(port: int, *parts: bytes) -> bytes:
    """All that comes back for what is sent; the server closes."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        for part in parts:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while more := connection.recv(1 << 16):
            found += more
        return found


def test_an_unchanged_tritonclient_is_served(running: tuple[int, Path], tmp_path: Path, digits_bundle: Path) -> None:
    """``EDGE_TRITONCLIENT`` names a Python that has it: its versions of other packages do not go with ours."""
    python = os.environ.get("EDGE_TRITONCLIENT", "")
    if not python:
        pytest.skip("EDGE_TRITONCLIENT names no Python with tritonclient[http]; .ci/run makes one")
    x = np.random.default_rng(0).random((8, 1, 8, 8), np.float32)
    np.save(tmp_path / "x.npy", x)
    with OnDeviceModel.open(digits_bundle) as model:
        np.save(tmp_path / "wanted.npy", model.predict(x))
    script = ROOT / "tests" / "support" / "ask_with_tritonclient.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(script), f"127.0.0.1:{running[0]}", str(tmp_path)],
        capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


def test_requests_in_one_connection_are_answered_in_their_order_however_they_come(running: tuple[int, Path]) -> None:
    port, _ = running
    one = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    label = b'{"model": "digits", "id": "a", "label": 1}'
    post = b"POST /labels HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    whole = one + post % len(label) + label + b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    wanted = exchange(port, whole)
    assert wanted.count(b"HTTP/1.1 200 OK") == 3
    assert b'{"joined":false,"why":"no such sample waits for a label"}' in wanted
    assert wanted.endswith(b"Connection: close\r\n\r\n")  # the head of the page alone
    assert exchange(port, *(whole[i : i + 7] for i in range(0, len(whole), 7))) == wanted
    for begin in (b"G", one[:-2], post % 10 + b"123"):  # never whole: nothing, and nothing breaks
        assert exchange(port, begin) == b""
    assert exchange(port, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert exchange(port, b"GET / HTTP/1.1\r\nA: " + b"x" * (40 << 10)).startswith(b"HTTP/1.1 431 ")
    expecting = (
        b"POST /labels HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Type: application/json\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(expecting + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(label))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(label)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_who_opens_connections_without_end_is_told_and_takes_no_more(running: tuple[int, Path]) -> None:
    with ExitStack() as stack:
        first = socket.socket(socket.AF_UNIX)
        for connection in (first, *(socket.socket(socket.AF_UNIX) for _ in range(MAX_CONNECTIONS - 1))):
            stack.enter_context(connection).connect(str(running[1] / "agent.sock"))
        for _ in range(20):
            with (
                AgentClient(running[1] / "agent.sock") as one_more,
                pytest.raises(LearningError, match="end the programs"),
            ):
                one_more.status()
        first.close()
        for _ in range(100):  # until the agent has seen that it left
            with suppress(LearningError), AgentClient(running[1] / "agent.sock") as again:
                assert again.status()["device"]
                break
            time.sleep(0.05)
        else:
            pytest.fail("nobody may come in again")


def test_a_socket_that_somebody_deleted_is_there_again(running: tuple[int, Path]) -> None:
    path = running[1] / "agent.sock"
    with AgentClient(path) as before:
        path.unlink()
        for _ in range(200):
            with suppress(NoAgentError), AgentClient(path) as after:
                assert after.status()["device"] == before.status()["device"]
                break
            time.sleep(0.05)
        else:
            pytest.fail("nobody may come in again")
    assert path.stat().st_mode & 0o777 == 0o600


def test_200_connections_at_once_are_served_by_socket_and_by_http(running: tuple[int, Path]) -> None:
    port, state = running
    x = np.zeros((1, 8, 8), np.float32)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(50))
        clients = list(pool.map(lambda _: AgentClient(state / "agent.sock", 30.0, model="digits"), range(200)))
        for each in clients:
            stack.callback(each.close)
        answers = list(pool.map(lambda i: clients[i].predict(f"s{i}", x), range(200)))  # all are open
        assert len({json.dumps(each["logits"]) for each in answers}) == 1
        assert all(pool.map(lambda i: clients[i].label(f"s{i}", 0), range(200)))

        def ask(_: int) -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", port), 30)
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return connection

        connections = list(pool.map(ask, range(200)))
        for each in connections:
            stack.callback(each.close)
        assert all(each.recv(100).startswith(b"HTTP/1.1 200 OK") for each in connections)
        more = [ask(i) for i in range(MAX_CONNECTIONS - 199)]
        for each in more:
            stack.callback(each.close)
        assert more[-1].recv(100).startswith(b"HTTP/1.1 503 ")
    end = time.monotonic() + 10
    while not exchange(port, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200"):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_others_than_this_device_need_a_token(tmp_path: Path, digits_bundle: Path) -> None:
    def run(*options: str) -> str:
        state = str(tmp_path / "state")
        found = CliRunner().invoke(agent, ["run", str(digits_bundle), "--state-dir", state, "--device", "d", *options])
        assert isinstance(found.exception, ConfigError), found
        return str(found.exception)

    assert "a token" in run("--http", "0.0.0.0:0")
    assert "expected HOST:PORT" in run("--http", "8080")
    assert "expected --http" in run("--http-token-file", "x")
    assert "cannot be read" in run("--http", "127.0.0.1:0", "--http-token-file", str(tmp_path / "none"))
    (tmp_path / "token").write_text("short\n")
    assert "16 or more" in run("--http", "127.0.0.1:0", "--http-token-file", str(tmp_path / "token"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "name another port" in run("--http", f"127.0.0.1:{taken.getsockname()[1]}")
    for text in ("[::1]:80", "localhost:0"):
        assert parse_address(text)[1] in (80, 0)
    with pytest.raises(ConfigError):
        parse_address("host:99999")
