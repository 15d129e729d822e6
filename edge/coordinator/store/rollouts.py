"""Rollouts, their targets, what gates saw and who changed what; and settings of the fleet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import bindparam, func, select, update

from edge.channel.messages import Pairs
from edge.coordinator.records import LoggedLook, Transition
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.states import ENDED, FAILURES, RUNS, RolloutState, TargetState
from edge.coordinator.rollout.step import Key, Rollout, Step, Target
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import FleetRow, LookRow, RolloutRow, TargetRow, TransitionRow


@dataclass(frozen=True, slots=True)
class Made:
    """Of a rollout, who made it and when."""

    author: str
    created_ms: int


class RolloutLog:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, rollout: Rollout, targets: Iterable[Target], made: Made) -> None:
        """Keep a new rollout."""
        with self._database.transaction() as session:
            session.add(_rollout_row(rollout, made))
            session.add_all(_target_row(rollout.id, target) for target in targets)

    def next_id(self) -> int:
        """The number of the next rollout."""
        with self._database.transaction() as session:
            return (session.scalar(select(func.max(RolloutRow.id))) or 0) + 1

    def get(self, rollout: int) -> Rollout | None:
        """A rollout, or None when there is none of that number."""
        with self._database.transaction() as session:
            row = session.get(RolloutRow, rollout)
            return None if row is None else _rollout(row)

    def made(self, rollout: int) -> Made | None:
        """Who made it and when."""
        with self._database.transaction() as session:
            row = session.get(RolloutRow, rollout)
            return None if row is None else Made(row.author, row.created_ms)

    def all(self) -> Sequence[Rollout]:
        """All rollouts, newest first."""
        with self._database.transaction() as session:
            return [_rollout(row) for row in session.scalars(select(RolloutRow).order_by(RolloutRow.id.desc()))]

    def open(self) -> Sequence[Rollout]:
        """Those that have not ended, oldest first."""
        query = select(RolloutRow).where(RolloutRow.state.not_in([str(each) for each in ENDED])).order_by(RolloutRow.id)
        with self._database.transaction() as session:
            return [_rollout(row) for row in session.scalars(query)]

    def targets(self, rollout: int) -> Sequence[Target]:
        """Of a rollout, in the order in which they come."""
        # Columns, and no objects: a rollout of thousands is read every few seconds.
        query = select(*_COLUMNS).where(TargetRow.rollout == rollout).order_by(TargetRow.place, TargetRow.device)
        with self._database.transaction() as session:
            session.flush()
            return [_target(row) for row in session.execute(query)]

    def failures(self, rollout: int) -> Sequence[tuple[str, str]]:
        """Devices of a rollout that failed, each with its model, in the order in which they come."""
        query = select(TargetRow.device, TargetRow.model).where(TargetRow.rollout == rollout)
        query = query.where(TargetRow.state.in_([str(each) for each in FAILURES])).order_by(TargetRow.place)
        with self._database.transaction() as session:
            session.flush()
            return [(device, model) for device, model in session.execute(query)]

    def running(self, rollouts: Iterable[int]) -> Sequence[tuple[int, Key]]:
        """Device and model of those that have activated the release of these rollouts, the oldest rollout first."""
        query = select(TargetRow.rollout, TargetRow.device, TargetRow.model).order_by(TargetRow.rollout)
        query = query.where(TargetRow.rollout.in_(rollouts), TargetRow.state.in_([str(each) for each in RUNS]))
        with self._database.transaction() as session:
            session.flush()
            return [(number, (device, model)) for number, device, model in session.execute(query)]

    def of_devices(self, device: str | None = None) -> Sequence[tuple[Rollout, Target]]:
        """Targets of all devices or of one, with their rollouts, oldest first; not those that only wait."""
        with self._database.transaction() as session:
            session.flush()
            found = session.execute(_OFFERED) if device is None else session.execute(_ITS_OFFERED, {"name": device})
            if not (rows := found.all()):
                return []
            ids = {row.rollout for row in rows}
            known = {row.id: _rollout(row) for row in session.scalars(select(RolloutRow).where(RolloutRow.id.in_(ids)))}
            return [(known[row.rollout], _target(row)) for row in rows]

    def save(self, rollout: Rollout, before: Rollout, targets: Iterable[Target]) -> bool:
        """Keep what a step changed; False, and nothing is kept, where somebody else stepped in between."""
        with self._database.transaction() as session:
            row = _rollout_row(rollout, Made("", 0))
            values = {
                column.key: getattr(row, column.key)
                for column in RolloutRow.__table__.columns
                if column.key not in ("id", "author", "created_ms")
            }
            same = (RolloutRow.id == rollout.id) & (RolloutRow.version == before.version)
            found = session.execute(update(RolloutRow).where(same).values(**values))
            if found.rowcount != 1:  # type: ignore[attr-defined]  # that of an update has it
                return False
            for target in targets:
                session.merge(_target_row(rollout.id, target))
            return True

    def log(self, transitions: Iterable[Transition], looks: Iterable[LoggedLook] = ()) -> None:
        """Keep what happened."""
        with self._database.transaction() as session:
            for number, each in enumerate(transitions, (session.scalar(select(func.max(TransitionRow.id))) or 0) + 1):
                row = TransitionRow.of(each)
                row.id = number
                session.add(row)
            for number, look in enumerate(looks, (session.scalar(select(func.max(LookRow.id))) or 0) + 1):
                seen = LookRow.of(look)
                seen.id = number
                session.add(seen)

    def log_step(self, step: Step, at_ms: int) -> None:
        """Keep what happened in a step, and what gates saw."""
        number = step.rollout.id
        moved = [
            Transition(
                rollout=number, subject=m.subject, before=m.before, event=m.event, now=m.now, who=m.who, why=m.why,
                at_ms=at_ms,
            )
            for m in step.moved
        ]  # fmt: skip
        looks = [
            LoggedLook(
                rollout=number, wave=each.wave, number=each.number, decision=str(each.verdict.decision),
                code=each.verdict.code, detail=each.verdict.detail, at_ms=at_ms,
            )
            for each in step.looks
        ]  # fmt: skip
        self.log(moved, looks)

    def transitions(self, rollout: int, limit: int | None = 200) -> Sequence[Transition]:
        """The newest of a rollout, or with 0 of the fleet, newest last; with the limit None all of them."""
        query = select(TransitionRow).where(TransitionRow.rollout == rollout)
        with self._database.transaction() as session:
            rows = session.scalars(query.order_by(TransitionRow.id.desc()).limit(limit)).all()
            return [row.to(Transition) for row in rows[::-1]]

    def completed(self) -> set[int]:
        """Rollouts that went through all waves at some time."""
        query = select(TransitionRow.rollout).where(
            TransitionRow.subject == "", TransitionRow.now == str(RolloutState.COMPLETED), TransitionRow.rollout > 0
        )
        with self._database.transaction() as session:
            session.flush()
            return set(session.scalars(query))

    def looks(self, rollout: int) -> Sequence[LoggedLook]:
        """What gates saw of a rollout, oldest first."""
        with self._database.transaction() as session:
            query = select(LookRow).where(LookRow.rollout == rollout).order_by(LookRow.id)
            return [row.to(LoggedLook) for row in session.scalars(query)]

    # Of the whole fleet

    def setting(self, key: str) -> str:
        """A setting; "" where it was never made."""
        with self._database.transaction() as session:
            session.flush()
            return session.scalar(_SETTING, {"name": key}) or ""

    def set(self, key: str, value: str) -> None:
        """Make a setting."""
        with self._database.transaction() as session:
            session.merge(FleetRow(key=key, value=value))


def _rollout_row(rollout: Rollout, made: Made) -> RolloutRow:
    return RolloutRow(
        id=rollout.id,
        release=rollout.plan.release,
        kind=rollout.kind,
        plan=plans.to_document(rollout.plan),
        seed=rollout.seed,
        n_selected=rollout.n_selected,
        state=str(rollout.state),
        before=str(rollout.before),
        wave=rollout.wave,
        since_s=rollout.since_s,
        looks=rollout.looks,
        seen_s=rollout.seen_s,
        reason=rollout.reason,
        version=rollout.version,
        author=made.author,
        created_ms=made.created_ms,
    )


def _rollout(row: RolloutRow) -> Rollout:
    return Rollout(
        id=row.id,
        plan=plans.of_document(row.plan),
        kind=row.kind,
        seed=row.seed,
        n_selected=row.n_selected,
        state=RolloutState(row.state),
        before=RolloutState(row.before),
        wave=row.wave,
        since_s=row.since_s,
        looks=row.looks,
        seen_s=row.seen_s,
        reason=row.reason,
        version=row.version,
    )


def _target_row(rollout: int, target: Target) -> TargetRow:
    return TargetRow(
        rollout=rollout,
        device=target.device,
        model=target.model,
        wave=target.wave,
        place=target.place,
        state=str(target.state),
        attempt=target.attempt,
        since_s=target.since_s,
        left_s=target.left_s,
        counted_s=target.counted_s,
        former=target.former,
        restore=target.restore,
        detail=target.detail,
        pairs=asdict(target.pairs),
    )


_COLUMNS = tuple(TargetRow.__table__.columns)
# Whole statements: what is asked with each message is not put together each time, which takes longer than to run it.
_OFFERED = (
    select(*_COLUMNS)
    .where(TargetRow.state.not_in([str(TargetState.WAITING), str(TargetState.ABSENT)]))
    .order_by(TargetRow.rollout)
)
_ITS_OFFERED = _OFFERED.where(TargetRow.device == bindparam("name"))
_SETTING = select(FleetRow.value).where(FleetRow.key == bindparam("name"))


def _target(row: Any) -> Target:
    """Of a row of `_COLUMNS`."""
    return Target(
        device=row.device,
        model=row.model,
        wave=row.wave,
        place=row.place,
        state=TargetState(row.state),
        attempt=row.attempt,
        since_s=row.since_s,
        left_s=row.left_s,
        counted_s=row.counted_s,
        former=row.former,
        restore=row.restore,
        detail=row.detail,
        pairs=Pairs(**row.pairs),
    )
