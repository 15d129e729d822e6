"""``edge-agent``: the process on the device."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import click

from edge import __version__
from edge.contract.choices import EXECUTORS, LEARNERS
from edge.contract.errors import run_to_exit


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="edge-agent")
def agent() -> None:
    """Run a bundle on this device: predict, learn, report, take updates."""


@agent.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--state-dir", default="edge-state", type=click.Path(path_type=Path), help="Everything the agent keeps.")
@click.option("--device", help="Device id.  [default: the host name]")
@click.option("--fleet", default="default", help="Fleet id.")
@click.option(
    "--broker", help="mqtt://HOST:PORT or mqtts://...; without it the agent works alone.", envvar="EDGE_BROKER"
)
@click.option("--broker-password", envvar="EDGE_BROKER_PASSWORD", help="Instead of one in the address.")
@click.option("--profile", default="auto", help="Device profile: auto, a shipped name or a .toml file.")
@click.option("--learner", default="auto", type=click.Choice(LEARNERS), help="How to learn.")
@click.option("--executor", default="auto", type=click.Choice(EXECUTORS), help="What runs training steps.")
@click.option("--gate/--no-gate", default=True, help="A learner must prove itself on labels before it is live.")
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="[default: STATE_DIR/agent.sock]")
@click.option("--stdin", is_flag=True, help="Read requests from standard input, one JSON object a line.")
@click.option("--telemetry-interval", type=click.FloatRange(min=0.1), help="Seconds.  [default: the profile's]")
@click.option("--sync-interval", default=600.0, type=click.FloatRange(min=0), help="Seconds between uploads.")
@click.option("--probation", default=60.0, type=click.FloatRange(min=0), help="Seconds a pushed head is watched.")
@click.option("--seed", default=0, help="Of replay draws.")
@click.option("--verbose", is_flag=True, help="Say more.")
def run(
    bundle: Path,
    state_dir: Path,
    device: str | None,
    fleet: str,
    broker: str | None,
    broker_password: str | None,
    profile: str,
    learner: str,
    executor: str,
    gate: bool,
    socket_path: Path | None,
    stdin: bool,
    telemetry_interval: float | None,
    sync_interval: float,
    probation: float,
    seed: int,
    verbose: bool,
) -> None:
    """Open BUNDLE, check it on this CPU, and serve predictions until stopped.

    Applications talk to it over a Unix socket, or standard input with --stdin; see docs/agent.md.
    """
    import platform

    _spare_memory()
    from edge.agent.config import AgentConfig
    from edge.agent.service import AgentService
    from edge.channel.topics import check_id
    from edge.contract.profile import detect_profile, load_profile

    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(message)s")
    device_profile = load_profile(detect_profile() if profile == "auto" else profile)
    name = check_id(device or platform.node().lower() or "device", "device")
    config = AgentConfig(
        bundle=bundle,
        state_dir=state_dir,
        fleet=check_id(fleet, "fleet"),
        device=name,
        profile=device_profile,
        learner=learner,
        executor=executor,
        gate=gate,
        telemetry_interval_s=device_profile.telemetry.interval_s,
        sync_interval_s=sync_interval,
        probation_s=probation,
        seed=seed,
    )
    if telemetry_interval is not None:
        config = replace(config, telemetry_interval_s=telemetry_interval)
    transport = None
    if broker is not None:
        from edge.channel.mqtt import MqttTransport
        from edge.channel.url import BrokerUrl

        url = BrokerUrl.parse(broker, broker_password)
        transport = MqttTransport(url, name, clean_start=False)
    service = AgentService(config, transport)
    service.run(socket_path or state_dir / "agent.sock", stdin=stdin)


def _spare_memory() -> None:
    """Keep the process small: before numpy is imported, and before there are threads.

    One BLAS thread, since heads are small. One glibc arena: the few threads here take turns anyway, and each further
    arena keeps a few MiB to itself.
    """
    import ctypes
    import os

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    m_arena_max = -8  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
    if mallopt is not None:
        mallopt(m_arena_max, 1)


def main() -> None:
    """Entry point."""
    run_to_exit(agent)


if __name__ == "__main__":
    main()
