"""How far known samples lie from all classes: what devices say "none of these" by before they have labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.manifest import DISTANCES
from edge.contract.projection import Projection
from edge.learning.novelty import Distances
from edge.learning.statistics import HeadStatistics

Tensors = dict[str, npt.NDArray[np.float32]]

# Enough for a share of one in a hundred, and more would say no more.
_MOST = 1024


class KnownSamples:
    """Some of the samples that statistics are taken of: every one, or every second, fourth, … of many."""

    def __init__(self) -> None:
        self._layers: dict[str, list[npt.NDArray[np.float32]]] = {}
        self._labels: list[int] = []
        self._step, self._count = 1, 0

    def add(self, layers: Mapping[str, npt.NDArray[np.float32]], labels: npt.NDArray[np.int64]) -> None:
        """Samples ``(n, d)`` by prefix, with their classes ``(n,)``."""
        for i in range(len(labels)):
            if self._count % self._step == 0:
                for prefix, rows in layers.items():
                    self._layers.setdefault(prefix, []).append(rows[i].reshape(-1).copy())
                self._labels.append(int(labels[i]))
            self._count += 1
            if len(self._labels) > _MOST:
                self._layers = {prefix: rows[::2] for prefix, rows in self._layers.items()}
                self._labels, self._step = self._labels[::2], 2 * self._step

    def distances(self, statistics: Tensors, n_outputs: int, projection: Projection | None) -> Tensors:
        """By prefix, ``(n, 2)`` of `edge.learning.novelty.Distances`, of each sample as if it were not in them.

        Args:
            statistics: Mean ones, of all samples.
            n_outputs: Number of classes.
            projection: Of what has no prefix, as devices do it.
        """
        found: Tensors = {}
        labels, trust = np.array(self._labels, np.int64), np.ones(len(self._labels), np.float32)
        for prefix, rows in self._layers.items():
            features = np.stack(rows)
            mean = HeadStatistics.from_tensors(statistics, features.shape[1], n_outputs, prefix)
            known = mean.scaled_to(self._count)
            if projection is not None and not prefix:
                known, features = known.projected(projection), projection.features(features)
            try:
                squares = Distances(known).without(features, labels, trust)
            except LearningError:  # samples that are all alike: nothing can be said of others
                continue
            # Who is the only one of the only class is as far as can be.
            found[prefix + DISTANCES] = np.minimum(squares, np.finfo(np.float32).max).astype(np.float32)
        return found
