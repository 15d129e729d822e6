"""Merging on devices that each have a world of their own: what the shipped statistics are worth, who is let in, groups.

    python benchmarks/merge_cameras.py --data meter_digits.npz [--splits 5] [--skip-screening]

Photographs of single digits of ten meters, each with its own camera: ``x (n, 32, 20, 3)`` uint8, ``y (n,)``, ``meter
(n,)``. For each split a small network is trained on five of them, and the other five are the devices; all features are
the network's in float. Statistics, screening, groups and merges are the product's own. Garbage is that of
merge_heads.py, from one device at a time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from merge_heads import GARBAGE, of
from torch import nn

from edge.learning.solve import solve
from edge.learning.statistics import HeadStatistics
from edge.merging.groups import alike
from edge.merging.outsiders import worth_shipped
from edge.merging.policy import MergePolicy
from edge.merging.screening import screen_statistics

Samples = tuple[np.ndarray, np.ndarray]
N_CLASSES, EPOCHS, N_LABELS = 10, 20, 230


def trained(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[nn.Module, nn.Linear]:
    """A network of three convolutions and 192 features, and its last layer."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 24), (24, 24)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.AvgPool2d(2)]
    body, head = nn.Sequential(*layers, nn.Flatten()), nn.Linear(192, N_CLASSES)
    model = nn.Sequential(body, head)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return body.eval(), head


def accuracy(statistics: HeadStatistics, samples: Samples) -> float:
    """Of the head that they determine."""
    weights, biases = solve(statistics)
    return float(((samples[0] @ weights.T + biases).argmax(axis=1) == samples[1]).mean())


class Split:
    """A network, and what the five cameras saw that it was not trained for."""

    def __init__(self, data: dict[str, np.ndarray], seed: int) -> None:
        images = data["x"].transpose(0, 3, 1, 2).astype(np.float32) / 255
        y, meter = data["y"].astype(np.int64), data["meter"]
        rng = np.random.default_rng(seed)
        names = rng.permutation(np.unique(meter))
        known = np.isin(meter, names[:5])
        body, head = trained(images[known], y[known], seed)
        with torch.no_grad():
            parts = [body(part) for part in torch.from_numpy(images).split(500)]
            self.head = head.weight.numpy().copy(), head.bias.numpy().copy()
        x = torch.cat(parts).numpy().astype(np.float64)
        self.shipped = of(x[known], y[known])
        self.old = [(x[meter == name], y[meter == name]) for name in names[:5]]
        self.learned: list[Samples] = []
        self.later: list[Samples] = []
        for name in names[5:]:
            order = rng.permutation(np.flatnonzero(meter == name))
            self.learned.append((x[order[:N_LABELS]], y[order[:N_LABELS]]))
            self.later.append((x[order[N_LABELS:]], y[order[N_LABELS:]]))

    def prior(self, learned: HeadStatistics) -> HeadStatistics:
        """The shipped statistics beside what was learned."""
        return self.shipped.scaled_to(worth_shipped(learned, self.head, MergePolicy().prior_samples))

    def frozen(self, samples: Samples) -> float:
        """Accuracy of the head as trained."""
        return float(((samples[0] @ self.head[0].T + self.head[1]).argmax(axis=1) == samples[1]).mean())


def worth(splits: list[Split]) -> None:
    """What the shipped statistics are worth in a merge."""
    print(f"\n{'accuracy, mean (least device)':<34}{'in it':>18}{'outside':>18}{'the five old ones':>20}")
    rows: dict[str, list[list[float]]] = {"shipped head": [[], [], []], "each by itself": [[], [], []]}
    for split in splits:
        own = [of(*samples) for samples in split.learned]
        rows["shipped head"][0] += [split.frozen(samples) for samples in split.later]
        rows["shipped head"][1] += [split.frozen(samples) for samples in split.later]
        rows["shipped head"][2] += [split.frozen(samples) for samples in split.old]
        alone = [split.shipped.scaled_to(20) + each for each in own]
        rows["each by itself"][0] += [accuracy(*each) for each in zip(alone, split.later, strict=True)]
        for n in (20, 50, 100, 200, 500):
            row = rows.setdefault(f"merged, shipped worth {n}", [[], [], []])
            total = sum(own, start=split.shipped.scaled_to(n))
            row[0] += [accuracy(total, samples) for samples in split.later]
            row[1] += [accuracy(total - each, samples) for each, samples in zip(own, split.later, strict=True)]
            row[2] += [accuracy(total, samples) for samples in split.old]
        row = rows.setdefault("merged, as a merge weighs them", [[], [], []])
        learned = sum(own, start=HeadStatistics.empty(len(own[0].gram) - 1, N_CLASSES))
        total = learned + split.prior(learned)
        row[0] += [accuracy(total, samples) for samples in split.later]
        row[2] += [accuracy(total, samples) for samples in split.old]
        for each, samples in zip(own, split.later, strict=True):
            row[1].append(accuracy(learned - each + split.prior(learned - each), samples))
    for name, columns in rows.items():
        cells = [f"{np.mean(values):.3f} ({min(values):.3f})" if values else "" for values in columns]
        print(f"{name:<34}{cells[0]:>18}{cells[1]:>18}{cells[2]:>20}", flush=True)


def screening(splits: list[Split], n_labels: int) -> None:
    """Who is let into the sum, when one of the five sends garbage."""
    print(f"\none of five cameras sends garbage, {n_labels} labels each")
    print(f"{'':<24}{'refused':>10}{'set aside':>11}{'undecided':>11}{'of':>5}", end="")
    print(f"{'honest refused':>17}{'set aside':>11}{'of':>6}")
    for kind in ("honest", *GARBAGE):
        counts = np.zeros(6, int)
        for seed, split in enumerate(splits):
            rng = np.random.default_rng(seed)
            samples = [(x[:n_labels], y[:n_labels]) for x, y in split.learned]
            for bad in range(len(samples)) if kind != "honest" else [-1]:
                sent = [GARBAGE[kind](*s, rng) if i == bad else of(*s) for i, s in enumerate(samples)]
                found = screen_statistics(sent, split.shipped)
                counts[:3] += [bad in found.refused, bad in found.set_aside, bad in found.undecided]
                counts[3:] += [
                    len(found.refused.keys() - {bad}),
                    len(found.set_aside.keys() - {bad}),
                    len(sent) - (bad >= 0),
                ]
        n_bad = 0 if kind == "honest" else 5 * len(splits)
        a, b, c, d, e, f = counts
        print(f"{kind:<24}{a:>10}{b:>11}{c:>11}{n_bad:>5}{d:>17}{e:>11}{f:>6}", flush=True)


def clusters(splits: list[Split]) -> None:
    """Three devices with 80 labels behind each camera."""
    rows: dict[str, list[float]] = {}
    for split in splits:
        sums, at = {}, {}
        for camera, (x, y) in enumerate(split.learned):
            for part in range(3):
                here = slice(part * 76, (part + 1) * 76)
                sums[f"{camera}-{part}"], at[f"{camera}-{part}"] = of(x[here], y[here]), camera
        found = alike(sums)
        everybody = sum(sums.values(), start=split.shipped.scaled_to(100))
        for group in found:
            together = sum((sums[device] for device in group), start=split.shipped.scaled_to(100))
            for device in group:
                later = split.later[at[device]]
                rows.setdefault("by itself", []).append(accuracy(split.shipped.scaled_to(20) + sums[device], later))
                rows.setdefault("merge of all", []).append(accuracy(everybody, later))
                rows.setdefault("merge of its group", []).append(accuracy(together, later))
        print(f"groups: {', '.join(' '.join(group) for group in found)}", flush=True)
    print("\nthree devices behind each camera, 76 labels each: accuracy, mean (least)")
    for name, values in rows.items():
        print(f"{name:<24}{np.mean(values):.3f} ({min(values):.3f})")


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="npz with x, y and meter; not part of the project")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--skip-screening", action="store_true", help="it takes minutes")
    options = parser.parse_args()
    if not options.data.exists():
        print(f"{options.data} is not there: this benchmark needs photographs of real devices")
        return 0
    torch.set_num_threads(1)
    with np.load(options.data) as archive:
        data = {name: archive[name] for name in ("x", "y", "meter")}
    splits = [Split(data, seed) for seed in range(options.splits)]
    worth(splits)
    clusters(splits)
    if not options.skip_screening:
        for n_labels in (40, 150):
            screening(splits, n_labels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
