"""Heads that devices judge before a rollout begins, and which devices agree to that.

Revision: 0017, after 0016.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables; no device of before has agreed."""
    op.add_column("device", sa.Column("evaluates", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "evaluation",
        sa.Column("rollout", _NUMBER, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("due_s", sa.Double(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
    )
    op.create_table(
        "judge",
        sa.Column("rollout", _NUMBER, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("device", sa.String(), primary_key=True, nullable=False),
        sa.Column("model", sa.String(), primary_key=True, nullable=False),
        sa.Column("is_inside", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("labelled", _NUMBER, nullable=False),
        sa.Column("both", sa.Double(), nullable=False),
        sa.Column("only_new", sa.Double(), nullable=False),
        sa.Column("only_old", sa.Double(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("asked_ms", _NUMBER, nullable=False),
    )
    op.create_index("judge_device", "judge", ["device"])
