"""What a coordinator must have for itself on its machine."""

from __future__ import annotations

import os
import socket
import sys

from edge.contract.digest import sha256
from edge.contract.errors import ConfigError
from edge.contract.files import lock_folder
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.store.database import make_folder


class Place:
    """What a coordinator must have for itself: the port of its HTTP API, its data folder, its fleet at its broker.

    Taken before the broker is touched: there a second coordinator pushes the first one off.

    Args:
        config: Its options.
        host: Address of the HTTP API.
        port: Its port.
        broker: Address of the broker, without a login.

    Attributes:
        listening: The port, open.

    Raises:
        ConfigError: Another process on this machine has one of them, or it cannot be used.
    """

    def __init__(self, config: CoordinatorConfig, host: str, port: int, broker: str) -> None:
        self._data_dir = config.data_dir
        self._folder: int | None = None
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self.listening = socket.create_server((host, port), family=family)
        except OSError as exc:
            raise ConfigError(
                f"the HTTP API could not listen on {host}:{port}: {exc.strerror or exc}; choose another with --http"
            ) from exc
        try:
            if config.data_dir.exists():  # else nobody has it, and nothing is made before the broker has answered
                self._folder = lock_folder(config.data_dir)
            self._fleet = _alone(f"edgeloop coordinator of {config.fleet} at {broker}", "--fleet")
            try:  # the broker knows it by its name, whatever its fleet is
                self._name = _alone(f"edgeloop coordinator called {config.name} at {broker}", "--name")
            except BaseException:
                self._fleet.close()
                raise
        except BaseException:
            self.listening.close()
            if self._folder is not None:
                os.close(self._folder)
            raise

    def settle(self) -> None:
        """Make the data folder, and have it.

        Raises:
            ConfigError: It cannot be written, or another process has it by now.
        """
        if self._folder is None:
            make_folder(self._data_dir)
            self._folder = lock_folder(self._data_dir)

    def close(self) -> None:
        """Give all of it free."""
        self.listening.close()
        self._fleet.close()
        self._name.close()
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None


def _alone(name: str, option: str) -> socket.socket:
    """Have a name that one process of this machine has, until it is closed or the process ends.

    Where there are no such names (they are Linux's) everybody is alone. `option` of `serve` chooses another.

    Raises:
        ConfigError: Another process has it.
    """
    holder = socket.socket(socket.AF_UNIX)
    if sys.platform == "linux":
        try:
            holder.bind(f"\0{sha256(name.encode())}")
        except OSError as exc:
            holder.close()
            raise ConfigError(f"there is another {name} on this machine; stop it first, or choose {option}") from exc
    return holder
