"""How right a model is on labelled samples, beside the head as it was shipped; what can be asked without a head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge.agent.model import answers
from edge.agent.model.answering import occluded
from edge.agent.model.learning_model import labels_of, numbered
from edge.agent.model.serving import Given
from edge.contract.errors import LearningError
from edge.contract.manifest import OutputKind
from edge.contract.recipe import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, MEAN_SQUARED_ERROR, TrainingRecipe
from edge.contract.training import FloatArray
from edge.inference.session import Arrays
from edge.learning.calibration import probabilities
from edge.learning.explain import Explanation
from edge.learning.task import Scores, Targets, Task

if TYPE_CHECKING:
    from edge.agent.model.served_model import ServedModel

_LOSSES = {
    answers.CLASSES: CROSS_ENTROPY,
    answers.YES_OR_NO: BINARY_CROSS_ENTROPY,
    answers.QUANTITIES: MEAN_SQUARED_ERROR,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What came out.

    Attributes:
        samples: How many.
        accuracy: Share of right answers (of several yes-or-no answers, of all of them); None for quantities.
        loss: Mean, as the recipe of the head defines it.
        shipped_accuracy: The same of the head as shipped.
        shipped_loss: The same of the head as shipped.
        per_class: By name of class (or its number), accuracy on its samples; of classes only.
    """

    samples: int
    accuracy: float | None
    loss: float
    shipped_accuracy: float | None
    shipped_loss: float
    per_class: Mapping[str, float]

    @property
    def gain(self) -> float:
        """A ratio, not points: of the accuracy ``(new - old) / old``, for quantities of the loss ``(old - new) / old``.

        Old is the head as shipped: 0.5 of 0.6 and then 0.9, -0.1 of 0.6 and then 0.54. 0 for two zeros, else infinite
        where old is 0.
        """
        if self.accuracy is not None and self.shipped_accuracy is not None:
            return _ratio(self.accuracy - self.shipped_accuracy, self.shipped_accuracy)
        return _ratio(self.shipped_loss - self.loss, self.shipped_loss)

    def __str__(self) -> str:
        """For people: what it is now, what the head as shipped is, and what the gain is a ratio of."""
        if self.accuracy is not None and self.shipped_accuracy is not None:
            what, now, before, text = "accuracy", self.accuracy, self.shipped_accuracy, "(new - old) / old"
        else:
            what, now, before, text = "loss", self.loss, self.shipped_loss, "(old - new) / old"
        return f"{what} {now:.4f}, as shipped {before:.4f}: gain {self.gain:+.1%}, {text}; {self.samples} samples"


def _ratio(change: float, old: float) -> float:
    if old:
        return change / old
    return math.copysign(math.inf, change) if change else 0.0


def evaluated(model: ServedModel, x: Given, y: Any) -> Evaluation:
    """Answer samples ``(n, *input)`` and compare with labels ``(n,)`` or targets ``(n, n_outputs)``; see `Evaluation`.

    Raises:
        LearningError: They do not fit, or there are none.
    """
    if not model.learns:
        return _as_shipped(model, x, y)
    task, shipped_task = model.task, model.learning.shipped_task
    inputs = model.serving.many(x)
    count = model.serving.count(inputs) or 1
    targets = task.check(labels_of(y, task, model.class_names), count)
    features = model.answering.features_in_parts(inputs)
    outputs, shipped = model.answer(features), model.learning.shipped_answer(features)
    more = task.n_outputs - shipped_task.n_outputs
    shipped = np.pad(shipped, ((0, 0), (0, more)), constant_values=shipped.min()) if more else shipped
    right = task.right(outputs, targets)
    per_class = _by_class(right, targets, model.class_names) if task.is_classifier else {}
    return Evaluation(
        samples=count,
        accuracy=None if task.is_regression else float(right.mean()),
        loss=float(task.losses(outputs, targets).mean()),
        shipped_accuracy=None if task.is_regression else float(task.right(shipped, targets).mean()),
        shipped_loss=float(task.losses(shipped, targets).mean()),
        per_class=per_class,
    )


def _by_class(right: Scores, targets: Targets, names: Sequence[str]) -> dict[str, float]:
    return {
        names[c] if c < len(names) else str(c): float(right[targets == c].mean()) for c in sorted(set(targets.tolist()))
    }


def _as_shipped(model: ServedModel, x: Given, y: Any) -> Evaluation:
    """Of a bundle without a head: the answers are those of the bundle, old and new are one."""
    kind, task = _kind_and_task(model, "evaluate")
    inputs = model.serving.many(x)
    count = model.serving.count(inputs) or 1
    targets = task.check(labels_of(y, task, model.class_names), count)
    outputs = _logits(model.outputs(x)[model.answer_name], kind)
    right, loss = task.right(outputs, targets), float(task.losses(outputs, targets).mean())
    accuracy = None if task.is_regression else float(right.mean())
    per_class = _by_class(right, targets, model.class_names) if task.is_classifier else {}
    return Evaluation(
        samples=count,
        accuracy=accuracy,
        loss=loss,
        shipped_accuracy=accuracy,
        shipped_loss=loss,
        per_class=per_class,
    )


def _kind_and_task(model: ServedModel, what: str) -> tuple[OutputKind, Task]:
    """What the output for people is, and what would be right there.

    Raises:
        LearningError: No label of one class, yes or no, or quantities can say that.
    """
    spec, kind = model.manifest.output(model.answer_name), answers.kinds_of(model.manifest)[model.answer_name]
    loss = _LOSSES.get(kind.kind)
    sizes = spec.shape[1:] if spec.batch_axis == 0 else ()
    if loss is None or len(sizes) != 1 or not isinstance(sizes[0], int) or not spec.dtype.startswith("float"):
        raise LearningError(
            f"{what}: the output {spec.name} of this bundle ({kind.kind}, {spec.dtype} {list(spec.shape)}) is not a "
            f"row of classes, of yes or no, or of quantities: use predict and compare yourself"
        )
    return kind, Task(TrainingRecipe(loss=loss), sizes[0])


def _logits(outputs: npt.NDArray[Any], kind: OutputKind) -> FloatArray:
    """Outputs ``(n, n_outputs)`` so that their softmax, or logistic function, is what the model says."""
    found = outputs.astype(np.float64)
    if kind.kind == answers.CLASSES and kind.probabilities:
        found = np.log(np.maximum(found, 1e-30))
    elif kind.kind == answers.YES_OR_NO and kind.probabilities:
        likely = np.clip(found, 1e-15, 1.0 - 1e-15)
        middle = min(max(kind.threshold, 1e-15), 1.0 - 1e-15)
        found = np.log(likely / (1.0 - likely)) - math.log(middle / (1.0 - middle))
    elif kind.kind == answers.YES_OR_NO:
        found -= kind.threshold
    return found.astype(np.float32)


def explained(
    model: ServedModel, x: Given, output: int | str | None, *, on: str = "input", window: int | None = None
) -> Explanation:
    """Which regions of an input mattered for an answer of a bundle without a head.

    Args:
        model: Of it.
        x: One sample, see `edge.agent.model.answering.Answering.explain`.
        output: Class or output to explain, by number or name; the class that is answered, or the first, when None.
        on: ``input``, or of several inputs the name of one.
        window: Side of the window that covers.

    Raises:
        LearningError: There is nothing to explain, no such output or input, or the sample or window does not fit.
    """
    kind, task = _kind_and_task(model, "explain")
    if on == "features":
        raise LearningError(
            "on 'features': this bundle has no trainable head, and so no features that it takes; use input"
        )

    def scores(inputs: Arrays) -> npt.NDArray[np.float64]:
        with np.errstate(all="ignore"):  # what is not finite is an error of its own
            return probabilities(_logits(model.serving.run(inputs)[model.answer_name], kind), 1.0, task)

    if isinstance(output, str):
        output = int(numbered(output, model.class_names, "output"))
    return occluded(model.serving, x, scores, task, output, on=on, window=window)
