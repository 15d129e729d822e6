"""When a person went on with a rollout: failures up to then do not pause it again.

Revision: 0021, after 0020.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Add what is new; of rollouts of before nobody has."""
    op.add_column("rollout", sa.Column("seen_s", sa.Double(), nullable=False, server_default="-1"))
