"""A fixed map of features to waves of them, on which a linear head draws curved borders.

``phi(x) = [cos A (x - mu), sin A (x - mu)]`` (random Fourier features: Rahimi and Recht 2007). A head that is linear on
phi is nearly one of a Gaussian kernel on x, and its statistics are sums as those of any linear head are: they add, and
they forget exactly. The rows of A are orthogonal, ``A ~ H D1 H D2 H D3`` with Hadamard's matrix H and random signs D
(Yu et al. 2016, arXiv:1610.09072), by bits of a generator whose stream never changes (NumPy's NEP 19). mu and the scale
are those of the shipped statistics.

The bundle has no samples to lift. But it says mean and common covariance of the classes; of samples that are normally
distributed with these the statistics of phi follow in closed form (`Lift.statistics`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.training import FloatArray
from edge.learning.draws import Draws
from edge.learning.statistics import HeadStatistics, Matrix

# Name of the weights ``(n_outputs, length)`` on phi. No parameter of a model has a space in its name.
LIFTED = "lifted weight"
# Waves, each a cosine and a sine. More cost more than a label may: P of the head that is solved has (2 WAVES)² numbers.
WAVES = 192
# Features that are lifted. Of 192 features as many waves gained 1.3 points on cameras, 160 0.8, and 128 nothing.
LONGEST = WAVES
# The size of Hadamard's matrix.
_SIDE = 256
# Standard deviation of the phases over the shipped samples. 0.35 to 0.7 were the same within half a point on cameras.
SPREAD = 0.5
# Added to the total variance, as a share of the mean square: features that never change have no scale.
_TINY = 1e-12


class Lift:
    """See the module.

    Args:
        statistics: As shipped, of at most `LONGEST` features.
        n_waves: At most `LONGEST`.

    Attributes:
        length: Of what it gives.
    """

    def __init__(self, statistics: HeadStatistics, n_waves: int = WAVES) -> None:
        n, d = statistics.n_samples, len(statistics.gram) - 1
        if not 0 < d <= LONGEST:
            raise ValueError(f"{d} features cannot be lifted, {LONGEST} at most")
        mean = statistics.gram[-1, :-1] / n
        squares = float(np.trace(statistics.gram[:-1, :-1])) / n
        variance = max(squares - float(mean @ mean), 0.0) + _TINY * max(squares, 1.0)
        waves = _orthogonal()[:n_waves, :d] * (SPREAD / math.sqrt(variance))
        self.length = 2 * n_waves
        self._waves: FloatArray = waves.astype(np.float32)
        self._shift: FloatArray = (waves @ mean).astype(np.float32)

    def features(self, x: npt.NDArray[Any]) -> FloatArray:
        """``(batch, length)`` of features ``(batch, d)``."""
        with np.errstate(all="ignore"):  # what is not finite is looked for by who asks
            phases = x @ self._waves.T
            phases -= self._shift
            return np.concatenate([np.cos(phases), np.sin(phases)], axis=1, dtype=np.float32)

    def statistics(self, known: HeadStatistics) -> HeadStatistics:
        """Of phi, for samples of which each class is normally distributed as statistics say, all with one covariance.

        With phases ``a`` of mean ``m`` and covariance V, ``E[cos a_i] = cos m_i e^(-V_ii / 2)``, and products of two
        are halves of the cosines and sines of ``a_i - a_j`` and ``a_i + a_j``, which are normal as well.

        Args:
            known: Of features ``(d)``, at least one sample.
        """
        waves = self._waves.astype(np.float64)
        counts = np.where(known.seen, known.class_counts, 0.0)
        means = (known.moment[:-1] / np.where(known.seen, known.class_counts, 1.0)).T
        scatter = known.gram[:-1, :-1] - (means.T * counts) @ means
        variances = waves @ (scatter / known.n_samples) @ waves.T
        of_each = np.diag(variances)
        of_both = (of_each[:, None] + of_each) / 2.0
        of_difference, of_sum = np.exp(np.minimum(variances - of_both, 0.0)), np.exp(-variances - of_both)
        even, odd = (of_difference + of_sum) / 2.0, (of_difference - of_sum) / 2.0
        phases = means @ waves.T - self._shift
        cosines, sines = np.cos(phases), np.sin(phases)
        both, neither, mixed = (cosines.T * counts) @ cosines, (sines.T * counts) @ sines, (sines.T * counts) @ cosines
        damped = np.exp(-of_each / 2.0)
        sums = np.concatenate([cosines * damped, sines * damped, np.ones((len(counts), 1))], axis=1).T * counts
        gram: Matrix = np.empty((self.length + 1, self.length + 1))
        n_waves = len(waves)
        first, second = slice(0, n_waves), slice(n_waves, self.length)
        gram[first, first] = both * even + neither * odd
        gram[second, second] = both * odd + neither * even
        gram[second, first] = mixed * even - mixed.T * odd
        gram[first, second] = gram[second, first].T
        gram[-1] = gram[:, -1] = sums.sum(axis=1)
        return HeadStatistics(gram, sums)


def _orthogonal() -> Matrix:
    """``(_SIDE, _SIDE)`` of orthogonal rows, each of the length √ `_SIDE`; see the module."""
    hadamard = np.ones((1, 1))
    while len(hadamard) < _SIDE:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    signs = Draws([0]).bits(3 * _SIDE).reshape(3, _SIDE) * 2.0 - 1.0
    found = hadamard
    for each in signs[:-1]:
        found = (found * each) @ hadamard
    return np.asarray(found * signs[-1] / _SIDE)
