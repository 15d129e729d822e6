"""What was pushed, and the bundles that are known."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, func, select

from edge.coordinator.records import KnownBundle, Release
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import BundleRow, ReleaseRow, records, table

# Columns, and whole statements: this is asked for with most messages.
_RELEASE = table(ReleaseRow)
_ALL = select(*_RELEASE.c).order_by(_RELEASE.c.counter.desc())
_ONE = select(*_RELEASE.c).where(_RELEASE.c.counter == bindparam("counter"))


class ReleaseLog:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, release: Release) -> None:
        """Keep a release; its counter must be a new one."""
        with self._database.transaction() as session:
            session.add(ReleaseRow.of(release))

    def get(self, counter: int) -> Release | None:
        """A release, or None when there is none of that number."""
        with self._database.transaction() as session:
            session.flush()
            found = records(Release, session.execute(_ONE, {"counter": counter}))
            return found[0] if found else None

    def all(self) -> Sequence[Release]:
        """All releases, newest first."""
        with self._database.transaction() as session:
            session.flush()
            return records(Release, session.execute(_ALL))

    def has_artifact(self, digest: str) -> bool:
        """Whether a release or a known bundle has these bytes."""
        with self._database.transaction() as session:
            kinds = (select(ReleaseRow.digest), select(BundleRow.digest))
            return any(session.scalar(each.filter_by(digest=digest).limit(1)) is not None for each in kinds)

    def highest(self) -> int:
        """The highest counter; 0 for none."""
        with self._database.transaction() as session:
            return session.scalar(select(func.max(ReleaseRow.counter))) or 0

    def add_bundle(self, bundle: KnownBundle) -> None:
        """Know a bundle."""
        with self._database.transaction() as session:
            session.merge(BundleRow.of(bundle))

    def bundles(self) -> Sequence[KnownBundle]:
        """All known bundles."""
        with self._database.transaction() as session:
            return [row.to(KnownBundle) for row in session.scalars(select(BundleRow))]

    def bundle_named(self, identity: str) -> KnownBundle | None:
        """The known bundle that devices name so."""
        with self._database.transaction() as session:
            row = session.scalars(select(BundleRow).filter_by(identity=identity).limit(1)).first()
            return None if row is None else row.to(KnownBundle)

    def bundle_of(self, backbone: str) -> KnownBundle | None:
        """A known bundle with this backbone."""
        query = select(BundleRow).where(BundleRow.backbone == backbone).order_by(BundleRow.digest).limit(1)
        with self._database.transaction() as session:
            row = session.scalars(query).first()
            return None if row is None else row.to(KnownBundle)
