"""A bundle that answers, whichever it is: checked inputs, streams of a model that remembers, answers by their kinds.

What learns is built on it (`edge.agent.model.learning_model`). Here stand the words and figures that an agent asks of
any model, as they are for one that does not learn; what needs a head says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from edge.agent.model import answers
from edge.agent.model.answering import Answering
from edge.agent.model.learned_state import LearnedState
from edge.agent.model.rejection import Rejection
from edge.agent.model.serving import Given, Serving
from edge.agent.model.streams import DEFAULT, Streams
from edge.agent.model.turns import turn
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.inference.session import Arrays
from edge.learning.labels import MAX_ID_LENGTH
from edge.learning.learned import Happened, Learned, Trial
from edge.learning.learning import Learning
from edge.learning.metrics import RunningMetrics
from edge.learning.task import Task

NO_HEAD = "this bundle has no trainable head; convert with --trainable"


class NoHeadError(LearningError, AttributeError):
    """Something that learns was asked of a bundle that does not; `hasattr` takes it for absent."""


class _NeedsHead:
    """Stands for what a model that learns has."""

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self
        raise NoHeadError(NO_HEAD)


_NEEDS_HEAD: Any = _NeedsHead()


@dataclass(frozen=True, eq=False, slots=True)
class SampleAnswer:
    """What came of one sample.

    Attributes:
        outputs: By name, without batch axes.
        steps: Samples of its stream since that began; 0 of a model that remembers nothing.
        novelty: How far it is from all known classes, above 1 for none of them; None where nobody can tell.
    """

    outputs: Arrays
    steps: int
    novelty: float | None = None


class Unlearned:
    """What is asked of what was learned, of a model that learns nothing."""

    @property
    def learned(self) -> Learned:
        """Of a model that learns: what is known now."""
        raise NoHeadError(NO_HEAD)

    @property
    def task(self) -> Task:
        """Of a model that learns: what the head's outputs mean."""
        raise NoHeadError(NO_HEAD)

    @property
    def n_samples(self) -> int:
        """Labelled samples learned so far, over all restarts."""
        return 0

    @property
    def n_contributed(self) -> int:
        """Labelled samples that the fleet could be told of."""
        return 0

    @property
    def waiting(self) -> int:
        """Labels that wait to be learned."""
        return 0

    @property
    def release(self) -> int:
        """Of the head that came last; 0 for none."""
        return 0

    @property
    def trial(self) -> Trial | None:
        """The head that replaced everything and may still go."""
        return None

    def before(self) -> Learned | None:
        """What was there before the last head that replaced everything and was confirmed."""
        return None

    def save(self) -> None:
        """Keep all of it."""

    def learn_next(self) -> bool:
        """Learn the label that has waited longest; False when there is none."""
        return False

    def learn_waiting(self) -> None:
        """Learn all labels that wait."""


class ServedModel(Unlearned):
    """See the module.

    Args:
        bundle: Whichever.
        serving: Runs it.
        streams: What it remembers.

    Attributes:
        bundle: That it was opened from.
        manifest: Its manifest.
        serving: Runs it.
        streams: What it remembers.
        metrics: Running figures.
        events: What happened, for whoever shows it; they may be cleared.
        warnings: What went wrong and was survived; they may be cleared.
        learns: Whether there is a head that learns.
        answer_name: The output for people.
    """

    learns = False
    # Of a model that learns, see `edge.agent.model.learning_model`.
    answering: Answering = _NEEDS_HEAD
    learning: Learning = _NEEDS_HEAD
    state: LearnedState = _NEEDS_HEAD
    rejection: Rejection = _NEEDS_HEAD
    answer = probabilities = novelty = happen = learn = learn_features = join_label = check_label = add_class = (
        _NEEDS_HEAD
    )
    live_head = export_head = _NEEDS_HEAD

    def __init__(self, bundle: Bundle, serving: Serving, streams: Streams) -> None:
        self.bundle, self.manifest = bundle, bundle.manifest
        self.serving, self.streams = serving, streams
        self.metrics = RunningMetrics()
        self.events: list[Happened] = []
        self.warnings: list[str] = []
        self.answer_name = answers.answer_of(self.manifest)
        self._kinds = answers.kinds_of(self.manifest)
        self._named = answers.classifying(self.manifest, self._kinds)
        self._is_closed = False
        self._turn = turn()

    def _open(self) -> None:
        if self._is_closed:
            raise LearningError("the model was closed; open it again with OnDeviceModel.open")

    # Predicting

    def outputs(self, x: Given) -> Arrays:
        """All outputs of samples, by name.

        A model that remembers takes the samples in their order, as a stream of its own that begins here.

        Args:
            x: ``(batch, *input)`` of the manifest's input type (other number types are converted); where there are
                several inputs, such arrays by name.

        Raises:
            LearningError: An input is missing or not known, another shape, or values that are not finite.
            ModelError: The model fails on them, or what it answers is not finite.
        """
        self._open()  # before the model does its work
        found = self._answered(self.serving.run(self.serving.many(x)))
        self.serving.check_finite(found, {})
        return found

    def predict(self, x: Given) -> npt.NDArray[Any]:
        """The output for people of samples, ``(batch, ...)``; see `outputs`.

        With a head it is what all experts say together, ``(batch, n_outputs)`` float32: logits or quantities, or
        shares where the model ends in a softmax or sigmoid.
        """
        return self.outputs(x)[self.answer_name]

    def sample(
        self, sample_id: str, x: Given, now_s: float, *, stream: str | None = None, reset: bool = False
    ) -> SampleAnswer:
        """All outputs of one sample. A fault changes nothing: the stream goes on from where it was.

        Args:
            sample_id: The application's name for it.
            x: ``(*input)`` or ``(1, *input)``; where there are several inputs, such arrays by name.
            now_s: Monotonic time.
            stream: Whose state the sample takes and leaves, of a model that remembers; one for all when None.
            reset: Whether its stream begins anew with it.

        Raises:
            LearningError: As `outputs`, or the id or the stream has no name.
        """
        self._open()
        check_name(sample_id, "id")
        name = DEFAULT if stream is None else check_name(stream, "stream")
        if not isinstance(reset, bool):
            raise LearningError(f"reset: expected true or false, got {reset!r:.40}")
        inputs = self.serving.one(x)
        found, after = self.serving.step(inputs, self.streams.state(name, now_s, anew=reset))
        outputs = self._answered(found)
        self.serving.check_finite(outputs, after)
        self._remember(sample_id, found, outputs, now_s)
        forgotten = self.streams.forgotten
        steps = self.streams.keep(name, after, now_s, anew=reset)
        if self.streams.forgotten and not forgotten:  # the first time; `status` counts
            text = f"there is room for {self.streams.most} streams: the one that was silent longest begins anew"
            self.events.append(Happened("stream-forgotten", text))
        return SampleAnswer(self.serving.alone(outputs), steps, self._novelty(found))

    def predict_sample(
        self, sample_id: str, x: Given, now_s: float, *, stream: str | None = None, reset: bool = False
    ) -> npt.NDArray[Any]:
        """The output for people of one sample, ``(n_outputs,)`` with a head; see `sample`.

        With a head it is remembered until a label names it.
        """
        return self.sample(sample_id, x, now_s, stream=stream, reset=reset).outputs[self.answer_name]

    def respond(
        self, sample_id: str, x: Given, now_s: float, *, stream: str | None = None, reset: bool = False
    ) -> dict[str, Any]:
        """What the outputs of one sample say, as `edge.agent.model.answers` has it; see `sample`."""
        found = self.sample(sample_id, x, now_s, stream=stream, reset=reset)
        return self._said(found) | ({"step": found.steps} if found.steps else {})

    def respond_all(
        self, sample_ids: Sequence[str], inputs: Arrays, now_s: float, *, stream: str | None = None, reset: bool = False
    ) -> tuple[Arrays, list[dict[str, Any]]]:
        """All outputs of samples, by name, and what those of each say; see `respond`.

        A model that remembers takes them one after the other, as samples of the stream; else they run together, and a
        fault of one is a fault of all.

        Args:
            sample_ids: A name for each.
            inputs: As `edge.agent.model.serving.Serving.many` gave them.
            now_s: Monotonic time.
            stream: Whose samples they are.
            reset: Whether the stream begins anew with the first.

        Raises:
            LearningError: As `sample`.
        """
        self._open()
        said: list[dict[str, Any]] = []
        if self.manifest.states:
            parts = []
            for i, sample_id in enumerate(sample_ids):
                one = self.serving.rows(inputs, slice(i, i + 1))
                answer = self.sample(sample_id, one, now_s, stream=stream, reset=reset and i == 0)
                parts.append(answer.outputs)
                said.append(self._said(answer) | {"step": answer.steps})
            return self.serving.together(parts), said
        for sample_id in sample_ids:
            check_name(sample_id, "id")
        found = self.serving.run(inputs)
        outputs = self._answered(found)
        self.serving.check_finite(outputs, {})
        for i, sample_id in enumerate(sample_ids):
            row = slice(i, i + 1)
            of_one, shown = self.serving.part(found, row), self.serving.part(outputs, row)
            self._remember(sample_id, of_one, shown, now_s)
            said.append(self._said(SampleAnswer(self.serving.alone(shown), 0, self._novelty(of_one))))
        return outputs, said

    def _said(self, found: SampleAnswer) -> dict[str, Any]:
        """What the outputs of one sample say."""
        names = {} if self._named is None else {self._named: self.class_names}
        return answers.document(found.outputs, self._kinds, self.answer_name, names)

    def _novelty(self, found: Arrays) -> float | None:
        """How far one sample is from all known classes, of what `edge.agent.model.serving` gives."""

    def _answered(self, found: Arrays) -> Arrays:
        """The outputs, of what `edge.agent.model.serving` gives."""
        return found

    def _remember(self, sample_id: str, found: Arrays, outputs: Arrays, now_s: float) -> None:
        """Keep what a label will need."""

    # What it knows beyond its bundle

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty where nothing classifies."""
        return self.manifest.class_names

    # For people

    def status(self) -> dict[str, Any]:
        """What an operator wants to know of it."""
        remembers = {"streams": self.streams.status()} if self.manifest.states else {}
        return {"learner": "none", "why": NO_HEAD, "classes": list(self.class_names), "head": "", **remembers}

    def telemetry(self, now_s: float) -> dict[str, Any]:
        """Figures since the last call; what is not known is left out."""
        known = self.metrics.report(now_s)
        del known["labels"]
        remembers = {"streams": len(self.streams)} if self.manifest.states else {}
        return {"learner": "none", **known, **remembers}

    def _shut(self) -> None:
        """Keep what it knows beyond its bundle, before it is closed."""


def check_name(value: Any, what: str) -> str:
    """A name that an application gives; LearningError for what is none."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_LENGTH:
        raise LearningError(f"{what}: expected a text of 1 to {MAX_ID_LENGTH} characters, got {value!r:.40}")
    return value
