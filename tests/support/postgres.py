"""A PostgreSQL server of the tests' own: real, on a free port, thrown away at the end."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from edge.coordinator.store.store import Store
from tests.support.ports import free_port

_NAMES = itertools.count()


def find_binaries() -> Path | None:
    """Where initdb and postgres are; Debian puts them beside the other versions, on nobody's PATH."""
    on_path = shutil.which("initdb")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return Path(on_path).parent if on_path else (found[-1].parent if found else None)


class PostgresServer:
    """A running server. Give it to nobody else: everybody on this machine is let in."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.process = process
        self._is_made = False

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://edge@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.url(database).replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]

    def new(self) -> str:
        """The address of a new, empty database."""
        name = f"test_{next(_NAMES)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def new_store(self, url: str) -> Store:
        """A store in an empty database, which becomes a copy of one with today's tables: to make them takes longer."""
        if not self._is_made:
            self.execute("CREATE DATABASE made")
            Store(self.url("made")).close()
            self._is_made = True
        name = url.rpartition("/")[2]
        self.execute(f"DROP DATABASE {name}")
        self.execute(f"CREATE DATABASE {name} TEMPLATE made")
        return Store(url)


@contextlib.contextmanager
def serve() -> Iterator[PostgresServer]:
    """A server while the block runs; skips where PostgreSQL is not installed."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    # It refuses to run as root, and nobody else can look into the folders of root's tests.
    user = "nobody" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="edge-postgres-", dir="/tmp" if user else None))
    port = free_port()
    options: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    if user:
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)
        options |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    data = folder / "data"
    initdb = [binaries / "initdb", "-D", data, "-U", "edge", "--auth=trust", "--locale=C", "-E", "UTF8", "--no-sync"]
    subprocess.run(initdb, check=True, timeout=120, stderr=subprocess.DEVNULL, **options)
    settings = {
        "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off",
        "shared_buffers": "16MB", "max_connections": "40",
    }  # fmt: skip
    command = [binaries / "postgres", "-D", data]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, **options)
    server = PostgresServer(port, process)
    try:
        _wait(server, folder / "log")
        yield server
    finally:
        server.process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
        server.process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(server: PostgresServer, log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            server.execute("SELECT 1")
        except psycopg.OperationalError:
            assert server.process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        else:
            return
