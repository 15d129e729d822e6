"""A head with hidden layers: its last, linear layer is solved from statistics, the layers before it learn by SGD.

What the last layer takes moves as the layers before it learn, so statistics of it would soon be of another world. They
are computed anew, every few samples, from the replay buffer through the layers as they are: classes that have not come
lately are there as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.contract.training import FloatArray, Parameters
from edge.learning.changes import Changes, Head
from edge.learning.closed_form import grown
from edge.learning.compression import EXACT, Compression, Packed
from edge.learning.learner import State
from edge.learning.sgd import Run, SgdKnowledge, SgdLearner
from edge.learning.solve import Method, head_of
from edge.learning.statistics import HeadStatistics
from edge.learning.task import Targets, Task

# Solve again after this many samples.
SOLVE_EVERY = 4
# What the shipped statistics are worth: they are of the layers as shipped.
PRIOR_SAMPLES = 10.0


@dataclass(frozen=True, eq=False, slots=True)
class LayeredKnowledge:
    """All that `LayeredLearner` knows. No array of it is ever written into.

    Attributes:
        below: What SGD knows of all layers.
        last: The last layer, solved.
        changes: What was sent, and since when changes are counted.
    """

    below: SgdKnowledge
    last: Mapping[str, FloatArray]
    changes: Changes

    @property
    def live(self) -> Parameters:
        """The head."""
        return {**self.below.live, **self.last}


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
        self._recipe = task.recipe
        self._hidden = hidden
        self._method = method
        n_inputs = below.parameters()[head.weight].shape[1]
        empty = HeadStatistics.empty(n_inputs, task.n_outputs)
        self._prior = prior.scaled_to(PRIOR_SAMPLES) if prior is not None and prior.n_samples > 0 else empty
        live = below.parameters()
        self._names = [head.weight, *([] if head.bias is None else [head.bias])]
        self._value = LayeredKnowledge(below.value, {name: live[name] for name in self._names}, Changes(live))

    @property
    def value(self) -> LayeredKnowledge:
        """See `edge.learning.learner.Learner.value`."""
        return self._value

    def load(self, value: Any) -> None:
        """See `edge.learning.learner.Learner.load`."""
        if not isinstance(value, LayeredKnowledge):
            raise LearningError("what is to be loaded is not what this learner knows")
        self._below.load(value.below)
        self._value = value

    def template(self, n_outputs: int) -> LayeredKnowledge:
        """See `edge.learning.learner.Learner.template`."""
        below = self._below.template(n_outputs)
        return LayeredKnowledge(below, {name: below.live[name] for name in self._names}, Changes.template(below.live))

    @property
    def n_samples(self) -> int:
        """See `edge.learning.learner.Learner`."""
        return self._value.below.n_samples

    @property
    def _n_outputs(self) -> int:
        return len(self._value.last[self._head.weight])

    def parameters(self) -> Parameters:
        """See `edge.learning.learner.Learner.parameters`."""
        return self._value.live

    def learn_many(
        self, features: FloatArray, targets: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
    ) -> None:
        """See `edge.learning.learner.Learner.learn_many`."""
        self._learn(*self._below.checked(features, targets, weights), together=False)

    def learn_together(self, features: FloatArray, targets: Targets, weights: FloatArray) -> None:
        """See `edge.learning.learner.Learner.learn_together`."""
        self._learn(features, targets, weights, together=True)

    def _learn(self, features: FloatArray, targets: Targets, weights: FloatArray, *, together: bool) -> None:
        last, start, below = self._value.last, 0, self._below
        try:
            while start < len(features):
                rows = slice(start, start + SOLVE_EVERY - below.n_samples % SOLVE_EVERY if together else start + 1)
                start = rows.stop
                learn = below.learn_together if together else below.learn_many
                learn(features[rows], targets[rows], weights[rows])
                if below.n_samples % SOLVE_EVERY == 0:
                    last = self._solved(last)
        except BaseException:  # whatever interrupts a batch: nothing of it was learned
            self._below.load(self._value.below)
            raise
        self._value = replace(self._value, below=self._below.value, last=last)

    def _solved(self, last: Head) -> Head:
        """The last layer anew, from the replay buffer; as it is where that cannot be solved."""
        x, targets = self._below.replayed()
        if not len(x):
            return last
        inputs = self._hidden(x, self._below.parameters())
        if not np.isfinite(inputs).all():
            return last
        task = Task(self._recipe, self._n_outputs)
        found = HeadStatistics.of_targets(inputs, task.matrix(targets), np.ones(len(inputs)))
        try:
            return head_of(self._prior.grown(task.n_outputs) + found, self._head, self._method)
        except LearningError:
            return last

    def distrust_the_past(self, features: FloatArray, targets: Targets) -> None:
        """See `edge.learning.learner.Learner.distrust_the_past`."""
        self._below.distrust_the_past(features, targets)
        self._value = replace(self._value, below=self._below.value, last=self._solved(self._value.last))

    def grow(self, n_classes: int) -> None:
        """See `edge.learning.learner.Learner.grow`."""
        value, more = self._value, n_classes - self._n_outputs
        self._below.grow(n_classes)
        below, last = self._below.value, grown(value.last, self._head, more)
        live = {**below.live, **last}

        def wider(head: Head) -> Parameters:
            return {name: np.concatenate([array, live[name][len(value.live[name]) :]]) for name, array in head.items()}

        self._value = LayeredKnowledge(below, last, value.changes.grown(wider))

    @property
    def n_contributed(self) -> int:
        """See `edge.learning.learner.Learner.n_contributed`: those since the base."""
        return self.n_samples - self._value.changes.version

    def contribution(self, compression: Compression = EXACT) -> Packed:
        """See `edge.learning.learner.Learner.contribution`: the change since the last merge."""
        value = self._value
        changes, packed = value.changes.contributed(value.live, self.n_samples, compression)
        self._value = replace(value, changes=changes)
        return packed

    def of_others(self) -> None:
        """See `edge.learning.learner.Learner.of_others`: means of changes cannot be taken apart."""

    def rebase(self, parameters: Mapping[str, FloatArray], merged: State, included: int) -> None:
        """See `edge.learning.learner.Learner.rebase`: what was learned since the included version is put on top."""
        del merged
        value = self._value
        changes, moved = value.changes.rebased(parameters, included, value.live, self.n_samples)
        self._below.rebase(moved, {}, self.n_samples)
        last = {name: moved[name] for name in self._names}
        self._value = LayeredKnowledge(self._below.value, last, changes)
