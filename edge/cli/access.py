"""``edge-fleet token`` and ``edge-fleet audit``: who may ask for what, and who asked for what and why."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from edge.cli.devices import MOST, since_option, stamp
from edge.cli.terminal import say, shown

JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")
REASON = click.option("--reason", default="", show_default=False, help="Kept in the audit log.")
# What a request asks for by a word, and not by its address.
_DECIDES = ("order", "paused", "label", "role", "forget")
_ROLES = click.Choice(["viewer", "operator", "admin"])


@click.group()
def token() -> None:
    """Tokens of people and programs that use this coordinator; for admins.

    A viewer reads and plans, an operator acts on devices and rollouts, an
    admin makes tokens and reads the audit log. The first token is made on the
    coordinator's machine: edge-coordinator token NAME.

    \b
    edge-fleet token new kim --role operator --days 90
    edge-fleet token list
    edge-fleet token revoke 3
    """


@token.command()
@click.argument("name")
@click.option("--role", type=_ROLES, default="viewer", help="What it may do.")
@click.option("--days", default=0.0, type=click.FloatRange(min=0), help="How long it holds; 0: for ever.")
@REASON
@JSON
@click.pass_obj
def new(connect: Any, name: str, role: str, days: float, reason: str, as_json: bool) -> None:
    """Make a token for NAME and say it, once.

    \b
    edge-fleet token new kim --role operator --days 90
    """
    body = {"name": name, "role": role, "days": days, "reason": reason}
    tell_token(connect().call("POST", "/api/v1/tokens", json=body), as_json)


def tell_token(made: dict[str, Any], as_json: bool) -> None:
    """Say a new token: itself alone on standard output, so that a program can take it."""
    if as_json:
        click.echo(json.dumps(made, indent=1))
        return
    until = f" until {stamp(made['expires_ms'])}" if made["expires_ms"] else ""
    name = shown(made["name"])
    click.echo(f"token {made['id']} of {name}, {made['role']}{until}; it is shown this once:", err=True)
    click.echo(made["token"])


@token.command("list")
@JSON
@click.pass_obj
def list_tokens(connect: Any, as_json: bool) -> None:
    """All tokens, without what is secret of them.

    \b
    edge-fleet token list
    """
    rows = connect().call("GET", "/api/v1/tokens")
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        holds = f"until {stamp(row['expires_ms'])}" if row["expires_ms"] else "for ever"
        if row["revoked_ms"]:
            holds = f"revoked {stamp(row['revoked_ms'])}"
        elif row["expires_ms"] and row["expires_ms"] <= 1000 * time.time():
            holds = f"expired {stamp(row['expires_ms'])}"
        say(f"{row['id']:>4}  {shown(row['name']):<20} {row['role']:<9} {holds}")
    if not rows:
        click.echo("no token: whoever reaches this coordinator may do everything")


@token.command()
@click.argument("number", type=click.IntRange(min=1))
@REASON
@JSON
@click.pass_obj
def revoke(connect: Any, number: int, reason: str, as_json: bool) -> None:
    """Believe token NUMBER no more, from now on.

    \b
    edge-fleet token revoke 3 --reason "left the company"
    """
    row = connect().call("POST", f"/api/v1/tokens/{number}/revoke", json={"reason": reason})
    click.echo(json.dumps(row, indent=1)) if as_json else say(f"token {number} of {row['name']} holds no more")


@click.command()
@click.option("--who", default="", show_default=False, help="By one person or program.")
@click.option("--about", "subject", default="", show_default=False, help="About a device, rollout, release or token.")
@since_option
@click.option(
    "--limit", type=click.IntRange(1, MOST), help="So many at most, the newest.  [default: 100 without --since]"
)
@click.option("--json", "as_json", is_flag=True, help="For programs: one object a line.")
@click.pass_obj
def audit(connect: Any, who: str, subject: str, since: int | None, limit: int | None, as_json: bool) -> None:
    """Who asked for what and why, and what became of it, newest last.

    \b
    edge-fleet audit --since 7d
    edge-fleet audit --who kim --about camera-1 --json
    """
    asked = {"who": who, "subject": subject, "since": since or 0}
    most = limit or (100 if since is None else MOST)
    for row in connect().pages("/api/v1/audit", asked, most)[::-1]:
        if as_json:
            click.echo(json.dumps(row))
            continue
        about = f" {shown(row['subject'])}" if row["subject"] else ""
        why = f", because {shown(row['reason'], 300)}" if row["reason"] else ""
        name = shown(row["who"]) or "somebody"
        outcome = shown(row["outcome"], 300) or "begun"
        say(f"{stamp(row['at_ms'])}  {name:<12} {row['action']}{about}{_decided(row['detail'])}: {outcome}{why}")


def _decided(detail: str) -> str:
    """Of what was asked that without which one does not know which way it went."""
    try:
        asked = json.loads(detail)
    except ValueError:  # it was cut
        return ""
    found = [f"{key} {json.dumps(asked[key], ensure_ascii=False)}" for key in _DECIDES if asked.get(key) is not None]
    return f" ({shown(', '.join(found), 200)})" if found else ""
