"""Labels that a person is asked for, and the samples that they are for.

Revision: 0015, after 0014.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "question",
        sa.Column("number", _NUMBER, primary_key=True, nullable=False),
        sa.Column("backbone", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("sample", sa.String(), nullable=False),
        sa.Column("answered_ms", _NUMBER, nullable=False),
        sa.Column("said", sa.String(), nullable=False),
        sa.Column("confidence", sa.Double(), nullable=False),
        sa.Column("devices", _NUMBER, nullable=False),
        sa.Column("samples", _NUMBER, nullable=False),
        sa.Column("asked_ms", _NUMBER, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.Column("closed_ms", _NUMBER, nullable=False),
    )
    op.create_table(
        "question_picture",
        sa.Column("question", _NUMBER, primary_key=True, nullable=False, autoincrement=False),
        sa.Column("png", sa.String(), nullable=False),
    )
    op.create_index("question_state", "question", ["state"])
    op.create_table(
        "question_sample",
        sa.Column("id", _NUMBER, primary_key=True, nullable=False),
        sa.Column("question", _NUMBER, nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("sample", sa.String(), nullable=False),
        sa.Column("alike", sa.Double(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
    )
    op.create_index("question_sample_question", "question_sample", ["question"])
    op.create_index("question_sample_state", "question_sample", ["state", "device"])
    op.create_index("question_sample_device", "question_sample", ["device"])
