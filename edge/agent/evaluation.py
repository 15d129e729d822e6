"""How right a model is on labelled samples, beside the head as it was shipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.agent.learning_model import numbered
from edge.agent.serving import Given

if TYPE_CHECKING:
    from edge.agent.on_device_model import OnDeviceModel


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


def evaluated(model: OnDeviceModel, x: Given, y: Any) -> Evaluation:
    """Answer samples ``(n, *input)`` and compare with labels ``(n,)`` or targets ``(n, n_outputs)``; see `Evaluation`.

    Raises:
        LearningError: They do not fit, or there are none.
    """
    task, shipped_task = model.task, model.learning.shipped_task
    inputs = model.serving.many(x)
    count = model.serving.count(inputs) or 1
    targets = task.check(numbered(y, model.class_names), count)
    features = model.answering.features_in_parts(inputs)
    outputs, shipped = model.answer(features), model.learning.shipped_answer(features)
    more = task.n_outputs - shipped_task.n_outputs
    shipped = np.pad(shipped, ((0, 0), (0, more)), constant_values=shipped.min()) if more else shipped
    per_class: dict[str, float] = {}
    right = task.right(outputs, targets)
    if task.is_classifier:
        names = model.class_names or tuple(map(str, range(task.n_outputs)))
        per_class = {names[c]: float(right[targets == c].mean()) for c in np.unique(targets)}
    return Evaluation(
        samples=count,
        accuracy=None if task.is_regression else float(right.mean()),
        loss=float(task.losses(outputs, targets).mean()),
        shipped_accuracy=None if task.is_regression else float(task.right(shipped, targets).mean()),
        shipped_loss=float(task.losses(shipped, targets).mean()),
        per_class=per_class,
    )
