"""Heads that devices judge before a rollout begins, and what each of them said."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select

from edge.coordinator.records import UNDECIDED, Evaluation, Judge
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import EvaluationRow, JudgeRow


class EvaluationLog:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, evaluation: Evaluation) -> None:
        """Keep one, or where it stands now."""
        with self._database.transaction() as session:
            session.merge(EvaluationRow.of(evaluation))

    def get(self, rollout: int) -> Evaluation | None:
        """That of a rollout; None where its plan asks for none."""
        with self._database.transaction() as session:
            row = session.get(EvaluationRow, rollout)
            return None if row is None else row.to(Evaluation)

    def under_way(self) -> Sequence[Evaluation]:
        """Those that nobody has decided, oldest first."""
        query = select(EvaluationRow).where(EvaluationRow.state.in_(UNDECIDED)).order_by(EvaluationRow.rollout)
        with self._database.transaction() as session:
            return [row.to(Evaluation) for row in session.scalars(query)]

    def save_judge(self, judge: Judge) -> None:
        """Keep whom one asks, or what it said."""
        with self._database.transaction() as session:
            session.merge(JudgeRow.of(judge))

    def judges(self, rollout: int) -> Sequence[Judge]:
        """Whom one asked, by device."""
        query = select(JudgeRow).filter_by(rollout=rollout).order_by(JudgeRow.device, JudgeRow.model)
        with self._database.transaction() as session:
            return [row.to(Judge) for row in session.scalars(query)]

    def to_say(self, device: str | None) -> Sequence[Judge]:
        """Of one device or of all, those who have not answered while it matters."""
        query = select(JudgeRow).join(EvaluationRow, EvaluationRow.rollout == JudgeRow.rollout)
        query = query.where(JudgeRow.state == "open", EvaluationRow.state.in_(UNDECIDED))
        if device is not None:
            query = query.where(JudgeRow.device == device)
        with self._database.transaction() as session:
            return [row.to(Judge) for row in session.scalars(query.order_by(JudgeRow.rollout, JudgeRow.device))]

    def forget(self, device: str) -> None:
        """Delete what a device said."""
        with self._database.transaction() as session:
            session.execute(delete(JudgeRow).where(JudgeRow.device == device))
