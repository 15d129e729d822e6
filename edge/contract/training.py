"""What a learner needs of whoever executes the training step that a `TrainingRecipe` describes.

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
    """One step of a `TrainingRecipe` on the head; holds parameters, and what the optimizer remembers, between steps.

    The number of outputs is free where the head's last layer is linear: `load` may bring more classes than before.
    """

    def step(
        self, features: FloatArray, targets: FloatArray, sample_weights: FloatArray, learning_rate: float
    ) -> float:
        """Change the parameters once.

        Args:
            features: ``(batch, ...)`` float32 as the backbone gives them.
            targets: ``(batch, n_outputs)`` float32; one-hot rows for classes.
            sample_weights: ``(batch,)`` float32; the loss is ``sum(w_i * loss_i) / batch``.
            learning_rate: Step size.

        Returns:
            The loss before the step.

        Raises:
            LearningError: The batch has other shapes, or the loss or a parameter would not be finite; nothing changed.
        """
        ...

    def parameters(self) -> Parameters:
        """Copies of the parameters by name."""
        ...

    def memory(self) -> Parameters:
        """Copies of all else that the next step depends on, by name: optimizer slots, and FedProx's anchor."""
        ...

    def load(self, parameters: Mapping[str, FloatArray], memory: Mapping[str, FloatArray] | None = None) -> None:
        """Set the parameters.

        Args:
            parameters: float32 by name.
            memory: What `memory` gave. None forgets: the slots become zero, and the parameters the anchor.

        Raises:
            LearningError: Other names, shapes or values that are not finite; nothing changed.
        """
        ...
