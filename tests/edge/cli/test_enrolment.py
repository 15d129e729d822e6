"""Devices join by a token, and a real mosquitto lets each speak as itself only."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
import uvicorn
from click.testing import CliRunner
from paho.mqtt.enums import CallbackAPIVersion

from edge.cli.agent import agent
from edge.contract.clock import Now
from edge.contract.errors import RolloutError
from edge.coordinator.core import CoordinatorCore
from edge.coordinator.devices.enrolment import Request, mosquitto_hash
from edge.coordinator.http.api import build_api
from edge.coordinator.records import Credential
from tests.edge.cli.test_models import ask, born
from tests.edge.coordinator.test_access import certificate


@pytest.fixture
def moment() -> Now:
    return Now(1000.0, time.time_ns() // 1_000_000)  # a broker looks until when a certificate holds


@pytest.fixture
def served(core: CoordinatorCore, moment: Now) -> Iterator[str]:
    """The coordinator's HTTP API on a real port."""
    api = build_api(
        core._store,
        lambda function: function(core, moment),
        "lab",
        None,
        clock=lambda: moment,
        line=lambda: core.dialogue.line.state,
    )
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def enroll(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(agent, ["enroll", *words, "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(done.output)
    return found


def login(port: int, name: str, password: str | None, tls: dict[str, str] | None = None) -> paho.Client:
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)
    client.user_data_set({"codes": [], "acks": {}, "heard": []})
    client.on_connect = lambda c, d, f, code, p: d["codes"].append(code.value)  # type: ignore[assignment]
    client.on_publish = lambda c, d, mid, code, p: d["acks"].__setitem__(mid, code.value)  # type: ignore[assignment]
    client.on_message = lambda c, d, m: d["heard"].append(m.topic)
    if password is not None:
        client.username_pw_set(name, password)
    if tls is not None:
        client.tls_set(**tls)
    client.connect("127.0.0.1", port)
    client.loop_start()
    until(lambda: client.user_data_get()["codes"])
    return client


def until(ready: Callable[[], Any]) -> None:
    for _ in range(200):
        if ready():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen in 4 s")


def code_of(client: paho.Client, topic: str) -> int:
    """The broker's reason code for a message."""
    sent = client.publish(topic, b"{}", qos=1)
    until(lambda: sent.mid in client.user_data_get()["acks"])
    code: int = client.user_data_get()["acks"][sent.mid]
    return code


NOT_AUTHORIZED, NOBODY_LISTENS = 0x87, 0x10


def test_a_login_of_an_earlier_version_goes_with_its_device(core: CoordinatorCore, served: str, tmp_path: Path) -> None:
    """Nothing in its line says that it is a device's: the coordinator knows whose it was."""
    store, hashed = core._store.enrolment, mosquitto_hash("x", bytes(12))
    proof = {"mosquitto": hashed, "rabbitmq": ""}
    for device in ("cam-1", "cam-2"):
        store.add_credential(Credential(device=device, kind="password", proof=proof, request=device, created_ms=1))
    passwords = tmp_path / "passwords"
    passwords.write_text(f"people:{hashed}\n# devices, written by edge-fleet broker-config\ncam-1:{hashed}\n")
    left = []
    for device in ("", "cam-1", "cam-2"):
        store.revoke_credentials(device, 2, "decommissioned")
        ask("broker-config", "mosquitto", "-o", str(tmp_path))
        left.append([line.partition(":")[0] for line in passwords.read_text().splitlines()])
    assert left == [["people", "cam-1", "cam-2"], ["people", "cam-2"], ["people"]]
    assert not (tmp_path / "former").exists()


def test_a_device_that_joined_speaks_as_itself_only(
    core: CoordinatorCore, served: str, tmp_path: Path, mosquitto: Callable[..., int]
) -> None:
    token = ask("enrolment", "new", "--uses", "2", "--tag", "site=north", "--approve", "--json")
    token = json.loads(token)["token"]
    states = {name: tmp_path / name for name in ("cam-1", "cam-2")}
    for name, state in states.items():
        words = ("--coordinator", served, "--token", token, "--device", name, "--state-dir", str(state))
        assert enroll(*words)["admission"] == "approved"
        assert (state / "enrolment" / "password").stat().st_mode & 0o077 == 0
    secrets = {name: (state / "enrolment" / "password").read_text() for name, state in states.items()}
    data = b"".join(path.read_bytes() for path in tmp_path.glob("db.sqlite*"))
    assert not any(secret.encode() in data for secret in secrets.values())
    assert "site=north" in ask("device", "show", "cam-1")
    assert "login      password" in ask("device", "show", "cam-1")
    shown = ask("device", "show", "cam-1")
    assert "cam-1: not introduced yet, known since" in shown
    assert "heard" not in shown.splitlines()[0]
    with pytest.raises(RolloutError, match="used as often as it may be"):
        enroll("--coordinator", served, "--token", token, "--device", "cam-3", "--state-dir", str(tmp_path / "3"))
    with pytest.raises(RolloutError, match=r"used as often.*this device is enrolled already, by the login in .*cam-2"):
        enroll("--coordinator", served, "--token", token, "--device", "cam-2", "--state-dir", str(states["cam-2"]))
    folder = tmp_path / "broker"
    folder.mkdir()
    (folder / "passwords").touch()
    subprocess.run(["mosquitto_passwd", "-b", str(folder / "passwords"), "coordinator", "c"], check=True)
    for who in ("coordinator", "people", "coordinator"):  # again: what others wrote there stays
        ask("broker-config", "mosquitto", "-o", str(folder))
        subprocess.run(["mosquitto_passwd", "-b", str(folder / "passwords"), who, "c"], check=True)
    ask("broker-config", "mosquitto", "-o", str(folder))
    logins = [line.partition(":")[0] for line in (folder / "passwords").read_text().splitlines()]
    assert sorted(logins) == ["cam-1", "cam-2", "coordinator", "people"]
    port = mosquitto(*_lines(folder / "edgeloop.conf"))
    wrong = login(port, "cam-1", secrets["cam-2"])
    assert wrong.user_data_get()["codes"][0] == 135
    clients = {name: login(port, name, secret) for name, secret in {**secrets, "coordinator": "c"}.items()}
    clients["coordinator"].subscribe("edge/v1/lab/+/up/#", 1)
    for name in secrets:
        clients[name].subscribe(
            [(f"edge/v1/lab/{name}/dn/#", 1), ("edge/v1/lab/all/dn/#", 1), ("edge/v1/lab/cam-2/up/#", 1)]
        )
    time.sleep(0.3)
    for leaf in ("up/tele", "up/conn", "up/ul/0123", "up/req"):
        assert code_of(clients["cam-1"], f"edge/v1/lab/cam-1/{leaf}") == 0
        for topic in (f"edge/v1/lab/cam-2/{leaf}", f"edge/v1/other/cam-1/{leaf}"):
            assert code_of(clients["cam-1"], topic) == NOT_AUTHORIZED, topic
    for topic in ("edge/v1/lab/cam-1/dn/desired", "edge/v1/lab/all/dn/cmd", "edge/v1/lab/_c/coordinator/conn", "x"):
        assert code_of(clients["cam-1"], topic) == NOT_AUTHORIZED, topic
    for name in secrets:
        assert code_of(clients["coordinator"], f"edge/v1/lab/{name}/dn/cmd") == 0
    assert code_of(clients["cam-2"], "edge/v1/lab/cam-2/up/tele") == 0
    until(lambda: "edge/v1/lab/cam-2/up/tele" in clients["coordinator"].user_data_get()["heard"])
    heard = {name: set(client.user_data_get()["heard"]) for name, client in clients.items()}
    assert heard["cam-1"] == {"edge/v1/lab/cam-1/dn/cmd"}, "nothing of another, up or down"
    # One that is decommissioned does not come in again.
    ask("device", "decommission", "cam-1", "--reason", "broken")
    ask("broker-config", "mosquitto", "-o", str(folder))
    assert "cam-1:" not in (folder / "passwords").read_text()
    for client in (*clients.values(), wrong):
        client.loop_stop()
        client.disconnect()


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def test_a_certificate_is_of_a_key_that_never_leaves_the_device(
    core: CoordinatorCore, served: str, tmp_path: Path, mosquitto: Callable[..., int]
) -> None:
    token = json.loads(ask("enrolment", "new", "--uses", "2", "--json"))["token"]
    for name in ("cam-1", "cam-2"):
        words = ["--coordinator", served, "--token", token, "--device", name, "--state-dir", str(tmp_path / name)]
        assert enroll(*words, "--certificate")["admission"] == "pending", "the token does not approve"
    assert ask("device", "approve", "cam-1") == "cam-1 is approved\n"
    ask("device", "decommission", "cam-2")
    folder, own = tmp_path / "broker", certificate(tmp_path)
    ask("broker-config", "mosquitto", "-o", str(folder))
    lines = [line.removeprefix("# ") for line in (folder / "edgeloop.conf").read_text().splitlines()]
    lines = [line for line in lines if line.split(" ")[0] not in ("listener", "A", "password_file")]
    port = mosquitto(*lines, f"certfile {own[0]}", f"keyfile {own[1]}")
    files = {name: tmp_path / name / "enrolment" for name in ("cam-1", "cam-2")}
    tls = {
        "ca_certs": str(own[0]),
        "certfile": str(files["cam-1"] / "device.pem"),
        "keyfile": str(files["cam-1"] / "device.key"),
    }
    client = login(port, "anything", None, tls)
    assert client.user_data_get()["codes"] == [0]
    assert code_of(client, "edge/v1/lab/cam-1/up/tele") in (0, NOBODY_LISTENS)
    assert code_of(client, "edge/v1/lab/cam-2/up/tele") == NOT_AUTHORIZED
    client.loop_stop()
    client.disconnect()
    gone = paho.Client(CallbackAPIVersion.VERSION2, client_id="gone", protocol=paho.MQTTv5)
    gone.tls_set(str(own[0]), str(files["cam-2"] / "device.pem"), str(files["cam-2"] / "device.key"))
    came: list[int] = []
    gone.on_connect = lambda c, d, f, code, p: came.append(code.value)  # type: ignore[assignment]
    with contextlib.suppress(OSError):  # with TLS 1.3 it is told after its own part of the handshake
        gone.connect("127.0.0.1", port)
        for _ in range(20):
            gone.loop(0.1)
    assert came == [], "it is on the list of those that hold no more"


def test_new_hardware_takes_the_place_of_the_old_and_an_answer_that_was_lost_is_given_again(
    core: CoordinatorCore, served: str, tmp_path: Path, moment: Now
) -> None:
    born(core, "cam-7", {"digits": "e" * 64})
    ask("tag", "cam-7", "site=north")
    token = json.loads(ask("enrolment", "new", "--json"))["token"]
    with pytest.raises(RolloutError, match="there is a device cam-7 already"):
        enroll("--coordinator", served, "--token", token, "--device", "cam-7", "--state-dir", str(tmp_path / "thief"))
    with pytest.raises(RolloutError, match="lets nobody in"):
        enroll("--coordinator", served, "--token", "join_no", "--device", "x", "--state-dir", str(tmp_path / "x"))
    with pytest.raises(RolloutError, match="name of the coordinator"):
        enroll("--coordinator", served, "--token", token, "--device", "c", "--state-dir", str(tmp_path / "c"))
    assert "enrolment-refused" in [each.name for each in core._store.events.newest(9)]
    place = json.loads(ask("device", "replace", "cam-7", "--json"))["token"]
    found = enroll("--coordinator", served, "--token", place, "--state-dir", str(tmp_path / "new"))
    assert (found["device"], found["admission"]) == ("cam-7", "approved")
    assert "site=north" in ask("device", "show", "cam-7")
    assert core.admissions.get("cam-7").epoch == 1
    # The same request once more, since no answer came: another password, and the token is not used twice.
    request = Request(token=token, device="cam-8", number="0" * 16)
    first, again = (core.enrolments.join(request, moment)["password"] for _ in range(2))
    assert first != again
    live = [each for each in core._store.enrolment.credentials("cam-8") if not each.revoked_ms]
    assert len(live) == 1
    later = Now(moment.s, moment.wall_ms + 8 * 86_400_000)
    place = json.loads(ask("device", "replace", "cam-7", "--json"))["token"]
    with pytest.raises(RolloutError, match="expired"):
        core.enrolments.join(Request(token=place, device="", number="1" * 16), later)
    listed = ask("enrolment", "list")
    assert "in place of cam-7" in listed
    assert ask("enrolment", "revoke", "3") == "enrolment 3 lets nobody in any more\n"


def test_what_rabbitmq_is_told_lets_a_device_speak_as_itself_only(core: CoordinatorCore, moment: Now) -> None:
    import re

    for i, name in enumerate(("cam-1", "cam-10")):
        token = core.enrolments.new(moment, days=1, approves=True)[1]
        core.enrolments.join(Request(token=token, device=name, number=f"{i:016}"), moment)
    found = json.loads(ask("broker-config", "rabbitmq"))
    assert [each["name"] for each in found["users"]] == ["cam-1", "cam-10"]
    rules = {each["user"]: each for each in found["topic_permissions"]}

    def may(user: str, what: str, topic: str) -> bool:
        return re.search(rules[user][what], topic.replace("/", ".")) is not None

    for topic, writer in (("cam-1/up/tele", "cam-1"), ("cam-10/up/tele", "cam-10"), ("cam-1/dn/cmd", "coordinator")):
        may_write = {user for user in rules if may(user, "write", f"edge/v1/lab/{topic}")}
        assert may_write == {writer, "coordinator"}
    assert {user for user in rules if may(user, "read", "edge/v1/lab/cam-1/dn/#")} == {"cam-1", "coordinator"}
    assert not may("cam-1", "write", "xedge/v1/lab/cam-1/up/tele")
    assert os.linesep not in found["users"][0]["password_hash"]
