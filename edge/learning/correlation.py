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

    def strengths(self) -> Sums:
        """``(n_outputs,)`` from 0 to 1, how far labels of each output go with the answers.

        With those of the expert with which they do most, in the mean over the outputs. The second expert is the head
        that learners start from.
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
        best: Sums = strengths[strengths.mean(axis=1).argmax()]
        return np.maximum(best, 0.0)


def goes_on(answers: FloatArray, labels: FloatArray, least: float) -> bool:
    """Whether the labels of a few samples still go with what was answered, each output for itself.

    Moments that forget slowly remember good labels for long after they have become bad ones.

    Args:
        answers: ``(n, n_outputs)``, before the labels were learned.
        labels: ``(n, n_outputs)``.
        least: The correlation that is asked for.
    """
    answers, labels = answers.astype(np.float64), labels.astype(np.float64)
    errors = np.square(answers - labels).mean(axis=0)
    a, b = answers - answers.mean(axis=0), labels - labels.mean(axis=0)
    spread, both = np.square(a).mean(axis=0), (a * b).mean(axis=0)
    found = both / np.sqrt(np.maximum(spread * np.square(b).mean(axis=0), _TINY))
    return bool(((found >= least) | (spread < TELLING * errors)).all())
