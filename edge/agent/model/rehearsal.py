"""Labelled samples through a model as a device meets them: each is answered first and learned afterwards."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.agent.model.on_device_model import OnDeviceModel
from edge.agent.model.serving import Given
from edge.learning.learned import Learned


@dataclass(kw_only=True, eq=False, slots=True)
class Rehearsal:
    """What came out, one entry for each sample.

    Attributes:
        scores: 1 for a right answer and 0 for a wrong one; of quantities, the loss.
        before: The same for what was known when it began.
        losses: The loss of each answer.
        believed: Name of the expert that was believed most.
        shares: By expert, how far each was believed.
        since_drift: Labels since the world last changed, as far as was noticed.
        window_error: Mean error above what is usual in the window of the drift detector.
        learn_ms: What learning one label took.
        events: Sample number, kind and text of what happened.
    """

    scores: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    believed: list[str] = field(default_factory=list)
    shares: list[dict[str, float]] = field(default_factory=list)
    since_drift: list[int] = field(default_factory=list)
    window_error: list[float] = field(default_factory=list)
    learn_ms: list[float] = field(default_factory=list)
    events: list[tuple[int, str, str]] = field(default_factory=list)

    def mean(self, last: int | None = None) -> float:
        """Of the scores, or of the last ones."""
        return float(np.mean(self.scores[-last:] if last else self.scores))

    @property
    def mean_before(self) -> float:
        """Of what was known when it began."""
        return float(np.mean(self.before))

    @property
    def window(self) -> int:
        """Samples in a running mean that shows something of so many."""
        return max(5, min(100, len(self.scores) // 10))

    def running(self, window: int, of: Sequence[float] | None = None) -> npt.NDArray[np.float64]:
        """Mean of the last scores, or of other numbers, at each sample."""
        total = np.cumsum([0.0, *(self.scores if of is None else of)])
        at = np.arange(1, len(total))
        start = np.maximum(at - window, 0)
        return np.asarray((total[at] - total[start]) / (at - start))


def scores(model: OnDeviceModel, outputs: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Right or wrong for each sample; of quantities, the loss."""
    task = model.task
    targets = task.check(y, len(outputs))
    return task.losses(outputs, targets) if task.is_regression else task.right(outputs, targets)


def evaluate(model: OnDeviceModel, x: Given, y: npt.NDArray[Any]) -> float:
    """Mean score of the live head, which learns nothing here."""
    features = model.answering.features_in_parts(model.serving.many(x))
    return float(np.mean(scores(model, model.answer(features), y)))


def _note(found: Rehearsal, learned: Learned) -> None:
    """How things stand before a sample is learned."""
    mixture, buckets = learned.mixture, learned.drift.buckets
    found.believed.append(mixture.believed)
    found.shares.append(dict(zip(mixture.names, mixture.weights.tolist(), strict=True)))
    found.since_drift.append(learned.since_drift)
    found.window_error.append(float(buckets[:, 1].sum() / max(1.0, buckets[:, 0].sum())))


def rehearse(
    model: OnDeviceModel,
    x: Given,
    y: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None = None,
    late: int = 0,
    stopwatch: Callable[[], float] = time.perf_counter,
) -> Iterator[Rehearsal]:
    """Answer and learn samples in order.

    Args:
        model: Learns.
        x: ``(n, *input)``, or such arrays by name.
        y: ``(n,)`` or ``(n, n_outputs)``.
        weights: ``(n,)`` from 0 to 1, or None.
        late: Samples by which each label comes late.
        stopwatch: In seconds.

    Yields:
        The same growing rehearsal after each sample, and once more when the late labels are learned.
    """
    found = Rehearsal()
    begun = model.learned
    features = model.answering.features_in_parts(model.serving.many(x))
    found.before += scores(model, model.learning.answer(begun, features), y).tolist()
    waiting: deque[int] = deque()

    def learn(number: int) -> None:
        rows = slice(number, number + 1)
        start = stopwatch()
        model.learn_features(features[rows], y[rows], None if weights is None else weights[rows])
        found.learn_ms.append((stopwatch() - start) * 1e3)
        found.events += [(len(found.scores), event.kind, event.text) for event in model.events]
        model.events.clear()

    for i in range(len(y)):
        outputs, target = model.answer(features[i : i + 1]), y[i : i + 1]
        found.scores.append(float(scores(model, outputs, target)[0]))
        found.losses.append(float(model.task.losses(outputs, model.task.check(target, 1))[0]))
        _note(found, model.learned)
        waiting.append(i)
        if len(waiting) > late:
            learn(waiting.popleft())
        yield found
    while waiting:
        learn(waiting.popleft())
    yield found
