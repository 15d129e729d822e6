"""Devices, their models and their tags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import BindParameter, Table, bindparam, delete, func, insert, select, update
from sqlalchemy.orm import Session

from edge.coordinator.records import APPROVED, Device, KnownDevice, Model, Record, names_of
from edge.coordinator.store.database import Database
from edge.coordinator.store.many import insert_many, update_many
from edge.coordinator.store.tables import DeviceRow, ModelRow, TagRow, as_column, columns, records, table

# The tables themselves and not objects of rows: this is done with each message.
_DEVICE, _MODEL = table(DeviceRow), table(ModelRow)
_DEVICE_BRIEF = [each for each in _DEVICE.c if each.name not in ("hardware", "seal_key", "note")]
_DEVICE_PRESENCE = [
    _DEVICE.c[each] for each in ("id", "born", "online", "last_seen_ms", "telemetry_s", "admission", "evaluates")
]
_MODEL_BRIEF = [each for each in _MODEL.c if each.name != "experts"]
# Names in one query: some databases take a thousand at most.
_AT_ONCE = 400
# Whole statements: what is asked with each message is not put together each time, which takes longer than to run it.
_NAME: BindParameter[Any] = bindparam("name")
_NAMES: BindParameter[Any] = bindparam("names", expanding=True)
_ONE = select(*_DEVICE.c).where(_DEVICE.c.id == _NAME)
_THESE = select(*_DEVICE.c).where(_DEVICE.c.id.in_(_NAMES))
_THEIR_MODELS = select(*_MODEL.c).where(_MODEL.c.device.in_(_NAMES)).order_by(_MODEL.c.device, _MODEL.c.position)
_MEASURED = (
    select(_DEVICE.c.id, _DEVICE.c.born, _DEVICE.c.admission, _MODEL.c.model, _MODEL.c.samples, _MODEL.c.experts)
    .select_from(_DEVICE.outerjoin(_MODEL, _DEVICE.c.id == _MODEL.c.device))
    .where(_DEVICE.c.id.in_(_NAMES))
)
_TAGS = select(*table(TagRow).c).order_by(table(TagRow).c.device, table(TagRow).c.key)
_ITS_TAGS = _TAGS.where(table(TagRow).c.device == _NAME)


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
            found = records(Device, session.execute(_ONE, {"name": device}))
            return found[0] if found else None

    def all(self) -> Sequence[Device]:
        """All devices by id."""
        with self._database.transaction() as session:
            return records(Device, session.execute(select(*_DEVICE.c).order_by(_DEVICE.c.id)))

    def at_a_glance(self) -> tuple[Sequence[Device], Sequence[Model]]:
        """All devices by id and their models by device, without what only a look at one of them shows.

        That is long, and nobody waits for it a thousand times: `Device.hardware`, `seal_key`, `note`, `Model.experts`.
        """
        with self._database.transaction() as session:
            devices = records(Device, session.execute(select(*_DEVICE_BRIEF).order_by(_DEVICE.c.id)))
            of_models = select(*_MODEL_BRIEF).order_by(_MODEL.c.device, _MODEL.c.position)
            return devices, records(Model, session.execute(of_models))

    def presence(self) -> Sequence[Device]:
        """All devices, of each no more than what tells whether it is there."""
        with self._database.transaction() as session:
            return records(Device, session.execute(select(*_DEVICE_PRESENCE)))

    def models(self, device: str | None = None) -> Sequence[Model]:
        """All models of all devices, or of one, in the order that the device gave them."""
        query = select(*_MODEL.c).order_by(_MODEL.c.device, _MODEL.c.position)
        if device is not None:
            query = query.where(_MODEL.c.device == device)
        with self._database.transaction() as session:
            return records(Model, session.execute(query))

    def known(self, device: str) -> KnownDevice | None:
        """A device with its models, or None when it was never seen."""
        return self.known_of([device]).get(device)

    def known_of(self, names: Iterable[str]) -> dict[str, KnownDevice]:
        """Devices with their models; without those that were never seen."""
        devices: dict[str, Device] = {}
        models: dict[str, list[Model]] = {}
        with self._database.transaction() as session:
            left = iter(names)
            while some := list(islice(left, _AT_ONCE)):
                result = session.execute(_THESE, {"names": some})
                devices |= {each.id: each for each in records(Device, result)}
                for model in records(Model, session.execute(_THEIR_MODELS, {"names": some})):
                    models.setdefault(model.device, []).append(model)
        return {name: KnownDevice(device=found, models=tuple(models.get(name, ()))) for name, found in devices.items()}

    def measured_of(self, names: Iterable[str]) -> dict[str, KnownDevice]:
        """As `known_of`, of each no more than what telemetry changes, or depends on."""
        devices: dict[str, Device] = {}
        models: dict[str, tuple[Model, ...]] = {}
        with self._database.transaction() as session:
            left = iter(names)
            while some := list(islice(left, _AT_ONCE)):
                found = session.execute(_MEASURED, {"names": some})
                for device, born, admission, model, samples, experts in found:
                    devices[device] = Device(id=device, born=born, admission=admission)
                    if model is not None:
                        more = Model(device=device, model=model, samples=samples, experts=experts)
                        models[device] = (*models.get(device, ()), more)
        return {name: KnownDevice(device=found, models=models.get(name, ())) for name, found in devices.items()}

    def hear_all(self, heard_ms: Mapping[str, int]) -> None:
        """Devices, of which each is known, said something: when, by name."""
        if heard_ms:
            with self._database.transaction() as session:
                update_many(session.connection(), _DEVICE, ("id",), ("last_seen_ms",), heard_ms.items())

    def keep(self, known: KnownDevice, before: KnownDevice | None) -> None:
        """Keep a device as it is now; see `keep_all`."""
        self.keep_all([(known, before)])

    def keep_all(self, changes: Iterable[tuple[KnownDevice, KnownDevice | None]]) -> None:
        """Keep devices as they are now; a model that one has no more is gone.

        Args:
            changes: Of each device how it is now, and as `known` gave it in this transaction, None where it did not:
                only what differs is written.
        """
        devices, models = _Writes(_DEVICE, ("id",)), _Writes(_MODEL, ("device", "model"))
        with self._database.transaction() as session:
            for known, before in changes:
                devices.put(known.device, None if before is None else before.device)
                had = {} if before is None else {model.model: model for model in before.models}
                for name in had.keys() - {model.model for model in known.models}:
                    session.execute(delete(_MODEL).where(_MODEL.c.device == known.device.id, _MODEL.c.model == name))
                for model in known.models:
                    models.put(model, had.get(model.model))
            devices.write(session)
            models.write(session)

    def hear(self, device: str, now_ms: int, admission: str = APPROVED) -> str:
        """A device said something; it may be the first time, and then it has this admission. The one that it has."""
        with self._database.transaction() as session:
            heard = update(_DEVICE).where(_DEVICE.c.id == device).values(last_seen_ms=now_ms)
            found = session.scalar(heard.returning(_DEVICE.c.admission))
            if found is not None:
                return str(found)
            new = Device(id=device, first_seen_ms=now_ms, last_seen_ms=now_ms, admission=admission)
            session.execute(insert(_DEVICE), columns(new))
            return admission

    def change(self, device: str, **values: Any) -> None:
        """Change what people decide about a device: `admission`, `note`, `epoch`."""
        with self._database.transaction() as session:
            session.execute(update(_DEVICE).where(_DEVICE.c.id == device).values(**values))

    def not_approved(self) -> frozenset[str]:
        """Devices that are offered nothing, and whose contributions are not merged."""
        with self._database.transaction() as session:
            return frozenset(session.scalars(select(DeviceRow.id).where(DeviceRow.admission != APPROVED)))

    def highest_release(self, below: int) -> int:
        """The highest counter under a limit that any device has dealt with; 0 for none."""
        query = select(func.max(ModelRow.release)).where(ModelRow.release < below)
        with self._database.transaction() as session:
            return session.scalar(query) or 0

    def highest_named(self, below: int) -> int:
        """The same of all that any device has named, whatever became of it: it may have been forged."""
        with self._database.transaction() as session:
            named = [
                session.scalar(select(func.max(each)).where(each < below))
                for each in (ModelRow.release, ModelRow.state_release)
            ]
            return max(each or 0 for each in named)

    def tag(self, device: str, tags: Mapping[str, str]) -> None:
        """Give a device tags; one with the value "" is taken away."""
        with self._database.transaction() as session:
            for key, value in tags.items():
                session.execute(delete(TagRow).filter_by(device=device, key=key))
                if value:
                    session.add(TagRow(device=device, key=key, value=value))

    def tags(self, device: str | None = None) -> dict[str, dict[str, str]]:
        """By device, of all or of one."""
        found: dict[str, dict[str, str]] = {}
        with self._database.transaction() as session:
            session.flush()
            rows = session.execute(_TAGS) if device is None else session.execute(_ITS_TAGS, {"name": device})
            for name, key, value in rows:
                found.setdefault(name, {})[key] = value
        return found


class _Writes:
    """Rows of one table that are to be written; those of which the same columns change, by one statement."""

    def __init__(self, of: Table, key: tuple[str, ...]) -> None:
        self._table, self._key = of, key
        self._new: list[dict[str, Any]] = []
        self._changed: dict[tuple[str, ...], list[list[Any]]] = {}

    def put(self, now: Record, before: Record | None) -> None:
        """A row as it is now; as it was, None for a new one."""
        if now is before:
            return
        if before is None:
            self._new.append(columns(now))
            return
        names = tuple(name for name in names_of(type(now)) if getattr(now, name) != getattr(before, name))
        if names:
            row = [as_column(getattr(now, name)) for name in (*self._key, *names)]
            self._changed.setdefault(names, []).append(row)

    def write(self, session: Session) -> None:
        """Write them all."""
        if self._new:
            rows = [[*row.values()] for row in self._new]
            insert_many(session.connection(), self._table, tuple(self._new[0]), rows, repeats=False)
        for names, rows in self._changed.items():
            update_many(session.connection(), self._table, self._key, names, rows)
