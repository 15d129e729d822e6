"""Configuration of a fleet on more than one machine: broker, database, coordinators; text by file name.

Numbers are those that benchmarks asked for: see docs/capacity.md. Who may do what at the broker is said by
`edge.coordinator.machine.broker_config`, here for the coordinator and no device: without that no broker lets it in, and
without it nobody could be asked for the devices.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from edge.channel.topics import check_id
from edge.contract.errors import ConfigError
from edge.coordinator.machine.broker_config import ACL, mosquitto, rabbitmq

# Its login at the broker.
COORDINATOR = "coordinator"
# A broker's own limits, for devices that come back all at once.
_PER_DEVICE_FILES = 3
_LEAST_FILES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """What is to be deployed.

    Attributes:
        fleet: Its id.
        broker: ``mosquitto`` or ``rabbitmq``.
        broker_host: Name of its machine, as it stands in its certificate.
        database_host: Name of PostgreSQL's machine.
        devices: How many there will be.
        coordinators: Processes side by side.
        folder: Of configuration on these machines.
        program: Path of ``edge-coordinator`` there.
        data_dir: Of artifacts, which all coordinators see.
    """

    fleet: str
    broker: str
    broker_host: str
    database_host: str
    devices: int
    coordinators: int
    folder: str = "/etc/edgeloop"
    program: str = "/opt/edgeloop/bin/edge-coordinator"
    data_dir: str = "/var/lib/edgeloop"


def files_of(what: Deployment) -> dict[str, str]:
    """All files.

    Raises:
        ConfigError: Something is no name of a fleet or machine.
    """
    check_id(what.fleet, "fleet")
    for host in (what.broker_host, what.database_host):
        if not host or any(not (c.isalnum() or c in ".-:") for c in host):
            raise ConfigError(f"{host[:80]!r}: expected the name of a machine")
    broker = _mosquitto(what) if what.broker == "mosquitto" else _rabbitmq(what)
    return broker | _postgresql(what) | _systemd(what)


def _mosquitto(what: Deployment) -> dict[str, str]:
    folder = what.folder
    lines = [
        "# mosquitto 2: /etc/mosquitto/conf.d/edgeloop.conf. Passwords and rules: edge-fleet broker-config mosquitto.",
        "per_listener_settings false",
        "listener 8883",
        f"certfile {folder}/tls/broker.crt",
        f"keyfile {folder}/tls/broker.key",
        "tls_version tlsv1.2",
        "allow_anonymous false",
        f"password_file {folder}/broker/passwords",
        f"acl_file {folder}/broker/acl",
        "# What it keeps is a cache: the database is the truth. But a restart need not lose the retained messages.",
        "persistence true",
        "autosave_interval 60",
        "# Without it each request and its answer cost 44 ms.",
        "set_tcp_nodelay true",
        "# Its usual queue of 1000 messages drops silently; bytes are what memory is made of.",
        "max_queued_messages 0",
        f"max_queued_bytes {64 * 2**20}",
        "max_inflight_messages 20",
        "message_size_limit 262144",
        "max_keepalive 600",
        "persistent_client_expiration 7d",
        f"# For so many devices: systemctl edit mosquitto, LimitNOFILE={_open_files(what)}",
    ]
    rules = mosquitto(what.fleet, COORDINATOR, (), None, f"{folder}/broker")[ACL]
    return {"mosquitto/edgeloop.conf": _text(lines), "broker/acl": rules}


def _rabbitmq(what: Deployment) -> dict[str, str]:
    folder = what.folder
    lines = [
        "# RabbitMQ: /etc/rabbitmq/rabbitmq.conf. Users and rules: edge-fleet broker-config rabbitmq.",
        "listeners.tcp.1 = 127.0.0.1:5672",
        "listeners.ssl.1 = 5671",
        "mqtt.listeners.tcp = none",
        "mqtt.listeners.ssl.1 = 8883",
        f"ssl_options.certfile = {folder}/tls/broker.crt",
        f"ssl_options.keyfile = {folder}/tls/broker.key",
        "ssl_options.versions.1 = tlsv1.2",
        "mqtt.allow_anonymous = false",
        "mqtt.exchange = amq.topic",
        "mqtt.vhost = /",
        "# A session that nobody comes back to ends after a day.",
        "mqtt.subscription_ttl = 86400000",
        "mqtt.prefetch = 20",
        "vm_memory_high_watermark.relative = 0.6",
        "disk_free_limit.absolute = 2GB",
    ]
    return {
        "rabbitmq/rabbitmq.conf": _text(lines),
        "rabbitmq/enabled_plugins": "[rabbitmq_mqtt,rabbitmq_prometheus].\n",
        "broker/definitions.json": json.dumps(rabbitmq(what.fleet, COORDINATOR, ()), indent=1) + "\n",
    }


def _postgresql(what: Deployment) -> dict[str, str]:
    # A loop, a door and the pages each have some connections; five are for people.
    connections = 20 * what.coordinators + 5
    config = [
        "# PostgreSQL 15: conf.d/edgeloop.conf",
        "# Its usual is this machine only, and coordinators are on others; who may come in says pg_hba.conf.",
        "listen_addresses = '*'",
        f"max_connections = {connections}",
        "shared_buffers = 1GB" if what.devices > 10_000 else "shared_buffers = 256MB",
        "# An acknowledged contribution is on disk: leave this on.",
        "synchronous_commit = on",
        "max_wal_size = 4GB",
        "checkpoint_timeout = 15min",
        "# Telemetry is written once and deleted in the order in which it came.",
        "autovacuum_vacuum_scale_factor = 0.02",
        "tcp_keepalives_idle = 10",
        "tcp_keepalives_interval = 5",
        "tcp_keepalives_count = 3",
        "ssl = on",
        f"ssl_cert_file = '{what.folder}/tls/database.crt'",
        f"ssl_key_file = '{what.folder}/tls/database.key'",
    ]
    hba = ["# PostgreSQL 15: pg_hba.conf", "hostssl edgeloop edgeloop samenet scram-sha-256"]
    sql = [
        "-- psql -v password=... -f database.sql, as the superuser",
        "CREATE ROLE edgeloop LOGIN PASSWORD :'password';",
        "CREATE DATABASE edgeloop OWNER edgeloop ENCODING 'UTF8' TEMPLATE template0;",
    ]
    return {
        "postgresql/edgeloop.conf": _text(config),
        "postgresql/pg_hba.conf": _text(hba),
        "postgresql/database.sql": _text(sql),
    }


def _systemd(what: Deployment) -> dict[str, str]:
    intake = "share" if what.broker == "mosquitto" else f"amqps://{COORDINATOR}:PASSWORD@{what.broker_host}:5671/%2F"
    environment = [
        "# chmod 600. One for all coordinators: what differs is in the name of the unit, edge-coordinator@c1 to "
        f"@c{what.coordinators}.",
        "# ?ca= names the authority of the broker's certificate; leave it out where that is a public one.",
        f"EDGE_BROKER=mqtts://{COORDINATOR}@{what.broker_host}:8883?ca={what.folder}/tls/authority.pem",
        "EDGE_BROKER_PASSWORD=PASSWORD",
        f"EDGE_DATABASE=postgresql+psycopg://edgeloop:PASSWORD@{what.database_host}/edgeloop?sslmode=require",
        f"EDGE_INTAKE={intake}",
    ]
    unit = [
        "[Unit]",
        "Description=Edgeloop coordinator %i",
        "After=network-online.target",
        "Wants=network-online.target",
        "# Who lost the database to another one ends, and comes back as one that waits.",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        f"EnvironmentFile={what.folder}/coordinator.env",
        f"ExecStart={what.program} serve --fleet {what.fleet} --name %i --data-dir {what.data_dir}",
        "Restart=always",
        "RestartSec=3",
        "User=edgeloop",
        "Group=edgeloop",
        f"ReadWritePaths={what.data_dir}",
        "NoNewPrivileges=true",
        "PrivateTmp=true",
        "ProtectSystem=strict",
        "ProtectHome=true",
        "MemoryMax=1G",
        "LimitNOFILE=4096",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return {"systemd/edge-coordinator@.service": _text(unit), "coordinator.env": _text(environment)}


def _open_files(what: Deployment) -> int:
    return max(_LEAST_FILES, _PER_DEVICE_FILES * what.devices)


def _text(lines: list[str]) -> str:
    return "\n".join([*lines, ""])
