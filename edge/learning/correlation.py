"""Do labels of quantities go with the samples? How far late ones are correlated with what each expert answers.

Of quantities nobody is right by chance, so how often somebody is right does not say whether labels are to be believed.
Labels whose values are shuffled among the samples even make who answers their mean the better one, *of those labels*.
What they lack is that they go with anything: where a label is larger than usual, an answer that was given before it was
learned must be larger than usual, too. Of true labels that is so whatever their unit, offset or scale.

* Labels are believed until they have shown otherwise: what few shuffled ones spoil is little, and who waits for proof
  learns an offset late.
* Answers that fall where labels rise say that they go with the samples as well: the sign of a sensor may be wrong. That
  must be surer (`AGAINST`): of a learner, which follows the mean of the labels, it comes by chance.
* Where the shipped answers hardly vary beside their error (one operating point, an offset), nobody can tell.

Measured with benchmarks/quantities.py (docs/learning.md). Pure: values in, values out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.contract.training import FloatArray

# What the moments forget with each label.
DECAY = 0.98
# As if so many labels had come before the first one, with such a correlation.
BEFORE, SUPPOSED = 6.0, 0.6
# How much less a negative correlation says than a positive one.
AGAINST = 0.3
# The variance of the shipped answers, as a share of their mean squared error, at which half of it is believed.
TELLING = 0.01
_TINY = 1e-300

Sums = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Correlation:
    """Weighted moments of late labels, and of what each expert answered to them before it learned them.

    Attributes:
        mass: ``(k,)`` weights of the labels since each expert came, decayed.
        means: ``(k, 2, n_outputs)`` of the answers, and of the labels.
        products: ``(k, 3, n_outputs)`` mean products of the deviations: of answers with themselves, of answers with
            labels, of labels with themselves.
    """

    mass: Sums
    means: Sums
    products: Sums

    @classmethod
    def none(cls, experts: int, n_outputs: int) -> Correlation:
        """Of no labels."""
        return cls(np.zeros(experts), np.zeros((experts, 2, n_outputs)), np.zeros((experts, 3, n_outputs)))

    def heard(self, outputs: FloatArray, target: FloatArray, trust: float) -> Correlation:
        """With a label (West 1979, updating of weighted variances).

        Args:
            outputs: ``(k, n_outputs)`` of the experts, before any of them learned it. Of one that is not finite
                nothing is heard.
            target: ``(n_outputs,)``.
            trust: Its weight, above 0.
        """
        speaks = np.asarray(np.isfinite(outputs).all(axis=1))
        mass = DECAY * self.mass + trust * speaks
        share = (trust * speaks / np.maximum(mass, _TINY))[:, None, None]
        pairs = np.stack([np.where(speaks[:, None], outputs, 0.0), np.broadcast_to(target, outputs.shape)], axis=1)
        off = pairs - self.means
        products = self.products + share * off[:, [0, 0, 1]] * off[:, [0, 1, 1]]
        return Correlation(mass, self.means + share * off, (1.0 - share) * products)

    def chosen(self, at: Sequence[int]) -> Correlation:
        """Of other experts, each by its place here; of one at -1, which is new, nothing was heard."""
        rows, is_new = np.array(at), np.array(at) < 0
        mass, means, products = (array[rows] for array in (self.mass, self.means, self.products))
        mass[is_new], means[is_new], products[is_new] = 0.0, 0.0, 0.0
        return Correlation(mass, means, products)

    def strength(self) -> float:
        """From 0 to 1, how far labels go with the answers of the expert with which they do most.

        The mean over the outputs. The second expert is the head that learners start from.
        """
        answers, both, labels = self.products[1]
        off = self.means[1, 0] - self.means[1, 1]
        error = np.maximum(answers + labels - 2.0 * both, 0.0) + off * off
        tells = answers / np.maximum(answers + TELLING * error, _TINY)
        answers, both, labels = np.moveaxis(self.products, 1, 0)
        found = both / np.sqrt(np.maximum(answers * labels, _TINY))
        # Who came late has to show it for as long.
        of_all = tells * float(self.mass.max())
        says = np.maximum(found, -found - AGAINST)
        strengths = (tells * self.mass[:, None] * says + BEFORE * SUPPOSED) / (of_all + BEFORE)
        return max(0.0, float(strengths.mean(axis=1).max()))
