"""The main job, end to end: see README.md beside this file."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from dashboard import photograph
from model import Digits, load_digits_split, turned
from processes import Fleet, command, wait_for
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.numpy import save_file

from edge.agent.client import AgentClient
from edge.contract.bundle import Bundle
from edge.learning.exchange import HeadRelease

CLASSES = {"camera-1": (0, 1, 2, 3), "camera-2": (3, 4, 5, 6), "camera-3": (6, 7, 8, 9), "camera-4": (2, 3, 4, 5)}
UPRIGHT = "camera-4"  # nobody turns it: what the others learned is not for its world
LABELLED = 0.7  # share of the samples of a device's classes that get a label at all
LATE = 60  # labels come so many samples late
MEASURE_EVERY, PROBES = 100, 50  # on so many test digits while digits are streamed
GOAL, WORST_AFTER_TURN = 0.95, 0.60
WAIT_S = 90  # for a rollout, with its labels on the way
PLAN = """\
release = {release}
select  = 'tag.mount = "turned"'
waves   = ["34 %", "67 %", "100 %"]     # one camera, two, all three
"""
LOST_BY_A_ROLLOUT = 0.02  # at most, by any camera: a bad head that was tried, a good one, and back
LOST_BY_THE_MERGE = 0.01  # at most, by the camera that was not turned
STEPS = ("before the turn", "after the turn", "after local labels", "after the merge", "after going back")
STOPPED = 8  # exit code of ``edge-fleet ... --wait``: the rollout stopped


@dataclass
class Results:
    """What was measured.

    Attributes:
        steps: Right answers on the test digits ``(n,)`` by (step, device).
        curve: (streamed samples, accuracy) by device.
        marks: (streamed samples, what happened).
    """

    steps: dict[tuple[str, str], npt.NDArray[np.bool_]] = field(default_factory=dict)
    curve: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    marks: list[tuple[int, str]] = field(default_factory=list)


def as_seen_by(device: str, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Digits as a camera gives them after the turn."""
    return x if device == UPRIGHT else turned(x)


def right_answers(agent: AgentClient, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Ask a running agent for each sample; no labels are given."""
    return np.array([agent.predict(f"test-{i}", x[i])["class"] == y[i] for i in range(len(x))])


def stream(agents: dict[str, AgentClient], data: Digits, results: Results, console: Console, start: int) -> int:
    """Stream digits to every device, give late labels for some, and measure on the way."""
    seen = {device: (as_seen_by(device, data.stream_x), as_seen_by(device, data.test_x[:PROBES])) for device in agents}
    rng = np.random.default_rng(1)
    waiting: dict[str, deque[int]] = {device: deque() for device in agents}
    labels = dict.fromkeys(agents, 0)
    n_streamed = len(data.stream_x)
    total = n_streamed + LATE
    steps = track(range(total), "streaming digits", console=console, disable=not console.is_terminal)
    for i in steps:
        for device, agent in agents.items():
            x, probe_x = seen[device]
            if i < n_streamed:
                agent.predict(f"streamed-{i}", x[i])
                if data.stream_y[i] in CLASSES[device] and rng.random() < LABELLED:
                    waiting[device].append(i)
            while waiting[device] and waiting[device][0] <= i - LATE:
                sample = waiting[device].popleft()
                labels[device] += bool(agent.label(f"streamed-{sample}", int(data.stream_y[sample])))
            if i % MEASURE_EVERY == 0:
                accuracy = float(right_answers(agent, probe_x, data.test_y[:PROBES]).mean())
                results.curve.setdefault(device, []).append((start + i, accuracy))
        if i % 300 == 0 and not console.is_terminal:
            console.print(f"- streamed {i} of {total}, labels so far {labels}")
    return start + total


def asked_while_labels_come(
    fleet: Fleet, agents: dict[str, AgentClient], data: Digits, *arguments: str | Path
) -> tuple[int, str]:
    """Run ``edge-fleet`` while the cameras see digits with labels, by which they judge what they are given.

    Returns:
        Its exit code, and what it printed.
    """
    command = fleet.started(*arguments)
    labelled = {device: np.flatnonzero(np.isin(data.stream_y, classes)) for device, classes in CLASSES.items()}
    at = 0
    while command.poll() is None:
        for device, agent in agents.items():
            sample = int(labelled[device][at % len(labelled[device])])
            name = f"labelled-{arguments[0]}-{at}"
            agent.predict(name, as_seen_by(device, data.stream_x[sample : sample + 1])[0])
            agent.label(name, int(data.stream_y[sample]))
        at += 1
        time.sleep(0.05)
    said, _ = command.communicate()
    return command.returncode, said.strip()


def heads(fleet: Fleet, folder: Path, bundle: Path) -> tuple[Path, Path]:
    """Files of a head of random numbers, and of one that is right for turned cameras: what the merge has learned."""
    merged = fleet.asked("releases")[0]["counter"]
    fleet.fleet("release", "download", str(merged), "-o", str(folder / "merged.safetensors"), "--force")
    learned = HeadRelease.decode((folder / "merged.safetensors").read_bytes(), "the merged head").parameters
    rng = np.random.default_rng(5)
    shapes = {name: array.shape for name, array in Bundle.open(bundle).head_parameters().items()}
    bad, good = folder / "bad.safetensors", folder / "good.safetensors"
    save_file({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, bad)
    save_file({name: np.ascontiguousarray(array) for name, array in learned.items()}, good)
    return bad, good


def roll_out(fleet: Fleet, agents: dict[str, AgentClient], data: Digits, console: Console, bundle: Path) -> list[str]:
    """Push a bad head, which stops itself; bring a good one in waves; go back. What went another way than promised."""
    faults, folder = [], fleet.folder
    bad, good = heads(fleet, folder, bundle)

    console.rule("7. edge-fleet push: a bad head stops itself at the first camera")
    code, said = asked_while_labels_come(fleet, agents, data, "push", bad, "--wait", str(WAIT_S))
    console.print(said, highlight=False, markup=False)
    rollout = fleet.asked("v1/rollouts")[0]
    counts = fleet.asked(f"v1/rollouts/{rollout['id']}")["counts"]
    console.print(f"- exit code {code}; devices by state: {counts}", highlight=False)
    if code != STOPPED or counts.get("waiting") != len(CLASSES) - 1 or counts.get("active"):
        faults.append(f"the bad head was to stop at one camera: exit code {code}, {counts}")

    console.rule("8. edge-fleet rollout: a good head goes to the turned cameras in waves")
    fleet.fleet("rollout", "abort", str(rollout["id"]), "--reason", "it was of random numbers")
    for device in agents:
        if device != UPRIGHT:
            console.print(fleet.fleet("tag", device, "mount=turned"), highlight=False)
    console.print(fleet.fleet("release", "add", str(good), "--name", "turned cameras"), highlight=False)
    plan = folder / "plan.toml"
    plan.write_text(PLAN.format(release=fleet.asked("releases")[0]["counter"]))
    console.print(fleet.fleet("rollout", "plan", str(plan)), highlight=False)
    code, said = asked_while_labels_come(fleet, agents, data, "rollout", "start", plan, "--wait", str(WAIT_S))
    console.print(said, highlight=False, markup=False)
    rollout = fleet.asked("v1/rollouts")[0]
    console.print(f"- exit code {code}; it is {rollout['state']} after {rollout['wave']} waves", highlight=False)
    if (code, rollout["state"], rollout["wave"]) != (0, "completed", 3):
        faults.append(f"the good head was to reach three cameras: exit code {code}, {rollout['state']}")

    console.rule("9. edge-fleet rollback: what they had before, as a new release")
    console.print(fleet.fleet("rollback"), highlight=False)
    release = fleet.asked("releases")[0]["counter"]

    def are_back() -> bool:
        return all(
            (row["state"], row["state_release"]) in (("active", release), ("probation", release))
            for row in fleet.known()
            if row["id"] != UPRIGHT
        )

    wait_for("the older head is live again", are_back)
    console.print(fleet.fleet("devices"), highlight=False)
    return faults


def measure(
    step: str,
    agents: dict[str, AgentClient],
    data: Digits,
    results: Results,
    at: int,
) -> None:
    """Accuracy of every device on all test digits, as its camera gives them then."""
    for device, agent in agents.items():
        x = data.test_x if step == STEPS[0] else as_seen_by(device, data.test_x)
        right = right_answers(agent, x, data.test_y)
        results.steps[step, device] = right
        results.curve.setdefault(device, []).append((at, float(right.mean())))


def table(results: Results, y: npt.NDArray[np.int64]) -> Table:
    """Accuracy by device and step, on all classes and on those without local labels."""
    made = Table(title=f"accuracy on {len(y)} test digits that no device had labels for")
    made.add_column("device", no_wrap=True)
    made.add_column("classes", no_wrap=True)
    for step in STEPS:
        made.add_column(step, justify="right")
    for device, classes in CLASSES.items():
        rows = (("all", np.ones(len(y), bool)), (f"others (not {classes[0]}-{classes[-1]})", ~np.isin(y, classes)))
        for i, (what, chosen) in enumerate(rows):
            values = [f"{results.steps[step, device][chosen].mean():.3f}" for step in STEPS]
            name = device if i == 0 else "not turned" if device == UPRIGHT else ""
            made.add_row(name, what, *values)
    return made


def plot(results: Results, path: Path) -> None:
    """Accuracy over the stream."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for device, points in results.curve.items():
        at, accuracy = zip(*points, strict=True)
        whose = f"labels for {CLASSES[device][0]} to {CLASSES[device][-1]}" + (
            ", not turned" if device == UPRIGHT else ""
        )
        axes.plot(at, accuracy, marker=".", label=f"{device} ({whose})")
    for at, what in results.marks:
        axes.axvline(at, color="0.6", linestyle="--", linewidth=1)
        axes.annotate(what, (at, 0.98), rotation=90, ha="right", va="top", color="0.35", fontsize=9)
    axes.set(xlabel="samples streamed to each device", ylabel="accuracy on all ten digits", ylim=(0, 1.02))
    axes.set_title(
        "Three cameras turned by 90° learn some classes each, the merge gives all to all; the fourth keeps its own"
    )
    axes.title.set_fontsize(10)
    axes.legend(loc="center", bbox_to_anchor=(0.63, 0.76), fontsize=9)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def run(folder: Path, keep: bool, dashboard: bool) -> int:
    """The demo; returns the exit code."""
    console = Console()
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model, bundle = folder / "model.pth", folder / "model.edge"

    with Fleet(folder, bundle, []) as fleet:  # a broker and a coordinator; there is no bundle yet
        if dashboard:
            console.print(f"dashboard: {fleet.http_url}/  (it follows the demo)", highlight=False)
        console.print((folder / "broker.log").read_text().strip(), highlight=False)

        console.rule("1. train a small convolutional network on upright digits")
        subprocess.run([sys.executable, Path(__file__).with_name("model.py"), model], check=True)
        console.rule("2. edge-convert model.pth")
        subprocess.run(command("edge-convert", model), check=True)

        console.rule(f"3. {len(CLASSES)} agents")
        data, results = load_digits_split(), Results()
        fleet.add_bundle()
        fleet.devices = list(CLASSES)
        fleet.start_agents()
        watch = f"mosquitto_sub -h 127.0.0.1 -p {fleet.broker_port} -v -t 'edge/v1/+/+/up/tele'"
        console.print(f"watch the telemetry yourself:  {watch}", highlight=False)
        agents = {device: AgentClient(fleet.socket_path(device)) for device in CLASSES}

        console.rule(f"4. upright digits, then all cameras but {UPRIGHT} are turned by 90 degrees")
        measure(STEPS[0], agents, data, results, 0)
        at = len(data.test_y)
        results.marks.append((at // 2, "cameras turned"))
        measure(STEPS[1], agents, data, results, at)
        for device in agents:
            before, after = (results.steps[step, device].mean() for step in STEPS[:2])
            what = "not turned" if device == UPRIGHT else "turned"
            console.print(f"- {device}: {before:.3f} upright, {after:.3f} {what}", highlight=False)

        console.rule("5. late labels for some classes, learning on the devices")
        at = stream(agents, data, results, console, at)
        measure(STEPS[2], agents, data, results, at)

        console.rule("6. edge-fleet merge")
        wait_for(
            "every device has sent what it learned",
            lambda: contributed(fleet) == learned(agents),
            why=lambda: held_up(agents),
        )
        console.print(fleet.fleet("merge"), highlight=False)
        wait_for("the merged head is active everywhere", lambda: all(row["state"] == "active" for row in fleet.known()))
        at += MEASURE_EVERY
        results.marks.append((at - MEASURE_EVERY // 2, "merged head pushed"))
        measure(STEPS[3], agents, data, results, at)
        console.print(fleet.fleet("devices"), highlight=False)

        faults = roll_out(fleet, agents, data, console, bundle)
        at += MEASURE_EVERY
        results.marks.append((at - MEASURE_EVERY // 2, "a bad head refused, a good one in and back"))
        measure(STEPS[4], agents, data, results, at)
        console.print(table(results, data.test_y))
        plot(results, folder / "learning.png")
        if dashboard:
            newest = max(row["id"] for row in fleet.asked("v1/rollouts"))
            console.print(f"dashboard: {photograph(fleet.http_url, folder, newest)}", highlight=False)
        took = time.monotonic() - started
        console.print(f"plot: {folder / 'learning.png'}   logs: {folder}/*.log   {took:.0f} s", highlight=False)
        if keep:
            console.print(f"the fleet keeps running until Ctrl-C:  {fleet.http_url}/  {watch}", highlight=False)
            wait_for("Ctrl-C", lambda: False, timeout_s=86_400)
    return verdict(results, data.test_y, console, faults)


def learned(agents: dict[str, AgentClient]) -> dict[str, int]:
    """Labelled samples that each device has learned by now: on a busy machine labels wait for their turn."""
    return {device: agent.status()["samples"] for device, agent in agents.items()}


def held_up(agents: dict[str, AgentClient]) -> str:
    """What labels wait for, in words."""
    found = {device: agent.status() for device, agent in agents.items()}
    waits = [
        f"{device}: {s['waiting']} labels wait for {s['waiting_for']}" for device, s in found.items() if s["waiting"]
    ]
    return "".join(f"; {each}" for each in waits)


def contributed(fleet: Fleet) -> dict[str, int]:
    """Labelled samples behind the newest contribution of each device, as the coordinator has them."""
    return {row["device"]: row["version"] for row in fleet.asked("contributions")}


def verdict(results: Results, y: npt.NDArray[np.int64], console: Console, faults: list[str]) -> int:
    """Whether the demo shows what it is for; `faults` are those of the rollouts."""
    for device, classes in CLASSES.items():
        turned_right, merged = results.steps[STEPS[1], device], results.steps[STEPS[3], device]
        back = results.steps[STEPS[4], device].mean()
        if back < merged.mean() - LOST_BY_A_ROLLOUT:
            faults.append(f"{device}: {merged.mean():.3f} before the rollouts, {back:.3f} after them")
        unlabelled = merged[~np.isin(y, classes)].mean()
        if device == UPRIGHT:
            before = results.steps[STEPS[2], device]
            if merged.mean() < before.mean() - LOST_BY_THE_MERGE:
                faults.append(f"{device}: {before.mean():.3f} before the merge, {merged.mean():.3f} after it")
            continue
        if min(merged.mean(), unlabelled) < GOAL:
            faults.append(f"{device}: {merged.mean():.3f} after the merge, {unlabelled:.3f} on classes without labels")
        if turned_right.mean() > WORST_AFTER_TURN:
            faults.append(f"{device}: turning the camera did no harm ({turned_right.mean():.3f})")
    for fault in faults:
        console.print(f"NOT AS PROMISED: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--no-dashboard", action="store_true", help="leave out the dashboard and its pictures")
    parser.add_argument("--keep", action="store_true", help="leave the fleet running until Ctrl-C")
    chosen = parser.parse_args()
    try:
        sys.exit(run(chosen.output, chosen.keep, not chosen.no_dashboard))
    except KeyboardInterrupt:
        sys.exit(130)
    except (subprocess.CalledProcessError, TimeoutError, RuntimeError) as error:
        print(f"the demo stopped: {error}; logs are in {chosen.output}", file=sys.stderr)
        sys.exit(1)
