"""Tokens of the HTTP API, and what was asked for there.

Revision: 0006, after 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=False)


def _number(name: str, *, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, _NUMBER, primary_key=key, nullable=False)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "token", _number("id", key=True), _text("name"), _text("role"), _text("digest"), _number("created_ms"),
        _number("expires_ms"), _number("revoked_ms"),
    )  # fmt: skip
    op.create_index("token_digest", "token", ["digest"], unique=True)
    op.create_table(
        "audit", _number("id", key=True), _number("at_ms"), _text("who"), _text("role"), _text("action"),
        _text("subject"), _text("detail"), _text("reason"), _text("outcome"),
    )  # fmt: skip
    op.create_index("audit_subject", "audit", ["subject", "id"])
