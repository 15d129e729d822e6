"""``edge-agent``: the process on the device."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from edge import __version__
from edge.cli.configured import bundles_of, config_option, http_options, password_of, prefix_of
from edge.cli.feeds import feeds_of
from edge.cli.later import LaterGroup, found_in
from edge.cli.logs import STYLES, Style, configure
from edge.cli.terminal import seconds
from edge.contract.choices import EXECUTORS, LEARNERS, PROVIDERS
from edge.contract.errors import ConfigError
from edge.contract.exits import run_to_exit

if TYPE_CHECKING:
    from edge.agent.model.on_device_model import OnDeviceModel

F = TypeVar("F", bound=Callable[..., None])

_SHARE = click.FloatRange(0, 0.5)


@click.group(cls=LaterGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="edge-agent")
def agent() -> None:
    """Run a bundle on this device: predict, learn, report, take updates; and talk to an agent that runs."""


@agent.command(
    epilog="Examples: edge-agent run model.edge --broker mqtt://broker; "
    "edge-agent run --config /etc/edgeloop/agent.toml --verbose"
)
@click.argument("bundles", nargs=-1, metavar="[NAME=]BUNDLE...")
@config_option(exposed=True)
@click.option("--state-dir", default="edge-state", type=click.Path(path_type=Path), help="Everything the agent keeps.")
@click.option("--device", help="Device id.  [default: that of STATE_DIR, else the host name and six digits]")
@click.option("--fleet", default="default", help="Fleet id.")
@click.option(
    "--broker",
    help="mqtt://HOST:PORT, mqtts://, ws:// or wss://; without it the agent works alone.",
    envvar="EDGE_BROKER",
    show_envvar=True,
)
@click.option(
    "--broker-password", envvar="EDGE_BROKER_PASSWORD", show_envvar=True, help="Instead of one in the address."
)
@click.option("--broker-password-file", type=click.Path(path_type=Path), help="A file that has nothing else in it.")
@click.option("--profile", default="auto", help="Device profile: auto, a shipped name or a .toml file.")
@click.option("--learner", default="auto", type=click.Choice(LEARNERS), help="How to learn.")
@click.option("--executor", default="auto", type=click.Choice(EXECUTORS), help="What runs training steps.")
@click.option(
    "--provider", default="auto", type=click.Choice(PROVIDERS), help="What runs the frozen part; auto measures once."
)
@click.option("--mixture/--no-mixture", default=True, help="Heads compete; else the first learner answers alone.")
@click.option(
    "--reject-unknown",
    default=0.0,
    type=_SHARE,
    help='Answer "none of these" where so small a share of known samples is as far from all classes; 0: never.',
)
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="[default: STATE_DIR/agent.sock]")
@click.option("--stdin", is_flag=True, help="Read requests from standard input, one JSON object a line.")
@click.option("--http", metavar="HOST:PORT", help="Also answer over HTTP, such as 127.0.0.1:8080.  [default: not]")
@click.option("--http-token-file", type=click.Path(path_type=Path), help="Who asks over HTTP must know what is in it.")
@click.option(
    "--batch-ms",
    default=5.0,
    type=click.FloatRange(0, 1000),
    help="Requests over HTTP that wait are answered in one run as long as it takes no longer; 0: one by one.",
)
@click.option(
    "--keep-hard",
    default=0.0,
    type=click.FloatRange(0, 10240),
    help="Keep samples whose label would help most on disk, MiB at most for each model; 0: none. See review.",
)
@click.option(
    "--fleet-labels",
    is_flag=True,
    help="Send sketches of samples whose label would help to the coordinator where it asks, and take its labels.",
)
@click.option(
    "--share-pictures", is_flag=True, help="With --fleet-labels: also the picture of the sample that is asked about."
)
@click.option(
    "--evaluate-candidates",
    is_flag=True,
    help="Let the fleet ask how merged heads do on the last labels here before they go out; only counts leave.",
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Where samples come from: a folder, mqtt://HOST/TOPIC, camera:/dev/video0, microphone:DEVICE, -; repeatable.",
)
@click.option(
    "--answers",
    multiple=True,
    metavar="PLACE",
    help="Where answers to those go: mqtt://HOST/TOPIC, a file of JSON lines, -; repeatable.",
)
@click.option(
    "--home-assistant", metavar="PREFIX", help="Tell Home Assistant of this device below PREFIX, usually homeassistant."
)
@click.option("--telemetry-interval", type=click.FloatRange(min=0.1), help="Seconds.  [default: the profile's]")
@click.option(
    "--outbox", default=8.0, type=click.FloatRange(0.1, 1024), help="Reports that wait for a connection, MiB at most."
)
@click.option("--data-cap", help="Sent and received at most, such as 20MB/day or 1.5GB/month.  [default: none]")
@click.option("--sync-interval", default=600.0, type=click.FloatRange(min=0), help="Seconds between uploads.")
@click.option(
    "--upload", default="exact", metavar="HOW", help="What was learned is sent exact, int8, top-k or top-k:SHARE."
)
@click.option(
    "--noise",
    type=click.FloatRange(0, 50, min_open=True),
    metavar="EPSILON",
    help="What was learned is sent clipped and under noise: epsilon of each label, such as 4.  [default: as it is]",
)
@click.option(
    "--noise-delta", type=click.FloatRange(0, 0.1, min_open=True), help="The delta beside it.  [default: 1e-05]"
)
@click.option("--probation", default=60.0, type=click.FloatRange(min=0), help="Seconds a pushed head is watched.")
@click.option("--trust", type=click.Path(path_type=Path), help="Root document: unsigned releases are refused.")
@click.option(
    "--checkpoint-every",
    help="Send what was learned to the coordinator, such as every 12h or 7d.  [default: when asked]",
)
@click.option(
    "--checkpoint-samples", is_flag=True, help="With the features of samples that are kept for replay and to judge by."
)
@click.option("--checkpoint-key", type=click.Path(path_type=Path), help="Public key that checkpoints are sealed to.")
@click.option("--max-streams", default=256, type=click.IntRange(1), help="That a model with state remembers.")
@click.option("--stream-memory", default=16.0, type=click.FloatRange(0, min_open=True), help="Of all states, MiB.")
@click.option("--stream-expiry", default=600.0, type=click.FloatRange(0), help="Seconds until a silent one ends.")
@click.option("--seed", default=0, type=click.IntRange(0), help="Of replay draws.")
@click.option("--verbose", is_flag=True, help="Say more.")
@click.option("--log", default="text", envvar="EDGE_LOG", type=click.Choice(STYLES), help="How lines are written.")
@click.pass_context
def run(
    ctx: click.Context,
    bundles: tuple[str, ...],
    config: Path | None,
    state_dir: Path,
    device: str | None,
    fleet: str,
    broker: str | None,
    broker_password: str | None,
    broker_password_file: Path | None,
    profile: str,
    learner: str,
    executor: str,
    provider: str,
    mixture: bool,
    reject_unknown: float,
    socket_path: Path | None,
    stdin: bool,
    http: str | None,
    http_token_file: Path | None,
    batch_ms: float,
    keep_hard: float,
    fleet_labels: bool,
    share_pictures: bool,
    evaluate_candidates: bool,
    home_assistant: str | None,
    sources: tuple[str, ...],
    answers: tuple[str, ...],
    telemetry_interval: float | None,
    outbox: float,
    data_cap: str | None,
    sync_interval: float,
    upload: str,
    noise: float | None,
    noise_delta: float | None,
    probation: float,
    trust: Path | None,
    checkpoint_every: str | None,
    checkpoint_samples: bool,
    checkpoint_key: Path | None,
    max_streams: int,
    stream_memory: float,
    stream_expiry: float,
    seed: int,
    verbose: bool,
    log: Style,
) -> None:
    """Open each BUNDLE, check it on this CPU, and serve predictions until stopped.

    A model is named as its bundle says, or by NAME=; several stand side by side, and requests say which they mean.
    A model that was served before and is not named now is not served, and nothing of it is deleted.

    Applications talk to it over a Unix socket, or standard input with --stdin; see docs/agent.md.
    """
    import platform

    _spare_memory()
    from edge.agent.config import AgentConfig, named_bundles
    from edge.agent.device.health import machine_id
    from edge.agent.device.supervision import Supervisor
    from edge.agent.line.data_cap import DataCap
    from edge.agent.model.streams import StreamLimits
    from edge.agent.service import AgentService
    from edge.agent.state_folder import device_of
    from edge.channel.topics import check_id
    from edge.contract.profile import detect_profile, load_profile
    from edge.learning.compression import Compression
    from edge.learning.disclosure import DELTA, Noise

    bundles = bundles_of(ctx, bundles)
    configure(log, logging.DEBUG if verbose else logging.INFO)
    if config is not None:
        logging.getLogger("edge.agent").info("options of %s", config)
    if noise is None and noise_delta is not None:
        raise ConfigError("--noise-delta without noise; expected --noise EPSILON with it, such as --noise 4")
    device_profile = load_profile(detect_profile() if profile == "auto" else profile)
    name = check_id(device or device_of(state_dir, platform.node(), machine_id()), "device")
    options = AgentConfig(
        bundles=named_bundles(bundles),
        state_dir=state_dir,
        fleet=check_id(fleet, "fleet"),
        device=name,
        profile=device_profile,
        learner=learner,
        executor=executor,
        provider=provider,
        mixture=mixture,
        reject_unknown=reject_unknown,
        telemetry_interval_s=device_profile.telemetry.interval_s,
        sync_interval_s=sync_interval,
        upload=Compression.parse(upload),
        noise=None if noise is None else Noise(noise, noise_delta or DELTA),
        probation_s=probation,
        seed=seed,
        trust_root=trust,
        checkpoint_every_s=0.0 if checkpoint_every is None else seconds(checkpoint_every, "--checkpoint-every"),
        checkpoint_samples=checkpoint_samples,
        checkpoint_key=checkpoint_key,
        http=http_options(http, http_token_file),
        batch_ms=batch_ms,
        keep_hard_mb=keep_hard,
        fleet_labels=fleet_labels,
        share_pictures=share_pictures,
        evaluate_candidates=evaluate_candidates,
        home_assistant=prefix_of(home_assistant),
        streams=StreamLimits(most=max_streams, max_mb=stream_memory, idle_s=stream_expiry),
        outbox_mb=0.0 if broker is None else outbox,
        data_cap=None if data_cap is None else DataCap.parse(data_cap),
    )
    if telemetry_interval is not None:
        options = replace(options, telemetry_interval_s=telemetry_interval)
    transport = None
    if broker is not None:
        from edge.channel.mqtt import MqttTransport
        from edge.channel.url import BrokerUrl

        url = BrokerUrl.parse(broker, password_of(broker_password, broker_password_file))
        transport = MqttTransport(url, name, clean_start=False)
    found, sinks = feeds_of(sources, answers, name, stdin=stdin)
    service = AgentService(options, transport, Supervisor.of(os.environ, os.getpid()), sources=found, sinks=sinks)
    service.run(socket_path or state_dir / "agent.sock", stdin=stdin)


def _doctor() -> click.Command:
    from edge.cli.doctor import make_command

    return make_command(run)


_LEARNING = [
    click.option("--state-dir", type=click.Path(path_type=Path), help="Go on from what is kept there, and keep it."),
    click.option("--learner", default="auto", type=click.Choice(LEARNERS), help="How to learn."),
    click.option("--executor", default="auto", type=click.Choice(EXECUTORS), help="What runs training steps."),
    click.option("--mixture/--no-mixture", default=True, help="Heads compete; else the first learner answers alone."),
    click.option("--seed", default=0, type=click.IntRange(0), help="Of replay draws."),
]


def _with_learning(function: F) -> F:
    for option in reversed(_LEARNING):
        function = option(function)
    return function


def _open(bundle: Path, state_dir: Path | None, learner: str, executor: str, mixture: bool, seed: int) -> OnDeviceModel:
    from edge.agent.model.on_device_model import OnDeviceModel

    return OnDeviceModel.open(
        bundle, state_dir, learner=learner, executor=executor, provider="cpu", mixture=mixture, seed=seed
    )


@agent.command(epilog="Example: edge-agent replay model.edge labelled.npz --test held-out.npz --plot curve.png")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--test", type=click.Path(path_type=Path), help="Labelled samples to judge the head on, before and after."
)
@click.option("--order", default="file", type=click.Choice(["file", "shuffled", "class"]), help="Of the samples.")
@click.option("--late", default=0, type=click.IntRange(0), help="Samples by which each label comes late.")
@click.option("--add-classes", is_flag=True, help="Add class names that the bundle does not have.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the accuracy into a .png, .svg or .pdf.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the numbers.")
@click.option("--tensorboard", type=click.Path(path_type=Path), metavar="DIR", help="Write curves for TensorBoard.")
@_with_learning
def replay(
    bundle: Path,
    data: Path,
    test: Path | None,
    order: str,
    late: int,
    add_classes: bool,
    plot: Path | None,
    report: Path | None,
    tensorboard: Path | None,
    state_dir: Path | None,
    learner: str,
    executor: str,
    mixture: bool,
    seed: int,
) -> None:
    """Replay a labelled file through BUNDLE as a device would meet it: answer each sample, then learn it.

    DATA is an .npz with the samples (under the names of the inputs; of one input also x), y (class numbers, class names
    or targets), and perhaps weights (how much each label is trusted, 0 to 1). A model that remembers takes them as one
    stream. Nothing is kept without --state-dir.
    """
    _spare_memory()
    from rich.console import Console

    from edge.cli.learn import learn_file

    model = _open(bundle, state_dir, learner, executor, mixture, seed)
    try:
        learn_file(
            model,
            data,
            test,
            order=order,
            late=late,
            seed=seed,
            add_classes=add_classes,
            plot=plot,
            report=report,
            tensorboard=tensorboard,
            console=Console(),
        )
    finally:
        model.close()


@agent.command("warm-start", epilog="Example: edge-agent warm-start v2.edge v1.edge --state-dir /var/lib/edge")
@click.argument("new", type=click.Path(path_type=Path))
@click.argument("old", type=click.Path(path_type=Path))
@click.option("--state-dir", default="edge-state", type=click.Path(path_type=Path), help="Where NEW is to go on.")
@click.option("--from", "source", type=click.Path(path_type=Path), help="Where OLD learned.  [default: --state-dir]")
@click.option("--learner", default="auto", type=click.Choice(LEARNERS), help="With which NEW will run.")
@click.option("--rename", multiple=True, metavar="OLD=NEW", help="A class that is called otherwise in NEW; repeatable.")
def warm_start(
    new: Path, old: Path, state_dir: Path, source: Path | None, learner: str, rename: tuple[str, ...]
) -> None:
    """Let the bundle NEW begin with what the bundle OLD learned on this device; the agent must not run.

    Their features must mean the same: the same frozen part, or one that agrees on the golden samples of both. What
    comes over competes as a merge does: late labels decide how far it is believed.
    """
    _spare_memory()
    from edge.agent.model.on_device_model import OnDeviceModel

    pairs = [each.partition("=") for each in rename]
    if any(not separator for _, separator, _ in pairs):
        raise ConfigError("--rename: expected OLD=NEW")
    names = {before: after for before, _, after in pairs} or None
    with (
        OnDeviceModel.open(old, source or state_dir, read_only=True) as other,
        OnDeviceModel.open(new, state_dir, learner=learner, provider="cpu") as model,
    ):
        click.echo(f"{model.manifest.name}: {model.warm_start(other, class_names=names)}")


@agent.command(hidden=True, context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def learn(arguments: tuple[str, ...]) -> None:
    """Replay a labelled file: the old name of `replay`."""
    click.echo("edge-agent learn is called edge-agent replay now", err=True)
    replay.main(list(arguments), prog_name="edge-agent replay", standalone_mode=False)


@agent.command(epilog="Example: edge-agent explain model.edge samples.npz --index 3 --plot why.png")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--index", default=0, help="Number of the sample in DATA, from 0.")
@click.option("--output", help="Class name, or number of the output, to explain.  [default: the one that is answered]")
@click.option("--on", default="input", help="Input (of several inputs, the name of one) or features.")
@click.option("--window", type=click.IntRange(1), help="Side of what is covered at a time.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it into a .png, .svg or .pdf.")
@click.option("--state-dir", type=click.Path(path_type=Path), help="Explain the head that was learned there.")
@click.option("--reject-unknown", default=0.0, type=_SHARE, help="Say whether it is none of the classes; see run.")
def explain(
    bundle: Path,
    data: Path,
    index: int,
    output: str | None,
    on: str,
    window: int | None,
    plot: Path | None,
    state_dir: Path | None,
    reject_unknown: float,
) -> None:
    """Show which regions of a sample of DATA (.npz, as for replay) mattered for what BUNDLE answers."""
    _spare_memory()
    from rich.console import Console

    from edge.agent.model.answering import LearningLimits
    from edge.agent.model.on_device_model import OnDeviceModel
    from edge.cli.learn import explain_file

    limits = LearningLimits(reject_unknown=reject_unknown)
    model = OnDeviceModel.open(bundle, state_dir, provider="cpu", limits=limits, read_only=state_dir is not None)
    try:
        explain_file(model, data, index=index, output=output, on=on, window=window, plot=plot, console=Console())
    finally:
        model.close()


_ELSEWHERE = {
    "running": ("status", "predict", "label", "rollback", "export", "import"),
    "enroll": ("enroll",),
    "review": ("review",),
    "setup": ("init",),
    "unit": ("install", "uninstall"),
}
for _module, _names in _ELSEWHERE.items():
    for _name in _names:
        agent.later(_name, found_in(f"edge.cli.{_module}", "take_in" if _name == "import" else _name))
agent.later("doctor", _doctor)


def _spare_memory() -> None:
    """Keep the process small: before numpy is imported, and before there are threads.

    One BLAS thread, since heads are small. One glibc arena: the few threads here take turns anyway, and each further
    arena keeps a few MiB to itself. Blocks of 256 KiB and more go back to the system when they are free: glibc would
    raise that bound with each of them, and keep them.
    """
    import ctypes

    from edge.channel.spared import spared

    with spared("bz2", "lzma"):  # it knows how to pack archives, which no agent does
        import shutil  # noqa: F401
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    m_arena_max, m_mmap_threshold = -8, -3  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
    if mallopt is not None:
        mallopt(m_arena_max, 1)
        mallopt(m_mmap_threshold, 256 << 10)


def main() -> None:
    """Entry point."""
    run_to_exit(agent)


if __name__ == "__main__":
    main()
