"""``edge-agent doctor``: what is wrong with this device, its broker and its files, each with its cure."""

from __future__ import annotations

import json
import os
import platform
import queue
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.cli.configured import password_of
from edge.cli.terminal import say
from edge.contract.errors import ConfigError, EdgeError

if TYPE_CHECKING:
    from edge.agent.device.doctor import Finding
    from edge.channel.transport import Connected, Transport, TransportEvent
    from edge.channel.url import BrokerUrl

_RUNTIME_TIMEOUT_S = 120.0
BROKER_TIMEOUT_S = 10.0
ECHO_S = 3.0
_SMALL_PACKET_BYTES = 8192
_LOGIN = "check that it runs, its address, its firewall and the login"


@dataclass(slots=True)
class _Answers:
    """What a broker did.

    Attributes:
        connected: None while it did not take the login.
        refused: Reasons by topic, and by filter of a subscription.
        came_back: Whether what was published was heard.
        lost: Why the connection ended before that, or never began; "" where it did not.
    """

    connected: Connected | None = None
    refused: dict[str, str] = field(default_factory=dict)
    came_back: bool = False
    lost: str = ""


def broker(
    url: BrokerUrl, fleet: str, device: str, *, busy: bool, timeout_s: float = BROKER_TIMEOUT_S, echo_s: float = ECHO_S
) -> Iterator[Finding]:
    """Ask a broker for all that an agent needs of it.

    Says "offline" on the device's ``up/conn``, of session 0, not retained: no reader takes that for news.

    Args:
        url: Where it is, and the login.
        fleet: Of the device.
        device: Its name, under which it asks.
        busy: An agent of this device runs: asks under another name then, since its own would push the agent off.
        timeout_s: For the connection.
        echo_s: For what was published to come back.
    """
    from edge.agent.device.doctor import Finding
    from edge.channel import topics
    from edge.channel.mqtt import MqttTransport

    name = f"doctor-{secrets.token_hex(4)}" if busy else device
    try:
        transport = MqttTransport(url, name, True)
    except ConfigError as exc:
        yield Finding("fault", "broker", str(exc), "replace the files that the address names")
        return
    filters = [name for name, _ in topics.device_filters(fleet, device)]
    own = topics.own_conn(fleet, device)
    found = _ask(transport, [*filters, own], own, timeout_s, echo_s)
    if found.connected is None:
        yield Finding("fault", "broker", found.lost or f"no answer from {url} within {timeout_s:g} s", _LOGIN)
        return
    yield Finding("ok", "broker", f"{url} takes the login, as {name}")
    yield _publishing(found, own)
    for each in filters:
        yield _subscribing(found, each)
    most = found.connected.max_packet_bytes
    if most < _SMALL_PACKET_BYTES:
        yield Finding("warning", "broker limit", f"messages have at most {most} bytes: transfers are slow",
                      "raise the broker's limit (mosquitto: max_packet_size)")  # fmt: skip
    else:
        yield Finding(
            "ok", "broker limit", f"messages of {most} bytes; a limit that it keeps to itself is found in use"
        )


def _ask(transport: Transport, filters: list[str], own: str, timeout_s: float, echo_s: float) -> _Answers:
    """Connect, subscribe, publish to `own`, and listen."""
    from edge.channel import codec
    from edge.channel.messages import Conn
    from edge.channel.transport import Connected, Disconnected, Received, Refused

    events: queue.Queue[TransportEvent] = queue.Queue()
    payload = codec.encode(Conn(online=False, session=0, boot=0, ts_ms=time.time_ns() // 1_000_000))
    found = _Answers()
    transport.subscribe([(each, 1) for each in filters])
    transport.start(events.put)
    try:
        for event in _until(events, timeout_s):
            if isinstance(event, Connected):
                found.connected = event
                break
            if isinstance(event, Disconnected):  # the other version of MQTT was tried before this is said
                found.lost = event.reason
                break
        if found.connected is None:
            return found
        transport.publish(own, payload, qos=1)
        for event in _until(events, echo_s):
            match event:
                case Refused():
                    found.refused[event.topic] = event.reason
                case Disconnected():
                    found.lost = event.reason
                case Received():
                    found.came_back |= (event.topic, event.payload) == (own, payload)
            if found.came_back or found.lost:
                break
    finally:
        transport.stop()
    return found


def _publishing(found: _Answers, own: str) -> Finding:
    from edge.agent.device.doctor import Finding

    rules = f"let this device publish {own.removesuffix('conn')}# in the broker's access rules"
    if found.came_back:
        return Finding("ok", "broker rights", f"what is published to {own} comes back")
    if found.lost:
        return Finding("fault", "broker rights", f"the connection ends when {own} is published: {found.lost}", rules)
    if own in found.refused:
        return Finding("fault", "broker rights", f"{own} is refused: {found.refused[own]}", rules)
    text = f"what is published to {own} does not come back: the broker drops it, or does not let this device read it"
    return Finding("warning", "broker rights", text, f"{rules}; let it read {own}, too, to be sure")


def _subscribing(found: _Answers, topic_filter: str) -> Finding:
    from edge.agent.device.doctor import Finding

    if topic_filter in found.refused:
        text = f"the subscription of {topic_filter} is refused: {found.refused[topic_filter]}"
        cure = f"let this device subscribe to {topic_filter} in the broker's access rules"
        return Finding("fault", "broker rights", text, cure)
    if found.connected is not None and found.connected.tells_reasons:
        return Finding("ok", "broker rights", f"may subscribe to {topic_filter}")
    text = f"the broker speaks MQTT 3.1.1, which does not say whether {topic_filter} is granted"
    return Finding("warning", "broker rights", text, "look at its access rules")


def _until(events: queue.Queue[TransportEvent], timeout_s: float) -> Iterator[TransportEvent]:
    """What comes within a time."""
    end_s = time.monotonic() + timeout_s
    while (left_s := end_s - time.monotonic()) > 0:
        try:
            yield events.get(timeout=left_s)
        except queue.Empty:
            return


def runtime(
    command: tuple[str, ...] = (sys.executable, "-c", "import onnxruntime as o; print(o.__version__)"),
) -> Finding:
    """Whether onnxruntime runs here: in a process of its own, which an unknown instruction may end."""
    from edge.agent.device.doctor import Finding

    cure = "install onnxruntime for this processor: `pip install --force-reinstall onnxruntime`"
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_RUNTIME_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return Finding("fault", "onnxruntime", f"it does not start: {exc}", cure)
    if ran.returncode < 0:
        name = signal.Signals(-ran.returncode).name
        more = ": this processor lacks instructions that it was built for" if name == "SIGILL" else ""
        return Finding("fault", "onnxruntime", f"it ends with {name}{more}", cure)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding("fault", "onnxruntime", f"it cannot be imported: {last[:200]}", cure)
    return Finding("ok", "onnxruntime", f"version {ran.stdout.strip()} runs")


def bundles(arguments: tuple[str, ...], *, runs: bool) -> Iterator[Finding]:
    """Whether each bundle opens: its digests and, where onnxruntime runs, its golden outputs on this processor."""
    from edge.agent.config import named_bundles
    from edge.agent.device.doctor import Finding
    from edge.contract.bundle import Bundle

    cure = "build it again with `edge-convert`, or copy it again"
    if not arguments:
        yield Finding("warning", "bundle", "none is named", "name it here, or as `bundles` in the file of --config")
    for argument in arguments:
        try:
            for name, path in named_bundles([argument]).items():
                if runs:
                    from edge.agent.model.on_device_model import OnDeviceModel

                    OnDeviceModel.open(path, provider="cpu").close()
                    yield Finding("ok", "bundle", f"{name} ({path}) gives its golden outputs here")
                else:
                    Bundle.open(path)
                    yield Finding("ok", "bundle", f"{name} ({path}) is whole; it was not run")
        except EdgeError as exc:
            yield Finding("fault", "bundle", str(exc), cure)


def is_busy(state_dir: Path) -> bool:
    """Whether an agent has this state folder now."""
    import fcntl

    try:
        with (state_dir / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def examine(options: dict[str, Any], arguments: tuple[str, ...]) -> Iterator[Finding]:
    """All findings, in the order in which they should be cured.

    Args:
        options: Of ``edge-agent run``, by parameter.
        arguments: Its bundles.

    Raises:
        ConfigError: An option is wrong; nothing can be said before that is corrected.
    """
    from edge.agent.device import doctor as local
    from edge.agent.device.health import machine_id, temperature_c
    from edge.agent.state_folder import device_of
    from edge.channel.topics import check_id
    from edge.channel.url import BrokerUrl
    from edge.contract.profile import detect_profile, load_profile

    profile = load_profile(detect_profile() if options["profile"] == "auto" else options["profile"])
    state_dir: Path = options["state_dir"]
    device = check_id(options["device"] or device_of(state_dir, platform.node(), machine_id()), "device")
    fleet = check_id(options["fleet"], "fleet")
    password = password_of(options["broker_password"], options["broker_password_file"])
    url = None if options["broker"] is None else BrokerUrl.parse(options["broker"], password)

    yield local.clock(time.time_ns() // 1_000_000, state_dir)
    yield from local.disk(state_dir, profile.inference.max_bundle_mb)
    bits = 64 if sys.maxsize > 2**32 else 32
    yield from local.processor(platform.machine(), bits, platform.libc_ver()[0])
    yield from local.packages(signed=options["trust"] is not None, broker=url is not None,
                              old_python=sys.version_info < (3, 14))  # fmt: skip
    running = runtime()
    yield running
    yield from bundles(arguments, runs=running.level == "ok")
    yield from local.heat(temperature_c(), profile.learning.max_temperature_c)
    yield local.local_socket(options["socket_path"] or state_dir / "agent.sock")
    yield from local.secret_file(options["broker_password_file"])
    yield from root_document(options["trust"], fleet, device)
    yield from feeds(options["sources"], options["answers"])
    busy = is_busy(state_dir)
    if busy:
        yield local.Finding("ok", "agent", "runs here now; `edge-agent status` says more")
    if url is None:
        yield local.Finding("ok", "broker", "none is named: the agent works alone")
    else:
        yield from broker(url, fleet, device, busy=busy)


def root_document(root: Path | None, fleet: str, device: str) -> Iterator[Finding]:
    """Whether releases can be proved by the file of ``--trust``."""
    from edge.agent.device import doctor as local
    from edge.agent.service import is_root, trust_of
    from edge.channel.vetting import NotJudgedError

    if root is None:
        return
    trust, again = None, "run this again when the device is less busy"
    try:
        trust = trust_of(root, Path(os.devnull), fleet, device)
        assert trust is not None
        if is_root(trust, root, _RUNTIME_TIMEOUT_S):
            yield local.Finding("ok", "trust", f"{root} is a signed root document: releases must be signed below it")
        else:
            yield local.Finding("warning", "trust", f"{root} was not looked at within {_RUNTIME_TIMEOUT_S:g} s", again)
    except NotJudgedError as exc:
        yield local.Finding("warning", "trust", str(exc), again)
    except ConfigError as exc:
        yield local.Finding("fault", "trust", str(exc), "copy device/root.json of the fleet's keys here")
    finally:
        if trust is not None:
            trust.rest()


def feeds(sources: Sequence[str], answers: Sequence[str]) -> Iterator[Finding]:
    """Whether watched folders and files of answers can be used by whoever asks."""
    from edge.agent.config_file import path_of
    from edge.agent.device import doctor as local

    for text in sources:
        if (path := path_of(text)) is None:
            continue
        if not Path(path).is_dir():
            yield local.Finding("fault", "source", f"{path} is no folder", "create it, or correct --source")
        elif not os.access(path, os.W_OK | os.X_OK):
            said = f"{path} cannot be written: its files stay there, and are answered again after each restart"
            yield local.Finding("warning", "source", said, "let the user of the agent write there")
        else:
            yield local.Finding("ok", "source", f"{path} can be read, and its files moved")
    for text in answers:
        if (path := path_of(text)) is not None and not os.access(Path(path).parent, os.W_OK | os.X_OK):
            cure = "create the folder, or let the user of the agent write there"
            yield local.Finding("fault", "answers", f"{path} cannot be written", cure)


def make_command(run: click.Command) -> click.Command:
    """The command ``doctor``, with the options of ``run``."""

    def doctor(as_json: bool, **options: Any) -> None:
        """Look for what would keep `edge-agent run` with the same options from working.

        One line for each finding: ok, warning or fault, what was seen, and what to do. Ends with 1 when there is a
        fault. Changes nothing; the broker sees a login, and one message that the device is offline, which it does not
        keep.
        """
        ctx = click.get_current_context()
        given = options["bundles"] or tuple((ctx.default_map or {}).get("bundles", ()))
        found = []
        for finding in examine(options, given):
            found.append(finding)
            if not as_json:
                say(str(finding))
        if as_json:
            click.echo(json.dumps([finding.to_json() for finding in found], indent=1))
        if any(finding.level == "fault" for finding in found):
            ctx.exit(1)

    return click.Command(
        "doctor",
        callback=doctor,
        params=[*run.params, click.Option(["--json", "as_json"], is_flag=True, help="Print the findings as JSON.")],
        help=doctor.__doc__,
        epilog="Examples: edge-agent doctor; edge-agent doctor model.edge --broker mqtts://user@broker --json",
    )
