"""``kill -9`` at random moments of learning runs: does a device always resume from a whole state?

    python benchmarks/kill_learning.py [--runs 500] [--seed 0]

A process opens a bundle with a state folder and goes through a device's life with `auto`: labels, alone and several
together, classes that are added, contributions, merges of them that compete, heads that replace everything and are
confirmed or rolled back. Steps are numbered, so that the right state is known. Now and then it syncs the journal or
saves a snapshot, and it is killed after a random time, often in the middle of a write. Then the folder is opened again,
and all that it knows is compared, bit for bit, with a model that went through the same steps without ever being
disturbed: a mixed state would differ. Every acknowledged step must be there, and none twice.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge.agent.model import releases
from edge.agent.model.on_device_model import OnDeviceModel
from edge.learning import tree
from edge.learning.exchange import HeadRelease
from edge.learning.learned import Learned

LIVE = """
import sys
sys.path.insert(0, sys.argv[3])
from kill_learning import step
from edge.agent.model.on_device_model import OnDeviceModel
model = OnDeviceModel.open(sys.argv[1], sys.argv[2], executor="numpy")
assert model.state.warnings == [], model.state.warnings
number = int(sys.argv[4])
while True:
    step(model, number)
    number += 1
    print(number, flush=True)
    if number % 5 == 0:
        model.state.sync() if number % 2 else model.state.save()
"""
# A round of a device's life; what is not named here is a label. A class is added in the first rounds only.
ROUND = {
    7: "class",
    12: "contribute",
    17: "merge",
    25: "push",
    31: "roll back",
    35: "push",
    41: "confirm",
    46: "contribute",
}
N_STEPS, ROUNDS_WITH_A_CLASS, TOGETHER = 50, 3, 23


def step(model: OnDeviceModel, number: int) -> None:
    """The step of a number: the same in every process for the same state."""
    at, rng = number // N_STEPS, np.random.default_rng(number)
    what = ROUND.get(number % N_STEPS, "label")
    parameters = model.live_head().parameters
    # In one order: parameters that were read from disk have another one than those that were not.
    moved = {name: (a + rng.normal(0, 0.05, a.shape)).astype(np.float32) for name, a in sorted(parameters.items())}
    release = HeadRelease(
        backbone=model.manifest.backbone_digest, parameters=moved, class_names=model.class_names, n_samples=number
    )
    if what == "contribute":
        releases.contribution(model)
    elif what == "merge":
        kind, packed = model.learning.contribution(model.learned)
        assert kind == "statistics"
        included = {model.learned.lineage: model.n_samples}
        take(model, replace(release, merged=packed.tensors, included=included), number)
    elif what == "push":
        take(model, release, number)
    elif what == "roll back":
        releases.roll_back(model)
    elif what == "confirm":
        releases.confirm(model)
    elif what == "class" and at < ROUNDS_WITH_A_CLASS:
        model.add_class(f"further {at}")
    else:
        model.learn(*samples(number))


def take(model: OnDeviceModel, release: HeadRelease, counter: int) -> None:
    """Whatever the judgement."""
    releases.take(model, releases.look_at(model, release, competes=release.competes), counter)


def samples(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The labelled samples of a number: one, and with every fourth several that come together."""
    found = [sample(each) for each in range(number, number + (number % TOGETHER + 1 if number % 4 == 0 else 1))]
    x, y = zip(*found, strict=True)
    return np.concatenate(x), np.concatenate(y)


def sample(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The labelled sample of a number: the same in every process."""
    rng = np.random.default_rng(number)
    label = int(rng.integers(0, 10))
    x = rng.random((1, 1, 8, 8), np.float32) * 0.5
    x[0, 0, label % 8] += 0.8
    return x, np.array([label])


def main() -> int:
    """Kill, open, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    given = parser.parse_args()
    runs = given.runs
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import continual  # here, since the process that is killed reads this file, too, and needs no torch

    rng = random.Random(given.seed)
    began = time.monotonic()
    torn = lost = mixed = done = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = continual.digits_setting(folder, 7).bundle.path
        OnDeviceModel.open(bundle, folder / "state", executor="numpy").close()
        twin = OnDeviceModel.open(bundle, executor="numpy")
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        for run in range(1, runs + 1):
            line = [
                sys.executable,
                "-c",
                LIVE,
                str(bundle),
                str(folder / "state"),
                str(Path(__file__).parent),
                str(done),
            ]
            process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            assert process.stdout is not None
            assert process.stderr is not None
            first = process.stdout.readline() if rng.random() < 0.9 else b""  # the others are killed while they open
            time.sleep(rng.random() * 0.1)
            process.kill()
            numbers = (first + process.stdout.read()).split()
            errors = process.stderr.read().decode()
            process.wait()
            if "Error" in errors:
                print(f"run {run}: {errors.splitlines()[-1]}")
                torn += 1
            acknowledged = int(numbers[-1]) if numbers else done
            # As a restarted device: what is there must be what a device without a power cut would have.
            model = OnDeviceModel.open(bundle, folder / "state", executor="numpy")
            torn += bool(model.state.warnings)
            for number in range(done, acknowledged):
                step(twin, number)
            done = acknowledged
            if not same(model.learned, twin.learned):  # killed before the last step was acknowledged
                step(twin, done)
                done += 1
                if not same(model.learned, twin.learned):
                    is_lost = model.n_samples < twin.n_samples - TOGETHER or model.n_samples > twin.n_samples
                    lost, mixed = lost + is_lost, mixed + (not is_lost)
                    model.restore(replace(twin.learned, lineage=model.learned.lineage))
            model.close()
            if run % 20 == 0:
                print(f"- {run} runs, {done} steps, {time.monotonic() - began:.0f} s", flush=True)
    print(
        f"\n{runs} runs killed, {done} steps: labels, classes, contributions, merges, heads confirmed and rolled back"
    )
    print(f"states that did not open whole: {torn}; labels lost or learned twice: {lost}; states that differ: {mixed}")
    return 0 if torn + lost + mixed == 0 else 1


def same(one: Learned, other: Learned) -> bool:
    """Bit for bit, but for the random lineage."""
    left, right = (tree.flatten(nameless(each)) for each in (one, other))
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


def nameless(value: Learned) -> Learned:
    """Of no lineage."""
    trial = value.trial
    return replace(value, lineage="", trial=trial and replace(trial, before=replace(trial.before, lineage="")))


if __name__ == "__main__":
    sys.exit(main())
