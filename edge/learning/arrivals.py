"""Heads from elsewhere, and how they are taken in: a merge or a rival beside the others, or one in place of all.

A merge is right where devices see the same world, and wrong where each sees its own; nobody can know which beforehand,
so both stay. How far a merge is believed at first depends on whose world the samples of this device look like
(`edge.learning.familiarity`), and on what the other devices' part of it says to the labels that came last.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.training import Parameters
from edge.learning import mixture as mix
from edge.learning.drift import Window
from edge.learning.drifting import ANEW
from edge.learning.events import HeadOffered
from edge.learning.exchange import HeadRelease
from edge.learning.experts import USUAL_FIRST, Experts, on_merge, start_weights
from edge.learning.learned import Head, Learned, Trial
from edge.learning.mixture import MERGED, ON_MERGE, ON_WARM, PUSHED, TRUSTED, WARM, Mixture
from edge.learning.recent import Recent
from edge.learning.trial import MIN_LABELS

# What is left to all others, however much better a merge is: after some that are, nothing would be.
_HEARD = 1e-3


def aligned(rig: Experts, learned: Learned, release: HeadRelease) -> HeadRelease:
    """A release in the order of this device's classes; those that it does not know keep what they have here."""
    if not rig.shipped_task.is_classifier or rig.head is None:
        return release
    given = release.class_names or rig.shipped_names
    own = rig.parameters(learned, rig.speaker(learned, is_plain=True))
    return release.aligned(given, learned.class_names, rig.head, own)


def _taken_in(rig: Experts, learned: Learned, release: HeadRelease) -> tuple[Learned, HeadRelease]:
    """Room for the classes of a release, and the release in the order that is then here."""
    new = (name for name in release.class_names if name not in learned.class_names)
    learned = rig.with_classes(learned, (*learned.class_names, *new))
    return learned, aligned(rig, learned, release)


def _rebased(rig: Experts, learned: Learned, source: str, target: str, release: HeadRelease) -> Any:
    """What a learner knows, put on top of a release."""
    machine = rig.machine(target)
    machine.load(learned.experts[source])
    is_sum = machine.kind == "statistics"
    # What was told under noise is no part of what this device knows: nothing of that is in the merge.
    included = 0 if is_sum and rig.disclosing is not None else release.included.get(learned.lineage, 0)
    machine.rebase(release.parameters, release.merged if is_sum else {}, included)
    return machine.value


def offered(rig: Experts, learned: Learned, event: HeadOffered) -> Learned:
    """With a merge, and each learner on it, or with a head that was pushed to compete."""
    learned, release = _taken_in(rig, learned, event.release)
    if release.is_merge and learned.has_merge and not learned.release:
        learned = _beside_merges(learned)
    experts = dict(learned.experts)
    if event.fits and learned.mixture.labels < MIN_LABELS:
        experts[TRUSTED] = Head(release.parameters)
        learned = replace(learned, trusted=MERGED if release.is_merge else PUSHED)
    if not release.is_merge:
        experts[PUSHED] = Head(release.parameters)
        return rig.among(replace(learned, experts=experts))
    merged = {}
    for name in rig.learners:
        if not rig.machine(name).kind:  # nothing that comes from others is of use to it
            continue
        is_delta = rig.machine(name).kind == "delta"
        source = name + ON_MERGE if is_delta and name + ON_MERGE in experts else name
        merged[name + ON_MERGE] = _rebased(rig, learned, source, name + ON_MERGE, release)
    kept = {name: expert for name, expert in experts.items() if not on_merge(name) and not name.endswith(ANEW)}
    experts = {**kept, MERGED: Head(release.parameters), **merged}
    offered = rig.among(replace(learned, experts=experts, release=event.counter, merge_fits=event.fits))
    return replace(offered, mixture=_foreseen(rig, offered))


def recognized(rig: Experts, learned: Learned, *, fits: bool) -> Learned:
    """With a merge of which is known by now whether it is a picture of this world.

    It is believed as if that had been known when it came: what labels have said since stays said.
    """
    mixture = learned.mixture
    if not learned.has_merge or learned.merge_fits is not None:
        return learned
    names, labels = mixture.names, int(mixture.joined[mixture.names.index(MERGED)])
    ratio = start_weights(names, fits, labels) / start_weights(names, None, labels)
    weights, start = mixture.weights * ratio, mixture.start * ratio
    mixture = replace(mixture, weights=weights / weights.sum(), start=start / start.sum())
    learned = replace(learned, mixture=mixture, merge_fits=fits)
    if fits and mixture.labels < MIN_LABELS:
        head = Head(rig.parameters(learned, MERGED))
        learned = replace(rig.with_expert(learned, TRUSTED, head), trusted=MERGED)
    return learned


def _beside_merges(learned: Learned) -> Learned:
    """With what a warm start brought under names of its own: the merge that comes does not take its place.

    It came as a merge does, but of no release: those of the fleet are counted from 1.
    """

    def renamed(name: str) -> str:
        return WARM if name == MERGED else name.replace(ON_MERGE, ON_WARM)

    experts = {renamed(name): expert for name, expert in learned.experts.items() if not name.endswith(ANEW)}
    names = tuple(map(renamed, learned.mixture.names))
    mixture = replace(learned.mixture, names=names)
    kept = replace(learned, experts=experts, mixture=mixture, trusted=renamed(learned.trusted), merge_fits=None)
    # Learners that send changes go on from the newest of them.
    before = {name: each for name, each in learned.experts.items() if name.endswith(ON_MERGE)}
    return replace(kept, experts={**kept.experts, **before})


def _foreseen(rig: Experts, learned: Learned) -> Mixture:
    """The weights of a new merge, corrected by what others' part of it says to the labels that came last.

    A merge is right where devices see the same world, and wrong where each sees its own. Both it and what is here
    are judged on labels that they had not learned: it by the others' part, this device by what it had answered.
    """
    recent, task, mixture = learned.recent, rig.task(learned), learned.mixture
    merged = (name for name in rig.learners if name + ON_MERGE in learned.experts)
    others = next((found for name in merged if (found := _others(rig, learned, name)) is not None), None)
    if task.is_regression or not len(recent) or others is None:
        return mixture
    head, known = others
    here, trusts = task.right(recent.answers, recent.targets), recent.weights
    there = task.right(rig.run(recent.features(rig.shape), head), recent.targets)
    if task.is_classifier:  # what others never met is no fault of theirs
        chosen = known[recent.targets]
        here, there, trusts = here[chosen], there[chosen], recent.weights[chosen]
    is_merge = np.array([on_merge(name) for name in mixture.names])
    # Both are summed: of one minus the other rounding may leave nothing.
    start, rest = (float(mixture.weights[which].sum()) for which in (is_merge, ~is_merge))
    if not (start > 0 and rest > 0):
        return mixture
    # The least that it surely gains: less one standard deviation of what could be luck.
    gain = float(trusts @ (there - here)) - math.sqrt(float(trusts @ np.abs(there - here)))
    won = start * math.exp(mix.ETA * gain)
    share = min(max(won / (won + rest), mix.SHARE * start), 1.0 - _HEARD)
    ratio = np.where(is_merge, share / start, (1.0 - share) / rest)
    begun = mixture.start * ratio
    return replace(mixture, weights=mixture.weights * ratio, start=begun / begun.sum())


def _others(rig: Experts, learned: Learned, name: str) -> tuple[Parameters, npt.NDArray[np.bool_]] | None:
    """What is left of a merge without what this device contributed, and which classes the others have met."""
    found = rig.loaded(learned, name + ON_MERGE).of_others()
    if found is None:
        return None
    head, counts = found
    shares = np.zeros(len(counts)) if rig.shares is None else np.pad(rig.shares, (0, len(counts) - len(rig.shares)))
    # Of the shipped samples in it there are at most as many as leave no class with fewer than none.
    shipped = min((counts[c] / shares[c] for c in np.flatnonzero(shares > 0)), default=0.0)
    return head, np.asarray(counts - shipped * shares >= mix.KNOWN_FROM)


def replaced(rig: Experts, learned: Learned, release: HeadRelease, counter: int) -> Learned:
    """With a head in place of all others, on trial, and each learner on it."""
    learned, release = _taken_in(rig, learned, release)
    before = replace(learned, trial=None)
    head = Head(release.parameters)
    experts: dict[str, Any] = {TRUSTED: head, PUSHED: head}
    for name in rig.learners:
        experts[name] = _rebased(rig, learned, name, name, release)
    names, task = tuple(experts), rig.task(learned)
    fresh = replace(mix.mixture_of(names, start_weights(names), task), heard=learned.mixture.heard)
    return replace(
        learned,
        experts=experts,
        mixture=fresh,
        trusted=PUSHED,
        merge_fits=None,
        release=counter,
        drift=Window(),
        usual=np.full(task.n_groups, USUAL_FIRST),
        since_drift=0,
        trial=Trial(before=before, since=Recent.none(rig.shape, task), events=np.zeros(0, np.int64)),
    )
