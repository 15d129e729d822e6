"""Wrong input to every command but edge-convert: one message, its own exit code, no traceback, nothing half written."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import called
from tests.support.ports import free_port

ROOT = Path(__file__).parents[3]
CONFIG, BUNDLE, CHANNEL = 3, 5, 6


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``edge-NAME ...`` as a process; modules stand for the installed commands."""
    name, *rest = map(str, arguments)
    return subprocess.run(
        [sys.executable, "-m", f"edge.cli.{name}", *rest],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The process ended with this code and said these words, once, without a traceback."""
    assert done.returncode == code, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.fixture
def damaged(tmp_path: Path, digits_bundle: Path) -> dict[str, Path]:
    """Files that are not bundles, by what is wrong with them."""
    data = digits_bundle.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 3] ^= 0x10
    contents = {
        "empty": b"",
        "text": b"hello",
        "cut": data[: len(data) // 2],
        "flipped": bytes(flipped),
        "longer": data + b"x",
        "pickle": pickle.dumps({"a": os.system}),
        "random": os.urandom(4096),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.edge").write_bytes(content)
    return {name: tmp_path / f"{name}.edge" for name in [*contents, "missing"]}


def test_each_command_ends_as_a_process_with_its_code(tmp_path: Path, damaged: dict[str, Path]) -> None:
    """All others of this file are called in the process of the test."""
    refused(run("agent", "run", damaged["random"], "--stdin", cwd=tmp_path), BUNDLE, str(damaged["random"]))
    refused(run("bundle", "verify", damaged["cut"], cwd=tmp_path), BUNDLE, str(damaged["cut"]))
    absent = ["--broker", f"mqtt://127.0.0.1:{closed_port()}", "--connect-timeout", "1"]
    refused(run("coordinator", "serve", *absent, cwd=tmp_path), CHANNEL, "127.0.0.1")
    assert not (tmp_path / "edge-coordinator").exists()
    nobody = f"http://127.0.0.1:{closed_port()}"
    refused(run("fleet", "--coordinator", nobody, "devices", cwd=tmp_path), CHANNEL, "no coordinator answers")


KINDS = ["empty", "text", "cut", "flipped", "longer", "pickle", "random", "missing"]


@pytest.mark.parametrize("kind", KINDS)
def test_agent_refuses_what_is_not_a_bundle(tmp_path: Path, damaged: dict[str, Path], kind: str) -> None:
    done = called("agent", "run", damaged[kind], "--state-dir", "state", "--stdin", cwd=tmp_path)
    refused(done, BUNDLE, str(damaged[kind]))
    assert not list((tmp_path / "state").glob("learned/*"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["inspect", "verify", "unpack"])
def test_bundle_commands_refuse_what_is_not_a_bundle(
    tmp_path: Path, damaged: dict[str, Path], kind: str, command: str
) -> None:
    extra = ["out"] if command == "unpack" else []
    refused(called("bundle", command, damaged[kind], *extra, cwd=tmp_path), BUNDLE, str(damaged[kind]))
    assert not (tmp_path / "out").exists()


def test_bundle_commands_work_on_a_bundle(tmp_path: Path, digits_bundle: Path) -> None:
    assert "sha256" in called("bundle", "inspect", digits_bundle, cwd=tmp_path).stdout
    assert "golden outputs are right" in called("bundle", "verify", digits_bundle, cwd=tmp_path).stdout
    assert called("bundle", "unpack", digits_bundle, "out", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "model.onnx").exists()
    refused(called("bundle", "unpack", digits_bundle, "out", cwd=tmp_path), CONFIG, "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--profile", "raspbery-pi-4"], ["raspberry-pi-4"]),
        (["--profile", "no/such.toml"], ["no/such.toml"]),
        (["--device", "Camera 1"], ["camera-1"]),
        (["--fleet", "a/b"], ["fleet"]),
        (["--broker", "http://x"], ["mqtt://"]),
        (["--broker", "mqtt://:99999"], ["mqtt://"]),
        (["--state-dir", "/proc/nothing"], ["/proc/nothing"]),
        (["--socket", "no/such/folder/agent.sock"], ["agent.sock"]),
    ],
)
def test_agent_refuses_wrong_options(tmp_path: Path, digits_bundle: Path, options: list[str], words: list[str]) -> None:
    state = [] if "--state-dir" in options else ["--state-dir", "state"]
    refused(called("agent", "run", digits_bundle, *state, *options, cwd=tmp_path), CONFIG, *words)


def test_second_agent_on_the_same_state_is_refused_and_the_first_goes_on(tmp_path: Path, digits_bundle: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "edge.cli.agent", "run", str(digits_bundle), "--state-dir", "state"]
    first = subprocess.Popen(line, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 30
        while not (tmp_path / "state/agent.sock").exists() and time.monotonic() < end:
            time.sleep(0.05)
        refused(called("agent", "run", digits_bundle, "--state-dir", "state", cwd=tmp_path), CONFIG, "in use")
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGTERM)
        assert first.wait(10) == 0
        assert first.stderr is not None
        first.stderr.close()


def test_agent_works_without_its_broker_and_says_so(tmp_path: Path, digits_bundle: Path) -> None:
    """A device must answer when the network does not: this command does not end when the broker is not there."""
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "edge.cli.agent",
            "run",
            str(digits_bundle),
            "--stdin",
            "--broker",
            "mqtt://127.0.0.1:1",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b'{"op":"status"}\n')
        process.stdin.flush()
        assert b'"connected":false' in process.stdout.readline()
        time.sleep(1.0)
        process.stdin.close()
        said = process.stderr.read().decode()
        assert process.wait(10) == 0
    assert "no broker" in said
    assert "Traceback" not in said


def closed_port() -> int:
    return free_port()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--broker", "nonsense"], CONFIG, ["mqtt://"]),
        (["--broker", "mqtt://127.0.0.1:1", "--http", "here"], CONFIG, ["HOST:PORT"]),
        (["--broker", "mqtt://127.0.0.1:1", "--http", "0.0.0.0:8470"], CONFIG, ["--token"]),
        (["--broker", "mqtt://127.0.0.1:1", "--fleet", "A B"], CONFIG, ["fleet"]),
        (["--broker", "mqtt://127.0.0.1:1", "--merge-rule", "best"], CONFIG, ["'best'", "trimmed-mean"]),
        (["--broker", "mqtt://127.0.0.1:1", "--garbage-share", "0.7"], CONFIG, ["garbage share 0.7", "0.5"]),
        (["--broker", "mqtt://127.0.0.1:1", "--noise-multiplier", "1"], CONFIG, ["clip norm", "expected devices"]),
    ],
)
def test_coordinator_refuses_wrong_options(tmp_path: Path, options: list[str], code: int, words: list[str]) -> None:
    refused(called("coordinator", "serve", *options, "--connect-timeout", "1", cwd=tmp_path), code, *words)


@pytest.mark.parametrize("command", [["devices"], ["watch", "--seconds", "1"], ["merge"], ["forget", "d"], ["events"]])
def test_fleet_refuses_a_coordinator_that_is_not_there(tmp_path: Path, command: list[str]) -> None:
    done = called("fleet", "--coordinator", f"http://127.0.0.1:{closed_port()}", *command, cwd=tmp_path)
    refused(done, CHANNEL, "no coordinator answers")


def test_fleet_refuses_a_file_that_is_missing(tmp_path: Path) -> None:
    refused(called("fleet", "push", "nothing.edge", cwd=tmp_path), CONFIG, "nothing.edge")


def test_fleet_refuses_an_address_that_is_none(tmp_path: Path) -> None:
    done = called("fleet", "--coordinator", "not an address", "devices", cwd=tmp_path)
    assert done.returncode in (CONFIG, CHANNEL)
    assert "Traceback" not in done.stderr


@pytest.mark.broker
def test_coordinator_refuses_what_is_not_an_artifact_and_wrong_tokens(tmp_path: Path, damaged: dict[str, Path]) -> None:
    from edge.coordinator.machine.broker import DevelopmentBroker

    folder = tmp_path / "broker"
    folder.mkdir()
    port = closed_port()
    with DevelopmentBroker.start(folder) as broker:
        line = ["serve", "--broker", broker.url, "--http", f"127.0.0.1:{port}", "--token", "secret"]
        process = subprocess.Popen(
            [sys.executable, "-m", "edge.cli.coordinator", *line],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
        )
        try:
            address = ["--coordinator", f"http://127.0.0.1:{port}"]
            end = time.monotonic() + 30
            while called("fleet", *address, "devices", cwd=tmp_path).returncode == CHANNEL and time.monotonic() < end:
                time.sleep(0.2)
            refused(called("fleet", *address, "devices", cwd=tmp_path), CONFIG, "token")
            refused(called("fleet", *address, "--token", "wrong", "devices", cwd=tmp_path), CONFIG, "token")
            address += ["--token", "secret"]
            assert "no device" in called("fleet", *address, "devices", cwd=tmp_path).stdout
            for kind in KINDS:
                if kind != "missing":
                    refused(called("fleet", *address, "push", damaged[kind], cwd=tmp_path), BUNDLE)
            second = called("coordinator", *line, "--http", f"127.0.0.1:{closed_port()}", cwd=tmp_path)
            refused(second, CONFIG, "in use by another process")
            taken = called("coordinator", *line, "--data-dir", "other", "--connect-timeout", "2", cwd=tmp_path)
            refused(taken, CONFIG, "--http")
        finally:
            process.terminate()
            assert process.stderr is not None
            said = process.stderr.read().decode()
            assert process.wait(20) == 0, said
            assert "alembic" not in said, "how tables are made is nothing for the first screen"
            process.stderr.close()
            assert "Traceback" not in said
