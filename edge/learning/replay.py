"""A class-balanced replay buffer of packed features: it keeps SGD from forgetting classes it has not met lately."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray, LabelArray
from edge.learning.learner import State, take
from edge.learning.packing import PackedFeatures, pack


class ReplayBuffer:
    """Keeps up to `per_class` samples of each class, each a fair draw from all seen of that class.

    Reservoir sampling (Vitter 1985, algorithm R), one reservoir per class: memory is fixed at
    ``n_classes * per_class * (n_features + 4)`` bytes.

    Args:
        shape: Shape of one sample's features.
        n_classes: Number of classes.
        per_class: Places per class; 0 keeps nothing.
    """

    def __init__(self, shape: tuple[int, ...], n_classes: int, per_class: int) -> None:
        self._shape = shape
        self._codes = np.zeros((n_classes, per_class, int(np.prod(shape))), np.int8)
        self._scales = np.zeros((n_classes, per_class), np.float32)
        self._seen = np.zeros(n_classes, np.int64)

    def __len__(self) -> int:
        return int(np.minimum(self._seen, self._scales.shape[1]).sum())

    def put(self, features: FloatArray, labels: LabelArray, rng: np.random.Generator) -> None:
        """Offer samples to the reservoirs."""
        packed = pack(features)
        places = self._scales.shape[1]
        for i, label in enumerate(labels):
            place = int(self._seen[label])
            self._seen[label] += 1
            if place >= places:
                place = int(rng.integers(0, place + 1))
            if place < places:
                self._codes[label, place] = packed.codes[i]
                self._scales[label, place] = packed.scales[i]

    def draw(self, count: int, rng: np.random.Generator) -> tuple[FloatArray, LabelArray]:
        """Draw up to `count` kept samples, classes equally often, with replacement."""
        kept = np.minimum(self._seen, self._scales.shape[1])
        classes = np.flatnonzero(kept)
        if len(classes) == 0 or count == 0:
            return np.zeros((0, *self._shape), np.float32), np.zeros(0, np.int64)
        labels = rng.choice(classes, count).astype(np.int64)
        places = (rng.random(count) * kept[labels]).astype(np.int64)
        packed = PackedFeatures(self._codes[labels, places], self._scales[labels, places])
        return packed.unpack(self._shape), labels

    def state(self) -> State:
        """Everything, for saving."""
        parts: State = {"codes": self._codes, "scales": self._scales, "seen": self._seen}
        return {f"replay.{name}": array.copy() for name, array in parts.items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take back what `state` gave; a buffer of another size starts empty.

        Raises:
            LearningError: It is not a state of a replay buffer; nothing changed.
        """
        codes, scales, seen = (take(state, f"replay.{name}") for name in ("codes", "scales", "seen"))
        types = [array.dtype.name for array in (codes, scales, seen)]
        shapes_fit = codes.ndim == 3 and codes.shape[:2] == scales.shape and codes.shape[:1] == seen.shape
        if types != ["int8", "float32", "int64"] or not shapes_fit:
            raise LearningError("the saved replay buffer is not one")
        if (seen < 0).any():
            raise LearningError("the saved replay buffer has seen a negative number of samples")
        if codes.shape == self._codes.shape:
            self._codes, self._scales, self._seen = codes.copy(), scales.copy(), seen.copy()
        else:
            self._seen = np.zeros_like(self._seen)
