"""Receipts of forgetting.

Revision: 0009, after 0008.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "receipt",
        sa.Column("id", _NUMBER, primary_key=True, nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("created_ms", _NUMBER, nullable=False),
        sa.Column("completed_ms", _NUMBER, nullable=False),
        sa.Column("statement", sa.JSON(), nullable=False),
        sa.Column("signed", sa.String(), nullable=False),
    )
