"""What was pushed, and the bundles that are known."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select

from edge.coordinator.records import KnownBundle, Release
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import BundleRow, ReleaseRow


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
            row = session.get(ReleaseRow, counter)
            return None if row is None else row.to(Release)

    def all(self) -> Sequence[Release]:
        """All releases, newest first."""
        with self._database.transaction() as session:
            return [row.to(Release) for row in session.scalars(select(ReleaseRow).order_by(ReleaseRow.counter.desc()))]

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
