"""None of these: how often samples of known and of unknown classes are rejected.

    python benchmarks/unknown.py --data meter_digits.npz [--share 0.05] [--cache FOLDER]

`--data` as for devices.py: real cameras with their own light and typeface. For each of five splits a small network is
trained on eight cameras and eight digits; it has never seen the two other cameras, nor the two other digits. A camera
that was left out learns some labels of the eight digits (sums of its features, on top of the shipped ones worth 20, as
the product begins); the threshold is counted as `edge.agent.model.rejection` does. Then it meets digits that it knows,
digits that are unknown, and what is no digit (features of known ones in random order, and twice as large). Of all
cameras the mean, and in brackets the least and the largest. Features are the network's in float.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge.learning.closed_form import PRIOR_SAMPLES
from edge.learning.novelty import Distances, calibrated
from edge.learning.statistics import HeadStatistics

Array = npt.NDArray[Any]
SPLITS = [((0, 5), (8, 9)), ((1, 6), (3, 7)), ((2, 7), (0, 4)), ((3, 8), (1, 6)), ((4, 9), (2, 5))]
EPOCHS, KNOWN, RECENT, TESTED = 10, 8, 64, 60
LABELS = (0, 40, 100, 230)


def trained(x: Array, y: Array, seed: int) -> nn.Module:
    """Three convolutions and 192 features, trained with a linear layer that is not needed here."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 24), (24, 24)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    body, head = nn.Sequential(*layers, nn.Flatten()), nn.Linear(192, KNOWN)
    model = nn.Sequential(body, head)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=1e-4)
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return body.eval()


def features_of(data: Any, folder: Path, split: int) -> tuple[Array, Array]:
    """Features of all photographs, and by digit the number of its class, -1 for the unknown ones."""
    pair, unknown = SPLITS[split]
    classes = np.full(10, -1)
    classes[np.setdiff1d(np.arange(10), unknown)] = np.arange(KNOWN)
    path = folder / f"s{split}.npz"
    if not path.exists():
        images = np.ascontiguousarray((data["x"].astype(np.float32) / 255).transpose(0, 3, 1, 2))
        keep = ~np.isin(data["meter"], pair) & (classes[data["y"]] >= 0)
        body = trained(images[keep], classes[data["y"]][keep], split)
        with torch.no_grad():
            found = [body(part).numpy() for part in torch.from_numpy(images).split(500)]
        np.savez(path, f=np.concatenate(found))
        print(f"- trained without cameras {pair} and digits {unknown}", flush=True)
    return np.load(path)["f"], classes


def rejected(features: Array, y: Array, meter: Array, split: int, share: float) -> dict[tuple[int, str], list[float]]:
    """Shares by number of labels and kind of sample, for both cameras of a split."""
    pair, _ = SPLITS[split]
    found: dict[tuple[int, str], list[float]] = {}
    there = ~np.isin(meter, pair) & (y >= 0)
    shipped = HeadStatistics.of(features[there], y[there], KNOWN)
    for device in pair:
        rng = np.random.default_rng(device)
        known = rng.permutation(np.flatnonzero((meter == device) & (y >= 0)))
        learned, test = known[:-TESTED], features[known[-TESTED:]]
        kinds = {
            "known": test,
            "unknown digits": features[(meter == device) & (y < 0)],
            "no digit": np.concatenate([rng.permuted(test, axis=1), 2 * test]),
        }
        for n in LABELS:
            rows, trust = learned[:n], np.ones(len(learned[:n]), np.float32)
            if n:
                own = HeadStatistics.of(features[rows], y[rows], KNOWN)
                measure = Distances(shipped.scaled_to(PRIOR_SAMPLES) + own)
                late = rows[-RECENT:]
                distances = measure.without(features[late], y[late], trust[-RECENT:])
            else:
                measure, rows = Distances(shipped), np.flatnonzero(there)[::3]
                distances = measure.without(features[rows], y[rows], np.ones(len(rows), np.float32))
            judge = calibrated(measure, distances, share, "")
            assert judge is not None
            for kind, samples in kinds.items():
                found.setdefault((n, kind), []).append(float((judge.of(samples) > 1).mean()))
    return found


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--cache", type=Path, help="keep the features here")
    options = parser.parse_args()
    if not options.data.exists():
        print(f"{options.data} is not there: this benchmark needs photographs of several devices (see --help)")
        return 2
    data, found = np.load(options.data), {}
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        for split in range(len(SPLITS)):
            features, classes = features_of(data, cache, split)
            for key, values in rejected(features, classes[data["y"]], data["meter"], split, options.share).items():
                found.setdefault(key, []).extend(values)
    kinds = ("known", "unknown digits", "no digit")
    print(f"\nrejected, share {options.share:g}, {len(found[0, 'known'])} cameras")
    print(f"{'labels':>8}" + "".join(f"{kind:>26}" for kind in kinds))
    for n in LABELS:
        cells = [f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in (found[n, kind] for kind in kinds)]
        print(f"{n:>8}" + "".join(f"{cell:>26}" for cell in cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
