"""Whether the world is still the same, and learners that begin anew when it is not.

When the errors of the answer rise, by `Adwin` on what is above the usual errors of each class, then either the world
has changed or the labels have gone bad. Nobody can tell from one label. So beside every learner a second one begins,
which distrusts what it knew; they compete as all experts do, and after some labels one of the two goes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge.contract.training import FloatArray
from edge.learning.drift import Window, since_the_change
from edge.learning.experts import USUAL_FIRST, Experts
from edge.learning.learned import Happened, Head, Learned
from edge.learning.quantiles import median
from edge.learning.recent import Recent
from edge.learning.task import Scores, Targets, Task

# Of a learner that distrusts what it knew before a change, until it has taken the place of the one that does not.
ANEW = " anew"
# Labels after which one of the two goes.
ANEW_LABELS = 64
# How fast the usual error of a class is learned, and how long a class is new.
_USUAL, _NEW = 0.05, 5


def watched(
    experts: Experts, learned: Learned, answered: FloatArray, targets: Targets, trusts: FloatArray
) -> tuple[Learned, list[Happened]]:
    """What labels say about the world.

    Args:
        experts: Of the head.
        learned: What is known, these labels among it.
        answered: ``(n, n_outputs)`` before the labels were learned.
        targets: ``(n,)`` or ``(n, n_outputs)``.
        trusts: ``(n,)`` of the labels, above 0.
    """
    task = experts.task(learned)
    groups, usual = task.groups(targets), learned.usual.copy()
    heard = learned.mixture.heard - np.bincount(groups, minlength=len(usual))  # of each class before this label
    above: list[float] = []
    wrong = errors(learned.recent, answered, targets, task)
    for group, error, trust in zip(groups.tolist(), wrong.tolist(), trusts.tolist(), strict=True):
        heard[group] += 1
        n, before = int(heard[group]), float(usual[group])
        if n <= _NEW:  # a class that had not come before: to be wrong about it says nothing about the world
            usual[group] = max(USUAL_FIRST, ((n - 1) * before + error) / n)
            continue
        usual[group] = before + _USUAL * trust * (error - before)
        above.append(trust * max(0.0, error - before))
    adwin = experts.adwin
    adwin.load(learned.drift)
    risen = adwin.add(*above) if above else 0.0
    learned = replace(learned, usual=usual, drift=adwin.value)
    if risen <= 0.0:
        return learned, []
    width = since_the_change(errors(learned.recent, learned.recent.answers, learned.recent.targets, task))
    late = learned.recent.last(width)
    learned = _begun_anew(experts, learned, late.features(experts.shape), late.targets)
    usual = np.full(task.n_groups, USUAL_FIRST)
    text = f"errors have risen over the last {width} labels: the world has changed, or the labels are wrong"
    return replace(learned, drift=Window(), usual=usual, since_drift=0), [Happened("drift", text)]


def _begun_anew(experts: Experts, learned: Learned, features: FloatArray, targets: Targets) -> Learned:
    """Beside every learner, one that distrusts what it knew: they compete as all experts do."""
    kept = {name: expert for name, expert in learned.experts.items() if not name.endswith(ANEW)}
    for name in [name for name in learned.mixture.names if name in kept]:
        expert = kept[name]
        if isinstance(expert, Head):
            continue
        again = name + ANEW
        heavier = learned.mixture.weight_of(again) > learned.mixture.weight_of(name)
        machine = experts.machine(again)
        machine.load(learned.experts[again] if heavier else expert)
        machine.distrust_the_past(features, targets)
        kept[again] = machine.value
    return experts.among(replace(learned, experts=kept))


def settled(experts: Experts, learned: Learned, n: int) -> Learned:
    """Once there were enough labels since a change: of each learner and the one that began anew, one.

    `n` is how many labels came since this was asked last.
    """
    if 0 <= learned.since_drift - ANEW_LABELS < n:
        for name in [name for name in learned.experts if name.endswith(ANEW)]:
            learned = _one_of_two(experts, learned, name)
    return learned


def _one_of_two(experts: Experts, learned: Learned, name: str) -> Learned:
    """Of a learner and the one that began anew, the one that is believed more."""
    usual, kept = name.removesuffix(ANEW), dict(learned.experts)
    anew = kept.pop(name)
    if learned.mixture.weight_of(name) > learned.mixture.weight_of(usual):
        kept[usual] = anew
    weights = {n: learned.mixture.weight_of(n) for n in kept}
    weights[usual] += learned.mixture.weight_of(name)
    trusted = usual if learned.trusted == name else learned.trusted
    return experts.among(replace(learned, experts=kept, trusted=trusted), weights)


def errors(recent: Recent, outputs: FloatArray, targets: Targets, task: Task) -> Scores:
    """``(n,)`` from 0 to 1: how wrong; of quantities, the loss against the median of late ones."""
    if not task.is_regression:
        return 1.0 - task.right(outputs, targets)
    losses = task.losses(outputs, targets)
    usual = float(median(recent.last(32).losses(task))) if len(recent) else 0.0
    return np.asarray(losses / (losses + usual + 1e-12))
