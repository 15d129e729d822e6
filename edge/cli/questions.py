"""``edge-fleet question``: labels that would help several devices, and what a person says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edge.cli.access import JSON, REASON
from edge.cli.devices import stamp
from edge.cli.terminal import say, shown
from edge.contract.errors import ConfigError
from edge.contract.files import replace_file


@click.group()
def question() -> None:
    """Labels that would help several devices at once.

    They are asked for where the coordinator runs with --ask-labels and devices
    with --fleet-labels.

    \b
    edge-fleet question list
    edge-fleet question answer 3 scratch
    """


@question.command("list")
@click.option("--limit", default=20, type=click.IntRange(1, 1000), help="So many at most, the newest.")
@JSON
@click.pass_obj
def list_questions(connect: Any, limit: int, as_json: bool) -> None:
    """The newest questions, the newest first.

    \b
    edge-fleet question list
    """
    rows = connect().call("GET", "/api/v1/questions", params={"limit": limit})
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        say(_line(row))
    if not rows:
        click.echo(
            "no question; they are asked with edge-coordinator serve --ask-labels and edge-agent run --fleet-labels"
        )


def _line(row: dict[str, Any]) -> str:
    state = f"answered: {shown(row['label'])}" if row["state"] == "answered" else row["state"]
    on = f"{row['samples']} samples on {row['devices']} devices"
    return (
        f"{row['number']:>4}  {state:<20} {row['device']} {shown(row['sample'])}, answered {shown(row['said'])}; {on}"
    )


@question.command()
@click.argument("number", type=click.IntRange(min=1))
@click.option("--picture", type=click.Path(path_type=Path), help="Write the picture there, where its device shares it.")
@JSON
@click.pass_obj
def show(connect: Any, number: int, picture: Path | None, as_json: bool) -> None:
    """What question NUMBER is about, and what became of its label.

    \b
    edge-fleet question show 3 --picture 3.png
    """
    coordinator = connect()
    row = coordinator.call("GET", f"/api/v1/questions/{number}")
    if picture is not None:
        data = coordinator.fetch(f"/api/v1/questions/{number}/picture")
        try:
            with replace_file(picture) as file:
                file.write(data)
        except OSError as exc:
            raise ConfigError(f"{picture} cannot be written: {exc.strerror}") from exc
    if as_json:
        click.echo(json.dumps(row, indent=1))
        return
    say(_line(row))
    say(f"      {stamp(row['answered_ms'])} by its clock, confidence {row['confidence']:.2f}")
    if row["state"] == "open":
        say(f"      classes: {', '.join(map(shown, row['classes'])) or 'not known here'}")
    for each in row["alike"]:
        why = f": {shown(each['detail'])}" if each["detail"] else ""
        say(f"      {each['device']} {shown(each['sample'])}, {each['alike']:.2f} alike, {each['state']}{why}")


@question.command()
@click.argument("number", type=click.IntRange(min=1))
@click.argument("label")
@REASON
@JSON
@click.pass_obj
def answer(connect: Any, number: int, label: str, reason: str, as_json: bool) -> None:
    """Say that the sample of question NUMBER is of the class LABEL.

    Every device with a sample like it learns that; it cannot be taken back.

    \b
    edge-fleet question answer 3 scratch
    """
    row = connect().call("POST", f"/api/v1/questions/{number}/answer", json={"label": label, "reason": reason})
    done = f"question {number}: {shown(label)}; it goes to {row['samples']} samples on {row['devices']} devices"
    click.echo(json.dumps(row, indent=1)) if as_json else say(done)


@question.command()
@click.argument("number", type=click.IntRange(min=1))
@REASON
@JSON
@click.pass_obj
def skip(connect: Any, number: int, reason: str, as_json: bool) -> None:
    """Say nothing of question NUMBER, and never be asked about its samples again.

    \b
    edge-fleet question skip 3 --reason "nobody can tell"
    """
    row = connect().call("POST", f"/api/v1/questions/{number}/skip", json={"reason": reason})
    click.echo(json.dumps(row, indent=1)) if as_json else say(f"question {number} is skipped")
