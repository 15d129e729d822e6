"""Stochastic gradient descent with replay, for any head.

The step itself is executed by the `TrainStep` that it is given.

Wrong labels: a new sample always counts in full, once. A replayed one counts less when the head finds its label much
less likely than those of the other replayed samples, so a wrong label that slipped into the replay buffer is not
learned over and over (a loss-based weight, in the spirit of small-loss selection: Han et al. 2018, arXiv:1804.06872).
Comparing within the batch, and not with a fixed number, leaves a head alone that is wrong about everything: then the
world has changed, and not the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.contract.recipe import MEAN_SQUARED_ERROR
from edge.contract.training import FloatArray, Parameters, TrainStep
from edge.learning.changes import Changes
from edge.learning.learner import State, check_batch, part, take_integers, take_like
from edge.learning.replay import ReplayBuffer
from edge.learning.task import Targets, Task
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
# A whitened head starts with this share of its logits: the same answers, with less confidence to unlearn.
TEMPERED = 0.3

Run = Callable[[FloatArray, Parameters], FloatArray]


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
        self._replay = ReplayBuffer(shape, task, per_class)
        self._live = step.parameters()
        self._changes = Changes(self._live)
        self.n_samples = 0
        if whitening is not None:
            whitened = whitening.whitened(self._live)
            if head is not None and task.is_classifier:
                tempered = {name for name in (head.weight, head.bias) if name is not None}
                whitened |= {name: whitened[name] * np.float32(TEMPERED) for name in tempered}
            step.load(whitened)

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
        if len(features) == 0:
            return
        before, memory = self._step.parameters(), self._step.memory()
        replay_before = self._replay.state() if len(features) > 1 else None  # one alone is put there at the very end
        try:
            for i in range(len(targets)):
                # Random numbers depend on the seed and the sample's number only: a restart draws what would have come.
                rng = np.random.default_rng([self._seed, self.n_samples + i])
                old, old_targets = self._replay.draw(self._drawn, rng)
                self._one_step(
                    np.concatenate([features[i : i + 1], old]),
                    np.concatenate([targets[i : i + 1], old_targets]),
                    float(weights[i]),
                )
                for _ in range(self._rehearsals if len(old) else 0):
                    self._one_step(*self._replay.draw(self._drawn, rng), 1.0)
                if i == len(targets) - 1:
                    live = self._plain(self._step.parameters())
                    if not all(np.isfinite(array).all() for array in live.values()):
                        raise LearningError("the head has values that are not finite")
                # What is trusted by a half is kept half as often: the buffer has no weights.
                if self._per_class and (weights[i] >= 1 or rng.random() < weights[i]):
                    self._replay.put(features[i : i + 1], targets[i : i + 1], rng)
        except BaseException:  # whatever interrupts a batch: nothing of it was learned
            self._step.load(before, memory)
            if replay_before is not None:
                self._replay.restore(replay_before)
            raise
        self.n_samples += len(targets)
        self._live = live

    def _one_step(self, features: FloatArray, targets: Targets, weight: float) -> None:
        if self._whitening is not None:
            features = self._whitening.features(features)
        weights = np.ones(len(features), np.float32)
        if self._doubts and len(features) > 4:
            weights[1:] = self._trust(features[1:], targets[1:])
        weights[0] = weight
        self._step.step(features, self._task.matrix(targets), weights, self._rate)

    def _trust(self, features: FloatArray, targets: Targets) -> FloatArray:
        """``(batch,)`` how much replayed samples count; see the module."""
        losses = self._task.losses(self._outputs(features), targets)
        if self._task.is_regression:  # down like 1 / loss where it is above nine times the median
            usual = 9.0 * float(np.median(losses)) + 1e-12
            return np.minimum(1.0, usual / np.maximum(losses, usual)).astype(np.float32)
        likely = np.exp(-losses)
        usual = 0.5 * float(np.median(likely))
        return np.minimum(1.0, (likely + 0.02) / (usual + 0.02)).astype(np.float32)

    def _outputs(self, features: FloatArray) -> FloatArray:
        """Of the head as it is inside the step."""
        parameters = self._step.parameters()
        if self._run is not None:
            return self._run(features, parameters)
        assert self._head is not None
        outputs: FloatArray = features @ parameters[self._head.weight].T
        return outputs if self._head.bias is None else outputs + parameters[self._head.bias]

    def _plain(self, parameters: Parameters) -> Parameters:
        return parameters if self._whitening is None else self._whitening.plain(parameters)

    def _load(self, parameters: Parameters) -> None:
        """Set the head, given for plain features; its live form is computed from what the step holds."""
        self._step.load(parameters if self._whitening is None else self._whitening.whitened(parameters))
        self._live = self._plain(self._step.parameters())

    def parameters(self) -> Parameters:
        """See `edge.learning.learner.Learner.parameters`."""
        return self._live

    def replayed(self) -> tuple[FloatArray, Targets]:
        """All samples that are kept for replay: features and targets."""
        return self._replay.everything()

    def distrust_the_past(self, features: FloatArray, targets: Targets) -> None:
        """See `edge.learning.learner.Learner.distrust_the_past`: nothing from before is replayed."""
        self._replay.clear()
        if self._per_class:
            self._replay.put(features, targets, np.random.default_rng([self._seed, self.n_samples]))

    def grow(self, n_classes: int) -> None:
        """See `edge.learning.learner.Learner.grow`; only for a head whose last layer is linear.

        A further class starts from the mean of the others with a bias below theirs: SGD could not come back from the
        bias of a class that closed-form learners have never seen.
        """
        if self._head is None:
            raise LearningError("no class can be added to this head: its last layer is not linear")
        more = n_classes - self._task.n_outputs
        head = self._head

        def wider(parameters: Parameters) -> Parameters:
            found = dict(parameters)
            for name in (head.weight, head.bias):
                if name is not None:
                    row = found[name].mean(axis=0, keepdims=True)
                    if name == head.bias:
                        row = row - np.float32(5.0)
                    found[name] = np.concatenate([found[name], np.repeat(row, more, axis=0)])
            return found

        self._step.load(wider(self._step.parameters()))
        self._live = wider(self._live)
        self._changes.grow(wider)
        self._task = Task(self._task.recipe, n_classes)
        self._replay.grow(n_classes)

    @property
    def n_contributed(self) -> int:
        """See `edge.learning.learner.Learner.n_contributed`: those since the base."""
        return self.n_samples - self._changes.version

    def contribution(self) -> State:
        """See `edge.learning.learner.Learner.contribution`: the change since the last merge."""
        return self._changes.contribution(self._live, self.n_samples)

    def rebase(self, parameters: Mapping[str, FloatArray], merged: State, included: int) -> None:
        """See `edge.learning.learner.Learner.rebase`: what was learned since the included version is put on top."""
        del merged
        take = self._changes.rebase(parameters, included, self._live, self.n_samples)
        self._load(take())

    def state(self) -> State:
        """See `edge.learning.learner.Learner.state`."""
        heads = {"step": self._step.parameters(), "live": self._live, "memory": self._step.memory()}
        return {
            "counts": np.array([self.n_samples], np.int64),
            **self._replay.state(),
            **self._changes.state(),
            **{f"{name}.{key}": array for name, head in heads.items() for key, array in head.items()},
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `edge.learning.learner.Learner.restore`."""

        def head(prefix: str) -> Parameters:
            return {name: take_like(state, f"{prefix}.{name}", array) for name, array in self._live.items()}

        inside, live, memory = head("step"), head("live"), part(state, "memory.")
        (n_samples,) = take_integers(state, "counts", 1)
        before = self._replay.state(), self._changes.state()
        try:
            self._replay.restore(state)
            self._changes.restore(state)
            self._step.load(inside, memory)
        except LearningError:
            self._replay.restore(before[0])
            self._changes.restore(before[1])
            raise
        self.n_samples, self._live = n_samples, live
