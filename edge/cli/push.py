"""``edge-fleet push``: a release and a rollout with the default plan, or everybody at once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from edge.cli import rollouts
from edge.cli.devices import named
from edge.cli.releases import say_if_paused, send, what, whom
from edge.cli.terminal import say, shown
from edge.contract.errors import RolloutError, WaitError


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--device", "names", multiple=True, help="Only this one, or tag.KEY=VALUE; repeatable.  [default: all]")
@click.option(
    "--model",
    default="",
    show_default=False,
    help="The model that it is for.  [default: the bundle's; for a head all it fits]",
)
@click.option("--reason", default="pushed by hand", help="Kept with the release.")
@click.option("--name", default="", show_default=False, help="Of the release, for `edge-fleet release list`.")
@click.option("--notes", default="", show_default=False, help="What people should know of it.")
@click.option(
    "--force", is_flag=True, help="Also what fails its golden samples, is unlike what runs, or was judged worse."
)
@click.option("--json", "as_json", is_flag=True, help="For programs: the release and its rollout.")
@click.option("--wait", default=0.0, type=click.FloatRange(min=0), help="Seconds to wait for its end.")
@click.option("--all-at-once", is_flag=True, help="To all devices now: no waves, no gates.")
@click.pass_obj
def push(
    connect: Any,
    artifact: Path,
    names: tuple[str, ...],
    model: str,
    reason: str,
    name: str,
    notes: str,
    force: bool,
    as_json: bool,
    wait: float,
    all_at_once: bool,
) -> None:
    """Push ARTIFACT, a bundle (.edge) or a head (.safetensors), to the fleet: a rollout with the default plan.

    It goes out in waves, and stops where devices fail or the model looks worse; `edge-fleet rollout status` tells. What
    was on its way to the same devices is overtaken. A bundle is for the model of its name; where no device has one of
    that name, for the only one that there is. The coordinator tries it first: it must open, give its golden outputs,
    and be like what it takes the place of.

    With --wait: exit 0 when it is active everywhere, 8 when it stopped, 9 when it is held or nothing could judge it, 10
    when the time is over.

    \b
    edge-fleet push next.edge --name spring --wait 60
    edge-fleet push head.safetensors --device camera-1 --device tag.site=north
    """
    coordinator = connect()
    body = send(coordinator, artifact, force=force)
    body |= {"model": model, "devices": list(dict.fromkeys(names)), "reason": reason, "name": name, "notes": notes}
    if all_at_once:
        release, rollout = coordinator.call("POST", "/api/releases", json=body), None
    else:
        found = coordinator.call("POST", "/api/v1/push", json=body | {"who": rollouts.who()})
        release, rollout = found["release"], found["rollout"]
    is_signed = bool(coordinator.call("GET", "/api/health")["signed"])
    if not as_json:
        meant = release | {"devices": body["devices"] or ["*"]}
        say(f"release {release['counter']}: {what(release)} {whom(meant)}")
        if not is_signed:
            say("unsigned: this fleet has no keys, so devices believe whoever may publish to them; edge-fleet keys -h")
        if rollout is not None:
            say(f"with the default plan, {rollouts.line_of(rollout)}")
        rollouts.say_ended(coordinator, release["counter"])
        _say_outside(coordinator, set(names))
        say_if_paused(coordinator)
    try:
        if wait and rollout is not None:
            rollouts.wait_for(coordinator, rollout["id"], wait, quiet=as_json)
        elif wait:
            wait_for(coordinator, release, set(names), wait, quiet=as_json)
    finally:
        if as_json:  # where it stands when nobody waits for it any more
            now = rollout and rollouts.in_short(coordinator, rollout["id"])
            click.echo(json.dumps(release | {"signed": is_signed, "rollout": now}, indent=1))


def _say_outside(coordinator: rollouts.Calls, names: set[str]) -> None:
    """Which of those that it is for are sent nothing, because they are not approved."""
    for row in coordinator.call("GET", "/api/v1/devices"):
        if row["admission"] in ("pending", "quarantined") and _is_meant(row, names):
            say(f"{row['id']} is {row['admission']}: it is sent nothing until `edge-fleet device approve {row['id']}`")


def _is_meant(row: dict[str, Any], names: set[str]) -> bool:
    tags = {f"tag.{key}={value}" for key, value in row.get("tags", {}).items()}
    return not names or row["id"] in names or bool(tags & names)


def _targets(coordinator: rollouts.Calls, release: dict[str, Any], names: set[str]) -> dict[str, dict[str, Any]]:
    """By device, and model where it has several, where those stand that a release is for."""
    found = {}
    for row in coordinator.call("GET", "/api/devices"):
        for model in row["models"] or [row]:
            is_other = release["kind"] == "head" and model["backbone"] not in ("", release["backbone"])
            if release["model"] in ("", model["model"]) and not is_other and _is_meant(row, names):
                found[named(row, model)] = model
    return found


_SETTLED = ("active", "held", "refused", "failed", "rolled-back")


def wait_for(
    coordinator: rollouts.Calls, release: dict[str, Any], names: set[str], wait_s: float, *, quiet: bool = False
) -> None:
    """Print what becomes of a release on each device, until all have settled.

    A head that a device runs and has nothing to judge it by has settled, too: it stays on probation. It is not active.

    Raises:
        RolloutError: It is not active on a device.
        WaitError: The time is over.
    """
    end = time.monotonic() + wait_s
    counter, told = release["counter"], dict[str, str]()
    while time.monotonic() < end:
        rows = _targets(coordinator, release, names)
        for name, row in rows.items():
            state = row["state"] if row["state_release"] == counter else "waiting"
            if told.get(name) != state:
                told[name] = state
                detail = f" ({shown(row['state_detail'], 500)})" if state != "waiting" else ""
                if not quiet:
                    click.echo(f"{name}: {shown(state)}{detail}")
        unjudged = {name for name, row in rows.items() if _is_unjudged(row, counter)}
        if rows and all(told[name] in _SETTLED or name in unjudged for name in rows):
            bad = [
                f"{name} ({'runs it, not judged' if name in unjudged else shown(told[name])})"
                for name in rows
                if told[name] != "active"
            ]
            if bad:
                raise RolloutError(f"release {counter} is not active on {', '.join(bad)}")
            return
        time.sleep(0.5)
    states = ", ".join(f"{name} ({shown(state)})" for name, state in told.items() if state != "active")
    raise WaitError(
        f"release {counter} did not settle within {wait_s:.0f} s: {states or 'no device that it is for has been seen'}"
    )


def _is_unjudged(row: dict[str, Any], counter: int) -> bool:
    """Whether the time of its probation is over, and nothing that came in it could tell."""
    is_on_trial = row["state_release"] == counter and row["state"] == "probation"
    return is_on_trial and str(row["state_detail"]).startswith("not judged")
