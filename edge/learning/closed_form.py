"""The closed-form learner of a linear layer: adds up statistics and solves for the layer.

It knows three sums. `base` is what it started from: the shipped statistics worth `PRIOR_SAMPLES` pseudo-samples, or
what the fleet merged. `own` is all that this device ever learned. `included` is the part of `own` that is already in
`base`. The layer is solved from ``base + own - included``, so nothing counts twice whichever versions meet.

Forgetting is done by letting newer samples count more: with the factor f, sample t is worth ``f^-t``, and the sums are
divided by what the newest is worth when they leave this file. Then no matrix is scaled at each sample.

Only `own` grows. What came from elsewhere or was sent is kept as it came or went, in float32.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.contract.projection import Projection
from edge.contract.training import FloatArray, Parameters
from edge.learning.changes import KEPT_CONTRIBUTIONS
from edge.learning.learner import State, check_batch, part, take, take_integers, take_like
from edge.learning.solve import UNSEEN_LOGIT, Factor, Method, head_of
from edge.learning.statistics import HeadStatistics, Matrix, PackedStatistics, of_triangle, upper_triangle
from edge.learning.task import Targets, Task

# What the shipped statistics are worth. 20 to 70 was right on several tasks (docs/learning.md).
PRIOR_SAMPLES = 20.0
# What everything from before is worth once the world was seen to change.
TRUSTED_PAST = 20.0
# Samples that are added to the Gram matrix in one product: nine times cheaper than one by one.
_BLOCK = 32
_LARGEST_GAIN = 1e6


class StatisticsLearner:
    """A linear layer from its statistics; see the module and `edge.learning.solve`.

    Memory at the most, `BYTES_PER_SQUARE` in units of (d + 1)²: `own` and the factor 8 each, six packed sums 2 each,
    and while a factor is made anew instead of the old one the total, the scatter, its inverse and what that takes.

    Args:
        head: Names of the weight and the bias.
        shipped: The layer as shipped, live until the first sample comes.
        task: What the outputs mean.
        prior: Shipped statistics, projected where features are, or None to start from nothing.
        method: How to solve.
        forgetting: What a sample is worth when the next one has come, in ``(0, 1]``; 1 never forgets.
        projection: Of features that are too long; the layer is then solved on what it gives.
    """

    kind = "statistics"

    def __init__(
        self,
        head: LinearLayer,
        shipped: Mapping[str, FloatArray],
        task: Task,
        prior: HeadStatistics | None,
        method: Method = "discriminant",
        forgetting: float = 1.0,
        projection: Projection | None = None,
    ) -> None:
        self._head = head
        self._names = [head.weight, *([] if head.bias is None else [head.bias])]
        self._live = {name: shipped[name].copy() for name in self._names}
        self._task = task
        self._n_features = self._n_statistics = shipped[head.weight].shape[1]
        self._projection = projection
        if projection is not None:
            self._n_statistics = projection.n_projected
        self._method = method
        self._forgetting = forgetting
        self._own = HeadStatistics.empty(self._n_statistics, task.n_outputs)
        self._base = self._included = self._nothing()
        if prior is not None and prior.n_samples > 0:
            self._base = PackedStatistics.of(prior, PRIOR_SAMPLES / prior.n_samples)
        self._included_version = 0
        self._sent: deque[tuple[int, PackedStatistics]] = deque(maxlen=KEPT_CONTRIBUTIONS)
        self._offset: Parameters | None = None
        self._gain = 1.0  # what the newest sample is worth in the sums
        self._block: list[tuple[Matrix, Matrix, float]] = []  # samples that are not in `own` yet
        self._factor: Factor | None = None
        self._is_solved = True
        self.n_samples = 0

    def _nothing(self) -> PackedStatistics:
        return PackedStatistics.of(HeadStatistics.empty(self._n_statistics, self._task.n_outputs))

    def learn_many(
        self, features: FloatArray, targets: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
    ) -> None:
        """See `edge.learning.learner.Learner.learn_many`."""
        features, targets, weights = check_batch(features, targets, weights, (self._n_features,), self._task)
        features = self._projected(features)
        matrix, groups = self._task.matrix(targets).astype(np.float64), self._task.groups(targets)
        sums = self._base, self._own, self._included, self._sent.copy(), self._gain
        before = list(self._block), self.n_samples, self._is_solved
        try:
            for x, target, group, weight in zip(
                features.astype(np.float64), matrix, groups, weights.astype(np.float64), strict=True
            ):
                self._learn(x, target, int(group), float(weight))
            if weights.any():  # a label that is not trusted at all says nothing
                self._is_solved = False
                self.parameters()  # what these samples make impossible to solve is refused with them
        except BaseException:
            self._base, self._own, self._included, self._sent, self._gain = sums
            self._block, self.n_samples, self._is_solved = before
            self._factor = None
            raise

    def _projected(self, features: FloatArray) -> FloatArray:
        return features if self._projection is None else self._projection.features(features)

    def _solved(self, factor: Factor) -> dict[str, Matrix]:
        """The layer for plain features, by name."""
        weights, biases = factor.head()
        if self._projection is not None:
            weights = self._projection.lifted(weights)
        return dict(zip(self._names, (weights, biases), strict=False))

    def _learn(self, x: Matrix, target: Matrix, group: int, weight: float) -> None:
        self._gain /= self._forgetting
        if self._gain > _LARGEST_GAIN:
            self._rescale()
        self._block.append((x, target, weight * self._gain))
        if len(self._block) >= _BLOCK:
            self._flush()
        if self._factor is not None and not self._factor.add(x, target, group, weight * self._gain):
            self._factor = None
        self.n_samples += 1

    def _flush(self) -> None:
        """Add the waiting samples to the sums."""
        if self._block:
            x, targets, weights = zip(*self._block, strict=True)
            self._own = self._own + HeadStatistics.of_targets(np.array(x), np.array(targets), np.array(weights))
            self._block = []

    def _rescale(self) -> None:
        """Let the newest sample be worth 1 again."""
        self._flush()
        scale = 1.0 / self._gain
        self._scale_all(scale)
        self._sent = deque(((version, s * scale) for version, s in self._sent), maxlen=KEPT_CONTRIBUTIONS)
        self._gain = 1.0
        self._factor = None

    def _scale_all(self, scale: float) -> None:
        self._base, self._own, self._included = self._base * scale, self._own * scale, self._included * scale

    def _total(self) -> HeadStatistics:
        self._flush()
        return self._base.unpack() + self._own - self._included.unpack()

    def parameters(self) -> Parameters:
        """See `edge.learning.learner.Learner.parameters`."""
        if not self._is_solved:
            if self._factor is None:
                total = self._total()
                if total.n_samples <= 1e-9:  # all of it has no weight: the head stays as it is
                    self._is_solved = True
                    return self._live
                self._factor = Factor(total, self._method)
            solved = {name: array.astype(np.float32) for name, array in self._solved(self._factor).items()}
            if self._offset is not None:
                seen, unheard = self._factor.seen, self._unheard(self._factor)
                # A class without samples stays as it was given.
                solved = {
                    name: np.where(_rows(seen, array), array, np.float32(0.0))
                    + np.where(_rows(unheard, array), np.float32(0.0), self._offset[name])
                    for name, array in solved.items()
                }
            self._live, self._is_solved = solved, True
        return self._live

    def _unheard(self, factor: Factor) -> npt.NDArray[np.bool_]:
        """Classes that the head which was given never answers, and of which there are samples now."""
        if self._offset is None or self._head.bias is None or not self._task.is_classifier:
            return np.zeros(self._task.n_outputs, bool)
        return (self._offset[self._head.bias] < UNSEEN_LOGIT / 2) & factor.sampled

    def distrust_the_past(self, features: FloatArray, targets: Targets) -> None:
        """See `edge.learning.learner.Learner.distrust_the_past`: all before is worth `TRUSTED_PAST` samples."""
        n = self._total().n_samples / self._gain
        if n > TRUSTED_PAST:
            scale = TRUSTED_PAST / n
            self._scale_all(scale)
            self._sent.clear()
        self._offset = None  # what a pushed head knew beyond the sums is of the past, too
        features, matrix = self._projected(features), self._task.matrix(targets)
        self._own = self._own + HeadStatistics.of_targets(features, matrix, np.full(len(features), self._gain))
        self._factor, self._is_solved = None, False

    def grow(self, n_classes: int) -> None:
        """See `edge.learning.learner.Learner.grow`."""
        self._flush()
        more = n_classes - self._task.n_outputs
        self._task = Task(self._task.recipe, n_classes)
        self._base, self._included = self._base.grown(n_classes), self._included.grown(n_classes)
        self._own = self._own.grown(n_classes)
        self._sent = deque(((version, s.grown(n_classes)) for version, s in self._sent), maxlen=KEPT_CONTRIBUTIONS)
        self._live = grown(self._live, self._head, more)
        if self._offset is not None:
            self._offset = grown(self._offset, self._head, more)
        self._factor = None

    @property
    def n_contributed(self) -> int:
        """See `edge.learning.learner.Learner.n_contributed`: all of them."""
        return self.n_samples

    def _packed_own(self) -> PackedStatistics:
        self._flush()
        return PackedStatistics.of(self._own * (1.0 / self._gain), self._gain)

    def contribution(self) -> State:
        """See `edge.learning.learner.Learner.contribution`."""
        sent = self._packed_own()
        if not self._sent or self._sent[-1][0] != self.n_samples:
            self._sent.append((self.n_samples, sent))
        return {"gram": sent.triangle, "moment": sent.moment}

    def rebase(self, parameters: Mapping[str, FloatArray], merged: State, included: int) -> None:
        """See `edge.learning.learner.Learner.rebase`.

        A head that comes without statistics is taken as it is, and what is learned from then on is added to it: the
        difference between the heads solved then and now.
        """
        given = {name: np.array(parameters[name], np.float32) for name in self._names}
        if not merged:
            offset = None
            total = self._total()
            if total.n_samples > 0:
                # Solved as it will be after the next sample, and not exactly: else rho's grid would move the head.
                factor = self._factor or Factor(total, self._method)
                solved, seen = self._solved(factor), factor.seen
                offset = {
                    name: (given[name] - np.where(_rows(seen, array), array, 0.0)).astype(np.float32)
                    for name, array in solved.items()
                }
            self._offset, self._live, self._is_solved = offset, given, True
            return
        base = HeadStatistics.from_tensors(
            merged, self._n_statistics, self._task.n_outputs, is_classifier=self._task.is_classifier
        )
        known = {0: self._nothing(), self._included_version: self._included, **dict(self._sent)}
        # A version that is no longer known is taken as "all of it": to count a sample once too little is harmless.
        version = included if included in known else self.n_samples
        begun = known.get(version) or self._packed_own()
        live = given
        self._flush()
        if self.n_samples > version:
            total = base * self._gain + self._own - begun.unpack()
            live = head_of(total, self._head, self._method, self._projection)
        self._base, self._included, self._included_version = PackedStatistics.of(base, self._gain), begun, version
        self._live, self._offset, self._factor, self._is_solved = live, None, None, True

    def state(self) -> State:
        """See `edge.learning.learner.Learner.state`. `own` is float64 here: a restart loses no digit.

        The factor is not saved; it is made anew here as well, so that a restart goes on with the same digits.
        """
        self.parameters()
        self._flush()
        self._factor = None
        state: State = {
            "counts": np.array([self.n_samples, self._included_version], np.int64),
            "gain": np.array([self._gain]),
        }
        state |= {f"live.{name}": array for name, array in self._live.items()}
        state |= {f"offset.{name}": array for name, array in (self._offset or {}).items()}
        state |= {"own.gram": upper_triangle(self._own.gram), "own.moment": self._own.moment}
        for name, packed in {
            "base": self._base,
            "included": self._included,
            **{f"sent{i}": sent for i, (_, sent) in enumerate(self._sent)},
        }.items():
            state[f"{name}.gram"] = packed.triangle
            state[f"{name}.moment"] = packed.moment
            state[f"{name}.scale"] = np.array([packed.scale])
        state["sent_versions"] = np.array([version for version, _ in self._sent], np.int64)
        return state

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `edge.learning.learner.Learner.restore`."""

        def packed(name: str) -> PackedStatistics:
            triangle = take_like(state, f"{name}.gram", self._base.triangle)
            moment = take_like(state, f"{name}.moment", self._base.moment)
            return PackedStatistics(triangle, moment, _factor(state, f"{name}.scale"))

        live = {name: take_like(state, f"live.{name}", self._live[name]) for name in self._names}
        offset = None
        if part(state, "offset."):
            offset = {name: take_like(state, f"offset.{name}", self._live[name]) for name in self._names}
        base, included = packed("base"), packed("included")
        triangle = take_like(state, "own.gram", upper_triangle(self._own.gram))
        own = HeadStatistics(
            of_triangle(triangle, self._n_statistics + 1), take_like(state, "own.moment", self._own.moment)
        )
        versions = take_integers(state, "sent_versions")
        counts = take_integers(state, "counts", 2)
        gain = _factor(state, "gain", 1.0)
        sent = [(version, packed(f"sent{i}")) for i, version in enumerate(versions)]
        self.n_samples, self._included_version = counts
        self._gain = gain
        self._base, self._own, self._included, self._offset = base, own, included, offset
        self._sent = deque(sent, maxlen=KEPT_CONTRIBUTIONS)
        self._live, self._block, self._factor, self._is_solved = live, [], None, True


def grown(parameters: Mapping[str, FloatArray], head: LinearLayer, more: int) -> Parameters:
    """A linear layer with further classes that are never answered: weights of zero and a bias of `UNSEEN_LOGIT`.

    Without a bias the weights of a further class are the mean of the others: it may be answered.
    """
    found = {name: array.copy() for name, array in parameters.items()}
    weight = found[head.weight]
    row = np.zeros_like(weight[:1]) if head.bias is not None else weight.mean(axis=0, keepdims=True)
    found[head.weight] = np.concatenate([weight, np.repeat(row, more, axis=0)])
    if head.bias is not None:
        found[head.bias] = np.concatenate([found[head.bias], np.full(more, UNSEEN_LOGIT, np.float32)])
    return found


def _factor(state: Mapping[str, npt.NDArray[Any]], name: str, least: float = 0.0) -> float:
    found = take(state, name)
    if found.shape != (1,) or not least <= found[0] <= _LARGEST_GAIN:
        raise LearningError(f"the saved {name} is not a number from {least:g} to {_LARGEST_GAIN:g}")
    return float(found[0])


def _rows(seen: npt.NDArray[np.bool_], array: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """``seen (n_outputs,)`` so that it chooses rows of an array."""
    return seen.reshape(-1, *(1,) * (array.ndim - 1))
