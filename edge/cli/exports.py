"""``edge-coordinator export``: what is in the database, as files for other tools."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from edge.contract.durations import seconds
from edge.contract.errors import ChannelError, ConfigError


def _since(_: click.Context, __: click.Parameter, text: str) -> int:
    if not text:
        return 0
    try:
        return time.time_ns() // 1_000_000 - int(1000 * seconds(text))
    except ValueError as exc:
        raise ConfigError(f"--since: {exc}") from exc


_DATABASE = (
    click.option("--data-dir", default="edge-coordinator", type=click.Path(path_type=Path), help="Of the coordinator."),
    click.option(
        "--database",
        default="",
        show_default=False,
        envvar="EDGE_DATABASE",
        help="Instead of the one in the data folder.",
    ),
    click.option("--json", "as_json", is_flag=True, help="For programs."),
)
_COMMON = (
    click.argument("folder", type=click.Path(path_type=Path)),
    click.option("--device", default="", show_default=False, help="Only of this one."),
    click.option(
        "--since",
        "since_ms",
        default="",
        show_default=False,
        callback=_since,
        help="Only the last while: 30 min, 12 h, 7 d.",
    ),
    *_DATABASE,
)


def _with(options: Sequence[Any]) -> Callable[[Any], Any]:
    def added(command: Any) -> Any:
        for each in reversed(options):
            command = each(command)
        return command

    return added


_common = _with(_COMMON)


def _address(_: click.Context, parameter: click.Parameter, text: str) -> str:
    if text and urlsplit(text).scheme not in ("http", "https"):
        raise ConfigError(f"{parameter.name}: expected http://HOST:PORT or https://HOST:PORT, got {text[:80]}")
    return text


@click.group()
def export() -> None:
    """Give other tools telemetry, events, rollouts and releases; the coordinator may run.

    \b
    edge-coordinator export csv out --since "7 d"
    edge-coordinator export parquet out --since "7 d"
    edge-coordinator export traces out --to http://localhost:4318
    edge-coordinator export mlflow http://localhost:5000
    """


@export.command("csv")
@_common
def as_csv(folder: Path, data_dir: Path, database: str, device: str, since_ms: int, as_json: bool) -> None:
    """Write telemetry.csv and events.csv into FOLDER.

    \b
    edge-coordinator export csv out --since "7 d"
    """
    store = _store(data_dir, database, device)
    from edge.coordinator.export.files import write_csv

    try:
        _say(folder, write_csv(store, folder, device, since_ms), as_json)
    finally:
        store.close()


@export.command("parquet")
@_common
def as_parquet(folder: Path, data_dir: Path, database: str, device: str, since_ms: int, as_json: bool) -> None:
    """Write telemetry.parquet and events.parquet into FOLDER: the columns of `export csv`, with their types.

    \b
    pip install 'edgeloop[parquet]'
    edge-coordinator export parquet out --since "7 d"
    """
    store = _store(data_dir, database, device)
    from edge.coordinator.export.parquet import write_parquet

    try:
        _say(folder, write_parquet(store, folder, device, since_ms), as_json)
    finally:
        store.close()


@export.command("tensorboard")
@_common
def as_tensorboard(folder: Path, data_dir: Path, database: str, device: str, since_ms: int, as_json: bool) -> None:
    """Write a run for each device, and one for merges, into FOLDER.

    \b
    edge-coordinator export tensorboard runs
    tensorboard --logdir runs
    """
    from edge.cli.tensorboard import write_fleet

    store = _store(data_dir, database, device)
    try:
        _say(folder, write_fleet(store, folder, device, since_ms), as_json)
    finally:
        store.close()


@export.command("traces")
@_common
@click.option(
    "--to",
    "collector",
    default="",
    show_default=False,
    callback=_address,
    metavar="URL",
    help="Also send them there by OTLP over HTTP: http://HOST:4318.",
)
def as_traces(
    folder: Path, data_dir: Path, database: str, device: str, since_ms: int, as_json: bool, collector: str
) -> None:
    """Write traces.json into FOLDER: a trace for each rollout.

    From the click to the last device that has the release live, as OpenTelemetry's collector reads it (OTLP in JSON).
    Sent again the spans have the same numbers.

    \b
    edge-coordinator export traces out --since "7 d"
    edge-coordinator export traces out --to http://localhost:4318
    """
    store = _store(data_dir, database, device)
    from edge.coordinator.alerts.webhook import post
    from edge.coordinator.door import now
    from edge.coordinator.export import traces

    try:
        bodies, counts = traces.write(traces.spans(store, now().wall_ms, device, since_ms), folder)
    finally:
        store.close()
    address = collector.rstrip("/").removesuffix("/v1/traces") + "/v1/traces"
    for body in bodies if collector else ():
        if why := post(address, "", body, now()):
            raise ChannelError(f"{address} took no traces: {why}; they are in {folder / traces.FILE}")
    _say(folder, counts, as_json)


@export.command("mlflow")
@click.argument("server", callback=_address)
@_with(_DATABASE)
def into_mlflow(server: str, data_dir: Path, database: str, as_json: bool) -> None:
    """Have the model registry of MLflow at SERVER know all releases.

    A registered model for each name, a version for each release, with tags that say which it is and how many devices
    run it; the alias `live` is the version that most run. Asked again it adds what is new. $MLFLOW_TRACKING_TOKEN is
    sent where it is set.

    \b
    edge-coordinator export mlflow http://localhost:5000
    """
    store = _store(data_dir, database, "")
    from edge.coordinator.export import mlflow

    try:
        listed = mlflow.releases(store)
    finally:
        store.close()
    found = mlflow.register(listed, mlflow.Server(server, os.environ.get("MLFLOW_TRACKING_TOKEN", "")).ask)
    if as_json:
        click.echo(json.dumps({"server": server, **found}))
    else:
        click.echo(f"{server}: {found['made']} versions are new, {found['known']} were there")


def _store(data_dir: Path, database: str, device: str) -> Any:
    """The database of a coordinator that may run.

    Raises:
        ConfigError: It cannot be used, or there is no such device.
    """
    try:
        from edge.coordinator.machine.backup import DATABASE
        from edge.coordinator.store.store import Store
    except ImportError as exc:
        raise ConfigError(f"{exc.name} is not installed: pip install 'edgeloop[coordinator]'") from exc
    where = database or data_dir / DATABASE
    if isinstance(where, Path) and not where.exists():
        raise ConfigError(f"{where} is not there; name the coordinator's folder with --data-dir")
    store = Store(where, is_shared=True)
    if device and store.devices.get(device) is None:
        store.close()
        raise ConfigError(f"--device {device[:80]}: there is none of that name; `edge-fleet devices` lists them")
    return store


def _say(folder: Path, counts: dict[str, int], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"folder": str(folder), **counts}))
    else:
        click.echo(f"{folder}: {', '.join(f'{count} in {name}' for name, count in counts.items())}")
