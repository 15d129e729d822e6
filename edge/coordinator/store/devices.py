"""Devices, their models and their tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import delete, func, select

from edge.coordinator.records import Device, KnownDevice, Model
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import DeviceRow, ModelRow, TagRow


class Devices:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, device: str) -> Device | None:
        """A device, or None when it was never seen."""
        with self._database.transaction() as session:
            row = session.get(DeviceRow, device)
            return None if row is None else row.to(Device)

    def all(self) -> Sequence[Device]:
        """All devices by id."""
        with self._database.transaction() as session:
            return [row.to(Device) for row in session.scalars(select(DeviceRow).order_by(DeviceRow.id))]

    def models(self, device: str | None = None) -> Sequence[Model]:
        """All models of all devices, or of one, in the order that the device gave them."""
        query = select(ModelRow).order_by(ModelRow.device, ModelRow.position)
        if device is not None:
            query = query.where(ModelRow.device == device)
        with self._database.transaction() as session:
            return [row.to(Model) for row in session.scalars(query)]

    def known(self, device: str) -> KnownDevice | None:
        """A device with its models, or None when it was never seen."""
        with self._database.transaction():
            found = self.get(device)
            return None if found is None else KnownDevice(device=found, models=tuple(self.models(device)))

    def keep(self, known: KnownDevice) -> None:
        """Keep a device as it is now; a model that it has no more is gone."""
        with self._database.transaction() as session:
            session.merge(DeviceRow.of(known.device))
            query = select(ModelRow).where(ModelRow.device == known.device.id)
            rows = {row.model: row for row in session.scalars(query)}
            for model in known.models:
                session.merge(ModelRow.of(model))
                rows.pop(model.model, None)
            for gone in rows.values():
                session.delete(gone)

    def highest_release(self, below: int) -> int:
        """The highest counter under a limit that any device has dealt with; 0 for none."""
        query = select(func.max(ModelRow.release)).where(ModelRow.release < below)
        with self._database.transaction() as session:
            return session.scalar(query) or 0

    def tag(self, device: str, tags: Mapping[str, str]) -> None:
        """Give a device tags; one with the value "" is taken away."""
        with self._database.transaction() as session:
            for key, value in tags.items():
                session.execute(delete(TagRow).filter_by(device=device, key=key))
                if value:
                    session.add(TagRow(device=device, key=key, value=value))

    def tags(self, device: str | None = None) -> dict[str, dict[str, str]]:
        """By device, of all or of one."""
        query = select(TagRow).order_by(TagRow.device, TagRow.key)
        if device is not None:
            query = query.where(TagRow.device == device)
        found: dict[str, dict[str, str]] = {}
        with self._database.transaction() as session:
            for row in session.scalars(query):
                found.setdefault(row.device, {})[row.key] = row.value
        return found
