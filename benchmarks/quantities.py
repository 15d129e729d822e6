"""Quantities: are labels learned that go with the samples, and no others?

    python benchmarks/quantities.py [--seeds 20] [--labels 140]

Three small regressions (diabetes; Friedman's first function, with noise; two measurements of breast cancers from ten
others). A network is trained on two fifths of the samples and converted. `auto` learns a stream of others as on a
device, with labels that are right, of another offset or scale, with the other sign, of another function, from the
middle on of another offset, wrong for one sample in five, permuted among all samples, from the middle on permuted, or
the same for all.

Losses are squared errors on the remaining samples and their *true* labels, over the variance of what the network was
trained for. A stream is bad if at any of its looks, every 20 labels, the answers were worse than those of the shipped
head by more than 0.05.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer, load_diabetes, make_friedman1

sys.path.insert(0, str(Path(__file__).resolve().parent))
import continual

Array = npt.NDArray[Any]
KINDS = (
    "right",
    "offset",
    "scale",
    "other sign",
    "other function",
    "drift",
    "20 % wrong",
    "permuted",
    "then permuted",
    "all the same",
)
EVERY, WORSE = 20, 0.05


def regressions() -> dict[str, tuple[Array, Array]]:
    """Samples ``(n, features)`` and quantities ``(n, outputs)``, float32, of mean 0 and variance 1."""
    diabetes, cancer = load_diabetes(), load_breast_cancer()
    friedman = make_friedman1(700, noise=1.0, random_state=0)
    found = {
        "diabetes": (diabetes.data, diabetes.target[:, None]),
        "friedman": (friedman[0], friedman[1][:, None]),
        "cancer": (cancer.data[:, :10], cancer.data[:, [21, 24]]),
    }
    return {name: (scaled(x), scaled(y)) for name, (x, y) in found.items()}


def scaled(values: Array) -> Array:
    """To mean 0 and variance 1."""
    return np.asarray((values - values.mean(axis=0)) / values.std(axis=0), np.float32)


def given(kind: str, x: Array, y: Array, late: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """The true quantities of a world, and the labels that are given for them.

    Args:
        kind: One of `KINDS`.
        x: ``(n, features)``.
        y: ``(n, outputs)`` what the network was trained for.
        late: ``(n,)`` whether a sample comes in the second half.
        rng: Draws.
    """
    true = {
        "offset": y + 3,
        "scale": 1.2 * y,
        "other sign": -y,
        "other function": y + 1.5 * x[:, 1:2],
        "drift": y + 1.5 * late[:, None],
    }.get(kind, y)
    labels = true.copy()
    shuffled = {"20 % wrong": rng.random(len(y)) < 0.2, "permuted": np.ones(len(y), bool), "then permuted": late}
    if kind in shuffled:
        which = np.flatnonzero(shuffled[kind])
        labels[which] = labels[rng.permutation(which)]
    if kind == "all the same":
        labels[:] = labels[0]
    return true.astype(np.float32), labels.astype(np.float32)


def stream(setting: Any, x: Array, y: Array, rest: Array, kind: str, seed: int, n: int) -> tuple[float, ...]:
    """One stream: losses of the shipped head, on the way, after 20 labels and all; the worst difference; the credit."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(rest)
    features, x, y = setting.features(x[rows]), x[rows], y[rows]
    late, test = np.arange(len(rows)) >= n // 2, slice(n, None)
    # Wrong labels come from the labels of the stream; what is true later is true for the tests.
    true, _ = given(kind, x, y, late, rng)
    _, labels = given(kind, x[:n], y[:n], late[:n], rng)
    model = continual.Model(setting.learning("auto", seed))
    shipped = model.learning.shipped_answer(features)
    way, looks = [], []
    for i in range(n):
        way.append(loss(model.answer(features[i : i + 1]), true[i : i + 1]))
        model.learn(features, labels, i)
        if (i + 1) % EVERY == 0:
            now = y if kind == "drift" and not late[i] else true
            found = loss(model.answer(features[test]), now[test])
            looks.append((loss(shipped[test], now[test]), found))
    worst = max(after - before for before, after in looks)
    credit = model.learned.mixture.credit(setting.task)
    return looks[-1][0], float(np.mean(way)), looks[0][1], looks[-1][1], worst, credit


def loss(answers: Array, true: Array) -> float:
    """Mean squared error; the variance of what the network was trained for is 1."""
    return float(np.square(answers - true).mean())


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--labels", type=int, default=140)
    options = parser.parse_args()
    began, rows = time.monotonic(), dict[str, list[tuple[float, ...]]]()
    with tempfile.TemporaryDirectory() as folder:
        for name, (x, y) in regressions().items():
            order = np.random.default_rng(0).permutation(len(x))
            home, rest = np.split(order, [len(x) * 2 // 5])
            setting = continual.trained(Path(folder), name, x[home], y[home], y.shape[1])
            for kind in KINDS:
                for seed in range(options.seeds):
                    rows.setdefault(kind, []).append(stream(setting, x, y, rest, kind, seed, options.labels))
    heads = ("shipped", "on the way", "after 20", "after all", "worst", "believed", "bad")
    print(f"{'labels':<16}" + "".join(f"{head:>12}" for head in heads))
    for kind, found in rows.items():
        table = np.array(found)
        shipped, way, early, end, _, credit = table.mean(axis=0)
        worst, bad = table[:, 4].max(), int((table[:, 4] > WORSE).sum())
        numbers = "".join(f"{value:>12.3f}" for value in (shipped, way, early, end, worst, credit))
        print(f"{kind:<16}{numbers}{f'{bad} of {len(found)}':>12}")
    print(f"{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
