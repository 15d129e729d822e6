"""Tokens of the HTTP API, and what was asked for there."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError

from edge.coordinator.records import Answer, ApiToken, AuditEntry
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import AnswerRow, AuditRow, TokenRow, columns

# How long an answer is said again.
_KEPT_MS = 86_400_000


class AccessLog:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def has_tokens(self) -> bool:
        """Whether one was ever made, whatever became of it."""
        with self._database.transaction() as session:
            return session.scalar(select(TokenRow.id).limit(1)) is not None

    def tokens(self) -> Sequence[ApiToken]:
        """All tokens, oldest first."""
        with self._database.transaction() as session:
            return [row.to(ApiToken) for row in session.scalars(select(TokenRow).order_by(TokenRow.id))]

    def token_by_hash(self, digest: str) -> ApiToken | None:
        """The token whose secret has this SHA-256."""
        with self._database.transaction() as session:
            row = session.scalars(select(TokenRow).filter_by(digest=digest)).first()
            return None if row is None else row.to(ApiToken)

    def add_token(self, token: ApiToken) -> ApiToken:
        """Keep a token; with its number."""
        with self._database.transaction() as session:
            row = TokenRow(**{name: value for name, value in columns(token).items() if name != "id"})
            session.add(row)
            session.flush()
            return row.to(ApiToken)

    def revoke(self, number: int, now_ms: int) -> ApiToken | None:
        """Believe a token no more; None when there is none of that number."""
        with self._database.transaction() as session:
            row = session.get(TokenRow, number)
            if row is None:
                return None
            row.revoked_ms = row.revoked_ms or now_ms
            return row.to(ApiToken)

    # Writes that may be asked for again

    def begin_once(self, number: str, digest: str, now_ms: int) -> Answer | None:
        """Keep that something is asked for; what is known of it where it was asked for before."""
        try:
            with self._database.transaction() as session:
                session.execute(delete(AnswerRow).where(AnswerRow.at_ms < now_ms - _KEPT_MS))
                row = session.get(AnswerRow, number)
                if row is not None:
                    return row.to(Answer)
                session.add(AnswerRow.of(Answer(number=number, digest=digest, at_ms=now_ms)))
        except IntegrityError:  # at the same moment
            return Answer(number=number, digest=digest, at_ms=now_ms)
        return None

    def answered(self, number: str, status: int, body: str) -> None:
        """What was answered."""
        with self._database.transaction() as session:
            session.execute(update(AnswerRow).where(AnswerRow.number == number).values(status=status, body=body))

    def forget_once(self, number: str) -> None:
        """It was refused, so it may be asked for anew."""
        with self._database.transaction() as session:
            session.execute(delete(AnswerRow).where(AnswerRow.number == number))

    def audit(self, entry: AuditEntry) -> int:
        """Keep what is asked for; its number."""
        with self._database.transaction() as session:
            row = AuditRow(**{name: value for name, value in columns(entry).items() if name != "id"})
            session.add(row)
            session.flush()
            return row.id

    def ended(self, number: int, outcome: str) -> None:
        """What became of it."""
        with self._database.transaction() as session:
            session.execute(update(AuditRow).where(AuditRow.id == number).values(outcome=outcome))

    def entries(
        self, limit: int, *, before_id: int = 0, who: str = "", subject: str = "", since_ms: int = 0
    ) -> Sequence[AuditEntry]:
        """What was asked for, newest first.

        Args:
            limit: So many at most.
            before_id: Only what has a lower number; 0 for all.
            who: By one; "" for all.
            subject: About one device, rollout, release or token; "" for all.
            since_ms: From then on, milliseconds since 1970.
        """
        query = select(AuditRow).where(AuditRow.at_ms >= since_ms)
        if before_id:
            query = query.where(AuditRow.id < before_id)
        if who:
            query = query.where(AuditRow.who == who)
        if subject:
            query = query.where(AuditRow.subject == subject)
        with self._database.transaction() as session:
            return [row.to(AuditEntry) for row in session.scalars(query.order_by(AuditRow.id.desc()).limit(limit))]
