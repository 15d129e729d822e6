"""What the coordinator knows, kept. The broker is never asked what was true yesterday.

Every write is durable when the method returns; inside of `Store.transaction`, when that ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edge.coordinator.store.contributions import Contributions
from edge.coordinator.store.database import Database
from edge.coordinator.store.devices import Devices
from edge.coordinator.store.events import EventLog
from edge.coordinator.store.releases import ReleaseLog
from edge.coordinator.store.telemetry import TelemetryLog


class Store:
    """The database of one coordinator, by subject.

    Args:
        path: SQLite file, created.

    Attributes:
        devices: Devices, their models and tags.
        telemetry: What devices measured.
        contributions: What devices learned, and what merges must remember.
        releases: What was pushed, and the bundles behind it.
        events: What happened.

    Raises:
        ConfigError: The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path)
        self.devices = Devices(self._database)
        self.telemetry = TelemetryLog(self._database)
        self.contributions = Contributions(self._database)
        self.releases = ReleaseLog(self._database)
        self.events = EventLog(self._database)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done inside is one change: whole, or, when something is raised, none.

        What must be told whatever becomes of the change is told outside.
        """
        with self._database.transaction():
            yield

    def close(self) -> None:
        """Give the database free."""
        self._database.close()
