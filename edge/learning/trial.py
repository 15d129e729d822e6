"""Whether a head from elsewhere may answer here: judged by labels of this device, else by comparing answers.

Three things are never mixed up: a head that was judged and is good enough, one that is not, and one that nobody could
judge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from edge.contract.training import FloatArray
from edge.learning.task import Scores, Targets, Task

# One-sided 95 % point of the normal distribution.
Z_95 = 1.645
# A head knows what other devices saw; it may cost this much on the little that one device saw lately.
TOLERATED_LOSS = 0.05
# Labels that a judgement needs, and samples without labels that answers are compared on.
MIN_LABELS, MIN_SAMPLES = 20, 16
# What devices say of a head that has a share of the say, and that no trial settled.
COMPETES = "competes, and"
# And of one that was on trial when the next one came.
OVERTAKEN = "a newer release came before it could be judged"
# A head that answers fewer samples as they were answered so far is not taken without labels that vouch for it.
LEAST_ALIKE = 0.5
# Quantities are alike where the mean squared difference is below this share of their variance.
_ALIKE_VARIANCE = 0.5


class Finding(StrEnum):
    """What a judgement came to."""

    GOOD = "good"
    WORSE = "worse"
    DIFFERENT = "different"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement, and the numbers it rests on, for people.

    Attributes:
        finding: What it came to.
        reason: The numbers.
        is_finite: Whether all that the head gave were numbers; where not, it is of no use anywhere, whoever wants it.
    """

    finding: Finding
    reason: str
    is_finite: bool = True


def judge(before: FloatArray, after: FloatArray, targets: Targets, task: Task) -> Verdict:
    """Compare two heads on labelled samples, ``before`` and ``after`` ``(n, n_outputs)``.

    Worse is who is worse by more than `TOLERATED_LOSS` even at the favourable end of the 95 % confidence interval of
    the mean.
    """
    n = len(targets)
    if n and not np.isfinite(after).all():
        return Verdict(Finding.WORSE, "it gives values that are not finite", is_finite=False)
    if n < MIN_LABELS:
        return Verdict(Finding.NOT_JUDGED, f"not judged: {n} recent labels, {MIN_LABELS} needed")
    gains = task.gains(before, after, targets)
    numbers = _numbers(before, after, targets, task)
    upper = float(gains.mean()) + Z_95 * float(gains.std(ddof=1)) / math.sqrt(n)
    if upper < -TOLERATED_LOSS:
        return Verdict(Finding.WORSE, f"worse: {numbers}")
    return Verdict(Finding.GOOD, numbers)


def _numbers(before: FloatArray, after: FloatArray, targets: Targets, task: Task) -> str:
    score = task.losses if task.is_regression else task.right
    old, new = (float(_mean(score(outputs, targets))) for outputs in (before, after))
    if task.is_regression:
        return f"loss {new:.4g} against {old:.4g} on {len(targets)} recent labels"
    return f"accuracy {new:.3f} against {old:.3f} on {len(targets)} recent labels"


def _mean(scores: Scores) -> float:
    return float(scores.mean()) if len(scores) else 0.0


def compare(before: FloatArray, after: FloatArray, task: Task, samples: str = "samples") -> Verdict:
    """Compare two heads on samples without labels, ``before`` and ``after`` ``(n, n_outputs)``.

    `samples` is what they are called.

    It can show that a head is broken or that it is different, and that it answers as before; not that it is better.
    """
    n = len(before)
    if n and not np.isfinite(after).all():
        return Verdict(Finding.WORSE, "it gives values that are not finite", is_finite=False)
    if n < MIN_SAMPLES:
        return Verdict(Finding.NOT_JUDGED, f"not judged: no labels, and {n} samples, {MIN_SAMPLES} needed")
    if task.is_regression:
        difference = float(np.square(after.astype(np.float64) - before).mean())
        share = difference / max(float(before.astype(np.float64).var(axis=0).mean()), 1e-30)
        text = f"answers differ from those so far by {share:.0%} of their variance on {n} {samples}"
        is_alike = share <= _ALIKE_VARIANCE
    else:
        alike = (before.argmax(axis=1) == after.argmax(axis=1)) if task.is_classifier else (before > 0) == (after > 0)
        share = float(alike.mean())
        text = f"the same answer as so far on {share:.0%} of {n} {samples}"
        is_alike = share >= LEAST_ALIKE
    if is_alike:
        return Verdict(Finding.GOOD, f"no labels to judge by; {text}")
    return Verdict(Finding.DIFFERENT, f"{text}, and no labels vouch for it")
