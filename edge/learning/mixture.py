"""How far each expert is believed: prediction with expert advice, on right or wrong.

Theory of operation. *Experts* are whole heads that answer side by side: the shipped one, each learner, a merge, each
learner that goes on from it, a head that was pushed to compete; and the *trusted past*, the head that was believed
most when labels last agreed with somebody. The answer is ``p = sum_k w_k p_k``.

* A label ``y`` changes the weights: ``w_k <- w_k exp(eta (r_k - 1))``, normalised, then ``w <- (1 - s) w + s w_0``
  (fixed share: Herbster and Warmuth 1998), where ``r_k`` is 1 if the expert is right and 0 if not. Right or wrong
  counts, and not the logarithm: under wrong labels log loss rewards whoever is unsure.
* *Agreement* of each expert with the labels is averaged over the late ones. With ``kappa`` the best one's, beyond
  chance, the answer is ``c p + (1 - c) p_trusted``: labels that agree with nobody change nothing. Of quantities that is
  the correlation of labels and answers (`edge.learning.correlation`): an offset or another scale leaves it as it is.
* Who is wrong where the trusted past or the head that learners start from is right loses more, by ``rho / (1 - rho)``,
  with rho the share of labels that even the best expert disagrees with. Where a share rho of labels is wrong *in the
  same way*, who learns them wins rho of the samples that it spoils, and loses ``1 - rho``: so counted, a sample that is
  spoiled costs as much as one that is mended earns.
* *Wrong in the same way?* (`alike`.) Of late labels that the answer disagrees with, how much more often than by chance
  do two that the same class was answered for carry the same label? Noise and a world that is to be learned yet spread
  them; lies such as "40 % are named one class further" do not, and agree with who learns them nearly as well as with
  who does not. As far as they are alike the head that learners start from gains 0.65 rho with each label, until they
  are seen to be spread. It gains a little (`BASE`) always.
* Whenever labels agree (kappa >= `TRUST`), the trusted past becomes the head that is believed most at that time.
* *The class of the day* (`counts`). Where one class comes after another, who has forgotten all others is right on every
  label. So a label counts for ``P (1 - p) / (p (1 - P))``, 1 at most, with p how often its class comes lately and P how
  often it comes at all: then it weighs as much against the others as usually. That is 1 but for luck where classes come
  mixed, however rare some of them are.
* *Who has forgotten the others?* (`apart`.) Where late labels are nearly all of one class, who answers it whatever
  comes is always right. Then a right answer counts for less by the share of known samples of other classes (that were
  kept, or drawn from the shipped statistics) for which an expert answers that class, too, beyond the share for which
  the head that learners start from does. Agreement is counted so as well, and more of it is asked for (`MORE_ALONE`).
* *Specialists* (Freund et al. 1997): where an expert answers a class that others cannot know, only those speak that
  know it. Of a class with fewer than two labels on this device, that is who builds on the merge; of a class that was
  added here, who has learned it.

Measured on eleven real cameras, a watch and digits (docs/learning.md); benchmarks/devices.py, continual.py and
mixture_streams.py ask again. Pure: values in, values out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge.contract.training import FloatArray
from edge.learning.calibration import softmax
from edge.learning.correlation import Correlation
from edge.learning.task import Scores, Targets, Task

# The rate of the weights, and the share of the start weights that they keep. 0.3 to 0.5 were the same within half a
# point on digits in ten orders; at 0.5 whoever has just learned the class of the day was believed too soon.
ETA, SHARE = 0.3, 0.01
# What an average over late labels forgets with each.
DECAY = 0.95
# Agreement beyond chance from which labels begin to count, and how much more until they count in full.
LEAST_AGREEMENT, RAMP = 0.15, 0.2
# So much more of it where labels are all of one class: what is always named so is easily agreed with.
MORE_ALONE = 0.35
# So many standard deviations of a guess must agreement be above chance: with two classes luck goes far.
_LUCK = 2.0
# Agreement beyond chance at which the past is trusted.
TRUST = 0.75
# Of quantities the same three by correlation, see `edge.learning.correlation`.
LEAST_CORRELATION, TRUST_CORRELATION = 0.25, 0.5
# Of the labels that even the best expert disagrees with, more are not taken for wrong ones: they are to be learned yet.
_MOST_NOISE = 0.4
# What the head that learners start from gains on them with each label: one that is as good as they are is kept. And of
# the share of labels that are wrong in the same way: labels of which half of one class have another's name are few.
BASE, BASE_OF_ALIKE = 0.02, 0.65
# How much more often than by chance two labels must be the same to be alike at all, and in full. They are taken for
# alike before there are more than so many pairs: who waits for proof has lost 5 to 15 points by the 25th label.
_ALIKE_FROM, _ALIKE, _PAIRS_BEFORE, _ALIKE_BEFORE = 0.1, 0.3, 8.0, 0.3
# What the trusted past keeps when it becomes another head, which others have as well.
_KEPT = 0.1
# Labels of a class here before own learners know it, where others bring a merge.
KNOWN_FROM = 2
# So many labels say how often a class comes lately. Up to such a share of one class they are mixed, and so are few.
_LATELY, _MIXED, _FEW = 32, 0.75, 8
# A quantity's loss so many times the usual one is as wrong as can be.
FAR_OFF = 4.0

Weights = npt.NDArray[np.float64]
Known = npt.NDArray[np.bool_]

TRUSTED, SHIPPED, MERGED, PUSHED = "trusted", "shipped", "merged", "pushed"
ON_MERGE = " on merge"
# What a warm start brought, once a merge has come as well.
WARM, ON_WARM = "warm", " on warm"


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Mixture:
    """The experts and how far each is believed; see the module.

    Attributes:
        names: Of the experts; the first is the trusted past, the second the head that learners start from.
        weights: ``(k,)``, their sum is 1.
        start: ``(k,)``, what they come back to.
        agreement: ``(k,)``, decayed sums of how right each was.
        joined: ``(k,)``, how many labels there had been when each came.
        labels: Labels so far.
        heard: ``(groups,)`` labels of each class.
        correlation: Of quantities, how far late labels go with the answers; else None.
    """

    names: tuple[str, ...]
    weights: Weights
    start: Weights
    agreement: Weights
    joined: npt.NDArray[np.int64]
    labels: int
    heard: npt.NDArray[np.int64]
    correlation: Correlation | None

    @property
    def believed(self) -> str:
        """The expert that is believed most; the trusted past only where nobody else is near it."""
        return leading(self.names, self.weights, [True] * len(self.names))

    def weight_of(self, name: str) -> float:
        """Of one expert; 0 where there is none of that name."""
        return float(self.weights[self.names.index(name)]) if name in self.names else 0.0

    def accuracies(self) -> Weights:
        """``(k,)`` how often each was right on late labels since it came; 0 before the first."""
        mass = (1.0 - DECAY ** (self.labels - self.joined).astype(np.float64)) / (1.0 - DECAY)
        return self.agreement / np.maximum(mass, 1e-12)

    def kappa(self, task: Task) -> float:
        """Agreement of the best expert beyond chance, ``(a - 1/C) / (1 - 1/C)``; of quantities their correlation."""
        if self.correlation is not None:
            return float(self.correlation.strengths().mean())
        return _kappa(float(self.agreement.max()), self.labels, task)

    def credit(self, task: Task, alone: float = 0.0) -> float:
        """How far labels are believed at all, from 0 to 1: c of the module; of several quantities the mean."""
        return float(self.credits(task, alone).mean())

    def credits(self, task: Task, alone: float = 0.0) -> Weights:
        """The same of each quantity, ``(n_outputs,)``: labels of one may be wrong beside good ones. Else one number.

        Args:
            task: What the outputs mean.
            alone: How far labels are all of one class, late ones and all so far.
        """
        if not self.labels:
            return np.zeros(1)
        if self.correlation is not None:
            return np.clip((self.correlation.strengths() - LEAST_CORRELATION) / RAMP, 0.0, 1.0)
        chance = _chance(task)
        late = DECAY**self.labels
        n = (1.0 + DECAY) / (1.0 - DECAY) * (1.0 - late) / (1.0 + late)  # as many equally weighted labels say as much
        luck = _LUCK * math.sqrt(chance / (1.0 - chance) / n)
        return np.array([_ramp(self.kappa(task) - max(LEAST_AGREEMENT, luck) - alone * MORE_ALONE)])

    def trusts(self, task: Task) -> bool:
        """Whether labels of each output agree so well that the head which is believed most is trusted from now on."""
        if self.correlation is not None:
            return bool(self.correlation.strengths().min() >= TRUST_CORRELATION)
        return self.kappa(task) >= TRUST


def leading(names: Sequence[str], weights: Weights, among: Sequence[bool]) -> str:
    """Of some experts, at least one, that with the largest weight; the trusted past only where nobody is near it."""
    chosen = [weight if is_one else -1.0 for weight, is_one in zip(weights.tolist(), among, strict=True)]
    first = chosen.index(max(chosen))
    if names[first] == TRUSTED and len(chosen) > 1:
        others = chosen[:first] + chosen[first + 1 :]
        if max(others) >= chosen[first] - 1e-12:
            second = others.index(max(others))
            return names[second + (second >= first)]
    return names[first]


def mixture_of(names: tuple[str, ...], start: Weights, task: Task) -> Mixture:
    """A mixture that has heard nothing.

    Args:
        names: Of the experts, the trusted past first.
        start: ``(k,)`` start weights, in any scale.
        task: What the outputs mean.
    """
    weights = np.asarray(start, np.float64) / float(np.sum(start))
    return Mixture(
        names=names,
        weights=weights,
        start=weights,
        agreement=np.zeros(len(names)),
        joined=np.zeros(len(names), np.int64),
        labels=0,
        heard=np.zeros(task.n_groups, np.int64),
        correlation=Correlation.none(len(names), task.n_outputs) if task.is_regression else None,
    )


def credit_of(accuracy: float, chance: float) -> float:
    """How far an accuracy above chance counts, from 0 to 1, were there labels without end: c of the module."""
    return _ramp((accuracy - chance) / (1.0 - chance) - LEAST_AGREEMENT)


def _ramp(above: float) -> float:
    return min(max(above / RAMP, 0.0), 1.0)


def _chance(task: Task) -> float:
    return 1.0 / task.n_outputs if task.is_classifier else 0.5


def answer(
    mixture: Mixture,
    outputs: FloatArray,
    known: Known | None,
    task: Task,
    *,
    trusted: bool = True,
    alone: float = 0.0,
) -> FloatArray:
    """The answer of all experts together.

    Args:
        mixture: How far each is believed.
        outputs: ``(k, batch, n_outputs)`` of the experts.
        known: ``(k, n_outputs)`` which class each expert can know; None where all know all.
        task: What the outputs mean.
        trusted: Whether labels must agree with somebody to count; False believes the weights alone.
        alone: How far labels are all of one class, late ones and all so far.

    Returns:
        ``(batch, n_outputs)`` float32: logits whose softmax (or sigmoid) is the mixture of the experts' probabilities,
        or quantities. Not finite where no expert's answer is.
    """
    weights = mixture.weights[:, None]
    finite = np.isfinite(outputs)
    if not finite.all():  # who answers nothing has no say; not finite is the answer where nobody has one
        speaks = np.asarray(finite.all(axis=2))
        outputs = np.where(speaks[:, :, None], outputs, np.float32(0.0))
        with np.errstate(invalid="ignore"):
            weights = weights * speaks / (weights * speaks).sum(axis=0)
    if known is not None and not known.all():
        weights = _awake(np.broadcast_to(weights, outputs.shape[:2]), outputs, known)
    believed = mixture.credits(task, alone) if trusted else np.ones(1)
    weights = weights[:, :, None]
    if (believed < 1.0).any():
        # Specialists speak also where labels do not count: nobody else can.
        rest = np.zeros_like(weights)
        rest[0] = ~(weights[0] <= 0)
        rest[:, rest[0] == 0] = weights[:, rest[0] == 0]
        weights = believed * weights + (1.0 - believed) * rest
    if task.is_regression:
        return np.asarray(np.add.reduce(weights * outputs, axis=0), np.float32)
    with np.errstate(divide="ignore"):
        if task.is_classifier:
            shares = softmax(outputs)
            shares *= weights
            mixed = np.log(np.add.reduce(shares, axis=0))
            return np.asarray(np.maximum(mixed, -1e4), np.float32)
        # In logarithms: in the shares themselves an answer that is sure is 1, and its logit gone.
        logits, logs = outputs.astype(np.float64), np.log(weights)
        yes, no = (np.logaddexp.reduce(logs - np.logaddexp(0.0, sign * logits), axis=0) for sign in (-1.0, 1.0))
        return np.asarray(yes - no, np.float32)


def _awake(weights: Weights, outputs: FloatArray, known: Known) -> Weights:
    """``(k, batch)`` weights of those who speak about each sample; see *specialists* in the module."""
    found = weights.copy()
    if not weights.shape[1]:
        return found
    answers = outputs.argmax(axis=2)  # (k, batch)
    everybody = np.asarray(known.all(axis=0))
    speaks = np.zeros(answers.shape[1], bool)
    for k in np.argsort(-weights[:, 0]):  # who is believed more is heard first
        special = known[k, answers[k]] & ~everybody[answers[k]] & ~speaks
        for i in np.flatnonzero(special):
            awake = found[:, i] * known[:, answers[k, i]]
            total = float(awake.sum())
            if total > 0:
                found[:, i] = awake / total
        speaks |= special
    return found


def alike(answers: FloatArray, targets: Targets, task: Task) -> float:
    """How far labels that are disagreed with are wrong in the same way, from 0 to 1; see the module.

    Args:
        answers: ``(n, n_outputs)`` to late samples, before their labels were learned.
        targets: Their labels.
        task: What the outputs mean; 0 where it is not one of classes.
    """
    if not task.is_classifier:
        return 0.0
    # A few dozen labels: counting them is faster than arrays of all pairs of classes.
    given = targets.tolist()
    wrong = Counter(pair for pair in zip(answers.argmax(axis=1).tolist(), given, strict=True) if pair[0] != pair[1])
    labels, rows = Counter(given), Counter[int]()
    for (answered, _), count in wrong.items():
        rows[answered] += count
    pairs = sum(count * (count - 1) for count in rows.values())
    same = sum(count * (count - 1) for count in wrong.values())
    # How often two labels of other classes than the answer's are the same in any case: always, where one class comes
    # after another.
    n, equal = len(given), sum(count * (count - 1) for count in labels.values())
    chance = 0.0
    for answered, count in rows.items():
        of_it = labels[answered]
        others = n - of_it
        chance += count * (count - 1) * (equal - of_it * (of_it - 1)) / max(others * (others - 1), 1)
    found = (same - chance + _ALIKE_BEFORE * _PAIRS_BEFORE) / (pairs + _PAIRS_BEFORE)
    return min(max((found - _ALIKE_FROM) / (_ALIKE - _ALIKE_FROM), 0.0), 1.0)


def counts(lately: Targets, heard: npt.NDArray[np.int64], targets: Targets, task: Task) -> FloatArray:
    """``(n,)`` how far labels say who is right, from 0 to 1; see *the class of the day* in the module.

    Args:
        lately: ``(m,)`` the labels that came last.
        heard: ``(groups,)`` labels of each class so far.
        targets: ``(n,)`` those that come now.
        task: What they mean; all count in full where they are no classes.
    """
    if not task.is_classifier:
        return np.ones(len(targets), np.float32)
    # A handful of labels: lists are faster than arrays.
    late, so_far, n_classes = lately[-_LATELY:].tolist(), heard.tolist(), task.n_outputs
    total, found = sum(so_far) + n_classes, []
    for target in targets.tolist():
        usual, now = (so_far[target] + 1) / total, (late.count(target) + 1) / (len(late) + n_classes)
        found.append(min(1.0, usual * (1 - now) / (now * (1 - usual))))
    return np.array(found, np.float32)


def one_class(lately: Targets, targets: Targets) -> Weights:
    """``(n,)`` how far late labels are all of the class of each label that comes now, from 0 to 1.

    Args:
        lately: ``(m,)`` the labels that came last.
        targets: ``(n,)`` those that come now.
    """
    late = lately[-_LATELY:].tolist()
    if len(late) < _FEW:
        return np.zeros(len(targets))
    shares = np.array([late.count(target) for target in targets.tolist()]) / len(late)
    return np.maximum((shares - _MIXED) / (1.0 - _MIXED), 0.0)


def apart(outputs: FloatArray, classes: Targets, targets: Targets, asked: Weights) -> Weights:
    """``(k, n)`` how far each expert still tells others from the class of each label, from 0 to 1; see the module.

    Args:
        outputs: ``(k, m, n_outputs)`` of the experts for known samples.
        classes: ``(m,)`` of these.
        targets: ``(n,)`` labels that come now.
        asked: ``(n,)`` how far it counts, from 0 to 1.
    """
    answers, found = outputs.argmax(axis=2), np.ones((len(outputs), len(targets)))
    for target in set(targets[asked > 0].tolist()):
        taken = answers[:, classes != target] == target
        if taken.size:
            rows, shares = targets == target, taken.mean(axis=1)
            found[:, rows] -= np.outer(np.maximum(shares - shares[1], 0.0), asked[rows])
    return found


def heard(
    mixture: Mixture,
    outputs: FloatArray,
    targets: Targets,
    trusts: FloatArray,
    task: Task,
    usual_loss: float = 0.0,
    alike: float = 0.0,
    apart: Weights | None = None,
) -> Mixture:
    """The mixture after labels, one after another.

    Args:
        mixture: Before them.
        outputs: ``(k, n, n_outputs)`` of the experts for the samples, before any of them learned one.
        targets: ``(n,)`` or ``(n, n_outputs)``.
        trusts: ``(n,)`` from 0 to 1; a label that is not trusted at all changes nothing.
        task: What the outputs mean.
        usual_loss: Of quantities, the median loss of late answers.
        alike: How far late labels are wrong in the same way, see `alike`.
        apart: ``(k, n)`` how far each expert still tells the class of each label from others, see `apart`; None where
            that is not asked.
    """
    says = trusts > 0
    if not says.all():
        if not says.any():
            return mixture
        outputs, targets, trusts = outputs[:, says], targets[says], trusts[says]
        apart = None if apart is None else apart[:, says]
    # A handful of numbers each: lists are faster than arrays.
    weights, start = mixture.weights.tolist(), mixture.start.tolist()
    agreement, labels = mixture.agreement.tolist(), mixture.labels
    found, correlation = _right(outputs, targets, task, usual_loss), mixture.correlation
    rows = (found if apart is None else found * apart.T).tolist()
    if correlation is not None:
        for i, trust in enumerate(trusts.tolist()):
            correlation = correlation.heard(outputs[:, i], targets[i], trust)
    for right, trust in zip(rows, trusts.tolist(), strict=True):
        noise = min(_MOST_NOISE, 1.0 - _best(max(agreement), labels, task)) if labels else 0.0
        more, anchor = noise / (1.0 - noise), max(right[0], right[1])
        gains = [each - 1.0 - more * max(anchor - each, 0.0) for each in right]
        gains[1] += BASE + BASE_OF_ALIKE * alike * noise
        weights = [weight * math.exp(ETA * trust * gain) for weight, gain in zip(weights, gains, strict=True)]
        share = SHARE * trust
        kept = (1.0 - share) / sum(weights)
        weights = [kept * weight + share * each for weight, each in zip(weights, start, strict=True)]
        agreement = [DECAY * late + each for late, each in zip(agreement, right, strict=True)]
        labels += 1
    return replace(
        mixture,
        weights=np.array(weights),
        agreement=np.array(agreement),
        labels=labels,
        heard=mixture.heard + np.bincount(task.groups(targets), minlength=len(mixture.heard)),
        correlation=correlation,
    )


def _right(outputs: FloatArray, targets: Targets, task: Task, usual_loss: float) -> Scores:
    """``(n, k)`` from 0 to 1, of outputs ``(k, n, n_outputs)``; what is not finite is wrong."""
    k, n, n_outputs = outputs.shape
    is_finite = np.isfinite(outputs)
    if task.is_classifier:
        told = outputs.argmax(axis=2) == targets
        if not is_finite.all():
            told &= is_finite.all(axis=2)
        return np.asarray(told.T, np.float64)
    flat, repeated = outputs.reshape(k * n, n_outputs), np.concatenate([targets] * k)
    with np.errstate(all="ignore"):
        if task.is_regression:
            losses = task.losses(flat, repeated)
            found = 1.0 - np.minimum(1.0, losses / (FAR_OFF * max(usual_loss, 1e-30)))
        else:
            found = task.right(flat, repeated)
    found = found.reshape(k, n)
    if not is_finite.all():
        found = np.where(is_finite.all(axis=2), np.nan_to_num(found), 0.0)
    return found.T


def _kappa(agreement: float, labels: int, task: Task) -> float:
    """See `Mixture.kappa`."""
    chance = _chance(task)
    return (_best(agreement, labels, task) - chance) / (1.0 - chance)


def _best(agreement: float, labels: int, task: Task) -> float:
    """How often the best expert was right on late labels; of quantities always."""
    if task.is_regression:
        return 1.0
    return agreement / max((1.0 - DECAY**labels) / (1.0 - DECAY), 1e-12)  # who came late has to show it for as long


def renewed(mixture: Mixture) -> Mixture:
    """After the trusted past became the head that is believed most: what it was believed goes to the others."""
    weights, agreement, joined = mixture.weights.copy(), mixture.agreement.copy(), mixture.joined.copy()
    others = float(weights[1:].sum())
    if others > 0:
        weights[1:] *= (1.0 - _KEPT) / others
        weights[0] = _KEPT
    best = int(agreement.argmax())
    agreement[0], joined[0] = agreement[best], joined[best]
    correlation = mixture.correlation
    if correlation is not None:
        correlation = correlation.chosen([int(mixture.weights.argmax()), *range(1, len(weights))])
    return replace(mixture, weights=weights, agreement=agreement, joined=joined, correlation=correlation)


def with_experts(mixture: Mixture, names: tuple[str, ...], start: Weights, weights: Weights | None = None) -> Mixture:
    """The mixture with other experts: who stays keeps what was heard of it, who is new starts as told.

    Args:
        mixture: Before.
        names: Of the experts from now on.
        start: ``(k,)`` start weights, in any scale.
        weights: ``(k,)`` to go on from; None keeps those of who stays, and gives who is new its start weight.
    """
    start = np.asarray(start, np.float64) / float(np.sum(start))
    at = [mixture.names.index(name) if name in mixture.names else -1 for name in names]
    agreement = np.array([mixture.agreement[i] if i >= 0 else 0.0 for i in at])
    joined = np.array([mixture.joined[i] if i >= 0 else mixture.labels for i in at], np.int64)
    if weights is None:
        new = np.array([i < 0 for i in at])
        kept = np.array([mixture.weights[i] if i >= 0 else 0.0 for i in at])
        fresh = float(start[new].sum())
        total = float(kept.sum())
        weights = np.where(new, start, kept * ((1.0 - fresh) / total if total > 0 else 0.0))
    weights = np.asarray(weights, np.float64)
    weights = weights / weights.sum()
    correlation = None if mixture.correlation is None else mixture.correlation.chosen(at)
    return replace(
        mixture,
        names=names,
        weights=weights,
        start=start,
        agreement=agreement,
        joined=joined,
        correlation=correlation,
    )


def with_classes(mixture: Mixture, n_groups: int) -> Mixture:
    """The mixture with room for further classes."""
    more = n_groups - len(mixture.heard)
    return replace(mixture, heard=np.concatenate([mixture.heard, np.zeros(more, np.int64)]))
