"""The unit for systemd, judged by systemd's own programs where they are; and the agent as systemd starts it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edge.agent.device.supervision import Supervisor
from edge.cli import unit
from edge.cli.agent import agent
from edge.contract.errors import ConfigError


def service(**options: Any) -> unit.Service:
    given = {"bundles": ("/opt/edge/m.edge",), "state_dir": "/var/lib/edgeloop", **options}
    config = Path("/etc/edgeloop/agent.toml")
    return unit.Service(name="edge-agent", program=("/usr/bin/true",), config=config, options=given, user="root")


def lines(**options: Any) -> list[str]:
    return service(**options).text().splitlines()


def test_what_the_sandbox_hides_is_what_the_agent_does_not_need() -> None:
    usual = lines()
    assert {
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "PrivateTmp=yes",
        "Restart=always",
        "Type=notify",
        "OOMPolicy=continue",
    } <= set(usual)
    assert "StateDirectory=edgeloop" in usual
    assert not [line for line in usual if line.startswith("ReadWritePaths")]
    home = lines(state_dir="/home/a b/state", bundles=("east=/home/x/m.edge",))
    assert {"ProtectHome=read-only", 'ReadWritePaths="-/home/a b/state"', "PrivateTmp=yes"} <= set(home)
    assert not [line for line in home if line.startswith("StateDirectory")]
    assert "PrivateTmp=no" in lines(bundles=("/tmp/m.edge",))
    own = replace(service(), python=(Path("/home/x/.local/python"),)).text().splitlines()
    assert "ProtectHome=read-only" in own
    assert "ReadWritePaths=-/run/edge" in lines(socket="/run/edge/agent.sock")
    # What sources and answers need: their folders are written, and what else is read is not hidden.
    fed = lines(
        source=("/srv/box?after=delete", "folder:/srv/other", "mqtt://h/cam/+", "camera:/dev/video0"),
        answers=("/var/log/edge/answers.jsonl", "mqtt://h/answers", "-"),
    )
    assert "ReadWritePaths=-/srv/box -/srv/other -/var/log/edge" in fed
    assert "ProtectHome=yes" in fed
    for options in ({"trust": "/home/x/root.json"}, {"broker": "mqtts://h?ca=/home/x/ca.pem"},
                    {"source": ("mqtts://h/t?key=/home/x/k",)}, {"http_token_file": "/home/x/token"}):  # fmt: skip
        assert "ProtectHome=read-only" in lines(**options)


def test_a_service_without_standard_input_is_not_made_to_end_with_it(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('bundles = ["m.edge"]\nsource = ["-"]\n')
    found = CliRunner().invoke(agent, ["install", "--config", str(tmp_path / "agent.toml"), "--print"])
    assert "no standard input" in str(found.exception)


def test_words_reach_the_agent_whole() -> None:
    assert unit._quoted("/a/%h/$HOME", is_command=True) == "/a/%%h/$$HOME"
    assert unit._quoted('/a "b\\c', is_command=True) == '"/a \\"b\\\\c"'
    with pytest.raises(ConfigError, match="control characters"):
        unit._quoted("/a\nExecStart=/bin/sh")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    files = []
    for i, options in enumerate([{}, {"state_dir": "/home/a b/%h", "socket": "/run/edge/s"}, {"bundles": ("/tmp/m",)}]):
        path = tmp_path / f"edge-agent{i}.service"
        path.write_text(service(**options).text())
        files.append(str(path))
    ran = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, check=False)
    said = [line for line in ran.stderr.splitlines() if "edge-agent" in line]  # it also tells of the host's own units
    assert said == []
    broken = tmp_path / "broken.service"
    broken.write_text(service().text().replace("ExecStart=", "ExecStrat="))
    ran = subprocess.run(["systemd-analyze", "verify", "--man=no", broken], capture_output=True, text=True, check=False)
    assert "ExecStrat" in ran.stderr  # it does look


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(agent, list(arguments))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text('bundles = ["m.edge"]\n')
    return path


def test_print_shows_the_unit_without_rights_and_changes_nothing(config: Path, tmp_path: Path) -> None:
    shown = invoke("install", "--config", str(config), "--print", "--root", str(tmp_path), "--name", "edge")
    assert shown.exit_code == 0, shown.output
    assert f"run --config {config} --state-dir /var/lib/edge\n" in shown.output
    assert [path.name for path in tmp_path.iterdir()] == ["agent.toml"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--config", "none.toml"), "cannot be read"),
        (("--name", "../x"), "--name: expected"),
        (("--user", "a b"), "--user: expected"),
    ],
)
def test_what_cannot_be_installed_is_said(arguments: tuple[str, ...], said: str, config: Path) -> None:
    found = invoke("install", "--config", str(config), *arguments)
    assert isinstance(found.exception, ConfigError)
    assert said in str(found.exception)


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="systemd runs here")
def test_without_systemd_it_says_so(config: Path) -> None:
    found = invoke("install", "--config", str(config))
    assert "systemd does not run here: --print shows the unit" in str(found.exception)
    config.write_text("")
    assert "names no bundle" in str(invoke("install", "--config", str(config)).exception)


def test_without_root_it_says_so(tmp_path: Path) -> None:
    before = os.geteuid()
    os.seteuid(before or 65534)  # nobody
    try:
        with pytest.raises(ConfigError, match="only root"):
            unit._needs(tmp_path)
    finally:
        os.seteuid(before)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("systemctl") is None, reason="needs root and systemctl")
def test_an_image_gets_the_unit_enabled_and_loses_it_again(config: Path, tmp_path: Path) -> None:
    root = tmp_path / "image"
    (root / "etc").mkdir(parents=True)
    done = invoke("install", "--config", str(config), "--root", str(root))
    assert done.exit_code == 0, done.exception
    written = root / "etc/systemd/system/edge-agent.service"
    wanted = root / "etc/systemd/system/multi-user.target.wants/edge-agent.service"
    assert written.stat().st_mode & 0o777 == 0o644
    assert wanted.is_symlink()
    assert invoke("install", "--config", str(config), "--root", str(root)).exit_code == 0  # again: the same
    assert invoke("uninstall", "--root", str(root)).exit_code == 0
    assert not written.exists()
    assert not wanted.is_symlink()
    assert "nothing is installed" in str(invoke("uninstall", "--root", str(root)).exception)
    written.write_text("[Service]\nExecStart=/bin/true\n")  # somebody else's
    for command in (("install", "--config", str(config)), ("uninstall",)):
        assert "is not of `edge-agent install`" in str(invoke(*command, "--root", str(root)).exception)
    assert written.exists()


def test_the_environment_says_who_started_it() -> None:
    def period_s(**environment: str) -> float:
        return Supervisor.of({"NOTIFY_SOCKET": "/x", **environment}, 7)._every_s

    assert period_s(WATCHDOG_USEC="3000000") == period_s(WATCHDOG_USEC="3000000", WATCHDOG_PID="7") == 1.0
    for wrong in ({}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "-3"},
                  {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}):  # fmt: skip
        assert period_s(**wrong) == float("inf"), wrong


def test_an_agent_tells_that_it_is_ready_alive_and_stopping(tmp_path: Path, digits_bundle: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        process = subprocess.Popen(
            [sys.executable, "-m", "edge.cli.agent", "run", str(digits_bundle), "--state-dir", str(tmp_path / "s")],
            env=environment, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert [manager.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            assert (tmp_path / "s" / "agent.sock").exists()  # ready means that it answers
            process.send_signal(signal.SIGTERM)
            while (heard := manager.recv(100)) == b"WATCHDOG=1":
                pass
            assert heard == b"STOPPING=1"
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
