"""Stochastic gradient descent with replay, for any head.

The step itself is executed by the `TrainStep` that it is given.

Wrong labels: a new sample always counts in full, once. A replayed one counts less when the head finds its label much
less likely than those of the other replayed samples, so a wrong label that slipped into the replay buffer is not
learned over and over (a loss-based weight, in the spirit of small-loss selection: Han et al. 2018, arXiv:1804.06872).
Comparing within the batch, and not with a fixed number, leaves a head alone that is wrong about everything: then the
world has changed, and not the labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.contract.recipe import MEAN_SQUARED_ERROR
from edge.contract.training import FloatArray, Parameters, TrainStep
from edge.learning.changes import Changes, Head
from edge.learning.compression import EXACT, Compression, Packed
from edge.learning.draws import Draws
from edge.learning.learner import State, check_batch
from edge.learning.replay import ReplayBuffer
from edge.learning.task import Scores, Targets, Task
from edge.learning.whitening import Whitening

# Rate of whitened SGD is ETA / (d + 1). 2 to 5 gave the same within a point on turned digits.
ETA = 4.0
# The same where other layers follow, over `Whitening.energy`. 5 to 20 gave the same within a point (64 - 32 - 10).
LAYERED_ETA = 10.0
# Samples that are replayed with each new one.
REPLAYED = 16
# The bundle's rate is for steps on single samples. The mean gradient of a batch allows more: with 5 times as much SGD
# on a head of two layers ended 25 points higher (benchmarks/continual.py).
BATCH_RATE = 5.0
# Fewer replayed samples in a step are not compared with each other.
_LEAST_DOUBTED = 4
# New samples that draw what they replay together (with 16, classes in order in batches of 50 cost 2 points), and how
# many numbers of features, new and replayed ones, are unpacked at a time.
_TOGETHER, _UNPACKED = 8, 1 << 18
# A whitened head starts with this share of its logits: the same answers, with less confidence to unlearn.
TEMPERED = 0.3

Run = Callable[[FloatArray, Parameters], FloatArray]


@dataclass(frozen=True, eq=False, slots=True)
class SgdKnowledge:
    """All that `SgdLearner` knows. No array of it is ever written into.

    Attributes:
        n_samples: Labelled samples learned.
        inside: The parameters as the step has them, in whitened coordinates where there are such.
        memory: What the optimizer remembers.
        live: The head, for plain features.
        replay: Samples to be replayed.
        changes: What was sent, and since when changes are counted.
    """

    n_samples: int
    inside: Mapping[str, FloatArray]
    memory: Mapping[str, FloatArray]
    live: Mapping[str, FloatArray]
    replay: ReplayBuffer
    changes: Changes

    def __post_init__(self) -> None:
        if self.n_samples < 0:
            raise LearningError("what was learned has a negative number of samples")


class SgdLearner:
    """Each new sample makes a step together with `drawn` samples from the replay buffer, and these further steps.

    Args:
        step: Executes the step and holds the parameters; it already holds the shipped head.
        shape: Shape of one sample's features.
        task: What the targets are.
        learning_rate: Step size on plain features.
        per_class: Replayed samples kept per class; 0 is plain SGD, which forgets.
        seed: Of the replay draws.
        drawn: Replayed samples per step.
        head: The last layer, where that is linear.
        whitening: Of the layer that takes the features; the rate is then `ETA` or `LAYERED_ETA` over its energy.
        whitened_share: Of that rate; a head of many layers may bear less.
        run: Gives the outputs ``(batch, n_outputs)`` for features and parameters. None where the last layer is the
            whole head.
        doubts: Whether replayed labels that are unlikely count less; see the module.
        rehearsals: Further steps, each on other samples from the replay buffer.
        recalled: Features and labels that are in the replay buffer before the first sample.
    """

    kind = "delta"

    def __init__(
        self,
        step: TrainStep,
        shape: tuple[int, ...],
        task: Task,
        learning_rate: float,
        per_class: int = 40,
        seed: int = 0,
        drawn: int = REPLAYED,
        head: LinearLayer | None = None,
        whitening: Whitening | None = None,
        whitened_share: float = 1.0,
        run: Run | None = None,
        doubts: bool = True,
        rehearsals: int = 0,
        recalled: tuple[FloatArray, Targets] | None = None,
    ) -> None:
        self._step = step
        self._shape = shape
        self._task = task
        # Beyond n_outputs squared errors would be overshot: their second derivative is 2 / n_outputs, and x'ᵀx' = d.
        eta = ETA if run is None else LAYERED_ETA
        eta = min(eta, task.n_outputs / 2) if task.recipe.loss == MEAN_SQUARED_ERROR else eta
        self._rate = learning_rate if whitening is None else whitened_share * eta / whitening.energy
        self._per_class = per_class
        self._drawn = drawn
        self._seed = seed
        self._head = head
        self._whitening = whitening
        self._run = run
        self._doubts = doubts
        self._rehearsals = rehearsals
        per_label = (1 + drawn * (1 + rehearsals)) * math.prod(shape)
        self._at_once = max(1, min(_TOGETHER, _UNPACKED // per_label))
        live = step.parameters()
        # Features and parameters as the step takes them, and the way back.
        self._inside: Callable[[FloatArray], FloatArray] = lambda features: features
        self._plain: Callable[[Parameters], Parameters] = lambda parameters: parameters
        if whitening is not None:
            self._inside, self._plain = whitening.features, whitening.plain
            whitened = whitening.whitened(live)
            if head is not None and task.is_classifier:
                tempered = {name for name in (head.weight, head.bias) if name is not None}
                whitened |= {name: whitened[name] * np.float32(TEMPERED) for name in tempered}
            step.load(whitened)
        replay = ReplayBuffer.empty(shape, task, per_class)
        if recalled is not None:
            replay = replay.put(*recalled, Draws((seed,)))
        self._begun = replay
        self._value = SgdKnowledge(0, step.parameters(), step.memory(), live, replay, Changes(live))
        # The parameters and the memory that the step has now; None while it learns, and when that failed.
        self._held: tuple[Head, Head] | None = (self._value.inside, self._value.memory)

    @property
    def value(self) -> SgdKnowledge:
        """See `edge.learning.learner.Learner.value`."""
        return self._value

    def load(self, value: Any) -> None:
        """See `edge.learning.learner.Learner.load`. Samples of a replay buffer of another size are left out."""
        if not isinstance(value, SgdKnowledge):
            raise LearningError("what is to be loaded is not what this learner knows")
        if value is self._value:
            return
        task = self._task_of(value)
        places = ReplayBuffer.empty(self._shape, task, self._per_class)
        if not value.replay.fits(places):
            value = replace(value, replay=places)
        self._hold(value)
        self._value, self._task = value, task

    def _task_of(self, value: SgdKnowledge) -> Task:
        if self._head is None:
            return self._task
        return Task(self._task.recipe, len(value.inside[self._head.weight]))

    def template(self, n_outputs: int) -> SgdKnowledge:
        """See `edge.learning.learner.Learner.template`."""
        value = self._value
        sizes = {name: array.shape for name, array in value.live.items()}
        if self._head is not None:
            last = [name for name in (self._head.weight, self._head.bias) if name is not None]
            sizes |= {name: (n_outputs, *sizes[name][1:]) for name in last}
        head = {name: np.empty(size, np.float32) for name, size in sizes.items()}
        # Of which parameter it is remembers the step alone, which refuses what does not fit.
        memory = {name: np.empty((0, *a.shape[1:]) if a.ndim else (), a.dtype) for name, a in value.memory.items()}
        replay = ReplayBuffer.empty(self._shape, Task(self._task.recipe, n_outputs), 0)
        return SgdKnowledge(0, head, memory, head, replay, Changes.template(head))

    @property
    def n_samples(self) -> int:
        """See `edge.learning.learner.Learner.n_samples`."""
        return self._value.n_samples

    def _hold(self, value: SgdKnowledge) -> None:
        """Let the step have the parameters of a value.

        Raises:
            LearningError: They are not of this head.
        """
        if self._held is None or self._held[0] is not value.inside or self._held[1] is not value.memory:
            self._step.load(value.inside, value.memory)
            self._held = value.inside, value.memory

    def checked(
        self, features: npt.NDArray[Any], targets: npt.NDArray[Any], weights: npt.NDArray[Any] | None
    ) -> tuple[FloatArray, Targets, FloatArray]:
        """See `edge.learning.learner.check_batch`."""
        return check_batch(features, targets, weights, self._shape, self._task)

    def learn_many(
        self, features: FloatArray, targets: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
    ) -> None:
        """See `edge.learning.learner.Learner.learn_many`."""
        features, targets, weights = self.checked(features, targets, weights)
        if len(features):
            self._learn(features, targets, weights, 1)

    def learn_together(self, features: FloatArray, targets: Targets, weights: FloatArray) -> None:
        """See `edge.learning.learner.Learner.learn_together`."""
        self._learn(features, targets, weights, self._at_once)

    def _learn(self, features: FloatArray, targets: Targets, weights: FloatArray, at_once: int) -> None:
        """Learn samples that were checked, so many of them together."""
        self._hold(self._value)
        value, self._held = self._value, None
        replay, n = value.replay, len(weights)
        for start in range(0, n, at_once):
            rows = slice(start, start + at_once)
            x, ys, trusts = features[rows], targets[rows], weights[rows]
            # Random numbers depend on the seed and the sample's number only: a restart draws what would have come.
            draws = Draws((self._seed, value.n_samples + start))
            self._steps(x, ys, trusts, replay, draws)
            if self._per_class:
                replay = replay.offered(x, ys, trusts, draws)
        inside = self._step.parameters()
        live = self._plain(inside)
        if not all(math.isfinite(np.add.reduce(array, axis=None)) or _is_finite(array) for array in live.values()):
            raise LearningError("the head has values that are not finite")
        self._keep(SgdKnowledge(value.n_samples + n, inside, self._step.memory(), live, replay, value.changes))

    def _keep(self, value: SgdKnowledge) -> None:
        """Know what the step has now."""
        self._value, self._held = value, (value.inside, value.memory)

    def _steps(
        self, features: FloatArray, targets: Targets, weights: FloatArray, replay: ReplayBuffer, draws: Draws
    ) -> None:
        """A step for each new sample, with others that are replayed; those are drawn before the first step."""
        n, drawn = len(weights), self._drawn if len(replay) else 0
        old, old_targets = replay.draw(n * drawn, self._shape, draws)
        both = self._inside(np.concatenate([features, old]))
        if self._doubts and drawn >= _LEAST_DOUBTED:
            trusts = self._trust(both[n:], old_targets, drawn)
        else:
            trusts = np.ones((n, drawn), np.float32)
        # Row by row what each step takes: the new sample, and those that are replayed with it.
        ys = self._task.matrix(np.concatenate([targets, old_targets]))
        if n == 1:  # as it is
            x, y = both[None], ys[None]
        else:
            x = np.concatenate([both[:n, None], both[n:].reshape(n, drawn, *self._shape)], axis=1)
            y = np.concatenate([ys[:n, None], ys[n:].reshape(n, drawn, ys.shape[1])], axis=1)
        trusted = np.concatenate([weights[:, None], trusts], axis=1)
        for i in range(n):
            self._step.step(x[i], y[i], trusted[i], self._rate)
            for _ in range(self._rehearsals if drawn else 0):
                self._rehearse(replay, draws)

    def _rehearse(self, replay: ReplayBuffer, draws: Draws) -> None:
        """A step with replayed samples only."""
        x, targets = replay.draw(self._drawn, self._shape, draws)
        x, trusts = self._inside(x), np.ones(self._drawn, np.float32)
        if self._doubts and self._drawn > _LEAST_DOUBTED:
            trusts[1:] = self._trust(x[1:], targets[1:], self._drawn - 1)[0]
        self._step.step(x, self._task.matrix(targets), trusts, self._rate)

    def _trust(self, features: FloatArray, targets: Targets, together: int) -> FloatArray:
        """``(steps, together)`` how much replayed samples count, so many of them in each step; see the module."""
        outputs = self._outputs(features)
        if self._task.is_regression:  # down like 1 / loss where it is above nine times the median
            losses = self._task.losses(outputs, targets).reshape(-1, together)
            usual = 9.0 * _medians(losses) + 1e-12
            return np.minimum(1.0, usual / np.maximum(losses, usual)).astype(np.float32)
        likely = np.exp(-self._task.losses(outputs, targets)).reshape(-1, together)
        usual = 0.5 * _medians(likely) + 0.02
        likely += 0.02
        likely /= usual
        return np.minimum(likely, 1.0, dtype=np.float32, casting="same_kind")

    def _outputs(self, features: FloatArray) -> FloatArray:
        """Of the head as it is inside the step."""
        parameters = self._step.parameters()
        if self._run is not None:
            return self._run(features, parameters)
        assert self._head is not None
        outputs: FloatArray = features @ parameters[self._head.weight].T
        return outputs if self._head.bias is None else outputs + parameters[self._head.bias]

    def parameters(self) -> Parameters:
        """See `edge.learning.learner.Learner.parameters`."""
        return dict(self._value.live)

    def replayed(self) -> tuple[FloatArray, Targets]:
        """All samples that came with a label and are kept for replay: features and targets."""
        return self._value.replay.everything(self._shape, self._begun)

    def distrust_the_past(self, features: FloatArray, targets: Targets) -> None:
        """See `edge.learning.learner.Learner.distrust_the_past`: nothing from before is replayed."""
        replay = self._value.replay.cleared()
        if self._per_class:
            replay = replay.put(features, targets, Draws((self._seed, self.n_samples)))
        self._value = replace(self._value, replay=replay)

    def grow(self, n_classes: int) -> None:
        """See `edge.learning.learner.Learner.grow`; only for a head whose last layer is linear.

        A further class starts from the mean of the others with a bias below theirs: SGD could not come back from the
        bias of a class that closed-form learners have never seen.
        """
        if self._head is None:
            raise LearningError("no class can be added to this head: its last layer is not linear")
        more = n_classes - self._task.n_outputs
        head = self._head

        def wider(parameters: Head) -> Parameters:
            found = dict(parameters)
            for name in (head.weight, head.bias):
                if name is not None:
                    row = found[name].mean(axis=0, keepdims=True)
                    if name == head.bias:
                        row = row - np.float32(5.0)
                    found[name] = np.concatenate([found[name], np.repeat(row, more, axis=0)])
            return found

        value = self._value
        inside = wider(value.inside)
        self._held = None
        self._step.load(inside)
        self._task = Task(self._task.recipe, n_classes)
        live, replay, changes = wider(value.live), value.replay.grown(n_classes), value.changes.grown(wider)
        self._keep(SgdKnowledge(value.n_samples, inside, self._step.memory(), live, replay, changes))

    @property
    def n_contributed(self) -> int:
        """See `edge.learning.learner.Learner.n_contributed`: those since the base."""
        return self.n_samples - self._value.changes.version

    def contribution(self, compression: Compression = EXACT) -> Packed:
        """See `edge.learning.learner.Learner.contribution`: the change since the last merge."""
        value = self._value
        changes, packed = value.changes.contributed(value.live, value.n_samples, compression)
        self._value = replace(value, changes=changes)
        return packed

    def of_others(self) -> None:
        """See `edge.learning.learner.Learner.of_others`: means of changes cannot be taken apart."""

    def rebase(self, parameters: Mapping[str, FloatArray], merged: State, included: int) -> None:
        """See `edge.learning.learner.Learner.rebase`: what was learned since the included version is put on top."""
        del merged
        value = self._value
        changes, head = value.changes.rebased(parameters, included, value.live, value.n_samples)
        whitening = self._whitening
        self._held = None
        self._step.load(head if whitening is None else whitening.whitened(head))
        inside = self._step.parameters()  # its live form is computed from what the step holds
        memory = self._step.memory()
        self._keep(replace(value, inside=inside, memory=memory, live=self._plain(inside), changes=changes))


def _is_finite(array: FloatArray) -> bool:
    return bool(np.isfinite(array).all())


def _medians(values: Scores) -> Scores:
    """``(n, 1)`` of the rows of a few numbers each, in a tenth of the time that `numpy.median` takes."""
    ordered, n = np.sort(values, axis=1), values.shape[1]
    return (ordered[:, (n - 1) // 2, None] + ordered[:, n // 2, None]) / 2.0
