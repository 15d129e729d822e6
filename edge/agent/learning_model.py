"""A bundle that answers and learns: the frozen part, the rules, and what was learned, held together.

It does not know how it is opened, closed or shown: that is `edge.agent.on_device_model`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edge.agent.answering import Answering, as_array
from edge.agent.learned_state import LearnedState
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.contract.training import FloatArray
from edge.learning.calibration import probabilities
from edge.learning.events import ClassAdded, Contributed, Event, Labelled
from edge.learning.exchange import is_class_name
from edge.learning.explain import Explanation
from edge.learning.learned import Happened, Learned
from edge.learning.learner import check_batch
from edge.learning.learning import Learning
from edge.learning.metrics import RunningMetrics
from edge.learning.packing import PackedFeatures, pack
from edge.learning.task import Targets, Task

_MAX_EVENTS = 100


class LearningModel:
    """See the module.

    Args:
        bundle: With a head that learns.
        answering: The frozen part, and what waits for labels.
        learning: The rules by which it learns.
        state: What it has learned.

    Attributes:
        bundle: That it was opened from.
        manifest: Its manifest.
        answering: The frozen part, and what waits for labels.
        learning: The rules by which it learns.
        state: What it has learned.
        metrics: Running figures.
        events: What happened, for whoever shows it; they may be cleared.
    """

    def __init__(self, bundle: Bundle, answering: Answering, learning: Learning, state: LearnedState) -> None:
        self.bundle, self.manifest = bundle, bundle.manifest
        self.answering, self.learning, self.state = answering, learning, state
        self.metrics = RunningMetrics()
        self.metrics.inferences = state.inferences
        self.events: list[Happened] = []
        self._is_closed = False

    def _open(self) -> None:
        if self._is_closed:
            raise LearningError("the model was closed; open it again with OnDeviceModel.open")

    @property
    def learned(self) -> Learned:
        """What is known now: a value, see `edge.learning.learned`. `restore` goes back to it."""
        return self.state.value

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the bundle, and those that were added here; empty for quantities."""
        return self.learned.class_names

    @property
    def task(self) -> Task:
        """What the outputs mean."""
        return self.learning.task(self.learned)

    @property
    def n_samples(self) -> int:
        """Labelled samples learned so far, over all restarts."""
        return self.learning.n_samples(self.learned)

    # Predicting

    def answer(self, features: FloatArray) -> FloatArray:
        """Outputs ``(batch, n_outputs)`` for features ``(batch, *features)``."""
        self._open()
        return self.learning.answer(self.learned, features)

    def predict(self, x: npt.NDArray[Any]) -> FloatArray:
        """Outputs of all experts together: logits, or quantities.

        Args:
            x: ``(batch, *input)`` of the manifest's input type (other number types are converted).

        Returns:
            ``(batch, n_outputs)`` float32.

        Raises:
            LearningError: Another shape, or values that are not finite.
        """
        self._open()  # before the frozen part does its work
        return self.answer(self.answering.features(x))

    def probabilities(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """``(batch, n_outputs)`` how likely each class is, by a temperature fitted on the labels of this device.

        For several yes-or-no answers, how likely each yes is; quantities come as they are.
        """
        return probabilities(self.predict(x), self.learned.temperature, self.task)

    def predict_sample(self, sample_id: str, x: npt.NDArray[Any], now_s: float) -> FloatArray:
        """Predict one sample ``(*input)`` and remember its features until a label names it.

        Args:
            sample_id: The application's name for it.
            x: ``(*input)`` or ``(1, *input)``.
            now_s: Monotonic time.

        Returns:
            ``(n_outputs,)``.
        """
        self._open()
        features = self.answering.features(self.answering.one(x))
        outputs: FloatArray = self.answer(features)[0]
        if self.answering.remember(sample_id, features, outputs, now_s):
            self.events.append(Happened("feature-shift", "the inputs look different from before; labels would help"))
        return outputs

    def explain(
        self, x: npt.NDArray[Any], output: int | None = None, *, on: str = "input", window: int | None = None
    ) -> Explanation:
        """Which regions of a sample ``(*input)`` mattered; see `edge.agent.answering.Answering.explain`."""
        self._open()
        temperature = self.learned.temperature
        return self.answering.explain(x, self.answer, self.task, temperature, output, on=on, window=window)

    # Learning

    def happen(self, event: Event) -> list[Happened]:
        """Let something happen that is no label; see `edge.learning.events`."""
        self._open()
        if not isinstance(event, Contributed):
            for each in self.state.learn_waiting():
                self._learnt(*each)
        happened = self.state.happen(event)
        self.events = [*self.events, *happened][-_MAX_EVENTS:]
        return happened

    def learn(
        self, x: npt.NDArray[Any], y: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
    ) -> list[Happened]:
        """Learn labelled samples.

        Args:
            x: ``(batch, *input)``.
            y: ``(batch,)`` int64 classes, or ``(batch, n_outputs)`` targets.
            weights: ``(batch,)`` from 0 to 1, how much each label is trusted; None for 1.

        Returns:
            What happened that is worth telling.

        Raises:
            LearningError: The samples or labels cannot be learned. Where that shows only while they are learned, those
                before the one that cannot be learned stay.
        """
        self._open()
        features = self.answering.features(x)
        answers = self.answer(features)
        _, targets, trust = check_batch(features, as_array(y, "the labels"), weights, self.learning.shape, self.task)
        packed = pack(features)
        happened: list[Happened] = []
        for i in range(len(targets)):
            rows = slice(i, i + 1)
            one = PackedFeatures(packed.codes[rows], packed.scales[rows])
            happened += self.happen(Labelled(one, targets[rows], trust[rows]))
            self._judged(answers[rows], targets[rows], trust[rows])
        return happened

    def join_label(self, sample_id: str, label: Any, now_s: float, weight: float = 1.0, *, later: bool = False) -> bool:
        """Learn a sample that was predicted before, now that its label is known.

        Args:
            sample_id: As `predict_sample` was told.
            label: Its class, by number or name, or its targets ``(n_outputs,)``.
            now_s: Monotonic time.
            weight: How much the label is trusted, from 0 to 1.
            later: Only put it into the journal: `learn_next` learns it, or a restart.

        Returns:
            False when the sample is not remembered: unknown, already labelled, or too old.

        Raises:
            LearningError: There is no such class, or no such target or weight is possible.
        """
        self._open()
        target = self.check_label(label)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise LearningError(f"weight {weight!r:.40}: expected a number from 0 to 1")
        found = self.answering.ring.join(sample_id, now_s)
        if found is None:
            return False
        event = Labelled(found.features, target, np.array([weight], np.float32))
        if later:
            self.state.wait(event, found.answer)
        else:
            self.happen(event)
            self._judged(found.answer[None], event.target, event.weight)
        return True

    def learn_next(self) -> bool:
        """Learn the label that has waited longest; False when there is none.

        Raises:
            LearningError: It cannot be learned; it does not wait any more.
        """
        self._open()
        found = self.state.learn_next()
        if found is not None:
            self._learnt(*found)
        return found is not None

    def _learnt(self, label: Labelled, answer: FloatArray, happened: list[Happened]) -> None:
        self.events = [*self.events, *happened][-_MAX_EVENTS:]
        self._judged(answer[None], label.target, label.weight)

    def _judged(self, answers: FloatArray, targets: Targets, weights: FloatArray) -> None:
        if weights.any():
            more = self.task.n_outputs - answers.shape[1]  # an answer from before a class was added
            wide = np.pad(answers, ((0, 0), (0, more)), constant_values=answers.min()) if more else answers
            self.metrics.judged(self.task, wide, targets)

    def check_label(self, label: Any) -> Targets:
        """One label as it is kept, ``(1,)`` or ``(1, n_outputs)``; LearningError for what is none."""
        task, names = self.task, self.class_names
        if task.is_classifier and isinstance(label, str) and names:
            if label not in names:
                raise LearningError(
                    f"label: expected a class from 0 to {len(names) - 1} or one of its names, got {label!r:.40}"
                )
            label = names.index(label)
        if task.is_classifier and (isinstance(label, bool) or not isinstance(label, int | np.integer)):
            raise LearningError(f"label {label!r:.40}: expected a class from 0 to {task.n_outputs - 1}")
        array = as_array(label, "the label")
        return task.check(array[None] if task.is_classifier else array.reshape(1, -1), 1)

    def add_class(self, name: str) -> int:
        """Make room for a further class, which is answered from its first labels on. Safe before it returns.

        Returns:
            Its number.

        Raises:
            LearningError: There is one of that name, or the head cannot grow: its last layer is not linear.
        """
        if not is_class_name(name) or name in self.class_names:
            raise LearningError(f"class {name!r:.40}: expected a name of 1 to 128 characters that no class has")
        try:
            self.happen(ClassAdded(name))
        except OSError as exc:
            raise LearningError(f"class {name!r:.40} was not added, it cannot be saved: {exc.strerror}") from exc
        return len(self.class_names) - 1
