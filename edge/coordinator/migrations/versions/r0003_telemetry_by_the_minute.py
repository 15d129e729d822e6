"""Telemetry summed by the minute and by the hour, which is kept for longer than messages are.

Revision: 0003, after 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the table; what came before is summed no more."""
    op.create_table(
        "telemetry_bucket",
        sa.Column("step_s", _NUMBER, primary_key=True, nullable=False),
        sa.Column("device", sa.String(), primary_key=True, nullable=False),
        sa.Column("model", sa.String(), primary_key=True, nullable=False),
        sa.Column("start_ms", _NUMBER, primary_key=True, nullable=False),
        sa.Column("run_s", sa.Double(), nullable=False),
        sa.Column("sums", sa.JSON(), nullable=False),
    )
    op.create_index("telemetry_bucket_age", "telemetry_bucket", ["step_s", "run_s"])
    op.create_index("event_device", "event", ["device", "id"])
