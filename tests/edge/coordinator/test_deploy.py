"""Each generated file is given to the program that it is for."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from click.testing import CliRunner
from paho.mqtt.enums import CallbackAPIVersion

from edge.channel.amqp import AmqpQueue
from edge.channel.topics import shared_leaves
from edge.cli.fleet import fleet
from edge.coordinator.devices.enrolment import rabbitmq_hash
from edge.coordinator.machine.broker import find_mosquitto
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer, find_binaries
from tests.support.rabbitmq import RabbitServer

ROOT = Path(__file__).parents[3]


def written(folder: Path, broker: str) -> Path:
    options = ["--broker", broker, "--broker-host", "mq.lan", "--database-host", "db.lan", "--devices", "5000"]
    done = CliRunner().invoke(fleet, ["deploy", str(folder), "--fleet", "lab", "--coordinators", "3", *options])
    assert done.exit_code == 0, done.output
    tls = folder / "tls"
    tls.mkdir(exist_ok=True)
    for name in ("broker", "database"):
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}.lan", "-days", "2"]
        subprocess.run([*command, "-keyout", tls / f"{name}.key", "-out", tls / f"{name}.crt"], check=True)
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".conf", ".service", ".env"):
            path.write_text(path.read_text().replace("/etc/edgeloop", str(folder)))
    return folder


def test_mosquitto_listens_with_tls_by_its_file(tmp_path: Path) -> None:
    program = find_mosquitto()
    if program is None:
        pytest.skip("mosquitto is not installed")
    folder, (port,) = written(tmp_path / "out", "mosquitto"), free_ports(1)
    (folder / "broker" / "passwords").write_text("")  # all else that the file names is there
    config = folder / "mosquitto" / "edgeloop.conf"
    config.write_text("user root\n" + config.read_text().replace("listener 8883", f"listener {port} 127.0.0.1"))
    process = subprocess.Popen([program, "-c", config], stderr=subprocess.PIPE, cwd=tmp_path)
    try:
        end = time.monotonic() + 10
        while True:
            assert process.poll() is None, process.communicate()[1]
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        process.terminate()
        said = process.communicate(timeout=10)[1].decode()
        told = [line for line in said.splitlines() if "Error" in line and "OpenSSL Error" not in line]  # of the probe
        assert not told, said


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    folder = written(tmp_path / "out", "rabbitmq")
    unit = folder / "systemd" / "edge-coordinator@c1.service"
    shutil.copy(folder / "systemd" / "edge-coordinator@.service", unit)
    (program,) = re.findall(r"^ExecStart=(\S+)", unit.read_text(), re.MULTILINE)
    assert f"{Path(program).parent}/pip install" in (ROOT / "docs" / "deploy.md").read_text(), (
        "where the page installs it"
    )
    text = unit.read_text().replace(program, "/bin/true")
    unit.write_text(text.replace("User=edgeloop", "User=root").replace("Group=edgeloop", "Group=root"))
    done = subprocess.run(["systemd-analyze", "verify", unit], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr, done.stderr
    assert "EDGE_INTAKE=amqps://" in (folder / "coordinator.env").read_text()


def test_postgresql_takes_its_files(tmp_path: Path, postgres: PostgresServer) -> None:
    binaries = find_binaries()
    assert binaries is not None
    folder = written(tmp_path / "out", "mosquitto") / "postgresql"
    settings = [line.partition(" = ") for line in (folder / "edgeloop.conf").read_text().splitlines() if " = " in line]
    assert "listen_addresses" in {name for name, *_ in settings}, "else no other machine could connect"
    for name, _, value in settings:  # what the server itself thinks of each
        if not name.startswith("ssl"):
            literal = value if value.isdigit() else repr(value.strip("'"))
            postgres.execute(f"ALTER SYSTEM SET {name} = {literal}")
    for name, *_ in settings:
        postgres.execute(f"ALTER SYSTEM RESET {name}")
    psql = ["psql", "-h", "127.0.0.1", "-p", str(postgres.port), "-U", "edge", "-d", "postgres"]
    psql += ["-v", "ON_ERROR_STOP=1"]
    subprocess.run([*psql, "-v", "password=secret", "-f", folder / "database.sql"], check=True, capture_output=True)
    assert "hostssl edgeloop edgeloop" in (folder / "pg_hba.conf").read_text()


@pytest.mark.broker
@pytest.mark.timeout(240)
def test_rabbitmq_starts_by_its_files(tmp_path: Path) -> None:
    server = RabbitServer(tmp_path / "rabbit")
    folder = written(tmp_path / "out", "rabbitmq")
    config = (folder / "rabbitmq" / "rabbitmq.conf").read_text()
    for old, new in (
        ("127.0.0.1:5672", f"127.0.0.1:{server.amqp_port}"),
        ("ssl.1 = 8883", f"ssl.1 = 127.0.0.1:{server.mqtt_port}"),
        ("ssl.1 = 5671", f"ssl.1 = 127.0.0.1:{free_ports(1)[0]}"),
        ("2GB", "10MB"),
    ):
        config = config.replace(old, new)
    rules = json.loads((folder / "broker" / "definitions.json").read_text())
    hashed = {"password_hash": rabbitmq_hash("pw"), "hashing_algorithm": "rabbit_password_hashing_sha256"}
    rules |= {"users": [{"name": "coordinator", **hashed, "tags": []}], "vhosts": [{"name": "/"}]}
    (server.folder / "rules.json").write_text(json.dumps(rules))
    config = config.replace("mqtt.listeners.tcp = none", f"load_definitions = {server.folder / 'rules.json'}")
    (server.folder / "rabbitmq.conf").write_text(config)
    (server.folder / "plugins").write_text("[rabbitmq_mqtt].\n")
    heard: list[str] = []
    with server:  # the coordinators of the unit, as the environment names them, are let in and hear devices
        door = AmqpQueue(
            server.amqp_url.replace("guest:guest", "coordinator:pw"), "edge.lab.shared", shared_leaves("lab")
        )
        door.start(lambda batch: heard.extend(each.topic for each in batch))
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="c1", protocol=paho.MQTTv311)
        client.username_pw_set("coordinator", "pw")
        client.on_message = lambda c, u, message: heard.append(message.topic)
        client.tls_set(str(folder / "tls" / "broker.crt"))
        client.tls_insecure_set(True)  # it is made for mq.lan
        client.connect("127.0.0.1", server.mqtt_port)
        client.loop_start()
        end = time.monotonic() + 30
        while len(heard) < 2 and time.monotonic() < end:
            client.subscribe("edge/v1/lab/one/up/event", 1)
            client.publish("edge/v1/lab/one/up/tele", b"{}", 1)
            client.publish("edge/v1/lab/one/up/event", b"{}", 1)
            time.sleep(0.2)
        client.loop_stop()
        client.disconnect()
        door.stop()
    assert {"edge/v1/lab/one/up/tele", "edge/v1/lab/one/up/event"} <= set(heard)
    assert (folder / "rabbitmq" / "enabled_plugins").read_text() == "[rabbitmq_mqtt,rabbitmq_prometheus].\n"
