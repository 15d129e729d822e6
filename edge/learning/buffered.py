"""Buffered asynchronous merging: devices come when they come, and nobody is waited for.

FedBuff (Nguyen et al. 2022, arXiv:2106.06639, algorithm 1): each change is folded into one sum as it arrives; when K
have come the mean is handed out and the sum starts anew. Here a timeout hands it out as well, so that a fleet in which
most devices are lost still moves. A change that was made s merges ago counts ``1 / sqrt(1 + s)`` (section 5). The mean
divides by the weights *before* that damping, as the paper divides by K, so a buffer of only stale changes makes a small
step. (`edge.learning.merge.weighted_mean` divides by the damped weights: there staleness only shifts weight between
devices.) Memory is one head, whatever the number of devices.

Does not know which device gave what: that each comes once is the caller's business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray
from edge.learning.merge import Change, Delta


class BufferedAggregator:
    """Folds changes into one sum.

    Args:
        base: The head that is changed, for its names and shapes.
        flush_at: Devices that fill the buffer, K in the paper.
        timeout_s: The buffer is also due when its first change has waited this long; infinite for never.
        by_samples: Weigh devices by their samples, as FedAvg does; False weighs them alike, as the paper does.
        largest_norm: Longer changes are shortened to this norm; infinite for no limit.

    Raises:
        ValueError: A number out of its range.
    """

    def __init__(
        self,
        base: Mapping[str, FloatArray],
        flush_at: int,
        timeout_s: float = math.inf,
        by_samples: bool = True,
        largest_norm: float = math.inf,
    ) -> None:
        if flush_at < 1 or not timeout_s > 0 or not largest_norm > 0:
            raise ValueError("expected a buffer of at least one device, and a timeout and a norm above 0")
        self._base = {name: np.empty(array.shape, np.float32) for name, array in base.items()}
        self._flush_at, self._timeout_s = flush_at, timeout_s
        self._by_samples, self._largest_norm = by_samples, largest_norm
        self._empty()

    def _empty(self) -> None:
        self._sum: Change = {name: np.zeros(array.shape) for name, array in self._base.items()}
        self._weight = 0.0
        self._n_devices = 0
        self._since_s = 0.0

    @property
    def n_devices(self) -> int:
        """Devices folded in since the buffer was empty."""
        return self._n_devices

    def add(self, delta: Delta, now_s: float) -> bool:
        """Fold in a device's change; one without samples counts for nothing.

        Args:
            delta: The change.
            now_s: Monotonic time.

        Returns:
            Whether the buffer is now due.

        Raises:
            LearningError: Other parameters than the base, or values that are not finite; nothing changed.
        """
        delta.check(self._base)
        if delta.n_samples > 0:
            if self._largest_norm < math.inf:
                delta = delta.clipped(self._largest_norm)
            weight = float(delta.n_samples) if self._by_samples else 1.0
            damped = weight / math.sqrt(1.0 + delta.staleness)
            for name, array in delta.change.items():
                self._sum[name] += damped * array
            if self._n_devices == 0:
                self._since_s = now_s
            self._n_devices += 1
            self._weight += weight
        return self.is_due(now_s)

    def is_due(self, now_s: float) -> bool:
        """Whether enough devices came, or the first has waited long enough."""
        return self._n_devices >= self._flush_at or now_s >= self.due_s

    @property
    def due_s(self) -> float:
        """The time at which the buffer is due if nobody else comes; infinite while it is empty."""
        return self._since_s + self._timeout_s if self._n_devices else math.inf

    def flush(self) -> Change:
        """Hand out the mean change, float64 by parameter name, and start anew.

        Raises:
            LearningError: The buffer is empty.
        """
        if self._n_devices == 0:
            raise LearningError("there is no change in the buffer to merge")
        mean = {name: array / self._weight for name, array in self._sum.items()}
        self._empty()
        return mean

    def state(self, now_s: float) -> dict[str, npt.NDArray[Any]]:
        """Everything needed to go on after a restart; holds how long the first change has waited, not since when."""
        waited_s = now_s - self._since_s if self._n_devices else 0.0
        numbers = {
            "n_devices": np.array(self._n_devices, np.int64),
            "weight": np.array(self._weight),
            "waited_s": np.array(waited_s),
        }
        return numbers | {f"sum.{name}": array.copy() for name, array in self._sum.items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]], now_s: float) -> None:
        """Go on from what `state` gave.

        Raises:
            LearningError: It is not a state of a buffer for this head; nothing changed.
        """
        names = {f"sum.{name}": array.shape for name, array in self._base.items()}
        expected = names | dict.fromkeys(("n_devices", "weight", "waited_s"), ())
        if {name: array.shape for name, array in state.items()} != expected:
            raise LearningError("the saved buffer is not of this head")
        if not all(array.dtype.kind in "fiu" and np.isfinite(array).all() for array in state.values()):
            raise LearningError("the saved buffer has values that are not finite numbers")
        n_devices, weight, waited_s = int(state["n_devices"]), float(state["weight"]), float(state["waited_s"])
        if n_devices < 0 or waited_s < 0 or (weight > 0) != (n_devices > 0):
            raise LearningError("the saved buffer has impossible counts")
        self._sum = {name: state[f"sum.{name}"].astype(np.float64) for name in self._base}
        self._n_devices, self._weight, self._since_s = n_devices, weight, now_s - waited_s
