"""What devices promise of samples that they tell of under noise.

Revision: 0020, after 0019.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Add the column; nothing of before has noise on it."""
    op.add_column("contribution", sa.Column("noise", sa.String(), nullable=False, server_default=""))
