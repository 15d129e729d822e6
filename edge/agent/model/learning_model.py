"""A bundle that answers and learns: the frozen part, the rules, and what was learned, held together.

It does not know how it is opened, closed or shown: that is `edge.agent.model.on_device_model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.agent.model import answers
from edge.agent.model.answering import Answering
from edge.agent.model.learned_state import LearnedState
from edge.agent.model.rejection import Rejection
from edge.agent.model.served_model import SampleAnswer
from edge.agent.model.serving import Given, Serving, as_array
from edge.agent.model.standing import Standing
from edge.agent.model.streams import Streams
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.contract.training import FloatArray
from edge.inference.session import Arrays, activated, unactivated
from edge.learning.calibration import probabilities
from edge.learning.events import ClassAdded, Contributed, Event, Labelled
from edge.learning.exchange import is_class_name
from edge.learning.explain import Explanation
from edge.learning.labels import Joined
from edge.learning.learned import Happened
from edge.learning.learner import check_batch
from edge.learning.learning import Learning
from edge.learning.packing import pack
from edge.learning.task import Targets, Task

_MAX_EVENTS = 100


class LearningModel(Standing):
    """See the module.

    Args:
        bundle: With a head that learns.
        serving: Runs it.
        streams: What it remembers.
        answering: Features, and what waits for labels.
        learning: The rules by which it learns.
        state: What it has learned.
        rejection: Judges whether samples are of none of the classes.

    Attributes:
        answering: Features, and what waits for labels.
    """

    def __init__(
        self,
        bundle: Bundle,
        serving: Serving,
        streams: Streams,
        answering: Answering,
        learning: Learning,
        state: LearnedState,
        rejection: Rejection,
    ) -> None:
        super().__init__(bundle, serving, streams, learning, state, rejection)
        self.answering = answering
        head = bundle.manifest.head
        assert head is not None
        self._head = head

    # Predicting

    def answer(self, features: FloatArray) -> FloatArray:
        """Outputs ``(batch, n_outputs)`` for features ``(batch, *features)``."""
        self._open()
        return self.learning.answer(self.learned, features)

    def _answered(self, found: Arrays) -> Arrays:
        """All outputs: that of the head is what the experts make of the features, as the model itself gives it."""
        answer = activated(self.answer(found[self._head.features.name]), self._head.activation)
        return {name: answer if name == self._head.output else found[name] for name in self.serving.outputs}

    def _logits(self, outputs: Arrays) -> FloatArray:
        """Of an answer; shares that are 0 or 1 in single precision are as far from it as that can tell."""
        answer: FloatArray = outputs[self._head.output]
        return unactivated(answer, self._head.activation)

    def probabilities(self, x: Given) -> npt.NDArray[np.float64]:
        """``(batch, n_outputs)`` how likely each class is, by a temperature fitted on the labels of this device.

        For several yes-or-no answers, how likely each yes is; quantities come as they are.
        """
        return probabilities(self._logits(self.outputs(x)), self.learned.temperature, self.task)

    def _remember(self, sample_id: str, found: Arrays, outputs: Arrays, now_s: float) -> None:
        features, answer = found[self._head.features.name], self._logits(outputs)
        if self.state.shadow is not None:
            self.state.shadow.predicted(self.learned, features, answer)
        if self.answering.remember(sample_id, features, answer[0], now_s):
            self.events.append(Happened("feature-shift", "the inputs look different from before; labels would help"))

    def _said(self, found: SampleAnswer) -> dict[str, Any]:
        names = {self._head.output: self.class_names} if self.task.is_classifier else {}
        outputs = {**found.outputs, self._head.output: self._logits(found.outputs)}
        said = answers.document(outputs, self._kinds, self.answer_name, names, self.learned.temperature)
        is_unknown = False
        if self.rejection.share and self.task.is_classifier:
            said, is_unknown = answers.judged(said, found.novelty)
            self.rejection.rejected += is_unknown
        wanted = self._wants_label(outputs[self._head.output], is_unknown)
        return said | ({"label_wanted": True} if wanted else {})

    def _novelty(self, found: Arrays) -> float | None:
        features = found[self._head.features.name]
        novelty = self.rejection.novelty(self.learned, features)
        return None if novelty is None else float(novelty[0])

    def novelty(self, x: Given) -> FloatArray:
        """``(batch,)`` how far samples are from all known classes: above 1 they are of none of them.

        Raises:
            LearningError: Nobody can tell, and why; or the samples do not fit.
        """
        self._open()
        features = self.answering.features(x)
        found = self.rejection.novelty(self.learned, features)
        if found is None:
            raise LearningError(f"whether samples are of none of the classes: {self.rejection.judge(self.learned)}")
        return found

    def _wants_label(self, answer: FloatArray, is_unknown: bool) -> bool:
        """Whether the label of a sample with this answer ``(n_outputs,)`` would help; call once a sample."""
        if self.task.is_regression:
            return False
        if is_unknown:
            return self.answering.requests.wants(0.0)
        likely = probabilities(answer, self.learned.temperature, self.task)
        confidence = likely.max() if self.task.is_classifier else np.abs(2.0 * likely - 1.0).min()
        return self.answering.requests.wants(float(confidence))

    def explain(
        self, x: Given, output: int | str | None = None, *, on: str = "input", window: int | None = None
    ) -> Explanation:
        """Which regions of a sample ``(*input)`` mattered; see `edge.agent.model.answering.Answering.explain`.

        An output may be given by its number, or by the name of its class.
        """
        self._open()
        if isinstance(output, str):
            output = int(numbered(output, self.class_names, "output"))
        temperature = self.learned.temperature
        found = self.answering.explain(x, self.answer, self.task, temperature, output, on=on, window=window)
        if not self.rejection.share:
            return found
        return replace(found, novelty=self._novelty(self.serving.run(self.serving.one(x))))

    # Learning

    def happen(self, event: Event) -> list[Happened]:
        """Let something happen, and keep it; see `edge.learning.events`.

        Labels that wait are learned first; `Contributed` knows how many were learned before it.

        Raises:
            EdgeError: It cannot happen; nothing changed.
            OSError: A head or a class cannot be kept; nothing changed.
        """
        self._open()
        if self.state.waiting and not isinstance(event, Contributed):
            self.learn_waiting()
        self.state.compare(event)
        learned, happened = self.learning.advance(self.state.value, event)
        self.state.keep(event, learned)
        self._tell(happened)
        return happened

    def _tell(self, happened: list[Happened]) -> None:
        if happened:
            self.events = [*self.events, *happened][-_MAX_EVENTS:]

    def learn_waiting(self) -> None:
        """Learn all labels that wait.

        What cannot be learned is said in `warnings`: it is not the fault of who asks now.
        """
        while self.state.waiting:
            try:
                self.learn_next()
            except LearningError as exc:
                self.warnings.append(str(exc))

    def learn(self, x: Given, y: Any, weights: npt.NDArray[Any] | None = None) -> list[Happened]:
        """Learn labelled samples.

        Args:
            x: ``(batch, *input)``, or such arrays by name.
            y: ``(batch,)`` classes, by number or name, or ``(batch, n_outputs)`` targets.
            weights: ``(batch,)`` from 0 to 1, how much each label is trusted; None for 1.

        Returns:
            What happened that is worth telling.

        Raises:
            LearningError: The samples or labels cannot be learned; none of them was.
        """
        self._open()
        return self.learn_features(self.answering.features(x), y, weights)

    def learn_features(self, features: FloatArray, y: Any, weights: npt.NDArray[Any] | None = None) -> list[Happened]:
        """Learn labelled samples whose features ``(batch, *features)`` are known already; see `learn`."""
        answers = self.answer(features)
        labels = labels_of(y, self.task, self.class_names)
        _, targets, trust = check_batch(features, labels, weights, self.learning.shape, self.task)
        if not len(targets):
            return []
        happened = self.happen(Labelled(pack(features), targets, trust))
        self._judged(answers, targets, trust)
        return happened

    def join_label(
        self, sample_id: str, label: Any, now_s: float, weight: float = 1.0, *, later: bool = False
    ) -> Joined:
        """Learn a sample that was predicted before, now that its label is known.

        A second label of a sample takes the place of the first while that waits to be learned. A sample whose label
        could not be learned waits for one again.

        Args:
            sample_id: As `predict_sample` was told.
            label: Its class, by number or name, or its targets ``(n_outputs,)``.
            now_s: Monotonic time.
            weight: How much the label is trusted, from 0 to 1.
            later: Only put it into the journal: `learn_next` learns it, or a restart.

        Returns:
            Whether it counts, and why it does not: the sample is not remembered (unknown, or too old), has this label
            already, or another one that was learned and is not taken back.

        Raises:
            LearningError: There is no such class, no such target or weight is possible, or it cannot be kept.
        """
        self._open()
        target = self.check_label(label)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise LearningError(f"weight {weight!r:.40}: expected a number from 0 to 1")
        for dropped in self.state.dropped:
            self.answering.ring.put_back(dropped)
        self.state.dropped.clear()
        found = self.answering.ring.join(sample_id, now_s)
        if found is None:
            return self._second(sample_id, target, np.array([weight], np.float32))
        event = Labelled(found.features, target, np.array([weight], np.float32))
        self.answering.ring.give(sample_id, event, found)
        try:
            if later:
                self.state.wait(event, found.answer)
            else:
                self.happen(event)
        except LearningError:
            self.answering.ring.put_back(event)
            raise
        if not later:
            self.answering.ring.learned(event)
            self._judged(found.answer[None], event.target, event.weight)
        return Joined()

    def _second(self, sample_id: str, target: Targets, weight: FloatArray) -> Joined:
        """A label of a sample that waits for none."""
        first = self.answering.ring.given(sample_id)
        if first is None:
            return Joined("no such sample waits for a label")
        if first.target == tuple(target.reshape(-1).tolist()) and first.weight == weight.item():
            return Joined("this sample has this label already")
        try:
            if first.label is not None:
                event = Labelled(first.label.features, target, weight)
                if self.state.correct(first.label, event):
                    self.answering.ring.correct(sample_id, event)
                    return Joined(replaced=True)
        except OSError as exc:
            raise LearningError(f"the label was not corrected, that cannot be saved: {exc.strerror}") from exc
        trust = "" if first.weight == 1.0 else f", weight {first.weight:g}"
        return Joined(
            f"this sample was learned as {self._shown(first.target)}{trust} already, and what was learned is not taken "
            f"back; predict it under another id, and label that"
        )

    def _shown(self, target: tuple[float, ...]) -> str:
        if not self.task.is_classifier:
            return ", ".join(f"{value:g}" for value in target)
        number = int(target[0])
        return repr(self.class_names[number]) if number < len(self.class_names) else str(number)

    def learn_next(self) -> bool:
        """Learn the label that has waited longest; False when there is none.

        Raises:
            LearningError: It cannot be learned; its sample, where it is remembered, waits for a label again.
        """
        self._open()
        if not self.state.waiting:
            return False
        label, answer = self.state.waiting.popleft()
        self.state.compare(label)
        try:
            self.state.value, happened = self.learning.advance(self.state.value, label)
        except LearningError as exc:
            self.state.refused += 1
            sample_id = self.answering.ring.put_back(label)
            of = f" of {sample_id!r}" if sample_id else ""
            raise LearningError(f"the label{of} that waited was not learned: {exc}") from exc
        self.answering.ring.learned(label)
        self._tell(happened)
        self._judged(answer[None], label.target, label.weight)
        return True

    def _judged(self, answers: FloatArray, targets: Targets, weights: FloatArray) -> None:
        says = weights > 0  # a label that is not trusted at all says nothing
        if says.any():
            if not says.all():
                answers, targets = answers[says], targets[says]
            # An answer from before a class was added, or with one that is gone since: by restore, reset or rollback.
            answers = answers[:, : self.task.n_outputs]
            more = self.task.n_outputs - answers.shape[1]
            wide = np.pad(answers, ((0, 0), (0, more)), constant_values=answers.min()) if more else answers
            self.metrics.judged(self.task, wide, targets)

    def check_label(self, label: Any) -> Targets:
        """One label as it is kept, ``(1,)`` or ``(1, n_outputs)``; LearningError for what is none."""
        task = self.task
        if not task.is_classifier:
            return task.check(as_array(label, "the label").reshape(1, -1), 1)
        if isinstance(label, str):
            label = numbered(label, self.class_names).item()
        if isinstance(label, bool) or not isinstance(label, int | np.integer):
            raise LearningError(f"label {label!r:.40}: expected a class from 0 to {task.n_outputs - 1}")
        if 0 <= label < task.n_outputs:
            return np.array([label], np.int64)
        return task.check(as_array(label, "the label")[None], 1)

    def add_class(self, name: str) -> int:
        """Make room for a further class, which is answered from its first labels on. Safe before it returns.

        Returns:
            Its number.

        Raises:
            LearningError: There is one of that name, or the head cannot grow: its last layer is not linear.
        """
        if not is_class_name(name) or name in self.class_names:
            raise LearningError(f"class {name!r:.40}: expected a name of 1 to 128 characters that no class has")
        if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in name):
            raise LearningError(f"class {name!r:.60}: expected a name without control characters")
        try:
            self.happen(ClassAdded(name))
        except OSError as exc:
            raise LearningError(f"class {name!r:.40} was not added, it cannot be saved: {exc.strerror}") from exc
        return len(self.class_names) - 1


def labels_of(y: Any, task: Task, class_names: Sequence[str]) -> npt.NDArray[Any]:
    """Labels as an array, of classes as their numbers; `edge.learning.task.Task.check` is to follow.

    Raises:
        LearningError: There is no class of that name, or the labels are of no regular shape.
    """
    return numbered(y, class_names) if task.is_classifier else as_array(y, "the labels")


def numbered(y: Any, class_names: Sequence[str], what: str = "label") -> npt.NDArray[Any]:
    """Classes as an array, their names as their numbers.

    Raises:
        LearningError: There is no class of that name, or the labels are of no regular shape.
    """
    array = as_array(y, "the labels")
    if array.dtype.kind not in "UO":
        return array
    # Of a list of names and numbers numpy makes texts: 0 would be the class that is called "0".
    array = np.array(y, object) if isinstance(y, list | tuple) else array
    numbers = {name: number for number, name in enumerate(class_names)}
    given = array.reshape(-1).tolist()
    for name in given:
        if not isinstance(name, str) or name not in numbers:
            wanted = f"from 0 to {len(numbers) - 1} or one of its names" if numbers else "by number: they have no names"
            is_mixed = not isinstance(name, str) and any(isinstance(each, str) for each in given)
            mixed = " among names: give all by name or all by number" if is_mixed else ""
            raise LearningError(f"{what}: expected a class {wanted}, got {name!r:.40}{mixed}")
    return np.array([numbers[name] for name in given], np.int64).reshape(array.shape)
