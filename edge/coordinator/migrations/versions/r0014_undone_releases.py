"""A release that goes back says which one it takes back.

Revision: 0014, after 0013.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add what is new; of what was there before it is empty."""
    op.add_column("release", sa.Column("undoes", _NUMBER, nullable=False, server_default="0"))
