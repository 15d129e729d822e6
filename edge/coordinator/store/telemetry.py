"""Telemetry, and how long it and events are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from edge.coordinator.records import TelemetryEntry, names_of
from edge.coordinator.store.database import Database
from edge.coordinator.store.many import insert_many
from edge.coordinator.store.tables import AgeRow, BucketRow, EventRow, TelemetryRow, table
from edge.coordinator.summaries import HOUR_S, MINUTE_S, Bucket, Keep, Sum, Sums, measures, summed, together

_TELEMETRY = table(TelemetryRow)
_SAID = tuple(name for name in names_of(TelemetryEntry) if name != "id")


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
        with self._database.transaction() as session:
            insert_many(session.connection(), _TELEMETRY, _SAID, map(attrgetter(*_SAID), entries), repeats=True)

    def after(self, last_id: int, limit: int) -> Sequence[TelemetryEntry]:
        """What came behind an id, oldest first; with id -1 the newest ones."""
        query = select(TelemetryRow).where(TelemetryRow.id > last_id).order_by(TelemetryRow.id).limit(limit)
        if last_id < 0:
            query = select(TelemetryRow).order_by(TelemetryRow.id.desc()).limit(limit)
        with self._database.transaction() as session:
            found = [row.to(TelemetryEntry) for row in session.scalars(query)]
        return found[::-1] if last_id < 0 else found

    def aged(self, more_s: float, keep: Keep) -> None:
        """The coordinator has run for a while more: sum what is new, and delete what came before it ran so long.

        The newest message and the newest event stay, however old: numbers go on from them. SQLite would begin anew with
        1 in an empty table, and what is counted, followed and deleted by number would be what came since.

        Args:
            more_s: Since this was last called.
            keep: How long.
        """
        with self._database.transaction() as session:
            run_s = (session.scalar(select(func.max(AgeRow.run_s))) or 0.0) + more_s
            last_id = session.scalar(select(func.max(TelemetryRow.id))) or 0
            event_id = session.scalar(select(func.max(EventRow.id))) or 0
            session.execute(update(AgeRow).where(AgeRow.last_id > last_id).values(last_id=0))  # they began anew, once
            summed_id = session.scalar(select(func.max(AgeRow.last_id))) or 0
            self._sum(session, summed_id, last_id, run_s)
            session.merge(AgeRow(run_s=run_s, last_id=last_id, event_id=event_id))
            session.flush()
            _delete_old(session, TelemetryRow.id, AgeRow.last_id, run_s - keep.messages_s, last_id)
            _delete_old(session, EventRow.id, AgeRow.event_id, run_s - keep.events_s, event_id)
            session.execute(delete(AgeRow).where(AgeRow.run_s <= run_s - max(keep.messages_s, keep.events_s)))
            for step_s, keep_s in ((MINUTE_S, keep.minutes_s), (HOUR_S, keep.hours_s)):
                is_old = (BucketRow.step_s == step_s) & (BucketRow.run_s <= run_s - keep_s)
                session.execute(delete(BucketRow).where(is_old))

    @staticmethod
    def _sum(session: Session, after_id: int, last_id: int, run_s: float) -> None:
        query = select(TelemetryRow).where(TelemetryRow.id > after_id, TelemetryRow.id <= last_id)
        rows = session.scalars(query.order_by(TelemetryRow.id).execution_options(yield_per=1000))
        found = summed((row.to(TelemetryEntry) for row in rows), (MINUTE_S, HOUR_S))
        for bucket, sums in found.items():
            key = (bucket.step_s, bucket.device, bucket.model, bucket.start_ms)
            known = session.get(BucketRow, key)
            if known is None:
                known = BucketRow(**dict(zip(_KEY, key, strict=True)), run_s=run_s, sums={})
                session.add(known)
            known.sums = _as_lists(together(_as_sums(known.sums), sums))

    def metric(self, device: str, key: str, since_ms: int, step_s: int) -> list[tuple[Bucket, Sum]]:
        """What a device measured of one thing since a time, by model and time.

        Args:
            device: Its name.
            key: Of telemetry.
            since_ms: Milliseconds since 1970.
            step_s: `MINUTE_S` or `HOUR_S`; 0 for each message by itself.
        """
        if step_s:
            sums = self.sums(device, since_ms, step_s)
            return [(bucket, each[key]) for bucket, each in sorted(sums.items()) if key in each]
        messages = select(TelemetryRow).where(TelemetryRow.device == device, TelemetryRow.received_ms >= since_ms)
        with self._database.transaction() as session:
            rows = [row.to(TelemetryEntry) for row in session.scalars(messages.order_by(TelemetryRow.id))]
        values = [(Bucket(0, device, _model(row), row.received_ms), measures(row).get(key)) for row in rows]
        found = [(bucket, Sum(1, each, each, each)) for bucket, each in values if each is not None]
        return sorted(found, key=lambda each: each[0])  # those of a time without a line were kept later

    def sums(self, device: str, since_ms: int, step_s: int) -> dict[Bucket, Sums]:
        """All that a device measured since a time, by model and time; `step_s` is `MINUTE_S` or `HOUR_S`."""
        messages = select(TelemetryRow).where(TelemetryRow.device == device, TelemetryRow.received_ms >= since_ms)
        with self._database.transaction() as session:
            query = select(BucketRow).filter_by(step_s=step_s, device=device)
            query = query.where(BucketRow.start_ms > since_ms - 1000 * step_s)
            sums = {
                Bucket(step_s, device, row.model, row.start_ms): _as_sums(row.sums) for row in session.scalars(query)
            }
            summed_id = session.scalar(select(func.max(AgeRow.last_id))) or 0
            new = [row.to(TelemetryEntry) for row in session.scalars(messages.where(TelemetryRow.id > summed_id))]
        for bucket, more in summed(new, (step_s,)).items():
            sums[bucket] = together(sums.get(bucket, {}), more)
        return sums

    def newest_of(self, device: str, state_id: str, limit: int) -> Sequence[TelemetryEntry]:
        """The newest messages of a device with this state folder, in the order in which it made them."""
        # In the order of the unique index, which has them side by side: nothing else is read.
        query = select(TelemetryRow).filter_by(device=device, state_id=state_id)
        query = query.order_by(TelemetryRow.boot.desc(), TelemetryRow.seq.desc()).limit(limit)
        with self._database.transaction() as session:
            return [row.to(TelemetryEntry) for row in session.scalars(query)][::-1]

    def heard_ms(self, device: str, state_id: str) -> int:
        """When the newest message of a device with this state folder came; 0 for none."""
        query = select(TelemetryRow.received_ms).filter_by(device=device, state_id=state_id)
        query = query.order_by(TelemetryRow.boot.desc(), TelemetryRow.seq.desc()).limit(1)
        with self._database.transaction() as session:
            return session.scalar(query) or 0

    def forget(self, device: str) -> int:
        """Delete what a device measured, and sums of it; how many messages there were.

        The newest message of all stays, empty where it is one of those: see `aged`.
        """
        own = TelemetryRow.device == device
        with self._database.transaction() as session:
            n = session.scalar(select(func.count()).select_from(TelemetryRow).where(own)) or 0
            newest = session.scalar(select(func.max(TelemetryRow.id)))
            session.execute(delete(TelemetryRow).where(own, TelemetryRow.id != newest))
            session.execute(update(TelemetryRow).where(own).values(values={}))
            session.execute(delete(BucketRow).where(BucketRow.device == device))
        return n

    def keys(self, device: str) -> list[str]:
        """What a device measured lately."""
        query = select(TelemetryRow).where(TelemetryRow.device == device).order_by(TelemetryRow.id.desc()).limit(20)
        with self._database.transaction() as session:
            return sorted({key for row in session.scalars(query) for key in measures(row.to(TelemetryEntry))})


def _delete_old(session: Session, number: Any, number_then: Any, until_s: float, newest: int) -> None:
    """Delete the rows of a table that were there when coordinators had run so long, but for the newest."""
    old = session.scalar(select(func.max(number_then)).where(AgeRow.run_s <= until_s))
    if old:
        session.execute(delete(number.class_).where(number <= min(old, newest - 1)))


_KEY = ("step_s", "device", "model", "start_ms")


def _as_sums(values: Mapping[str, Sequence[float]]) -> Sums:
    return {key: Sum(int(n), total, least, most) for key, (n, total, least, most) in values.items()}


def _as_lists(sums: Sums) -> dict[str, list[float]]:
    return {key: [each.n, each.total, each.least, each.most] for key, each in sums.items()}


def _model(entry: TelemetryEntry) -> str:
    model = entry.values.get("model", "")
    return model if isinstance(model, str) else ""
