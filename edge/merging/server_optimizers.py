"""Server steps that adapt to how much each parameter moved: FedAdagrad, FedYogi and FedAdam.

Reddi et al. 2020, arXiv:2003.00295 (v5), algorithm 2. With ``D`` the mean change of the devices of this round, which
takes the place of a negative gradient (`edge.merging.deltas.mean_change`)::

    m <- beta1 m + (1 - beta1) D
    v <- v + D²                             FedAdagrad
    v <- v - (1 - beta2) D² sign(v - D²)    FedYogi
    v <- beta2 v + (1 - beta2) D²           FedAdam
    x <- x + rate m / (sqrt(v) + tau)

All of it for each number on its own. As in the paper there is no correction of the bias of the first rounds: m starts
at zero and v at tau², so that the first steps are small rather than wild.

FedProx needs no server step: see `edge.merging.deltas`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray, Parameters
from edge.merging.deltas import Change, apply_change

Rule = Literal["adagrad", "yogi", "adam"]
RULES: tuple[Rule, ...] = ("adagrad", "yogi", "adam")


class ServerOptimizer:
    """One of the three rules, with what it remembers between rounds.

    Args:
        rule: One of `RULES`.
        rate: Size of the server's step, ``eta`` in the paper.
        beta1: Share of the old mean that is kept; 0.9 in the paper's experiments, and 0 for FedAdagrad.
        beta2: Share of the old square that is kept, 0.99 in the paper; not used by FedAdagrad.
        tau: Adaptivity, in the units of a change: how small a change is too small to be enlarged. The paper found 1e-3
            right for nearly all tasks.

    Raises:
        ValueError: A name or a number out of its range.
    """

    def __init__(
        self,
        rule: Rule,
        rate: float = 0.1,
        beta1: float | None = None,
        beta2: float = 0.99,
        tau: float = 1e-3,
    ) -> None:
        if rule not in RULES:
            raise ValueError(f"rule {rule!r}: expected one of {', '.join(RULES)}")
        if beta1 is None:
            beta1 = 0.0 if rule == "adagrad" else 0.9
        for name, number in {"rate": rate, "tau": tau}.items():
            if not 0 < number < math.inf:
                raise ValueError(f"{name} {number}: expected a number above 0")
        for name, number in {"beta1": beta1, "beta2": beta2}.items():
            if not 0 <= number < 1:
                raise ValueError(f"{name} {number}: expected a number from 0 up to, not including, 1")
        self._rule, self._rate, self._beta1, self._beta2, self._tau = rule, rate, beta1, beta2, tau
        self._m: Change = {}
        self._v: Change = {}

    def step(self, base: Mapping[str, FloatArray], mean: Mapping[str, npt.NDArray[Any]]) -> Parameters:
        """The head after this round; what is remembered moves on.

        Args:
            base: The head that the changes were made to, float32 by parameter name.
            mean: The mean change, by parameter name.

        Raises:
            LearningError: Other parameters than in the rounds before, or values that are not finite, before or after;
                nothing is remembered of this round.
        """
        shapes = {name: array.shape for name, array in base.items()}
        if {name: array.shape for name, array in mean.items()} != shapes:
            raise LearningError("the mean change has other parameters than the head")
        if self._m and {name: array.shape for name, array in self._m.items()} != shapes:
            raise LearningError("the head has other parameters than in the rounds before")
        if not all(np.isfinite(array).all() for array in mean.values()):
            raise LearningError("a mean change with values that are not finite")
        m, v, change = {}, {}, {}
        with np.errstate(over="ignore", invalid="ignore"):  # apply_change and the check below find what overflows
            for name in base:
                pseudo = mean[name].astype(np.float64)
                m[name] = self._beta1 * self._m.get(name, 0.0) + (1.0 - self._beta1) * pseudo
                v[name] = self._square(self._v.get(name, np.full(pseudo.shape, self._tau**2)), np.square(pseudo))
                change[name] = self._rate * m[name] / (np.sqrt(v[name]) + self._tau)
        if not all(np.isfinite(array).all() for array in v.values()):
            raise LearningError("the squares of the mean change are not finite")
        merged = apply_change(base, change)
        self._m, self._v = m, v
        return merged

    def _square(self, old: npt.NDArray[np.float64], new: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The remembered square; never below zero, because FedYogi takes away at most ``1 - beta2`` of the old."""
        if self._rule == "adagrad":
            return old + new
        if self._rule == "yogi":
            found: npt.NDArray[np.float64] = old - (1.0 - self._beta2) * new * np.sign(old - new)
            return found
        return self._beta2 * old + (1.0 - self._beta2) * new

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything needed to go on after a restart: float64 ``m.<parameter>`` and ``v.<parameter>``, copies."""
        parts = {"m": self._m, "v": self._v}
        return {f"{part}.{name}": array.copy() for part, arrays in parts.items() for name, array in arrays.items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what `state` gave; an empty one is a fresh start.

        Raises:
            LearningError: It is not such a state; nothing changed.
        """
        found: dict[str, Change] = {"m": {}, "v": {}}
        for key, array in state.items():
            part, _, name = key.partition(".")
            if part not in found or array.dtype.kind != "f" or not np.isfinite(array).all():
                raise LearningError(f"the saved state of a server optimizer cannot hold {key}")
            found[part][name] = array.astype(np.float64)
        m, v = found["m"], found["v"]
        if {n: a.shape for n, a in m.items()} != {n: a.shape for n, a in v.items()}:
            raise LearningError("the saved state of a server optimizer is not of one head")
        if any((array < 0).any() for array in v.values()):
            raise LearningError("the saved state of a server optimizer has negative squares")
        self._m, self._v = m, v
