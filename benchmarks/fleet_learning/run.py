"""Runs all methods on all tasks.

    python benchmarks/fleet_learning/run.py [--seeds 3] [--json result.json] [--only Edgeloop frozen]
        [--method FILE:NAME]

Each device answers a sample, then is told its label, in turn; every 25 labels of each there is an exchange. Cells:
right on the way / in the end, mean over devices / the worst device in the end; KB to and from a device. FedAvg and
FedProx are shown at the rate that is best over all tasks. `--method` adds one of your own: a class, made with a task
and a seed; it runs whatever `--only` says. Rules and results: README.md beside this.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
from continual import digits, digits_setting

from benchmarks.fleet_learning.methods import Make, baselines, chosen, flower
from benchmarks.fleet_learning.ours import Edgeloop
from benchmarks.fleet_learning.play import played
from benchmarks.fleet_learning.tasks import TASKS, Source


def source(folder: Path, seed: int) -> tuple[Any, Source]:
    """The bundle of one seed, and what tasks are made of."""
    setting = digits_setting(folder, seed)
    data = digits.load_digits_split()
    parameters, linear = setting.bundle.head_parameters(), setting.head.linear
    assert linear is not None
    assert linear.bias is not None
    return setting, Source(
        (data.train_x, data.train_y), (data.stream_x, data.stream_y), (data.test_x, data.test_y),
        setting.features, parameters[linear.weight], parameters[linear.bias],
    )  # fmt: skip


def _seeds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return int(text)


def _result(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: expected a file in a folder that is there")
    return path


def main() -> int:
    """Print the table; the exit code says whether ours is first in the end on every task, ties within half a point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=_seeds, default=3)
    parser.add_argument("--json", type=_result, help="all numbers")
    parser.add_argument("--only", nargs="+", default=[], help="of the methods that are here; yours runs anyhow")
    parser.add_argument("--method", action="append", default=[], metavar="FILE:NAME", help="one of your own")
    parser.add_argument("--cache", type=Path, help="keep the trained bundles here")
    options = parser.parse_args()
    settings: dict[int, Any] = {}
    here: dict[str, Make] = {Edgeloop.name: lambda task, seed: Edgeloop(settings[seed], task, seed)}
    try:
        makers = chosen(here | baselines(), options.only, options.method)
    except ValueError as exc:
        parser.error(str(exc))
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = options.cache or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(7, 7 + options.seeds):
            settings[seed], parts = source(folder, seed)
            for make_task in TASKS:
                task = make_task(parts, np.random.default_rng(seed))
                for method, make in makers.items():
                    found[method, task.name].append(played(task, make(task, seed)))
                    print(".", end="", flush=True)
    return said(found, options.json)


def said(found: dict[tuple[str, str], list[dict[str, float]]], path: Path | None) -> int:
    """Print, write, judge."""
    tasks = list(dict.fromkeys(task for _, task in found))
    mean = {key: {what: float(np.mean([row[what] for row in rows])) for what in rows[0]} for key, rows in found.items()}
    methods = list(dict.fromkeys(method for method, _ in found))
    rated = [[each for each in methods if each.startswith(f"{kind}, rate ")] for kind in ("FedAvg", "FedProx")]
    shown = [method for method in methods if not any(method in rates for rates in rated)]
    for rates in rated:
        if rates:
            shown.append(max(rates, key=lambda method: sum(mean[method, task]["end"] for task in tasks)))
    if path is not None:
        rows = [{"method": m, "task": t, **mean[m, t], "seeds": len(found[m, t])} for m, t in found]
        path.write_text(json.dumps({"schema": 1, "flower": flower(), "results": rows}, indent=1) + "\n")
    by = f"Flower {flower()}" if flower() else "numpy"
    print(f"\n\non the way / end / worst device, KB a device; averaged by {by}\n")
    print(f"{'':<20}" + "".join(f"{task:>30}" for task in tasks))
    for method in shown:
        cells = [mean[method, task] for task in tasks]
        texts = [f"{c['on_the_way']:.3f} / {c['end']:.3f} / {c['worst']:.3f} {c['kb']:>6.0f}" for c in cells]
        print(f"{method:<20}" + "".join(f"{text:>30}" for text in texts))
    if Edgeloop.name not in methods or len(shown) < 2:
        return 0
    late = 0
    for task in tasks:
        best = max((m for m in shown if m != Edgeloop.name), key=lambda m: mean[m, task]["end"])
        gap = mean[Edgeloop.name, task]["end"] - mean[best, task]["end"]
        is_first = gap >= -0.005
        late += not is_first
        print(f"{'first  ' if is_first else 'SECOND '} {task}: {100 * gap:+.1f} points in the end against {best}")
    return int(late > 0)


if __name__ == "__main__":
    sys.exit(main())
