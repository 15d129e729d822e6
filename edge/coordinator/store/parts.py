"""Whose learning is in the contributions of sites: the lineages of their devices, with the version that is in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from sqlalchemy import func, select
from sqlalchemy.orm import aliased

from edge.coordinator.records import Contribution
from edge.coordinator.store.database import Database
from edge.coordinator.store.tables import ContributionRow, ForgottenRow, PartRow

# Names in one query: some databases take a thousand at most.
_AT_ONCE = 400


class Parts:
    """See the module.

    Args:
        database: That has them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(self, contribution: Contribution, parts: Mapping[str, int]) -> None:
        """These are in a contribution of a site, and no others."""
        key = {"device": contribution.device, "holder": contribution.lineage, "backbone": contribution.backbone}
        with self._database.transaction() as session:
            known = {row.lineage: row for row in session.scalars(select(PartRow).filter_by(**key))}
            for lineage in known.keys() - parts.keys():
                session.delete(known[lineage])
            for lineage, version in parts.items():
                if lineage in known:
                    known[lineage].version = version
                else:
                    session.add(PartRow(**key, lineage=lineage, version=version))

    def elsewhere(self, backbone: str, lineages: Iterable[str], site: str) -> dict[str, tuple[str, int]]:
        """Of these lineages those that another site has in its contribution: by lineage, whose it is and which."""
        query = select(PartRow.lineage, PartRow.device, PartRow.version)
        query = query.where(PartRow.backbone == backbone, PartRow.device != site)
        found: dict[str, tuple[str, int]] = {}
        with self._database.transaction() as session:
            for some in _parts(lineages):
                for lineage, device, version in session.execute(query.where(PartRow.lineage.in_(some))):
                    found[lineage] = device, version
        return found

    def forgotten(self, lineages: Iterable[str]) -> set[str]:
        """Of these lineages those of which nothing may be taken any more."""
        query, found = select(ForgottenRow.lineage), set[str]()
        with self._database.transaction() as session:
            for some in _parts(lineages):
                found.update(session.scalars(query.where(ForgottenRow.lineage.in_(some))))
        return found

    def also_direct(self, backbone: str) -> list[tuple[str, str, int, int]]:
        """What a site has in its contribution and a device contributes, too.

        Returns:
            The lineage, the site, and which version the site has, and which the device.
        """
        same = (ContributionRow.lineage == PartRow.lineage) & (ContributionRow.backbone == PartRow.backbone)
        newest = func.max(ContributionRow.version)
        query = select(PartRow.lineage, PartRow.device, PartRow.version, newest)
        query = query.join(ContributionRow, same).where(PartRow.backbone == backbone)
        query = query.group_by(PartRow.lineage, PartRow.device, PartRow.version)
        with self._database.transaction() as session:
            return [(lineage, site, has, direct) for lineage, site, has, direct in session.execute(query)]

    def of_one_site(self, backbone: str) -> list[tuple[str, str, str]]:
        """Sites of which two contributions have a device in common: the site, and the lineages of both."""
        one, other = aliased(PartRow), aliased(PartRow)
        same = (one.device == other.device) & (one.backbone == other.backbone) & (one.lineage == other.lineage)
        query = select(one.device, one.holder, other.holder).join(other, same & (one.holder < other.holder))
        with self._database.transaction() as session:
            rows = session.execute(query.where(one.backbone == backbone).distinct())
            return [(device, first, second) for device, first, second in rows]


def _parts(names: Iterable[str]) -> Iterator[list[str]]:
    left = iter(names)
    while some := list(islice(left, _AT_ONCE)):
        yield some
