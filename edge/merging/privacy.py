"""A mean of changes that tells little about any one device, and how little: differential privacy by device.

The mechanism (McMahan et al. 2018, arXiv:1710.06963, algorithm 1, fixed denominator): each round every device takes
part with probability ``q``, independently; its change is shortened to norm C; the sum gets Gaussian noise of standard
deviation ``z C`` in each number, ``z`` the noise multiplier; and that is divided by the *expected* number of devices,
which tells nothing about who came. Two fleets are neighbours when one has one device more. All devices weigh alike:
the number of samples is a device's own data.

The accountant adds up Rényi divergences (Mironov 2017, arXiv:1702.07476) of the subsampled Gaussian mechanism at whole
orders (Mironov, Talwar and Zhang 2019, arXiv:1908.10530, section 3.3), and states them as ``(epsilon, delta)`` by the
conversion of Canonne, Kamath and Steinke 2020, arXiv:2004.00010, proposition 12.

What it does not do: it protects what leaves the coordinator, not what devices send to it, and a normal generator on
floating-point numbers is not the ideal one of the proofs (Mironov 2012).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray
from edge.merging.deltas import Change, Delta

# High orders matter for little privacy loss, low ones for much.
ORDERS = (*range(2, 65), *range(72, 257, 8), 320, 384, 512, 768, 1024)


def private_mean(
    base: Mapping[str, FloatArray],
    deltas: Iterable[Delta],
    *,
    largest_norm: float,
    noise_multiplier: float,
    n_expected: float,
    rng: np.random.Generator,
) -> Change:
    """The noisy mean change; one pass.

    A change that is not finite counts as zero, and so does one that is missing: refusing the round instead would tell
    that the device came. Staleness and numbers of samples are not looked at.

    Args:
        base: The head that is changed, for its names and shapes.
        deltas: Of the devices that took part; none is fine.
        largest_norm: Norm C that each change is shortened to.
        noise_multiplier: Standard deviation of the noise on the sum, in units of C. 0 is clipping without privacy.
        n_expected: Devices expected in a round, ``q`` times the size of the fleet; not how many came.
        rng: For the noise.

    Returns:
        float64 by parameter name, of the base's shapes.

    Raises:
        LearningError: Other parameters than the base.
        ValueError: A number out of its range.
    """
    if not 0 < largest_norm < math.inf or not 0 <= noise_multiplier < math.inf or not 0 < n_expected < math.inf:
        raise ValueError("expected a norm and a number of devices above 0, and a noise multiplier from 0 up")
    total = {name: np.zeros(array.shape, np.float64) for name, array in base.items()}
    for delta in deltas:
        delta.check(base, finite=False)
        if not delta.is_finite:
            continue
        norm = delta.norm
        factor = min(1.0, largest_norm / norm) if norm > 0 else 0.0
        for name, array in delta.change.items():
            total[name] += factor * array
    noise = noise_multiplier * largest_norm
    return {
        name: (array + rng.normal(0.0, noise, array.shape) if noise > 0 else array) / n_expected
        for name, array in total.items()
    }


def renyi_divergence(order: int, noise_multiplier: float, sampling_rate: float) -> float:
    """Rényi divergence of one round of the subsampled Gaussian mechanism.

    With ``q`` the sampling rate, ``z`` the noise multiplier and ``a`` the order it is
    ``log(sum_k binomial(a, k) (1 - q)^(a - k) q^k exp((k² - k) / (2 z²))) / (a - 1)``, k from 0 to a (arXiv:1908.10530,
    section 3.3); and ``a / (2 z²)`` where ``q`` is 1.

    Args:
        order: 2 or more.
        noise_multiplier: From 0 up; 0 gives infinity, unless nobody is sampled.
        sampling_rate: From 0 to 1.
    """
    if sampling_rate == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    if sampling_rate == 1:
        return order / (2 * noise_multiplier**2)
    k = np.arange(order + 1)
    log_factorials = np.array([math.lgamma(i + 1) for i in range(order + 1)])
    terms = (
        log_factorials[-1]
        - log_factorials
        - log_factorials[::-1]
        + (order - k) * math.log1p(-sampling_rate)
        + k * math.log(sampling_rate)
        + k * (k - 1) / (2 * noise_multiplier**2)
    )
    log_sum = float(np.logaddexp.reduce(terms))
    return max(0.0, log_sum) / (order - 1)


class PrivacyAccountant:
    """Adds up what rounds have told about any one device."""

    def __init__(self) -> None:
        self._divergences = np.zeros(len(ORDERS))

    @property
    def divergences(self) -> npt.NDArray[np.float64]:
        """``(len(ORDERS),)`` Rényi divergence of all rounds so far, at each of `ORDERS`; a copy."""
        return self._divergences.copy()

    def spend(self, noise_multiplier: float, sampling_rate: float = 1.0, rounds: int = 1) -> None:
        """Note rounds that were made.

        Args:
            noise_multiplier: As given to `private_mean`.
            sampling_rate: Probability with which a device takes part in a round.
            rounds: How many.

        Raises:
            ValueError: A number out of its range.
        """
        if not 0 <= noise_multiplier < math.inf or not 0 <= sampling_rate <= 1 or rounds < 0:
            raise ValueError("expected a noise multiplier from 0 up, a sampling rate from 0 to 1, rounds from 0 up")
        if rounds:
            each = [renyi_divergence(order, noise_multiplier, sampling_rate) for order in ORDERS]
            self._divergences = self._divergences + rounds * np.array(each)

    def epsilon(self, delta: float) -> float:
        """The least epsilon for which all rounds together are ``(epsilon, delta)`` private by device.

        ``min over orders a of  R(a) + log((a - 1) / a) - (log(delta) + log(a)) / (a - 1)``.

        Args:
            delta: Above 0 and below 1; far below one over the number of devices.

        Raises:
            ValueError: Delta is out of its range.
        """
        if not 0 < delta < 1:
            raise ValueError(f"delta {delta}: expected a number between 0 and 1")
        if not self._divergences.any():
            return 0.0
        orders = np.array(ORDERS, np.float64)
        found = self._divergences + np.log1p(-1.0 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1.0)
        return max(0.0, float(found.min()))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything needed to go on after a restart."""
        return {"orders": np.array(ORDERS, np.int64), "divergences": self.divergences}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what `state` gave.

        Raises:
            LearningError: It is not such a state, or of other orders; nothing changed.
        """
        orders, divergences = state.get("orders"), state.get("divergences")
        if orders is None or divergences is None or orders.tolist() != list(ORDERS):
            raise LearningError("the saved privacy account is not one of these orders")
        if divergences.shape != (len(ORDERS),) or divergences.dtype.kind != "f" or not (divergences >= 0).all():
            raise LearningError("the saved privacy account has impossible divergences")
        self._divergences = divergences.astype(np.float64)
