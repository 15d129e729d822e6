"""The tasks: what each device of a fleet sees, in which order, and what it is told.

All are made of scikit-learn's handwritten digits. A frozen backbone was trained on 500 upright ones; devices get other
ones, as features of that backbone. Everything is drawn from a seed; nobody's stream shares a sample with a test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Features = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class Device:
    """What one device goes through.

    Attributes:
        x: ``(n, d)`` float32 features, in the order in which it sees them.
        y: ``(n,)`` what they are.
        labels: ``(n,)`` what it is told.
        test_x, test_y: What it is asked when all is over.
    """

    x: Array
    y: Array
    labels: Array
    test_x: Array
    test_y: Array


@dataclass(frozen=True, eq=False)
class Task:
    """A fleet.

    Attributes:
        name: Of the task.
        devices: Of it.
        weight, bias: ``(10, d)`` and ``(10,)``, the head that all begin with.
        train_x, train_y: What that was trained on: a method may keep sums of it (means, second moments), and no sample.
        exchange_every: Labels of each device between two exchanges.
    """

    name: str
    devices: Sequence[Device]
    weight: Array
    bias: Array
    train_x: Array
    train_y: Array
    exchange_every: int = 25


@dataclass(frozen=True, eq=False)
class Source:
    """What the tasks are made of: images, a backbone, its head."""

    train: tuple[Array, Array]
    stream: tuple[Array, Array]
    test: tuple[Array, Array]
    features: Features
    weight: Array
    bias: Array

    def task(self, name: str, devices: Sequence[Device]) -> Task:
        """One for these devices."""
        return Task(name, devices, self.weight, self.bias, self.features(self.train[0]), self.train[1])


def turned(images: Array, quarters: int = 1) -> Array:
    """The camera turned."""
    return np.ascontiguousarray(np.rot90(images, quarters, (2, 3)))


def camera(number: int) -> Callable[[Array], Array]:
    """How one device sees: turned, darker or brighter, upside down in brightness."""
    quarters, gain, is_negative = number % 4, (1.0, 0.5, 1.5, 0.75)[(number // 2) % 4], number % 3 == 2

    def see(images: Array) -> Array:
        seen = turned(images, quarters) * np.float32(gain)
        return np.float32(1.0) - seen if is_negative else seen

    return see


def _parts(source: Source, devices: int, rng: np.random.Generator) -> list[Array]:
    return np.array_split(rng.permutation(len(source.stream[1])), devices)


def _wrong(y: Array, share: float, rng: np.random.Generator) -> Array:
    labels, is_wrong = y.copy(), rng.random(len(y)) < share
    labels[is_wrong] = (labels[is_wrong] + rng.integers(1, 10, int(is_wrong.sum()))) % 10
    return labels


def own_worlds(source: Source, rng: np.random.Generator) -> Task:
    """Eight devices, each with a camera of its own, which nobody else has."""
    (x, y), (test_x, test_y), devices = source.stream, source.test, []
    for i, rows in enumerate(_parts(source, 8, rng)):
        see = camera(i + 1)
        features = source.features(see(x[rows]))
        devices.append(Device(features, y[rows], y[rows], source.features(see(test_x)), test_y))
    return source.task("own worlds", devices)


def other_labels(source: Source, rng: np.random.Generator) -> Task:
    """Five devices in one world, turned; each sees four of the ten classes, and is asked about all."""
    (x, y), (test_x, test_y) = source.stream, source.test
    features, tests = source.features(turned(x)), source.features(turned(test_x))
    devices = []
    for i, part in enumerate(_parts(source, 5, rng)):
        rows = part[np.isin(y[part], [(2 * i + j) % 10 for j in range(4)])]
        devices.append(Device(features[rows], y[rows], y[rows], tests, test_y))
    return source.task("other labels", devices)


def drift(source: Source, rng: np.random.Generator) -> Task:
    """Five devices; in the middle of its stream, each at another time, the camera of each is turned."""
    (x, y), (test_x, test_y) = source.stream, source.test
    upright, seen, tests = source.features(x), source.features(turned(x)), source.features(turned(test_x))
    devices = []
    for i, rows in enumerate(_parts(source, 5, rng)):
        features, change = seen[rows].copy(), len(rows) * (3 + i) // 10
        features[:change] = upright[rows[:change]]
        devices.append(Device(features, y[rows], y[rows], tests, test_y))
    return source.task("drift", devices)


def wrong_labels(source: Source, rng: np.random.Generator) -> Task:
    """Six devices in one world, turned: a fifth of all labels is wrong, and of one device they are random."""
    (x, y), (test_x, test_y) = source.stream, source.test
    features, tests = source.features(turned(x)), source.features(turned(test_x))
    devices = []
    for i, rows in enumerate(_parts(source, 6, rng)):
        labels = rng.integers(0, 10, len(rows)) if i == 0 else _wrong(y[rows], 0.2, rng)
        devices.append(Device(features[rows], y[rows], labels, tests, test_y))
    return source.task("wrong labels", devices)


def rare_class(source: Source, rng: np.random.Generator) -> Task:
    """Eight devices in one world, turned; of the class 7 each sees two samples, and half of the test is of it."""
    (x, y), (test_x, test_y) = source.stream, source.test
    features, tests = source.features(turned(x)), source.features(turned(test_x))
    asked = np.concatenate([np.flatnonzero(test_y == 7), np.flatnonzero(test_y != 7)[: (test_y == 7).sum()]])
    devices = []
    for part in _parts(source, 8, rng):
        rows = part[y[part] != 7]
        rows = np.insert(rows, rng.integers(0, len(rows), 2), part[y[part] == 7][:2])
        devices.append(Device(features[rows], y[rows], y[rows], tests[asked], test_y[asked]))
    return source.task("rare class", devices)


TASKS = (own_worlds, other_labels, drift, wrong_labels, rare_class)
