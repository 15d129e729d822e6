"""``edge-fleet device approve | quarantine | …``, ``enrolment`` and ``broker-config``: who belongs to the fleet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edge.cli.access import JSON, REASON
from edge.cli.devices import stamp
from edge.cli.terminal import device_path, say, shown
from edge.contract.errors import ConfigError
from edge.contract.files import replace_file
from edge.contract.names import DEVICE_SALT


def _tell(found: dict[str, Any], as_json: bool, text: str) -> None:
    click.echo(json.dumps(found, indent=1)) if as_json else say(text)


def _decide(connect: Any, name: str, order: str, reason: str, as_json: bool, **more: Any) -> None:
    found = connect().call("POST", device_path(name, order), json={"reason": reason, **more})
    _tell(found, as_json, f"{name} is {found['admission']}")


@click.command()
@click.argument("name")
@REASON
@JSON
@click.pass_obj
def approve(connect: Any, name: str, reason: str, as_json: bool) -> None:
    """Let device NAME belong to the fleet: it waited for that, or was quarantined.

    \b
    edge-fleet device approve camera-7
    """
    _decide(connect, name, "approve", reason, as_json)


@click.command()
@click.argument("name")
@REASON
@JSON
@click.pass_obj
def quarantine(connect: Any, name: str, reason: str, as_json: bool) -> None:
    """Offer device NAME nothing, merge nothing of it, let it judge nothing.

    It is still heard, and goes on with what it runs, until it is approved.

    \b
    edge-fleet device quarantine camera-7 --reason "stolen?"
    """
    _decide(connect, name, "quarantine", reason, as_json)


@click.command()
@click.argument("name")
@click.option("--forget", is_flag=True, help="Also forget it, see edge-fleet forget.")
@REASON
@JSON
@click.pass_obj
def decommission(connect: Any, name: str, forget: bool, reason: str, as_json: bool) -> None:
    """Device NAME is gone for good.

    Its login at the broker holds no more (give the broker what edge-fleet
    broker-config says then), and the broker forgets what it keeps of it. Later
    merges leave out what it contributed, which is kept for hardware that takes
    its place (edge-fleet device replace), unless --forget.

    \b
    edge-fleet device decommission camera-7 --forget
    """
    _decide(connect, name, "decommission", reason, as_json, forget=forget)


@click.command()
@click.argument("name")
@click.option("--days", default=7.0, type=click.FloatRange(min=0), help="How long the token holds; 0: for ever.")
@REASON
@JSON
@click.pass_obj
def replace(connect: Any, name: str, days: float, reason: str, as_json: bool) -> None:
    """A token by which new hardware takes the place of device NAME: its name, its tags, its part in merges.

    \b
    edge-fleet device replace camera-7
    edge-agent enroll --coordinator https://fleet:8470 --token join_...
    """
    coordinator = connect()
    made = coordinator.call("POST", device_path(name, "replace"), json={"days": days, "reason": reason})
    if coordinator.call("GET", device_path(name))["condition"] == "online":
        warning = (
            f"warning: {name} is online; new hardware that uses the token ends its login, and while both are on "
            f"they push each other off the broker: switch it off first"
        )
        click.echo(warning, err=True)
    _tell_token(made, as_json)


@click.command()
@click.argument("name")
@click.argument("text")
@REASON
@JSON
@click.pass_obj
def note(connect: Any, name: str, text: str, reason: str, as_json: bool) -> None:
    """Write TEXT of device NAME, in place of what was written; the audit log keeps all.

    \b
    edge-fleet device note camera-7 "behind the door, ladder needed"
    """
    found = connect().call("POST", device_path(name, "note"), json={"note": text, "reason": reason})
    _tell(found, as_json, f"{name}: {shown(found['note'], 500)}")


ORDERS = (approve, quarantine, decommission, replace, note)


@click.group()
def enrolment() -> None:
    """Tokens by which devices join the fleet, each with a login at the broker of its own.

    \b
    edge-fleet enrolment new --uses 20 --days 2 --tag site=north
    edge-agent enroll --coordinator https://fleet:8470 --token join_...
    edge-fleet device approve camera-7
    """


@enrolment.command("new")
@click.option("--uses", default=1, type=click.IntRange(1, 1_000_000), help="How many devices may join by it.")
@click.option("--days", default=7.0, type=click.FloatRange(min=0), help="How long it holds; 0: for ever.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="That they get; repeatable.")
@click.option("--approve", "approves", is_flag=True, help="Nobody has to approve them then.")
@REASON
@JSON
@click.pass_obj
def new_enrolment(
    connect: Any, uses: int, days: float, tags: tuple[str, ...], approves: bool, reason: str, as_json: bool
) -> None:
    """Make one, and say it, once.

    \b
    edge-fleet enrolment new --uses 20 --days 2 --tag site=north --approve
    """
    if wrong := [text for text in tags if "=" not in text]:
        raise ConfigError(f"tag {wrong[0]!r}: expected KEY=VALUE")
    body = {"uses": uses, "days": days, "approves": approves, "reason": reason}
    pairs = dict(text.partition("=")[::2] for text in tags)
    _tell_token(connect().call("POST", "/api/v1/enrolments", json=body | {"tags": pairs}), as_json)


def _tell_token(made: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(made, indent=1))
        return
    until = f" until {stamp(made['expires_ms'])}" if made["expires_ms"] else ""
    whom = f"for the place of {made['replaces']}" if made["replaces"] else f"for {made['uses']} devices"
    click.echo(f"enrolment {made['id']} {whom}{until}; the token is shown this once:", err=True)
    click.echo(made["token"])


@enrolment.command("list")
@JSON
@click.pass_obj
def list_enrolments(connect: Any, as_json: bool) -> None:
    """All of them, without the tokens.

    \b
    edge-fleet enrolment list
    """
    rows = connect().call("GET", "/api/v1/enrolments")
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        tags = ", ".join(f"{key}={value}" for key, value in row["tags"].items())
        what = f"in place of {row['replaces']}" if row["replaces"] else "approves" if row["approves"] else "to approve"
        state = f"{row['uses']} left" if row["holds"] else "over"
        say(f"{row['id']:>4}  {state:<10} {what}  {tags}".rstrip())
    if not rows:
        click.echo("no enrolment: devices join by whatever the broker lets in")


@enrolment.command("revoke")
@click.argument("number", type=click.IntRange(min=1))
@REASON
@JSON
@click.pass_obj
def revoke_enrolment(connect: Any, number: int, reason: str, as_json: bool) -> None:
    """Let nobody join by enrolment NUMBER any more; who joined stays.

    \b
    edge-fleet enrolment revoke 2
    """
    row = connect().call("POST", f"/api/v1/enrolments/{number}/revoke", json={"reason": reason})
    _tell(row, as_json, f"enrolment {number} lets nobody in any more")


# Of earlier versions, in a password file.
_MARK = "# devices, written by edge-fleet broker-config"


@click.command("broker-config")
@click.argument("broker", type=click.Choice(["mosquitto", "rabbitmq"]))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Folder, or file of RabbitMQ.  [default: print]")
@click.option("--login", default="coordinator", help="Name by which the coordinator logs in there.")
@click.option(
    "--folder", default="", show_default=False, help="Where the files will lie at the broker.  [default: --output]"
)
@JSON
@click.pass_obj
def broker_config(connect: Any, broker: str, output: Path | None, login: str, folder: str, as_json: bool) -> None:
    """What the broker must be told, so that a device can publish as itself only.

    Of mosquitto the access rules, a password file and lines for its
    configuration; again after devices joined by password or were
    decommissioned, and then: kill -HUP. With certificates only the list of
    revoked ones changes. The password of the coordinator is yours:
    mosquitto_passwd -b passwords coordinator PASSWORD.

    \b
    edge-fleet broker-config mosquitto -o /etc/mosquitto/edgeloop
    edge-fleet broker-config rabbitmq -o definitions.json
    """
    asked = {"login": login, "folder": folder or str(output.absolute() if output else "/etc/mosquitto/edgeloop")}
    found = connect().call("GET", f"/api/v1/broker-config/{broker}", params=asked)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    former = found.pop("former", "").split()
    files = {"definitions.json": json.dumps(found, indent=1) + "\n"} if broker == "rabbitmq" else found
    if output is None:
        for name, text in files.items():
            click.echo(f"# --- {name}\n{text}" if len(files) > 1 else text)
        return
    for name, text in files.items():
        path = output if broker == "rabbitmq" else output / name
        whole = _with_others(path, text, former, login) if name == "passwords" else text
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(path) as file:
                file.write(whole.encode())
        except OSError as exc:
            raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc
        click.echo(str(path))


def _with_others(path: Path, text: str, former: list[str], login: str) -> str:
    """A password file with the lines that are there and are not of devices.

    Those of devices are known by their salt, of earlier versions by their names, and have no mark about them:
    mosquitto_passwd deletes what comes behind a line that is no login, and puts new logins last. Behind the mark of
    earlier versions all are of devices.
    """
    devices = {*former, *(line.partition(":")[0] for line in text.splitlines())}
    own: list[str] = []
    is_behind = False
    for line in path.read_text().splitlines() if path.exists() else ():
        user, _, proof = line.partition(":")
        is_behind |= line == _MARK
        is_device = user in devices or f"${DEVICE_SALT}" in proof or (is_behind and user != login)
        if line and not is_device:
            own.append(line)
    return "".join(f"{line}\n" for line in own) + text
