"""One label teaches the fleet: what a question is worth whose answer goes to all devices with a sample like it.

    python benchmarks/one_label.py --data meter_digits.npz [--splits 5] [--cache FOLDER] [--wanted 0.3] [--wrong 0.2]

`--data` as of devices.py: photographs of single digits of ten meters, each with its own camera. For each split a small
network is trained on five of them and converted; the other five are the fleet: one device behind each camera, and three
behind each, which see the same world. Every device answers its samples one after another; those whose label it wants
(`edge.learning.queries`) it offers as sketches, 16 at most. Now and then one question is asked, whose answer is the
true class (or, a share of `--wrong` times, another one):

* spread: the question that helps most devices (`edge.merging.questions`), its label given to all samples like it;
* random: about any sketch that is offered, and spread in the same way;
* single: as without any of this: the devices have their turn, each label is of one sample of one device.

Printed is the accuracy of the devices on samples that they never saw, mean (worst device) over all splits, against the
number of questions that a person answered; and how many labels were given away for each, and how many of them were
right. First: of pairs of samples that are as alike as this, how many are of one class.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import continual
from continual import Array, Setting
from devices import EPOCHS, network, right

from edge.learning.calibration import probabilities
from edge.learning.events import Labelled
from edge.learning.packing import pack
from edge.learning.queries import LabelRequests
from edge.learning.sketches import LEAST_USUAL, USUAL, Sketcher, cosines
from edge.merging.questions import SPREAD_WEIGHT, Question, Sketch, around_of, best_question

QUESTIONS = (0, 10, 20, 40, 80, 160)
WAYS = ("spread", "random", "single")
N_SEEN, OFFERED = 230, 16


class Split:
    """A network, and the features of what five cameras saw that it was not trained for."""

    def __init__(self, path: Path, folder: Path, seed: int) -> None:
        data = np.load(path)
        x = np.ascontiguousarray((data["x"].astype(np.float32) / 255).transpose(0, 3, 1, 2))
        y, meter = data["y"].astype(np.int64), data["meter"].astype(np.int64)
        names = np.random.default_rng(seed).permutation(np.unique(meter))
        bundle = folder / f"five{seed}.edge"
        if not bundle.exists():
            torch.manual_seed(seed)
            keep = np.isin(meter, names[:5])
            print(f"- training without cameras {sorted(names[5:].tolist())}", flush=True)
            continual.converted(folder, bundle.stem, network(), x[keep], y[keep], epochs=EPOCHS, decay=1e-4)
        self.setting = Setting(bundle)
        self.cameras = [(self.setting.features(x[meter == name]), y[meter == name]) for name in names[5:]]
        self.sketcher = Sketcher(self.cameras[0][0][0].size, self.setting.bundle.manifest.backbone_digest)

    def devices(self, behind: int, wanted: float) -> list[Device]:
        """The fleet, with so many devices behind each camera."""
        found = []
        for camera, (x, y) in enumerate(self.cameras):
            order = np.random.default_rng(camera).permutation(len(y))
            for part in np.array_split(order[:N_SEEN], behind):
                seen, test = (x[part], y[part]), (x[order[N_SEEN:]], y[order[N_SEEN:]])
                found.append(Device(self, len(found), seen, test, wanted))
        return found


class Device:
    """One device: answers, wants labels, offers sketches, learns."""

    def __init__(self, split: Split, number: int, seen: tuple[Array, Array], test: tuple[Array, Array], wanted: float):
        self.name, self._split, self.seen, self._test = f"device-{number}", split, seen, test
        self._learning = split.setting.learning("auto", number)
        self.learned = self._learning.begin(self.name)
        self._requests = LabelRequests(wanted)
        self._said: OrderedDict[int, tuple[int, float]] = OrderedDict()  # of samples whose label is wanted
        self._at = 0

    def see(self) -> None:
        """Answer the next sample."""
        if self._at == len(self.seen[1]):
            return
        likely = probabilities(
            self._learning.answer(self.learned, self.seen[0][self._at : self._at + 1])[0],
            self.learned.temperature,
            self._learning.task(self.learned),
        )
        if self._requests.wants(float(likely.max())):
            self._said[self._at] = int(likely.argmax()), float(likely.max())
            while len(self._said) > OFFERED:
                self._said.popitem(last=False)
        self._at += 1

    def sketches(self) -> list[Sketch]:
        """Of the samples whose label is wanted."""
        flat = self.seen[0].reshape(len(self.seen[0]), -1)
        usual = flat[max(0, self._at - USUAL) : self._at]
        if len(usual) < LEAST_USUAL or not self._said:
            return []
        codes = self._split.sketcher.sketches(flat[list(self._said)], usual)
        return [
            Sketch(self.name, "", str(i), 0, str(answer), confidence, code)
            for (i, (answer, confidence)), code in zip(self._said.items(), codes, strict=True)
        ]

    def newest(self) -> int | None:
        """The sample whose label is wanted that came last."""
        return next(reversed(self._said), None)

    def learn(self, i: int, label: int, weight: float = 1.0) -> None:
        """The label of a sample."""
        del self._said[i]
        event = Labelled(pack(self.seen[0][i : i + 1]), np.array([label], np.int64), np.array([weight], np.float32))
        self.learned, _ = self._learning.advance(self.learned, event)

    def accuracy(self) -> float:
        """On what it never saw."""
        return right(self._learning, self.learned, *self._test)


@dataclass(slots=True)
class Counts:
    """What was asked and given."""

    asked: int = 0
    given: int = 0
    given_right: int = 0
    devices: int = 0


def run(
    split: Split, behind: int, way: str, n_questions: int, wanted: float, wrong: float, weight: float, seed: int
) -> tuple[list[float], Counts]:
    """One pass of a fleet: accuracy of each device afterwards, and what was asked."""
    devices, rng, counts = split.devices(behind, wanted), np.random.default_rng(seed), Counts()
    by_name = {each.name: each for each in devices}
    steps, turn = max(len(each.seen[1]) for each in devices), 0

    def answer(device: Device, i: int) -> int:
        label = int(device.seen[1][i])
        return (label + int(rng.integers(1, 10))) % 10 if rng.random() < wrong else label

    for step in range(steps):
        for device in devices:
            device.see()
        while counts.asked < n_questions * (step + 1) // steps:
            if way == "single":
                has = [device for device in devices if device.newest() is not None]
                if not has:
                    break
                device = min(has, key=lambda each: (devices.index(each) - turn) % len(devices))
                turn = devices.index(device) + 1
                i = device.newest()
                assert i is not None
                device.learn(i, answer(device, i))
                counts.asked += 1
                continue
            found = question(way, [sketch for device in devices for sketch in device.sketches()], rng)
            if found is None:
                break
            counts.asked += 1
            counts.devices += found.n_devices
            asked = by_name[found.asked.device]
            label = answer(asked, int(found.asked.id))
            asked.learn(int(found.asked.id), label)
            for sketch, _ in found.alike:
                other = by_name[sketch.device]
                counts.given += 1
                counts.given_right += int(other.seen[1][int(sketch.id)] == label)
                other.learn(int(sketch.id), label, weight)
    return [device.accuracy() for device in devices], counts


def question(way: str, sketches: list[Sketch], rng: np.random.Generator) -> Question | None:
    """What is asked next."""
    if way == "random":
        return around_of(sketches, int(rng.integers(len(sketches)))) if sketches else None
    return best_question(sketches)


def pairs(splits: list[Split]) -> None:
    """Of pairs of samples, by how alike they are, how many are of one class."""
    print(f"\n{'cosine of two sketches from':<30}" + "".join(f"{low:>14}" for low in LEVELS))
    counted = np.zeros((2, len(LEVELS), 2), int)
    for split in splits:
        codes, owners, labels = [], [], []
        for camera, (x, y) in enumerate(split.cameras):
            rows = np.random.default_rng(camera).permutation(len(y))[:120]
            flat = x.reshape(len(x), -1)
            codes.append(split.sketcher.sketches(flat[rows], flat[rows[:USUAL]]))
            owners += [camera] * len(rows)
            labels += y[rows].tolist()
        alike, owner, label = cosines(*2 * (np.concatenate(codes),)), np.array(owners), np.array(labels)
        i, j = np.triu_indices(len(label), 1)
        for kind, chosen in enumerate((owner[i] == owner[j], owner[i] != owner[j])):
            for level, low in enumerate(LEVELS):
                near = chosen & (alike[i, j] >= low)
                counted[kind, level] += int((label[i] == label[j])[near].sum()), int(near.sum())
    for kind, name in enumerate(("one camera", "two cameras")):
        cells = [f"{same / max(n, 1):.2f} of {n}" for same, n in counted[kind]]
        print(f"{name:<30}" + "".join(f"{cell:>14}" for cell in cells))


LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)


def table(splits: list[Split], behind: int, options: argparse.Namespace, numbers: Iterable[int]) -> None:
    """Accuracy by way against the number of questions."""
    how = f"wanted {options.wanted}, wrong answers {options.wrong}"
    print(f"\n{5 * behind} devices, {behind} behind each camera; {how}")
    print(f"{'questions':<12}" + "".join(f"{way:>38}" for way in WAYS))
    for n in numbers:
        cells: list[str] = []
        for way in WAYS:
            scores: list[float] = []
            total = Counts()
            for seed, split in enumerate(splits):
                found, counts = run(
                    split, behind, way, n, options.wanted, options.wrong, options.weight, 100 * seed + n
                )
                scores += found
                for field in ("asked", "given", "given_right", "devices"):
                    setattr(total, field, getattr(total, field) + getattr(counts, field))
            cell = f"{np.mean(scores):.3f} ({min(scores):.3f})"
            if n and way != "single":
                share = total.given_right / max(total.given, 1)
                asked = total.asked / len(splits)
                cell += f" {asked:.0f}: {total.given / max(total.asked, 1):.1f} more, {share:.2f} right"
            cells.append(cell)
            if not n:
                cells += [cell] * 2
                break
        print(f"{n:<12}" + "".join(f"{cell:>38}" for cell in cells), flush=True)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="keep the trained bundles here")
    parser.add_argument("--wanted", type=float, default=0.3, help="share of samples whose label may be asked for")
    parser.add_argument("--wrong", type=float, default=0.0, help="share of answers that are wrong")
    parser.add_argument("--weight", type=float, default=SPREAD_WEIGHT, help="of a label that was spread")
    parser.add_argument("--behind", type=int, nargs="*", default=[1, 3], help="devices behind each camera")
    parser.add_argument("--questions", type=int, nargs="*", default=QUESTIONS)
    options: Any = parser.parse_args()
    if not options.data.exists():
        print(f"{options.data} is not there: this benchmark needs photographs of several devices (see --help)")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        splits = [Split(options.data, cache, seed) for seed in range(options.splits)]
        pairs(splits)
        for behind in options.behind:
            table(splits, behind, options, options.questions)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
