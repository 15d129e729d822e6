"""The rate of a head's training step, found by learning as a device does: label by label from the first, with replay.

Three tasks, each begun with the shipped head and judged on samples that were not learned:

* *noisy*: features with as much noise as they have spread, as another camera or microphone would give. What the head
  knows already gives no gradient, and any rate would pass; here it is wrong now and then, as on the day it arrives.
* *turned*: class k is named k + 1, yes is no, quantities are mirrored at their mean: all has to be learned anew.
* the data as they are.

The rate is the largest of 1, 0.3, 0.1, 0.03, ... at which the first labels of the noisy task do no harm, the loss of
the turned one falls, and the data as they are stay known.

Where layers are hidden, devices let another learner compete with that one: the layered, which is there for worlds that
have changed much. It may whiten the features, at the largest share of its usual rate that learns the turned task as
well as any share does. That it stays good where little has changed is not asked of it: the others are, and answer then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from converter.head.fitting import stable_learning_rate
from converter.head.split import Head, with_layer_input
from converter.program.programs import onnx_program
from converter.program.tensors import Run
from edge.contract.errors import ConversionError, LearningError
from edge.contract.manifest import LearningTrial
from edge.contract.recipe import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, TrainingRecipe
from edge.contract.training import FloatArray, Parameters, TrainStep
from edge.learning.layered import LayeredLearner
from edge.learning.learner import Learner
from edge.learning.sgd import BATCH_RATE, REPLAYED, SgdLearner
from edge.learning.solve import Method
from edge.learning.statistics import HeadStatistics
from edge.learning.task import Targets, Task
from edge.learning.whitening import Whitening

_LABELS = 100
# A rate that does harm does it within so few labels, which meet an empty replay buffer; not all first labels are hard
# ones, so it is begun anew several times.
_FIRST_LABELS, _BEGINNINGS = 8, 4
# Multiplications that the trial may cost, and so many labels at least.
_MACS = 10_000_000_000
_LEAST_LABELS = 12
# What a step moves of each parameter, and what a learner keeps of it, takes the time of so many multiplications.
_COPIES = 250
_HELD_OUT = 128
_NOISE = 1.0
# Harm on noisy features: a loss of so many times what it was. On the data as they are it may rise by no more than the
# chance of 100 labels. A share of what guessing would cost comes on top: next to 0, every loss is many times another.
_HARM, _KEPT, _SLACK = 1.25, 1.1, 0.03
_RATES = tuple(step * 10.0**-power for power in range(7) for step in (1.0, 0.3))
# So many of them, from the one that theory allows downwards.
_TRIED = 10
# Adam divides by the size of the gradient, so features say nothing about its rate: it moves each weight by so much.
_LARGEST_OF_ADAM = 0.03

# Shares of the usual rate on whitened features that are tried, and within how much losses are as good as each other:
# 100 labels tell no finer.
_SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)
_AS_GOOD = 1.1
# Whitening more features than these takes seconds, and was not tried with layers behind it.
_MOST_WHITENED = 1024

_Mean = Callable[[Parameters], float]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class TrialData:
    """What the head is to learn in a trial.

    Attributes:
        features: ``(n, ...)`` what the backbone gives for real samples, or random ones.
        targets: Labels, or None for the head's own answers.
        macs: Multiplications of the head for one sample.
    """

    features: FloatArray
    targets: Targets | None
    macs: int


def find_rate(
    step: TrainStep, run: Run, head: Head, recipe: TrainingRecipe, data: TrialData, clock: Callable[[], float]
) -> tuple[LearningTrial, float]:
    """Find the rate at which a device can train a head.

    Args:
        step: Of the head.
        run: The head as a function of the features and the parameters.
        head: The head.
        recipe: Of the step.
        data: What to learn.
        clock: A stopwatch, in seconds.

    Returns:
        The rate with its evidence, and the time that a label takes on this machine, in milliseconds.

    Raises:
        ConversionError: There is no such rate.
    """
    return _Trial(step, run, head, recipe, data, clock).find()


@dataclass(frozen=True, slots=True)
class _Found:
    rate: float
    before: float
    after: float
    turned_before: float
    turned_after: float


class _Trial:
    def __init__(
        self, step: TrainStep, run: Run, head: Head, recipe: TrainingRecipe, data: TrialData, clock: Callable[[], float]
    ) -> None:
        self._step, self._run, self._head, self._recipe, self._clock = step, run, head, recipe, clock
        self._task = Task(recipe, head.n_outputs)
        self._rehearsals = 0 if head.is_linear else 1
        n_parameters = sum(array.size for array in head.parameters.values())
        self._drawn, self._n_labels = _effort(data.macs, n_parameters, 1 + self._rehearsals)
        self._beginnings = _BEGINNINGS if self._drawn else 2
        rng = np.random.default_rng(0)
        order = rng.permutation(len(data.features))
        features = np.ascontiguousarray(data.features[order])
        self._own = data.targets is None
        targets = self._answers(features) if data.targets is None else self._task.check(data.targets[order], len(order))
        n_held_out = max(1, min(_HELD_OUT, len(order) // 2, max(8, _MACS // 20 // max(1, data.macs))))
        # A single sample is learned and judged on, which says little; `held_out` is then 0.
        self._held_out, self._learned = slice(0, n_held_out), slice(n_held_out if len(order) > 1 else 0, None)
        self._features, self._targets = features, targets
        noise = rng.normal(size=features.shape).astype(np.float32)
        self._noisy = features + np.float32(_NOISE) * features.std(axis=0, dtype=np.float64).astype(np.float32) * noise
        self._turned = self._turn(targets)
        self._times: list[float] = []
        self._below: Run | None = None

    def _answers(self, features: FloatArray) -> Targets:
        """What the head answers, as labels."""
        outputs = self._outputs(features, self._head.parameters)
        if self._task.is_classifier:
            return np.asarray(outputs.argmax(axis=1), np.int64)
        if self._recipe.loss == BINARY_CROSS_ENTROPY:
            return (outputs > 0).astype(np.float32)
        return outputs

    def _turn(self, targets: Targets) -> Targets:
        if self._task.is_classifier:
            return (targets + 1) % self._head.n_outputs
        if self._recipe.loss == BINARY_CROSS_ENTROPY:
            return np.float32(1.0) - targets
        mirrored: Targets = 2 * targets.mean(axis=0, dtype=np.float64).astype(np.float32) - targets
        return mirrored

    def find(self) -> tuple[LearningTrial, float]:
        """See `find_rate`."""
        plain, why = self._search()
        if plain is None:
            raise ConversionError(
                f"the head cannot be trained: no rate was found at which it learns; at the lowest, {why}. Let fewer "
                f"layers be trained (--trainable last:1, if these are more, or none), or limit the gradient "
                f"(--clip-norm 1)"
            )
        label_ms = 1e3 * median(self._times[-self._n_labels :])
        trial = LearningTrial(
            rate=plain.rate,
            whitened=self._whitened(plain.rate),
            labels=self._n_labels,
            batch_size=1 + self._drawn,
            held_out=self._learned.start,
            own_answers=self._own,
            loss_before=_short(plain.before),
            loss_after=_short(plain.after),
            turned_before=_short(plain.turned_before),
            turned_after=_short(plain.turned_after),
        )
        return trial, label_ms

    def _whitened(self, rate: float) -> float | None:
        """The share of the usual rate at which this head learns whitened features; None to leave them as they are."""
        if self._recipe.optimizer != "sgd":  # which the usual rate was measured for
            return None
        if self._head.is_linear:  # and what it was measured on: features of any scale are the same to it
            return 1.0
        whitening = self._whitening()
        if whitening is None:
            return None
        turned = self._mean(self._features, self._turned)

        def learned(layered: LayeredLearner) -> float:
            return self._losses(layered, self._features, self._turned, turned, self._n_labels)[-1]

        plain = learned(self._layered(rate))
        losses = {share: learned(self._layered(share, whitening)) for share in _SHARES}
        best = min(plain, *losses.values())
        return next((share for share in _SHARES if losses[share] <= _AS_GOOD * best), None)

    def _whitening(self) -> Whitening | None:
        """As a device makes it of the statistics that it is shipped; None where it gets none."""
        entry, last = self._head.entry, self._head.linear
        if self._own or entry is None or last is None or self._recipe.loss == BINARY_CROSS_ENTROPY:
            return None
        if max(self._head.parameters[layer.weight].shape[1] for layer in (entry, last)) > _MOST_WHITENED:
            return None
        features = self._features[self._learned]
        labels = np.zeros(len(features), np.int64)  # only the second moments matter
        of_features = HeadStatistics.of(features, labels, self._head.n_outputs)
        return Whitening(of_features, entry, self._statistics())

    def _statistics(self) -> HeadStatistics:
        """Of what the last layer takes, as they are shipped."""
        values = self._hidden(self._features[self._learned], self._head.parameters)
        targets = self._task.matrix(self._targets[self._learned])
        return HeadStatistics.of_targets(values, targets, np.ones(len(values)))

    def _hidden(self, features: FloatArray, parameters: Parameters) -> FloatArray:
        assert self._head.linear is not None
        if self._below is None:
            self._below = onnx_program(with_layer_input(self._head), "the head")
        found: FloatArray = self._below({self._head.features.name: features, **parameters})[self._head.linear.input]
        return found

    def _search(self) -> tuple[_Found | None, str]:
        """The largest rate at which the head learns, or why the last one will not do."""
        known, noisy, turned = (
            self._mean(*task)
            for task in (
                (self._features, self._targets),
                (self._noisy, self._targets),
                (self._features, self._turned),
            )
        )
        shipped = self._head.parameters
        before, turned_before = known(shipped), turned(shipped)
        slack = _SLACK * self._guessing()
        limit = _HARM * noisy(shipped) + slack
        if not np.isfinite([before, turned_before, limit]).all():
            return None, "the loss is not finite before the first label"
        first = min(self._n_labels, _FIRST_LABELS)
        why = ""
        for rate in self._rates():
            worst = 0.0
            for part in range(self._beginnings):
                if worst <= limit:
                    begin_at = part / self._beginnings
                    curve = self._losses(
                        self._sgd(rate), self._noisy, self._targets, noisy, first, begin_at=begin_at, limit=limit
                    )
                    worst = max(worst, *curve)
            if worst > limit:
                why = f"the first {first} labels bring the loss to {worst:.3g} on noisy features ({limit:.3g} allowed)"
                continue
            turned_after = self._losses(self._sgd(rate), self._features, self._turned, turned, self._n_labels)[-1]
            if not (turned_after < turned_before or turned_before <= slack):
                why = f"the loss on labels that changed does not fall ({turned_before:.3g} to {turned_after:.3g})"
                continue
            after = self._losses(self._sgd(rate), self._features, self._targets, known, self._n_labels)[-1]
            if after > _KEPT * before + slack:
                why = f"the loss on the data rises from {before:.3g} to {after:.3g}"
                continue
            return _Found(rate, before, after, turned_before, turned_after), ""
        return None, why

    def _rates(self) -> list[float]:
        if self._recipe.optimizer in ("adam", "adamw"):
            most = _LARGEST_OF_ADAM
        else:
            most = BATCH_RATE * stable_learning_rate(self._features)
            if self._recipe.optimizer != "sgd":  # the sum of all later pushes of one gradient
                most *= 1.0 - self._recipe.momentum
        lower = [rate for rate in _RATES if rate <= most]
        return lower[:_TRIED] or [_RATES[-1]]

    def _guessing(self) -> float:
        """What who knows nothing but the usual answer would lose."""
        targets = self._task.matrix(self._targets)
        if self._recipe.loss == CROSS_ENTROPY:
            return float(np.log(self._head.n_outputs))
        if self._recipe.loss == BINARY_CROSS_ENTROPY:
            return float(np.log(2.0))
        usual = np.broadcast_to(np.median(targets, axis=0), targets.shape)
        return float(self._task.losses(usual, targets).mean())

    def _outputs(self, features: FloatArray, parameters: Parameters) -> FloatArray:
        found: FloatArray = self._run({self._head.features.name: features, **parameters})[self._head.output]
        return found

    def _mean(self, features: FloatArray, targets: Targets) -> _Mean:
        """The mean loss on the samples that are held out, for parameters."""

        def mean(parameters: Parameters) -> float:
            outputs = self._outputs(features[self._held_out], parameters)
            if not np.isfinite(outputs).all():
                return float("inf")
            return float(self._task.losses(outputs, targets[self._held_out]).mean())

        return mean

    def _sgd(self, rate: float, whitening: Whitening | None = None) -> SgdLearner:
        """As devices have it, with the head as shipped."""
        self._step.load(self._head.parameters)
        return SgdLearner(
            self._step,
            self._head.features.sample_shape,
            self._task,
            rate,
            whitening=whitening,
            whitened_share=rate,
            drawn=self._drawn,
            head=self._head.linear,
            run=None if self._head.is_linear else self._outputs,
            rehearsals=self._rehearsals,
        )

    def _layered(self, rate: float, whitening: Whitening | None = None) -> LayeredLearner:
        """As devices have it, with the head as shipped."""
        assert self._head.linear is not None
        method: Method = "ridge" if self._task.is_regression else "discriminant"
        below = self._sgd(rate, whitening)
        return LayeredLearner(below, self._head.linear, self._task, self._hidden, self._statistics(), method)

    def _losses(
        self,
        learner: Learner,
        features: FloatArray,
        targets: Targets,
        loss: _Mean,
        n_labels: int,
        begin_at: float = 0.0,
        limit: float = float("inf"),
    ) -> list[float]:
        """The loss after all labels; with a limit also after 1, 2, 4, 8, ..., up to the first one above it.

        It is infinite where the head diverges.
        """
        features, targets = features[self._learned], targets[self._learned]
        start, found = int(begin_at * len(features)), [0.0]
        for count in range(1, n_labels + 1):
            i = (start + count - 1) % len(features)
            begin = self._clock()
            try:
                learner.learn_many(features[i : i + 1], targets[i : i + 1])
            except LearningError:
                return [float("inf")]
            self._times.append(self._clock() - begin)
            if count == n_labels or (limit < float("inf") and count & (count - 1) == 0):
                found.append(loss(learner.parameters()))
                if found[-1] > limit:
                    break
        return found


def _effort(macs: int, n_parameters: int, steps: int) -> tuple[int, int]:
    """How many samples are replayed with each new one, and how many labels are learned in each task.

    As a device does, unless that many steps of a large head would take minutes.
    """
    for drawn in (REPLAYED, 3, 0):
        # The way back costs two times the way there; the turned task, the plain one, and about as much in between.
        label = (3 * max(1, macs) * (1 + drawn) + _COPIES * n_parameters) * (steps if drawn else 1)
        n_labels = min(_LABELS, _MACS // (3 * label))
        if n_labels >= 2 * _LEAST_LABELS:
            return drawn, n_labels
    return 0, _LEAST_LABELS


def _short(loss: float) -> float:
    """To three digits: what the next ones are depends on the machine."""
    return float(f"{loss:.3g}")
