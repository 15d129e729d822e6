"""What was answered to writes that may be asked for again.

Revision: 0013, after 0012.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "answer",
        sa.Column("number", sa.String(), primary_key=True, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("at_ms", _NUMBER, nullable=False),
        sa.Column("status", _NUMBER, nullable=False),
        sa.Column("body", sa.String(), nullable=False),
    )
