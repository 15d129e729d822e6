"""``edge-fleet device checkpoint | checkpoints | restore``: keep what a device learned, and give it to another."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from edge.cli.devices import age
from edge.cli.terminal import device_path, say, shown
from edge.contract.digest import short
from edge.contract.errors import ConfigError, RolloutError

_JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")
_WAIT = click.option("--wait", default=60.0, type=click.FloatRange(min=0), help="Seconds to wait for the device.")
_PAUSE_S = 0.25


def _ended(coordinator: Any, order: dict[str, Any], wait_s: float) -> dict[str, Any]:
    """An order when it has ended, or as it stands when the time is over."""
    end = time.monotonic() + wait_s
    while order["state"] == "open" and time.monotonic() < end:
        time.sleep(_PAUSE_S)
        order = coordinator.call("GET", f"/api/v1/orders/{order['number']}")
    return order


def _say_end(order: dict[str, Any], doing: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(order, indent=1))
    if order["state"] == "refused":
        raise RolloutError(f"{order['device']} refused: {shown(order['detail'], 500)}")
    if as_json:
        return
    if order["state"] == "open":
        why = shown(order["detail"], 500) or "it has not answered yet"
        say(f"{order['device']}: {doing} is ordered; {why}, and is told again until it does")
    else:
        say(f"{order['device']}: {shown(order['detail'], 500)}")


@click.command()
@click.argument("name")
@click.option("--model", default="", show_default=False, help="Of a device with several.  [default: all of them]")
@_WAIT
@_JSON
@click.pass_obj
def checkpoint(connect: Any, name: str, model: str, wait: float, as_json: bool) -> None:
    """Have device NAME send what it learned; the last two of each model are kept.

    Without samples, unless the device runs with --checkpoint-samples; sealed where it runs with --checkpoint-key. One
    that is away sends it when it comes back.

    \b
    edge-fleet device checkpoint camera-1
    """
    coordinator = connect()
    order = coordinator.call("POST", device_path(name, "checkpoint"), params={"model": model})
    _say_end(_ended(coordinator, order, wait), "a checkpoint", as_json)


@click.command()
@click.argument("name")
@click.argument("what", type=click.Choice(["sync"]))
@_WAIT
@_JSON
@click.pass_obj
def cmd(connect: Any, name: str, what: str, wait: float, as_json: bool) -> None:
    """Have device NAME do something now. sync: contribute what it learned since, and not when its time has come.

    One that is away does it when it comes back. What it sends is in edge-fleet events --kind contribution.

    \b
    edge-fleet cmd camera-1 sync
    """
    coordinator = connect()
    order = coordinator.call("POST", device_path(name, what))
    _say_end(_ended(coordinator, order, wait), what, as_json)


@click.command()
@click.argument("name")
@click.option("--download", type=click.Path(path_type=Path), help="Write the newest, or that of --digest, to a file.")
@click.option("--digest", default="", show_default=False, help="Of one, or how it begins.")
@_JSON
@click.pass_obj
def checkpoints(connect: Any, name: str, download: Path | None, digest: str, as_json: bool) -> None:
    """List the checkpoints that are kept of device NAME, the newest first.

    \b
    edge-fleet device checkpoints camera-1
    edge-fleet device checkpoints camera-1 --download camera-1.checkpoint
    """
    coordinator = connect()
    rows = coordinator.call("GET", device_path(name, "checkpoints"))
    rows = [row for row in rows if row["digest"].startswith(digest)]
    if download is not None:
        if not rows:
            raise RolloutError(
                f"there is no such checkpoint of {name}; `edge-fleet device checkpoint {name}` asks for one"
            )
        data = coordinator.fetch(f"/api/v1/checkpoints/{rows[0]['digest']}")
        _write(download, data)
        rows = rows[:1]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        say(f"none is kept of {name}; `edge-fleet device checkpoint {name}` asks for one")
    for row in rows:
        sealed = f"sealed to {row['sealed_to']}" if row["sealed_to"] else "open"
        samples = "with samples" if row["has_samples"] else "without samples"
        fits = f"backbone {short(row['backbone'])}, {shown(row['learners'])}"
        kept = f"{sealed}, {samples}, {row['size_bytes']} bytes, {age(row['received_ms'])} ago"
        say(f"{short(row['digest'])}  {shown(row['model'])}  {row['samples']} labels, {fits}; {kept}")
    if download is not None:
        say(f"wrote {download}")


def _write(path: Path, data: bytes) -> None:
    from edge.contract.files import replace_file

    try:
        with replace_file(path) as file:
            file.write(data)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc


@click.command()
@click.argument("name")
@click.option("--from", "source", help="The device whose checkpoint it is.  [default: NAME]")
@click.option("--model", default="", show_default=False, help="Of the source, where it has several.")
@click.option(
    "--digest", default="", show_default=False, help="Of the checkpoint, or how it begins.  [default: the newest]"
)
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    help="Private key that opens a sealed one: it is opened here, and sealed to NAME.",
)
@click.option("--force", is_flag=True, help="Also where the source is online, or ran a head then that was taken back.")
@_WAIT
@_JSON
@click.pass_obj
def restore(
    connect: Any,
    name: str,
    source: str | None,
    model: str,
    digest: str,
    key: Path | None,
    force: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Have device NAME go on from where it was, or another device, when the checkpoint was made.

    For a device that was set up anew, or one that takes the place of another. It must run a bundle of the same
    backbone, with the same learners. What it had learned itself is replaced.

    \b
    edge-fleet device restore camera-9 --from camera-1
    edge-fleet device restore camera-1 --key fleet.pem
    """
    coordinator = connect()
    whose = source or name
    brought = b""
    if key is not None:
        brought = _sealed_anew(coordinator, name, whose, model, digest, key)
    asked = {"source": whose, "model": model, "digest": digest, "force": force}
    order = coordinator.call("POST", device_path(name, "restore"), params=asked, content=brought)
    _say_end(_ended(coordinator, order, wait), f"to go on where {whose} was", as_json)


def _sealed_anew(coordinator: Any, name: str, whose: str, model: str, digest: str, key: Path) -> bytes:
    """The checkpoint, opened on this machine and sealed to the device's own key."""
    from edge.contract import sealing
    from edge.learning.checkpoint import Checkpoint

    private = sealing.read_private(key)
    rows = coordinator.call("GET", device_path(whose, "checkpoints"))
    rows = [row for row in rows if row["digest"].startswith(digest) and model in ("", row["model"])]
    devices = [row for row in coordinator.call("GET", "/api/devices") if row["id"] == name]
    if not rows:
        raise RolloutError(f"there is no such checkpoint of {whose}")
    if not devices or not devices[0].get("seal_key"):
        raise RolloutError(f"{name} has no key to seal to: it must run with --checkpoint-key, and have said so")
    found = Checkpoint.decode(coordinator.fetch(f"/api/v1/checkpoints/{rows[0]['digest']}"), "the checkpoint")
    plain = found.opened(private, "the checkpoint") if found.facts.sealed_to else found
    to = bytes.fromhex(devices[0]["seal_key"])
    click.echo(f"sealed to the key {sealing.key_name(to)} of {name}", err=True)
    return plain.sealed(to).encode()


COMMANDS = (checkpoint, checkpoints, restore)
