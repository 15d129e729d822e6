"""The closed-form learner of a linear layer: adds up statistics and solves for the layer.

It knows three sums. `base` is what it started from: the shipped statistics worth `PRIOR_SAMPLES` pseudo-samples, or
what the fleet merged. `own` is all that this device ever learned. `included` is the part of `own` that is already in
`base`. The layer is solved from ``base + own - included``, so nothing counts twice whichever versions meet.

Forgetting is done by letting newer samples count more: with the factor f, sample t is worth ``f^-t``, and the sums are
divided by what the newest is worth when they leave this file. Then no matrix is scaled at each sample.

The factor of the sums (`edge.learning.solve.Factor`) is dear to make and cheap to keep up to date, and it is no part of
what is known: it follows from it, digit by digit. The newest samples wait in a `Block` beside the sums; the factor is
made of the sums, and each sample of the block added to it in turn. When there are too many of them, or rho moves, they
go into the sums. So whoever goes on from a saved value goes on as if nothing had happened.

Only `own` grows. What came from elsewhere or was sent is kept as it came or went, in float32.

On lifted features (`edge.learning.lifted`) a head has one parameter more: ``output = x Wᵀ + phi(x) Uᵀ + b``. The sums
determine U and b. W is zero but in a head that was given: what is learned since is added to that. Such a head cannot
leave the device, since a bundle's head is linear; and what it knows is not sent, its sums are four times as large as
those of the features, which the device sends anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.contract.projection import Projection
from edge.contract.training import FloatArray, Parameters
from edge.learning.changes import KEPT_CONTRIBUTIONS
from edge.learning.compression import EXACT, Compression, Packed, same
from edge.learning.learner import State, check_batch
from edge.learning.lift import LIFTED, Lift
from edge.learning.solve import SHRINKAGE, UNSEEN_LOGIT, Factor, Method, head_of
from edge.learning.statistics import HeadStatistics, Matrix, PackedStatistics, difference
from edge.learning.task import Targets, Task

# What the shipped statistics are worth. 20 to 70 was right on several tasks (docs/learning.md).
PRIOR_SAMPLES = 20.0
# What everything from before is worth once the world was seen to change.
TRUSTED_PAST = 20.0
# Samples that wait beside the sums: so many, or half of the features. The factor is made anew in O(d³) when they go
# into the sums: over d / 2 samples that is what adding each of them costs anyway.
_LEAST_BLOCK = 32
_LARGEST_GAIN = 1e6
# Features up to which the factor of the value before is kept beside that of the newest: 2 MB.
_LONGEST_TWICE = 512
# Less than this is no sample.
_NOTHING = 1e-9


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """Samples that are not in the sums yet.

    Attributes:
        features: ``(n, d)`` float32.
        targets: ``(n, n_outputs)`` float32.
        weights: ``(n,)`` float64, what each is worth in the sums, above 0.
        pieces: ``(m,)`` int64, how many came together, oldest first: to add them otherwise would round otherwise.
    """

    features: FloatArray
    targets: FloatArray
    weights: Matrix
    pieces: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, n_features: int, n_outputs: int) -> Block:
        """Without samples."""
        nothing = np.zeros((0, n_features), np.float32), np.zeros((0, n_outputs), np.float32), np.zeros(0)
        return cls(*nothing, np.zeros(0, np.int64))

    @classmethod
    def together(cls, features: FloatArray, targets: FloatArray, weights: Matrix) -> Block:
        """Samples that came together, one or more."""
        return cls(features, targets, weights, np.array([len(weights)]))

    def __len__(self) -> int:
        return len(self.weights)

    def followed_by(self, other: Block) -> Block:
        """With further samples behind these."""
        return Block(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.targets, other.targets]),
            np.concatenate([self.weights, other.weights]),
            np.concatenate([self.pieces, other.pieces]),
        )

    def rows(self, start: int, stop: int) -> Block:
        """Some of those that came together."""
        some = self.features[start:stop], self.targets[start:stop], self.weights[start:stop]
        return Block.together(*some) if stop > start else self.nothing

    @property
    def nothing(self) -> Block:
        """Without samples, of the same features and outputs."""
        return Block(self.features[:0], self.targets[:0], self.weights[:0], self.pieces[:0])

    @property
    def is_whole(self) -> bool:
        """Whether the pieces are those of the samples."""
        return bool((self.pieces > 0).all()) and int(self.pieces.sum()) == len(self.weights)

    @property
    def statistics(self) -> HeadStatistics:
        """Of these samples."""
        return HeadStatistics.of_targets(self.features, self.targets, self.weights)


@dataclass(frozen=True, eq=False, slots=True)
class SentStatistics:
    """A contribution that may still be on its way.

    Attributes:
        version: Samples that had been learned when it was sent.
        statistics: What was sent, as it arrives.
    """

    version: int
    statistics: PackedStatistics


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class StatisticsKnowledge:
    """All that `StatisticsLearner` knows. No array of it is ever written into.

    Attributes:
        n_samples: Labelled samples learned.
        gain: What the newest sample is worth in the sums.
        base, own, included: The sums; see the module. `own` is float64.
        included_version: Samples that had been learned when what is included was sent.
        block: The newest samples.
        sent: Contributions on their way, oldest first.
        given: The layer as it was given, live until the next sample comes; None where the sums determine it.
        offset: What a head that came without statistics has above the one that the sums determine.
    """

    n_samples: int
    gain: float
    base: PackedStatistics
    own: PackedStatistics
    included: PackedStatistics
    included_version: int
    block: Block
    sent: tuple[SentStatistics, ...]
    given: Mapping[str, FloatArray] | None
    offset: Mapping[str, FloatArray] | None

    def __post_init__(self) -> None:
        if self.n_samples < 0 or self.included_version < 0 or not 1.0 <= self.gain <= _LARGEST_GAIN:
            raise LearningError("what was learned has a number of samples or a gain that cannot be")

    @property
    def n_outputs(self) -> int:
        """Classes, or quantities."""
        return int(self.own.moment.shape[1])

    @property
    def n_known(self) -> float:
        """Samples and pseudo-samples in the sums that the head is solved from."""
        return self.base.n_samples + self.own.n_samples - self.included.n_samples

    def has_sums_of(self, other: StatisticsKnowledge) -> bool:
        """Whether the head follows from the very same sums and samples."""
        same = self.block is other.block and self.own is other.own
        return same and self.base is other.base and self.included is other.included

    def total(self) -> HeadStatistics:
        """What the head is solved from, but for the block."""
        return difference(self.base, self.own, self.included)

    def settled(self) -> StatisticsKnowledge:
        """The same with the block in the sums."""
        if not len(self.block):
            return self
        return replace(self, own=self.own.plus(self.block.statistics), block=self.block.nothing)

    def scaled(self, scale: float) -> StatisticsKnowledge:
        """All sums but the contributions multiplied."""
        settled = self.settled()
        return replace(settled, base=settled.base * scale, own=settled.own * scale, included=settled.included * scale)

    def rescaled(self, gain: float) -> StatisticsKnowledge:
        """The same when what would have this gain has one of 1."""
        scale = 1.0 / gain
        sent = tuple(replace(each, statistics=each.statistics * scale) for each in self.sent)
        return replace(self.scaled(scale), sent=sent, gain=1.0)

    def sharing(self, other: StatisticsKnowledge) -> StatisticsKnowledge:
        """The same; sums that another value has as well are held once."""

        def one_of(mine: PackedStatistics, its: PackedStatistics) -> PackedStatistics:
            return its if mine.is_same(its) else mine

        return replace(self, base=one_of(self.base, other.base), included=one_of(self.included, other.included))

    def own_as_sent(self) -> PackedStatistics:
        """All that was learned here, in float32."""
        return self.settled().own.rounded(self.gain)


class StatisticsLearner:
    """A linear layer from its statistics; see the module and `edge.learning.solve`.

    Its kind is "statistics", and "" where features are lifted.

    Memory at the most, `BYTES_PER_SQUARE` in units of (d + 1)²: `own` 4, the factor 8, the block 2, six packed sums 2
    each; while a batch is learned `own` once more; and while a factor is made anew instead of the old one the total,
    the scatter, its inverse and what that takes.

    Args:
        head: Names of the weight and the bias.
        shipped: The layer as shipped, live until the first sample comes.
        task: What the outputs mean.
        prior: Shipped statistics, projected or lifted where features are, or None to start from nothing.
        method: How to solve.
        forgetting: What a sample is worth when the next one has come, in ``(0, 1]``; 1 never forgets.
        projection: Of features that are too long; the layer is then solved on what it gives.
        shrinkage: Of the scatter, see `edge.learning.solve.Factor`.
        prior_samples: What the shipped statistics are worth.
        lift: Of features; the layer is then solved on what it gives. It has a bias.
        precision: Of the factor, see `edge.learning.solve.Factor`.
    """

    def __init__(
        self,
        head: LinearLayer,
        shipped: Mapping[str, FloatArray],
        task: Task,
        prior: HeadStatistics | None,
        method: Method = "discriminant",
        forgetting: float = 1.0,
        projection: Projection | None = None,
        shrinkage: float = SHRINKAGE,
        prior_samples: float = PRIOR_SAMPLES,
        lift: Lift | None = None,
        precision: npt.DTypeLike = np.float64,
    ) -> None:
        self.kind = "statistics" if lift is None else ""
        self._head = head
        self._names = [head.weight, *([] if head.bias is None else [head.bias]), *([] if lift is None else [LIFTED])]
        self._recipe = task.recipe
        self._n_features = self._n_statistics = shipped[head.weight].shape[1]
        self._projection = projection
        if projection is not None:
            self._n_statistics = projection.n_projected
        self._lift = lift
        if lift is not None:
            self._n_statistics = lift.length
        self._method = method
        self._shrinkage = shrinkage
        self._precision = precision
        self._forgetting = forgetting
        self._longest = max(_LEAST_BLOCK, self._n_statistics // 2)
        nothing = PackedStatistics.empty(self._n_statistics, task.n_outputs)
        has_prior = prior is not None and prior.n_samples > 0
        self._value = StatisticsKnowledge(
            n_samples=0,
            gain=1.0,
            base=PackedStatistics.of(prior, prior_samples / prior.n_samples) if prior and has_prior else nothing,
            own=PackedStatistics.empty(self._n_statistics, task.n_outputs, np.float64),
            included=nothing,
            included_version=0,
            block=Block.empty(self._n_statistics, task.n_outputs),
            sent=(),
            given=self._as_given(shipped),
            offset=None,
        )
        # What follows from the value, as far as it was asked for.
        self._factor: Factor | None = None
        # Of two values, too: a shadow asks and teaches the one before a release in turn with the one since.
        self._solved: WeakKeyDictionary[StatisticsKnowledge, Parameters] = WeakKeyDictionary()
        self._aside: tuple[ref[StatisticsKnowledge], Factor | None] | None = None

    @property
    def value(self) -> StatisticsKnowledge:
        """See `edge.learning.learner.Learner.value`."""
        return self._value

    def load(self, value: Any) -> None:
        """See `edge.learning.learner.Learner.load`."""
        if value is self._value:
            return
        is_ours = isinstance(value, StatisticsKnowledge) and len(value.own.moment) == self._n_statistics + 1
        if not is_ours or not value.block.is_whole:
            raise LearningError("what is to be loaded is not what this learner knows")
        factor = self._aside[1] if self._aside is not None and self._aside[0]() is value else None
        self._aside = (ref(self._value), self._factor) if self._n_statistics <= _LONGEST_TWICE else None
        self._become(value, factor)

    def template(self, n_outputs: int) -> StatisticsKnowledge:
        """See `edge.learning.learner.Learner.template`."""
        packed = PackedStatistics.empty(self._n_statistics, n_outputs)
        shapes = (n_outputs, self._n_features), (n_outputs,), (n_outputs, self._n_statistics)
        layer = {name: np.empty(shape, np.float32) for name, shape in zip(self._names, shapes, strict=False)}
        return StatisticsKnowledge(
            n_samples=0,
            gain=1.0,
            base=packed,
            own=PackedStatistics.empty(self._n_statistics, n_outputs, np.float64),
            included=packed,
            included_version=0,
            block=Block.empty(self._n_statistics, n_outputs),
            sent=(SentStatistics(0, packed),),
            given=layer,
            offset=layer,
        )

    @property
    def n_samples(self) -> int:
        """See `edge.learning.learner.Learner.n_samples`."""
        return self._value.n_samples

    @property
    def n_contributed(self) -> int:
        """See `edge.learning.learner.Learner.n_contributed`: all of them, or none."""
        return self._value.n_samples if self.kind else 0

    @property
    def _task(self) -> Task:
        return Task(self._recipe, self._value.n_outputs)

    def _become(
        self, value: StatisticsKnowledge, factor: Factor | None = None, solved: Parameters | None = None
    ) -> None:
        """Know something else; with what follows from it, where that is at hand."""
        self._value, self._factor = value, factor
        if solved is not None:
            self._solved[value] = solved

    # Learning

    def learn_many(
        self, features: FloatArray, targets: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
    ) -> None:
        """See `edge.learning.learner.Learner.learn_many`."""
        features, targets, weights = check_batch(features, targets, weights, (self._n_features,), self._task)
        if len(features):
            self.learn_together(features, targets, weights)

    def learn_together(self, features: FloatArray, targets: Targets, weights: FloatArray) -> None:
        """See `edge.learning.learner.Learner.learn_together`: the order does not matter."""
        task = self._task
        n_samples = self._value.n_samples + len(features)
        says = weights > 0  # a label that is not trusted at all says nothing
        if not says.all():
            if not says.any():
                self._become(replace(self._value, n_samples=n_samples), self._factor, self._solved.get(self._value))
                return
            features, targets, weights = features[says], targets[says], weights[says]
        before, batch = self._worth(
            Block.together(self._projected(features), task.matrix(targets), weights.astype(np.float64))
        )
        value, factor = self._added(before, n_samples, batch, task.groups(targets))
        # What these samples make impossible to solve is refused with them.
        self._become(value, factor, None if factor is None else self._head_of(value, factor))

    def _projected(self, features: FloatArray) -> FloatArray:
        if self._lift is not None:
            return self._lift.features(features)
        return features if self._projection is None else self._projection.features(features)

    def _as_given(self, parameters: Mapping[str, FloatArray]) -> Parameters:
        """A copy of a head, plain or not, as it is known where it is not solved."""
        given = {name: np.array(parameters[name], np.float32) for name in self._names if name != LIFTED}
        if self._lift is not None:
            nothing = np.zeros((len(given[self._head.weight]), self._lift.length), np.float32)
            given[LIFTED] = np.array(parameters.get(LIFTED, nothing), np.float32)
        return given

    def _worth(self, batch: Block) -> tuple[StatisticsKnowledge, Block]:
        """What is known and a batch, when its samples have the weight that they have in the sums."""
        value = self._value
        if self._forgetting == 1.0:
            return value, replace(batch, weights=batch.weights * value.gain) if value.gain != 1.0 else batch
        gain, start, weights = value.gain, 0, batch.weights.copy()
        for i, weight in enumerate(batch.weights):
            gain /= self._forgetting
            if gain > _LARGEST_GAIN:
                older = value.block.followed_by(replace(batch, weights=weights).rows(start, i))
                value = replace(value, block=older).rescaled(gain)
                gain, start = 1.0, i
            weights[i] = weight * gain
        return replace(value, gain=gain), replace(batch, weights=weights).rows(start, len(weights))

    def _added(
        self, value: StatisticsKnowledge, n_samples: int, batch: Block, groups: npt.NDArray[np.int64]
    ) -> tuple[StatisticsKnowledge, Factor | None]:
        """What is known with a batch, and its factor; None where there is nothing to solve, and the head stays."""
        block = value.block.followed_by(batch)
        if len(block) < self._longest and value.n_known > _NOTHING:
            factor, self._factor = self._factor_of(value), None  # it is changed from here on
            if factor is not None and _add(factor, batch, groups[len(groups) - len(batch) :]):
                return replace(value, n_samples=n_samples, block=block, given=None), factor
        factor = self._factor = None  # the old one is gone before there is another
        settled = replace(value, n_samples=n_samples, block=block).settled()
        factor = self._factor_of(settled)
        if factor is None:
            return (settled if settled.given is not None else replace(settled, given=self.parameters())), None
        return replace(settled, given=None), factor

    def _factor_of(self, value: StatisticsKnowledge) -> Factor | None:
        """The factor that a value determines; None where there are no samples."""
        if self._factor is not None and value.has_sums_of(self._value):
            return self._factor
        if value.n_known > _NOTHING:
            factor = self._new_factor(value)
            groups = value.block.targets.argmax(axis=1) if self._task.is_classifier else np.zeros(len(value.block), int)
            if _add(factor, value.block, groups):
                return factor
        # Never so where the block was gathered: somebody else's processor may round otherwise.
        value = value.settled()
        return self._new_factor(value) if value.n_known > _NOTHING else None

    def _new_factor(self, value: StatisticsKnowledge) -> Factor:
        return Factor(value.total(), self._method, self._shrinkage, precision=self._precision)

    def parameters(self) -> Parameters:
        """See `edge.learning.learner.Learner.parameters`."""
        if self._value.given is not None:
            return dict(self._value.given)
        solved = self._solved.get(self._value)
        if solved is None:
            self._factor = self._factor_of(self._value)
            if self._factor is None:
                raise LearningError("what was loaded has no samples to solve a head from")
            solved = self._solved[self._value] = self._head_of(self._value, self._factor)
        return solved

    def _layer(self, factor: Factor) -> dict[str, Matrix]:
        """The layer, by name."""
        weights, biases = factor.head()
        if self._lift is not None:
            return dict(zip(self._names, (np.zeros((len(biases), self._n_features)), biases, weights), strict=True))
        if self._projection is not None:
            weights = self._projection.lifted(weights)
        return dict(zip(self._names, (weights, biases), strict=False))

    def _head_of(self, value: StatisticsKnowledge, factor: Factor) -> Parameters:
        solved = {name: array.astype(np.float32) for name, array in self._layer(factor).items()}
        if value.offset is None:
            return solved
        seen, unheard = factor.seen, np.zeros(value.n_outputs, bool)
        if self._head.bias is not None and self._task.is_classifier:
            # Classes that the head which was given never answers, and of which there are samples now.
            unheard = (value.offset[self._head.bias] < UNSEEN_LOGIT / 2) & factor.sampled
        # A class without samples stays as it was given.
        return {
            name: np.where(_rows(seen, array), array, np.float32(0.0))
            + np.where(_rows(unheard, array), np.float32(0.0), value.offset[name])
            for name, array in solved.items()
        }

    def distrust_the_past(self, features: FloatArray, targets: Targets) -> None:
        """See `edge.learning.learner.Learner.distrust_the_past`: all before is worth `TRUSTED_PAST` samples."""
        value = self._value.settled()
        n = value.n_known / value.gain
        if n > TRUSTED_PAST:
            value = replace(value.scaled(TRUSTED_PAST / n), sent=())
        gains = np.full(len(features), value.gain)
        new = Block.together(self._projected(features), self._task.matrix(targets), gains)
        # What a pushed head knew beyond the sums is of the past, too.
        value = replace(value, own=value.own.plus(new.statistics), given=None, offset=None)
        factor = self._factor_of(value)
        if factor is None:  # nothing is known: the head stays
            self._become(replace(value, given=self.parameters()))
        else:
            self._become(value, factor, self._head_of(value, factor))

    def grow(self, n_classes: int) -> None:
        """See `edge.learning.learner.Learner.grow`."""
        value, more = self._value.settled(), n_classes - self._value.n_outputs
        self._become(
            replace(
                value,
                base=value.base.grown(n_classes),
                own=value.own.grown(n_classes),
                included=value.included.grown(n_classes),
                block=Block.empty(self._n_statistics, n_classes),
                sent=tuple(replace(each, statistics=each.statistics.grown(n_classes)) for each in value.sent),
                given=grown(self.parameters(), self._head, more),
                offset=None if value.offset is None else grown(value.offset, self._head, more),
            )
        )

    # Exchanging with the fleet

    def contribution(self, compression: Compression = EXACT) -> Packed:
        """See `edge.learning.learner.Learner.contribution`: it is empty where features are lifted."""
        if not self.kind:
            return compression.pack({})
        value, own = self._value, self._value.own_as_sent()
        packed = compression.pack(own.tensors)
        if value.sent and value.sent[-1].version == value.n_samples:
            before = value.sent[-1].statistics.tensors
            return packed if same(before, packed.tensors) else Packed(before)
        arrives = PackedStatistics(packed.tensors["gram"], packed.tensors["moment"], own.scale)
        sent = (*value.sent, SentStatistics(value.n_samples, arrives))[-KEPT_CONTRIBUTIONS:]
        self._become(replace(value, sent=sent), self._factor, self._solved.get(value))
        return packed

    def of_others(self) -> tuple[Parameters, Matrix] | None:
        """See `edge.learning.learner.Learner.of_others`: solved from the base without what is included in it.

        None where features are lifted: nothing comes from others.
        """
        value = self._value
        if not self.kind:
            return None
        left = difference(value.base, PackedStatistics.empty(self._n_statistics, value.n_outputs), value.included)
        try:
            return head_of(left, self._head, self._method, self._projection), left.class_counts
        except LearningError:
            return None

    def rebase(self, parameters: Mapping[str, FloatArray], merged: State, included: int) -> None:
        """See `edge.learning.learner.Learner.rebase`.

        A head that comes without statistics is taken as it is, and what is learned from then on is added to it: the
        difference between the heads solved then and now. Where features are lifted, statistics are of no use.
        """
        value = self._value
        given = self._as_given(parameters)
        if not merged or self._lift is not None:
            offset, factor = None, self._factor_of(value)
            if (
                factor is not None
            ):  # as it will be after the next sample, not exact: else rho's grid would move the head
                seen = factor.seen
                offset = {
                    name: (given[name] - np.where(_rows(seen, array), array, 0.0)).astype(np.float32)
                    for name, array in self._layer(factor).items()
                }
            self._become(replace(value, given=given, offset=offset), factor)
            return
        new = HeadStatistics.from_tensors(
            merged, self._n_statistics, value.n_outputs, is_classifier=self._task.is_classifier
        )
        nothing = PackedStatistics.empty(self._n_statistics, value.n_outputs)
        known = {0: nothing, value.included_version: value.included}
        known |= {each.version: each.statistics for each in value.sent}
        # A version that is no longer known is taken as "all of it": to count a sample once too little is harmless.
        version = included if included in known else value.n_samples
        begun = known.get(version) or value.own_as_sent()
        value = replace(
            value.settled(),
            base=PackedStatistics.of(new, value.gain),
            included=begun,
            included_version=version,
            given=given,
            offset=None,
        )
        if value.n_samples > version:
            value = replace(value, given=head_of(value.total(), self._head, self._method, self._projection))
        self._become(value)


def _add(factor: Factor, block: Block, groups: npt.NDArray[Any]) -> bool:
    """Add samples to a factor, piece by piece; False where it must be made anew."""
    features, targets = block.features.astype(np.float64), block.targets.astype(np.float64)
    numbers, weights, start = groups.tolist(), block.weights.tolist(), 0
    for size in block.pieces.tolist():
        rows = slice(start, start + size)
        start += size
        if not factor.add(features[rows], targets[rows], numbers[rows], weights[rows]):
            return False
    return True


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
    if LIFTED in found:  # the bias says so
        found[LIFTED] = np.pad(found[LIFTED], ((0, more), (0, 0)))
    return found


def _rows(seen: npt.NDArray[np.bool_], array: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """``seen (n_outputs,)`` so that it chooses rows of an array."""
    return seen.reshape(-1, *(1,) * (array.ndim - 1))
