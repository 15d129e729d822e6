"""``edge-fleet receipt`` and ``release lineage``: that something was forgotten, and whose learning a head has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edge.cli.access import JSON
from edge.cli.devices import stamp
from edge.cli.terminal import say, shown
from edge.contract.digest import short
from edge.contract.errors import ConfigError, RolloutError
from edge.contract.files import replace_file


@click.group()
def receipt() -> None:
    """Receipts of `edge-fleet forget`, signed: anybody can check them.

    \b
    edge-fleet receipt list
    edge-fleet receipt show 1
    edge-fleet receipt download 1 -o receipt.json --key key.pem
    python examples/check_receipt.py receipt.json key.pem head.safetensors
    """


@receipt.command("list")
@JSON
@click.pass_obj
def list_receipts(connect: Any, as_json: bool) -> None:
    """All of them, newest first.

    \b
    edge-fleet receipt list
    """
    rows = connect().call("GET", "/api/v1/receipts")
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        state = f"signed {stamp(row['completed_ms'])}" if row["completed_ms"] else "waits for the merge without it"
        say(f"{row['id']:>4}  {row['device']:<16} {state}")
    if not rows:
        click.echo("nothing was forgotten yet")


@receipt.command()
@click.argument("number", type=click.IntRange(min=1))
@JSON
@click.pass_obj
def show(connect: Any, number: int, as_json: bool) -> None:
    """What receipt NUMBER states.

    \b
    edge-fleet receipt show 1
    """
    row = connect().call("GET", f"/api/v1/receipts/{number}")
    if as_json:
        click.echo(json.dumps(row, indent=1))
        return
    stated = row["statement"]
    say(f"receipt {number}: what {row['device']} contributed was deleted {stamp(row['created_ms'])}")
    if not stated.get("contributed", True):
        say("  it never contributed: nothing of it is in any head")
    if any((deleted := stated.get("deleted", {})).values()):
        names = {"checkpoints": "checkpoints", "telemetry": "messages of telemetry", "shared_samples": "shared samples"}
        say("  deleted, too: " + ", ".join(f"{deleted[key]} {what}" for key, what in names.items() if deleted[key]))
    if stated["copies"]:
        say(f"  and that of copies of its state folder, on {', '.join(stated['copies'])}")
    for each in stated["contributions"]:
        merged = f"merged in release {each['in_release']}" if each["in_release"] else "never merged"
        say(f"  {each['learner']} of {each['n_samples']} labelled samples, lineage {shown(each['lineage'])}: {merged}")
    if not row["completed_ms"]:
        click.echo("it is signed when a head was merged without it: `edge-fleet merge`")
        return
    for each in stated["heads_without"]:
        say(f"  release {each['release']}, head {short(each['digest'])}: without it")
    for each in stated["heads_with"]:
        say(f"  release {each['release']}, head {short(each['digest'])}: has it in, and is kept")
    if not stated["is_whole"]:
        click.echo("  changes that were merged cannot be taken out of a mean: later heads still go on from it")
    say(f"  signed {stamp(row['completed_ms'])}")


@receipt.command()
@click.argument("number", type=click.IntRange(min=1))
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The signed envelope.")
@click.option("--key", type=click.Path(path_type=Path), help="Also write the public key that checks it, PEM.")
@JSON
@click.pass_obj
def download(connect: Any, number: int, output: Path, key: Path | None, as_json: bool) -> None:
    """Write receipt NUMBER into a file, for somebody who wants to check it.

    Give the key to whoever checks once, on a way that they trust.

    \b
    edge-fleet receipt download 1 -o receipt.json --key key.pem
    """
    coordinator = connect()
    row = coordinator.call("GET", f"/api/v1/receipts/{number}")
    if not row["signed"]:
        raise RolloutError(f"receipt {number} is not signed yet: it waits for the merge without {row['device']}")
    files = {output: row["signed"].encode()}
    if key is not None:
        files[key] = coordinator.fetch("/api/v1/receipts/key")
    for path, data in files.items():
        try:
            with replace_file(path) as file:
                file.write(data)
        except OSError as exc:
            raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc
        if not as_json:
            click.echo(str(path))
    if as_json:
        click.echo(json.dumps({"file": str(output), "key": None if key is None else str(key)}))


@click.command()
@click.argument("number", type=click.IntRange(min=1))
@JSON
@click.pass_obj
def lineage(connect: Any, number: int, as_json: bool) -> None:
    """Whose learning is in the head of release NUMBER: devices, samples, and the other releases that have it in.

    \b
    edge-fleet release lineage 3
    """
    found = connect().call("GET", f"/api/v1/releases/{number}/lineage")
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    if not found["parts"]:
        click.echo(f"release {number} ({found['kind']}) is of no merge: it says of no device that it learned from it")
    for each in found["parts"]:
        who = each["device"] or "a device that is not known here"
        who += f" {shown(each['model'])}" if each["model"] else ""
        gone = ", forgotten since" if each["is_forgotten"] else ""
        releases = ", ".join(map(str, each["releases"]))
        say(
            f"{who}: {each['samples']} labelled samples{gone}; lineage {shown(each['lineage'])}, in releases {releases}"
        )
