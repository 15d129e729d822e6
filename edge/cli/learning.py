"""What the fleet learns, for ``edge-fleet``: merges, what devices believe and answer, and forgetting."""

from __future__ import annotations

import json
from typing import Any

import click

from edge.channel.confusion import FEW, OTHERS
from edge.cli import access
from edge.cli.devices import age, named
from edge.cli.rollouts import who
from edge.cli.terminal import device_path, say, shown


@click.command()
@click.option("--supersede", is_flag=True, help="End rollouts that are under way on the same devices.")
@click.option("--status", "is_asked", is_flag=True, help="Merge nothing: say what waits, for what and since when.")
@access.REASON
@access.JSON
@click.pass_obj
def merge(connect: Any, supersede: bool, is_asked: bool, reason: str, as_json: bool) -> None:
    """Merge now what devices have learned, and push it.

    Where a rollout is under way on the same devices it is refused: they would not take that release any more.

    \b
    edge-fleet merge
    edge-fleet merge --status
    edge-fleet merge --supersede --reason "the rollout was forgotten"
    """
    if is_asked:
        _what_waits(connect().call("GET", "/api/v1/merges/waiting"), as_json)
        return
    body = {"reason": reason, "who": who(), "supersede": supersede}
    releases = connect().call("POST", "/api/merge", json=body)
    if as_json:
        click.echo(json.dumps(releases, indent=1))
        return
    if not releases:
        click.echo("nothing new to merge")
    for release in releases:
        click.echo(f"release {release['counter']}: {release['reason']}")


def _what_waits(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for each in found:
        what = f"rollout {each['rollout']}" if each["rollout"] else "the pause of the whole fleet"
        click.echo(f"a merge for {each['backbone'][:12]} waits for {what} since {age(each['since_ms'])}")
    if not found:
        click.echo("no merge waits for a rollout")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def experts(connect: Any, as_json: bool) -> None:
    """What each device believes: the weight of its experts, how often they were right, what the merge gains there.

    \b
    edge-fleet experts
    """
    rows = [(row, each) for row in connect().call("GET", "/api/devices") for each in row["models"] if each["experts"]]
    found = [
        {"device": row["id"], "model": each["model"], "experts": each["experts"], "merge": _merge_of(each["experts"])}
        for row, each in rows
    ]
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    if not found:
        click.echo("no device has said anything of its experts yet; it comes with telemetry")
        return
    for (row, model), each in zip(rows, found, strict=True):
        click.echo(f"{named(row, model)}: {_what_the_merge_does(each['merge'])}")
        for name, (weight, accuracy, labels) in sorted(each["experts"].items(), key=lambda item: -item[1][0]):
            right = f"{accuracy:.3f} right lately, {labels:.0f} labels in all" if labels else "no labels"
            click.echo(f"  {shown(name):<24} weight {weight:.2f}, {right}")


def _merge_of(experts: dict[str, list[float]]) -> dict[str, float]:
    """What the experts that build on a merge weigh and gain over the others; without ``gain`` while it is not known."""
    merged = {name: values for name, values in experts.items() if name == "merged" or name.endswith(" on merge")}
    others = {name: values for name, values in experts.items() if name not in merged and name != "trusted"}
    if not merged:
        return {}
    found = {"weight": sum(weight for weight, _, _ in merged.values())}
    judged = [[accuracy for _, accuracy, labels in part.values() if labels > 0] for part in (merged, others)]
    if all(judged):
        found["gain"] = max(judged[0]) - max(judged[1])
    return found


def _what_the_merge_does(merge: dict[str, float]) -> str:
    if not merge:
        return "has no merge"
    if "gain" not in merge:
        return f"the merge has the weight {merge['weight']:.2f}; no labels to judge it by"
    return f"the merge gains {100 * merge['gain']:+.1f} points, its weight is {merge['weight']:.2f}"


@click.command()
@click.argument("device", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs: with all counts by label and answer.")
@click.pass_obj
def confusion(connect: Any, device: str | None, as_json: bool) -> None:
    """How right devices were by class, and what they took for what: of all together, or of DEVICE.

    Each answer was given before its label came. Of each model the last 256 labels are counted, since another head took
    the place of all; a site tells the sum of its devices.

    \b
    edge-fleet confusion
    edge-fleet confusion camera-1 --json
    """
    path = "/api/v1/confusion" if device is None else device_path(device, "confusion")
    found = connect().call("GET", path)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    if not found:
        click.echo(
            "nobody has told what was answered to labels: none came, the model does not tell classes apart, "
            "or the agent runs with --noise, or is an older one"
        )
    for each in found:
        told = "1 model has" if each["models"] == 1 else f"{each['models']} models have"
        whose = f"{told} told" if device is None else f"told {age(each['said_ms'])} ago"
        name = shown(each["model"]) or each["backbone"][:12]
        say(f"{name}: {whose}, {each['right']} of {each['n'] - each['untold']} right")
        _by_class(each)


def _by_class(found: dict[str, Any]) -> None:
    names = [shown(each["label"], 40) for each in found["classes"]]
    width = max([5, *map(len, names)])
    if names:
        say(f"  {'label':<{width}}  {'labels':>6}  {'right':>8}  taken for")
    for name, each in zip(names, found["classes"], strict=True):
        row = found["counts"][each["label"]].items()
        wrong = sorted(((n, said) for said, n in row if said != each["label"]), key=lambda one: (-one[0], one[1]))
        taken = ", ".join(f"{'others' if said == OTHERS else shown(said, 40)} x{n}" for n, said in wrong)
        right = f"{100 * each['accuracy']:.1f} %" if each["n"] >= FEW else f"{each['right']} of {each['n']}"
        say(f"  {name:<{width}}  {each['n']:>6}  {right:>8}  {taken}".rstrip())
    if found["untold"]:
        say(f"  {found['untold']} more labels, of classes for which a message had no room")


@click.command()
@click.argument("device")
@access.REASON
@access.JSON
@click.pass_obj
def forget(connect: Any, device: str, reason: str, as_json: bool) -> None:
    """Delete what DEVICE contributed and what is held of its samples and answers, for ever.

    Deleted are contributions, checkpoints, telemetry, samples that it shared and sketches of them. The next merge is as
    if it had never been there. Of a device that never contributed the receipt says that it is in no head. Cannot be
    undone.

    \b
    edge-fleet forget camera-1 --reason "asked to be forgotten"
    """
    done = connect().call("POST", "/api/forget", json={"device": device, "reason": reason})
    if as_json:
        click.echo(json.dumps(done, indent=1))
        return
    for line in _what_was_forgotten(done):
        click.echo(line)


_WHEN = {"now": "is made at once", "waits": "waits for a rollout that is under way, see `edge-fleet merge --status`"}


def _what_was_forgotten(done: dict[str, Any]) -> list[str]:
    """For people, what `CoordinatorCore.forget` answers."""
    n = done["statistics"] + done["changes"]
    lines = [f"{done['device']}: {n} contributions forgotten, {done['samples']} labelled samples"]
    if not done["contributed"]:
        lines = [f"{done['device']}: it never contributed, so nothing of it is in any head"]
    if done["copies"]:
        lines.append(f"with them those of copies of its state folder, on {', '.join(done['copies'])}")
    if done["merged_statistics"]:
        when = _WHEN.get(done["merge"], "waits for `edge-fleet merge`")
        lines.append(f"statistics: the next merge is as if it had never been there; it {when}")
    if done["merged_changes"]:
        lines.append(
            "changes: a mean that was merged cannot be undone, the head in use still has this device's part in it; "
            "only future merges leave it out. To be rid of it push a head from before"
        )
    for number in done["ended"]:
        lines.append(f"rollout {number} is ended: the head that it brought has this in it")
    deleted = {
        "checkpoints": done["checkpoints"],
        "messages of telemetry": done["telemetry"],
        "shared samples": done["shared_samples"],
    }
    if any(deleted.values()):
        lines.append("deleted: " + ", ".join(f"{count} {what}" for what, count in deleted.items() if count))
    lines.append(
        "uploads from the same state folder are refused from now on. Releases made before and events stay in the "
        "coordinator's data folder, and so does what the device is and runs"
    )
    lines.append(f"a signed receipt: edge-fleet receipt show {done['receipt']}")
    return lines


COMMANDS = (merge, experts, confusion, forget)
