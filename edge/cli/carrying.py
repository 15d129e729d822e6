"""``edge-fleet export-release | import``: a stick between the coordinator and sites without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edge.channel.chunks import MAX_SIZE_BYTES
from edge.cli.terminal import many, read_whole, say, shown
from edge.contract.errors import ConfigError, RolloutError

_PATH = click.Path(path_type=Path)


@click.command("export-release")
@click.argument("path", type=_PATH)
@click.option("--device", "devices", multiple=True, required=True, help="For whom; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def export_release(connect: Any, path: Path, devices: tuple[str, ...], as_json: bool) -> None:
    """Write to PATH what devices without a network should run, for `edge-agent import`.

    What the coordinator would tell them now, with the same signatures, the files, and the metadata that prove them.

    \b
    edge-fleet export-release stick.parcel --device camera-1 --device camera-2
    """
    from edge.contract.files import check_writable, replace_file

    check_writable(path)
    query = "&".join(f"device={device}" for device in devices)
    data = connect().fetch(f"/api/v1/parcel?{query}")
    try:
        with replace_file(path) as file:
            file.write(data)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc
    if as_json:
        click.echo(json.dumps({"file": str(path), "devices": list(devices), "size_bytes": len(data)}))
        return
    say(f"wrote {path}: for {', '.join(devices)}, {len(data)} bytes")


@click.command("import")
@click.argument("path", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def take_in(connect: Any, path: Path, as_json: bool) -> None:
    """Take what `edge-agent export --for-fleet` wrote to PATH: what a device without a network learned, and runs.

    \b
    edge-fleet import stick.parcel
    """
    data = read_whole(path, MAX_SIZE_BYTES, "a parcel")
    found = connect().call("POST", "/api/v1/parcel", content=data, params={"file": path.name[:255]})
    if as_json:
        click.echo(json.dumps(found, indent=1))
    if found["refused"]:
        raise RolloutError(f"{found['device']}: {'; '.join(shown(why, 300) for why in found['refused'])}")
    if not as_json:
        say(f"{found['device']}: kept {many(found['kept'], 'document')}")
