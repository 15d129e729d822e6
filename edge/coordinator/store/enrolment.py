"""Tokens by which devices join, and by what devices log in to the broker."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update

from edge.coordinator.records import Credential, Enrolment
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import CredentialRow, EnrolmentRow, columns


class EnrolmentLog:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> Sequence[Enrolment]:
        """All tokens, oldest first."""
        with self._database.transaction() as session:
            return [row.to(Enrolment) for row in session.scalars(select(EnrolmentRow).order_by(EnrolmentRow.id))]

    def by_hash(self, digest: str) -> Enrolment | None:
        """The token whose secret has this SHA-256."""
        with self._database.transaction() as session:
            row = session.scalars(select(EnrolmentRow).filter_by(digest=digest)).first()
            return None if row is None else row.to(Enrolment)

    def add(self, enrolment: Enrolment) -> Enrolment:
        """Keep a token; with its number."""
        with self._database.transaction() as session:
            row = EnrolmentRow(**{name: value for name, value in columns(enrolment).items() if name != "id"})
            session.add(row)
            session.flush()
            return row.to(Enrolment)

    def use(self, number: int) -> None:
        """It was used once more."""
        with self._database.transaction() as session:
            query = update(EnrolmentRow).where(EnrolmentRow.id == number)
            session.execute(query.values(uses=EnrolmentRow.uses - 1))

    def revoke(self, number: int, now_ms: int) -> Enrolment | None:
        """Let nobody join by it any more; None when there is none of that number."""
        with self._database.transaction() as session:
            row = session.get(EnrolmentRow, number)
            if row is None:
                return None
            row.revoked_ms = row.revoked_ms or now_ms
            return row.to(Enrolment)

    # By what devices log in

    def credentials(self, device: str | None = None) -> Sequence[Credential]:
        """All, oldest first, of all devices or of one; also those that hold no more."""
        query = select(CredentialRow).order_by(CredentialRow.id)
        if device is not None:
            query = query.where(CredentialRow.device == device)
        with self._database.transaction() as session:
            return [row.to(Credential) for row in session.scalars(query)]

    def add_credential(self, credential: Credential) -> None:
        """Keep by what a device logs in."""
        with self._database.transaction() as session:
            session.add(CredentialRow(**{name: v for name, v in columns(credential).items() if name != "id"}))

    def revoke_credentials(self, device: str, now_ms: int, why: str) -> None:
        """Nothing of a device holds any more."""
        is_live = (CredentialRow.device == device) & (CredentialRow.revoked_ms == 0)
        with self._database.transaction() as session:
            session.execute(update(CredentialRow).where(is_live).values(revoked_ms=now_ms, why=why))
