"""Telemetry, and how long it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from edge.coordinator.records import TelemetryEntry, as_dict
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import AgeRow, TelemetryRow


class TelemetryLog:
    """See the module.

    Args:
        database: That has it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, entries: Sequence[TelemetryEntry]) -> None:
        """Keep messages; repeats are dropped."""
        if not entries:
            return
        insert: Any = postgresql.insert if self._database.dialect == "postgresql" else sqlite.insert
        rows = [as_dict(entry) for entry in entries]
        for row in rows:
            del row["id"]
        with self._database.transaction() as session:
            session.execute(insert(TelemetryRow).on_conflict_do_nothing(), rows)

    def after(self, last_id: int, limit: int) -> Sequence[TelemetryEntry]:
        """What came behind an id, oldest first; with id -1 the newest ones."""
        query = select(TelemetryRow).where(TelemetryRow.id > last_id).order_by(TelemetryRow.id).limit(limit)
        if last_id < 0:
            query = select(TelemetryRow).order_by(TelemetryRow.id.desc()).limit(limit)
        with self._database.transaction() as session:
            found = [row.to(TelemetryEntry) for row in session.scalars(query)]
        return found[::-1] if last_id < 0 else found

    def aged(self, more_s: float, keep_s: float) -> None:
        """The coordinator has run for a while more: delete what came before it ran the last `keep_s`."""
        with self._database.transaction() as session:
            run_s = (session.scalar(select(func.max(AgeRow.run_s))) or 0.0) + more_s
            session.merge(AgeRow(run_s=run_s, last_id=session.scalar(select(func.max(TelemetryRow.id))) or 0))
            session.flush()
            is_old = AgeRow.run_s <= run_s - keep_s
            old_id = session.scalar(select(func.max(AgeRow.last_id)).where(is_old))
            if old_id is not None:
                session.execute(delete(TelemetryRow).where(TelemetryRow.id <= old_id))
                session.execute(delete(AgeRow).where(is_old))
