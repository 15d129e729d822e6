"""Labelled samples through a model as a device meets them: each is answered first and learned afterwards."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.agent.on_device_model import OnDeviceModel

_BATCH = 64


@dataclass(kw_only=True, eq=False, slots=True)
class Rehearsal:
    """What came out, one entry for each sample.

    Attributes:
        scores: 1 for a right answer and 0 for a wrong one; of quantities, the loss.
        before: The same for what was known when it began.
        believed: Name of the expert that was believed most.
        learn_ms: What learning one label took.
        events: Sample number, kind and text of what happened.
    """

    scores: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    believed: list[str] = field(default_factory=list)
    learn_ms: list[float] = field(default_factory=list)
    events: list[tuple[int, str, str]] = field(default_factory=list)

    def mean(self, last: int | None = None) -> float:
        """Of the scores, or of the last ones."""
        return float(np.mean(self.scores[-last:] if last else self.scores))

    @property
    def mean_before(self) -> float:
        """Of what was known when it began."""
        return float(np.mean(self.before))

    def running(self, window: int) -> npt.NDArray[np.float64]:
        """Mean of the last scores at each sample."""
        total = np.cumsum([0.0, *self.scores])
        at = np.arange(1, len(total))
        start = np.maximum(at - window, 0)
        return np.asarray((total[at] - total[start]) / (at - start))


def scores(model: OnDeviceModel, outputs: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Right or wrong for each sample; of quantities, the loss."""
    task = model.task
    targets = task.check(y, len(outputs))
    return task.losses(outputs, targets) if task.is_regression else task.right(outputs, targets)


def evaluate(model: OnDeviceModel, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    """Mean score of the live head, which learns nothing here."""
    found = [scores(model, model.predict(x[i : i + _BATCH]), y[i : i + _BATCH]) for i in range(0, len(x), _BATCH)]
    return float(np.mean(np.concatenate(found)))


def rehearse(
    model: OnDeviceModel,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None = None,
    late: int = 0,
    stopwatch: Callable[[], float] = time.perf_counter,
) -> Iterator[Rehearsal]:
    """Answer and learn samples in order.

    Args:
        model: Learns.
        x: ``(n, *input)``.
        y: ``(n,)`` or ``(n, n_outputs)``.
        weights: ``(n,)`` from 0 to 1, or None.
        late: Samples by which each label comes late.
        stopwatch: In seconds.

    Yields:
        The same growing rehearsal after each sample, and once more when the late labels are learned.
    """
    found = Rehearsal()
    begun = model.learned
    for i in range(0, len(x), _BATCH):
        rows = slice(i, i + _BATCH)
        outputs = model.learning.answer(begun, model.answering.features(x[rows]))
        found.before += scores(model, outputs, y[rows]).tolist()
    waiting: deque[int] = deque()

    def learn(number: int) -> None:
        rows = slice(number, number + 1)
        start = stopwatch()
        model.learn(x[rows], y[rows], None if weights is None else weights[rows])
        found.learn_ms.append((stopwatch() - start) * 1e3)
        found.events += [(len(found.scores), event.kind, event.text) for event in model.events]
        model.events.clear()

    for i in range(len(x)):
        found.scores.append(float(scores(model, model.predict(x[i : i + 1]), y[i : i + 1])[0]))
        found.believed.append(model.learned.mixture.believed)
        waiting.append(i)
        if len(waiting) > late:
            learn(waiting.popleft())
        yield found
    while waiting:
        learn(waiting.popleft())
    yield found
