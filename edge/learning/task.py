"""What a head is asked for: classes, several yes-or-no answers, or quantities; and how its answers are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.recipe import BINARY_CROSS_ENTROPY, HUBER, TrainingRecipe
from edge.contract.training import FloatArray

# Targets as they are kept: ``(n,)`` int64 classes, or ``(n, n_outputs)`` float32.
Targets = npt.NDArray[Any]
Scores = npt.NDArray[np.float64]


def log_softmax(logits: npt.NDArray[Any]) -> Scores:
    """Logarithm of the softmax along the last axis, without overflow."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalized: Scores = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalized


@dataclass(frozen=True, slots=True)
class Task:
    """One head's task.

    Attributes:
        recipe: Its loss.
        n_outputs: Length of its output.
    """

    recipe: TrainingRecipe
    n_outputs: int

    @property
    def is_classifier(self) -> bool:
        """Whether a target is one class out of several."""
        return self.recipe.is_classifier

    @property
    def is_regression(self) -> bool:
        """Whether the outputs are quantities."""
        return self.recipe.is_regression

    @property
    def n_groups(self) -> int:
        """Into how many groups samples are sorted where each shall be kept: the classes, or one."""
        return self.n_outputs if self.is_classifier else 1

    def groups(self, targets: Targets) -> npt.NDArray[np.int64]:
        """``(n,)`` the group of each sample."""
        return targets if self.is_classifier else np.zeros(len(targets), np.int64)

    def check(self, targets: npt.NDArray[Any], count: int) -> Targets:
        """Targets for so many samples as they are kept.

        Raises:
            LearningError: Of another shape or type, out of range, or not finite.
        """
        targets = np.asarray(targets)
        if self.is_classifier:
            if targets.shape != (count,) or targets.dtype.kind not in "iu":
                raise LearningError(
                    f"expected {count} integer labels (or names of classes), got {_described(targets, (count,))}"
                )
            if count and not (targets.min() >= 0 and targets.max() < self.n_outputs):
                raise LearningError(f"labels must lie in 0..{self.n_outputs - 1}, got {targets.min()}..{targets.max()}")
            return targets.astype(np.int64, copy=False)
        if targets.ndim == 1 and self.n_outputs == 1:
            targets = targets[:, None]
        if targets.shape != (count, self.n_outputs) or targets.dtype.kind not in "fiub":
            got = _described(targets, (count, self.n_outputs))
            raise LearningError(f"expected {count} targets of {self.n_outputs} numbers, got {got}")
        # False for NaN.
        limit = 1.0 if self.recipe.loss == BINARY_CROSS_ENTROPY else 1e15
        low = 0.0 if self.recipe.loss == BINARY_CROSS_ENTROPY else -limit
        if targets.size and not ((targets >= low) & (targets <= limit)).all():
            raise LearningError(f"targets must lie in {low:g}..{limit:g}")
        return targets.astype(np.float32, copy=False)

    def matrix(self, targets: Targets) -> FloatArray:
        """``(n, n_outputs)`` float32: one-hot rows for classes."""
        if not self.is_classifier:
            return targets.astype(np.float32, copy=False)
        one_hot = np.zeros((len(targets), self.n_outputs), np.float32)
        one_hot[np.arange(len(targets)), targets] = 1.0
        return one_hot

    def losses(self, outputs: npt.NDArray[Any], targets: Targets) -> Scores:
        """``(n,)`` losses as the recipe defines them."""
        z = outputs.astype(np.float64)
        if self.is_classifier:
            z -= z.max(axis=1, keepdims=True)
            told = z[np.arange(len(z)), targets]
            return np.asarray(np.log(np.add.reduce(np.exp(z, out=z), axis=1)) - told)
        if self.recipe.loss == BINARY_CROSS_ENTROPY:
            found = np.logaddexp(0.0, z) - targets * z
        elif self.recipe.loss == HUBER:
            error, delta = np.abs(z - targets), self.recipe.huber_delta
            found = np.where(error <= delta, np.square(error) / 2, delta * (error - delta / 2))
        else:
            found = np.square(z - targets)
        return np.asarray(found.mean(axis=1))

    def right(self, outputs: npt.NDArray[Any], targets: Targets) -> Scores:
        """``(n,)`` 1 for a right answer and 0 for a wrong one; of several yes-or-no answers, the share that is right.

        A quantity is not right or wrong: there it is 0 throughout, and `losses` tell.
        """
        if self.is_classifier:
            return np.asarray(outputs.argmax(axis=1) == targets, np.float64)
        if self.recipe.loss == BINARY_CROSS_ENTROPY:
            return np.asarray(((outputs > 0) == (targets > 0.5)).mean(axis=1))
        return np.zeros(len(targets))

    def gains(self, before: npt.NDArray[Any], after: npt.NDArray[Any], targets: Targets) -> Scores:
        """How much better `after` answers than `before`, sample by sample, from -1 to 1.

        For classes the difference of `right`; for quantities ``(l - m) / (l + m)`` with their losses l and m. What is
        not finite counts as wrong.
        """
        lost_before, lost_after = ~np.isfinite(before).all(axis=1), ~np.isfinite(after).all(axis=1)
        with np.errstate(all="ignore"):
            if self.is_regression:
                old, new = self.losses(before, targets), self.losses(after, targets)
                found = np.where(old + new > 0, (old - new) / np.maximum(old + new, 1e-30), 0.0)
            else:
                found = self.right(after, targets) * ~lost_after - self.right(before, targets) * ~lost_before
                return np.asarray(found)
        worse = lost_before.astype(np.float64) - lost_after
        return np.where(lost_before | lost_after, worse, found)


def _described(targets: npt.NDArray[Any], wanted: tuple[int, ...]) -> str:
    """What came instead of targets of a shape; where only their first axis is missing, how they get it."""
    kind = {"U": "texts", "O": "what is no number"}.get(targets.dtype.kind, str(targets.dtype))
    found = f"{kind} of shape {targets.shape}"
    return f"{found}; y[None] has the axis that is missing" if (1, *targets.shape) == wanted else found
