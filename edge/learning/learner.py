"""What every learner can do, and the checks on labelled features that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray, LabelArray, Parameters

State = dict[str, npt.NDArray[Any]]


class Learner(Protocol):
    """Turns labelled features into head parameters. Pure: the same calls give the same parameters.

    Attributes:
        kind: What it contributes to a merge: ``statistics`` or ``delta``.
        n_samples: Labelled samples learned since the beginning; survives `rebase`.
    """

    kind: str
    n_samples: int

    @property
    def n_contributed(self) -> int:
        """Labelled samples behind what `contribution` gives now."""
        ...

    def learn_many(self, features: FloatArray, labels: LabelArray) -> None:
        """Learn from ``(batch, *features)`` and ``(batch,)``; a batch that is refused changes nothing.

        Raises:
            LearningError: Not finite, of another shape, or a label out of range.
        """
        ...

    def parameters(self) -> Parameters:
        """The head as it is now."""
        ...

    def contribution(self) -> State:
        """What this device learned, to be merged with others; remembered as version `n_samples`."""
        ...

    def rebase(self, parameters: Mapping[str, FloatArray], merged: State, included: int) -> None:
        """Go on from a merged head.

        Args:
            parameters: The merged head.
            merged: What else came with it (statistics, for the learner that uses them).
            included: The version of this device's own contribution that is already in the merge; 0 for none.
        """
        ...

    def state(self) -> State:
        """Everything needed to go on after a restart."""
        ...

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what `state` gave.

        Raises:
            LearningError: It is not a state of this learner.
        """
        ...


# A sum of 1e8 squares of such features still fits float32, as which statistics are sent.
MAX_FEATURE = 1e15


def check_batch(
    features: npt.NDArray[Any], labels: npt.NDArray[Any], shape: tuple[int, ...], n_classes: int
) -> tuple[FloatArray, LabelArray]:
    """Features as float32 and labels as int64, or a LearningError that says what is wrong with them."""
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != len(shape) + 1 or features.shape[1:] != shape:
        raise LearningError(f"expected features of shape (batch, {', '.join(map(str, shape))}), got {features.shape}")
    if labels.shape != (len(features),) or labels.dtype.kind not in "iu":
        raise LearningError(f"expected {len(features)} integer labels, got {labels.dtype} of shape {labels.shape}")
    if features.dtype.kind not in "fiub" or not np.isfinite(features).all():
        raise LearningError("features with values that are not finite numbers were refused")
    if features.size and np.abs(features).max() > MAX_FEATURE:
        raise LearningError(f"features beyond {MAX_FEATURE:g} were refused")
    if len(labels) and not (labels.min() >= 0 and labels.max() < n_classes):
        raise LearningError(f"labels must lie in 0..{n_classes - 1}, got {labels.min()}..{labels.max()}")
    return features.astype(np.float32, copy=False), labels.astype(np.int64, copy=False)


def take(state: Mapping[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    """An array of a saved state."""
    if name not in state:
        raise LearningError(f"the saved state has no {name}; it belongs to another learner")
    return state[name]


def take_integers(state: Mapping[str, npt.NDArray[Any]], name: str, length: int | None = None) -> list[int]:
    """A list of numbers from zero up of a saved state."""
    found = take(state, name)
    if found.ndim != 1 or found.dtype.kind not in "iu" or (found < 0).any() or length not in (None, len(found)):
        raise LearningError(f"the saved state's {name} are not {length or 'a list of'} numbers from zero up")
    return [int(number) for number in found]
