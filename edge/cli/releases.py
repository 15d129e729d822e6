"""``edge-fleet release`` and ``edge-fleet rollback``: what was pushed, what is in it, and how to have it again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from edge.channel.chunks import MAX_SIZE_BYTES
from edge.cli.rollouts import line_of
from edge.cli.terminal import read_whole, say, shown
from edge.contract.digest import sha256, short
from edge.contract.errors import BundleError, ConfigError
from edge.contract.files import replace_file

# A bundle is tried by the coordinator before it is taken.
_PROVED_S = 300.0
_JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group()
def release() -> None:
    """List, show, compare and fetch releases: what was pushed, by its number.

    \b
    edge-fleet release add head.safetensors
    edge-fleet release list
    edge-fleet release show 3
    edge-fleet release diff 2 3
    edge-fleet release download 2 -o before.edge
    """


@release.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--model",
    default="",
    show_default=False,
    help="The model that it is for.  [default: the bundle's; for a head all it fits]",
)
@click.option("--reason", default="", show_default=False, help="Kept with the release.")
@click.option("--name", default="", show_default=False, help="Of the release, for `edge-fleet release list`.")
@click.option("--notes", default="", show_default=False, help="What people should know of it.")
@click.option(
    "--force", is_flag=True, help="Also what fails its golden samples, is unlike what runs, or was judged worse."
)
@_JSON
@click.pass_obj
def add(
    connect: Any, artifact: Path, model: str, reason: str, name: str, notes: str, force: bool, as_json: bool
) -> None:
    """Make a release of ARTIFACT, a bundle or a head; nobody runs it until a rollout brings it.

    \b
    edge-fleet release add head.safetensors --name spring
    edge-fleet rollout start plan.toml    # with release = that number
    """
    coordinator = connect()
    body = send(coordinator, artifact, force=force)
    body |= {"model": model, "reason": reason or f"added from {artifact.name}", "name": name, "notes": notes}
    row = coordinator.call("POST", "/api/v1/releases", json=body)
    if as_json:
        click.echo(json.dumps(row, indent=1))
    else:
        say(f"release {row['counter']}: {what(row)}, for nobody until a rollout brings it")


def send(coordinator: Any, artifact: Path, *, force: bool) -> dict[str, Any]:
    """Send a file to the coordinator, which looks at it.

    Returns:
        ``digest``, ``kind``, ``backbone``, ``file`` and ``force``, for a request that makes a release of it.

    Raises:
        ConfigError: It cannot be read, or is too large.
        EdgeError: The coordinator did not take it.
    """
    data = read_whole(artifact, MAX_SIZE_BYTES, "an artifact")
    asked = {"file": artifact.name, "force": force}
    kept = coordinator.call("POST", "/api/artifacts", content=data, params=asked, timeout=_PROVED_S)
    return {key: kept[key] for key in ("digest", "kind", "backbone")} | asked


@release.command("list")
@_JSON
@click.pass_obj
def list_releases(connect: Any, as_json: bool) -> None:
    """All releases, newest first.

    \b
    edge-fleet release list
    edge-fleet release list --json
    """
    rows = connect().call("GET", "/api/v1/releases")
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        click.echo("nothing has been pushed yet; push a bundle or a head with `edge-fleet push FILE`")
    for row in rows:
        day = time.strftime("%Y-%m-%d", time.localtime(row["created_ms"] / 1000))
        meant = f"{row['model']} {_devices(row)}".strip()
        title = shown(f"{meant}: {_title(row)}", 200)
        say(f"{row['counter']:>5}  {day}  {row['kind']:<6} {short(row['bundle'] or row['digest'])}  {title}")


@release.command()
@click.argument("number", type=click.IntRange(min=1))
@_JSON
@click.pass_obj
def show(connect: Any, number: int, as_json: bool) -> None:
    """What release NUMBER is, what is in it, and where the devices stand that should run it.

    \b
    edge-fleet release show 3
    """
    row = connect().call("GET", f"/api/v1/releases/{number}")
    if as_json:
        click.echo(json.dumps(row, indent=1))
        return
    say(f"release {row['counter']}: {what(row)} {whom(row)}")
    facts = {
        "name": row["name"],
        "notes": row["notes"],
        "reason": row["reason"],
        "file": row["file"],
        "pushed": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created_ms"] / 1000)),
        "restores": f"release {row['restores']}" if row["restores"] else "",
        "backbone": short(row["backbone"]),
        "file sha256": row["digest"],
        **row["contents"],
    }
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if text:
            say(f"  {name:<11} {shown(text, 500)}")
    for each in row["rollouts"]:
        say(line_of(each))
    if not row["standing"]:
        click.echo("no device should run it now")
    for each in row["standing"]:
        detail = f" ({shown(each['detail'], 500)})" if each["detail"] else ""
        say(f"{each['device']} {shown(each['model'])}: {shown(each['state'])}{detail}")


@release.command()
@click.argument("one", type=click.IntRange(min=1))
@click.argument("other", type=click.IntRange(min=1))
@_JSON
@click.pass_obj
def diff(connect: Any, one: int, other: int, as_json: bool) -> None:
    """What differs between release ONE and OTHER: whom they are for, what they hold, how far their heads lie apart.

    \b
    edge-fleet release diff 2 3
    """
    found = connect().call("GET", f"/api/v1/releases/{one}/difference/{other}")
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    click.echo(f"release {one} and {other} have {'the same' if found['same_bytes'] else 'other'} bytes")
    for name, (before, after) in found["changed"].items():
        say(f"  {name:<11} {_value(name, before)} -> {_value(name, after)}")
    for name, moved in found["parameters"].items():
        how = "only in one of them, or of another shape"
        if moved is not None:
            how = f"moved by {f'{100 * moved:,.0f}' if moved >= 1 else f'{100 * moved:.3g}'} %"
        say(f"  {shown(name):<11} {how}")


@release.command()
@click.argument("number", type=click.IntRange(min=1))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="[default: the name that the file had]")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@_JSON
@click.pass_obj
def download(connect: Any, number: int, output: Path | None, force: bool, as_json: bool) -> None:
    """Fetch the file of release NUMBER, proved by its digest.

    \b
    edge-fleet release download 2 -o before.edge
    """
    coordinator = connect()
    row = coordinator.call("GET", f"/api/v1/releases/{number}")
    suffix = ".edge" if row["kind"] == "bundle" else ".safetensors"
    output = output or Path(Path(row["file"]).name or f"release-{number}{suffix}")
    if output.exists() and not force:
        raise ConfigError(f"{output} exists; give another name with -o, or --force")
    data = coordinator.fetch(f"/api/v1/releases/{number}/artifact")
    if sha256(data) != row["digest"]:
        raise BundleError(f"release {number}: what came is not {short(row['digest'])}; fetch it again")
    try:
        with replace_file(output) as file:
            file.write(data)
    except OSError as exc:
        raise ConfigError(f"{output} cannot be written: {exc.strerror}") from exc
    if as_json:
        click.echo(json.dumps({"file": str(output), "digest": row["digest"], "size_bytes": len(data)}))
    else:
        say(f"{output}: {what(row)}, {len(data)} bytes")


@click.command()
@click.option("--to", type=click.IntRange(min=1), help="The release whose bytes to have again.  [default: the last]")
@click.option(
    "--model",
    default="",
    show_default=False,
    help="Undo the newest release of this model.  [default: the newest of all]",
)
@click.option("--reason", default="", show_default=False, help="Kept with the release.")
@click.option("--force", is_flag=True, help="Also to what was judged worse, went through no rollout or was taken back.")
@click.option("--plan", "only_plan", is_flag=True, help="Only say what it would do.")
@_JSON
@click.pass_obj
def rollback(
    connect: Any, to: int | None, model: str, reason: str, force: bool, only_plan: bool, as_json: bool
) -> None:
    """Push the bytes of an earlier release again, under a new number, to those that the newest one is for.

    To all of them at once, and who they are is said first. Without --to it is the release before; going back twice goes
    back further. After a revert they are all that ran what was there before that rollout.

    \b
    edge-fleet rollback --plan
    edge-fleet rollback
    edge-fleet rollback --to 2 --reason "doors are not seen any more"
    edge-fleet rollback --model voice
    """
    coordinator = connect()
    asked = {"to": to or 0, "model": model, "force": force}
    if only_plan or not as_json:
        found = coordinator.call("GET", "/api/v1/rollback", params=asked)
        if as_json:
            click.echo(json.dumps(found, indent=1))
        else:
            undone, wanted = (
                f"release {each['counter']} ({_title(each)})" for each in (found["undone"], found["wanted"])
            )
            say(f"back from {undone} to {wanted}, at once, {_reached(found['devices'])}")
        if only_plan:
            return
    row = coordinator.call("POST", "/api/v1/rollback", json=asked | {"reason": reason})
    if as_json:
        click.echo(json.dumps(row, indent=1))
        return
    say(f"release {row['counter']}: {what(row)} {whom(row)}, the {row['kind']} of release {row['restores']} again")
    say_if_paused(coordinator)


def what(row: dict[str, Any]) -> str:
    """A bundle by the id that it has everywhere, the digest of its manifest; a head by that of its file."""
    return f"{row['kind']} {short(row['bundle'] or row['digest'])}"


def say_if_paused(coordinator: Any) -> None:
    """Say that nothing becomes live for now, where that is so."""
    if why := coordinator.call("GET", "/api/v1/paused")["paused"]:
        say(f"the whole fleet is paused ({shown(why, 200)}): nothing becomes live before `edge-fleet resume-all`")


def whom(row: dict[str, Any]) -> str:
    """Which model of whom a release is for."""
    model = f"for the model {row['model']!r} " if row["model"] else ""
    return shown(f"{model}{_devices(row)}", 200)


def _devices(row: dict[str, Any]) -> str:
    if not row["devices"]:
        return "by rollouts"
    return "to all devices" if row["devices"] == ["*"] else f"to {', '.join(row['devices'])}"


def _reached(devices: list[str]) -> str:
    """Whom a rollback reaches, and how many where they are named."""
    if devices == ["*"]:
        return "on all devices, also those to come"
    is_counted = len(devices) > 1 and not any(each.startswith("tag.") for each in devices)
    count = f"{len(devices)} devices: " if is_counted else ""
    return shown(f"on {count}{', '.join(devices)}", 200)


def _title(row: dict[str, Any]) -> str:
    """What people call a release."""
    return shown(row["name"] or row["reason"], 100)


def _value(name: str, value: Any) -> str:
    if value in ("", [], None):
        return "-"
    if name in ("digest", "backbone", "bundle"):
        return short(str(value))
    return shown(", ".join(map(str, value)) if isinstance(value, list) else str(value), 200)
