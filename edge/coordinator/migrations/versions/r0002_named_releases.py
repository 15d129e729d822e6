"""Releases have a name, notes, their file's name and the release that they restore; bundles have their identity.

Revision: 0002, after 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add what is new; of what was there before it is empty."""
    for column in ("name", "notes", "file"):
        op.add_column("release", sa.Column(column, sa.String(), nullable=False, server_default=""))
    op.add_column("release", sa.Column("restores", _NUMBER, nullable=False, server_default="0"))
    op.add_column("bundle", sa.Column("identity", sa.String(), nullable=False, server_default=""))
