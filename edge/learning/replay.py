"""A class-balanced replay buffer of packed features: it keeps SGD from forgetting classes it has not met lately."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray
from edge.learning.draws import Draws
from edge.learning.packing import PackedFeatures, pack
from edge.learning.task import Targets, Task

# Places for quantities, where there is one group and not one for each class.
GROUPS_OF_QUANTITIES = 10


@dataclass(frozen=True, eq=False, slots=True)
class ReplayBuffer:
    """Keeps up to so many samples of each class, each a fair draw from all seen of that class.

    Reservoir sampling (Vitter 1985, algorithm R), one reservoir per class: memory is fixed at
    ``n_classes * per_class * (n_features + 4)`` bytes. Quantities share one reservoir of ten times the places, and
    their targets are kept as well. No array is ever written into: a sample that is kept costs a copy of its class's.

    Attributes:
        seen: ``(groups,)`` int64 samples that were offered.
        codes: For each group ``(places, n_features)`` int8, packed features.
        scales: ``(groups, places)`` float32, theirs.
        targets: ``(groups, places, n_outputs)`` float32; of classes ``(groups, places, 0)``.
    """

    seen: npt.NDArray[np.int64]
    codes: tuple[npt.NDArray[np.int8], ...]
    scales: npt.NDArray[np.float32]
    targets: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if len(self.codes) != len(self.seen) or (self.seen < 0).any():
            raise LearningError("what is kept for replay does not fit the samples that were seen")

    @classmethod
    def empty(cls, shape: tuple[int, ...], task: Task, per_class: int) -> ReplayBuffer:
        """A buffer without samples.

        Args:
            shape: Shape of one sample's features.
            task: What the targets are.
            per_class: Places per class; 0 keeps nothing.
        """
        places = per_class if task.is_classifier else per_class * GROUPS_OF_QUANTITIES
        width = 0 if task.is_classifier else task.n_outputs
        return cls(
            np.zeros(task.n_groups, np.int64),
            (np.zeros((places, math.prod(shape)), np.int8),) * task.n_groups,
            np.zeros((task.n_groups, places), np.float32),
            np.zeros((task.n_groups, places, width), np.float32),
        )

    def fits(self, other: ReplayBuffer) -> bool:
        """Whether it has as many groups, places, features and targets as another one."""
        return self._shapes == other._shapes

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        return [self.seen.shape, self.scales.shape, self.targets.shape, *(codes.shape for codes in self.codes)]

    @property
    def _kept(self) -> npt.NDArray[np.int64]:
        """``(groups,)`` samples that are there."""
        return np.minimum(self.seen, self.scales.shape[1])

    @property
    def _is_of_classes(self) -> bool:
        return bool(self.targets.shape[2] == 0)

    def __len__(self) -> int:
        return int(self._kept.sum())

    def put(self, features: FloatArray, targets: Targets, draws: Draws) -> ReplayBuffer:
        """The buffer when samples were offered to the reservoirs.

        Args:
            features: ``(batch, ...)``.
            targets: ``(batch,)`` classes or ``(batch, n_outputs)`` quantities.
            draws: Decide who makes room.
        """
        packed, places = pack(features), self.scales.shape[1]
        seen, scales, kept_targets = self.seen.copy(), self.scales, self.targets
        codes: dict[int, npt.NDArray[np.int8]] = {}
        for i, group in enumerate(targets.tolist() if self._is_of_classes else [0] * len(features)):
            place = int(seen[group])
            seen[group] += 1
            if place >= places:
                place = draws.below(place + 1)
            if place >= places:
                continue
            if not codes:
                scales, kept_targets = scales.copy(), kept_targets.copy()
            if group not in codes:
                codes[group] = self.codes[group].copy()
            codes[group][place] = packed.codes[i]
            scales[group, place] = packed.scales[i]
            if not self._is_of_classes:
                kept_targets[group, place] = targets[i]
        every = list(self.codes)
        for group, array in codes.items():
            every[group] = array
        return ReplayBuffer(seen, tuple(every), scales, kept_targets)

    def offered(self, features: FloatArray, targets: Targets, trusts: FloatArray, draws: Draws) -> ReplayBuffer:
        """As `put`; a sample that is trusted by a half is offered half as often: the buffer has no weights.

        Args:
            features: ``(batch, ...)``.
            targets: ``(batch,)`` classes or ``(batch, n_outputs)`` quantities.
            trusts: ``(batch,)`` from 0 to 1.
            draws: Decide.
        """
        kept = trusts >= 1
        if not kept.all():
            kept |= draws.shares(len(trusts)) < trusts
            if not kept.any():
                return self
            features, targets = features[kept], targets[kept]
        return self.put(features, targets, draws)

    def draw(self, count: int, shape: tuple[int, ...], draws: Draws) -> tuple[FloatArray, Targets]:
        """Draw up to `count` kept samples ``(count, *shape)``, classes equally often, with replacement."""
        kept = self._kept
        groups = np.flatnonzero(kept)
        if len(groups) == 0:
            count = 0
            groups = np.zeros(1, np.int64)
        drawn = groups[draws.all_below(len(groups), count)]
        return self._samples(drawn, (draws.shares(count) * kept[drawn]).astype(np.int64), shape)

    def everything(self, shape: tuple[int, ...], besides: ReplayBuffer | None = None) -> tuple[FloatArray, Targets]:
        """All kept samples, class by class.

        Args:
            shape: Shape of one sample's features.
            besides: What the buffer began with; of that, perhaps of fewer classes, nothing is given.
        """
        kept = self._kept
        groups = np.repeat(np.arange(len(kept)), kept)
        places = np.concatenate([np.arange(n) for n in kept]) if len(groups) else np.zeros(0, np.int64)
        if besides is not None and len(besides):
            pairs = zip(groups.tolist(), places.tolist(), strict=True)
            is_new = np.array([not self._has(besides, group, place) for group, place in pairs], bool)
            groups, places = groups[is_new], places[is_new]
        return self._samples(groups, places, shape)

    def _has(self, other: ReplayBuffer, group: int, place: int) -> bool:
        """Whether the sample at a place is at the same one in another buffer."""
        if group >= len(other.seen) or place >= other._kept[group]:
            return False
        is_same = self.scales[group, place] == other.scales[group, place]
        return bool(is_same and np.array_equal(self.codes[group][place], other.codes[group][place]))

    def newest(self, classes: npt.NDArray[np.int64], count: int, shape: tuple[int, ...]) -> tuple[FloatArray, Targets]:
        """Up to `count` kept samples of each of some classes: of the places that were filled last."""
        kept = self._kept[classes]
        chosen = np.minimum(kept, count)
        groups = np.repeat(classes, chosen)
        places = np.concatenate([np.zeros(0, np.int64), *map(np.arange, (kept - chosen).tolist(), kept.tolist())])
        return self._samples(groups, places, shape)

    def _samples(
        self, groups: npt.NDArray[np.int64], places: npt.NDArray[np.int64], shape: tuple[int, ...]
    ) -> tuple[FloatArray, Targets]:
        rows = [self.codes[group][place] for group, place in zip(groups.tolist(), places.tolist(), strict=True)]
        codes = np.concatenate([np.zeros(0, np.int8), *rows]).reshape(len(groups), math.prod(shape))
        features = PackedFeatures(codes, self.scales[groups, places]).unpack(shape)
        return features, groups if self._is_of_classes else self.targets[groups, places]

    def cleared(self) -> ReplayBuffer:
        """Without samples."""
        return replace(self, seen=np.zeros_like(self.seen))

    def grown(self, n_classes: int) -> ReplayBuffer:
        """With room for further classes."""
        more = n_classes - len(self.seen)

        def wider(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.concatenate([array, np.zeros((more, *array.shape[1:]), array.dtype)])

        nothing = np.zeros_like(self.codes[0])
        return ReplayBuffer(
            wider(self.seen), (*self.codes, *(nothing,) * more), wider(self.scales), wider(self.targets)
        )
