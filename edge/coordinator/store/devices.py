"""Devices, their models and their tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select, update

from edge.coordinator.records import Device, KnownDevice, Model, Record
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import DeviceRow, ModelRow, TagRow, columns, record, table

# The tables themselves and not objects of rows: this is done with each message.
_DEVICE, _MODEL = table(DeviceRow), table(ModelRow)


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
            row = session.execute(select(*_DEVICE.c).where(_DEVICE.c.id == device)).mappings().first()
            return None if row is None else record(Device, row)

    def all(self) -> Sequence[Device]:
        """All devices by id."""
        with self._database.transaction() as session:
            rows = session.execute(select(*_DEVICE.c).order_by(_DEVICE.c.id)).mappings()
            return [record(Device, row) for row in rows]

    def presence(self) -> dict[str, tuple[bool, int]]:
        """By device, whether it is online, and the wall clock when it was heard last."""
        query = select(DeviceRow.id, DeviceRow.online, DeviceRow.last_seen_ms)
        with self._database.transaction() as session:
            return {name: (online, last_seen_ms) for name, online, last_seen_ms in session.execute(query)}

    def models(self, device: str | None = None) -> Sequence[Model]:
        """All models of all devices, or of one, in the order that the device gave them."""
        query = select(*_MODEL.c).order_by(_MODEL.c.device, _MODEL.c.position)
        if device is not None:
            query = query.where(_MODEL.c.device == device)
        with self._database.transaction() as session:
            return [record(Model, row) for row in session.execute(query).mappings()]

    def known(self, device: str) -> KnownDevice | None:
        """A device with its models, or None when it was never seen."""
        with self._database.transaction():
            found = self.get(device)
            return None if found is None else KnownDevice(device=found, models=tuple(self.models(device)))

    def keep(self, known: KnownDevice, before: KnownDevice | None) -> None:
        """Keep a device as it is now; a model that it has no more is gone.

        Args:
            known: As it is now.
            before: As `known` gave it in this transaction, None where it did not: only what differs is written.
        """
        id_ = known.device.id
        models = {} if before is None else {model.model: model for model in before.models}
        with self._database.transaction() as session:
            if before is None:
                session.execute(insert(_DEVICE), columns(known.device))
            elif changed := _changed(before.device, known.device):
                session.execute(update(_DEVICE).where(_DEVICE.c.id == id_).values(**changed))
            of_device = _MODEL.c.device == id_
            for name in models.keys() - {model.model for model in known.models}:
                session.execute(delete(_MODEL).where(of_device, _MODEL.c.model == name))
            for model in known.models:
                if model.model not in models:
                    session.execute(insert(_MODEL), columns(model))
                elif changed := _changed(models[model.model], model):
                    session.execute(update(_MODEL).where(of_device, _MODEL.c.model == model.model).values(**changed))

    def hear(self, device: str, now_ms: int) -> None:
        """A device said something; it may be the first time."""
        with self._database.transaction() as session:
            heard = session.execute(update(_DEVICE).where(_DEVICE.c.id == device).values(last_seen_ms=now_ms))
            if not heard.rowcount:  # type: ignore[attr-defined]  # an UPDATE has one
                new = Device(id=device, first_seen_ms=now_ms, last_seen_ms=now_ms)
                session.execute(insert(_DEVICE), columns(new))

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


def _changed(before: Record, now: Record) -> dict[str, Any]:
    was = columns(before)
    return {name: value for name, value in columns(now).items() if value != was[name]}
