"""Alerts: what holds now, what held before, and who was told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import select, update

from edge.coordinator.records import Alert
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import AlertRow, columns

_MOST_AT_ONCE = 200


class AlertLog:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, alert: Alert) -> Alert:
        """Keep a new one; with its number."""
        with self._database.transaction() as session:
            row = AlertRow(**{name: value for name, value in columns(alert).items() if name != "id"})
            session.add(row)
            session.flush()
            return row.to(Alert)

    def save(self, *alerts: Alert) -> None:
        """Keep what became of some: a thousand devices that are away are one statement."""
        if alerts:
            with self._database.transaction() as session:
                session.execute(update(AlertRow), [columns(each) for each in alerts])

    def get(self, number: int) -> Alert | None:
        """One, or None when there is none of that number."""
        with self._database.transaction() as session:
            row = session.get(AlertRow, number)
            return None if row is None else row.to(Alert)

    def open(self) -> Sequence[Alert]:
        """All that hold, newest first."""
        query = select(AlertRow).where(AlertRow.state == "firing").order_by(AlertRow.id.desc())
        with self._database.transaction() as session:
            return [row.to(Alert) for row in session.scalars(query)]

    def newest(self, limit: int) -> Sequence[Alert]:
        """The newest, whether they hold or not."""
        with self._database.transaction() as session:
            rows = session.scalars(select(AlertRow).order_by(AlertRow.id.desc()).limit(limit))
            return [row.to(Alert) for row in rows]

    def last(self, rule: str, subject: str) -> Alert | None:
        """The newest of a rule and subject."""
        query = select(AlertRow).filter_by(rule=rule, subject=subject).order_by(AlertRow.id.desc()).limit(1)
        with self._database.transaction() as session:
            row = session.scalars(query).first()
            return None if row is None else row.to(Alert)

    def untold(self, whom: Literal["mqtt", "webhook"]) -> Sequence[Alert]:
        """Those that they were told otherwise of, or not at all, oldest first."""
        told = AlertRow.told_mqtt if whom == "mqtt" else AlertRow.told_webhook
        query = select(AlertRow).where(told != AlertRow.state).order_by(AlertRow.id).limit(_MOST_AT_ONCE)
        with self._database.transaction() as session:
            return [row.to(Alert) for row in session.scalars(query)]
