"""Devices that nobody trained for: what each learns by itself, and what a merge of all gives and takes.

    python benchmarks/devices.py --data meter_digits.npz [--splits 5] [--labels 230] [--far] [--cache FOLDER]

`--data` is an npz of ``x (n, h, w, 3)`` uint8 photographs, ``y (n,)`` classes and ``meter (n,)`` the device of each:
ten real cameras, each with its own light and typeface. For each split two devices are left out; a small network is
trained on the others and converted, with the last layer trainable. Each device that was left out learns some hundred
labels by the product's own rules, every sample answered first, and is tested on the rest of its samples.

Rows: the head as shipped; all that the labels allow at once (logistic regression, its penalty chosen on a fifth of
them); and each way to learn. Columns: on the way (answered before the label came), after 20 labels, after the pass.
Kinds of labels: clean, 20 % wrong, random, class by class, 100 samples late.

`--far` changes the photographs of each device in one of six ways (negative, dim, moved, upside down, other colours,
noisy), so that devices are farther from one another than any real ones here.

Then a merge of devices that were left out is pushed to each of them, and to devices that have no labels. The first
devices are a fleet of cameras, each with its own world; the second a fleet that sees the same world, turned digits,
each with 4 of the 10 classes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
import continual
from continual import Array, Setting, digits

from edge.agent.model.candidates import shipped_statistics
from edge.learning.events import Contributed, HeadOffered
from edge.learning.exchange import HeadRelease, HeadUpdate
from edge.learning.familiarity import fits
from edge.learning.learned import Learned
from edge.learning.learning import Learning
from edge.learning.statistics import HeadStatistics
from edge.merging.merge import merge

KINDS = ("clean", "20 % wrong", "random", "class by class", "100 late")
WAYS = ("mixture", "statistics", "sgd")
EPOCHS = 12
FAR: tuple[Callable[[Array], Array], ...] = (
    lambda x: 255 - x,
    lambda x: x / 2 + 60,
    lambda x: np.roll(x, (3, -2), (1, 2)),
    lambda x: x[:, ::-1, ::-1],
    lambda x: x[..., ::-1],
    lambda x: np.clip(x + np.random.default_rng(5).normal(0, 25, x.shape), 0, 255),
)


def network(height: int = 32, width: int = 20) -> nn.Module:
    """Three convolutions and a linear head: on 192 features of photographs of 32 by 20."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *block(3, 16), *block(16, 24), *block(24, 24), nn.Flatten(), nn.Linear(24 * (height // 8) * (width // 8), 10)
    )


class Cameras:
    """The photographs, and a bundle for each split.

    Args:
        path: Of the npz; its devices may have any numbers, and are counted from 0 here.
        folder: Keeps bundles, each named after the photographs too.
        splits: At most so many; each leaves two devices out.
        n_labels: Each device is to have more samples than these.
        far: Whether the photographs of each device are changed, so that it is far from the others.
    """

    def __init__(self, path: Path, folder: Path, splits: int, n_labels: int, *, far: bool = False) -> None:
        data = np.load(path)
        self.y = data["y"].astype(np.int64)
        numbers, self.device, counts = np.unique(data["meter"], return_inverse=True, return_counts=True)
        n = len(numbers)
        if n < 3 or counts.min() <= n_labels:
            few = f"{n}, the least with {counts.min()}"
            sys.exit(f"{path}: expected three devices at least, each with more than {n_labels} samples; it has {few}")
        photographs = data["x"].astype(np.float32)
        if far:
            for k in range(n):
                rows = self.device == k
                photographs[rows] = FAR[k % len(FAR)](photographs[rows])
        self.x = np.ascontiguousarray((photographs / 255).transpose(0, 3, 1, 2))
        self.name = f"{zlib.crc32(self.x.tobytes() + self.device.tobytes() + data['y'].tobytes()):08x}"
        self.pairs = [(k, k + n // 2) for k in range(n // 2)][:splits]
        self.settings = [self._setting(folder, k, pair) for k, pair in enumerate(self.pairs)]

    def _setting(self, folder: Path, k: int, pair: tuple[int, int]) -> Setting:
        path = folder / f"split{k}-{self.name}.edge"
        if not path.exists():
            import torch

            torch.manual_seed(k)
            keep = ~np.isin(self.device, pair)
            print(f"- training without devices {pair[0]} and {pair[1]}", flush=True)
            net = network(*self.x.shape[2:])
            continual.converted(folder, path.stem, net, self.x[keep], self.y[keep], epochs=EPOCHS, decay=1e-4)
        return Setting(path)

    def of(self, split: int, device: int) -> tuple[Array, Array]:
        """Features and labels of one device."""
        rows = self.device == device
        return self.settings[split].features(self.x[rows]), self.y[rows]


def labelled(kind: str, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """An order of samples, and the label that each is given."""
    order, labels = np.arange(len(y)), y.copy()
    if kind == "class by class":
        order = np.argsort(y, kind="stable")
        labels = y[order]
    if kind == "random":
        labels = rng.integers(0, 10, len(y))
    if kind == "20 % wrong":
        wrong = rng.random(len(y)) < 0.2
        labels[wrong] = (labels[wrong] + rng.integers(1, 10, int(wrong.sum()))) % 10
    return order, labels


def right(learning: Learning, learned: Learned, x: Array, y: Array) -> float:
    """Share of right answers."""
    return float((learning.answer(learned, x).argmax(axis=1) == y).mean())


def passed(
    learning: Learning, learned: Learned, x: Array, y: Array, labels: Array, late: int, test: tuple[Array, Array]
) -> tuple[Learned, tuple[float, float, float]]:
    """One pass over the samples: what was learned, and right on the way, after 20 labels, after the pass."""
    hits, at_20 = [], 0.0
    for i in range(len(x) + late):
        if i < len(x):
            hits.append(learning.answer(learned, x[i : i + 1]).argmax() == y[i])
        if i >= late:
            learned, _ = learning.advance(learned, continual.labelled_event(x, labels, i - late))
        if i - late == 19:
            at_20 = right(learning, learned, *test)
    return learned, (float(np.mean(hits)), at_20, right(learning, learned, *test))


def alone(cameras: Cameras, n_labels: int) -> dict[tuple[str, str], npt.NDArray[np.float64]]:
    """Every device by itself: ``(devices, 3)`` of each kind of labels and way to learn; and the two limits."""
    found: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for split, pair in enumerate(cameras.pairs):
        setting = cameras.settings[split]
        for device in pair:
            x, y = cameras.of(split, device)
            rng = np.random.default_rng(device)
            rows = rng.permutation(len(y))
            stream, rest = rows[:n_labels], rows[n_labels:]
            test = (x[rest], y[rest])
            for kind in KINDS:
                order, labels = labelled(kind, y[stream], rng)
                sx, sy = x[stream][order], y[stream][order]
                shipped = setting.session.logits(sx, setting.bundle.head_parameters()).argmax(axis=1)
                tested = setting.session.logits(test[0], setting.bundle.head_parameters()).argmax(axis=1)
                frozen = float((tested == test[1]).mean())
                found[kind, "shipped"].append((float((shipped == sy).mean()), frozen, frozen))
                found[kind, "offline"].append((np.nan, np.nan, offline(sx, labels, *test, rng)))
                for way in WAYS:
                    learning = setting.learning("auto" if way == "mixture" else way, device)
                    late = 100 if kind == "100 late" else 0
                    _, scores = passed(learning, learning.begin("a device"), sx, sy, labels, late, test)
                    found[kind, way].append(scores)
            done = found["clean", "mixture"][-1]
            print(f"- device {device}: shipped {frozen:.3f}, on the way {done[0]:.3f}, after {done[2]:.3f}", flush=True)
    return {key: np.array(rows) for key, rows in found.items()}


def offline(x: Array, y: Array, test_x: Array, test_y: Array, rng: np.random.Generator) -> float:
    """Logistic regression on all labels at once; of four penalties the best on a fifth of them."""
    from sklearn.linear_model import LogisticRegression

    scale = np.abs(x).max(axis=0) + 1e-9
    kept = rng.random(len(y)) < 0.8

    def fit(c: float, rows: Array) -> Any:
        return LogisticRegression(C=c, max_iter=3000).fit(x[rows] / scale, y[rows])

    best = max((0.1, 1.0, 10.0, 100.0), key=lambda c: fit(c, kept).score(x[~kept] / scale, y[~kept]))
    return float(fit(best, np.ones(len(y), bool)).score(test_x / scale, test_y))


# A fleet


class Fleet:
    """Devices that learn, and one merge of them all, as agents and the coordinator make it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.learning = setting.learning("auto")
        self.devices: list[Learned] = []

    def learn(self, x: Array, labels: Array) -> None:
        """One more device, with these samples."""
        learned = self.learning.begin(f"device {len(self.devices)}")
        for i in range(len(x)):
            learned, _ = self.learning.advance(learned, continual.labelled_event(x, labels, i))
        self.devices.append(learned)

    def merge(self) -> HeadRelease:
        """Of what all of them contribute."""
        updates = []
        for i, learned in enumerate(self.devices):
            kind, packed = self.learning.contribution(learned)
            n = self.learning.n_samples(learned)
            update = HeadUpdate(
                learner=kind,
                backbone=self.setting.bundle.manifest.backbone_digest,
                lineage=learned.lineage,
                version=n,
                n_samples=n,
                base_release=0,
                tensors=packed.tensors,
            )
            updates.append((f"device {i}", update))
            self.devices[i], _ = self.learning.advance(learned, Contributed(n))
        found = merge(self.setting.bundle, updates, self.setting.bundle.head_parameters(), 0, {})
        if found.refused:
            print(f"- refused: {dict(found.refused)}")
        assert found.release is not None
        return found.release

    def take(self, learned: Learned, release: HeadRelease, samples: Array | None = None) -> Learned:
        """The device with the merge among its experts; samples are those that it has no labels of."""
        labelled = samples is None
        if samples is None:
            samples = learned.recent.features(self.setting.head.features.sample_shape)
        shipped = shipped_statistics(self.setting.bundle, self.setting.task)
        assert shipped is not None
        new = HeadStatistics.from_tensors(release.merged, samples.shape[1], 10)
        found = fits(samples, new, shipped, release.outside, labelled=labelled)
        return self.learning.advance(learned, HeadOffered(release, 1, fits=found))[0]


def worlds(cameras: Cameras, n_labels: int) -> None:
    """A fleet of the cameras that a backbone was not trained on, each with its own world; and of those that it was."""
    rows: list[tuple[str, float, float, float, float, float]] = []
    strangers: list[tuple[float, float]] = []
    for split, pair in enumerate(cameras.pairs):
        setting = cameras.settings[split]
        fleet, tests, more = Fleet(setting), [], []
        others = [d for d in range(int(cameras.device.max()) + 1) if d not in pair]
        outside, *inside = others
        chosen = [*pair, *inside[:2]]
        for device in chosen:
            x, y = cameras.of(split, device)
            order = np.random.default_rng(device).permutation(len(y))
            first, second, rest = np.split(order, [n_labels // 2, n_labels])
            fleet.learn(x[first], y[first])
            tests.append((x[rest], y[rest]))
            more.append((x[second], y[second]))
        before = [right(fleet.learning, d, *test) for d, test in zip(fleet.devices, tests, strict=True)]
        release = fleet.merge()
        for i, device in enumerate(chosen):
            shipped = right(fleet.learning, fleet.learning.begin(""), *tests[i])
            learned = fleet.take(fleet.devices[i], release)
            after = right(fleet.learning, learned, *tests[i])
            head = fleet.learning.run(tests[i][0], release.parameters).argmax(axis=1)
            for j in range(len(more[i][1])):
                learned, _ = fleet.learning.advance(learned, continual.labelled_event(*more[i], j))
            later = right(fleet.learning, learned, *tests[i])
            alone = fleet.devices[i]
            for j in range(len(more[i][1])):
                alone, _ = fleet.learning.advance(alone, continual.labelled_event(*more[i], j))
            by_itself = right(fleet.learning, alone, *tests[i])
            name = f"camera {device}{'' if device in pair else ' (known)'}"
            rows.append((name, shipped, before[i], after, float((head == tests[i][1]).mean()), later, by_itself))  # type: ignore[arg-type]
        x, y = cameras.of(split, outside)
        nobody = fleet.take(fleet.learning.begin("nobody"), release, x[:64])
        strangers.append((right(fleet.learning, fleet.learning.begin(""), x, y), right(fleet.learning, nobody, x, y)))
    title = f"{'a merge of 4 cameras':<22}"
    print(f"\n{title}{'shipped':>9}{'before':>9}{'after':>9}{'head':>9}{'later':>9}{'alone':>9}")
    for name, *values in rows:
        print(f"{name:<22}" + "".join(f"{value:>9.3f}" for value in values))
    table = np.array([values for _, *values in rows])
    print(f"{'mean':<22}" + "".join(f"{value:>9.3f}" for value in table.mean(axis=0)))
    say("after a merge, worst device against what it had", float((table[:, 2] - table[:, 1]).min()), -0.01)
    say(
        "after a merge and as many labels again, mean against no merge",
        float((table[:, 4] - table[:, 5]).mean()),
        0.0,
    )
    gap = np.array([after - shipped for shipped, after in strangers])
    say("devices without labels, worst against the shipped head", float(gap.min()), 0.0)


def one_world(folder: Path) -> None:
    """Ten digits turned, three devices with 4 classes each; one with an upright camera; one without labels."""
    setting = continual.digits_setting(folder, 7)
    data = digits.load_digits_split()
    x, test_x = (setting.features(digits.turned(images)) for images in (data.stream_x, data.test_x))
    upright, test_upright = (setting.features(np.ascontiguousarray(i)) for i in (data.stream_x, data.test_x))
    y, test_y = data.stream_y, data.test_y
    fleet, rng = Fleet(setting), np.random.default_rng(0)
    owned = [[(4 * i + j) % 10 for j in range(4)] for i in range(3)]
    for classes in owned:
        rows = rng.permutation(np.flatnonzero(np.isin(y, classes)))[:240]
        fleet.learn(x[rows], y[rows])
    rows = rng.permutation(len(y))[:100]
    fleet.learn(upright[rows], y[rows])
    nobody = fleet.learning.begin("nobody")
    before = [right(fleet.learning, d, test_x, test_y) for d in fleet.devices[:3]]
    as_it_was = right(fleet.learning, fleet.devices[3], test_upright, test_y)
    release = fleet.merge()
    after = [right(fleet.learning, fleet.take(d, release), test_x, test_y) for d in fleet.devices[:3]]
    now = right(fleet.learning, fleet.take(fleet.devices[3], release), test_upright, test_y)
    print(f"\nturned digits, 4 of 10 classes each, tested on all: before {before}, after the merge {after}")
    for title, seen, test in (("turned", x, test_x), ("upright", upright, test_upright)):
        found = right(fleet.learning, fleet.take(nobody, release, seen[:64]), test, test_y)
        print(
            f"one without labels, {title}: before {right(fleet.learning, nobody, test, test_y):.3f}, after {found:.3f}"
        )
    print(f"one whose camera is upright: before {as_it_was:.3f}, after {now:.3f}")
    say("turned digits after the merge, worst device", min(after), 0.98)
    say("the device whose camera is not turned, against what it had", now - as_it_was, -0.01)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--labels", type=int, default=230)
    parser.add_argument("--far", action="store_true")
    parser.add_argument("--cache", type=Path, help="keep the trained bundles here")
    options = parser.parse_args()
    if not options.data.exists():
        print(f"{options.data} is not there: this benchmark needs photographs of several devices (see --help)")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        cameras = Cameras(options.data, cache, options.splits, options.labels, far=options.far)
        table = alone(cameras, options.labels)
        print_alone(table)
        worlds(cameras, options.labels)
        one_world(cache)
    return 0


def print_alone(table: dict[tuple[str, str], npt.NDArray[np.float64]]) -> None:
    """On the way / after 20 labels / after the pass, means over devices; and the goals."""
    n = len(table["clean", "shipped"])
    print(f"\n{n} devices that were left out: on the way / after 20 labels / after the pass\n")
    print(f"{'':<12}" + "".join(f"{kind:>23}" for kind in KINDS))
    for way in ("shipped", *WAYS, "offline"):
        cells = [table[kind, way].mean(axis=0) for kind in KINDS]
        texts = [" / ".join("  -  " if np.isnan(v) else f"{v:.3f}" for v in cell) for cell in cells]
        print(f"{way:<12}" + "".join(f"{text:>23}" for text in texts))
    print()
    mean = {key: rows.mean(axis=0) for key, rows in table.items()}
    say("after the pass, above offline", mean["clean", "mixture"][2] - mean["clean", "offline"][2], -0.005)
    for kind in ("clean", "20 % wrong", "class by class", "100 late"):
        gap = mean[kind, "mixture"][0] - mean[kind, "statistics"][0]
        say(f"on the way, above ungated statistics, {kind}", gap, -0.01)
    random = table["random", "mixture"] - table["random", "shipped"]
    say("random labels, above the shipped head, after the pass", random[:, 2].mean(), -0.01)
    say("random labels, above the shipped head, on the way", random[:, 0].mean(), -0.01)


def say(what: str, found: float, least: float) -> None:
    """A goal in points, beside what was found."""
    print(f"{'met   ' if found >= least - 1e-9 else 'MISSED'}  {what}: {100 * found:+.1f} (goal: >= {100 * least:+g})")


if __name__ == "__main__":
    sys.exit(main())
