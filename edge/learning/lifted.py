"""A linear layer in closed form on lifted features: a learner whose borders between classes are curved.

It is `StatisticsLearner` on what `Lift` gives. Its head has the parameters of the bundle's linear head and one more,
`LIFTED`: ``output = x Wᵀ + phi(x) Uᵀ + b``. W is zero once it has learned, unless a head was pushed: then W is the
pushed one's, and what is learned since is added to it.

Such a head cannot leave the device, since a bundle's head is linear; and what it knows is not sent: its sums are four
times as large as those of the features, which the device sends anyway.
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
from edge.learning.closed_form import StatisticsKnowledge, StatisticsLearner
from edge.learning.compression import EXACT, Compression, Packed
from edge.learning.learner import State, check_batch
from edge.learning.lift import Lift
from edge.learning.statistics import HeadStatistics
from edge.learning.task import Targets, Task

# Name of the weights ``(n_outputs, length)`` on phi. No parameter of a model has a space in its name.
LIFTED = "lifted weight"
# What the shipped statistics are worth here, and the share of the scatter that is replaced by a multiple of the
# identity. Both are twice those of features as they are: there are twice as many numbers to learn.
PRIOR_SAMPLES, SHRINKAGE = 40.0, 0.2


@dataclass(frozen=True, eq=False, slots=True)
class LiftedKnowledge:
    """All that `LiftedLearner` knows.

    Attributes:
        sums: Of lifted features; the layer that they determine has the weights `LIFTED`.
        weight: ``(n_outputs, d)``, W of the module.
    """

    sums: StatisticsKnowledge
    weight: FloatArray


class LiftedLearner:
    """See the module.

    Args:
        head: Names of the weight and the bias.
        shipped: The layer as shipped, live until the first sample comes.
        task: Of classes.
        prior: The shipped statistics, of features as they are.
        lift: Made of them.
    """

    kind = ""

    def __init__(
        self, head: LinearLayer, shipped: Mapping[str, FloatArray], task: Task, prior: HeadStatistics, lift: Lift
    ) -> None:
        if head.bias is None:
            raise LearningError("a layer without a bias cannot be lifted")
        self._weight, self._bias, self._lift = head.weight, head.bias, lift
        self._shape = shipped[head.weight].shape[1:]
        self._recipe = task.recipe
        self._sums = StatisticsLearner(
            LinearLayer(weight=LIFTED, bias=head.bias, input=head.input),
            self._flat(shipped),
            task,
            lift.statistics(prior),
            shrinkage=SHRINKAGE,
            prior_samples=PRIOR_SAMPLES,
            precision=np.float32,  # cosines and sines are
        )
        self._value = LiftedKnowledge(self._sums.value, shipped[head.weight].copy())

    def _flat(self, parameters: Mapping[str, FloatArray]) -> Parameters:
        """Of a head, plain or not, what the sums know of."""
        bias = np.array(parameters[self._bias], np.float32)
        lifted = parameters[LIFTED] if LIFTED in parameters else np.zeros((len(bias), self._lift.length), np.float32)
        return {LIFTED: lifted, self._bias: bias}

    @property
    def value(self) -> LiftedKnowledge:
        """See `edge.learning.learner.Learner.value`."""
        return self._value

    def load(self, value: Any) -> None:
        """See `edge.learning.learner.Learner.load`."""
        if value is self._value:
            return
        if not isinstance(value, LiftedKnowledge) or value.weight.shape != (value.sums.n_outputs, *self._shape):
            raise LearningError("what is to be loaded is not what this learner knows")
        self._sums.load(value.sums)
        self._value = value

    def template(self, n_outputs: int) -> LiftedKnowledge:
        """See `edge.learning.learner.Learner.template`."""
        return LiftedKnowledge(self._sums.template(n_outputs), np.empty((n_outputs, *self._shape), np.float32))

    def head(self, n_outputs: int) -> Parameters:
        """Arrays of the shapes that its head has with so many outputs."""
        return {
            self._weight: np.zeros((n_outputs, *self._shape), np.float32),
            self._bias: np.zeros(n_outputs, np.float32),
            LIFTED: np.zeros((n_outputs, self._lift.length), np.float32),
        }

    @property
    def n_samples(self) -> int:
        """See `edge.learning.learner.Learner.n_samples`."""
        return self._sums.n_samples

    @property
    def n_contributed(self) -> int:
        """See `edge.learning.learner.Learner.n_contributed`: none."""
        return 0

    def _became(self) -> None:
        """Take over what the sums know by now."""
        sums, weight = self._sums.value, self._value.weight
        if sums.given is None and sums.offset is None:  # the sums alone determine the head
            weight = np.zeros_like(weight)
        self._value = LiftedKnowledge(sums, weight)

    def learn_many(
        self, features: FloatArray, targets: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
    ) -> None:
        """See `edge.learning.learner.Learner.learn_many`."""
        task = Task(self._recipe, self._value.sums.n_outputs)
        features, targets, weights = check_batch(features, targets, weights, self._shape, task)
        if len(features):
            self.learn_together(features, targets, weights)

    def learn_together(self, features: FloatArray, targets: Targets, weights: FloatArray) -> None:
        """See `edge.learning.learner.Learner.learn_together`: the order does not matter."""
        self._sums.learn_together(self._lift.features(features), targets, weights)
        self._became()

    def parameters(self) -> Parameters:
        """See `edge.learning.learner.Learner.parameters`."""
        return {self._weight: self._value.weight, **self._sums.parameters()}

    def distrust_the_past(self, features: FloatArray, targets: Targets) -> None:
        """See `edge.learning.learner.Learner.distrust_the_past`."""
        self._sums.distrust_the_past(self._lift.features(features), targets)
        self._became()

    def grow(self, n_classes: int) -> None:
        """See `edge.learning.learner.Learner.grow`."""
        weight = self._value.weight
        self._sums.grow(n_classes)
        self._value = replace(self._value, weight=np.pad(weight, ((0, n_classes - len(weight)), (0, 0))))
        self._became()

    def contribution(self, compression: Compression = EXACT) -> Packed:
        """See `edge.learning.learner.Learner.contribution`: it is empty."""
        return compression.pack({})

    def of_others(self) -> None:
        """See `edge.learning.learner.Learner.of_others`: nothing comes from others."""

    def rebase(self, parameters: Mapping[str, FloatArray], merged: State, included: int) -> None:
        """See `edge.learning.learner.Learner.rebase`: the head as it comes; statistics of features are of no use."""
        del merged, included
        self._sums.rebase(self._flat(parameters), {}, 0)
        self._value = LiftedKnowledge(self._sums.value, np.array(parameters[self._weight], np.float32))
