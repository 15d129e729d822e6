"""What a method must be able to do, and the baselines: none of this is the product's."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.fleet_learning.tasks import Array, Task


class Method(Protocol):
    """One fleet that learns by one method. Made with a task and a seed; must not look at `y`, tests or the future.

    Attributes:
        name: For the table.
    """

    name: str

    def predict(self, device: int, x: Array) -> Array:
        """``(n,)`` classes that a device answers for features ``(n, d)``; it must not learn from them."""

    def learn(self, device: int, x: Array, label: int) -> None:
        """One sample ``(d,)`` with what the device is told."""

    def exchange(self) -> int:
        """What devices and server tell each other now; the bytes of all of it."""


Make = Callable[[Task, int], Method]


def softmax(logits: Array) -> Array:
    """Along the last axis."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Frozen:
    """The shipped head."""

    name = "frozen"

    def __init__(self, task: Task, seed: int) -> None:
        del seed
        self._task = task

    def predict(self, device: int, x: Array) -> Array:
        """See `Method`."""
        del device
        return (x @ self._task.weight.T + self._task.bias).argmax(axis=1)

    def learn(self, device: int, x: Array, label: int) -> None:
        """Nothing."""

    def exchange(self) -> int:
        """See `Method`."""
        return 0


class FedAvg:
    """McMahan et al. 2017, on the head: devices train from the server's head on all that they have, and are averaged.

    With `mu` FedProx (Li et al. 2020). Between exchanges a device goes on by SGD, one step a label on a batch of what
    it has. Averaged by Flower's own code where that is installed. Shown is the best of four rates over all tasks.
    """

    RATES = (0.3, 1.0, 3.0, 10.0)
    EPOCHS, BATCH = 5, 16

    def __init__(self, task: Task, seed: int, rate: float, mu: float = 0.0) -> None:
        self.name = f"{'FedProx' if mu else 'FedAvg'}, rate {rate:g}"
        self._task, self._rate, self._mu = task, rate, mu
        self._rng = np.random.default_rng(seed)
        self._scale = 1.0 / np.sqrt(np.square(task.train_x).sum(axis=1).mean())
        self._server = (task.weight / self._scale, task.bias.copy())
        self._heads = [self._server for _ in task.devices]
        self._x: list[list[Array]] = [[] for _ in task.devices]
        self._y: list[list[int]] = [[] for _ in task.devices]

    def predict(self, device: int, x: Array) -> Array:
        """See `Method`."""
        weight, bias = self._heads[device]
        return (x * self._scale @ weight.T + bias).argmax(axis=1)

    def learn(self, device: int, x: Array, label: int) -> None:
        """See `Method`."""
        self._x[device].append(x * self._scale)
        self._y[device].append(label)
        n = len(self._y[device])
        rows = np.append(self._rng.integers(0, n, self.BATCH - 1), n - 1)
        self._step(device, np.array(self._x[device])[rows], np.array(self._y[device])[rows])

    def _step(self, device: int, x: Array, y: Array) -> None:
        weight, bias = self._heads[device]
        error = softmax(x @ weight.T + bias)
        error[np.arange(len(y)), y] -= 1.0
        error /= len(y)
        rate = self._rate * 10  # features have a mean square of one
        self._heads[device] = (
            weight - rate * (error.T @ x + self._mu * (weight - self._server[0])),
            bias - rate * (error.sum(axis=0) + self._mu * (bias - self._server[1])),
        )

    def exchange(self) -> int:
        """See `Method`."""
        results = []
        for device in range(len(self._task.devices)):
            x, y = np.array(self._x[device]), np.array(self._y[device])
            if not len(y):
                continue
            self._heads[device] = self._server
            for _ in range(self.EPOCHS):
                for rows in np.array_split(self._rng.permutation(len(y)), -(-len(y) // self.BATCH)):
                    self._step(device, x[rows], y[rows])
            results.append((list(self._heads[device]), len(y)))
        weight, bias = averaged(results)
        self._server = (weight, bias)
        self._heads = [self._server for _ in self._task.devices]
        return 2 * len(results) * 4 * (weight.size + bias.size)


def flower() -> str:
    """Its version; "" where it is not installed."""
    try:
        return importlib.metadata.version("flwr")
    except importlib.metadata.PackageNotFoundError:
        return ""


def averaged(results: list[tuple[list[Array], int]]) -> list[Array]:
    """The mean of heads weighted by samples: Flower's `aggregate`, or the same formula."""
    if flower():
        aggregate: Any = importlib.import_module("flwr.server.strategy.aggregate").aggregate
        found: list[Array] = aggregate(results)
        return found
    total = sum(n for _, n in results)
    return [sum(head[i] * (n / total) for head, n in results) for i in range(len(results[0][0]))]  # type: ignore[misc]


class Slda:
    """Deep SLDA (Hayes and Kanan 2020) on each device by itself, from means and the covariance of the training data."""

    name = "SLDA, alone"
    SHRINKAGE, PRIOR = 1e-4, 20.0

    def __init__(self, task: Task, seed: int) -> None:
        del seed
        x, y = task.train_x.astype(np.float64), task.train_y
        means = np.array([x[y == c].mean(axis=0) for c in range(10)])
        covariance = np.cov((x - means[y]).T, bias=True)
        n = len(task.devices)
        self._means = [means.copy() for _ in range(n)]
        self._counts = [np.full(10, self.PRIOR / 10) for _ in range(n)]
        self._covariance = [covariance.copy() for _ in range(n)]
        self._seen = [self.PRIOR for _ in range(n)]
        self._heads: list[tuple[Array, Array] | None] = [None] * n

    def predict(self, device: int, x: Array) -> Array:
        """See `Method`."""
        if self._heads[device] is None:
            s = self._covariance[device]
            shrunk = (1 - self.SHRINKAGE) * s + self.SHRINKAGE * np.eye(len(s))
            weight = np.linalg.solve(shrunk, self._means[device].T).T
            self._heads[device] = weight, -0.5 * (weight * self._means[device]).sum(axis=1)
        weight, bias = self._heads[device]  # type: ignore[misc]
        return (x @ weight.T + bias).argmax(axis=1)

    def learn(self, device: int, x: Array, label: int) -> None:
        """See `Method`."""
        n = self._seen[device]
        apart = x - self._means[device][label]
        self._covariance[device] = (n * self._covariance[device] + n / (n + 1) * np.outer(apart, apart)) / (n + 1)
        self._seen[device] = n + 1
        self._counts[device][label] += 1
        self._means[device][label] += apart / self._counts[device][label]
        self._heads[device] = None

    def exchange(self) -> int:
        """See `Method`."""
        return 0


def baselines() -> dict[str, Make]:
    """By name."""

    def fed(rate: float, mu: float) -> Make:
        return lambda task, seed: FedAvg(task, seed, rate, mu)

    found: dict[str, Make] = {"frozen": Frozen, "SLDA, alone": Slda}
    for kind, mu in (("FedAvg", 0.0), ("FedProx", 0.01)):
        found |= {f"{kind}, rate {rate:g}": fed(rate, mu) for rate in FedAvg.RATES}
    return found


def own(text: str) -> Make:
    """A method out of somebody's file, as ``FILE.py:NAME``.

    Raises:
        ValueError: There is no such file, or no such name in it.
    """
    path, _, name = text.rpartition(":")
    spec = importlib.util.spec_from_file_location("own_method", path)
    if not Path(path).is_file() or spec is None or spec.loader is None:
        raise ValueError(f"--method {text}: expected FILE.py:NAME with a file that is there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise ValueError(f"--method {text}: {path} has no class {name!r}")
    made: Make = getattr(module, name)
    return made


def chosen(here: Mapping[str, Make], only: Sequence[str], theirs: Sequence[str]) -> dict[str, Make]:
    """What runs: of the methods that are here those whose names begin as `only` says (empty: all), and all of theirs.

    Raises:
        ValueError: No method begins so, or one of theirs is not there.
    """
    for each in only:
        if not any(name.startswith(each) for name in here):
            raise ValueError(f"--only {each}: no method is called so; there are {'; '.join(here)}")
    found = {name: make for name, make in here.items() if not only or any(name.startswith(each) for each in only)}
    return found | {each: own(each) for each in theirs}
