"""What a service manager is told: ready, alive, stopping, as datagrams of systemd's protocol (``sd_notify``).

Promises that a manager that is not there, or does not listen, disturbs nothing. Environment and time are
handed in.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Mapping


class Supervisor:
    """One service manager.

    Args:
        address: Of its socket, ``$NOTIFY_SOCKET``: a path, or a name that begins with ``@``. "" for nobody.
        watchdog_s: It ends a process that it has not heard of for so long; None for never.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self._address = b"\0" + address[1:].encode() if address.startswith("@") else address.encode()
        self._every_s = math.inf if watchdog_s is None else watchdog_s / 3
        self._due_s = -math.inf

    @classmethod
    def of(cls, environment: Mapping[str, str], pid: int) -> Supervisor:
        """Who started this process, as it says in the environment; nobody where it does not."""
        watchdog_s = None
        if environment.get("WATCHDOG_PID", str(pid)) == str(pid):
            usec = environment.get("WATCHDOG_USEC", "")
            watchdog_s = int(usec) / 1e6 if usec.isdecimal() and int(usec) else None
        return cls(environment.get("NOTIFY_SOCKET", ""), watchdog_s)

    def ready(self) -> None:
        """The agent answers requests from now on."""
        self._tell("READY=1")

    def alive(self, now_s: float) -> None:
        """The loop has gone round once more; told three times in each watchdog period, at most.

        Args:
            now_s: Monotonic seconds.
        """
        if math.isfinite(self._every_s) and now_s >= self._due_s:
            self._due_s = now_s + self._every_s
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """It saves and leaves."""
        self._tell("STOPPING=1")

    def _tell(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # a manager that does not read must not stop the agent
            sender.sendto(text.encode(), self._address)
