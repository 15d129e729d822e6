"""Whose turn it is, where coordinators share a database.

Revision: 0011, after 0010.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "lease",
        sa.Column("name", sa.String(), primary_key=True, nullable=False),
        sa.Column("fence", _NUMBER, nullable=False),
        sa.Column("until_ms", _NUMBER, nullable=False),
    )
