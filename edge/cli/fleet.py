"""``edge-fleet``: look at a fleet and push to it, through the coordinator's HTTP API."""

from __future__ import annotations

import json
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import quote, unquote

import click

from edge import __version__
from edge.cli import access, admission, carrying, checkpoints, learning, questions, receipts, rollouts
from edge.cli.deploy import deploy
from edge.cli.devices import age, events, metrics, named, show, status
from edge.cli.keys import keys
from edge.cli.push import push
from edge.cli.releases import release as release_group
from edge.cli.releases import rollback
from edge.cli.simulate import simulate
from edge.cli.terminal import shown
from edge.contract.errors import BundleError, ChannelError, ConfigError, EdgeError, ResourceError, RolloutError
from edge.contract.exits import run_to_exit

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

# Of a device, in a table of 80 columns: the rest of a longer one stands below.
_WIDEST_NAME = 24
_ERRORS: dict[str, type[EdgeError]] = {
    "BundleError": BundleError, "ConfigError": ConfigError, "ResourceError": ResourceError
}  # fmt: skip


class Coordinator:
    """The coordinator's HTTP API.

    Args:
        url: Its address.
        token: Its bearer token, or None.
        ca: Certificates to believe beside those of the system, or None.
    """

    def __init__(self, url: str, token: str | None, ca: Path | None = None) -> None:
        try:
            import httpx
        except ImportError as exc:
            raise ConfigError("httpx is not installed: pip install 'edgeloop[fleet]'") from exc
        self._httpx = httpx
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--coordinator {url!r} is not an address like http://127.0.0.1:8470")
        if token and not (token.isascii() and token.isprintable()):  # not shown: it may be a right one and a line end
            raise ConfigError(
                "the token (--token, EDGE_TOKEN) has a line end or another character that none has; give it as "
                "`edge-fleet token new` said it"
            )
        headers = {"x-edge-who": quote(rollouts.who())} | ({"authorization": f"Bearer {token}"} if token else {})
        try:
            # Reading all authorities takes a tenth of a second, and plain HTTP asks none.
            is_plain = ca is None and url.startswith("http://")
            verify = False if is_plain else ssl.create_default_context(cafile=None if ca is None else str(ca))
        except OSError as exc:  # ssl.SSLError among them
            raise ConfigError(f"--ca {ca}: expected certificates in PEM: {exc.strerror or exc}") from exc
        try:
            self._client = httpx.Client(base_url=url, headers=headers, timeout=60.0, trust_env=False, verify=verify)
        except (httpx.InvalidURL, ValueError) as exc:
            raise ConfigError(f"--coordinator {url!r} is not an address like http://127.0.0.1:8470") from exc
        self._url = url
        self._line, self._asked = "", False  # why no device is heard, and whether something was changed

    def close(self) -> None:
        """End the connection."""
        self._client.close()
        if self._line:
            waits = "; what this asked for is kept, and devices are told once there is a line" if self._asked else ""
            click.echo(
                f"edge-fleet: {shown(self._line, 500)}; what is known of devices is from before{waits}", err=True
            )

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Make a request.

        Raises:
            ChannelError: Nobody answers, or not a coordinator.
            EdgeError: It refused; of the branch that it named.
        """
        response = self._ask(method, path, **arguments)
        if response.status_code >= 400:
            self._refused(response)
        try:
            return response.json()
        except ValueError as exc:
            raise ChannelError(f"{self._url} answers, but is not a coordinator") from exc

    def pages(self, path: str, params: dict[str, Any], most: int, key: str = "id") -> list[dict[str, Any]]:
        """A list that is given page by page, newest first; raises as `call`."""
        found: list[dict[str, Any]] = []
        while len(found) < most:
            size = min(most - len(found), 1000)
            page = self.call("GET", path, params={**params, "limit": size, "before": found[-1][key] if found else 0})
            found += page
            if len(page) < size:
                break
        return found

    def fetch(self, path: str) -> bytes:
        """A file; raises as `call`."""
        response = self._ask("GET", path)
        if response.status_code >= 400:
            self._refused(response)
        content: bytes = response.content
        return content

    def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        if "//" in path or path.endswith("/"):
            raise ConfigError("a name is empty")
        try:
            answer = self._client.request(method, path, **arguments)
        except self._httpx.InvalidURL as exc:
            raise ConfigError(f"what is asked for does not fit into an address: {exc}; give a shorter one") from exc
        except self._httpx.HTTPError as exc:
            raise ChannelError(
                f"no coordinator answers at {self._url} ({exc}); start one with `edge-coordinator serve`, "
                f"or name it with --coordinator"
            ) from exc
        self._line = unquote(answer.headers.get("x-edge-line", ""))
        self._asked |= method != "GET" and answer.status_code < 400
        return answer

    def _refused(self, response: Any) -> NoReturn:
        try:
            body = response.json()
        except ValueError as exc:
            raise ChannelError(f"{self._url} answers, but is not a coordinator") from exc
        if response.status_code in (401, 403, 429):
            raise ConfigError(body.get("detail", "a token is needed"))
        detail = body.get("detail", body) if isinstance(body, dict) else body
        raise _ERRORS.get(body.get("error", ""), RolloutError)(str(detail))


@click.group("device")
def device_group() -> None:
    """List devices, show one, decide whether it belongs to the fleet, keep what it learned.

    \b
    edge-fleet device list --where 'tag.site ~ "north-*" and heard < 1 d'
    edge-fleet device show camera-1
    edge-fleet device checkpoint camera-1
    edge-fleet device restore camera-9 --from camera-1
    edge-fleet device quarantine camera-1 --reason "stolen?"
    """


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--coordinator",
    "url",
    default="http://127.0.0.1:8470",
    envvar="EDGE_COORDINATOR",
    show_envvar=True,
    help="Its HTTP API.",
)
@click.option(
    "--token", envvar="EDGE_TOKEN", show_envvar=True, help="Yours: edge-fleet token new, edge-coordinator token."
)
@click.option(
    "--ca",
    envvar="EDGE_CA",
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="With https: certificates to believe.",
)
@click.version_option(__version__, prog_name="edge-fleet")
@click.pass_context
def fleet(context: click.Context, url: str, token: str | None, ca: Path | None) -> None:
    """Look at a fleet and push to it."""

    def connect() -> Coordinator:
        made = Coordinator(url, token, ca)
        context.call_on_close(made.close)
        return made

    context.obj = connect


fleet.add_command(access.audit)
fleet.add_command(access.token)
fleet.add_command(device_group)
fleet.add_command(events)
fleet.add_command(status)
fleet.add_command(metrics)
fleet.add_command(release_group)
fleet.add_command(push)
fleet.add_command(rollback)
fleet.add_command(keys)
fleet.add_command(deploy)
fleet.add_command(simulate)
fleet.add_command(rollouts.rollout)
fleet.add_command(rollouts.pause_all)
fleet.add_command(rollouts.resume_all)


@fleet.command()
@click.option(
    "--where", "query", default="", show_default=False, help="Only those, as a plan says it: 'tag.site = \"north\"'."
)
@click.option("--all", "is_all", is_flag=True, help="Also those that were decommissioned.")
@access.JSON
@click.pass_obj
def devices(connect: Any, query: str, is_all: bool, as_json: bool) -> None:
    """List the devices and their models.

    What they run, where they stand, and when they were last heard.

    \b
    edge-fleet devices
    edge-fleet device list --where 'online = false and samples > 100'

    Without a line to the broker nobody knows which are online, and a query that asks for it is refused.
    """
    found = connect().call("GET", "/api/v1/devices", params={"q": query} if query else {})
    rows = found if is_all else [row for row in found if row["admission"] != "decommissioned"]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows and query:
        click.echo("no device is as asked; `edge-fleet devices` lists all")
        return
    if not rows and found:
        click.echo("all devices that were seen have left the fleet; --all lists them")
        return
    if not rows:
        click.echo("no device has been seen yet; start one with `edge-agent run BUNDLE --broker ...`")
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Narrow enough for 80 columns with usual names.
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("device", "online", "model", "bundle", "head", "release", "state", "samples", "heard"):
        # Where it is narrow names stay whole: rich takes width from what may wrap, and its texts are cut instead.
        justify: Literal["left", "right"] = "right" if heading in ("release", "samples") else "left"
        is_name = heading in ("device", "online", "bundle", "head")
        table.add_column(
            Text(heading, no_wrap=True, overflow="ellipsis"), justify=justify, no_wrap=is_name,
            max_width=_WIDEST_NAME if heading == "device" else None,
        )  # fmt: skip
    for row in rows:
        stands = "" if row["admission"] == "approved" else row["admission"]
        known = (row["id"], stands or {True: "yes", False: "no", None: "not known"}[row["online"]])
        heard = age(row["last_seen_ms"])
        for model in row["models"] or [row]:
            digests = (model["bundle"][:8], model["head"][:8])
            release = f"{model['release']}{'*' if model.get('stopped_rollout') else ''}"
            runs = (shown(model["model"]), *digests, release, shown(model["state"]), model["samples"])
            cells = (shown(str(each)) for each in (*known, *runs, heard))
            name, *others = (Text(each, no_wrap=True, overflow="ellipsis") for each in cells)
            name.no_wrap, name.overflow = False, "fold"  # a long one goes on below, and leaves the others their place
            table.add_row(name, *others)
            known, heard = ("", ""), ""
    console = Console()
    console.print(table)
    for row in rows:
        for model in row["models"]:
            # Of who is through all is in the table; who was not judged is told.
            if model["state_detail"] and (model["state"] != "active" or "not judged" in model["state_detail"]):
                text = f"{named(row, model)}: {shown(model['state'])}, {shown(model['state_detail'], 500)}"
                console.print(Text(text), soft_wrap=True)
    left: dict[int, list[str]] = {}
    for row in rows:
        for model in row["models"]:
            if number := model["stopped_rollout"]:
                left.setdefault(number, []).append(named(row, model))
    for number, names in sorted(left.items()):
        text = f"* what rollout {number} brought, which was stopped before it was through, runs on {', '.join(names)}"
        console.print(Text(f"{text}; `edge-fleet rollout status {number}`"), soft_wrap=True)


device_group.add_command(devices, "list")
device_group.add_command(show)
for command in (*admission.ORDERS, *checkpoints.COMMANDS):
    device_group.add_command(command)
fleet.add_command(checkpoints.cmd)
fleet.add_command(admission.enrolment)
fleet.add_command(receipts.receipt)
fleet.add_command(questions.question)
release_group.add_command(receipts.lineage)
fleet.add_command(admission.broker_config)
fleet.add_command(carrying.export_release)
fleet.add_command(carrying.take_in)
for command in learning.COMMANDS:
    fleet.add_command(command)


@fleet.command()
@click.argument("device")
@click.argument("tags", nargs=-1, metavar="[KEY=VALUE]...")
@access.REASON
@access.JSON
@click.pass_obj
def tag(connect: Any, device: str, tags: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Give DEVICE tags, for groups that share a head and to choose devices by.

    KEY= takes one away. Says which it has; without KEY=VALUE nothing else.

    \b
    edge-fleet tag camera-1 model=A site=north
    edge-fleet device tag camera-1 site=
    """
    pairs = dict(text.partition("=")[::2] for text in tags if "=" in text)
    if len(pairs) < len(tags):
        wrong = next((text for text in tags if "=" not in text), "a key that repeats")
        raise ConfigError(f"tag {wrong!r}: expected KEY=VALUE, each key once")
    if pairs:
        found = connect().call("POST", "/api/tags", json={"device": device, "tags": pairs, "reason": reason})
    else:
        found = connect().call("GET", f"/api/v1/devices/{quote(device, safe='')}")["tags"]
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    click.echo(f"{device}: {', '.join(f'{key}={value}' for key, value in found.items()) or 'no tags'}")


device_group.add_command(tag)


# Telemetry keys and the headings under which a person sees them.
_WATCHED = {
    "infer_per_s": "infer/s",
    "lat_p50_ms": "p50 ms",
    "lat_p99_ms": "p99 ms",
    "acc": "acc",
    "loss": "loss",
    "samples": "samples",
    "release": "rel",
    "cpu_pct": "cpu %",
    "mem_mb": "MiB",
    "temp_c": "°C",
}


@fleet.command()
@click.option("--seconds", type=click.FloatRange(min=0), help="Stop after that long.  [default: never]")
@click.option("--json", "as_json", is_flag=True, help="For programs: one object a line.")
@click.pass_obj
def watch(connect: Any, seconds: float | None, as_json: bool) -> None:
    """Show telemetry as it comes from now on: a table on a terminal, one line a message elsewhere.

    \b
    edge-fleet watch
    edge-fleet watch --seconds 60 > telemetry.txt
    """
    from rich.console import Console
    from rich.live import Live

    coordinator, console = connect(), Console()
    end = time.monotonic() + (seconds if seconds is not None else float("inf"))
    newest: dict[str, dict[str, Any]] = {}
    before = coordinator.call("GET", "/api/telemetry", params={"after": -1, "limit": 1})
    last = max((row["id"] for row in before), default=0)  # what is shown came since

    def poll() -> None:
        nonlocal last
        for row in coordinator.call("GET", "/api/telemetry", params={"after": last, "limit": 200}):
            last = max(last, row["id"])
            shown_as = f"{row['device']} {shown(str(row['values'].get('model', '')))}"
            if shown_as not in newest or row["received_ms"] >= newest[shown_as]["received_ms"]:  # else it comes late
                newest[shown_as] = row
            if as_json:
                click.echo(json.dumps(row))
            elif not console.is_terminal:
                click.echo(f"{row['device']} {json.dumps(row['values'], separators=(',', ':'))}")

    try:
        if as_json or not console.is_terminal:
            while time.monotonic() < end:
                poll()
                time.sleep(0.5)
            return
        with Live(_telemetry_table(newest), console=console, auto_refresh=False) as live:
            while time.monotonic() < end:
                poll()
                live.update(_telemetry_table(newest), refresh=True)
                time.sleep(0.5)
    except KeyboardInterrupt:
        pass


def _cell(value: Any) -> Text:
    from rich.text import Text

    return Text(f"{value:.3g}" if isinstance(value, float) else shown(str(value)))


def _telemetry_table(newest: dict[str, dict[str, Any]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(caption="Ctrl-C ends", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    rows = sorted(newest.items())
    headings = [name for name in _WATCHED if any(name in row["values"] for _, row in rows)]
    table.add_column("device, model", no_wrap=True)
    for heading in ("heard", *(_WATCHED[name] for name in headings)):
        table.add_column(heading, justify="right", no_wrap=True)
    for device, row in rows:
        cells = (device, age(row["received_ms"]), *(row["values"].get(name, "") for name in headings))
        table.add_row(*map(_cell, cells))
    return table


def main() -> None:
    """Entry point."""
    run_to_exit(fleet)


if __name__ == "__main__":
    main()
