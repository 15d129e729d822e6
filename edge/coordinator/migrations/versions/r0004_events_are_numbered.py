"""Events have the numbers that devices give them, by which a repeat is told.

Revision: 0004, after 0003.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add them; what is there already has none."""
    for name in ("boot", "seq"):
        op.add_column("event", sa.Column(name, _NUMBER, nullable=False, server_default="0"))
    op.add_column("event", sa.Column("state_id", sa.String(), nullable=False, server_default=""))
    numbered = sa.text("seq > 0")
    columns = ["device", "state_id", "boot", "seq"]
    op.create_index("event_number", "event", columns, unique=True, sqlite_where=numbered, postgresql_where=numbered)
