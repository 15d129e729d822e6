"""The version before a release, answering beside it: sums of pairs by which a fleet judges the release.

A head that learns is a value, so the version before is the value before, and learns the labels that come as it would
have. Both answer before they learn the label. What had been answered to the last labels before the release is counted,
too: nobody had learned those labels when they were answered.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np

from edge.channel.messages import Pairs
from edge.contract.errors import LearningError
from edge.contract.training import FloatArray
from edge.learning.events import Labelled
from edge.learning.learned import Learned
from edge.learning.learning import Learning
from edge.learning.metrics import RunningMetrics
from edge.learning.mixture import PUSHED
from edge.learning.task import Task

# Beyond so many pairs nobody looks any more: the work of the shadow ends.
ENOUGH = 640
# A device says its sums when they come to these.
TOLD_AT = (10, 20, 40, 80, 160, 320, 640)
# How right a bundle was is known from so many labels on.
LABELS_OF_BUNDLE = 64


class Shadow:
    """See the module.

    Args:
        learning: The rules of the head.
        before: What was known before the release.
        since: What is known with it.
        release: Its counter.
        unlabelled: Features ``(n, *features)`` of late samples without a label.

    Attributes:
        release: Its counter.
        pairs: The sums so far.
    """

    def __init__(
        self, learning: Learning, before: Learned, since: Learned, release: int, unlabelled: FloatArray
    ) -> None:
        self._learning = learning
        self._before: Learned | None = replace(before, trial=None)
        self.release = release
        self.pairs = Pairs()
        if since.trial is not None and len(before.recent):  # a merge may have learned the labels of this very device
            shape, recent = learning.shape, before.recent
            new = learning.run(recent.features(shape), learning.parameters(since, PUSHED))
            self._judge(recent.answers, new, recent.targets, since)
        if len(unlabelled):
            self._compare(
                learning.answer(self._before, unlabelled), learning.answer(since, unlabelled), learning.task(since)
            )

    @property
    def is_over(self) -> bool:
        """Whether nobody looks at more pairs."""
        return self._before is None

    @property
    def told_at(self) -> int:
        """How many of `TOLD_AT` the sums have come to."""
        most = max(self.pairs.labelled, self.pairs.compared)
        least = min(self.pairs.labelled, self.pairs.compared)
        return sum(each <= most for each in TOLD_AT) + sum(each <= least for each in TOLD_AT)

    def labelled(self, since: Learned, event: Labelled) -> None:
        """A label came, and nobody has learned it yet."""
        if self._before is None:
            return
        features = event.features.unpack(self._learning.shape)
        trusted = event.weight > 0  # who knows that a label is wrong says so by a weight of 0
        if self.pairs.labelled < ENOUGH and trusted.any():
            rows = features[trusted]
            old, new = self._learning.answer(self._before, rows), self._learning.answer(since, rows)
            self._judge(old, new, event.target[trusted], since)
        with suppress(LearningError):  # a class that only the release knows
            self._before, _ = self._learning.advance(self._before, event)
        if min(self.pairs.labelled, self.pairs.compared) >= ENOUGH:
            self._before = None

    def predicted(self, since: Learned, features: FloatArray, answer: FloatArray) -> None:
        """A sample ``(1, *features)`` was answered."""
        if self._before is not None and self.pairs.compared < ENOUGH:
            self._compare(self._learning.answer(self._before, features), answer, self._learning.task(since))

    def _judge(self, old: FloatArray, new: FloatArray, targets: FloatArray, since: Learned) -> None:
        width = min(old.shape[1], new.shape[1])
        task = self._learning.task(since)
        if task.is_classifier and width < new.shape[1]:  # a class that the version before does not know
            old = np.pad(old, ((0, 0), (0, new.shape[1] - width)), constant_values=float(old.min()))
        gains = task.gains(old, new, targets)
        self.pairs = replace(
            self.pairs,
            labelled=self.pairs.labelled + len(gains),
            only_new=self.pairs.only_new + round(float(np.maximum(gains, 0.0).sum()), 6),
            only_old=self.pairs.only_old + round(float(np.maximum(-gains, 0.0).sum()), 6),
        )

    def _compare(self, old: FloatArray, new: FloatArray, task: Task) -> None:
        if task.is_regression:  # two numbers always differ, and by how much says nothing of which is right
            return
        if task.is_classifier:
            differ = old.argmax(axis=1) != new.argmax(axis=1)
        else:
            differ = ((old > 0) != (new > 0)).any(axis=1)
        self.pairs = replace(
            self.pairs,
            compared=self.pairs.compared + len(differ),
            differ=self.pairs.differ + int(differ.sum()),
        )


class Successor:
    """How right a bundle is that took the place of another, against how right that one was on its late labels.

    It does not run beside the other: that would take twice the memory. So it answers other samples, and of each label
    that comes to it the share is expected on which the other one was right (docs/adr/0050).

    Args:
        share: That share.
        metrics: Of the new bundle, as it is made live.
    """

    def __init__(self, share: float, metrics: RunningMetrics) -> None:
        self._share, self._metrics = share, metrics
        self._labels, self._right, self._told_at = metrics.labels, metrics.right, 0

    def news(self, pairs: Pairs) -> Pairs | None:
        """What is to be told beside all else that pairs say; None while there is nothing new."""
        n = self._metrics.labels - self._labels
        told_at = sum(each <= n for each in TOLD_AT)
        if told_at == self._told_at:
            return None
        self._told_at = told_at
        gained = round(self._metrics.right - self._right - self._share * n, 3)
        return replace(pairs, labelled=n, only_new=max(gained, 0.0), only_old=max(-gained, 0.0))
