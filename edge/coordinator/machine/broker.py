"""A broker for development and demonstrations, as a child process on 127.0.0.1.

mosquitto if it is installed, else iotcore from PyPI. Promises that the child dies with this process (Linux), that the
port answers when `DevelopmentBroker.start` returns, and that nothing outside this machine can reach it. It is not for a
fleet: anybody on this machine may publish anything, and it forgets everything when it stops. Speaks no MQTT itself.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from edge.contract.errors import ChannelError, ConfigError, TakenError

Kind = Literal["mosquitto", "iotcore"]

START_TIMEOUT_S = 15.0
NOTE = "development broker: forgets everything when it stops, has no passwords and no access rules; not for a fleet"

# `user` counts for root only: mosquitto would change to another user, and a process that does so slips the leash below.
_MOSQUITTO = """\
user root
listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
max_queued_messages 10000
persistence false
"""

# rumqttd keeps max_segment_size x max_segment_count for each topic filter; small segments lose messages silently.
_IOTCORE = """\
id = 0
[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = 16777216
max_segment_count = 8
"""
_IOTCORE_LISTENER = """\
[v{version}.1]
name = "v{version}"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v{version}.1.connections]
connection_timeout_ms = 60000
max_payload_size = 1048576
max_inflight_count = 100
dynamic_filters = true
"""

# The child asks the kernel to be killed with its parent, then becomes the broker (PR_SET_PDEATHSIG = 1 outlives exec).
_LEASH = "import ctypes, sys; getattr(ctypes.CDLL(None), 'prctl', lambda *a: 0)(1, 9); "
_EXEC = _LEASH + "import os; os.execv(sys.argv[1], sys.argv[1:])"
_RUN_IOTCORE = (
    _LEASH + "from iotcore.iotcore import IotCoreBroker; IotCoreBroker(config_path=sys.argv[1]).run_forever()"
)


class DevelopmentBroker:
    """A running broker; a context manager that stops it. Make one with `start`.

    Attributes:
        url: Where it listens; with iotcore the MQTT 3.1.1 listener.
        name: What it is, with its version.
    """

    def __init__(self, url: str, name: str, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self.name = name
        self._process = process

    @classmethod
    def start(cls, folder: Path, port: int = 0, *, kind: Kind | None = None) -> Self:
        """Start a broker and wait until it answers.

        The child is tied to the thread that calls this: Linux kills it when that *thread* ends.

        Args:
            folder: For its configuration and log; made when missing.
            port: TCP port, 0 for a free one.
            kind: Insist on one; None takes mosquitto before iotcore.

        Raises:
            ConfigError: There is no such broker here.
            ChannelError: It does not start; the message has the end of its log.
        """
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        port = port or _free_port()
        if _answers(port):
            raise TakenError(
                f"broker: expected port {port} to be free, got an answer there: something runs on it, perhaps this "
                f"broker already"
            )
        mosquitto = find_mosquitto() if kind in (None, "mosquitto") else None
        version = iotcore_version() if kind in (None, "iotcore") else None
        if mosquitto is not None:
            name = mosquitto_version(mosquitto)
            config = folder / "mosquitto.conf"
            config.write_text(_MOSQUITTO.format(port=port))
            command = [sys.executable, "-I", "-S", "-c", _EXEC, str(mosquitto), "-c", str(config)]
        elif version is not None:
            name = f"iotcore {version}"
            config = folder / "iotcore.toml"
            listeners = {4: port, 5: _free_port()}
            config.write_text(
                _IOTCORE + "".join(_IOTCORE_LISTENER.format(version=v, port=p) for v, p in listeners.items())
            )
            command = [sys.executable, "-P", "-c", _RUN_IOTCORE, str(config)]
        else:
            raise ConfigError(
                f"broker: expected {kind or 'mosquitto or iotcore'}, got none; install one: "
                "`apt install mosquitto` or `pip install edgeloop[demo]`, or give the address of a running broker"
            )
        log = folder / "broker.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder)
        broker = cls(f"mqtt://127.0.0.1:{port}", name, process)
        try:
            broker._wait(port, log)
        except BaseException:
            broker.kill()
            raise
        return broker

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def stop(self) -> None:
        """Stop it in good order; twice is harmless."""
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Stop it as a crash would (SIGKILL)."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait(self, port: int, log: Path) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                tail = log.read_text(errors="replace").strip()[-500:]
                raise ChannelError(f"{self.name}: expected it to run, got exit code {self._process.returncode}: {tail}")
            if _answers(port):
                return
            time.sleep(0.02)
        raise ChannelError(f"{self.name}: expected an answer within {START_TIMEOUT_S:g} s, got none; see {log}")


def find_mosquitto() -> Path | None:
    """Where mosquitto is; Debian puts it into /usr/sbin, which is not on every PATH."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def mosquitto_version(path: Path) -> str:
    """Name and version, such as ``mosquitto 2.0.11``."""
    output = subprocess.run([path, "-h"], capture_output=True, text=True, check=False, timeout=10).stdout
    version = re.search(r"mosquitto version (\S+)", output)
    return f"mosquitto {version[1] if version else '(unknown version)'}"


def iotcore_version() -> str | None:
    """Version of the installed iotcore, None without one."""
    try:
        return importlib.metadata.version("iotcore")
    except importlib.metadata.PackageNotFoundError:
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return True
    except OSError:
        return False
