"""The closed-form learner of a linear head: adds up statistics and solves for the head.

It knows three sums. `base` is what it started from: the shipped statistics worth `PRIOR_SAMPLES` pseudo-samples, or
what the fleet merged. `own` is all that this device ever learned. `included` is the part of `own` that is already in
`base`. The head is solved from ``base + own - included``, so nothing counts twice whichever versions meet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearHead
from edge.contract.training import FloatArray, LabelArray, Parameters
from edge.learning.learner import State, check_batch, take, take_integers
from edge.learning.merge import head_of
from edge.learning.statistics import HeadStatistics

# What the shipped statistics are worth. 20 to 70 was right on several tasks (docs/learning.md).
PRIOR_SAMPLES = 20.0
# Contributions that may still be on their way when a merge comes back.
KEPT_CONTRIBUTIONS = 4


class StatisticsLearner:
    """Streaming LDA on a linear head; see the module and `edge.learning.statistics`.

    Args:
        head: Names of the weight and the bias.
        shipped: The head as shipped, live until the first label comes.
        prior: Shipped statistics, or None to start from nothing.
        solve_every: Solve again after this many new samples; a solve costs ``O(d^3)``.
    """

    kind = "statistics"

    def __init__(
        self,
        head: LinearHead,
        shipped: Mapping[str, FloatArray],
        prior: HeadStatistics | None,
        solve_every: int = 8,
    ) -> None:
        self._head = head
        self._live = {name: array.copy() for name, array in shipped.items()}
        self._n_classes, self._n_features = shipped[head.weight].shape
        empty = HeadStatistics.empty(self._n_features, self._n_classes)
        self._base = prior.scaled_to(PRIOR_SAMPLES) if prior is not None and prior.n_samples > 0 else empty
        self._own = self._included = empty
        self._included_version = 0
        self._sent: deque[tuple[int, HeadStatistics]] = deque(maxlen=KEPT_CONTRIBUTIONS)
        self._offset: Parameters | None = None
        self._solve_every = solve_every
        self._unsolved = 0
        self.n_samples = 0

    def learn_many(self, features: FloatArray, labels: LabelArray) -> None:
        """See `edge.learning.learner.Learner.learn_many`."""
        features, labels = check_batch(features, labels, (self._n_features,), self._n_classes)
        if len(labels) == 0:
            return
        own = self._own + HeadStatistics.of(features, labels, self._n_classes)
        unsolved = self._unsolved + len(labels)
        if unsolved >= self._solve_every:
            self._live = self._solved(self._base + own - self._included)
            unsolved = 0
        self._own, self._unsolved = own, unsolved
        self.n_samples += len(labels)

    def _solved(self, statistics: HeadStatistics) -> Parameters:
        """The head that statistics determine, on top of a head that was given without statistics."""
        solved = head_of(statistics, self._head)
        if self._offset is None:
            return solved
        for name in solved:
            solved[name][~statistics.seen] = 0.0  # a class without samples stays as it was given
            solved[name] += self._offset[name]
        return solved

    def parameters(self) -> Parameters:
        """See `edge.learning.learner.Learner.parameters`."""
        return self._live

    @property
    def n_contributed(self) -> int:
        """See `edge.learning.learner.Learner.n_contributed`: all of them."""
        return self.n_samples

    def contribution(self) -> State:
        """See `edge.learning.learner.Learner.contribution`."""
        if not self._sent or self._sent[-1][0] != self.n_samples:
            self._sent.append((self.n_samples, self._own))
        return dict(self._own.to_tensors())

    def rebase(self, parameters: Mapping[str, FloatArray], merged: State, included: int) -> None:
        """See `edge.learning.learner.Learner.rebase`.

        A head that comes without statistics is taken as it is, and what is learned from then on is added to it: the
        difference between the heads solved then and now.
        """
        given = {name: np.array(array, np.float32) for name, array in parameters.items()}
        if not merged:
            offset = None
            total = self._base + self._own - self._included
            if total.n_samples > 0:
                solved = head_of(total, self._head)
                for array in solved.values():
                    array[~total.seen] = 0.0
                offset = {name: given[name] - solved[name] for name in given}
            self._offset, self._live, self._unsolved = offset, given, 0
            return
        base = HeadStatistics.from_tensors(merged, self._n_features, self._n_classes)
        nothing = HeadStatistics.empty(self._n_features, self._n_classes)
        known = {0: nothing, self._included_version: self._included, self.n_samples: self._own, **dict(self._sent)}
        # A version that is no longer known is taken as "all of it": to count a sample once too little is harmless.
        version = included if included in known else self.n_samples
        live = given
        if self.n_samples > version:
            live = head_of(base + self._own - known[version], self._head)
        self._base, self._included, self._included_version = base, known[version], version
        self._live, self._offset = live, None
        self._unsolved = 0

    def state(self) -> State:
        """See `edge.learning.learner.Learner.state`. Sums are float64 here: a restart loses no digit."""
        state: State = {"counts": np.array([self.n_samples, self._unsolved, self._included_version], np.int64)}
        state |= {f"live.{name}": array for name, array in self._live.items()}
        state |= {f"offset.{name}": array for name, array in (self._offset or {}).items()}
        parts = {"base": self._base, "own": self._own, "included": self._included}
        parts |= {f"sent{i}": statistics for i, (_, statistics) in enumerate(self._sent)}
        for name, statistics in parts.items():
            state[f"{name}.gram"] = statistics.gram
            state[f"{name}.moment"] = statistics.moment
        state["sent_versions"] = np.array([version for version, _ in self._sent], np.int64)
        return state

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `edge.learning.learner.Learner.restore`."""

        def statistics(name: str) -> HeadStatistics:
            gram, moment = take(state, f"{name}.gram"), take(state, f"{name}.moment")
            if gram.shape != self._base.gram.shape or moment.shape != self._base.moment.shape:
                raise LearningError("the saved statistics are of another shape")
            return HeadStatistics(gram.astype(np.float64), moment.astype(np.float64))

        live = {name: take(state, f"live.{name}") for name in self._live}
        if any(live[name].shape != self._live[name].shape for name in live):
            raise LearningError("the saved head is of another shape")
        offset = None
        if f"offset.{self._head.weight}" in state:
            offset = {name: take(state, f"offset.{name}").astype(np.float32) for name in self._live}
            if any(offset[name].shape != self._live[name].shape for name in offset):
                raise LearningError("the saved offset is of another shape")
        base, own, included = statistics("base"), statistics("own"), statistics("included")
        versions = take_integers(state, "sent_versions")
        counts = take_integers(state, "counts", 3)
        sent = [(version, statistics(f"sent{i}")) for i, version in enumerate(versions)]
        self.n_samples, self._unsolved, self._included_version = counts
        self._base, self._own, self._included, self._offset = base, own, included, offset
        self._sent = deque(sent, maxlen=KEPT_CONTRIBUTIONS)
        self._live = {name: array.astype(np.float32) for name, array in live.items()}
