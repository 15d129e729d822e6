"""What models answered to labels, as their devices said last."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select

from edge.coordinator.records import Confusion
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import ConfusionRow


class Confusions:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(self, confusion: Confusion) -> None:
        """Keep what a model said, unless it said something later."""
        with self._database.transaction() as session:
            before = session.get(ConfusionRow, (confusion.device, confusion.model))
            if before is None or before.said_ms <= confusion.said_ms:
                session.merge(ConfusionRow.of(confusion))

    def all(self, device: str | None = None) -> Sequence[Confusion]:
        """Of all devices or of one, by device and model."""
        query = select(ConfusionRow).order_by(ConfusionRow.device, ConfusionRow.model)
        if device is not None:
            query = query.where(ConfusionRow.device == device)
        with self._database.transaction() as session:
            return [row.to(Confusion) for row in session.scalars(query)]

    def forget(self, device: str, model: str | None = None) -> None:
        """Delete what a device said, of all its models or of one."""
        query = delete(ConfusionRow).where(ConfusionRow.device == device)
        if model is not None:
            query = query.where(ConfusionRow.model == model)
        with self._database.transaction() as session:
            session.execute(query)
