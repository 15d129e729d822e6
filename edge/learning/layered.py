"""A head with hidden layers: its last, linear layer is solved from statistics, the layers before it learn by SGD.

What the last layer takes moves as the layers before it learn, so statistics of it would soon be of another world. They
are computed anew, every few samples, from the replay buffer through the layers as they are: classes that have not come
lately are there as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.contract.training import FloatArray, Parameters
from edge.learning.changes import Changes
from edge.learning.closed_form import grown
from edge.learning.learner import State, part, take_like
from edge.learning.sgd import Run, SgdLearner
from edge.learning.solve import Method, head_of
from edge.learning.statistics import HeadStatistics
from edge.learning.task import Targets, Task

# Solve again after this many samples.
SOLVE_EVERY = 4
# What the shipped statistics are worth: they are of the layers as shipped.
PRIOR_SAMPLES = 10.0


class LayeredLearner:
    """SGD on the whole head, and statistics for its last layer; see the module.

    Args:
        below: Learns all layers, with replay; its own last one is there for the gradient.
        head: The last layer.
        task: What the outputs mean.
        hidden: Gives what the last layer takes ``(batch, n_inputs)``, for features and the parameters of the head.
        prior: Shipped statistics of that, or None.
        method: How to solve.
    """

    kind = "delta"

    def __init__(
        self,
        below: SgdLearner,
        head: LinearLayer,
        task: Task,
        hidden: Run,
        prior: HeadStatistics | None,
        method: Method = "discriminant",
    ) -> None:
        self._below = below
        self._head = head
        self._task = task
        self._hidden = hidden
        self._method = method
        n_inputs = below.parameters()[head.weight].shape[1]
        empty = HeadStatistics.empty(n_inputs, task.n_outputs)
        self._prior = prior.scaled_to(PRIOR_SAMPLES) if prior is not None and prior.n_samples > 0 else empty
        names = [head.weight, *([] if head.bias is None else [head.bias])]
        self._last = {name: below.parameters()[name].copy() for name in names}
        self._changes = Changes(self.parameters())

    @property
    def n_samples(self) -> int:
        """See `edge.learning.learner.Learner`."""
        return self._below.n_samples

    def parameters(self) -> Parameters:
        """See `edge.learning.learner.Learner.parameters`."""
        return {**self._below.parameters(), **self._last}

    def learn_many(
        self, features: FloatArray, targets: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
    ) -> None:
        """See `edge.learning.learner.Learner.learn_many`."""
        features, targets, weights = self._below.checked(features, targets, weights)
        if len(features) < 2:
            self._learn(features, targets, weights)
            return
        before = self.state()
        try:
            for i in range(len(features)):
                rows = slice(i, i + 1)
                self._learn(features[rows], targets[rows], weights[rows])
        except BaseException:
            self.restore(before)
            raise

    def _learn(self, features: npt.NDArray[Any], targets: npt.NDArray[Any], weights: npt.NDArray[Any] | None) -> None:
        before = self._below.n_samples
        self._below.learn_many(features, targets, weights)
        if self._below.n_samples > before and self._below.n_samples % SOLVE_EVERY == 0:
            self._solve()

    def _solve(self) -> None:
        """The last layer anew, from the replay buffer; it stays as it is where that cannot be solved."""
        x, targets = self._below.replayed()
        if not len(x):
            return
        inputs = self._hidden(x, self._below.parameters())
        if np.isfinite(inputs).all():
            found = HeadStatistics.of_targets(inputs, self._task.matrix(targets), np.ones(len(inputs)))
            try:
                self._last = head_of(self._prior + found, self._head, self._method)
            except LearningError:
                return

    def distrust_the_past(self, features: FloatArray, targets: Targets) -> None:
        """See `edge.learning.learner.Learner.distrust_the_past`."""
        self._below.distrust_the_past(features, targets)
        self._solve()

    def grow(self, n_classes: int) -> None:
        """See `edge.learning.learner.Learner.grow`."""
        before = self.parameters()
        more = n_classes - self._task.n_outputs
        self._below.grow(n_classes)
        self._task = Task(self._task.recipe, n_classes)
        self._prior = self._prior.grown(n_classes)
        self._last = grown(self._last, self._head, more)
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
        take = self._changes.rebase(parameters, included, self.parameters(), self.n_samples)
        before = self._changes.state()
        moved = take()
        try:
            self._below.rebase(moved, {}, self.n_samples)
        except LearningError:
            self._changes.restore(before)
            raise
        self._last = {name: moved[name] for name in self._last}

    def state(self) -> State:
        """See `edge.learning.learner.Learner.state`."""
        parts = {"below": self._below.state(), "last": self._last, "changes": self._changes.state()}
        return {f"{name}.{key}": array for name, state in parts.items() for key, array in state.items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `edge.learning.learner.Learner.restore`."""
        last = {name: take_like(state, f"last.{name}", array) for name, array in self._last.items()}
        before = self._changes.state()
        self._changes.restore(part(state, "changes."))
        try:
            self._below.restore(part(state, "below."))
        except LearningError:
            self._changes.restore(before)
            raise
        self._last = last
