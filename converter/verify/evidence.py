"""What samples cannot show, and why: findings that keep the converter from a claim that its data do not carry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converter.program.tensors import Array

FEW, REPEATED, ZERO, CONSTANT, CHANCE, RANGE = "few", "repeated", "zero", "constant", "chance", "range"
ONE_CLASS = "one-class"

# Fewer labels than these tell nothing from chance.
_LEAST_LABELS = 10
# Right answers within so many standard deviations of chance are explained by it.
_DEVIATIONS = 2.0
# An R² below this is worse than noise: targets in another unit or order.
_CONTRADICTS = -1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One reason. Quantization on such data needs ``--force``.

    Attributes:
        what: ``few`` samples; ``repeated`` ones; all ``zero``; ``constant`` outputs; labels right by ``chance``, or
            all of ``one-class``; inputs outside the ``range`` of training.
        text: For people.
    """

    what: str
    text: str

    @property
    def hides_quality(self) -> bool:
        """Whether numbers measured on these samples say nothing of others."""
        return self.what in (FEW, REPEATED, ZERO, CONSTANT, ONE_CLASS)

    @property
    def spoils_labels(self) -> bool:
        """Whether labels do not say what is right."""
        return self.what == CHANCE

    @property
    def spoils_statistics(self) -> bool:
        """Whether a device must not start learning from them."""
        return self.what in (REPEATED, ZERO, CONSTANT, CHANCE, RANGE, ONE_CLASS)


def one_class(labels: Array) -> Finding | None:
    """All labels are of one class: whatever else a program confuses, it is right on them.

    Args:
        labels: ``(n,)`` class numbers.
    """
    if len(labels) < _LEAST_LABELS or (labels != labels[0]).any():
        return None
    return Finding(
        what=ONE_CLASS,
        text=f"all {len(labels)} labels are of the class {labels[0]}: they cannot show what is lost of the others",
    )


def chance_of_classes(labels: Array, answers: Array) -> Finding | None:
    """The original is right no more often than answers and labels that have nothing to do with each other.

    Args:
        labels: ``(n,)`` class numbers.
        answers: ``(n,)`` the original's.
    """
    count = len(labels)
    names, places = np.unique(np.concatenate([labels, answers]), return_inverse=True)
    true, given = (np.bincount(part, minlength=len(names)) / count for part in np.split(places, [count]))
    if count < _LEAST_LABELS or (true > 0).sum() < 2:
        return None
    right, chance = float((labels == answers).mean()), float((true * given).sum())
    explained = chance + _DEVIATIONS * float(np.sqrt(chance * (1 - chance) / count))
    if right > explained or explained >= 1:  # where nearly all labels are the same, not even a perfect model would show
        return None
    return Finding(
        what=CHANCE,
        text=f"the model is right on {100 * right:.1f} % of your labels, by chance on {100 * chance:.1f} %: check "
        f"preprocessing and labels",
    )


def chance_of_targets(r2: Array, names: list[str], count: int) -> Finding | None:
    """The original explains nothing of the targets, or contradicts some of them.

    Args:
        r2: ``(n_columns,)`` its R² against them, of columns that vary.
        names: Of these.
        count: Samples.
    """
    if count < _LEAST_LABELS or not len(r2) or (r2.max() > 0 and r2.min() >= _CONTRADICTS):
        return None
    worst = int(r2.argmin())
    return Finding(
        what=CHANCE,
        text=f"against your targets the model reaches R2 {r2[worst]:.3g} in {names[worst]}, worse than their mean "
        f"would: check preprocessing, order and units of the targets",
    )
