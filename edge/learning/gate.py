"""Whether another head may replace the live one, judged on recent labelled samples of this device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray
from edge.learning.learner import State, take
from edge.learning.packing import PackedFeatures
from edge.learning.solve import UNSEEN_LOGIT
from edge.learning.task import Scores, Targets, Task

# One-sided 95 % point of the normal distribution.
Z_95 = 1.645
# A merged head knows what other devices saw; it may cost this much on the little that one device saw lately.
TOLERATED_LOSS = 0.05
MIN_SAMPLES = 20

Outputs = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer: whether to accept, and the numbers it rests on, for people."""

    accepted: bool
    reason: str


def compare(gains: Scores, numbers: str) -> Verdict:
    """Judge a head by how much better than the live one it answers.

    Refuses when it is worse by more than `TOLERATED_LOSS` even at the favourable end of the 95 % confidence interval of
    the mean. With fewer than `MIN_SAMPLES` samples there is nothing to refuse on.

    Args:
        gains: ``(n,)``, see `Task.gains`.
        numbers: What was compared, for people.
    """
    n = len(gains)
    if n < MIN_SAMPLES:
        return Verdict(True, f"not judged: {n} recent labels, {MIN_SAMPLES} needed")
    upper = float(gains.mean()) + Z_95 * float(gains.std(ddof=1)) / math.sqrt(n)
    if upper < -TOLERATED_LOSS:
        return Verdict(False, f"worse: {numbers}")
    return Verdict(True, numbers)


class Judged(NamedTuple):
    """A labelled sample, and what was answered for it *before* it was learned.

    Attributes:
        features: One sample, packed.
        target: ``(1,)`` or ``(1, n_outputs)``.
        live: ``(n_outputs,)`` the live head's answer.
        shadows: ``(n_candidates, n_outputs)`` the answers of the heads in its shadow.
    """

    features: PackedFeatures
    target: Targets
    live: FloatArray
    shadows: FloatArray


class Reserve:
    """Labelled samples to judge heads on: the most recent ones, and the most recent ones of each class.

    A head that has learned a sample is not judged by what it says to it now, but by what it said before: that is kept.

    Args:
        shape: Shape of one sample's features.
        task: What the targets are.
        n_candidates: Heads in the shadow of the live one.
        recent: Most recent samples kept.
        per_class: Samples of each class kept.
    """

    def __init__(
        self, shape: tuple[int, ...], task: Task, n_candidates: int, recent: int = 64, per_class: int = 8
    ) -> None:
        self._shape = shape
        self._task = task
        self._n_candidates = n_candidates
        self._recent: deque[Judged] = deque(maxlen=recent)
        self._per_class = per_class
        self._classes: list[deque[tuple[PackedFeatures, Targets]]] = []
        self.grow(task.n_outputs)

    def __len__(self) -> int:
        return len(self._recent)

    def put(self, features: PackedFeatures, target: Targets, live: FloatArray, shadows: FloatArray) -> None:
        """Add one sample; arrays as in `Judged`."""
        # Copies: a view would keep a whole batch in memory, and change when its owner writes into it.
        kept = PackedFeatures(features.codes.copy(), features.scales.copy())
        self._recent.append(Judged(kept, target.copy(), live.copy(), shadows.copy()))
        self._classes[int(self._task.groups(target)[0])].append((kept, self._recent[-1].target))

    def forget_answers(self) -> None:
        """Keep the samples by class, and forget the recent ones: the answers to them were another head's."""
        self._recent.clear()

    def recent(self, count: int | None = None) -> tuple[FloatArray, Targets, FloatArray, FloatArray]:
        """The last samples, oldest first: features, targets, the live head's answers and the shadows'."""
        kept = list(self._recent)[-count:] if count else list(self._recent)
        features, targets = self._unpacked([(item.features, item.target) for item in kept])
        k = self._task.n_outputs
        live = np.array([item.live for item in kept], np.float32).reshape(-1, k)
        return (
            features,
            targets,
            live,
            np.array([i.shadows for i in kept], np.float32).reshape(-1, self._n_candidates, k),
        )

    def balanced(self) -> tuple[FloatArray, Targets]:
        """Features and targets of the most recent samples of each class."""
        return self._unpacked([item for kept in self._classes for item in kept])

    def _unpacked(self, kept: Sequence[tuple[PackedFeatures, Targets]]) -> tuple[FloatArray, Targets]:
        if not kept:
            empty = (
                np.zeros(0, np.int64) if self._task.is_classifier else np.zeros((0, self._task.n_outputs), np.float32)
            )
            return np.zeros((0, *self._shape), np.float32), empty
        codes = np.concatenate([packed.codes for packed, _ in kept])
        scales = np.concatenate([packed.scales for packed, _ in kept])
        return PackedFeatures(codes, scales).unpack(self._shape), np.concatenate([target for _, target in kept])

    def judge_offered(self, offered: Outputs) -> Verdict:
        """Whether an offered head, given as a function from features to outputs, may replace the live one."""
        features, targets, live, _ = self.recent()
        if not len(features):
            return compare(np.zeros(0), "")
        outputs = offered(features)
        if not np.isfinite(outputs).all():
            return Verdict(False, "the offered head gives values that are not finite")
        return compare(self._task.gains(live, outputs, targets), self._numbers(live, outputs, targets))

    def judge_live(self, before: Outputs) -> Verdict:
        """Whether the live head holds up against the one before it, on labels that came since it went live."""
        features, targets, live, _ = self.recent()
        if not len(features):
            return compare(np.zeros(0), "")
        outputs = before(features)
        return compare(self._task.gains(outputs, live, targets), self._numbers(outputs, live, targets))

    def _numbers(self, before: FloatArray, after: FloatArray, targets: Targets) -> str:
        n = len(targets)
        if self._task.is_regression:
            old, new = (float(self._task.losses(outputs, targets).mean()) for outputs in (before, after))
            return f"loss {new:.4g} against {old:.4g} on {n} recent labels"
        old, new = (float(self._task.right(outputs, targets).mean()) for outputs in (before, after))
        return f"accuracy {new:.3f} against {old:.3f} on {n} recent labels"

    def grow(self, n_classes: int) -> None:
        """Make room for further classes: no head had an answer for them."""
        self._task = Task(self._task.recipe, n_classes)
        while len(self._classes) < self._task.n_groups:
            self._classes.append(deque(maxlen=self._per_class))

        def wider(outputs: FloatArray) -> FloatArray:
            more = n_classes - outputs.shape[-1]
            return np.concatenate([outputs, np.full((*outputs.shape[:-1], more), UNSEEN_LOGIT, np.float32)], axis=-1)

        kept = [item._replace(live=wider(item.live), shadows=wider(item.shadows)) for item in self._recent]
        self._recent = deque(kept, maxlen=self._recent.maxlen)

    def state(self) -> State:
        """Everything, for saving."""
        state: State = {}
        by_class = [item for kept in self._classes for item in kept]
        for name, kept in (("recent", [(item.features, item.target) for item in self._recent]), ("classes", by_class)):
            _, targets = self._unpacked(kept)
            empty = np.zeros((0, math.prod(self._shape)), np.int8)
            state[f"{name}.codes"] = np.concatenate([empty, *(packed.codes for packed, _ in kept)])
            state[f"{name}.scales"] = np.concatenate([np.zeros(0, np.float32), *(p.scales for p, _ in kept)])
            state[f"{name}.targets"] = targets
        _, _, state["live"], state["shadows"] = self.recent()
        return state

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take back what `state` gave.

        Raises:
            LearningError: It is not one of this head; nothing changed.
        """
        live, shadows = take(state, "live"), take(state, "shadows")
        k = self._task.n_outputs
        found: dict[str, list[tuple[PackedFeatures, Targets]]] = {}
        for name in ("recent", "classes"):
            codes, scales = take(state, f"{name}.codes"), take(state, f"{name}.scales")
            n = len(scales)
            if codes.shape != (n, math.prod(self._shape)) or codes.dtype != np.int8 or scales.dtype != np.float32:
                raise LearningError("the saved reserve is of another head")
            targets = self._task.check(take(state, f"{name}.targets"), n)
            found[name] = [
                (PackedFeatures(codes[i : i + 1].copy(), scales[i : i + 1].copy()), targets[i : i + 1].copy())
                for i in range(n)
            ]
        n = len(found["recent"])
        if live.shape != (n, k) or shadows.shape != (n, self._n_candidates, k):
            raise LearningError("the saved reserve is of another head")
        self._recent.clear()
        for (features, target), answer, others in zip(found["recent"], live, shadows, strict=True):
            self._recent.append(Judged(features, target, answer.copy(), others.copy()))
        for kept in self._classes:
            kept.clear()
        for features, target in found["classes"]:
            self._classes[int(self._task.groups(target)[0])].append((features, target))
