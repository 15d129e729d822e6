"""The tables with which revisions began. Databases from before, which have no revision, are taken over.

Revision: 0001, the first.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# Columns that tables got later; all may be empty.
_ADDED = (
    ("release", "model"),
    ("event", "model"),
    ("contribution", "model"),
    ("contribution", "state_id"),
    ("device", "state_id"),
)

# What a device ran stood in its own row until it had several models; it is named as its bundle is, where that is known.
_TAKE_OVER = (
    """
    INSERT INTO device (id, online, session, boot, agent_version, profile, hardware, born, first_seen_ms, last_seen_ms,
        state_id)
    SELECT id, online, session, boot, agent_version, profile, hardware, born, first_seen_ms, last_seen_ms, ''
    FROM device_before
    """,
    """
    INSERT INTO device_model (device, model, position, bundle, backbone, head, "release", samples, state_seq, state,
        state_release, state_detail, experts)
    SELECT d.id, coalesce((SELECT name FROM bundle b WHERE b.backbone = d.backbone LIMIT 1), ''), 0, d.bundle,
        d.backbone, d.head, d."release", d.samples, d.state_seq, d.state, d.state_release, d.state_detail,
        {experts}
    FROM device_before d WHERE d.born OR d.state_seq > 0
    """,
    "DROP TABLE device_before",
    "DROP TABLE IF EXISTS device_experts",
)
# What devices said of their experts; older databases have no such table.
_EXPERTS = "coalesce((SELECT e.experts FROM device_experts e WHERE e.device = d.id), '{}')"

# Until devices named their state folder, (device, boot, seq) told a repeat of telemetry. The table is made anew for it.
_TELEMETRY_BACK = (
    """
    INSERT INTO telemetry (id, device, boot, seq, received_ms, "values", state_id)
    SELECT id, device, boot, seq, received_ms, "values", '' FROM telemetry_before
    """,
    "DROP TABLE telemetry_before",
)


def upgrade() -> None:
    """Make what is missing, and move what lies elsewhere."""
    before = _columns()
    had_one_model = "backbone" in before.get("device", ())
    had_no_folder = "telemetry" in before and "state_id" not in before["telemetry"]
    if had_one_model:
        op.execute("ALTER TABLE device RENAME TO device_before")
    if had_no_folder:
        op.execute("ALTER TABLE telemetry RENAME TO telemetry_before")
        op.execute("DROP INDEX IF EXISTS telemetry_received")
    there = _columns()
    for table, column in _ADDED:
        if table in there and column not in there[table]:
            op.add_column(table, sa.Column(column, sa.String(), nullable=False, server_default=""))
    _create(set(there))
    if had_one_model:
        for statement in _TAKE_OVER:
            op.execute(statement.replace("{experts}", _EXPERTS if "device_experts" in before else "'{}'"))
    if had_no_folder:
        for statement in _TELEMETRY_BACK:
            op.execute(statement)


def _columns() -> dict[str, set[str]]:
    inspector = sa.inspect(op.get_bind())
    return {table: {each["name"] for each in inspector.get_columns(table)} for table in inspector.get_table_names()}


def _text(name: str, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(), primary_key=key, nullable=False)


def _number(name: str, *, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, _NUMBER, primary_key=key, nullable=False)


def _bool(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), nullable=False)


def _json(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(), nullable=False)


def _create(there: set[str]) -> None:
    tables: dict[str, list[sa.schema.SchemaItem]] = {
        "device": [
            _text("id", key=True), _bool("online"), _number("session"), _number("boot"), _text("agent_version"),
            _text("profile"), _json("hardware"), _bool("born"), _number("first_seen_ms"), _number("last_seen_ms"),
            _text("state_id"),
        ],
        "device_model": [
            _text("device", key=True), _text("model", key=True), _number("position"), _text("bundle"),
            _text("backbone"), _text("head"), _number("release"), _number("samples"), _number("state_seq"),
            _text("state"), _number("state_release"), _text("state_detail"), _json("experts"),
        ],
        "device_tag": [_text("device", key=True), _text("key", key=True), _text("value")],
        "telemetry": [
            _number("id", key=True), _text("device"), _number("boot"), _number("seq"), _number("received_ms"),
            _json("values"), _text("state_id"), sa.UniqueConstraint("device", "state_id", "boot", "seq"),
        ],
        "age": [sa.Column("run_s", sa.Double(), primary_key=True, nullable=False), _number("last_id")],
        "contribution": [
            _text("device", key=True), _text("lineage", key=True), _text("backbone", key=True), _text("learner"),
            _number("version"), _number("n_samples"), _number("base_release"), _text("digest"),
            _number("received_ms"), _number("merged_version"), _number("merged_release"), _text("model"),
            _text("state_id"),
        ],
        "refused": [
            _text("device", key=True), _text("lineage", key=True), _text("backbone", key=True), _number("version"),
            _text("reason"),
        ],
        "forgotten": [
            _text("lineage", key=True), _text("backbone", key=True), _text("device"), _bool("pending"),
            _number("at_ms"),
        ],
        "merge_memory": [
            _text("name", key=True), _text("backbone", key=True),
            sa.Column("data", sa.LargeBinary(), nullable=False),
        ],
        "bundle": [_text("digest", key=True), _text("backbone"), _text("name")],
        "release": [
            _number("counter", key=True), _text("kind"), _text("digest"), _text("backbone"), _json("devices"),
            _text("reason"), _number("created_ms"), _text("model"),
        ],
        "event": [
            _number("id", key=True), _text("device"), _text("name"), _text("detail"), _number("at_ms"), _text("model"),
        ],
    }  # fmt: skip
    for table, items in tables.items():
        if table not in there:
            op.create_table(table, *items)
    if "telemetry" not in there:
        op.create_index("telemetry_received", "telemetry", ["received_ms"])
