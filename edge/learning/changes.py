"""What a learner that sends changes must remember: the head it started from, and what is still on its way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray, Parameters
from edge.learning.learner import State, take_integers, take_like

# Contributions that may still be on their way when a merge comes back.
KEPT_CONTRIBUTIONS = 4


class Changes:
    """The base of a head, and the contributions that may come back in a merge.

    Args:
        base: The head as shipped.

    Attributes:
        base: The head that changes are counted from.
        version: Samples that had been learned when it was current.
    """

    def __init__(self, base: Parameters) -> None:
        self.base = base
        self.version = 0
        self._sent: deque[tuple[int, Parameters]] = deque(maxlen=KEPT_CONTRIBUTIONS)

    def contribution(self, live: Parameters, n_samples: int) -> State:
        """The change since the base; remembered under the number of samples."""
        if not self._sent or self._sent[-1][0] != n_samples:
            self._sent.append((n_samples, live))
        return {name: live[name] - self.base[name] for name in live}

    def rebase(
        self, parameters: Mapping[str, FloatArray], included: int, live: Parameters, n_samples: int
    ) -> Callable[[], Parameters]:
        """Put what was learned since the included version on top of a merged head.

        Returns:
            The head to go on from, once it is called: then the base changes.

        Raises:
            LearningError: The merged head has other parameters, or not finite ones; nothing changed.
        """
        if {n: a.shape for n, a in parameters.items()} != {n: a.shape for n, a in live.items()}:
            raise LearningError("the merged head has other parameters than this one")
        version = max(included, self.version)
        known = {self.version: self.base, n_samples: live, **dict(self._sent)}
        if version not in known:
            version = n_samples  # no longer known which part is included: taken as all of it
        start, base = known[version], {name: np.array(array, np.float32) for name, array in parameters.items()}

        def moved(head: Parameters) -> Parameters:
            return {name: base[name] + (head[name] - start[name]) for name in base}

        head = moved(live)
        if not all(np.isfinite(array).all() for array in head.values()):
            raise LearningError("the merged head has values that are not finite")
        still_out = [(number, moved(sent)) for number, sent in self._sent if number > version]

        def take() -> Parameters:
            self._sent = deque(still_out, maxlen=KEPT_CONTRIBUTIONS)
            self.base, self.version = base, version
            return head

        return take

    def grow(self, wider: Callable[[Parameters], Parameters]) -> None:
        """Give every head that is remembered its further classes."""
        self.base = wider(self.base)
        self._sent = deque(((number, wider(sent)) for number, sent in self._sent), maxlen=KEPT_CONTRIBUTIONS)

    def state(self) -> State:
        """Everything, for saving."""
        heads = {"base": self.base} | {f"sent{i}": head for i, (_, head) in enumerate(self._sent)}
        state: State = {f"{part}.{name}": array for part, head in heads.items() for name, array in head.items()}
        state["versions"] = np.array([self.version, *(number for number, _ in self._sent)], np.int64)
        return state

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take back what `state` gave.

        Raises:
            LearningError: It is of another head; nothing changed.
        """

        def head(prefix: str) -> Parameters:
            return {name: take_like(state, f"{prefix}.{name}", array) for name, array in self.base.items()}

        versions = take_integers(state, "versions")
        if not versions:
            raise LearningError("the saved state's versions are missing")
        base, sent = head("base"), [(number, head(f"sent{i}")) for i, number in enumerate(versions[1:])]
        self.base, self.version = base, versions[0]
        self._sent = deque(sent, maxlen=KEPT_CONTRIBUTIONS)
