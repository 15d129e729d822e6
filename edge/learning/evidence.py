"""Evidence, collected sample by sample, that one head is better than another; valid whenever one stops to look.

A bet is placed on each paired comparison (`Task.gains`, from -1 to 1) before it is seen. If the other head is not
better, the expected wealth never grows, so it exceeds ``1 / alpha`` at *any* time with a chance of at most alpha (Ville
1939). The stake follows the mean and the variance so far (Waudby-Smith and Ramdas 2024, arXiv:2010.09686, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.learning.learner import State, take

# The chance of preferring a head that is no better.
ALPHA = 0.01
# A stake of 1 could lose everything on one sample.
_MOST = 0.8
# Comparisons that the mean looks back on.
_HORIZON = 64.0
_FIRST_MEAN, _FIRST_SQUARE, _FIRST_WEIGHT = 0.1, 0.25, 4.0


class Evidence:
    """That gains are above zero on average; see the module.

    Attributes:
        log_wealth: Natural logarithm of what a stake of 1 has become.
        mean: Of the late gains.
        n: Gains so far.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.log_wealth = 0.0
        self.n = 0.0
        self.mean, self._square = _FIRST_MEAN, _FIRST_SQUARE

    def add(self, gain: float) -> None:
        """Take a gain from -1 to 1 in."""
        stake = min(max(self.mean / (self._square + 1e-12), 0.0), _MOST)
        self.log_wealth += math.log1p(stake * gain)
        self.n += 1.0
        rate = max(1.0 / (self.n + _FIRST_WEIGHT), 1.0 / _HORIZON)
        self.mean += rate * (gain - self.mean)
        self._square += rate * (gain * gain - self._square)

    def exceeds(self, alpha: float) -> bool:
        """Whether it is as strong as a level of alpha asks for."""
        return self.log_wealth > -math.log(alpha)

    def state(self) -> State:
        """Everything, for saving."""
        return {"evidence": np.array([self.log_wealth, self.n, self.mean, self._square])}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take back what `state` gave."""
        found = take(state, "evidence")
        if found.shape != (4,) or not np.isfinite(found).all():
            raise LearningError("the saved evidence is not four numbers")
        self.log_wealth, self.n, self.mean, self._square = map(float, found)
