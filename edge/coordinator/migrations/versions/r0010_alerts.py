"""Alerts.

Revision: 0010, after 0009.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=False)


def _number(name: str, *, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, _NUMBER, primary_key=key, nullable=False)


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "alert", _number("id", key=True), _text("rule"), _text("kind"), _text("subject"), _text("device"),
        _text("detail"), _text("state"), _number("since_ms"), _number("seen_ms"), _number("ended_ms"),
        _text("acknowledged_by"), _number("acknowledged_ms"), _text("silenced_by"), _number("silenced_ms"),
        _text("told_mqtt"), _text("told_webhook"),
    )  # fmt: skip
    op.create_index("alert_state", "alert", ["state"])
    op.create_index("alert_subject", "alert", ["rule", "subject", "id"])
