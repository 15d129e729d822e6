"""A class-balanced replay buffer of packed features: it keeps SGD from forgetting classes it has not met lately."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray
from edge.learning.learner import State, take
from edge.learning.packing import PackedFeatures, pack
from edge.learning.task import Targets, Task

# Places for quantities, where there is one group and not one for each class.
GROUPS_OF_QUANTITIES = 10


class ReplayBuffer:
    """Keeps up to `per_class` samples of each class, each a fair draw from all seen of that class.

    Reservoir sampling (Vitter 1985, algorithm R), one reservoir per class: memory is fixed at
    ``n_classes * per_class * (n_features + 4)`` bytes. Quantities share one reservoir of ten times the places, and
    their targets are kept as well.

    Args:
        shape: Shape of one sample's features.
        task: What the targets are.
        per_class: Places per class; 0 keeps nothing.
    """

    def __init__(self, shape: tuple[int, ...], task: Task, per_class: int) -> None:
        self._shape = shape
        self._task = task
        places = per_class if task.is_classifier else per_class * GROUPS_OF_QUANTITIES
        self._codes = np.zeros((task.n_groups, places, int(np.prod(shape))), np.int8)
        self._scales = np.zeros((task.n_groups, places), np.float32)
        width = 0 if task.is_classifier else task.n_outputs
        self._targets = np.zeros((task.n_groups, places, width), np.float32)
        self._seen = np.zeros(task.n_groups, np.int64)

    def __len__(self) -> int:
        return int(np.minimum(self._seen, self._scales.shape[1]).sum())

    def put(self, features: FloatArray, targets: Targets, rng: np.random.Generator) -> None:
        """Offer samples to the reservoirs."""
        packed = pack(features)
        places = self._scales.shape[1]
        for i, group in enumerate(self._task.groups(targets)):
            place = int(self._seen[group])
            self._seen[group] += 1
            if place >= places:
                place = int(rng.integers(0, place + 1))
            if place < places:
                self._codes[group, place] = packed.codes[i]
                self._scales[group, place] = packed.scales[i]
                if not self._task.is_classifier:
                    self._targets[group, place] = targets[i]

    def draw(self, count: int, rng: np.random.Generator) -> tuple[FloatArray, Targets]:
        """Draw up to `count` kept samples, classes equally often, with replacement."""
        kept = np.minimum(self._seen, self._scales.shape[1])
        groups = np.flatnonzero(kept)
        if len(groups) == 0:
            count = 0
            groups = np.zeros(1, np.int64)
        drawn = groups[rng.integers(0, len(groups), count)].astype(np.int64)
        places = (rng.random(count) * kept[drawn]).astype(np.int64)
        features = PackedFeatures(self._codes[drawn, places], self._scales[drawn, places]).unpack(self._shape)
        return features, drawn if self._task.is_classifier else self._targets[drawn, places]

    def everything(self) -> tuple[FloatArray, Targets]:
        """All kept samples, class by class."""
        kept = np.minimum(self._seen, self._scales.shape[1])
        groups = np.repeat(np.arange(len(kept)), kept)
        places = np.concatenate([np.arange(n) for n in kept]) if len(groups) else np.zeros(0, np.int64)
        features = PackedFeatures(self._codes[groups, places], self._scales[groups, places]).unpack(self._shape)
        return features, groups if self._task.is_classifier else self._targets[groups, places]

    def clear(self) -> None:
        """Forget all samples."""
        self._seen[:] = 0

    def grow(self, n_classes: int) -> None:
        """Make room for further classes."""
        more = n_classes - len(self._seen)
        self._task = Task(self._task.recipe, n_classes)

        def wider(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.concatenate([array, np.zeros((more, *array.shape[1:]), array.dtype)])

        self._codes, self._scales, self._seen = wider(self._codes), wider(self._scales), wider(self._seen)
        self._targets = wider(self._targets)

    def _parts(self) -> State:
        return {"codes": self._codes, "scales": self._scales, "targets": self._targets, "seen": self._seen}

    def state(self) -> State:
        """Everything, for saving."""
        return {f"replay.{name}": array.copy() for name, array in self._parts().items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take back what `state` gave; a buffer of another size starts empty.

        Raises:
            LearningError: It is not a state of a replay buffer; nothing changed.
        """
        parts = {name: take(state, f"replay.{name}") for name in self._parts()}
        codes, scales, seen = parts["codes"], parts["scales"], parts["seen"]
        shapes_fit = codes.ndim == 3 and codes.shape[:2] == scales.shape and codes.shape[:1] == seen.shape
        shapes_fit &= parts["targets"].ndim == 3 and parts["targets"].shape[:2] == scales.shape
        if not shapes_fit or any(parts[name].dtype != array.dtype for name, array in self._parts().items()):
            raise LearningError("the saved replay buffer is not one")
        if (seen < 0).any():
            raise LearningError("the saved replay buffer has seen a negative number of samples")
        if all(parts[name].shape == array.shape for name, array in self._parts().items()):
            self._codes, self._scales, self._seen = codes.copy(), scales.copy(), seen.copy()
            self._targets = parts["targets"].copy()
        else:
            self._seen = np.zeros_like(self._seen)
