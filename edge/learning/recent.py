"""The most recent labelled samples, and what was answered for each before its label was learned."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge.contract.training import FloatArray
from edge.learning.events import Labelled
from edge.learning.packing import PackedFeatures
from edge.learning.solve import UNSEEN_LOGIT
from edge.learning.task import Scores, Targets, Task


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Recent:
    """Samples side by side, the oldest first.

    Attributes:
        codes: ``(n, d)`` int8, the packed features.
        scales: ``(n,)`` float32.
        targets: ``(n,)`` int64 or ``(n, n_outputs)`` float32.
        weights: ``(n,)`` float32, how much each label was trusted.
        answers: ``(n, n_outputs)`` float32, given before the label was learned.
    """

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    targets: Targets
    weights: FloatArray
    answers: FloatArray

    def __len__(self) -> int:
        return len(self.scales)

    @classmethod
    def none(cls, shape: tuple[int, ...], task: Task) -> Recent:
        """No samples of features of a shape."""
        return cls(
            codes=np.zeros((0, math.prod(shape)), np.int8),
            scales=np.zeros(0, np.float32),
            targets=np.zeros(0, np.int64) if task.is_classifier else np.zeros((0, task.n_outputs), np.float32),
            weights=np.zeros(0, np.float32),
            answers=np.zeros((0, task.n_outputs), np.float32),
        )

    def put(self, labels: Labelled, answers: FloatArray, most: int) -> Recent:
        """With more samples, `most` or fewer, and what was answered ``(n, n_outputs)``; beyond `most` the oldest go."""
        last = slice(max(0, len(self) + len(labels) - most), None)
        return Recent(
            codes=np.concatenate([self.codes[last], labels.features.codes]),
            scales=np.concatenate([self.scales[last], labels.features.scales]),
            targets=np.concatenate([self.targets[last], labels.target]),
            weights=np.concatenate([self.weights[last], labels.weight]),
            answers=np.concatenate([self.answers[last], answers]),
        )

    def last(self, count: int) -> Recent:
        """The newest of them."""
        rows = slice(max(0, len(self) - count), None)
        return Recent(
            codes=self.codes[rows],
            scales=self.scales[rows],
            targets=self.targets[rows],
            weights=self.weights[rows],
            answers=self.answers[rows],
        )

    def labels(self) -> Labelled:
        """What came, as an event."""
        return Labelled(PackedFeatures(self.codes, self.scales), self.targets, self.weights)

    def features(self, shape: tuple[int, ...]) -> FloatArray:
        """``(n, *shape)``."""
        return PackedFeatures(self.codes, self.scales).unpack(shape)

    def losses(self, task: Task) -> Scores:
        """``(n,)`` of the answers."""
        return task.losses(self.answers, self.targets)

    def grown(self, n_classes: int) -> Recent:
        """With room for further classes, for which nobody had an answer."""
        more = n_classes - self.answers.shape[1]
        unseen = np.full((len(self), more), UNSEEN_LOGIT, np.float32)
        return replace(self, answers=np.concatenate([self.answers, unseen], axis=1))
