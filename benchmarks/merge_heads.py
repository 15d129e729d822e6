"""Merging what devices learned: summed statistics in one exchange against ten rounds of averaging SGD heads.

    python benchmarks/merge_heads.py [--seeds 3]

Digits turned by 90 degrees, frozen upright backbone (the network of examples/01_digits_fleet, trained and quantized).
Each device gets labels for some classes only, every streamed sample goes to one device, and the accuracy is over all
classes on digits that nobody was given. All learners and merges are the product's own; the baseline is FedAvg (the last
round of ten, three learning rates tried, the best kept). Also printed: what the shrinkage changes, 30 % of the devices
lost, and the head learned in one place from all samples as the ceiling.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converter.pipeline import convert
from converter.plan import ConversionPlan
from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.profile import load_profile
from edge.inference.onnx_session import OnnxSession
from edge.inference.onnx_trainer import OnnxTrainer
from edge.learning.closed_form import PRIOR_SAMPLES
from edge.learning.merge import Delta, head_of, merge_statistics, weighted_mean
from edge.learning.sgd import SgdLearner
from edge.learning.statistics import HeadStatistics, solve

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "01_digits_fleet"))
import model as digits

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
ROUNDS, RATES = 10, (0.3, 1.0, 3.0)  # times the bundle's own learning rate


def share(labels: Labels, devices: int, classes_each: int, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """Indices of each device's samples: each sample goes to one of the devices that have its class."""
    owned = [{int(c) % 10 for c in range(i * classes_each, (i + 1) * classes_each)} for i in range(devices)]
    owners = [[i for i, classes in enumerate(owned) if label in classes] for label in range(10)]
    owner = np.array([rng.choice(owners[label]) if owners[label] else -1 for label in labels])
    return [np.flatnonzero(owner == i) for i in range(devices)]


class Task:
    """One seed: a bundle, and features of turned digits."""

    def __init__(self, seed: int, folder: Path) -> None:
        digits.SEED = seed
        checkpoint, path = folder / f"{seed}.pth", folder / f"{seed}.edge"
        digits.train(str(checkpoint))
        convert(ConversionPlan(source=checkpoint, output=path, profile=load_profile("generic-x86_64")))
        self.bundle = Bundle.open(path)
        self.session = OnnxSession(self.bundle)
        data = digits.load_digits_split()
        self.x, self.y = self.session.features(digits.turned(data.stream_x)), data.stream_y
        self.test_x, self.test_y = self.session.features(digits.turned(data.test_x)), data.test_y
        shipped = HeadStatistics.from_tensors(self.bundle.tensors(m.STATISTICS), self.x.shape[1], 10)
        self.prior = shipped.scaled_to(PRIOR_SAMPLES)

    def accuracy(self, parameters: dict[str, Features]) -> float:
        """Of a head on the test digits."""
        return float((self.session.logits(self.test_x, parameters).argmax(axis=1) == self.test_y).mean())

    def statistics(self, parts: list[npt.NDArray[np.int64]]) -> HeadStatistics:
        """The sum over devices, each sent as a device sends it (float32)."""
        sent = (HeadStatistics.of(self.x[part], self.y[part], 10).to_tensors() for part in parts if len(part))
        return merge_statistics(self.prior, (HeadStatistics.from_tensors(t, self.x.shape[1], 10) for t in sent))

    def summed(self, parts: list[npt.NDArray[np.int64]]) -> float:
        """One exchange of statistics."""
        linear = self.bundle.manifest.head.linear
        assert linear is not None
        return self.accuracy(head_of(self.statistics(parts), linear))

    def shrunk(self, parts: list[npt.NDArray[np.int64]], shrinkage: float) -> float:
        """The same with another shrinkage."""
        weights, biases = solve(self.statistics(parts), shrinkage)
        return float(((self.test_x @ weights.T + biases).argmax(axis=1) == self.test_y).mean())

    def averaged(self, parts: list[npt.NDArray[np.int64]], rate: float) -> float:
        """Ten rounds of FedAvg of SGD heads with replay."""
        head = self.bundle.head_parameters()
        for _ in range(ROUNDS):
            deltas = []
            for i, part in enumerate(parts):
                if len(part) == 0:
                    continue
                trainer = OnnxTrainer(self.bundle.read(m.HEAD_TRAIN), self.bundle.manifest.head.features.name, head)
                learning_rate = rate * self.bundle.manifest.head.learning_rate
                learner = SgdLearner(
                    trainer, self.bundle.manifest.head.features.sample_shape, 10, learning_rate, seed=i
                )
                learner.learn_many(self.x[part], self.y[part])
                change = learner.contribution()
                deltas.append(Delta(change=change, n_samples=len(part)))
            head = weighted_mean(head, deltas)
        return self.accuracy(head)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    splits = {"3 devices, 4 classes each": (3, 4), "30 devices, 2 classes each": (30, 2)}
    rows: dict[str, dict[str, list[float]]] = {}

    def note(row: str, column: str, value: float) -> None:
        rows.setdefault(row, {}).setdefault(column, []).append(value)

    with tempfile.TemporaryDirectory() as name:
        for seed in range(seeds):
            task = Task(seed, Path(name))
            for column, (devices, classes) in splits.items():
                rng = np.random.default_rng(seed)
                parts = share(task.y, devices, classes, rng)
                note("shipped head, no learning", column, task.accuracy(task.bundle.head_parameters()))
                best = max(task.averaged(parts, rate) for rate in RATES)
                note(f"FedAvg of SGD heads, {ROUNDS} rounds, best rate", column, best)
                note("sum of statistics, one exchange", column, task.summed(parts))
                kept = [part for part in parts if rng.random() > 0.3]
                note("  the same, 30 % of the devices lost", column, task.summed(kept))
                note("  the ceiling: all samples in one place", column, task.summed([np.arange(len(task.y))]))
                for shrinkage in (0.005, 0.05, 0.2):
                    note(f"  shrinkage {shrinkage} instead of 0.02", column, task.shrunk(parts, shrinkage))
    print(f"\naccuracy over all classes, turned digits, mean (least) of {seeds} seeds")
    print(f"{'merge':<45}" + "".join(f"{column:>30}" for column in splits))
    for row, columns in rows.items():
        cells = (f"{np.mean(columns[column]):.3f} ({min(columns[column]):.3f})" for column in splits)
        print(f"{row:<45}" + "".join(f"{cell:>30}" for cell in cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
