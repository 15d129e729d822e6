"""What a device tells the fleet of its labelled samples under noise, so that it tells little about any one of them.

Of each sample the device counts its class, adds up its coordinates (`edge.learning.subspace`: a point ``u`` of the unit
ball) by class, and their products ``u uᵀ``. Whichever label and sample came in place of another one, these sums
together move by no more than `SENSITIVITY`: a sample gives ``(u uᵀ, u, 1)`` of squared length ``|u|⁴ + |u|² + 1 <= 3``,
and of two samples the scalar product is never below zero. So with normal noise on every number the guarantee is
``(epsilon, delta)`` differential privacy of each labelled sample, by the analytic Gaussian mechanism (Balle and Wang
2018, arXiv:1805.06530, theorem 8). The noise on the products is symmetric (Dwork, Talwar, Thakurta and Zhang 2014,
Analyze Gauss): off the diagonal a number stands twice in the length, and its noise has half the variance.

Samples since the last upload are a *block*, of `LEAST_BLOCK` or more. Its sums get noise once, when it is first told
of, and what is told is all blocks together, cumulative as every contribution of statistics is (docs/adr/0006): a sample
is in one block, so to send again, or more, costs it nothing. The noise follows from a seed by SHAKE-256, and the seed
is in the journal before anything is sent: after a power cut the same is told, and not the same with other noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import ConfigError, LearningError
from edge.learning.statistics import Matrix, upper_triangle
from edge.learning.subspace import Coordinates

SENSITIVITY = math.sqrt(6.0)
SEED_BYTES = 32
# Samples of a block at least: each has the same noise, however few they are.
LEAST_BLOCK = 32
LARGEST_EPSILON = 50.0
DELTA = 1e-5


@dataclass(frozen=True, slots=True)
class Noise:
    """How little is told of each labelled sample.

    Attributes:
        epsilon: By which factor ``exp(epsilon)`` what is told may be likelier with one sample than with another.
        delta: But for so small a probability.

    Raises:
        ConfigError: One is out of its range.
    """

    epsilon: float
    delta: float = DELTA

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= LARGEST_EPSILON:
            raise ConfigError(
                f"noise {self.epsilon}: expected an epsilon above 0 and at most {LARGEST_EPSILON:g}, such as 4"
            )
        if not 0 < self.delta <= 0.1:
            raise ConfigError(f"noise delta {self.delta}: expected a number above 0 and at most 0.1, such as 1e-5")

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on each number; the least that keeps the promise."""
        return SENSITIVITY * multiplier(self.epsilon, self.delta)


def multiplier(epsilon: float, delta: float) -> float:
    """The least standard deviation of normal noise, over the sensitivity, that is ``(epsilon, delta)`` private."""

    def below(x: float) -> float:
        return math.erfc(-x / math.sqrt(2.0)) / 2.0

    def lost(s: float) -> float:
        return below(0.5 / s - epsilon * s) - math.exp(epsilon) * below(-0.5 / s - epsilon * s)

    low, high = 1e-3, 1e9
    while high / low > 1.0 + 1e-12:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if lost(middle) > delta else (low, middle)
    return high


def gaussians(seed: bytes, count: int) -> Matrix:
    """``(count,)`` normal numbers that nobody foresees who does not know the seed, the same everywhere.

    From the stream of SHAKE-256 by Box and Muller (1958).
    """
    import hashlib  # with libcrypto behind it, which only few devices need

    half = (count + 1) // 2
    words = np.frombuffer(hashlib.shake_256(seed).digest(16 * half), "<u8")
    shares = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    lengths, angles = np.sqrt(-2.0 * np.log(shares[:half])), 2.0 * np.pi * shares[half:]
    return np.concatenate([lengths * np.cos(angles), lengths * np.sin(angles)])[:count]


@dataclass(frozen=True, eq=False, slots=True)
class Sums:
    """Of coordinates.

    Attributes:
        gram: ``(r, r)`` of their products.
        moment: ``(r, n_classes)``.
        counts: ``(n_classes,)``.
    """

    gram: Matrix
    moment: Matrix
    counts: Matrix

    @classmethod
    def empty(cls, r: int, n_classes: int) -> Sums:
        """Of no samples."""
        return cls(np.zeros((r, r)), np.zeros((r, n_classes)), np.zeros(n_classes))

    @classmethod
    def of(cls, points: Matrix, classes: npt.NDArray[Any], weights: npt.NDArray[Any], n_classes: int) -> Sums:
        """Of points ``(n, r)`` of the unit ball, classes ``(n,)`` and weights ``(n,)`` from 0 to 1."""
        one_hot = np.zeros((len(classes), n_classes))
        one_hot[np.arange(len(classes)), classes] = weights
        return cls((points * weights[:, None]).T @ points, points.T @ one_hot, one_hot.sum(axis=0))

    @property
    def shape(self) -> tuple[int, int]:
        """Of how many coordinates and classes."""
        return len(self.moment), len(self.counts)

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.gram + other.gram, self.moment + other.moment, self.counts + other.counts)

    def grown(self, n_classes: int) -> Sums:
        """The same with further classes, of which there are no samples."""
        more = n_classes - len(self.counts)
        return Sums(self.gram, np.pad(self.moment, ((0, 0), (0, more))), np.pad(self.counts, (0, more)))


def noise_of(seed: bytes, r: int, n_classes: int, deviation: float) -> Sums:
    """What is added to the sums of a block."""
    drawn = deviation * gaussians(seed, r * (r + 1) // 2 + (r + 1) * n_classes)
    upper, rest = np.zeros((r, r)), drawn[r * (r + 1) // 2 :]
    upper[np.triu_indices(r)] = drawn[: r * (r + 1) // 2]
    beside = np.triu(upper, 1) / math.sqrt(2.0)
    moment = rest[: r * n_classes].reshape(r, n_classes)
    return Sums(np.diag(np.diag(upper)) + beside + beside.T, moment, rest[r * n_classes :])


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Disclosed:
    """What a device has told under noise, and what it has not told yet.

    Attributes:
        told: Sums of the blocks with their noise.
        pending: Sums of the samples since, without.
        n_told: Labelled samples in the one.
        n_pending: In the other.
        version: Labels that the device had learned when it told of something new last.
        variance: Of the noise on each number that was told.
        epsilon: Of the block that most is told of.
        delta: Likewise.
    """

    told: Sums
    pending: Sums
    n_told: int = 0
    n_pending: int = 0
    version: int = 0
    variance: float = 0.0
    epsilon: float = 0.0
    delta: float = 0.0

    def __post_init__(self) -> None:
        numbers = self.n_told, self.n_pending, self.version, self.variance, self.epsilon, self.delta
        if min(numbers) < 0 or self.told.shape != self.pending.shape:
            raise LearningError("what was told under noise has counts or shapes that cannot be")

    @classmethod
    def nothing(cls, r: int, n_classes: int) -> Disclosed:
        """At first."""
        return cls(told=Sums.empty(r, n_classes), pending=Sums.empty(r, n_classes))

    @property
    def is_due(self) -> bool:
        """Whether there is a block to tell of."""
        return self.n_pending >= LEAST_BLOCK

    @property
    def n_tellable(self) -> int:
        """Labelled samples that were told of, or can be now; that many the fleet learns of, without noise."""
        return self.n_told + (self.n_pending if self.is_due else 0)

    def fits(self, r: int, n_classes: int) -> bool:
        """Whether it is of so many coordinates and classes."""
        return self.told.shape == (r, n_classes)

    def learned(self, points: Matrix, classes: npt.NDArray[Any], weights: npt.NDArray[Any]) -> Disclosed:
        """With further samples; see `Sums.of`."""
        more = Sums.of(points, classes, weights.astype(np.float64), len(self.told.counts))
        return replace(self, pending=self.pending + more, n_pending=self.n_pending + len(classes))

    def closed(self, noise: Noise, seed: bytes, version: int) -> Disclosed:
        """With the samples that are pending told of as a block; the same where there are none."""
        if not self.n_pending:
            return self
        drawn = noise_of(seed, *self.told.shape, noise.deviation)
        return replace(
            self,
            told=self.told + self.pending + drawn,
            pending=Sums.empty(*self.told.shape),
            n_told=self.n_told + self.n_pending,
            n_pending=0,
            version=version,
            variance=self.variance + noise.deviation**2,
            epsilon=max(self.epsilon, noise.epsilon),
            delta=max(self.delta, noise.delta),
        )

    def grown(self, n_classes: int) -> Disclosed:
        """With further classes."""
        return replace(self, told=self.told.grown(n_classes), pending=self.pending.grown(n_classes))

    @property
    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """What was told, as it is sent: float32, of the products the upper triangle."""
        return {
            "products": upper_triangle(self.told.gram).astype(np.float32),
            "points": self.told.moment.astype(np.float32),
            "counts": self.told.counts.astype(np.float32),
        }


@dataclass(frozen=True, eq=False, slots=True)
class Disclosing:
    """That this device tells nothing without noise.

    Attributes:
        noise: How much of it.
        coordinates: In which samples are told of; None where nothing can be told under noise.
        why_not: Then, why.
    """

    noise: Noise
    coordinates: Coordinates | None
    why_not: str = ""
