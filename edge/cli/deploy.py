"""``edge-fleet deploy``: configuration of broker, database and coordinators."""

from __future__ import annotations

import json
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
@click.option("--force", is_flag=True, help="Write over files that are there, such as those with your passwords.")
@click.option("--json", "as_json", is_flag=True, help="For programs: the files.")
def deploy(
    folder: Path,
    fleet: str,
    broker: str,
    broker_host: str,
    database_host: str,
    devices: int,
    coordinators: int,
    force: bool,
    as_json: bool,
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
        from edge.coordinator.machine.deploy import Deployment, files_of
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
    paths = {name: folder / name for name in made}
    if (there := [path for path in paths.values() if path.exists()]) and not force:
        raise ConfigError(f"{there[0]} is there already, and may have passwords in it: another FOLDER, or --force")
    for name, text in made.items():
        try:
            paths[name].parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"{paths[name].parent} cannot be made: {exc.strerror}") from exc
        with replace_file(paths[name]) as file:
            file.write(text.encode())
    if as_json:
        click.echo(json.dumps({name: str(path) for name, path in paths.items()}, indent=1))
    else:
        click.echo("\n".join(map(str, paths.values())))
