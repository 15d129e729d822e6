"""``edge-fleet simulate``: many devices in few processes, the agent as it is, against a real broker."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.contract.choices import LEARNERS
from edge.contract.errors import ChannelError, ConfigError

if TYPE_CHECKING:
    from edge.agent.config import AgentConfig
    from edge.channel.url import BrokerUrl
    from edge.simulator.scenario import Scenario
    from edge.simulator.world import Recording

_PATH = click.Path(path_type=Path)
# So long may processes take to say farewell.
_LEAVE_S = 60.0
_NUMBERS = ("started", "connected", "samples", "judged", "right", "labels", "refused", "messages", "sent_bytes")


@click.command(
    epilog="Examples: edge-fleet simulate digits.edge --data digits.npz --broker mqtt://127.0.0.1 --devices 200; "
    "edge-fleet simulate digits.edge --data digits.npz --scenario storm.toml --processes 4 --json"
)
@click.argument("bundle", type=_PATH)
@click.option("--data", required=True, type=_PATH, help="An .npz with x and y: what the devices see, and what it is.")
@click.option("--broker", required=True, envvar="EDGE_BROKER", show_envvar=True, help="mqtt://HOST:PORT or mqtts://...")
@click.option(
    "--broker-password", envvar="EDGE_BROKER_PASSWORD", show_envvar=True, help="Instead of one in the address."
)
@click.option("--fleet", default="default", help="Fleet id.")
@click.option("--name", default="sim", help="Devices are called NAME-00000 and so on.")
@click.option("--scenario", type=_PATH, help="A TOML file, see docs/simulator.md.  [default: nothing happens]")
@click.option("--devices", type=click.IntRange(1, 100_000), help="In place of the scenario's.")
@click.option("--duration", help='In place of the scenario\'s, such as "5 min"; "0 s": until stopped.')
@click.option("--seed", type=click.IntRange(0), help="In place of the scenario's.")
@click.option("--processes", default=1, type=click.IntRange(1, 256), help="Among which the devices are shared.")
@click.option("--state-dir", type=_PATH, help="Keep what devices learn there, and go on from it.  [default: nowhere]")
@click.option("--profile", default="auto", help="Device profile: auto, a shipped name or a .toml file.")
@click.option("--learner", default="auto", type=click.Choice(LEARNERS), help="How to learn.")
@click.option("--telemetry-interval", default=60.0, type=click.FloatRange(min=0.1), help="Seconds.")
@click.option("--sync-interval", default=600.0, type=click.FloatRange(min=0), help="Seconds between uploads.")
@click.option("--probation", default=60.0, type=click.FloatRange(min=0), help="Seconds a pushed head is watched.")
@click.option("--json", "as_json", is_flag=True, help="For programs: what happened, with a row for each device.")
@click.option("--part", hidden=True, help="K:SECONDS, one of the processes, of a scenario that began then.")
def simulate(
    bundle: Path,
    data: Path,
    broker: str,
    broker_password: str | None,
    fleet: str,
    name: str,
    scenario: Path | None,
    devices: int | None,
    duration: str | None,
    seed: int | None,
    processes: int,
    state_dir: Path | None,
    profile: str,
    learner: str,
    telemetry_interval: float,
    sync_interval: float,
    probation: float,
    as_json: bool,
    part: str | None,
) -> None:
    """Run many devices with BUNDLE: each is an agent with a connection, a state folder and a world of its own.

    They are asked about samples of DATA and told labels, as a scenario says, which also says what goes wrong. The
    accuracy is that of answers before their label came, against what DATA says: wrong labels do not count as right.
    """
    from edge.agent.config import AgentConfig, named_bundles
    from edge.channel.topics import check_id
    from edge.channel.url import BrokerUrl
    from edge.contract.profile import detect_profile, load_profile

    _open_more_files()
    play = _scenario(scenario, devices, duration, seed)
    url = BrokerUrl.parse(broker, broker_password)
    with ExitStack() as stack:
        if state_dir is None:
            state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeloop-simulated-")))
        config = AgentConfig(
            bundles=named_bundles((str(bundle),)),
            state_dir=state_dir,
            fleet=check_id(fleet, "fleet"),
            device=check_id(f"{name}-00000", "device")[:-6],
            profile=load_profile(detect_profile() if profile == "auto" else profile),
            learner=learner,
            provider="cpu",  # to try others for each device would take longer than most scenarios
            telemetry_interval_s=telemetry_interval,
            sync_interval_s=sync_interval,
            probation_s=probation,
        )
        recording = _recording(data, config)
        play.check(recording.n_classes)
        if part is not None:
            _run_part(config, recording, play, part, processes, url)
            return
        from edge.channel.mqtt import probe

        probe(url, 10.0)
        _Parts(play, processes, state_dir, broker_password).run(as_json=as_json)


def _open_more_files() -> None:
    """A device has ten open files, and most systems let a process have 1,024 unless it asks for more."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _scenario(path: Path | None, devices: int | None, duration: str | None, seed: int | None) -> Scenario:
    from edge.contract.durations import seconds
    from edge.simulator.scenario import Scenario, read_scenario

    found = Scenario() if path is None else read_scenario(path)
    if duration is not None:
        try:
            seconds(duration)
        except ValueError as exc:
            raise ConfigError(f"--duration: {exc}") from exc
        found = replace(found, lasts=duration)
    if devices is not None:
        found = replace(found, devices=devices)
    return found if seed is None else replace(found, seed=seed)


def _recording(path: Path, config: AgentConfig) -> Recording:
    """The samples, checked against the bundle.

    Raises:
        ConfigError: They do not fit.
    """
    import numpy as np

    from edge.contract.bundle import Bundle
    from edge.inference.named_arrays import fitted, read_arrays
    from edge.simulator.world import Recording

    manifest = Bundle.open(next(iter(config.bundles.values()))).manifest
    arrays = read_arrays(path)
    y = arrays.pop("y", None)
    if len(manifest.inputs) != 1:
        raise ConfigError(f"the model takes {len(manifest.inputs)} inputs; simulate shows samples to models of one")
    if y is None or not len(y):
        raise ConfigError(f"{path}: expected labelled samples, arrays x and y; got {', '.join(arrays) or 'none'}")
    x = fitted(arrays, manifest.inputs)[manifest.inputs[0].name]
    if len(x) != len(y):
        raise ConfigError(f"{path}: expected a label for each of {len(x)} samples, got {len(y)}")
    if y.dtype.kind in "US":
        names = list(manifest.class_names)
        unknown = sorted({str(each) for each in y} - set(names))
        if unknown:
            raise ConfigError(f"{path}: y has {unknown[0]!r:.40}, which is no class of the bundle")
        y = np.array([names.index(str(each)) for each in y])
    return Recording(x, y.astype(np.int64) if y.dtype.kind in "iub" and y.ndim == 1 else y.astype(np.float32))


def _run_part(
    config: AgentConfig, recording: Recording, play: Scenario, part: str, processes: int, url: BrokerUrl
) -> None:
    """One of the processes."""
    from edge.channel.mqtt import MqttTransport
    from edge.contract.durations import seconds
    from edge.simulator.service import Devices

    number, start = part.split(":")
    start_s = float(start)
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(message)s")
    said = threading.Lock()

    def say(line: str) -> None:
        with said:
            click.echo(line)

    def connect(device: str) -> MqttTransport:
        return MqttTransport(url, device, clean_start=False)

    indices = range(int(number), play.devices, processes)
    ours = Devices(config, recording, play, indices, connect, start_s, say)
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: ours.stop())
    lasts_s = seconds(play.lasts)
    ours.run(start_s + lasts_s if lasts_s else float("inf"))


class _Parts:
    """The processes, from outside: started, killed where the scenario says so, and heard."""

    def __init__(self, play: Scenario, processes: int, state_dir: Path, password: str | None) -> None:
        self._play, self._n, self._state_dir, self._password = play, processes, state_dir, password
        self._start_s = time.monotonic()
        self._running: dict[int, subprocess.Popen[str]] = {}
        self._now: dict[int, dict[str, Any]] = {}  # the last report of each
        self._before: list[dict[str, Any]] = []  # the last ones of those that were killed
        self._died: list[str] = []
        self._stopping = False

    def run(self, *, as_json: bool) -> None:
        """Run all to the end, and say what happened.

        Raises:
            ChannelError: A process ended by itself.
        """
        for ending in (signal.SIGTERM, signal.SIGINT):
            signal.signal(ending, self._stop)
        try:
            for number in range(self._n):
                self._start(number)
            with _shown(as_json) as show:
                self._watch(show)
        finally:
            for process in self._running.values():
                process.kill()
        self._say(as_json)
        if self._died:
            raise ChannelError("; ".join(self._died))

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _start(self, number: int) -> None:
        arguments = [*sys.argv[1:], "--part", f"{number}:{self._start_s!r}", "--state-dir", str(self._state_dir)]
        environment = os.environ | ({} if self._password is None else {"EDGE_BROKER_PASSWORD": self._password})
        process = subprocess.Popen(
            [sys.executable, "-m", "edge.cli.fleet", *arguments],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us, who tell them
        )
        self._running[number] = process
        threading.Thread(target=self._hear, args=(number, process), daemon=True).start()

    def _hear(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                self._now[number] = json.loads(line)
            except ValueError:  # the last words of one that was killed
                continue

    def _watch(self, show: Any) -> None:
        from edge.simulator.service import struck

        faults = [
            (self._start_s + at_s, number, begins)
            for at_s, number, begins in self._play.moments()
            if self._play.faults[number].kind == "kill"
        ]
        leave_s = None
        while self._running or (faults and not self._stopping):
            if self._stopping and leave_s is None:
                leave_s = time.monotonic() + _LEAVE_S
                for process in self._running.values():
                    process.terminate()
            if leave_s is not None and time.monotonic() > leave_s:
                return
            while faults and faults[0][0] <= time.monotonic() and not self._stopping:
                _, fault, begins = faults.pop(0)
                for number in struck(self._play, fault, self._n):
                    self._kill(number) if begins else self._start(number)
            for number, process in list(self._running.items()):
                if process.poll() is None:
                    continue
                del self._running[number]
                if process.returncode:
                    self._died.append(f"process {number} of the simulation ended with {process.returncode}")
            show(self._line())
            time.sleep(0.1)

    def _kill(self, number: int) -> None:
        process = self._running.pop(number, None)
        if process is None:
            return
        process.kill()
        process.wait()
        if (last := self._now.pop(number, None)) is not None:
            self._before.append(last)

    def _total(self) -> dict[str, Any]:
        found: dict[str, Any] = dict.fromkeys(_NUMBERS, 0)
        releases: Counter[str] = Counter()
        events: Counter[str] = Counter()
        now = list(self._now.values())
        for report in now + self._before:
            for key in _NUMBERS if report in now else _NUMBERS[2:]:
                found[key] += report.get(key, 0)
            events.update(report.get("events", {}))
        for report in now:
            releases.update(report.get("releases", {}))
        accuracy = round(found["right"] / found["judged"], 4) if found["judged"] else None
        return {**found, "accuracy": accuracy, "releases": dict(releases), "events": dict(events)}

    def _line(self) -> str:
        total = self._total()
        right = "" if total["accuracy"] is None else f", {total['accuracy']:.1%} right before their label"
        runs = ", ".join(f"{count} on release {release}" for release, count in sorted(total["releases"].items()))
        return (
            f"{time.monotonic() - self._start_s:.0f} s: {total['started']} of {self._play.devices} devices started, "
            f"{total['connected']} connected; {total['samples']} samples{right}, {total['labels']} labels; {runs}"
        )

    def _say(self, as_json: bool) -> None:
        total = self._total()
        if as_json:
            rows = [row for report in self._now.values() for row in report.get("devices", ())]
            click.echo(json.dumps(total | {"devices": sorted(rows, key=lambda row: str(row["device"]))}, indent=1))
            return
        click.echo(self._line())
        for kind, count in sorted(total["events"].items()):
            click.echo(f"  {count} x {kind}")


@contextmanager
def _shown(as_json: bool) -> Iterator[Any]:
    """Something that shows a line of progress: live on a terminal, each ten seconds elsewhere, on standard error."""
    from rich.console import Console

    console, last = Console(stderr=True), [time.monotonic()]
    if as_json or not console.is_terminal:

        def say(line: str) -> None:
            if not as_json and time.monotonic() - last[0] >= 10.0:
                last[0] = time.monotonic()
                click.echo(line, err=True)

        yield say
        return
    with console.status("starting") as status:
        yield status.update
