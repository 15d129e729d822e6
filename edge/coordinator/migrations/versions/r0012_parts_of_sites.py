"""Devices that are in the contributions of sites.

Revision: 0012, after 0011.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _key(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(), primary_key=True, nullable=False)


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "part", _key("device"), _key("holder"), _key("backbone"), _key("lineage"),
        sa.Column("version", _NUMBER, nullable=False),
    )  # fmt: skip
    op.create_index("part_lineage", "part", ["backbone", "lineage"])
