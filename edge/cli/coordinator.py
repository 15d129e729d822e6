"""``edge-coordinator``: the process that knows the fleet."""

from __future__ import annotations

import json
import signal
import ssl
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edge.channel.transport import Transport
    from edge.coordinator.config import CoordinatorConfig
    from edge.coordinator.door import Listen

from edge import __version__
from edge.cli.exports import export
from edge.cli.logs import STYLES, Style, configure
from edge.contract.errors import ConfigError, ResourceError
from edge.contract.exits import run_to_exit
from edge.merging.policy import RULES, MergePolicy

_DAY_S = 86_400.0
_DATA_DIR = click.option(
    "--data-dir", default="edge-coordinator", type=click.Path(path_type=Path), help="Database and artifacts."
)
_DATABASE = click.option(
    "--database",
    default="",
    show_default=False,
    envvar="EDGE_DATABASE",
    show_envvar=True,
    help="postgresql+psycopg://USER@HOST/NAME.  [default: SQLite in the data folder]",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="edge-coordinator")
def coordinator() -> None:
    """Know the fleet: registry, telemetry, merging, releases.

    \b
    edge-coordinator broker
    edge-coordinator serve --broker mqtt://127.0.0.1:1883 --bundle model.edge
    edge-coordinator token kim
    edge-coordinator backup fleet.tar
    """


@coordinator.command()
@click.option("--broker", required=True, envvar="EDGE_BROKER", show_envvar=True, help="mqtt://HOST:PORT or mqtts://...")
@click.option(
    "--broker-password", envvar="EDGE_BROKER_PASSWORD", show_envvar=True, help="Instead of one in the address."
)
@click.option("--fleet", default="default", help="Fleet id.")
@click.option("--name", default="coordinator", help="Id of this coordinator.")
@_DATA_DIR
@_DATABASE
@click.option(
    "--bundle", "bundles", multiple=True, type=click.Path(path_type=Path), help="Bundle that devices came with."
)
@click.option("--http", default="127.0.0.1:8470", help="HOST:PORT of the HTTP API.")
@click.option(
    "--token", envvar="EDGE_TOKEN", show_envvar=True, help="One that may do everything, beside those that were made."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="HTTPS: certificate of this machine, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="HTTPS: its private key, PEM.")
@click.option(
    "--unknown-devices",
    default="approve",
    type=click.Choice(["approve", "hold"]),
    help="hold: until a person approves.",
)
@click.option("--merge/--no-merge", "auto_merge", default=True, help="Merge and push what devices learned by itself.")
@click.option("--merge-delay", default=60.0, type=click.FloatRange(min=0), help="Seconds to wait for more devices.")
@click.option("--min-devices", default=1, type=click.IntRange(min=1), help="Merge by itself only with so many.")
@click.option("--merge-rule", default="mean", help=f"For changes of heads: {', '.join(RULES)}.")
@click.option("--garbage-share", default=0.2, help="Share of devices that robust rules assume to send garbage.")
@click.option("--clip-norm", default=0.0, help="Shorten longer changes to this norm; 0: no limit.")
@click.option("--server-rate", default=0.1, help="Step size of fedadam, fedyogi and fedadagrad.")
@click.option("--noise-multiplier", default=0.0, help="Noise on the sum of changes, in units of --clip-norm; 0: none.")
@click.option("--expected-devices", default=0, help="With noise: devices expected in a merge.")
@click.option("--privacy-delta", default=1e-5, help="With noise: delta for which the epsilon spent is stated.")
@click.option("--screen/--no-screen", default=True, help="Leave out statistics of garbage, or of another world.")
@click.option(
    "--merge-noised", is_flag=True, help="Merge what devices send under noise (edge-agent --noise); it is not screened."
)
@click.option(
    "--prior-samples", default=100.0, help="Samples that the shipped statistics are worth in a merge, at the most."
)
@click.option("--min-samples", default=10, help="Labels that a contribution needs to be merged.")
@click.option("--min-merge-samples", default=20, help="Labels that a merge needs.")
@click.option(
    "--merge-by",
    default="",
    show_default=False,
    help="A head for each group: tag.KEY, or cluster: statistics that are alike.",
)
@click.option("--merge-policy", type=click.Path(path_type=Path), help="When heads go out, and how: TOML.")
@click.option(
    "--cross-site",
    default=0,
    type=click.IntRange(0, 1000),
    help="Merged heads go out when so many devices that agree found them no worse, 3 at least; 0: they are not asked.",
)
@click.option("--evaluate", type=click.Path(path_type=Path), help="NPZ on which merged heads are tested first.")
@click.option("--keep-free", type=click.FloatRange(min=0), help="MiB of disk left free.  [default: 5 %, 256 at most]")
@click.option(
    "--ask-labels",
    default=0.0,
    type=click.FloatRange(min=0),
    help="Seconds between looks for a label that helps several devices, see `edge-fleet question`; 0: never.",
)
@click.option("--keep-messages", default=7.0, type=click.FloatRange(min=0), help="Days that telemetry is kept.")
@click.option("--keep-minutes", default=90.0, type=click.FloatRange(min=0), help="Days of its sums by the minute.")
@click.option("--keep-hours", default=730.0, type=click.FloatRange(min=0), help="Days of its sums by the hour.")
@click.option("--keep-events", default=90.0, type=click.FloatRange(min=0), help="Days that events are kept.")
@click.option("--alerts", type=click.Path(path_type=Path), help="Rules of alerts, in TOML: docs/alerts.md.")
@click.option(
    "--alert-secret", default="", show_default=False, envvar="EDGE_ALERT_SECRET", help="Signs what the webhook is told."
)
@click.option("--connect-timeout", default=10.0, type=click.FloatRange(min=0.1), help="Seconds to find the broker.")
@click.option("--signing", type=click.Path(path_type=Path), help="The folder `coordinator` of `edge-fleet keys init`.")
@click.option("--standby", is_flag=True, help="With --database: wait until no other has it, then take over.")
@click.option(
    "--intake",
    envvar="EDGE_INTAKE",
    show_envvar=True,
    help="share, or amqp://USER:PASSWORD@HOST/VHOST: take messages in beside other coordinators; as --standby.",
)
@click.option("--upstream", envvar="EDGE_UPSTREAM", show_envvar=True, help="Broker of the coordinator above this one.")
@click.option("--upstream-password", envvar="EDGE_UPSTREAM_PASSWORD", show_envvar=True, help="Of its login there.")
@click.option("--upstream-fleet", default="default", help="Fleet id there.")
@click.option("--upstream-trust", type=click.Path(path_type=Path), help="Root document of that fleet.")
@click.option("--upstream-interval", default=60.0, type=click.FloatRange(min=0), help="Seconds between contributions.")
@click.option("--site", help="Name of this site there, as of a device: with --upstream.")
@click.option("--timestamp-days", default=7.0, type=click.FloatRange(0.01), help="How long signed news are believed.")
@click.option("--log", default="text", envvar="EDGE_LOG", type=click.Choice(STYLES), help="How lines are written.")
def serve(
    broker: str,
    broker_password: str | None,
    fleet: str,
    name: str,
    data_dir: Path,
    database: str,
    bundles: tuple[Path, ...],
    http: str,
    token: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    unknown_devices: str,
    auto_merge: bool,
    merge_delay: float,
    min_devices: int,
    merge_rule: str,
    garbage_share: float,
    clip_norm: float,
    server_rate: float,
    noise_multiplier: float,
    expected_devices: int,
    privacy_delta: float,
    screen: bool,
    merge_noised: bool,
    prior_samples: float,
    min_samples: int,
    min_merge_samples: int,
    merge_by: str,
    merge_policy: Path | None,
    cross_site: int,
    evaluate: Path | None,
    keep_free: float | None,
    ask_labels: float,
    keep_messages: float,
    keep_minutes: float,
    keep_hours: float,
    keep_events: float,
    alerts: Path | None,
    alert_secret: str,
    connect_timeout: float,
    signing: Path | None,
    standby: bool,
    intake: str | None,
    upstream: str | None,
    upstream_password: str | None,
    upstream_fleet: str,
    upstream_trust: Path | None,
    upstream_interval: float,
    site: str | None,
    timestamp_days: float,
    log: Style,
) -> None:
    """Serve a fleet until stopped.

    Without --signing it says what to run to whoever believes it. Without a token (edge-coordinator token NAME, or
    --token) whoever uses this machine may do everything, and the API listens on this machine only.

    \b
    edge-coordinator serve --broker mqtt://broker:1883 --bundle model.edge
    edge-coordinator serve --broker mqtts://broker \\
        --http 0.0.0.0:8470 --tls-cert c.pem --tls-key k.pem
    edge-coordinator serve --broker mqtt://127.0.0.1:1883 \\
        --upstream mqtts://above --site lisbon
    """
    from edge.channel.mqtt import MqttTransport, probe
    from edge.channel.topics import check_id
    from edge.channel.url import BrokerUrl

    host, port = _address(http)
    tls = _tls(tls_cert, tls_key)
    url = BrokerUrl.parse(broker, broker_password)  # before the imports below, which take seconds on a small machine
    policy = MergePolicy(
        rule=merge_rule,
        garbage_share=garbage_share,
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        privacy_delta=privacy_delta,
        expected_devices=expected_devices,
        server_rate=server_rate,
        screen=screen,
        merge_noised=merge_noised,
        prior_samples=prior_samples,
        min_samples=min_samples,
        min_merge_samples=min_merge_samples,
        merge_by=merge_by,
    )
    try:
        from edge.coordinator.access import check_reach
        from edge.coordinator.alerts.rules import AlertRules, of_file
        from edge.coordinator.config import CoordinatorConfig, SiteConfig
        from edge.coordinator.learning.release_policy import ReleasePolicy
        from edge.coordinator.learning.release_policy import of_file as read_policy
        from edge.coordinator.machine.place import Place
        from edge.coordinator.service import CoordinatorService, wait_for_turn
        from edge.coordinator.summaries import Keep
    except ImportError as exc:
        raise ConfigError(f"{exc.name} is not installed: pip install 'edgeloop[coordinator]'") from exc
    if token is None and not database and not data_dir.exists():
        check_reach(host)  # before the broker is asked; else the database has a word
    configure(log)
    release_policy = ReleasePolicy() if merge_policy is None else read_policy(merge_policy, merge_by)
    if cross_site:
        try:
            release_policy = release_policy.judged_by(cross_site)
        except ValueError as exc:
            raise ConfigError(f"--cross-site {cross_site}: {exc}") from exc
    if release_policy.needs_holdout and evaluate is None:
        raise ConfigError(f"{merge_policy}: min_gain needs --evaluate FILE: samples with labels to tell a gain by")
    if (upstream is None) != (site is None):
        raise ConfigError("--upstream and --site: a site needs the broker above it and a name there")
    if site is not None and (merge_by or noise_multiplier):
        raise ConfigError("--site: groups (--merge-by) and noise are made by the coordinator above all sites")
    above = None if upstream is None else BrokerUrl.parse(upstream, upstream_password)
    config = CoordinatorConfig(
        fleet=check_id(fleet, "fleet"),
        name=check_id(name, "coordinator"),
        data_dir=data_dir,
        database=database,
        broker=str(url),
        auto_merge=auto_merge,
        merge_delay_s=merge_delay,
        min_devices=min_devices,
        policy=policy,
        release_policy=release_policy,
        evaluate=evaluate,
        keep=Keep(
            messages_s=keep_messages * _DAY_S,
            minutes_s=keep_minutes * _DAY_S,
            hours_s=keep_hours * _DAY_S,
            events_s=keep_events * _DAY_S,
        ),
        unknown="approved" if unknown_devices == "approve" else "pending",
        keep_free_bytes=None if keep_free is None else int(keep_free * (1 << 20)),
        signing=signing,
        timestamp_days=timestamp_days,
        ask_labels_s=ask_labels,
        is_shared=intake is not None,
        alerts=AlertRules() if alerts is None else of_file(alerts),
        site=None
        if site is None
        else SiteConfig(
            name=check_id(site, "site"),
            fleet=check_id(upstream_fleet, "fleet"),
            interval_s=upstream_interval,
            trust_root=upstream_trust,
        ),
    )
    standby = standby or intake is not None
    if standby and not database:
        raise ConfigError("--standby, --intake: coordinators share a PostgreSQL database, named by --database")
    if intake is not None:
        probe(url, connect_timeout)
    led = None if intake is None else _open_door(config, intake, MqttTransport(url, f"{name}-intake", clean_start=True))
    place = wait_for_turn(config, host, port, str(url)) if standby else Place(config, host, port, str(url))
    probe(url, connect_timeout)
    line_up = None if above is None else MqttTransport(above, site or "", clean_start=False)
    service = CoordinatorService(config, MqttTransport(url, name, clean_start=True), place, line_up, led)
    for path in bundles:
        service.register_bundle(path)
    service.check_holdout(bundles)
    service.run(token, tls, alert_secret)


def _open_door(config: CoordinatorConfig, intake: str, line: Transport) -> Listen | None:
    """Take in what coordinators share; how the one that leads is given what it alone answers."""
    from edge.channel import topics
    from edge.coordinator.door import Door

    if intake == "share":
        Door(config, line, None).open()
        return None
    try:
        from edge.channel.amqp import AmqpQueue
    except ImportError as exc:
        raise ConfigError(f"--intake: {exc.name} is not installed: pip install 'edgeloop[rabbitmq]'") from exc
    shared = AmqpQueue(intake, f"edge.{config.fleet}.shared", topics.shared_leaves(config.fleet))
    Door(config, line, shared.start).open()
    return AmqpQueue(intake, f"edge.{config.fleet}.led", topics.led_leaves(config.fleet)).start


def _tls(certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """Both, or None for HTTP; looked at before anything else begins."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("--tls-cert and --tls-key: HTTPS needs both")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as exc:
        why = f"not a certificate and its key in PEM: {exc}"
        raise ConfigError(f"--tls-cert {certificate}, --tls-key {key}: {why}") from exc
    return certificate, key


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--http {text!r}: expected HOST:PORT, e.g. 127.0.0.1:8470")
    return host, int(port)


@coordinator.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["viewer", "operator", "admin"]), default="admin", help="What it may do.")
@click.option("--days", default=0.0, type=click.FloatRange(min=0), help="How long it holds; 0: for ever.")
@_DATA_DIR
@_DATABASE
@_JSON
def token(name: str, role: str, days: float, data_dir: Path, database: str, as_json: bool) -> None:
    """Make a token of the HTTP API for NAME and say it, once.

    From the first one on nobody may do anything without a token. The coordinator may run meanwhile. Others are made
    with it: edge-fleet token new.

    \b
    export EDGE_TOKEN=$(edge-coordinator token kim)
    """
    from edge.cli.access import tell_token

    try:
        from edge.contract.clock import Now
        from edge.coordinator.access import make_token
        from edge.coordinator.machine.backup import DATABASE
        from edge.coordinator.store.database import DatabaseError
    except ImportError as exc:
        raise ConfigError(f"{exc.name} is not installed: pip install 'edgeloop[coordinator]'") from exc
    moment = Now(time.monotonic(), time.time_ns() // 1_000_000)
    is_new = not database and not (data_dir / DATABASE).exists()
    try:
        made = make_token(database or data_dir / DATABASE, name, role, moment, days=days)
    except DatabaseError as exc:
        raise ResourceError(f"the database does not take it: {exc.orig}; no token was made") from exc
    if is_new:
        click.echo(
            f"{data_dir} had no database, so this is of no coordinator that runs: serve with this --data-dir", err=True
        )
    tell_token(made, as_json)


@coordinator.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@_DATA_DIR
@_DATABASE
@_JSON
def backup(file: Path, force: bool, data_dir: Path, database: str, as_json: bool) -> None:
    """Write the database and all artifacts into FILE, while the coordinator runs, and prove what was written.

    \b
    edge-coordinator backup fleet.tar
    """
    from edge.contract.files import check_writable

    if str(file) == "-":
        raise ConfigError(
            "a backup is read again when it is written, so it goes into a file and not to the standard output: name one"
        )
    check_writable(file)
    try:
        from edge.coordinator.machine.backup import back_up
    except ImportError as exc:
        raise ConfigError(f"{exc.name} is not installed: pip install 'edgeloop[coordinator]'") from exc
    done = back_up(data_dir, database, file, force=force)
    if as_json:
        click.echo(json.dumps(done, indent=1))
    else:
        click.echo(f"{file}: {_what(done)}, {done['size_bytes']} bytes, read again and whole")


@coordinator.command()
@click.argument("file", type=click.Path(path_type=Path))
@_DATA_DIR
@_DATABASE
@_JSON
def restore(file: Path, data_dir: Path, database: str, as_json: bool) -> None:
    """Put the backup FILE into an empty data folder, proved; the coordinator must not run there.

    A backup of SQLite goes into PostgreSQL and the other way round.

    \b
    edge-coordinator restore fleet.tar --data-dir new-folder
    """
    try:
        from edge.coordinator.machine.backup import restore as put_back
    except ImportError as exc:
        raise ConfigError(f"{exc.name} is not installed: pip install 'edgeloop[coordinator]'") from exc
    done = put_back(file, data_dir, database)
    if as_json:
        click.echo(json.dumps(done, indent=1))
    else:
        click.echo(f"{data_dir}: {_what(done)}; start the coordinator with --data-dir {data_dir}")


def _what(done: dict[str, Any]) -> str:
    rows = done["rows"]
    known = f"{rows['device']} devices, {rows['release']} releases, {done['artifacts']} artifacts"
    return f"{known}, {sum(rows.values())} rows"


@coordinator.command()
@click.option("--port", default=1883, type=click.IntRange(1, 65535), help="On 127.0.0.1.")
def broker(port: int) -> None:
    """Run a development broker on this machine only: mosquitto if installed, else iotcore.

    \b
    edge-coordinator broker --port 1883
    """
    from edge.coordinator.machine.broker import NOTE, DevelopmentBroker

    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with (
        tempfile.TemporaryDirectory(prefix="edgeloop-broker-") as folder,
        DevelopmentBroker.start(Path(folder), port) as child,
    ):
        click.echo(f"{child.name} at {child.url}, a {NOTE}")
        while not stopped:
            time.sleep(0.2)
        click.echo("stopping")


coordinator.add_command(export)


def main() -> None:
    """Entry point."""
    run_to_exit(coordinator)


if __name__ == "__main__":
    main()
