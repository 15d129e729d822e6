"""Rollouts, who is in them, what gates saw, who changed what; and settings of the fleet.

Revision: 0005, after 0004.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(), primary_key=key, nullable=False)


def _number(name: str, *, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, _NUMBER, primary_key=key, nullable=False)


def _real(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double(), nullable=False)


def _json(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(), nullable=False)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "rollout", _number("id", key=True), _number("release"), _text("kind"), _json("plan"), _text("seed"),
        _number("n_selected"), _text("state"), _text("before"), _number("wave"), _real("since_s"), _number("looks"),
        _text("reason"), _number("version"), _text("author"), _number("created_ms"),
    )  # fmt: skip
    op.create_table(
        "target", _number("rollout", key=True), _text("device", key=True), _text("model", key=True), _number("wave"),
        _number("place"), _text("state"), _number("attempt"), _real("since_s"), _real("left_s"), _real("counted_s"),
        _text("former"), _number("restore"), _text("detail"), _json("pairs"),
    )  # fmt: skip
    op.create_index("target_device", "target", ["device"])
    op.create_table(
        "look", _number("id", key=True), _number("rollout"), _number("wave"), _number("number"), _text("decision"),
        _text("code"), _text("detail"), _number("at_ms"),
    )  # fmt: skip
    op.create_table(
        "transition", _number("id", key=True), _number("rollout"), _text("subject"), _text("before"), _text("event"),
        _text("now"), _text("who"), _text("why"), _number("at_ms"),
    )  # fmt: skip
    op.create_index("transition_rollout", "transition", ["rollout"])
    op.create_table("fleet", _text("key", key=True), _text("value"))
