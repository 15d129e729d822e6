"""Merging what devices learned: summed statistics in one exchange against ten rounds of averaging SGD heads.

    python benchmarks/merge_heads.py [--seeds 3] [--fleets 20]

Digits turned by 90 degrees, frozen upright backbone (the network of examples/01_digits_fleet, trained and quantized).
Each device gets labels for some classes only, every streamed sample goes to one device, and the accuracy is over all
classes on digits that nobody was given. All learners and merges are the product's own. Of averaged heads it is the last
round of ten, for plain SGD with the best of three learning rates. "In trouble": 10 % of the devices, chosen at random,
send garbage and 30 % are lost; for statistics that is drawn anew for each of some fleets, since it depends on who is
lost. The ceiling is the head learned in one place from all samples.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converter.pipeline import convert
from converter.plan import ConversionPlan
from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.contract.profile import load_profile
from edge.contract.training import Parameters
from edge.inference.numpy_trainer import NumpyTrainer
from edge.inference.onnx_session import OnnxSession
from edge.learning.closed_form import PRIOR_SAMPLES
from edge.learning.sgd import SgdLearner
from edge.learning.solve import head_of
from edge.learning.statistics import HeadStatistics
from edge.learning.task import Task
from edge.learning.whitening import Whitening
from edge.merging.deltas import Delta, apply_change, mean_change
from edge.merging.robust import coordinate_median, krum, trimmed_mean
from edge.merging.screening import screen_statistics

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "01_digits_fleet"))
import model as digits

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Part = npt.NDArray[np.int64]
Rule = Callable[[Parameters, list[Delta]], Parameters]
Generator = np.random.Generator
# What the sum is to reach in trouble.
GOAL = 0.95
N_CLASSES, ROUNDS, RATES = 10, 10, (0.3, 1.0, 3.0)  # rates: times the bundle's own


def averaged(base: Parameters, deltas: list[Delta]) -> Parameters:
    """FedAvg."""
    return apply_change(base, mean_change(base, deltas))


def share(labels: Labels, devices: int, classes_each: int, rng: Generator) -> list[Part]:
    """Indices of each device's samples: each sample goes to one of the devices that have its class."""
    owned = [{c % N_CLASSES for c in range(i * classes_each, (i + 1) * classes_each)} for i in range(devices)]
    owners = [[i for i, classes in enumerate(owned) if label in classes] for label in range(N_CLASSES)]
    owner = np.array([rng.choice(owners[label]) if owners[label] else -1 for label in labels])
    return [np.flatnonzero(owner == i) for i in range(devices)]


def of(x: Features, y: Labels) -> HeadStatistics:
    """As a device sends them: float32."""
    sent = HeadStatistics.of(x, y, N_CLASSES).to_tensors()
    return HeadStatistics.from_tensors(sent, x.shape[1], N_CLASSES)


def random_matrices(x: Features, y: Labels, rng: Generator) -> HeadStatistics:
    """Noise of the right size, with the right counts."""
    honest = of(x, y)
    gram = rng.normal(size=honest.gram.shape) * np.abs(honest.gram).mean()
    moment = rng.normal(size=honest.moment.shape) * np.abs(honest.moment).mean()
    gram = gram + gram.T
    gram[np.diag_indices_from(gram)] = np.abs(np.diag(gram))
    gram[-1, -1], moment[-1] = len(y), honest.class_counts
    return HeadStatistics(gram, moment)


def moments_flipped(x: Features, y: Labels, rng: Generator) -> HeadStatistics:
    """The other sign, but for the counts."""
    del rng
    honest = of(x, y)
    return HeadStatistics(honest.gram, np.concatenate([-honest.moment[:-1], honest.moment[-1:]]))


def noise(x: Features, rng: Generator) -> Features:
    """Of the same size as the features."""
    return (np.abs(rng.normal(size=x.shape)) * np.sqrt(np.square(x).mean())).astype(np.float32)


def permuted(y: Labels, rng: Generator) -> Labels:
    """Every class of the device takes another class's name."""
    while True:
        names = rng.permutation(N_CLASSES)
        if (names[y] != y).all():
            return names[y]


def swapped(y: Labels) -> Labels:
    """The classes of the device take each other's names."""
    own, index = np.unique(y, return_inverse=True)
    return np.roll(own, 1)[index]


GARBAGE: dict[str, Callable[[Features, Labels, Generator], HeadStatistics]] = {
    "random matrices": random_matrices,
    "features times 1000": lambda x, y, _: of(x * 1000, y),
    "sums times 1000": lambda x, y, _: of(x, y).scaled_to(1000.0 * len(y)),
    "moments flipped": moments_flipped,
    "features flipped": lambda x, y, _: of(-x, y),
    "features of noise": lambda x, y, rng: of(noise(x, rng), y),
    "features of zeros": lambda x, y, _: of(0 * x, y),
    "no samples": lambda x, _y, _: HeadStatistics.empty(x.shape[1], N_CLASSES),
    "classes permuted": lambda x, y, rng: of(x, permuted(y, rng)),
    "classes swapped": lambda x, y, _: of(x, swapped(y)),
    "labels shuffled": lambda x, y, rng: of(x, rng.permutation(y)),
}


def lost(parts: Sequence[Part], rng: Generator) -> tuple[list[Part], set[int]]:
    """The parts of the 70 % of devices that are left, and which of these are among the 10 % that send garbage."""
    n = len(parts)
    garbage = set(rng.permutation(n)[: n // 10].tolist())
    here = sorted(rng.permutation(n)[: n - 3 * n // 10].tolist())
    return [parts[i] for i in here], {k for k, i in enumerate(here) if i in garbage}


class Digits:
    """One seed: a bundle, and features of turned digits."""

    def __init__(self, seed: int, folder: Path) -> None:
        digits.SEED = seed
        checkpoint, path = folder / f"{seed}.pth", folder / f"{seed}.edge"
        digits.train(str(checkpoint))
        convert(ConversionPlan(source=checkpoint, output=path, profile=load_profile("generic-x86_64")))
        self.bundle = Bundle.open(path)
        self.session = OnnxSession(self.bundle)
        data = digits.load_digits_split()
        self.x, self.y = self._features(digits.turned(data.stream_x)), data.stream_y
        self.test_x, self.test_y = self._features(digits.turned(data.test_x)), data.test_y
        assert self.bundle.manifest.head is not None
        assert self.bundle.manifest.head.linear is not None
        self.head, self.linear = self.bundle.manifest.head, self.bundle.manifest.head.linear
        self.shipped = HeadStatistics.from_tensors(self.bundle.tensors(m.STATISTICS), self.x.shape[1], N_CLASSES)
        self.prior = self.shipped.scaled_to(PRIOR_SAMPLES)

    def _features(self, images: Features) -> Features:
        name = self.bundle.manifest.inputs[0].name
        features, _ = self.session.predict({name: images}, self.bundle.head_parameters())
        return features

    def accuracy(self, parameters: Parameters) -> float:
        """Of a head on the test digits."""
        return float((self.session.logits(self.test_x, parameters).argmax(axis=1) == self.test_y).mean())

    def of_statistics(self, statistics: HeadStatistics) -> float:
        """Accuracy of the head that they determine."""
        return self.accuracy(head_of(statistics, self.linear))

    def summed(self, parts: Iterable[Part]) -> float:
        """One exchange of statistics."""
        sent = (of(self.x[part], self.y[part]) for part in parts if len(part))
        return self.of_statistics(sum(sent, start=self.prior))

    def in_trouble(self, parts: Sequence[Part], bad: set[int], kind: str, rng: Generator) -> tuple[float, float]:
        """One exchange with garbage from some devices: with and without refusing what is implausible."""
        sent = []
        for i, part in enumerate(parts):
            x, y = self.x[part], self.y[part]
            sent.append(GARBAGE[kind](x, y, rng) if i in bad else of(x, y))
        refused = screen_statistics(sent, self.prior).refused
        screened = sum((s for k, s in enumerate(sent) if k not in refused), start=self.prior)
        try:
            plain = self.of_statistics(sum(sent, start=self.prior))
        except LearningError:  # no head can be solved from this sum
            plain = 0.0
        return self.of_statistics(screened), plain

    def averaged(
        self, parts: Sequence[Part], rule: Rule, rate: float | None = None, bad: set[int] = frozenset()
    ) -> float:
        """Ten rounds of SGD with replay on each device; whitened where no rate is given.

        Bad devices send the opposite of what they learned, ten times as long.
        """
        current = self.bundle.head_parameters()
        whitening = Whitening(self.shipped, self.linear) if rate is None else None
        for _ in range(ROUNDS):
            deltas = []
            for i, part in enumerate(parts):
                if len(part) == 0:
                    continue
                learner = SgdLearner(
                    NumpyTrainer(self.head.training, self.linear, current),
                    self.head.features.sample_shape,
                    Task(self.head.training, N_CLASSES),
                    (rate or 1.0) * self.head.learning_rate,
                    seed=i,
                    head=self.linear,
                    whitening=whitening,
                )
                learner.learn_many(self.x[part], self.y[part])
                # Not `contribution`: a whitened head starts with less confidence, and that is not what was learned.
                live = learner.parameters()
                factor = np.float32(-10.0 if i in bad else 1.0)
                change = {name: factor * (live[name] - current[name]) for name in current}
                deltas.append(Delta(change=change, n_samples=len(part)))
            current = rule(current, deltas)
        return self.accuracy(current)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fleets", type=int, default=20, help="in trouble, of each seed")
    options = parser.parse_args()
    seeds = options.seeds
    splits = {"3 devices, 4 classes each": (3, 4), "30 devices, 2 classes each": (30, 2)}
    many = list(splits)[1]
    rows: dict[str, dict[str, list[float]]] = {}
    screened: dict[str, list[float]] = {}
    unscreened: dict[str, list[float]] = {}

    def note(row: str, column: str, value: float) -> None:
        rows.setdefault(row, {}).setdefault(column, []).append(value)

    with tempfile.TemporaryDirectory() as name:
        for seed in range(seeds):
            task = Digits(seed, Path(name))
            for column, (devices, classes) in splits.items():
                rng = np.random.default_rng(seed)
                parts = share(task.y, devices, classes, rng)
                note("shipped head, no learning", column, task.accuracy(task.bundle.head_parameters()))
                best = max(task.averaged(parts, averaged, rate) for rate in RATES)
                note(f"FedAvg of SGD heads, {ROUNDS} rounds, best rate", column, best)
                note("FedAvg of whitened SGD heads", column, task.averaged(parts, averaged))
                note("sum of statistics, one exchange", column, task.summed(parts))
                note("the ceiling: all samples in one place", column, task.summed([np.arange(len(task.y))]))
                if column != many:
                    continue
                kept, bad = lost(parts, rng)
                note("30 % lost: sum of statistics", column, task.summed(kept))
                rules: dict[str, Rule] = {
                    "FedAvg": averaged,
                    "median": coordinate_median,
                    "trimmed mean": partial(trimmed_mean, n_garbage=3),
                    "Krum": partial(krum, n_garbage=3),
                    "multi-Krum of 12": partial(krum, n_garbage=3, n_chosen=12),
                }
                for rule_name, rule in rules.items():
                    note(f"in trouble, whitened SGD: {rule_name}", column, task.averaged(kept, rule, bad=bad))
                for _ in range(options.fleets):
                    kept, bad = lost(share(task.y, devices, classes, rng), rng)
                    honest = task.summed([part for k, part in enumerate(kept) if k not in bad])
                    screened.setdefault("the honest devices alone", []).append(honest)
                    for kind in GARBAGE:
                        with_screening, without = task.in_trouble(kept, bad, kind, rng)
                        screened.setdefault(kind, []).append(with_screening)
                        unscreened.setdefault(kind, []).append(without)
    print(f"\naccuracy over all classes, turned digits, mean (least) of {seeds} seeds")
    print(f"{'merge':<58}" + "".join(f"{column:>30}" for column in splits))

    def cell(values: list[float] | None) -> str:
        return "" if values is None else f"{np.mean(values):.3f} ({min(values):.3f})"

    for row, columns in rows.items():
        print(f"{row:<58}" + "".join(f"{cell(columns.get(column)):>30}" for column in splits))
    print(
        f"\nin trouble, sum of statistics: mean (least) of {seeds * options.fleets} fleets, share of them below {GOAL}"
    )
    print(f"{'garbage':<58}{'screened':>30}{'all summed':>30}")
    for kind, values in screened.items():
        cells = [
            cell(v) + (f" {np.mean(np.array(v) < GOAL):5.0%}" if v else "") for v in (values, unscreened.get(kind))
        ]
        print(f"{kind:<58}" + "".join(f"{text:>30}" for text in cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
