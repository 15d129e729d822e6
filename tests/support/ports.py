"""Ports for the servers of tests.

Not those that the kernel hands out: a connection of another test would take it before anybody listens there.
"""

from __future__ import annotations

import os
import socket
from itertools import cycle

_FIRST, _OF_EACH = 20_000, 1_200  # of each test process; the kernel's begin at 32768
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_ports = cycle(range(_FIRST + _WORKER * _OF_EACH, _FIRST + (_WORKER + 1) * _OF_EACH))


def free_port() -> int:
    """One that nobody listens on; not given again for a long time."""
    for port in _ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError


def free_ports(count: int) -> list[int]:
    """So many different ones."""
    return [free_port() for _ in range(count)]
