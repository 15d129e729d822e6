"""``edge-fleet deploy``: configuration of broker, database and coordinators."""

from __future__ import annotations

from pathlib import Path

import click

from edge.contract.errors import ConfigError
from edge.contract.files import replace_file


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--fleet", default="default", help="Fleet id.")
@click.option("--broker", type=click.Choice(["mosquitto", "rabbitmq"]), default="mosquitto", help="Which one.")
@click.option("--broker-host", required=True, help="Name of its machine, as in its certificate.")
@click.option("--database-host", required=True, help="Name of PostgreSQL's machine.")
@click.option("--devices", default=1000, type=click.IntRange(1), help="How many there will be.")
@click.option("--coordinators", default=2, type=click.IntRange(1, 64), help="Processes side by side.")
def deploy(
    folder: Path, fleet: str, broker: str, broker_host: str, database_host: str, devices: int, coordinators: int
) -> None:
    """Write configuration for broker, PostgreSQL and coordinators into FOLDER, with TLS; nothing is installed.

    Where each file goes, and what has to be filled in (PASSWORD): docs/deploy.md.
    Users and rules of the broker are written by `edge-fleet broker-config`.

    \b
    edge-fleet deploy out --broker-host mq.lan --database-host db.lan
    edge-fleet deploy out --broker rabbitmq \\
        --broker-host mq.lan --database-host db.lan
    """
    try:
        from edge.coordinator.deploy import Deployment, files_of
    except ImportError as exc:
        raise ConfigError(f"{exc.name} is not installed: pip install 'edgeloop[coordinator]'") from exc
    made = files_of(
        Deployment(
            fleet=fleet,
            broker=broker,
            broker_host=broker_host,
            database_host=database_host,
            devices=devices,
            coordinators=coordinators,
        )
    )
    for name, text in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            file.write(text.encode())
        click.echo(path)
