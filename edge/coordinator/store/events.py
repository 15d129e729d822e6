"""What happened, on devices and here."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from edge.coordinator.records import LoggedEvent
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import EventRow


class EventLog:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, event: LoggedEvent) -> None:
        """Keep an event; it gets an id of its own."""
        row = EventRow.of(event)
        row.id = None  # type: ignore[assignment]  # the database counts
        with self._database.transaction() as session:
            session.add(row)

    def newest(self, limit: int) -> Sequence[LoggedEvent]:
        """The newest events, newest first."""
        with self._database.transaction() as session:
            query = select(EventRow).order_by(EventRow.id.desc()).limit(limit)
            return [row.to(LoggedEvent) for row in session.scalars(query)]
