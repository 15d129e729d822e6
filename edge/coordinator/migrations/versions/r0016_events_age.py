"""Events are kept for a time, as telemetry is.

Revision: 0016, after 0015.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add what is new: how old events of before are is not known, so they are kept as if they had come now."""
    op.add_column("age", sa.Column("event_id", _NUMBER, nullable=False, server_default="0"))
