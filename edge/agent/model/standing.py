"""Where a model that learns stands: what it knows, what waits, what is on trial, its figures; and how that is kept.

An agent asks any model for these (`edge.agent.model.served_model`); here they are of one with a head that learns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge.agent.model.learned_state import LearnedState
from edge.agent.model.rejection import Rejection
from edge.agent.model.served_model import ServedModel
from edge.agent.model.serving import Serving
from edge.agent.model.streams import Streams
from edge.channel import confusion
from edge.channel.messages import EXPERTS
from edge.contract.bundle import Bundle
from edge.contract.digest import sha256
from edge.contract.errors import LearningError
from edge.contract.files import replace_file
from edge.learning.exchange import HeadRelease
from edge.learning.learned import Learned, Trial
from edge.learning.learning import Learning
from edge.learning.mixture import FAR_OFF
from edge.learning.task import Task


class Standing(ServedModel):
    """See the module.

    Args:
        bundle: With a head that learns.
        serving: Runs it.
        streams: What it remembers.
        learning: The rules by which it learns.
        state: What it has learned.
        rejection: Judges whether samples are of none of the classes.

    Attributes:
        learning: The rules by which it learns.
        state: What it has learned.
        rejection: Judges whether samples are of none of the classes.
    """

    learns = True

    def __init__(
        self,
        bundle: Bundle,
        serving: Serving,
        streams: Streams,
        learning: Learning,
        state: LearnedState,
        rejection: Rejection,
    ) -> None:
        super().__init__(bundle, serving, streams)
        self.learning, self.state, self.rejection = learning, state, rejection
        self.warnings = state.warnings
        self.metrics.inferences = state.inferences
        self.metrics.go_on(state.answered)
        self._confusion = confusion.Teller()

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

    @property
    def n_contributed(self) -> int:
        """Labelled samples that the fleet could be told of."""
        return self.learning.n_contributed(self.learned)

    @property
    def waiting(self) -> int:
        """Labels that wait to be learned."""
        return len(self.state.waiting)

    @property
    def release(self) -> int:
        """Of the head that came last; 0 for none."""
        return self.learned.release

    @property
    def trial(self) -> Trial | None:
        """The head that replaced everything and may still go."""
        return self.learned.trial

    def before(self) -> Learned | None:
        """What was there before the last head that replaced everything and was confirmed."""
        return self.state.before()

    def save(self) -> None:
        """Keep all of it.

        Raises:
            OSError: The disk takes nothing.
        """
        self._hand_over()
        self.state.save()

    def _shut(self) -> None:
        self._hand_over()
        self.state.close()

    def _hand_over(self) -> None:
        self.state.inferences, self.state.answered = self.metrics.inferences, self.metrics.answered

    def status(self) -> dict[str, Any]:
        """What an operator wants to know of it."""
        return {
            "head": head_digest(self),
            "learner": self.learning.kind,
            "learners": list(self.learning.learners),
            "believed": self.learning.speaker(self.learned),
            "experts": expert_weights(self),
            "classes": list(self.class_names),
            "samples": self.n_samples,
            "accuracy": self.metrics.accuracy,
            **({"quantities": self._quantities()} if self.task.is_regression else {}),
            "waiting": self.waiting,
            "refused": self.state.refused,
            "unsafe": self.state.unsafe,
            **({"unknown": self.rejection.status(self.learned)} if self.rejection.share else {}),
            **({"streams": self.streams.status()} if self.manifest.states else {}),
            **({"noise": self._noise()} if self.learning.disclosing is not None else {}),
        }

    def _quantities(self) -> dict[str, Any]:
        """Of labels that came last: the mean loss, how far they go with the samples, and how far they count for that.

        And of each expert how many times the usual loss it has on them: it has no accuracy.
        """
        mixture, task = self.learned.mixture, self.task
        times = FAR_OFF * (1.0 - mixture.accuracies())
        return {
            "times_usual": {name: round(float(each), 2) for name, each in zip(mixture.names, times, strict=True)},
            "loss": self.metrics.loss,
            "goes_with": round(mixture.kappa(task), 3) if mixture.labels else None,
            "counts": round(mixture.credit(task), 3) if mixture.labels else None,
        }

    def _noise(self) -> dict[str, Any]:
        """What the fleet is told of labelled samples, and what is promised of each."""
        disclosing, told = self.learning.disclosing, self.learned.disclosed
        assert disclosing is not None
        return {
            "epsilon": disclosing.noise.epsilon,
            "delta": disclosing.noise.delta,
            "told_epsilon": 0.0 if told is None else told.epsilon,
            "told": 0 if told is None else told.n_told,
            "pending": 0 if told is None else told.n_pending,
            "why_not": disclosing.why_not,
        }

    def telemetry(self, now_s: float) -> dict[str, Any]:
        """Figures since the last call; what is not known is left out."""
        return {
            "learner": self.learning.kind,
            "samples": self.n_samples,
            "sgd_steps": self.n_samples if self.learning.kind == "delta" else 0,
            **self.metrics.report(now_s),
            "waiting": self.waiting,
            **({"refused": self.state.refused} if self.state.refused else {}),
            EXPERTS: expert_weights(self),
            **self._new_confusion(now_s),
            **({"unknown": self.rejection.rejected} if self.rejection.share else {}),
            **({"streams": len(self.streams)} if self.manifest.states else {}),
        }

    def _new_confusion(self, now_s: float) -> dict[str, str]:
        """What was answered to recent labels of each class, where that is not what was said last.

        Of a device that tells of samples under noise only, nothing: these counts are exact, and say each label.
        """
        if self.learning.disclosing is not None:
            return {}
        return self._confusion.news(confusion.told(self.metrics.confusion(self.class_names)), now_s)

    def live_head(self) -> HeadRelease:
        """One head, for people who want one: what `export_head` writes.

        It is the one with the most say of those in the form of the bundle's; one on lifted features is not.
        """
        name = self.learning.speaker(self.learned, is_plain=True)
        return HeadRelease(
            backbone=self.manifest.backbone_digest,
            parameters=self.learning.parameters(self.learned, name),
            n_samples=self.n_samples,
            origin=f"{name} of {self.manifest.name}",
            class_names=self.class_names if self.class_names != self.manifest.class_names else (),
        )

    def export_head(self, path: str | Path) -> None:
        """Write `live_head` as one safetensors document; `converter.load_head_into` takes it back to PyTorch.

        Raises:
            LearningError: It cannot be written; what was there stays.
        """
        self._open()
        try:
            with replace_file(Path(path)) as file:
                file.write(self.live_head().encode())
        except OSError as exc:
            raise LearningError(f"the head was not written to {path}: {exc.strerror}") from exc


def expert_weights(model: ServedModel) -> dict[str, list[float]]:
    """By expert, its share of the say, its accuracy on late labels, and how many labels that rests on."""
    mixture = model.learned.mixture
    rows = zip(
        mixture.names,
        model.learning.says(model.learned),
        mixture.accuracies(),
        mixture.labels - mixture.joined,
        strict=True,
    )
    return {name: [round(float(w), 4), round(float(a), 4), float(n)] for name, w, a, n in rows}


def head_digest(model: ServedModel) -> str:
    """SHA-256 of the parameters of the head with the most say, those of the manifest in its order first."""
    head = model.manifest.head
    assert head is not None
    found = model.learning.parameters(model.learned, model.learning.speaker(model.learned))
    own = [spec.name for spec in head.parameters]
    order = [*own, *sorted(found.keys() - set(own))]
    return sha256(b"".join(np.ascontiguousarray(found[name]).tobytes() for name in order))
