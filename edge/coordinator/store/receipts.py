"""Receipts of forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select, update

from edge.coordinator.records import Receipt
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import ReceiptRow, columns


class ReceiptLog:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, receipt: Receipt) -> int:
        """Keep one that is not signed yet; its number."""
        with self._database.transaction() as session:
            row = ReceiptRow(**{name: value for name, value in columns(receipt).items() if name != "id"})
            session.add(row)
            session.flush()
            return row.id

    def state(self, number: int, statement: Mapping[str, Any]) -> None:
        """What one that is not signed yet states."""
        with self._database.transaction() as session:
            session.execute(update(ReceiptRow).where(ReceiptRow.id == number).values(statement=dict(statement)))

    def complete(self, number: int, statement: Mapping[str, Any], signed: bytes, now_ms: int) -> None:
        """It is signed."""
        with self._database.transaction() as session:
            values = {"statement": dict(statement), "signed": signed.decode(), "completed_ms": now_ms}
            session.execute(update(ReceiptRow).where(ReceiptRow.id == number).values(**values))

    def get(self, number: int) -> Receipt | None:
        """One, or None when there is none of that number."""
        with self._database.transaction() as session:
            row = session.get(ReceiptRow, number)
            return None if row is None else row.to(Receipt)

    def all(self) -> Sequence[Receipt]:
        """All, newest first."""
        with self._database.transaction() as session:
            return [row.to(Receipt) for row in session.scalars(select(ReceiptRow).order_by(ReceiptRow.id.desc()))]

    def open(self) -> Sequence[Receipt]:
        """Those that are not signed yet."""
        with self._database.transaction() as session:
            return [row.to(Receipt) for row in session.scalars(select(ReceiptRow).filter_by(completed_ms=0))]
