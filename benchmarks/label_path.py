"""What a label costs a device, from the application's call to the weights and the journal; and 50 of them at once.

    python benchmarks/label_path.py [--labels 400]

A network of 192 features and 10 classes on digits; the state folder is on disk, as a device has it. CPU time of this
process, one thread: medians, so that other work on the machine counts little. The prediction itself is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import converter
from converter.pipeline import convert
from converter.plan import ConversionPlan
from edge.agent.on_device_model import OnDeviceModel
from edge.contract.profile import load_profile

GOAL_MS, GOAL_BATCH_MS, BATCH = 1.0, 10.0, 50
LEARNERS = ("auto", "statistics", "sgd")


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


def measured(bundle: Path, learner: str, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Milliseconds of CPU for one label, and for `BATCH` at once, features included there."""
    with tempfile.TemporaryDirectory() as name, OnDeviceModel.open(bundle, state_dir=name, learner=learner) as model:
        single, batches = [], []
        for i in range(len(x)):
            model.predict_sample(f"s{i}", x[i], float(i))
            begin = time.process_time()
            model.join_label(f"s{i}", int(y[i]), float(i))
            single.append(time.process_time() - begin)
        for start in range(0, len(x) - BATCH, BATCH):
            begin = time.process_time()
            model.learn(x[start : start + BATCH], y[start : start + BATCH])
            batches.append(time.process_time() - begin)
    return 1e3 * statistics.median(single[20:]), 1e3 * statistics.median(batches)


def main() -> int:
    """Print the table; the exit code says whether the goals were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = load_digits()
    x, y = (found.images / 16.0).astype(np.float32)[:, None], found.target.astype(np.int64)
    with tempfile.TemporaryDirectory() as name:
        bundle = make_bundle(Path(name), x[:400], y[:400])
        rows = {each: measured(bundle, each, x[400:][: options.labels], y[400:][: options.labels]) for each in LEARNERS}
    print(f"CPU time, medians, 1 thread: a label   {BATCH} labels     goals {GOAL_MS:g} ms, {GOAL_BATCH_MS:g} ms")
    for each, (one, many) in rows.items():
        print(f"  {each:<24}{one:8.2f} ms {many:8.1f} ms")
    return int(rows["auto"][0] > GOAL_MS or rows["auto"][1] > GOAL_BATCH_MS)


if __name__ == "__main__":
    sys.exit(main())
