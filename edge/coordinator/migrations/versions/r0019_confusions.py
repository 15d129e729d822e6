"""What models answered to labels, as their devices said last.

Revision: 0019, after 0018.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the table; devices say it again."""
    op.create_table(
        "confusion",
        sa.Column("device", sa.String(), primary_key=True, nullable=False),
        sa.Column("model", sa.String(), primary_key=True, nullable=False),
        sa.Column("said_ms", _NUMBER, nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
    )
