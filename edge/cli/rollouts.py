"""``edge-fleet rollout``: how releases go out in waves, and what people decide about it."""

from __future__ import annotations

import getpass
import json
import time
import tomllib
from pathlib import Path
from typing import Any, Protocol

import click

from edge.cli.devices import age, named
from edge.cli.terminal import read_whole, shown
from edge.contract.errors import ConfigError, HeldError, RolloutError, WaitError

_MAX_PLAN_BYTES = 16 * 1024
_SHORT = ("id", "release", "kind", "state", "wave", "waves", "devices", "reason", "version")
# States of a device in a rollout that wait for a person.
_FAILURES = ("refused", "failed", "rolled-back", "timed-out")
# That it waits for the device in.
_WAITED = ("offered", "staged", "probation", "reverting")
# States of a rollout that only a person, or nobody, leads out of.
_STOPPED = ("paused", "aborted", "reverted", "superseded")


class Calls(Protocol):
    """The coordinator's HTTP API."""

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Make a request."""


def who() -> str:
    """Who sits here, as the machine knows it: for the record, and proved by nothing."""
    try:
        return getpass.getuser()[:100]
    except (OSError, KeyError, ImportError):
        return ""


def read_plan(path: Path) -> dict[str, Any]:
    """A plan as its file says it; the coordinator looks at what it means.

    Raises:
        ConfigError: It cannot be read, or is no TOML.
    """
    data = read_whole(path, _MAX_PLAN_BYTES, "a plan")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"{path} is no TOML: {exc}") from exc


@click.group("rollout")
def rollout() -> None:
    """How releases go out in waves: plan, start, watch, pause, go back.

    \b
    edge-fleet rollout plan p.toml          who, bytes, and what gates will see
    edge-fleet rollout start p.toml
    edge-fleet rollout status 12 --wait 600
    edge-fleet rollout resume 12 --reason "looked at it"
    """


_PLAN = click.argument("plan", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")
_REASON = click.option("--reason", default="", show_default=False, help="Kept with it.")


@rollout.command()
@_PLAN
@_JSON
@click.pass_obj
def plan(connect: Any, plan: Path, as_json: bool) -> None:
    """What the PLAN (TOML) would do: who, how many bytes, how long, and what gates can see. Changes nothing.

    \b
    edge-fleet rollout plan p.toml
    """
    found = connect().call("POST", "/api/v1/plan", json={"plan": read_plan(plan)})
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    click.echo(f"release {found['release']} ({found['kind']}) to {found['devices']} devices, {_size(found['bytes'])}")
    _say_judged(found)
    if needed := found["plan"]["start"]["judges"]:
        click.echo(f"it begins when {needed} devices found its head no worse; {found['agree']} agree to judge one")
    for number, wave in enumerate(found["waves"], 1):
        soak = f", then at least {_time(wave['soak_s'])}" if wave["soak_s"] else ""
        lasts = f" in {_time(wave['fetch_s'])} at least" if wave["fetch_s"] >= 1 else ""
        click.echo(
            f"wave {number}: {wave['devices']} devices ({wave['cumulative']} in all), {_size(wave['bytes'])}{lasts}; "
            f"{_GATES[wave['gate'] if number < len(found['waves']) else 'last']}{soak}"
        )

    _say_window(found["plan"]["window"])
    if found["without_local_time"]:
        names = ", ".join(found["without_local_time"][:5])
        more = f" and {len(found['without_local_time']) - 5} more" if len(found["without_local_time"]) > 5 else ""
        click.echo(f"{names}{more} did not say what their local time is: UTC is taken")


def _say_judged(forecast: dict[str, Any]) -> None:
    if forecast["judged"]:
        click.echo(f"release {forecast['release']} was judged worse: {shown(forecast['judged'], 500)}")


def _say_window(window: str) -> None:
    if window:
        click.echo(f"devices activate {shown(window)} of their own local time, and fetch at any time")


_GATES = {
    "model": "failures and the model are judged",
    "screen": "failures are judged, and the model where it looks worse",
    "none": "failures are judged, the model is not, by plan",
    "last": "failures are judged",
}


@rollout.command()
@_PLAN
@click.option("--supersede", is_flag=True, help="End rollouts that are under way on the same devices.")
@click.option("--wait", default=0.0, type=click.FloatRange(min=0), help="Seconds to wait for its end.")
@_JSON
@click.pass_obj
def start(connect: Any, plan: Path, supersede: bool, wait: float, as_json: bool) -> None:
    """Start a rollout of the PLAN (TOML).

    \b
    edge-fleet rollout start p.toml --wait 600
    """
    coordinator = connect()
    body = {"plan": read_plan(plan), "who": who(), "supersede": supersede}
    found = coordinator.call("POST", "/api/v1/rollouts", json=body)
    if not as_json:
        click.echo(line_of(found))
        say_ended(coordinator, found["release"])
        _say_judged(coordinator.call("POST", "/api/v1/plan", json={"plan": body["plan"]}))
    try:
        if wait:
            wait_for(coordinator, found["id"], wait, quiet=as_json)
    finally:
        if as_json:  # where it stands when nobody waits for it any more
            click.echo(json.dumps(in_short(coordinator, found["id"])))


@rollout.command("list")
@_JSON
@click.pass_obj
def list_all(connect: Any, as_json: bool) -> None:
    """All rollouts, newest first.

    \b
    edge-fleet rollout list --json
    """
    found = connect().call("GET", "/api/v1/rollouts")
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for each in found:
        click.echo(line_of(each))
    if not found:
        click.echo("no rollout yet; `edge-fleet push FILE` makes one")


@rollout.command()
@click.argument("number", metavar="ID", type=int)
@click.option("--wait", default=0.0, type=click.FloatRange(min=0), help="Seconds to wait for its end.")
@_JSON
@click.pass_obj
def status(connect: Any, number: int, wait: float, as_json: bool) -> None:
    """Where rollout ID stands, why, and each device of it.

    With --wait: exit 0 when it is completed, 8 when it stopped, 9 when it is held, 10 when the time is over.

    \b
    edge-fleet rollout status 12 --wait 600
    """
    coordinator = connect()
    if as_json:
        try:
            if wait:
                wait_for(coordinator, number, wait, quiet=True)
        finally:
            click.echo(json.dumps(coordinator.call("GET", f"/api/v1/rollouts/{number}"), indent=1))
        return
    if wait:
        wait_for(coordinator, number, wait)
    found = coordinator.call("GET", f"/api/v1/rollouts/{number}")
    click.echo(line_of(found))
    if found["paused_all"]:
        click.echo(f"the whole fleet is paused ({shown(found['paused_all'], 200)}): `edge-fleet resume-all`")
    if since_ms := found["merge_waits_since_ms"]:
        click.echo(
            f"a merge of what devices learned waits for it since {age(since_ms)}; it goes out when this has ended"
        )
    _say_window(found["plan"]["window"])
    if found["evaluation"] is not None:
        _say_evaluation(found["evaluation"], found["plan"]["start"]["judges"])
    for look in found["looks"]:
        what = f"look {look['number']}" if look["number"] else "screen"
        said = f"{look['decision']} {shown(look['code'])} {shown(look['detail'], 500)}"
        click.echo(f"wave {look['wave'] + 1}, {what}: {said}")
    away = _away(coordinator, found)
    for target in found["targets"]:
        if target["state"] != "waiting":
            click.echo(_line_of_target(target) + away.get(target["device"], ""))
    if waiting := found["counts"].get("waiting", 0):
        click.echo(f"{waiting} devices wait for their wave")


def _say_evaluation(found: dict[str, Any], needed: int) -> None:
    left = f", for {_time(round(found['left_s']))} more" if found["left_s"] else ""
    detail = f": {shown(found['detail'], 500)}" if found["detail"] else ""
    click.echo(f"devices judge its head first, {needed} are needed{left}: {shown(found['state'])}{detail}")
    for judge in found["judges"]:
        click.echo(f"  {judge['device']}: {_said(judge)}")


def _said(judge: dict[str, Any]) -> str:
    inside = ", lent it what it knows" if judge["is_inside"] else ""
    if judge["state"] == "answered":
        only = f"only it was right on {judge['only_new']:g}, only the one before on {judge['only_old']:g}"
        return f"of {judge['labelled']} labels {only}, both on {judge['both']:g}{inside}"
    detail = f" ({shown(judge['detail'], 500)})" if judge["detail"] else ""
    return f"{shown(judge['state'])}{detail}{inside}"


_SEEN = click.option("--if-version", "seen", type=int, help="Only if it has this version, see status --json.")


def _if_match(seen: int | None) -> dict[str, str]:
    return {} if seen is None else {"if-match": f'"{seen}"'}


def _order(name: str, text: str, needs_reason: bool = False) -> None:
    """One command for an order that takes nothing but a reason."""
    example = f'edge-fleet rollout {name} 12 --reason "seen"'

    @rollout.command(name, help=f"{text}\n\n\b\n{example}")
    @click.argument("number", metavar="ID", type=int)
    @(click.option("--reason", required=True, help="Kept with it.") if needs_reason else _REASON)
    @_SEEN
    @_JSON
    @click.pass_obj
    def command(connect: Any, number: int, reason: str, seen: int | None, as_json: bool) -> None:
        body = {"order": name, "who": who(), "reason": reason}
        coordinator = connect()
        found = coordinator.call("POST", f"/api/v1/rollouts/{number}/order", json=body, headers=_if_match(seen))
        click.echo(json.dumps(found) if as_json else line_of(found))
        if name == "resume" and not as_json:
            _say_failures(coordinator.call("GET", f"/api/v1/rollouts/{number}"))
        if name == "abort" and not as_json:
            say_left(coordinator, found, "they stay on it; `edge-fleet rollout revert {id}` takes them back")


def say_left(coordinator: Calls, found: dict[str, Any], what: str) -> None:
    """Which devices run the release of a rollout that was stopped before it was through, and what becomes of them."""
    rows = coordinator.call("GET", "/api/v1/devices")
    names = [named(row, each) for row in rows for each in row["models"] if each["stopped_rollout"] == found["id"]]
    if names:
        said = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        run = "1 device runs" if len(names) == 1 else f"{len(names)} devices run"
        click.echo(f"{run} its release {found['release']} ({said}): {what.format(**found)}")


def say_ended(coordinator: Calls, release: int) -> None:
    """Which rollouts ended because a release took their place, and who runs theirs until it comes."""
    for row in coordinator.call("GET", "/api/v1/rollouts", params={"limit": 100}):
        if row["reason"] == f"release {release} takes its place":
            click.echo(f"it ends rollout {row['id']}, of release {row['release']} to {row['devices']} devices")
            until = f"they stay on it where release {release} does not come to them"
            say_left(coordinator, row, f"{until}; `edge-fleet rollout revert {{id}}` takes those back")


def _say_failures(found: dict[str, Any]) -> None:
    """What failed before a person went on: it stops the rollout no more, and is not mended by that."""
    failed = [target for target in found["targets"] if target["state"] in _FAILURES]
    for target in failed[:20]:
        click.echo(f"stands: {_line_of_target(target)}")
    if failed:
        more = f" ({len(failed) - 20} more)" if len(failed) > 20 else ""
        again = f"`edge-fleet rollout retry {found['id']}` offers it to them again"
        click.echo(f"what failed so far{more} stops it no more; {again}")


_order("pause", "Let no further device activate the release of rollout ID; what is fetched is kept.")
_order("resume", "Go on with rollout ID; from a hold with the next wave. Needs --reason.", needs_reason=True)
_order("retry", "Offer the release of rollout ID again to the devices on which it failed.")
_order("abort", "End rollout ID: nothing more is offered, and what runs the release goes on with it.")
_order("revert", "Bring the older bytes back to all that rollout ID has touched, as a new release.")


@rollout.command()
@click.argument("number", metavar="ID", type=int)
@click.option("--supersede", is_flag=True, help="End rollouts that are under way on the same devices.")
@_REASON
@_SEEN
@_JSON
@click.pass_obj
def approve(connect: Any, number: int, supersede: bool, reason: str, seen: int | None, as_json: bool) -> None:
    """Approve rollout ID, whose plan asks for it (start.approvals); not by its author. With the last one it begins.

    \b
    edge-fleet rollout approve 12 --reason "read the plan"
    """
    body = {"who": who(), "reason": reason, "supersede": supersede}
    found = connect().call("POST", f"/api/v1/rollouts/{number}/approve", json=body, headers=_if_match(seen))
    click.echo(json.dumps(found) if as_json else line_of(found))


@rollout.command()
@click.argument("number", metavar="ID", type=int)
@click.argument("count", type=click.IntRange(min=1))
@_REASON
@_SEEN
@_JSON
@click.pass_obj
def widen(connect: Any, number: int, count: int, reason: str, seen: int | None, as_json: bool) -> None:
    """Give the open wave of rollout ID so many more devices, COUNT of those that come next: more canaries can tell.

    \b
    edge-fleet rollout widen 12 400
    """
    body = {"count": count, "who": who(), "reason": reason}
    found = connect().call("POST", f"/api/v1/rollouts/{number}/widen", json=body, headers=_if_match(seen))
    click.echo(json.dumps(found) if as_json else line_of(found))


@rollout.command()
@click.argument("number", metavar="ID", type=int)
@click.argument("device")
@_REASON
@_SEEN
@_JSON
@click.pass_obj
def exclude(connect: Any, number: int, device: str, reason: str, seen: int | None, as_json: bool) -> None:
    """Take DEVICE out of rollout ID: it goes back, and counts neither way.

    \b
    edge-fleet rollout exclude 12 cam-17 --reason "its lens is broken"
    """
    body = {"device": device, "who": who(), "reason": reason}
    found = connect().call("POST", f"/api/v1/rollouts/{number}/exclude", json=body, headers=_if_match(seen))
    theirs = [target for target in found["targets"] if target["device"] == device]
    if as_json:
        click.echo(json.dumps(theirs, indent=1))
        return
    for target in theirs:
        click.echo(_line_of_target(target))


@click.command("pause-all")
@_REASON
@_JSON
@click.pass_obj
def pause_all(connect: Any, reason: str, as_json: bool) -> None:
    """Let nothing be offered or activated in the whole fleet; no rollout loses its state.

    What goes to all at once (`push --all-at-once`, `rollback`) is fetched by devices and waits until `resume-all`.

    \b
    edge-fleet pause-all --reason "the network is being rebuilt"
    """
    found = connect().call("POST", "/api/v1/paused", json={"paused": True, "who": who(), "reason": reason})
    click.echo(
        json.dumps(found)
        if as_json
        else "the fleet is paused, and pushes to all at once wait, too; `edge-fleet resume-all` lets it go on"
    )


@click.command("resume-all")
@_REASON
@_JSON
@click.pass_obj
def resume_all(connect: Any, reason: str, as_json: bool) -> None:
    """Let the whole fleet go on after pause-all.

    \b
    edge-fleet resume-all
    """
    found = connect().call("POST", "/api/v1/paused", json={"paused": False, "who": who(), "reason": reason})
    click.echo(json.dumps(found) if as_json else "the fleet goes on")


def in_short(coordinator: Calls, number: int) -> dict[str, Any]:
    """A rollout without its devices, as `edge-fleet rollout list --json` has it."""
    found: dict[str, Any] = coordinator.call("GET", f"/api/v1/rollouts/{number}")
    return {key: found[key] for key in _SHORT}


def line_of(found: dict[str, Any]) -> str:
    """A rollout in one line."""
    waves = ", ".join(map(str, found["waves"]))
    wave = f", wave {found['wave']}" if found["wave"] else ""
    reason = f": {shown(found['reason'], 500)}" if found["reason"] else ""
    n = f"{found['devices']} device{'' if found['devices'] == 1 else 's'}"
    what = f"release {found['release']} ({found['kind']}) to {n} in waves of {waves}"
    return f"rollout {found['id']}: {what}; {found['state']}{wave}{reason}"


def _line_of_target(target: dict[str, Any]) -> str:
    detail = f" ({shown(target['detail'], 500)})" if target["detail"] else ""
    pairs = target["pairs"]
    counted = f", {pairs['labelled']:.0f} labelled pairs" if pairs["labelled"] else ""
    return f"{_named(target)}: {shown(target['state'])}{detail}{counted}"


def _away(coordinator: Calls, found: dict[str, Any]) -> dict[str, str]:
    """How devices are that a rollout waits for and that are not online, by name."""
    waited = {target["device"] for target in found["targets"] if target["state"] in _WAITED}
    rows = coordinator.call("GET", "/api/v1/devices") if waited else []
    return {
        row["id"]: f"; {row['condition'].replace('-', ' ')}, heard {age(row['last_seen_ms'])} ago"
        for row in rows
        if row["id"] in waited and row["condition"] != "online"
    }


def _named(target: dict[str, Any]) -> str:
    return f"{target['device']} {shown(target['model'])}" if target.get("of_several") else str(target["device"])


def wait_for(coordinator: Calls, number: int, wait_s: float, *, quiet: bool = False) -> None:
    """Print what becomes of a rollout on each device, until it has ended, or only a person can lead it on.

    Raises:
        RolloutError: It stopped, or is not active on a device.
        HeldError: It is held, or nothing could judge it.
        WaitError: The time is over.
    """
    end, told = time.monotonic() + wait_s, dict[str, str]()
    while True:
        found = coordinator.call("GET", f"/api/v1/rollouts/{number}")
        for target in found["targets"]:
            name, state = f"{target['device']} {target['model']}", str(target["state"])
            if told.get(name) != state and not (state == "waiting" and len(found["targets"]) > 20) and not quiet:
                click.echo(_line_of_target(target))
            told[name] = state
        if _is_over(found):
            return
        if time.monotonic() >= end:
            break
        time.sleep(min(0.5, max(0.05, end - time.monotonic())))
    counts = ", ".join(f"{count} {shown(state)}" for state, count in sorted(found["counts"].items()))
    away = [f"{name}{how}" for name, how in _away(coordinator, found).items()]
    counts += (
        f"; not online: {', '.join(away[:5])}{f' and {len(away) - 5} more' if len(away) > 5 else ''}" if away else ""
    )
    raise WaitError(
        f"rollout {number} of release {found['release']} did not settle within {wait_s:.0f} s: it is {found['state']}; "
        f"{counts}; `edge-fleet rollout status {number} --wait {wait_s:.0f}` waits again"
    )


def _is_over(found: dict[str, Any]) -> bool:
    number, state = found["id"], found["state"]
    named = f"rollout {number} of release {found['release']}"
    if state == "held":
        raise HeldError(
            f"{named} is held: {shown(found['reason'], 500)}; look at it, then `edge-fleet rollout resume {number} "
            f"--reason ...`, abort or revert"
        )
    if state == "draft" and (found["evaluation"] or {}).get("state") == "unjudged":
        raise HeldError(
            f"{named} waits for devices that judge its head: {shown(found['reason'], 500)}; look at it, then "
            f"`edge-fleet rollout resume {number} --reason ...` or abort"
        )
    if state in _STOPPED:
        why = shown(found["reason"], 500) or "a person asked for it"
        raise RolloutError(f"{named} is {state}: {why}; `edge-fleet rollout status {number}` shows where it stands")
    if state != "completed":
        return False
    bad = [t for t in found["targets"] if t["state"] not in ("active", "excluded", "absent")]
    if any(t["state"] in ("waiting", "offered", "staged", "probation") for t in bad):
        return False
    if bad:
        said = ", ".join(f"{_named(t)} ({shown(t['state'])})" for t in bad[:20])
        raise RolloutError(f"{named} is not active on {said}")
    absent = [t for t in found["targets"] if t["state"] == "absent"]
    if absent and len(absent) == len(found["targets"]):
        raise WaitError(f"{named}: none of its {len(absent)} devices was heard for a day")
    unjudged = [t for t in found["targets"] if t["state"] == "active" and not t["judged"]]
    if unjudged and found["kind"] == "head":  # a bundle whose golden outputs are right may wait for its first sample
        said = ", ".join(_named(t) for t in unjudged[:20])
        raise HeldError(f"{named} runs and is not judged on {said}: {shown(unjudged[0]['detail'], 300)}")
    return True


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"


def _time(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:g} s"
