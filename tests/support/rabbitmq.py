"""A RabbitMQ of the tests' own, with its MQTT plugin: real, on free ports, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.ports import free_ports

_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # what is on PATH changes to another user


class RabbitServer:
    """One node, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        if not _SERVER.exists() or shutil.which("epmd") is None:
            pytest.skip("RabbitMQ is not installed (apt-get install rabbitmq-server)")
        self.folder = folder
        self.amqp_port, self.mqtt_port, self._dist, self._epmd = free_ports(4)
        folder.mkdir(parents=True)
        (folder / "plugins").write_text("[rabbitmq_mqtt].\n")
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.amqp_port}\nmqtt.listeners.tcp.1 = 127.0.0.1:{self.mqtt_port}\n"
            "mqtt.allow_anonymous = true\nmqtt.default_user = guest\nmqtt.default_pass = guest\n"
            "mqtt.exchange = amq.topic\nloopback_users = none\nlog.console = true\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def amqp_url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.amqp_port}/%2F"

    @property
    def mqtt_url(self) -> str:
        return f"mqtt://127.0.0.1:{self.mqtt_port}"

    def start(self) -> None:
        node = f"edge{self._dist}@localhost"
        environment = os.environ | {
            "HOME": str(self.folder), "RABBITMQ_NODENAME": node, "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"), "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"), "RABBITMQ_DIST_PORT": str(self._dist),
            "ERL_EPMD_PORT": str(self._epmd), "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }  # fmt: skip
        with (self.folder / "out").open("ab") as out:
            self.process = subprocess.Popen(
                [_SERVER], env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
            )
        end = time.monotonic() + 150
        while True:
            try:
                for port in (self.mqtt_port, self.amqp_port):
                    socket.create_connection(("127.0.0.1", port), 1.0).close()
            except OSError:
                assert self.process.poll() is None, (self.folder / "out").read_text()[-2000:]
                assert time.monotonic() < end, (self.folder / "out").read_text()[-2000:]
                time.sleep(0.2)
            else:
                return

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)

    def __enter__(self) -> RabbitServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        # The daemon that a node starts outlives it, and does not end while it believes that the node lives.
        line = ["epmd", "-port", str(self._epmd), "-kill"]
        for _ in range(50):
            if b"Killed" in subprocess.run(line, capture_output=True, check=False, timeout=30).stdout:
                break
            time.sleep(0.1)
