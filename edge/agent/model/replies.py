"""What a model answers applications, and the answers of late: for a person who looks whether they were right.

Answers of late are in memory: the last ones with what was asked, bounded in number and bytes. Those whose label would
help most may be kept on disk beside (`edge.agent.model.hard_samples`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from edge.agent.model.deployment import Deployment
from edge.agent.model.hard_samples import HardSamples
from edge.agent.model.host import ModelHost
from edge.agent.model.on_device_model import OnDeviceModel
from edge.agent.model.questions import Questions
from edge.agent.model.serving import ModelError
from edge.agent.slots.states import SlotState
from edge.contract.clock import Now
from edge.contract.errors import LearningError
from edge.inference.session import Arrays
from edge.learning.queries import LabelRequests

T = TypeVar("T")

MOST_RECENT, MOST_RECENT_BYTES = 64, 4 << 20
MAX_SHOWN = 200
# Of an answer, what a person can read; arrays are not.
_READABLE = ("class", "name", "confidence", "yes", "values", "nearest", "novelty", "label_wanted")
_MAX_VALUES = 32


@dataclass(slots=True)
class Reply:
    """One answer.

    Attributes:
        id: Name of the sample.
        at_ms: When, ms since 1970.
        said: What was answered, without arrays.
        inputs: What was asked, by name; None where it is too large to be remembered.
        label: That came since; None without one.
    """

    id: str
    at_ms: int
    said: dict[str, Any]
    inputs: Arrays | None
    label: Any = None


class Replies:
    """See the module.

    Args:
        host: The live model.
        deployment: Of its releases: one on probation that fails is taken back.
        stopwatch: Gives seconds.
        most: Answers that are remembered; 0 for none.
        hard: Keeps the hard ones; None where nobody wishes it.
        share: Of samples that may be kept as hard ones, of a model that asks for no labels.
        questions: Offers the fleet what to label; None where this device does not take part.
    """

    def __init__(
        self,
        host: ModelHost,
        deployment: Deployment,
        stopwatch: Callable[[], float],
        *,
        most: int = 0,
        hard: HardSamples | None = None,
        share: float = 0.1,
        questions: Questions | None = None,
    ) -> None:
        self._host, self._deployment, self._stopwatch = host, deployment, stopwatch
        self._most, self.hard, self.questions = most, hard, questions
        self._recent: OrderedDict[str, Reply] = OrderedDict()
        self._bytes = 0
        self._requests = LabelRequests(share)

    def predict(self, request: Mapping[str, Any], now: Now) -> dict[str, Any]:
        """Answer a sample, and remember it until its label comes.

        Raises:
            LearningError: It cannot be answered.
        """
        given = [request[key] for key in ("x", "inputs") if key in request]
        if len(given) != 1:
            raise LearningError("expected a sample as x, or by the names of its inputs as inputs")
        sample_id = request.get("id")
        said = self._answered(
            lambda model: model.respond(
                sample_id,  # type: ignore[arg-type]  # the model looks at it
                given[0],
                now.s,
                stream=request.get("stream"),
                reset=request.get("reset", False),
            )
        )
        if self._most:
            self._remember(str(sample_id), self._host.model.serving.one(given[0]), said, now)
        if self.questions is not None:
            self.questions.answered(self._host.model, str(sample_id), said, now, given[0])
        return said

    def infer(
        self, sample_ids: Sequence[str], inputs: Arrays, now: Now, *, stream: str | None = None, reset: bool = False
    ) -> tuple[Arrays, list[dict[str, Any]]]:
        """Answer samples, and remember them; see `edge.agent.model.served_model.ServedModel.respond_all`.

        Raises:
            LearningError: They cannot be answered.
        """
        outputs, said = self._answered(
            lambda model: model.respond_all(sample_ids, inputs, now.s, stream=stream, reset=reset), len(sample_ids)
        )
        if self._most:
            serving = self._host.model.serving
            for i in range(max(0, len(said) - self._most), len(said)):
                self._remember(sample_ids[i], serving.rows(inputs, slice(i, i + 1)), said[i], now)
        if self.questions is not None:
            model = self._host.model
            for i, each in enumerate(said):
                one = model.serving.rows(inputs, slice(i, i + 1))
                self.questions.answered(model, sample_ids[i], each, now, one)
        return outputs, said

    def _answered(self, answer: Callable[[OnDeviceModel], T], samples: int = 1) -> T:
        """Let the live model answer; one on probation that fails is taken back, and the one before answers."""
        start = self._stopwatch()
        model = self._host.model
        try:
            found = answer(model)
        except Exception as exc:  # a model that was just pushed may fail in any way: take it back
            is_asked_wrong = isinstance(exc, LearningError) and not isinstance(exc, ModelError)
            if is_asked_wrong or self._deployment.state is not SlotState.PROBATION:
                raise
            self._deployment.roll_back(f"prediction failed: {exc}")
            return self._answered(answer, samples)
        model.metrics.inferred((self._stopwatch() - start) * 1e3, samples)
        return found

    # For people who look

    def _remember(self, sample_id: str, inputs: Arrays, said: Mapping[str, Any], now: Now) -> None:
        readable = {key: said[key] for key in _READABLE if key in said and _is_short(said[key])}
        size = sum(array.nbytes for array in inputs.values())
        keeps = size * 4 <= MOST_RECENT_BYTES
        mine = {name: np.array(array) for name, array in inputs.items()} if keeps else None
        self._drop(sample_id)
        self._recent[sample_id] = Reply(sample_id, now.wall_ms, readable, mine)
        self._bytes += size if keeps else 0
        while len(self._recent) > self._most or self._bytes > MOST_RECENT_BYTES:
            self._drop(next(iter(self._recent)))
        if self.hard is not None and self._is_hard(said):
            self.hard.keep(sample_id, inputs, readable, now.s, now.wall_ms)

    def _is_hard(self, said: Mapping[str, Any]) -> bool:
        if self._host.model.learns:
            return "label_wanted" in said or "nearest" in said
        return "confidence" in said and self._requests.wants(float(said["confidence"]))

    def _drop(self, sample_id: str) -> None:
        found = self._recent.pop(sample_id, None)
        if found is not None and found.inputs is not None:
            self._bytes -= sum(array.nbytes for array in found.inputs.values())

    def labelled(self, sample_id: str, label: Any) -> None:
        """A label was taken."""
        if sample_id in self._recent:
            self._recent[sample_id].label = label
        if self.hard is not None:
            self.hard.forget(sample_id)
        if self.questions is not None:
            self.questions.labelled(sample_id)

    def recall(self, sample_id: str, now: Now) -> bool:
        """Let a kept sample wait for its label again, which it does no longer; False where it is not kept.

        Raises:
            LearningError: The model that is live now cannot answer it.
        """
        inputs = None if self.hard is None else self.hard.inputs(sample_id)
        if inputs is None or self._host.model.manifest.states:  # what a model remembered then is gone
            return False
        self._host.model.sample(sample_id, inputs, now.s)
        return True

    def newest(self, count: object) -> dict[str, Any]:
        """The answers of late, the newest first, and the hard ones that are kept.

        Raises:
            LearningError: It is no count.
        """
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_SHOWN:
            raise LearningError(f"count: expected a number from 0 to {MAX_SHOWN}, got {count!r:.40}")
        kept = [] if self.hard is None else self.hard.newest(count)
        recent = list(reversed(self._recent.values()))[:count]
        return {
            "classes": list(self._host.model.class_names),
            "learns": self._host.model.learns,
            "recent": [
                {"id": each.id, "at_ms": each.at_ms, "answer": each.said, "label": each.label} for each in recent
            ],
            "kept": [{"id": each.id, "at_ms": each.at_ms, "answer": dict(each.said)} for each in kept],
            "kept_in_all": 0 if self.hard is None else len(self.hard),
        }

    def sample(self, sample_id: object) -> dict[str, Any]:
        """What a sample of late, or a kept one, was.

        Raises:
            LearningError: It is neither.
        """
        found: Arrays | None = None
        if isinstance(sample_id, str):
            if (reply := self._recent.get(sample_id)) is not None:
                found = reply.inputs
            if found is None and self.hard is not None:
                found = self.hard.inputs(sample_id)
        if found is None:
            raise LearningError(f"there is no sample {sample_id!r:.140} among those that are remembered")
        return {"id": sample_id, "inputs": found}


def _is_short(value: Any) -> bool:
    """Whether a person reads it, and JSON has it."""
    return isinstance(value, bool | int | float | str | dict | None) or (
        isinstance(value, list) and len(value) <= _MAX_VALUES
    )
