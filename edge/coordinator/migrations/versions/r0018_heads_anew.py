"""A release that goes back says whether what devices kept of the time before will do.

Revision: 0018, after 0017.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Add what is new; of what was there before it is false."""
    op.add_column("release", sa.Column("anew", sa.Boolean(), nullable=False, server_default=sa.false()))
