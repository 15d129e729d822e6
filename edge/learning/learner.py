"""What every learner can do, and the checks on labelled features that all of them share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray, Parameters
from edge.learning.compression import EXACT, Compression, Packed
from edge.learning.task import Targets, Task

State = dict[str, npt.NDArray[Any]]


class Learner(Protocol):
    """Turns labelled features into head parameters. Pure: the same calls give the same parameters.

    A learner is a machine around a *value*, a frozen dataclass that is all it knows. What it does makes a new value,
    and no array of an old one is ever written into; a batch that is refused leaves the value as it is. To go back, or
    on after a restart, is to load another value, and from there the very same digits come out. What is dear to make
    from a value (a factor, what a training step holds) the machine keeps for as long as that value is loaded.

    Attributes:
        kind: What it contributes to a merge: ``statistics`` or ``delta``, or nothing.
    """

    kind: str

    @property
    def n_samples(self) -> int:
        """Labelled samples learned since the beginning; survives `rebase`."""
        ...

    @property
    def n_contributed(self) -> int:
        """Labelled samples behind what `contribution` gives now."""
        ...

    def learn_many(
        self, features: FloatArray, targets: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
    ) -> None:
        """Learn; a batch that is refused changes nothing.

        Args:
            features: ``(batch, *features)``.
            targets: ``(batch,)`` classes, or ``(batch, n_outputs)``.
            weights: ``(batch,)`` from 0 to 1, how much each label is trusted; None for 1.

        Raises:
            LearningError: Not finite, of another shape, or a target out of range.
        """
        ...

    def learn_together(self, features: FloatArray, targets: Targets, weights: FloatArray) -> None:
        """Learn a few samples that need not be learned one after another, each with all that came before it.

        That is faster, and the same as `learn_many` where the order does not matter. They are as `check_batch` gives
        them, one or more. A batch that is refused changes nothing.

        Raises:
            LearningError: As `learn_many`.
        """
        ...

    def parameters(self) -> Parameters:
        """The head as it is now."""
        ...

    def distrust_the_past(self, features: FloatArray, targets: Targets) -> None:
        """The world has changed: let what was learned before count little against what comes now.

        Args:
            features: ``(batch, *features)`` that were learned since it changed.
            targets: Theirs.
        """
        ...

    def grow(self, n_classes: int) -> None:
        """Make room for further classes, of which there are no samples yet; they are never answered."""
        ...

    def contribution(self, compression: Compression = EXACT) -> Packed:
        """What this device learned, to be merged with others; as it arrives it is remembered as version `n_samples`.

        The same version again is what was remembered, however it is to be sent: a merge names no more than a version.
        """
        ...

    def rebase(self, parameters: Mapping[str, FloatArray], merged: State, included: int) -> None:
        """Go on from a merged head.

        Args:
            parameters: The merged head.
            merged: What else came with it (statistics, for the learner that uses them).
            included: The version of this device's own contribution that is already in the merge; 0 for none.
        """
        ...

    def of_others(self) -> tuple[Parameters, npt.NDArray[np.float64]] | None:
        """What is left of the last merge without what this device contributed to it; None where nobody can tell.

        What a merge says to samples that are in it is no evidence for it; what the others say to them is.

        Returns:
            A head, and how many samples ``(n_outputs,)`` of each class it is made of, shipped ones among them.
        """
        ...

    @property
    def value(self) -> Any:
        """All that is known: a frozen dataclass, for `edge.learning.tree`."""
        ...

    def load(self, value: Any) -> None:
        """Know what a value says, also one with more or fewer classes. The one that is there already costs nothing.

        Raises:
            LearningError: It is not of such a learner; nothing changed.
        """
        ...

    def template(self, n_outputs: int) -> Any:
        """A value to compare with, for `edge.learning.tree.build`, of a head with so many outputs."""
        ...


# A sum of 1e8 squares of such features still fits float32, as which statistics are sent.
MAX_FEATURE = 1e15


def check_batch(
    features: npt.NDArray[Any],
    targets: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None,
    shape: tuple[int, ...],
    task: Task,
) -> tuple[FloatArray, Targets, FloatArray]:
    """Features, targets and weights as learners take them, or a LearningError that says what is wrong with them."""
    features = np.asarray(features)
    if features.ndim != len(shape) + 1 or features.shape[1:] != shape:
        raise LearningError(f"expected features of shape (batch, {', '.join(map(str, shape))}), got {features.shape}")
    targets = task.check(targets, len(features))
    largest = float(np.abs(features).max(initial=0)) if features.dtype.kind in "fiub" else math.nan
    if not math.isfinite(largest):
        raise LearningError("features with values that are not finite numbers were refused")
    if largest > MAX_FEATURE:
        raise LearningError(f"features beyond {MAX_FEATURE:g} were refused")
    weights = np.ones(len(features), np.float32) if weights is None else np.asarray(weights)
    if weights.shape != (len(features),) or weights.dtype.kind not in "fiub":
        raise LearningError(f"expected {len(features)} weights, got {weights.dtype} of shape {weights.shape}")
    if weights.size and not (weights.min() >= 0 and weights.max() <= 1):  # False for NaN
        raise LearningError("weights must lie in 0..1")
    return features.astype(np.float32, copy=False), targets, weights.astype(np.float32, copy=False)


def part(state: Mapping[str, npt.NDArray[Any]], prefix: str) -> State:
    """The arrays whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
