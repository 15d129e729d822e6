"""Whether devices belong to the fleet, tokens by which they join, and by what they log in to the broker.

Revision: 0008, after 0007.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=False)


def _number(name: str, *, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, _NUMBER, primary_key=key, nullable=False)


def upgrade() -> None:
    """Make the tables; devices that are known are approved."""
    op.add_column("device", sa.Column("admission", sa.String(), nullable=False, server_default="approved"))
    op.add_column("device", sa.Column("epoch", _NUMBER, nullable=False, server_default="0"))
    op.add_column("device", sa.Column("note", sa.String(), nullable=False, server_default=""))
    op.add_column("device", sa.Column("telemetry_s", sa.Double(), nullable=False, server_default="0"))
    op.create_table(
        "enrolment", _number("id", key=True), _text("digest"), _number("uses"),
        sa.Column("tags", sa.JSON(), nullable=False), sa.Column("approves", sa.Boolean(), nullable=False),
        _text("replaces"), _number("created_ms"), _number("expires_ms"), _number("revoked_ms"),
    )  # fmt: skip
    op.create_index("enrolment_digest", "enrolment", ["digest"], unique=True)
    op.create_table(
        "credential", _number("id", key=True), _text("device"), _text("kind"),
        sa.Column("proof", sa.JSON(), nullable=False), _text("request"), _number("created_ms"), _number("expires_ms"),
        _number("revoked_ms"), _text("why"),
    )  # fmt: skip
    op.create_index("credential_device", "credential", ["device"])
