"""Checkpoints that devices sent, and what devices are to do once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import bindparam, delete, func, select

from edge.coordinator.records import KeptCheckpoint, Order
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import CheckpointRow, OrderRow, records, table

# Columns, and whole statements: this is asked for with each birth.
_ORDER = table(OrderRow)
_OPEN = select(*_ORDER.c).where(_ORDER.c.state == "open").order_by(_ORDER.c.number)
_ITS_OPEN = _OPEN.where(_ORDER.c.device == bindparam("name"))


class CheckpointLog:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(self, checkpoint: KeptCheckpoint) -> None:
        """Keep one more."""
        with self._database.transaction() as session:
            session.merge(CheckpointRow.of(checkpoint))

    def of(self, device: str, model: str = "") -> Sequence[KeptCheckpoint]:
        """Those of a device, or of one model of it, the newest first."""
        query = select(CheckpointRow).filter_by(device=device)
        if model:
            query = query.filter_by(model=model)
        query = query.order_by(CheckpointRow.received_ms.desc(), CheckpointRow.samples.desc())
        with self._database.transaction() as session:
            return [row.to(KeptCheckpoint) for row in session.scalars(query)]

    def of_lineages(self, lineages: Collection[str]) -> Sequence[KeptCheckpoint]:
        """Those of some histories, of whichever devices."""
        query = select(CheckpointRow).where(CheckpointRow.lineage.in_(lineages))
        with self._database.transaction() as session:
            return [row.to(KeptCheckpoint) for row in session.scalars(query)]

    def digests(self) -> set[str]:
        """Artifacts that somebody may still want, of checkpoints and of open orders."""
        with self._database.transaction() as session:
            kept = set(session.scalars(select(CheckpointRow.digest)))
            return kept | set(session.scalars(select(OrderRow.digest).filter_by(state="open")))

    def delete(self, checkpoint: KeptCheckpoint) -> None:
        """Keep it no more."""
        key = {"device": checkpoint.device, "model": checkpoint.model, "digest": checkpoint.digest}
        with self._database.transaction() as session:
            session.execute(delete(CheckpointRow).filter_by(**key))

    # Orders

    def order(self, order: Order) -> None:
        """Keep an order, or where it stands now."""
        with self._database.transaction() as session:
            session.merge(OrderRow.of(order))

    def last_number(self) -> int:
        """Of the newest order; 0 for none."""
        with self._database.transaction() as session:
            return session.scalar(select(func.max(OrderRow.number))) or 0

    def get_order(self, number: int) -> Order | None:
        """An order by its number."""
        with self._database.transaction() as session:
            row = session.get(OrderRow, number)
            return None if row is None else row.to(Order)

    def open_orders(self, device: str | None = None) -> Sequence[Order]:
        """Those that are not answered, of one device or of all, the oldest first."""
        with self._database.transaction() as session:
            session.flush()
            found = session.execute(_OPEN) if device is None else session.execute(_ITS_OPEN, {"name": device})
            return records(Order, found)

    def was_given(self, lineage: str, device: str) -> bool:
        """Whether somebody had a device go on under this lineage."""
        query = select(OrderRow.number).filter_by(lineage=lineage, device=device, kind="restore").limit(1)
        with self._database.transaction() as session:
            return session.scalars(query).first() is not None
