"""What a learner needs of whoever executes the training step.

Implemented in `edge.inference`, used in `edge.learning`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.int64]
Parameters = dict[str, FloatArray]


class TrainStep(Protocol):
    """One step of stochastic gradient descent on the head; holds the parameters between steps."""

    def step(self, features: FloatArray, labels: LabelArray, sample_weights: FloatArray, learning_rate: float) -> float:
        """Change the parameters once.

        Args:
            features: ``(batch, ...)`` float32 as the backbone gives them.
            labels: ``(batch,)`` int64 in ``[0, n_classes)``.
            sample_weights: ``(batch,)`` float32; the loss is ``sum(w_i * loss_i) / batch``.
            learning_rate: Step size.

        Returns:
            The loss before the step.
        """
        ...

    def parameters(self) -> Parameters:
        """Copies of the parameters by name."""
        ...

    def load(self, parameters: Mapping[str, FloatArray]) -> None:
        """Set the parameters, and forget what the optimizer remembers of older ones."""
        ...
