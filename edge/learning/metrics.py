"""Running figures of a model at work: predict-then-learn accuracy and loss, latency percentiles, rates."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.learning.quantiles import percentile
from edge.learning.task import Targets, Task


class RunningMetrics:
    """Figures over the most recent events.

    Args:
        window: Labels and latencies that are kept.

    Attributes:
        inferences: Samples answered, over restarts.
        labels: That came, since the start.
        right: To how many of them the answer was right; of several yes-or-no answers a share of one. 0 of quantities.
        predictions: Samples answered since the start.
    """

    def __init__(self, window: int = 256) -> None:
        self._right: deque[float] = deque(maxlen=window)
        self._losses: deque[float] = deque(maxlen=window)
        self._answered: deque[tuple[int, int]] = deque(maxlen=window)  # label and answer, of classes
        self._latencies_ms: deque[float] = deque(maxlen=window)
        self.inferences = 0
        self.labels = 0
        self.right = 0.0
        self.predictions = 0
        self._reported_inferences = 0
        self._reported_s: float | None = None

    def inferred(self, latency_ms: float, samples: int = 1) -> None:
        """A prediction was made."""
        self.inferences += samples
        self.predictions += samples
        self._latencies_ms.append(latency_ms)

    def judged(self, task: Task, answers: npt.NDArray[Any], targets: Targets) -> None:
        """Labels came, before they were learned.

        Args:
            task: What the outputs mean.
            answers: ``(batch, n_outputs)`` that were given at the time.
            targets: What would have been right.
        """
        self.labels += len(targets)
        if not task.is_regression:
            right = task.right(answers, targets).tolist()
            self._right.extend(right)
            self.right += sum(right)
        self._losses.extend(task.losses(answers, targets).tolist())
        if task.is_classifier:
            self._answered.extend(zip(targets.tolist(), answers.argmax(axis=1).tolist(), strict=True))

    def forget_judgements(self) -> None:
        """Start accuracy, loss and confusion anew, as after a change of the head."""
        self._right.clear()
        self._losses.clear()
        self._answered.clear()

    @property
    def answered(self) -> list[tuple[int, int]]:
        """Of recent labels of classes the class and what was answered, oldest first."""
        return list(self._answered)

    def go_on(self, answered: Iterable[tuple[int, int]]) -> None:
        """Go on from what `answered` was before a restart: accuracy and confusion are of these labels, too."""
        self._answered.extend(answered)
        self._right.extend(float(label == said) for label, said in self._answered)

    def confusion(self, names: Sequence[str] = ()) -> dict[str, dict[str, int]]:
        """Of recent labels, by class what was answered, and how often; empty where nothing is a class.

        Args:
            names: Of the classes, in their order; one without a name goes by its number.
        """
        found: dict[str, dict[str, int]] = {}
        for (label, said), count in sorted(Counter(self._answered).items()):
            label_name, said_name = (names[c] if c < len(names) else str(c) for c in (label, said))
            found.setdefault(label_name, {})[said_name] = count
        return found

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions among recent labels; None without labels."""
        return sum(self._right) / len(self._right) if self._right else None

    def share_right(self, least: int) -> float | None:
        """`accuracy`; None where it is of fewer than `least` labels."""
        return self.accuracy if len(self._right) >= least else None

    @property
    def loss(self) -> float | None:
        """Mean loss of the predictions among recent labels; None without labels."""
        return sum(self._losses) / len(self._losses) if self._losses else None

    def p99_ms(self, least: int = 64) -> float | None:
        """99th percentile of the time of a prediction; None where fewer than `least` were timed."""
        return self.percentile_ms(99, least)

    def percentile_ms(self, percent: float, least: int = 1) -> float | None:
        """A percentile of the time of a prediction; None where fewer than `least` were timed."""
        if len(self._latencies_ms) < least:
            return None
        return percentile(self._latencies_ms, percent)

    def report(self, now_s: float) -> dict[str, float | int]:
        """Figures for telemetry, with the keys of ``docs/protocol.md``; what is not known is left out."""
        values: dict[str, float | int] = {"infer": self.inferences, "labels": self.labels}
        if self._reported_s is not None and now_s > self._reported_s:
            made = self.inferences - self._reported_inferences
            values["infer_per_s"] = round(made / (now_s - self._reported_s), 2)
        self._reported_s, self._reported_inferences = now_s, self.inferences
        if self._latencies_ms:
            values |= {f"lat_p{each}_ms": round(percentile(self._latencies_ms, each), 3) for each in (50, 99)}
        if self._right:
            values |= {"acc": round(sum(self._right) / len(self._right), 4)}
        if self._losses:
            values |= {"loss": round(float(np.mean(self._losses)), 4)}
        return values
