"""``edge-fleet device``, ``metrics`` and ``events``: one device, what it measured, and what happened."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from edge.channel.topics import check_id
from edge.cli.terminal import UNITS_S, device_path, say, seconds, shown, under
from edge.contract.digest import short
from edge.contract.errors import ChannelError, ConfigError, RolloutError

_JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")
_JSON_LINES = click.option("--json", "as_json", is_flag=True, help="For programs: one object a line.")
_FOLLOW_S = 1.0
# Rows of a list that is asked for by how far back it goes.
MOST = 100_000
_ACCESS = {"open": "open to whoever is on its machine", "tokens": "by tokens"}


def _since(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A span of time until now, such as ``2h``, in milliseconds since 1970."""
    if value is None:
        return None
    try:
        return max(0, int(1000 * (time.time() - seconds(value, "AGE"))))
    except ConfigError as exc:
        raise click.BadParameter(str(exc), ctx=context, param=parameter) from exc


since_option = click.option(
    "--since", metavar="AGE", callback=_since, help="How far back: 90min, 12h, 30d.  [default: the newest 100]"
)


@click.command()
@_JSON
@click.pass_obj
def status(connect: Any, as_json: bool) -> None:
    """Whether the coordinator is there, hears its devices, is heard by them and has room; ends with 1 where not.

    \b
    edge-fleet status
    """
    coordinator = connect()
    found = coordinator.call("GET", "/api/v1/status")
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        signed = "signed" if found["signed"] else "not signed"
        say(f"fleet {found['fleet']}, version {found['version']}, releases {signed}, access {_ACCESS[found['access']]}")
        since = f" since {stamp(found['since_ms'])}" if found["since_ms"] else ""
        stands = "connected" if found["connected"] else "not connected"
        say(f"broker: {stands}{since}" + (f", {found['broker']}" if found["broker"] else ""))
        for trouble in found["troubles"]:
            say(f"trouble: {trouble}")
        if why := coordinator.call("GET", "/api/v1/paused")["paused"]:
            say(f"the whole fleet is paused ({shown(why, 200)}): `edge-fleet resume-all`")
    if found["troubles"] or not found["hears"]:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("name")
@_JSON
@click.pass_obj
def show(connect: Any, name: str, as_json: bool) -> None:
    """All that is known of device NAME: what it runs and should run, where it stands and why, what happened last.

    \b
    edge-fleet device show camera-1
    """
    coordinator = connect()
    row = coordinator.call("GET", device_path(name))
    row["wanted"] = coordinator.call("GET", device_path(name, "wanted"))
    row["events"] = coordinator.call("GET", "/api/v1/events", params={"device": name, "limit": 10})
    if as_json:
        click.echo(json.dumps(row, indent=1))
        return
    heard = f"heard {age(row['last_seen_ms'])} ago, first {stamp(row['first_seen_ms'])}"
    if row["condition"] == "unknown":  # somebody enrolled it, or it said something before it said what it is
        row["condition"], heard = "not introduced yet", f"known since {stamp(row['first_seen_ms'])}"
    stands = "" if row["admission"] == "approved" else f"{row['admission']}, "
    say(f"{name}: {stands}{row['condition'].replace('-', ' ')}, {heard}")
    facts = {
        "profile": row["profile"],
        "agent": row["agent_version"],
        "boot": row["boot"],
        "state id": row["state_id"] + (f", set up anew under this name: {row['epoch']}" if row["epoch"] else ""),
        "login": row["login"] + (f" until {stamp(row['login_expires_ms'])}" if row["login_expires_ms"] else ""),
        "note": row["note"],
        "hardware": ", ".join(f"{key} {value}" for key, value in row["hardware"].items()),
        "tags": ", ".join(f"{key}={value}" for key, value in row["tags"].items()),
    }
    for key, value in facts.items():
        if value not in ("", None):
            say(f"  {key:<10} {shown(str(value), 500)}")
    if row["admission"] in ("pending", "quarantined"):
        why = coordinator.call("GET", "/api/v1/events", params={"device": name, "kind": row["admission"], "limit": 1})
        for event in why:
            say(f"  {row['admission']} since {stamp(event['at_ms'])} {shown(event['detail'], 500)}")
        say(f"  it is offered nothing and nothing of it is merged until `edge-fleet device approve {name}`")
    if not row["born"]:
        click.echo("  it has not said yet what it runs; it is asked each time it says something")
    wanted = {each["model"]: each for each in row["wanted"]}
    for model in row["models"]:
        say(f"  model {shown(model['model'])}, {model['samples']} labels")
        head = f"head with most say {short(model['head'])}"
        say(f"    runs     bundle {short(model['bundle'])}, {head}, release {model['release']}")
        if (each := wanted.get(model["model"])) is not None:
            done = "it has dealt with it" if each["is_dealt_with"] else "it has not dealt with it"
            say(f"    should   release {each['release']} {shown(each['name'])}".rstrip() + f", {done}")
        if model["state"]:
            why = f": {shown(model['state_detail'], 500)}" if model["state_detail"] else ""
            say(f"    stands   release {model['state_release']} {shown(model['state'])}{why}")
    for event in row["events"][::-1]:
        say(line_of(event))


@click.command()
@click.argument("device")
@click.argument("key")
@click.option("--since", metavar="AGE", callback=_since, default="1h", help="How far back: 90min, 12h, 30d.")
@click.option("--step", type=click.Choice(["auto", "message", "minute", "hour"]), default="auto", help="Summed by.")
@click.option("--model", help="Of this model only, where the device has several.  [default: all, one after the other]")
@_JSON
@click.pass_obj
def metrics(connect: Any, device: str, key: str, since: int, step: str, model: str | None, as_json: bool) -> None:
    """What DEVICE measured of KEY, such as acc, lat_p99_ms or temp_c: mean, least and largest.

    Messages are kept for 7 days, sums by the minute for 90 days and by the hour for two years.

    \b
    edge-fleet metrics camera-1 acc --since 12h
    edge-fleet metrics camera-1 temp_c --since 30d --step hour --json
    edge-fleet metrics camera-1 lat_p99_ms --model voice
    """
    if step == "auto":
        age_s = time.time() - since / 1000
        step = "message" if age_s < 2 * 3600 else "minute" if age_s < 3 * 86_400 else "hour"
    found = connect().call(
        "GET", under("/api/v1/metrics", check_id(device, "device"), key), params={"since": since, "step": step}
    )
    if model is not None:
        models = sorted({each["model"] for each in found["points"]})
        found["points"] = [each for each in found["points"] if each["model"] == model]
        if models and not found["points"]:
            raise RolloutError(
                f"{device} has no {key} of {shown(model)} in that time; of {', '.join(map(shown, models))}"
            )
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    points = found["points"]
    if not points:
        keys = ", ".join(shown(each) for each in found["keys"])
        what = key if model is None else f"{key} of {shown(model)}"
        raise RolloutError(f"{device} measured no {what} in that time; lately it measured {keys or 'nothing'}")
    widest = max(len(shown(each["model"])) for each in points)
    for each in points:
        of = f"  {shown(each['model']):{widest}}" if widest else ""
        values = f"{each['mean']:>10.4g}"
        if each["n"] > 1:
            values += f"  {each['min']:.4g} to {each['max']:.4g} of {each['n']}"
        say(f"{stamp(each['ts_ms'])}{of}  {values}")


@click.command()
@click.option("--device", help="Of one device; coordinator: its own.")
@click.option("--kind", default="", show_default=False, help="Of one kind, such as drift or release.")
@since_option
@click.option("--follow", is_flag=True, help="Go on with what happens from now on; Ctrl-C ends.")
@click.option("--seconds", type=click.FloatRange(min=0), help="With --follow: stop after that long.  [default: never]")
@_JSON_LINES
@click.pass_obj
def events(
    connect: Any, device: str | None, kind: str, since: int | None, follow: bool, seconds: float | None, as_json: bool
) -> None:
    """What happened lately, newest last.

    \b
    edge-fleet events --device camera-1 --since 2h
    edge-fleet events --follow --kind drift
    """
    if seconds is not None and not follow:
        raise ConfigError("--seconds needs --follow")
    coordinator = connect()
    asked: dict[str, Any] = {"kind": kind, "since": since or 0}
    most = 100 if since is None else MOST
    if device is not None:
        asked["device"] = "" if device == "coordinator" else device
    if asked.get("device"):  # that a name is not known is said, unless something was told of it all the same
        name = asked["device"].replace("\\", "\\\\").replace('"', '\\"')
        known = coordinator.call("GET", "/api/v1/devices", params={"q": f'id = "{name}"', "limit": 1})
        if not known and not coordinator.call("GET", "/api/v1/events", params={"device": asked["device"], "limit": 1}):
            raise RolloutError(f"unknown device {shown(asked['device'], 80)}; `edge-fleet devices` lists them")
    end = time.monotonic() + (seconds if seconds is not None else float("inf"))
    last, has_answered, is_told = 0, False, False
    try:
        while True:
            try:
                rows = coordinator.pages("/api/v1/events", {**asked, "after": last}, most)[::-1]
                has_answered, is_told = True, False
            except ChannelError as exc:  # it may be restarting
                if not has_answered or time.monotonic() >= end:
                    raise
                if not is_told:
                    click.echo(f"edge-fleet: {exc}; asking again", err=True)
                rows, is_told = [], True
            for row in rows:
                last = max(last, row["id"])
                if as_json:
                    click.echo(json.dumps(row))
                else:
                    say(line_of(row))
            if not follow or time.monotonic() >= end:
                return
            most = MOST
            time.sleep(min(_FOLLOW_S, max(0.0, end - time.monotonic())))
    except KeyboardInterrupt:
        pass


def line_of(event: dict[str, Any]) -> str:
    """An event, for people."""
    whose = (event["device"] or "coordinator") + (f" {shown(event['model'])}" if event["model"] else "")
    what = f"{shown(event['name']):<22} {shown(event['detail'], 500)}"
    return f"{stamp(event['at_ms'])}  {whose:<16} {what}"


def stamp(ms: int) -> str:
    """A time, here."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000))


def age(ms: int) -> str:
    """How long ago that was."""
    seconds = max(0.0, time.time() - ms / 1000)
    size, unit = next(((s, u) for u, s in reversed(UNITS_S.items()) if seconds >= 2 * s), (1, "s"))
    return f"{seconds / size:.0f} {unit}"


def named(device: dict[str, Any], model: dict[str, Any]) -> str:
    """A device, and which model of several."""
    return f"{device['id']} {shown(model['model'])}" if len(device["models"]) > 1 else str(device["id"])
