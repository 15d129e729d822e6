"""``edge-fleet keys``: who may sign what a fleet runs."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from edge.contract.errors import ConfigError

PASSWORD = "EDGE_SIGN_PASSWORD"  # noqa: S105  # the name of a variable


def _ceremony() -> ModuleType:
    try:
        from edge.coordinator.signing import ceremony
    except ImportError as exc:
        raise ConfigError(f"{exc.name} is not installed: pip install 'edgeloop[coordinator]'") from exc
    return ceremony


def _password() -> bytes | None:
    return os.environ.get(PASSWORD, "").encode() or None


_JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group()
def keys() -> None:
    """Keys of the fleet: with them devices run only what was signed.

    \b
    edge-fleet keys init fleet-keys                  # once, on a workstation
    edge-coordinator serve --signing fleet-keys/coordinator ...
    edge-agent run --trust fleet-keys/device/root.json ...
    edge-fleet keys sign model.edge --key fleet-keys/workstation/bundles.pem
    edge-fleet push model.edge

    Private keys are encrypted with what EDGE_SIGN_PASSWORD holds; the coordinator's is not, it has to start alone.
    """


@keys.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--root-keys", default=3, type=click.IntRange(1, 16), help="Keys of the root.")
@click.option("--threshold", default=2, type=click.IntRange(1, 16), help="How many of them a new root needs.")
@_JSON
def init(folder: Path, root_keys: int, threshold: int, as_json: bool) -> None:
    """Make the keys of a fleet in a new FOLDER.

    \b
    edge-fleet keys init fleet-keys
    edge-fleet keys init fleet-keys --root-keys 5 --threshold 3
    """
    ceremony, password = _ceremony(), _password()
    made = ceremony.init(folder, datetime.now(UTC), n_root=root_keys, threshold=threshold, password=password)
    if as_json:
        places = ("offline", "workstation", "coordinator", "device")
        click.echo(
            json.dumps({place: f"{made.base}/{place}" for place in places} | {"encrypted": password is not None})
        )
        return
    click.echo(f"{made.base}/offline      {root_keys} root keys and the key of targets: take them off the network")
    click.echo(f"{made.base}/workstation  signs bundles (`edge-fleet keys sign`)")
    click.echo(f"{made.base}/coordinator  for `edge-coordinator serve --signing`; it signs heads and what runs where")
    click.echo(f"{made.base}/device       root.json for `edge-agent run --trust`")
    if password is None:
        click.echo(f"the keys have no password: set {PASSWORD} before `keys init` to give them one", err=True)


@keys.command()
@click.argument("path", type=click.Path(path_type=Path))
@_JSON
def seal(path: Path, as_json: bool) -> None:
    """Make a key that checkpoints are sealed to: PATH, which opens them, and PATH.pub for the devices.

    \b
    edge-fleet keys seal fleet.pem
    edge-agent run --checkpoint-key fleet.pem.pub ...
    edge-fleet device restore camera-9 --from camera-1 --key fleet.pem
    """
    from edge.contract import sealing

    if path.exists():
        raise ConfigError(f"{path} is there already; name another one")
    public = path.with_name(f"{path.name}.pub")
    try:
        key = sealing.make_key(path)
        sealing.write_public(public, key)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc
    if as_json:
        click.echo(json.dumps({"key": str(path), "public": str(public), "name": sealing.key_name(key)}))
        return
    click.echo(f"{path}      opens checkpoints: keep it off the coordinator")
    click.echo(f"{public}  for `edge-agent run --checkpoint-key`, the key {sealing.key_name(key)}")


@keys.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), help="workstation/bundles.pem")
@_JSON
@click.pass_obj
def sign(connect: Any, bundle: Path, key: Path, as_json: bool) -> None:
    """Put a BUNDLE into the signed list that devices believe; `edge-fleet push` sends it then.

    \b
    edge-fleet keys sign model.edge --key fleet-keys/workstation/bundles.pem
    """
    ceremony = _ceremony()
    coordinator = connect()
    listed = json.dumps(coordinator.call("GET", "/api/signing/bundles")).encode()
    document = ceremony.sign_bundle(listed, bundle, key, datetime.now(UTC), _password())
    found = coordinator.call("POST", "/api/signing/bundles", content=document)
    told = f"{bundle} is signed, the list of bundles has version {found['version']}"
    click.echo(json.dumps({"bundle": str(bundle), **found}) if as_json else told)


@keys.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("what", type=click.Choice(["online", "bundles", "targets", "root"]))
@_JSON
def rotate(folder: Path, what: str, as_json: bool) -> None:
    """Exchange a key, in the FOLDER of `keys init` with the offline keys in it.

    Start the coordinator again with what is in coordinator/ then. Devices follow by themselves, also those that were
    off meanwhile.

    \b
    edge-fleet keys rotate fleet-keys online   # the coordinator's was stolen
    """
    names = _ceremony().rotate(folder, what, datetime.now(UTC), _password())
    paths = [f"{folder}/coordinator/metadata/{name}" for name in names]
    for path in () if as_json else paths:
        click.echo(path)
    if as_json:
        click.echo(json.dumps({"metadata": paths}))
    click.echo(f"copy {folder}/coordinator to the coordinator and start it again", err=True)


@keys.command()
@_JSON
@click.pass_obj
def show(connect: Any, as_json: bool) -> None:
    """Who may sign what, and until when it holds, as the coordinator has it.

    \b
    edge-fleet keys show
    """
    found = connect().call("GET", "/api/signing")
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    if not found["signed"]:
        click.echo("unsigned: this coordinator has no keys, and devices believe whoever may publish to them")
        return
    for role, each in found["roles"].items():
        click.echo(f"{role:<10} version {each['version']:<10} until {each['expires'][:10]}")
