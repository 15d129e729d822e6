"""Which learners compete for a bundle's head: by name, or `auto` for all that suit the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from edge.contract import manifest as m
from edge.contract.bundle import Bundle
from edge.contract.choices import EXECUTORS, LEARNERS
from edge.contract.errors import ConfigError
from edge.contract.manifest import HeadSpec, LinearLayer
from edge.contract.projection import BYTES_PER_SQUARE
from edge.contract.training import FloatArray, TrainStep
from edge.inference.onnx_session import OnnxSession
from edge.inference.trainers import open_trainer
from edge.learning.closed_form import StatisticsLearner
from edge.learning.disclosure import Disclosing, Noise
from edge.learning.draws import Draws
from edge.learning.experts import Product
from edge.learning.layered import LayeredLearner
from edge.learning.learner import Learner
from edge.learning.learning import Learning
from edge.learning.lift import LONGEST, WAVES, Lift
from edge.learning.lifted import lifted_learner
from edge.learning.recalled import Samples, imagined, recalled
from edge.learning.sgd import BATCH_RATE, Run, SgdLearner
from edge.learning.solve import Method
from edge.learning.statistics import HeadStatistics
from edge.learning.subspace import Subspace, frame_of
from edge.learning.task import Task
from edge.learning.whitening import BYTES_PER_FEATURE_PAIR, Whitening

_METHODS: dict[str, Method] = {"statistics": "discriminant", "ridge": "ridge", "ncm": "means"}


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Workshop:
    """What learners are made of.

    Attributes:
        bundle: Of the head.
        session: Runs it.
        task: What its outputs mean.
        executor: Of training steps, see `edge.inference.trainers`.
        per_class: Replayed samples of each class.
        max_state_mb: Memory that a learner may take.
        seed: Of replay draws.
        noise: On all that is told of labelled samples; None tells what was learned as it is.
        fastest: The executor that was measured to be the fastest; empty before.
        lifts: The one map of features that is made; empty before.
    """

    bundle: Bundle
    session: OnnxSession
    task: Task
    executor: str
    per_class: int
    max_state_mb: float
    seed: int
    noise: Noise | None = None
    fastest: list[str] = field(default_factory=list, init=False)
    lifts: list[Lift] = field(default_factory=list, init=False)

    @property
    def head(self) -> HeadSpec:
        """Of the bundle."""
        head = self.bundle.manifest.head
        assert head is not None
        return head

    def learning(self, name: str, *, mixture: bool = True) -> Learning:
        """The rules for the learners that a name means, in order of preference.

        Args:
            name: One of `edge.contract.choices.LEARNERS`.
            mixture: False lets the first of them answer alone.

        Raises:
            ConfigError: There is no such learner, or it does not suit the head.
        """
        if name not in LEARNERS:
            raise ConfigError(f"learner {name!r}: expected one of {', '.join(LEARNERS)}")
        names = self._suitable() if name == "auto" else [name]
        if name != "auto" and (problem := self._problem(name)) is not None:
            raise ConfigError(f"the learner {name} does not suit this head: {problem}; suitable: {self._list()}")
        head = self.head
        return Learning(
            self.task,
            head.features.sample_shape,
            self.bundle.head_parameters(),
            self.bundle.manifest.class_names,
            head.linear,
            {each: partial(self.learner, each) for each in names},
            self._run("lifted" in names),
            mixture=mixture,
            shares=self._shares(),
            disclosing=None if self.noise is None else self._disclosing(self.noise, names),
            backbone=self.bundle.manifest.backbone_digest,
            imagined=self._imagined,
        )

    def _disclosing(self, noise: Noise, names: Sequence[str]) -> Disclosing:
        """How samples are told of under noise."""
        prior = self._prior()
        if self.task.is_regression:
            return Disclosing(noise, None, "the head gives quantities, and noise is for classes")
        if not any(name in _METHODS for name in names):
            return Disclosing(
                noise, None, f"the learner {names[0]} sends changes of the head, and noise is for sums of statistics"
            )
        if prior is None:
            return Disclosing(noise, None, "the bundle has no statistics of classes; convert it with labelled data")
        subspace = Subspace(prior.projected(projection := self.head.project()))
        frame = frame_of(self.bundle.tensors(m.STATISTICS))
        return Disclosing(noise, subspace.coordinates(frame, projection))

    def _shares(self) -> npt.NDArray[np.float64] | None:
        """Of the classes in the shipped statistics."""
        prior = self._prior() if self.task.is_classifier else None
        return None if prior is None else prior.class_counts / max(prior.class_counts.sum(), 1e-12)

    def _run(self, is_lifted: bool) -> Run:
        """The head: a linear one by a product of matrices, which is faster than asking onnxruntime for it."""
        linear = self.head.linear
        if linear is None or not self.head.is_linear:
            return self.session.logits
        return Product(linear, self._lift() if is_lifted else None)

    def _lift(self) -> Lift:
        """Of features, made once."""
        if not self.lifts:
            prior = self._prior()
            assert prior is not None
            self.lifts.append(Lift(prior))
        return self.lifts[0]

    def _list(self) -> str:
        return ", ".join(name for name in LEARNERS if name == "auto" or self._problem(name) is None)

    def _suitable(self) -> list[str]:
        closed = "ridge" if self.task.is_regression else "statistics"
        return [name for name in (closed, "lifted", "layered", "sgd") if self._problem(name) is None]

    def _problem(self, name: str) -> str | None:
        """Why a learner cannot learn this head; None if it can."""
        if name in ("sgd", "sgd-plain"):
            return None
        linear = self.head.linear
        if linear is None or linear.bias is None:
            return "its last layer is not linear with a bias"
        if name == "layered" and self.head.is_linear:
            return "it has no layer before the last"
        if name != "layered" and not self.head.is_linear:
            return "it is more than one linear layer"
        if self.task.recipe.loss == "binary-cross-entropy":
            return "its outputs are several yes-or-no answers"
        if self.task.is_regression and name in ("statistics", "ncm"):
            return "it gives quantities, not classes"
        length = self.head.n_statistics
        if name == "lifted":
            if self.task.is_regression:
                return "it gives quantities, not classes"
            if length > LONGEST or self.head.projection is not None or self._prior() is None:
                return f"it takes more than {LONGEST} features, or their statistics were not shipped"
            length = 2 * WAVES
        size_mb = BYTES_PER_SQUARE * (length + 1) ** 2 / 2**20
        if size_mb > self.max_state_mb:
            return (
                f"statistics of {length} features take {size_mb:.0f} MiB, allowed are {self.max_state_mb:g}; convert "
                f"the model for this device (--target)"
            )
        return None

    def _prior(self) -> HeadStatistics | None:
        """The statistics that were shipped, of what the last layer takes."""
        return shipped_statistics(self.bundle, self.task)

    def _whitening(self) -> Whitening | None:
        """Of the features, where a linear layer takes them and their statistics were shipped."""
        if self.head.trial is not None and self.head.trial.whitened is None:
            return None
        head, last, features = self.head, self._prior(), shipped_statistics(self.bundle, self.task, of_features=True)
        if features is None or (last is None and not head.is_linear):
            return None
        if BYTES_PER_FEATURE_PAIR * len(features.gram) ** 2 > self.max_state_mb * 2**20:
            return None
        if head.is_linear:
            assert head.linear is not None
            return Whitening(features, head.linear)
        assert head.entry is not None
        return Whitening(features, head.entry, last)

    def learner(self, name: str) -> Learner:
        """A new one."""
        linear = self.head.linear
        if name in _METHODS:
            assert linear is not None
            return self._statistics(linear, _METHODS[name], 1.0)
        if name == "lifted":
            prior = self._prior()
            assert linear is not None
            assert prior is not None
            return lifted_learner(linear, self.bundle.head_parameters(), self.task, prior, self._lift())
        if name == "layered":
            assert linear is not None
            method: Method = "ridge" if self.task.is_regression else "discriminant"
            below = self._sgd(self.per_class, self._whitening())
            return LayeredLearner(below, linear, self.task, self.session.layer_input, self._prior(), method)
        if name == "sgd-plain":
            return self._sgd(0, None)
        if self.head.is_linear:
            return self._sgd(self.per_class, self._whitening(), self._recalled())
        # Where layers are hidden it learns with care, and leaves worlds that have changed much to the layered one.
        return self._sgd(self.per_class, None, self._recalled())

    def _of_features(self) -> HeadStatistics | None:
        """The statistics of the features that were shipped, where classes are learned."""
        return shipped_statistics(self.bundle, self.task, of_features=True) if self.task.is_classifier else None

    def _recalled(self) -> Samples | None:
        """Samples as they may have been in training, where the statistics of the features were shipped."""
        features = self._of_features()
        if features is None:
            return None
        shipped, shape = self.bundle.head_parameters(), self.head.features.sample_shape

        def answer(x: FloatArray) -> FloatArray:
            return self.session.logits(x.reshape(len(x), *shape), shipped)

        return recalled(features, answer, Draws((self.seed,)))

    def _imagined(self) -> Samples | None:
        """The same, of those that nobody learns."""
        features = self._of_features()
        return None if features is None else imagined(features)

    def _statistics(self, linear: LinearLayer, method: Method, forgetting: float) -> StatisticsLearner:
        shipped, prior, projection = self.bundle.head_parameters(), self._prior(), self.head.project()
        if prior is not None:
            prior = prior.projected(projection)
        return StatisticsLearner(linear, shipped, self.task, prior, method, forgetting, projection)

    def _step(self) -> TrainStep:
        """A training step; which executor is the fastest is measured for the first one only."""
        opened = open_trainer(self.bundle, *(self.fastest or [self.executor]))
        if opened.executor in EXECUTORS:  # else it is one of a kind that has to be looked for: on a GPU
            self.fastest[:] = [opened.executor]
        return opened.step

    def _sgd(
        self,
        per_class: int,
        whitening: Whitening | None,
        recalled: Samples | None = None,
    ) -> SgdLearner:
        head = self.head
        return SgdLearner(
            self._step(),
            head.features.sample_shape,
            self.task,
            head.learning_rate * (BATCH_RATE if per_class else 1.0),
            per_class=per_class,
            seed=self.seed,
            head=head.linear,
            whitening=whitening,
            whitened_share=(head.trial and head.trial.whitened) or 1.0,
            run=None if head.is_linear else self.session.logits,
            rehearsals=0 if head.is_linear or not per_class else 1,
            recalled=recalled,
        )


def shipped_distances(bundle: Bundle, of_features: bool = False) -> npt.NDArray[np.float64] | None:
    """``(n, 2)`` squared distances of known samples, see `edge.learning.novelty.Distances`, as the converter measured.

    Each is measured from the shipped statistics without it, projected where devices project. None in a bundle from
    before they were counted, or without statistics of classes.
    """
    if not bundle.has(m.STATISTICS):
        return None
    found = bundle.tensors(m.STATISTICS).get(f"{m.OF_FEATURES if of_features else ''}{m.DISTANCES}")
    if found is None or found.shape[1:] != (2,) or found.dtype.kind != "f":
        return None
    distances = found.astype(np.float64)
    return distances if (np.isfinite(distances) & (distances >= 0)).all() else None


def shipped_statistics(bundle: Bundle, task: Task, of_features: bool = False) -> HeadStatistics | None:
    """The statistics in a bundle; None where there are none, or of no samples.

    Args:
        bundle: With a head.
        task: Of the head.
        of_features: Of the features, and not of what the last layer takes.
    """
    head = bundle.manifest.head
    assert head is not None
    layer = head.entry if of_features and not head.is_linear else head.linear
    if layer is None or not bundle.has(m.STATISTICS):
        return None
    prefix, tensors = "" if layer is head.linear else m.OF_FEATURES, bundle.tensors(m.STATISTICS)
    if f"{prefix}gram" not in tensors:  # there were too many of them
        return None
    n_inputs = next(spec.shape[1] for spec in head.parameters if spec.name == layer.weight)
    found = HeadStatistics.from_tensors(tensors, n_inputs, task.n_outputs, prefix, is_classifier=task.is_classifier)
    return found if found.n_samples > 0 else None
