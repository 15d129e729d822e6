"""What a training step minimizes and how it moves the parameters: the converter makes a graph of it.

Without numpy, so that a command line can check its options at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from edge.contract.documents import encode

CROSS_ENTROPY = "cross-entropy"
BINARY_CROSS_ENTROPY = "binary-cross-entropy"
MEAN_SQUARED_ERROR = "mean-squared-error"
HUBER = "huber"
LOSSES = (CROSS_ENTROPY, BINARY_CROSS_ENTROPY, MEAN_SQUARED_ERROR, HUBER)
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRecipe:
    """What one training step minimizes and how it moves the parameters.

    With outputs ``z`` and targets ``t``, both ``(batch, n_outputs)``, and sample weights ``w`` the loss is
    ``sum_i w_i l_i / batch``, where ``l_i`` is

    * cross-entropy: ``-sum_c t_ic log softmax(z_i)_c``; a row of ``t`` sums to 1;
    * binary cross-entropy: the mean over c of ``log(1 + exp(z_ic)) - t_ic z_ic``, t from 0 to 1;
    * mean squared error: the mean over c of ``(z_ic - t_ic)^2``;
    * huber: the mean over c of ``e^2 / 2`` where ``|e| <= delta`` and ``delta (|e| - delta / 2)`` elsewhere.

    The gradient ``g`` then passes, in this order, ``g += proximal (p - p_anchor)`` (FedProx, Li et al. 2020,
    arXiv:1812.06127), ``g *= min(1, clip_norm / (|g| + 1e-6))`` with the norm over all parameters, and the optimizer,
    which is torch's of that name: weight decay is added to the gradient, and with adamw taken off the parameters.

    Attributes:
        loss: One of `LOSSES`.
        optimizer: One of `OPTIMIZERS`.
        huber_delta: Error at which the Huber loss becomes linear, in the units of the targets.
        momentum: Of momentum and nesterov.
        beta1: Of adam and adamw.
        beta2: Of adam and adamw.
        epsilon: Of adam and adamw.
        weight_decay: 0 for none.
        proximal: Weight of FedProx's term, 0 for none.
        clip_norm: Largest norm of the gradient, 0 for no limit.

    Raises:
        ValueError: A name or a number out of its range.
    """

    loss: str = CROSS_ENTROPY
    optimizer: str = "sgd"
    huber_delta: float = 1.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    proximal: float = 0.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss {self.loss!r}: expected one of {', '.join(LOSSES)}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
        for name in ("huber_delta", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)}: expected a number above 0")
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected a number from 0 up to, not including, 1")
        for name in ("weight_decay", "proximal", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)}: expected 0 or a number above it")

    @property
    def is_classifier(self) -> bool:
        """Whether a label is one class out of several."""
        return self.loss == CROSS_ENTROPY

    @property
    def is_regression(self) -> bool:
        """Whether the outputs are quantities."""
        return self.loss in (MEAN_SQUARED_ERROR, HUBER)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        return encode(self)
