"""Real brokers for tests and benchmarks, each with its own configuration, folder and ports on 127.0.0.1.

Their limits are as they come. Anybody may do everything there, but for the user `DEVICE` with the password `SECRET`: it
has the rights of a device, where the broker can be told rights.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from edge.coordinator.devices.enrolment import rabbitmq_hash
from edge.coordinator.machine.broker import DevelopmentBroker, find_mosquitto, iotcore_version
from edge.coordinator.machine.broker_config import rabbitmq
from edge.coordinator.records import Credential
from tests.support.ports import free_port

FLEET, DEVICE, SECRET = "lab", "one", "secret"
KINDS = ("mosquitto", "iotcore", "nats", "rabbitmq")
START_TIMEOUT_S = 150.0

_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # what /usr/sbin has runs as another user


def is_installed(kind: str) -> bool:
    """Whether a broker of this kind can be started here."""
    match kind:
        case "mosquitto":
            return find_mosquitto() is not None
        case "iotcore":
            return iotcore_version() is not None
        case "rabbitmq":
            return _RABBITMQ.exists() and shutil.which("epmd") is not None
    return _nats() is not None


def require(kind: str) -> None:
    """Skip the test where such a broker is not installed; `.ci/run` installs all of them."""
    import pytest

    if not is_installed(kind):
        name = {"rabbitmq": "rabbitmq-server", "nats": "nats-server"}.get(kind, kind)
        pytest.skip(f"{name} is not installed: `apt install {name}`, iotcore by `pip install iotcore==0.4.0`")


@dataclass(slots=True)
class Broker:
    """A broker that can be stopped, killed and started again with the same folder, on the same port.

    Attributes:
        kind: One of `KINDS`.
        folder: Its configuration, its log and what it keeps.
        port: Where it listens for MQTT.
        routes: Of NATS, ports of the nodes of its cluster, its own one first; empty where it is alone.
        has_rights: Whether it was told what `DEVICE` may do.
    """

    kind: str
    folder: Path
    port: int = field(default_factory=free_port)
    routes: tuple[int, ...] = ()
    has_rights: bool = field(init=False)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _embedded: DevelopmentBroker | None = None
    _more_ports: Mapping[str, int] = field(default_factory=lambda: {n: free_port() for n in ("a", "b", "c")})

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self.has_rights = self.kind != "iotcore"

    @property
    def url(self) -> str:
        """Of somebody who may do everything."""
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def device_url(self) -> str:
        """Of `DEVICE`, with its rights only."""
        return f"mqtt://{DEVICE}:{SECRET}@127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        """What it is, with its version."""
        from edge.coordinator.machine.broker import mosquitto_version

        match self.kind:
            case "mosquitto":
                return mosquitto_version(_there(find_mosquitto()))
            case "iotcore":
                return f"iotcore {iotcore_version()}"
            case "rabbitmq":
                (found,) = Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*")
                return f"RabbitMQ {found.name.rpartition('-')[2]}"
        said = subprocess.run([_there(_nats()), "--version"], capture_output=True, text=True, check=True).stdout
        return f"NATS {said.rpartition('v')[2].strip()}"

    def start(self) -> Broker:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.kind == "iotcore":
            self._embedded = DevelopmentBroker.start(self.folder, self.port, kind="iotcore")
            return self
        {"mosquitto": self._mosquitto, "rabbitmq": self._rabbitmq, "nats": self._nats}[self.kind]()
        end_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return self
            except OSError as exc:
                if time.monotonic() > end_s or self._processes[-1].poll() is not None:
                    said = (self.folder / "log").read_text(errors="replace")[-1000:]
                    self.kill()
                    raise RuntimeError(f"{self.kind} did not start: {said}") from exc
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop it as a crash would."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.kill()

    def _end(self, number: int) -> None:
        if self._embedded is not None:
            (self._embedded.kill if number == signal.SIGKILL else self._embedded.stop)()
            self._embedded = None
        for process in reversed(self._processes):  # a broker, then what it needed
            if process.poll() is None:
                os.killpg(process.pid, number)
            process.wait(30.0)
        self._processes.clear()

    def _run(self, *command: str | Path, **environment: str) -> None:
        with (self.folder / "log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **environment},
                    cwd=self.folder,
                    start_new_session=True,
                )
            )

    def _mosquitto(self) -> None:
        rules = self.folder / "rules"
        rules.write_text(
            f"topic readwrite #\n\nuser {DEVICE}\ntopic write edge/v1/{FLEET}/{DEVICE}/up/#\n"
            f"topic read edge/v1/{FLEET}/{DEVICE}/dn/#\ntopic read edge/v1/{FLEET}/all/dn/#\n"
            f"topic read edge/v1/{FLEET}/{DEVICE}/up/conn\n"
        )
        config = self.folder / "mosquitto.conf"
        config.write_text(
            f"user root\nlistener {self.port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nacl_file {rules}\n"
            f"persistence true\npersistence_location {self.folder}/\n"
        )
        self._run(_there(find_mosquitto()), "-c", config)

    def _nats(self) -> None:
        own = f"edge.v1.{FLEET}.{DEVICE}"
        # What MQTT needs inside of NATS is under $MQTT; a device that may use it can reach nothing of others with that.
        rights: dict[str, Any] = {
            "publish": [f"{own}.up.>"],
            # MQTT's `dn/#` is `dn`, too.
            "subscribe": [
                *(f"edge.v1.{FLEET}.{each}.dn{more}" for each in (DEVICE, "all") for more in ("", ".>")),
                f"{own}.up.conn",
                "$MQTT.sub.>",
            ],
        }
        users = [
            {"user": "anybody", "password": "none"},
            {"user": DEVICE, "password": SECRET, "permissions": rights},
        ]
        config = self.folder / "nats.conf"
        config.write_text(
            f'server_name: edge{self.port}\nlisten: "127.0.0.1:{self._more_ports["a"]}"\n'
            f'jetstream {{ store_dir: "{self.folder / "jetstream"}" }}\n'
            f'mqtt {{ listen: "127.0.0.1:{self.port}", no_auth_user: anybody }}\n'
            f"authorization {{ users: {json.dumps(users)} }}\n{self._cluster()}"
        )
        self._run(_there(_nats()), "-c", config)

    def _cluster(self) -> str:
        if not self.routes:
            return ""
        routes = json.dumps([f"nats-route://127.0.0.1:{port}" for port in self.routes])
        return f'cluster {{ name: edge, listen: "127.0.0.1:{self.routes[0]}", routes: {routes} }}\n'

    def _rabbitmq(self) -> None:
        proof = {"rabbitmq": rabbitmq_hash(SECRET)}
        credential = Credential(device=DEVICE, kind="password", proof=proof, request="", created_ms=0)
        told = rabbitmq(FLEET, "coordinator", [credential])
        told["users"] = [u for u in told["users"] if u["name"] == DEVICE]
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        told["users"].append(
            {
                "name": "anybody",
                "password_hash": rabbitmq_hash("none"),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
            }
        )
        told["vhosts"] = [{"name": "/"}]
        told["permissions"] = [p for p in told["permissions"] if p["user"] == DEVICE]
        told["permissions"].append({"user": "anybody", "vhost": "/", **everything})
        told["topic_permissions"] = [p for p in told["topic_permissions"] if p["user"] == DEVICE]
        definitions = self.folder / "definitions.json"
        definitions.write_text(json.dumps(told))
        (self.folder / "plugins").write_text("[rabbitmq_mqtt].\n")
        (self.folder / "environment").touch()
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp = none\nmqtt.listeners.tcp.1 = 127.0.0.1:{self.port}\nmqtt.allow_anonymous = true\n"
            f"mqtt.default_user = anybody\nmqtt.default_pass = none\nload_definitions = {definitions}\n"
            "log.console = true\nlog.file = false\ndisk_free_limit.absolute = 50MB\n"
        )
        names, node, far = (str(self._more_ports[each]) for each in "abc")
        # Erlang's register of names is a process of its own: ours, in the foreground, so that it ends with us.
        # It must answer before RabbitMQ looks for it, which starts one for ever else.
        self._run("epmd", "-port", names, "-address", "127.0.0.1")
        end_s = time.monotonic() + START_TIMEOUT_S
        while not _answers(int(names)) and time.monotonic() < end_s:
            time.sleep(0.02)
        self._run(
            _RABBITMQ,
            HOME=str(self.folder),
            ERL_EPMD_PORT=names,
            RABBITMQ_NODENAME=f"edge{self.port}@localhost",
            RABBITMQ_NODE_PORT=node,
            RABBITMQ_DIST_PORT=far,
            RABBITMQ_MNESIA_BASE=str(self.folder / "mnesia"),
            RABBITMQ_LOG_BASE=str(self.folder),
            RABBITMQ_CONFIG_FILE=str(self.folder / "rabbitmq.conf"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(self.folder / "plugins"),
            RABBITMQ_CONF_ENV_FILE=str(self.folder / "environment"),
            RABBITMQ_PID_FILE=str(self.folder / "pid"),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 1:1 +sbwt none",
        )


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def _nats() -> Path | None:
    found = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def _there(path: Path | None) -> Path:
    assert path is not None
    return path
