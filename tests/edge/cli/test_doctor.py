"""``edge-agent doctor`` against real brokers with wrong rules, a runtime that ends, damaged bundles."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge.channel.transport import Connected
from edge.channel.url import BrokerUrl
from edge.cli import doctor
from edge.cli.agent import agent
from edge.contract.files import lock_folder
from edge.coordinator.signing.ceremony import init

Start = Callable[..., int]
OWN = "edge/v1/lab/pi/up/conn"


def ask(port: int, **options: object) -> list[tuple[str, str, str]]:
    given = {"busy": False, "timeout_s": 3.0, "echo_s": 1.0, **options}
    found = list(doctor.broker(BrokerUrl.parse(f"mqtt://127.0.0.1:{port}"), "lab", "pi", **given))
    assert all(each.cure for each in found if each.level != "ok")
    return [(each.level, each.what, each.text) for each in found]


@pytest.mark.broker
def test_rights_of_a_real_broker_are_found(mosquitto: Start, tmp_path: Path) -> None:
    good = ask(mosquitto("allow_anonymous true"))
    assert [level for level, _, _ in good] == ["ok"] * 5
    assert good[0][2].endswith("takes the login, as pi")

    passwords = tmp_path / "passwords"
    passwords.touch()
    (fault,) = ask(mosquitto("allow_anonymous false", f"password_file {passwords}"))
    assert fault[:2] == ("fault", "broker")
    assert "refused" in fault[2]

    rules = tmp_path / "mute.acl"
    rules.write_text("topic read edge/v1/lab/#\n")
    mute = ask(mosquitto("allow_anonymous true", f"acl_file {rules}"))
    assert mute[1] == ("fault", "broker rights", f"{OWN} is refused: Not authorized")

    rules = tmp_path / "two.acl"  # the two rules that a device needs
    rules.write_text(
        "topic write edge/v1/lab/pi/up/#\ntopic read edge/v1/lab/pi/dn/#\ntopic read edge/v1/lab/all/dn/#\n"
    )
    two = ask(mosquitto("allow_anonymous true", f"acl_file {rules}", "max_packet_size 5000"))
    assert [level for level, _, _ in two] == ["ok", "warning", "ok", "ok", "warning"]
    assert "does not come back" in two[1][2]
    assert "at most 5000 bytes" in two[4][2]


@pytest.mark.broker
def test_nobody_there_is_a_fault_and_a_running_agent_is_not_pushed_off(mosquitto: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        (fault,) = ask(taken.getsockname()[1])
    assert fault[0] == "fault"
    assert "is the broker running?" in fault[2]
    assert "as doctor-" in ask(mosquitto("allow_anonymous true"), busy=True)[0][2]


def test_what_a_broker_does_not_say_is_not_called_right() -> None:
    def levels(found: doctor._Answers) -> list[str]:
        return [doctor._publishing(found, OWN).level, doctor._subscribing(found, "edge/v1/lab/pi/dn/#").level]

    old = Connected(session_present=False, max_packet_bytes=65536, tells_reasons=False)
    new = Connected(session_present=False, max_packet_bytes=65536, tells_reasons=True)
    assert levels(doctor._Answers(connected=old, came_back=True)) == ["ok", "warning"]
    assert levels(doctor._Answers(connected=old)) == ["warning", "warning"]
    assert levels(doctor._Answers(connected=new, came_back=True)) == ["ok", "ok"]
    assert levels(doctor._Answers(connected=new, lost="lost")) == ["fault", "ok"]
    refused = doctor._Answers(connected=new, refused={"edge/v1/lab/pi/dn/#": "Not authorized", OWN: "Quota exceeded"})
    assert levels(refused) == ["fault", "fault"]


def test_a_runtime_that_this_processor_cannot_run_is_a_fault_and_not_the_end() -> None:
    ends = "import os, signal; os.kill(os.getpid(), signal.{})"
    found = doctor.runtime((sys.executable, "-c", ends.format("SIGILL")))
    assert (found.level, "lacks instructions" in found.text) == ("fault", True)
    found = doctor.runtime((sys.executable, "-c", ends.format("SIGSEGV")))
    assert (found.level, found.text) == ("fault", "it ends with SIGSEGV")
    found = doctor.runtime((sys.executable, "-c", "import nothing_of_this_name"))
    assert (found.level, "No module named" in found.text) == ("fault", True)
    assert doctor.runtime(("/no/such/python",)).level == "fault"


def test_the_command_ends_with_1_for_a_fault_and_with_0_without(
    tmp_path: Path, digits_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("EDGE_BROKER", raising=False)
    damaged = tmp_path / "damaged.edge"
    damaged.write_bytes(digits_bundle.read_bytes()[:-2000])
    state = ["--state-dir", str(tmp_path / "s")]
    ran = CliRunner().invoke(agent, ["doctor", str(digits_bundle), *state])
    assert ran.exit_code == 0, ran.output
    assert "gives its golden outputs here" in ran.output
    assert not (tmp_path / "s").exists()
    file = tmp_path / "agent.toml"
    file.write_text(
        f'bundles = ["damaged.edge", "{digits_bundle}"]\nstate_dir = "s"\ntrust = "damaged.edge"\n'
        'source = ["none", "folder:.", "mqtt://h/t"]\nanswers = ["none/a.jsonl", "-"]\n'
    )
    ran = CliRunner().invoke(agent, ["doctor", "--config", str(file), "--json"])
    assert ran.exit_code == 1
    found = {(each["what"], each["level"]) for each in json.loads(ran.output)}
    assert {("bundle", "fault"), ("bundle", "ok"), ("clock", "ok"), ("state folder", "ok"), ("trust", "fault")} <= found
    assert {("source", "fault"), ("source", "ok"), ("answers", "fault")} <= found
    keys = init(tmp_path / "keys", datetime.now(UTC))
    assert [each.level for each in doctor.root_document(keys.base / "device" / "root.json", "f", "d")] == ["ok"]


def test_a_running_agent_is_seen_by_its_lock(tmp_path: Path) -> None:
    assert not doctor.is_busy(tmp_path)
    import os

    lock = lock_folder(tmp_path)
    assert doctor.is_busy(tmp_path)
    os.close(lock)
    assert not doctor.is_busy(tmp_path)
