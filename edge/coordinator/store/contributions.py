"""What devices learned: contributions, what merges left out and must remember, and what is forgotten."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import delete, select, update

from edge.coordinator.records import Contribution, Forgotten, Refused
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import ContributionRow, ForgottenRow, MemoryRow, PartRow, RefusedRow
from edge.merging.averaging import MergeMemory

_OPTIMIZER, _ACCOUNT = "server-optimizer", "privacy-account"


class Contributions:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, device: str, lineage: str, backbone: str) -> Contribution | None:
        """The newest one of a lineage."""
        with self._database.transaction() as session:
            row = session.get(ContributionRow, (device, lineage, backbone))
            return None if row is None else row.to(Contribution)

    def all(self, backbone: str | None = None) -> Sequence[Contribution]:
        """The newest contributions, by device and lineage."""
        query = select(ContributionRow).order_by(ContributionRow.device, ContributionRow.lineage)
        if backbone is not None:
            query = query.where(ContributionRow.backbone == backbone)
        with self._database.transaction() as session:
            return [row.to(Contribution) for row in session.scalars(query)]

    def of_lineage(self, lineage: str) -> Sequence[Contribution]:
        """All of one lineage: of several devices where they have copies of one state folder."""
        with self._database.transaction() as session:
            rows = session.scalars(select(ContributionRow).filter_by(lineage=lineage))
            return [row.to(Contribution) for row in rows]

    def keep(self, contribution: Contribution) -> None:
        """Keep a contribution in place of the one before."""
        with self._database.transaction() as session:
            session.merge(ContributionRow.of(contribution))

    def has_artifact(self, digest: str) -> bool:
        """Whether one that is kept has these bytes."""
        with self._database.transaction() as session:
            return session.scalars(select(ContributionRow).filter_by(digest=digest).limit(1)).first() is not None

    def delete(self, contributions: Iterable[Contribution]) -> None:
        """Delete contributions."""
        with self._database.transaction() as session:
            for each in contributions:
                key = {"device": each.device, "lineage": each.lineage, "backbone": each.backbone}
                session.execute(delete(ContributionRow).filter_by(**key))
                parts = {"device": each.device, "holder": each.lineage, "backbone": each.backbone}
                session.execute(delete(PartRow).filter_by(**parts))

    def merged(self, parts: Iterable[Contribution], counter: int) -> None:
        """These versions are in a release."""
        with self._database.transaction() as session:
            for part in parts:
                known = session.get(ContributionRow, (part.device, part.lineage, part.backbone))
                if known is not None:
                    known.merged_version = max(known.merged_version, part.version)
                    known.merged_release = counter

    # What merges left out

    def refused(self, backbone: str | None = None) -> Sequence[Refused]:
        """What the last merges left out."""
        query = select(RefusedRow)
        if backbone is not None:
            query = query.where(RefusedRow.backbone == backbone)
        with self._database.transaction() as session:
            return [row.to(Refused) for row in session.scalars(query)]

    def refuse(self, backbone: str, left_out: Collection[Refused]) -> None:
        """Replace what is left out of a backbone's merges."""
        with self._database.transaction() as session:
            session.execute(delete(RefusedRow).where(RefusedRow.backbone == backbone))
            session.add_all([RefusedRow.of(each) for each in left_out])

    def take_back(self, lineage: str, backbone: str) -> None:
        """Nothing of this lineage is left out any more."""
        with self._database.transaction() as session:
            session.execute(delete(RefusedRow).filter_by(lineage=lineage, backbone=backbone))

    # What merges must remember

    def memory(self, backbone: str) -> MergeMemory:
        """What the last merge of a backbone left for the next one."""
        with self._database.transaction() as session:
            found = {row.name: row.data for row in session.scalars(select(MemoryRow)) if row.backbone in ("", backbone)}
        return MergeMemory(optimizer=found.get(_OPTIMIZER, b""), account=found.get(_ACCOUNT, b""))

    def remember(self, backbone: str, memory: MergeMemory) -> None:
        """Keep it. What noise has told of a device adds up over all backbones."""
        with self._database.transaction() as session:
            documents = ((_OPTIMIZER, backbone, memory.optimizer), (_ACCOUNT, "", memory.account))
            for name, key, data in documents:
                if data:
                    session.merge(MemoryRow(name=name, backbone=key, data=data))

    def begin_optimizer_anew(self, backbone: str) -> None:
        """Drop what the server optimizer remembers."""
        with self._database.transaction() as session:
            session.execute(delete(MemoryRow).filter_by(name=_OPTIMIZER, backbone=backbone))

    # What is forgotten

    def forget(self, forgotten: Forgotten) -> None:
        """Take nothing of a lineage any more."""
        with self._database.transaction() as session:
            session.merge(ForgottenRow.of(forgotten))

    def is_forgotten(self, lineage: str, state_id: str = "") -> bool:
        """Whether an operator had this lineage, or this state folder, forgotten."""
        with self._database.transaction() as session:
            query = select(ForgottenRow).where(ForgottenRow.lineage.in_({lineage, state_id} - {""})).limit(1)
            return session.scalars(query).first() is not None

    def forgotten(self, device: str | None = None) -> Sequence[Forgotten]:
        """All that was forgotten, or what was of one device."""
        query = select(ForgottenRow).order_by(ForgottenRow.lineage, ForgottenRow.backbone)
        if device is not None:
            query = query.where(ForgottenRow.device == device)
        with self._database.transaction() as session:
            return [row.to(Forgotten) for row in session.scalars(query)]

    def to_be_unlearned(self) -> set[str]:
        """Backbones whose newest sum of statistics still has something in that was forgotten."""
        with self._database.transaction() as session:
            return set(session.scalars(select(ForgottenRow.backbone).filter_by(pending=True)))

    def unlearned(self, backbone: str) -> None:
        """Nothing that was forgotten is in the newest sum any more."""
        with self._database.transaction() as session:
            session.execute(update(ForgottenRow).where(ForgottenRow.backbone == backbone).values(pending=False))
