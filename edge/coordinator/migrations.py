"""Databases of earlier versions made one of today: statements, and nothing else.

Done in one transaction, so a process that is killed meanwhile leaves the old database as it was.
"""

from __future__ import annotations

# Columns that tables got later; all may be empty.
ADDED = (
    ("release", "model"),
    ("event", "model"),
    ("contribution", "model"),
    ("contribution", "state_id"),
    ("device", "state_id"),
)
ADD = "ALTER TABLE {table} ADD COLUMN {column} VARCHAR NOT NULL DEFAULT ''"

# Until devices had several models, what a device runs stood in its own row. It is recognized by this column.
ONE_MODEL = ("device", "backbone")
PUT_ASIDE = ("ALTER TABLE device RENAME TO device_before",)
# What a device ran is named as its bundle is, where that is known.
TAKE_OVER = (
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
# Of what devices said of their experts; older databases have no such table.
EXPERTS_TABLE = "device_experts"
EXPERTS = "coalesce((SELECT e.experts FROM device_experts e WHERE e.device = d.id), '{}')"
NO_EXPERTS = "'{}'"

# Until devices named their state folder, (device, boot, seq) told a repeat of telemetry. The table is made anew for it.
WITHOUT_FOLDER = ("telemetry", "state_id")
TELEMETRY_ASIDE = ("ALTER TABLE telemetry RENAME TO telemetry_before", "DROP INDEX IF EXISTS telemetry_received")
TELEMETRY_BACK = (
    """
    INSERT INTO telemetry (id, device, boot, seq, received_ms, "values", state_id)
    SELECT id, device, boot, seq, received_ms, "values", '' FROM telemetry_before
    """,
    "DROP TABLE telemetry_before",
)
