"""Running figures of a model at work: predict-then-learn accuracy and loss, latency percentiles, rates."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Logarithm of the softmax along the last axis, without overflow."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalized: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalized


class RunningMetrics:
    """Figures over the most recent events.

    Args:
        window: Labels and latencies that are kept.
    """

    def __init__(self, window: int = 256) -> None:
        self._right: deque[bool] = deque(maxlen=window)
        self._losses: deque[float] = deque(maxlen=window)
        self._latencies_ms: deque[float] = deque(maxlen=window)
        self.inferences = 0
        self.labels = 0
        self._reported_inferences = 0
        self._reported_s: float | None = None

    def inferred(self, latency_ms: float, samples: int = 1) -> None:
        """A prediction was made."""
        self.inferences += samples
        self._latencies_ms.append(latency_ms)

    def judged(self, logits: npt.NDArray[Any], labels: npt.NDArray[Any], predictions: npt.NDArray[Any]) -> None:
        """Labels came, before they were learned.

        Args:
            logits: ``(batch, n_classes)`` of the live head, for the loss.
            labels: ``(batch,)``.
            predictions: ``(batch,)`` classes that were answered at the time.
        """
        self.labels += len(labels)
        self._right.extend(bool(right) for right in predictions == labels)
        chosen = np.take_along_axis(log_softmax(logits), labels[:, None], axis=1)[:, 0]
        self._losses.extend(float(loss) for loss in -chosen)

    def forget_judgements(self) -> None:
        """Start accuracy and loss anew, as after a change of the head."""
        self._right.clear()
        self._losses.clear()

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions among recent labels; None without labels."""
        return sum(self._right) / len(self._right) if self._right else None

    @property
    def judged_in_window(self) -> int:
        """How many labels the accuracy rests on."""
        return len(self._right)

    def report(self, now_s: float) -> dict[str, float | int]:
        """Figures for telemetry, with the keys of ``docs/protocol.md``; what is not known is left out."""
        values: dict[str, float | int] = {"infer": self.inferences, "labels": self.labels}
        if self._reported_s is not None and now_s > self._reported_s:
            made = self.inferences - self._reported_inferences
            values["infer_per_s"] = round(made / (now_s - self._reported_s), 2)
        self._reported_s, self._reported_inferences = now_s, self.inferences
        if self._latencies_ms:
            p50, p99 = np.percentile(np.array(self._latencies_ms), [50, 99])
            values |= {"lat_p50_ms": round(float(p50), 3), "lat_p99_ms": round(float(p99), 3)}
        if self._right:
            values |= {"acc": round(sum(self._right) / len(self._right), 4)}
            values |= {"loss": round(float(np.mean(self._losses)), 4)}
        return values
