"""A head with hidden layers: its last, linear layer is solved from statistics, the layers before it learn by SGD.

The statistics are of what the last layer takes, which moves as the layers before it learn: so they slowly forget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray, Parameters
from edge.learning.changes import Changes
from edge.learning.closed_form import StatisticsLearner
from edge.learning.learner import State, part, take_integers
from edge.learning.sgd import Run, SgdLearner
from edge.learning.task import Targets

# What a sample is worth when the next one has come.
FORGETTING = 0.998


class LayeredLearner:
    """SGD on the whole head, and statistics for its last layer; see the module.

    Args:
        below: Learns all layers; its last one is there for the gradient only.
        last: Learns the last layer.
        hidden: Gives what the last layer takes ``(batch, n_inputs)``, for features and the parameters of the head.
    """

    kind = "delta"

    def __init__(self, below: SgdLearner, last: StatisticsLearner, hidden: Run) -> None:
        self._below = below
        self._last = last
        self._hidden = hidden
        self._changes = Changes(self.parameters())

    @property
    def n_samples(self) -> int:
        """See `edge.learning.learner.Learner`."""
        return self._below.n_samples

    def parameters(self) -> Parameters:
        """See `edge.learning.learner.Learner.parameters`."""
        return {**self._below.parameters(), **self._last.parameters()}

    def learn_many(
        self, features: FloatArray, targets: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
    ) -> None:
        """See `edge.learning.learner.Learner.learn_many`."""
        before = self._below.state(), self._last.state()
        features, targets = np.asarray(features), np.asarray(targets)
        try:
            for i in range(max(1, len(features))):
                rows = slice(i, i + 1) if len(features) else slice(None)
                weight = None if weights is None else np.asarray(weights)[rows]
                self._below.learn_many(features[rows], targets[rows], weight)
                inputs = self._hidden(features[rows].astype(np.float32), self._below.parameters())
                self._last.learn_many(inputs, targets[rows], weight)
        except BaseException:
            self._below.restore(before[0])
            self._last.restore(before[1])
            raise

    def distrust_the_past(self, features: FloatArray, targets: Targets) -> None:
        """See `edge.learning.learner.Learner.distrust_the_past`."""
        self._below.distrust_the_past(features, targets)
        self._last.distrust_the_past(self._hidden(features, self._below.parameters()), targets)

    def grow(self, n_classes: int) -> None:
        """See `edge.learning.learner.Learner.grow`."""
        before = self.parameters()
        self._below.grow(n_classes)
        self._last.grow(n_classes)
        now = self.parameters()

        def wider(head: Parameters) -> Parameters:
            return {name: np.concatenate([array, now[name][len(before[name]) :]]) for name, array in head.items()}

        self._changes.grow(wider)

    @property
    def n_contributed(self) -> int:
        """See `edge.learning.learner.Learner.n_contributed`: those since the base."""
        return self.n_samples - self._changes.version

    def contribution(self) -> State:
        """See `edge.learning.learner.Learner.contribution`: the change since the last merge."""
        return self._changes.contribution(self.parameters(), self.n_samples)

    def rebase(self, parameters: Mapping[str, FloatArray], merged: State, included: int) -> None:
        """See `edge.learning.learner.Learner.rebase`: what was learned since the included version is put on top."""
        del merged
        moved = self._changes.rebase(parameters, included, self.parameters(), self.n_samples)()
        self._below.rebase(moved, {}, self.n_samples)
        self._last.rebase(moved, {}, 0)

    def state(self) -> State:
        """See `edge.learning.learner.Learner.state`."""
        parts = {"below": self._below.state(), "last": self._last.state(), "changes": self._changes.state()}
        return {f"{name}.{key}": array for name, state in parts.items() for key, array in state.items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `edge.learning.learner.Learner.restore`."""
        before = self.state()
        take_integers(part(state, "below."), "counts", 1)
        try:
            self._below.restore(part(state, "below."))
            self._last.restore(part(state, "last."))
            self._changes.restore(part(state, "changes."))
        except LearningError:
            for name, each in (("below.", self._below), ("last.", self._last), ("changes.", self._changes)):
                each.restore(part(before, name))
            raise
