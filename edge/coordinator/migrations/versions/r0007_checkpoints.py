"""Checkpoints of devices, what devices are to do once, and the key that checkpoints for a device are sealed to.

Revision: 0007, after 0006.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(), primary_key=key, nullable=False)


def _number(name: str, *, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, _NUMBER, primary_key=key, nullable=False)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "checkpoint", _text("device", key=True), _text("model", key=True), _text("digest", key=True),
        _text("backbone"), _text("lineage"), _text("learners"), _number("samples"), _number("release"),
        _number("made_ms"), _number("received_ms"), sa.Column("has_samples", sa.Boolean(), nullable=False),
        _text("sealed_to"), _number("size_bytes"),
    )  # fmt: skip
    op.create_table(
        "device_order", _number("number", key=True), _text("device"), _text("model"), _text("kind"), _text("state"),
        _text("detail"), _text("digest"), _text("lineage"), _text("source"), _number("at_ms"),
    )  # fmt: skip
    op.create_index("device_order_device", "device_order", ["device"])
    with op.batch_alter_table("device") as device:
        device.add_column(sa.Column("seal_key", sa.String(), nullable=False, server_default=""))
