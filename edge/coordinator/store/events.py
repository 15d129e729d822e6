"""What happened, on devices and here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from edge.coordinator.records import LoggedEvent
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import EventRow, columns, table


class EventLog:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, event: LoggedEvent) -> None:
        """Keep an event; it gets an id of its own. A repeat, by the numbers of its device, is dropped."""
        insert: Any = postgresql.insert if self._database.dialect == "postgresql" else sqlite.insert
        row = columns(event)
        del row["id"]
        with self._database.transaction() as session:
            session.execute(insert(table(EventRow)).on_conflict_do_nothing(), row)

    def after(self, last_id: int, limit: int) -> Sequence[LoggedEvent]:
        """What came behind an id, oldest first."""
        query = select(EventRow).where(EventRow.id > last_id).order_by(EventRow.id).limit(limit)
        with self._database.transaction() as session:
            return [row.to(LoggedEvent) for row in session.scalars(query)]

    def newest(
        self,
        limit: int,
        *,
        device: str | None = None,
        name: str = "",
        since_ms: int = 0,
        after_id: int = 0,
        before_id: int = 0,
    ) -> Sequence[LoggedEvent]:
        """The newest events, newest first.

        Args:
            limit: So many at most.
            device: Of one device, "" for the coordinator itself; None for all.
            name: Of one kind; "" for all.
            since_ms: From then on, milliseconds since 1970.
            after_id: Behind this one.
            before_id: With a lower number than this one; 0 for all.
        """
        query = select(EventRow).where(EventRow.at_ms >= since_ms, EventRow.id > after_id)
        if before_id:
            query = query.where(EventRow.id < before_id)
        if device is not None:
            query = query.where(EventRow.device == device)
        if name:
            query = query.where(EventRow.name == name)
        with self._database.transaction() as session:
            return [row.to(LoggedEvent) for row in session.scalars(query.order_by(EventRow.id.desc()).limit(limit))]
