"""Stochastic gradient descent with replay, for any head.

The step itself is executed by the `TrainStep` that it is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray, LabelArray, Parameters, TrainStep
from edge.learning.closed_form import KEPT_CONTRIBUTIONS
from edge.learning.learner import State, check_batch, take, take_integers
from edge.learning.replay import ReplayBuffer


class SgdLearner:
    """Each new sample makes one step together with `drawn` samples from the replay buffer.

    Args:
        step: Executes the step and holds the parameters; it already holds the shipped head.
        shape: Shape of one sample's features.
        n_classes: Number of classes.
        learning_rate: Step size.
        per_class: Replayed samples kept per class; 0 is plain SGD, which forgets.
        seed: Of the replay draws.
        drawn: Replayed samples per step.
    """

    kind = "delta"

    def __init__(
        self,
        step: TrainStep,
        shape: tuple[int, ...],
        n_classes: int,
        learning_rate: float,
        per_class: int = 20,
        seed: int = 0,
        drawn: int = 8,
    ) -> None:
        self._step = step
        self._shape = shape
        self._n_classes = n_classes
        self._rate = learning_rate
        self._drawn = drawn
        self._seed = seed
        self._replay = ReplayBuffer(shape, n_classes, per_class)
        self._base = step.parameters()
        self._sent: deque[tuple[int, Parameters]] = deque(maxlen=KEPT_CONTRIBUTIONS)
        self._live = self._base
        self._base_version = 0
        self.n_samples = 0

    def learn_many(self, features: FloatArray, labels: LabelArray) -> None:
        """See `edge.learning.learner.Learner.learn_many`."""
        features, labels = check_batch(features, labels, self._shape, self._n_classes)
        before, replay_before = self._live, self._replay.state()
        try:
            for i in range(len(labels)):
                # Random numbers depend on the seed and the sample's number only: a restart draws what would have come.
                rng = np.random.default_rng([self._seed, self.n_samples + i])
                old, old_labels = self._replay.draw(self._drawn, rng)
                batch = np.concatenate([features[i : i + 1], old])
                batch_labels = np.concatenate([labels[i : i + 1], old_labels])
                self._step.step(batch, batch_labels, np.ones(len(batch), np.float32), self._rate)
                self._replay.put(features[i : i + 1], labels[i : i + 1], rng)
        except BaseException:  # whatever interrupts a batch: nothing of it was learned
            self._step.load(before)
            self._replay.restore(replay_before)
            raise
        self.n_samples += len(labels)
        self._live = self._step.parameters()

    def parameters(self) -> Parameters:
        """See `edge.learning.learner.Learner.parameters`."""
        return self._live

    @property
    def n_contributed(self) -> int:
        """See `edge.learning.learner.Learner.n_contributed`: those since the base."""
        return self.n_samples - self._base_version

    def contribution(self) -> State:
        """See `edge.learning.learner.Learner.contribution`: the change since the last merge."""
        if not self._sent or self._sent[-1][0] != self.n_samples:
            self._sent.append((self.n_samples, self._live))
        return {name: self._live[name] - self._base[name] for name in self._live}

    def rebase(self, parameters: Mapping[str, FloatArray], merged: State, included: int) -> None:
        """See `edge.learning.learner.Learner.rebase`: what was learned since the included version is put on top."""
        del merged
        if {n: a.shape for n, a in parameters.items()} != {n: a.shape for n, a in self._live.items()}:
            raise LearningError("the merged head has other parameters than this one")
        version = max(included, self._base_version)
        known = {self._base_version: self._base, self.n_samples: self._live, **dict(self._sent)}
        if version not in known:
            version = self.n_samples  # no longer known which part is included: taken as all of it
        start, base = known[version], {name: np.array(array, np.float32) for name, array in parameters.items()}

        def moved(head: Parameters) -> Parameters:
            return {name: base[name] + (head[name] - start[name]) for name in base}

        still_out = [(number, moved(head)) for number, head in self._sent if number > version]
        self._sent = deque(still_out, maxlen=KEPT_CONTRIBUTIONS)
        self._step.load(moved(self._live))
        self._live = self._step.parameters()
        self._base, self._base_version = base, version

    def state(self) -> State:
        """See `edge.learning.learner.Learner.state`."""
        state: State = {
            "counts": np.array([self.n_samples, self._base_version], np.int64),
            **self._replay.state(),
        }
        heads = {"live": self._live, "base": self._base} | {f"sent{i}": head for i, (_, head) in enumerate(self._sent)}
        for part, head in heads.items():
            state |= {f"{part}.{name}": array for name, array in head.items()}
        state["sent_versions"] = np.array([version for version, _ in self._sent], np.int64)
        return state

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `edge.learning.learner.Learner.restore`."""

        def head(part: str) -> Parameters:
            found = {name: take(state, f"{part}.{name}").astype(np.float32) for name in self._base}
            if any(found[name].shape != self._base[name].shape for name in found):
                raise LearningError("the saved head is of another shape")
            return found

        live, base = head("live"), head("base")
        sent = [(version, head(f"sent{i}")) for i, version in enumerate(take_integers(state, "sent_versions"))]
        n_samples, base_version = take_integers(state, "counts", 2)
        self._replay.restore(state)
        self._step.load(live)
        self._sent = deque(sent, maxlen=KEPT_CONTRIBUTIONS)
        self.n_samples, self._base_version = n_samples, base_version
        self._base = base
        self._live = self._step.parameters()
