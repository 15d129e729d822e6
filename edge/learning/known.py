"""Samples of which the class is known: by them experts are asked whether they still tell the classes apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge.learning.learned import Learned
from edge.learning.recalled import MOST_IMAGINED, Samples
from edge.learning.sgd import SgdKnowledge

# So many labels of a class say what it looks like here.
MET_FROM = 8


class KnownSamples:
    """Of classes that labels came of here samples that were kept, of others some as they were shipped.

    Args:
        shape: Of the features of one sample.
        imagined: Draws samples of the shipped statistics, see `edge.learning.recalled`; None where there are none.
            It is asked once, when somebody wants them.
    """

    def __init__(self, shape: tuple[int, ...], imagined: Callable[[], Samples | None] | None) -> None:
        self._shape = shape
        self._imagined = imagined
        self._drawn: Samples | None = None

    def of(self, learned: Learned) -> Samples | None:
        """Features ``(n, *shape)`` and classes ``(n,)``; None where nobody knows what was shipped."""
        if self._drawn is None and self._imagined is not None:
            self._drawn, self._imagined = self._imagined(), None
        if self._drawn is None:
            return None
        features, classes = self._drawn[0].reshape(-1, *self._shape), self._drawn[1]
        is_met = learned.mixture.heard >= MET_FROM
        # In the mixture's order: a mapping that was read from disk has another one.
        experts = (learned.experts[name] for name in learned.mixture.names)
        kept = next((each.replay for each in experts if isinstance(each, SgdKnowledge)), None)
        if kept is None or not is_met.any():
            return features, classes
        count = max(1, min(MET_FROM, MOST_IMAGINED // len(learned.class_names)))
        x, y = kept.newest(np.flatnonzero(is_met)[:MOST_IMAGINED], count, self._shape)
        others = ~np.isin(classes, y)
        return np.concatenate([features[others], x]), np.concatenate([classes[others], y])
