"""What a label costs a device, from the application's call to the weights and the journal; and 50 of them at once.

    python benchmarks/label_path.py [--labels 400] [--profile]

A network of 192 features and 10 classes on digits; the state folder is on disk, as a device has it. CPU time of this
process, one thread: medians, so that other work on the machine counts little. The prediction itself is not counted.

How fast a machine is now depends on what else it does: a *call*, one addition of two arrays of 40 numbers, is timed
between the labels, and every cost is given in such calls, too. Those numbers can be compared with those of another day.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import converter
from converter.pipeline import convert
from converter.plan import ConversionPlan
from edge.agent.model.on_device_model import OnDeviceModel
from edge.contract.profile import load_profile

GOAL_MS, GOAL_BATCH_MS, BATCH = 1.0, 10.0, 50
LEARNERS = ("auto", "statistics", "sgd")
_CALLS = 200


def make_bundle(folder: Path, x: np.ndarray, y: np.ndarray) -> Path:
    """A trained network whose head takes 192 features."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(192, 10)
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(30):
        for rows in torch.split(torch.randperm(len(x)), 50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.from_numpy(x[rows])), torch.from_numpy(y[rows])).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    source = folder / "digits.pth"
    converter.save_checkpoint(
        model.eval(), source, example_input=x[:1], class_names=list("0123456789"), calibration=(x, y)
    )
    profile = load_profile("generic-x86_64")
    convert(ConversionPlan(source=source, profile=profile, output=source.with_suffix(".edge"), quantize="int8"))
    return source.with_suffix(".edge")


def cpu_ms(work: Callable[[], object], profiler: cProfile.Profile | None = None) -> float:
    """Milliseconds of CPU that something takes."""
    if profiler is not None:
        profiler.enable()
    begin = time.process_time()
    work()
    found = 1e3 * (time.process_time() - begin)
    if profiler is not None:
        profiler.disable()
    return found


def a_call_ms() -> float:
    """What one call of numpy takes just now."""
    one, other = np.zeros((4, 10)), np.ones((4, 10))

    def calls() -> None:
        for _ in range(_CALLS):
            np.add(one, other)

    return cpu_ms(calls) / _CALLS


def measured(
    bundle: Path, learner: str, x: np.ndarray, y: np.ndarray, profiler: cProfile.Profile | None = None
) -> tuple[float, float, float, float, float]:
    """Of one label, and of `BATCH` at once, features included there: ms, and how many calls; and ms of a call."""
    with tempfile.TemporaryDirectory() as name, OnDeviceModel.open(bundle, state_dir=name, learner=learner) as model:
        single, batches, calls_single, calls_batches = [], [], [], []
        for i in range(len(x)):
            model.predict_sample(f"s{i}", x[i], float(i))
            single.append(cpu_ms(lambda i=i: model.join_label(f"s{i}", int(y[i]), float(i)), profiler))  # type: ignore[misc]
            calls_single.append(a_call_ms())
        for start in range(0, len(x) - BATCH, BATCH):
            rows = slice(start, start + BATCH)
            batches.append(cpu_ms(lambda rows=rows: model.learn(x[rows], y[rows])))  # type: ignore[misc]
            calls_batches.append(a_call_ms())
    ms, batch_ms = statistics.median(single[20:]), statistics.median(batches)
    in_calls = statistics.median(a / b for a, b in zip(single[20:], calls_single[20:], strict=True))
    batch_in_calls = statistics.median(a / b for a, b in zip(batches, calls_batches, strict=True))
    return ms, in_calls, batch_ms, batch_in_calls, statistics.median(calls_single)


def main() -> int:
    """Print the table; the exit code says whether the goals were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=400)
    parser.add_argument("--profile", action="store_true", help="where a label of `auto` spends its time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = load_digits()
    x, y = (found.images / 16.0).astype(np.float32)[:, None], found.target.astype(np.int64)
    x_new, y_new = x[400:][: options.labels], y[400:][: options.labels]
    with tempfile.TemporaryDirectory() as name:
        bundle = make_bundle(Path(name), x[:400], y[:400])
        rows = {each: measured(bundle, each, x_new, y_new) for each in LEARNERS}
        if options.profile:
            profiler = cProfile.Profile()
            measured(bundle, "auto", x_new, y_new, profiler)
            pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
    print(f"CPU time, medians, 1 thread; goals: a label {GOAL_MS:g} ms, {BATCH} labels {GOAL_BATCH_MS:g} ms")
    print(
        f"{'':12}{'a label':>10}{'/ goal':>8}{'calls':>8}{f'{BATCH} labels':>12}{'/ goal':>8}{'calls':>8}{'a call':>10}"
    )
    for each, (ms, calls, batch_ms, batch_calls, call_ms) in rows.items():
        one = f"{ms:7.2f} ms{ms / GOAL_MS:8.2f}{calls:8.0f}"
        many = f"{batch_ms:9.1f} ms{batch_ms / GOAL_BATCH_MS:8.2f}{batch_calls:8.0f}"
        print(f"{each:12}{one}{many}{1e3 * call_ms:7.2f} us")
    return int(rows["auto"][0] > GOAL_MS or rows["auto"][2] > GOAL_BATCH_MS)


if __name__ == "__main__":
    sys.exit(main())
