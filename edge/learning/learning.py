"""What each event makes of what a device has learned: the only way from one `Learned` to the next.

The same value and the same event give the same value, bit for bit, today and after a restart.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from edge.contract.errors import LearningError
from edge.contract.training import FloatArray
from edge.learning import arrivals, drifting
from edge.learning import mixture as mix
from edge.learning.calibration import fit_temperature
from edge.learning.correlation import goes_on
from edge.learning.disclosure import Disclosed
from edge.learning.events import (
    ClassAdded,
    Confirmed,
    Contributed,
    Event,
    HeadOffered,
    HeadReplaced,
    Labelled,
    MergeRecognized,
    RolledBack,
)
from edge.learning.experts import Experts
from edge.learning.learned import Happened, Head, Learned
from edge.learning.learner import check_batch
from edge.learning.mixture import TRUSTED
from edge.learning.quantiles import median
from edge.learning.recent import Recent
from edge.learning.task import Targets, Task

# Labels that are kept to judge heads on, and while a head is on trial: who never confirms loses only older ones.
RECENT, ON_TRIAL = 64, 1024
# Labels between two looks at what is trusted, and between two fits of the temperature.
TRUST_EVERY, CALIBRATE_EVERY = 32, 16
# Labels of one event that are taken together at most.
AT_ONCE = CALIBRATE_EVERY
# A target of a quantity counts less where its loss is so many times the usual: six times its error.
OUTLIER = 36.0
# What is usual is the median of so many late labels: after half of them a change is no longer taken for an error.
_NEW_LOSSES = 8


class Learning(Experts):
    """The rules of one bundle's head; see the module and `Experts`."""

    def check(self, learned: Learned, label: Labelled) -> None:
        """Raise LearningError for a label that cannot be learned."""
        features = label.features.unpack(self.shape)
        check_batch(features, label.target, label.weight, self.shape, self.task(learned))

    def advance(self, learned: Learned, event: Event) -> tuple[Learned, list[Happened]]:
        """What an event makes of it, and what there is to say about that.

        Raises:
            LearningError: It cannot happen; nothing changed.
            BundleError: A head that is not one of this bundle; nothing changed.
        """
        # What was told of labels stays told, whatever becomes of the head that learned them.
        disclosed = self._disclosed(learned, event)
        if disclosed is None and learned.disclosed is None:
            return self._advanced(learned, event)
        after, happened = self._advanced(replace(learned, disclosed=None), event)
        if disclosed is not None:
            disclosed = disclosed.grown(len(after.class_names))
        return replace(after, disclosed=disclosed), happened

    def _disclosed(self, learned: Learned, event: Event) -> Disclosed | None:
        """What is told under noise, with the samples of an event, or with what it says was told."""
        disclosed = learned.disclosed
        if isinstance(event, Contributed) and event.noise is not None and disclosed is not None:
            return disclosed.closed(event.noise, event.seed, event.version)
        coordinates = None if self.disclosing is None else self.disclosing.coordinates
        if not isinstance(event, Labelled) or coordinates is None:
            return disclosed
        self.check(learned, event)
        r, n_classes = len(coordinates.offset), len(learned.class_names)
        if disclosed is None or not disclosed.fits(r, n_classes):
            disclosed = Disclosed.nothing(r, n_classes)
        return disclosed.learned(coordinates.of(event.features.unpack(self.shape)), event.target, event.weight)

    def _advanced(self, learned: Learned, event: Event) -> tuple[Learned, list[Happened]]:
        match event:
            case Labelled():
                return self._labelled(learned, event)
            case Contributed(noise=noise) if noise is not None:
                return learned, []
            case Contributed(compression=compression):
                machine = self.loaded(learned, self.contributor(learned))
                machine.contribution(compression)
                return self.with_expert(learned, self.contributor(learned), machine.value), []
            case ClassAdded(name=name):
                return self.with_classes(learned, (*learned.class_names, name)), []
            case HeadOffered():
                return arrivals.offered(self, learned, event), []
            case HeadReplaced(release=release, counter=counter):
                return arrivals.replaced(self, learned, release, counter), []
            case MergeRecognized(fits=is_here):
                return arrivals.recognized(self, learned, fits=is_here), []
            case Confirmed():
                return replace(learned, trial=None), []
            case RolledBack():
                return self._rolled_back(learned), []

    def _labelled(self, learned: Learned, event: Labelled) -> tuple[Learned, list[Happened]]:
        """All labels of an event, some at a time."""
        task = self.task(learned)
        x = event.features.unpack(self.shape)
        x, targets, weights = check_batch(x, event.target, event.weight, self.shape, task)
        happened: list[Happened] = []
        start, count = 0, len(weights)
        to_fit: Recent | None = None
        while start < count:
            before = learned.mixture.labels
            stop = min(count, start + _at_once(before))
            some = event if stop - start == count else event.rows(start, stop)
            rows = slice(start, stop)
            learned, more = self._learned(learned, some, x[rows], targets[rows], weights[rows], task)
            if learned.mixture.labels // CALIBRATE_EVERY != before // CALIBRATE_EVERY:
                to_fit = learned.recent
            happened += more
            start = stop
        # Nothing that is learned depends on the temperature: of the fits of one event the last is the only one seen.
        if to_fit is not None and not task.is_regression:
            learned = replace(learned, temperature=fit_temperature(to_fit.answers, to_fit.targets, task))
        if learned.trial is not None:
            learned = replace(learned, trial=learned.trial.with_event(count))
        return learned, happened

    def _learned(
        self, learned: Learned, labels: Labelled, x: FloatArray, targets: Targets, weights: FloatArray, task: Task
    ) -> tuple[Learned, list[Happened]]:
        """Labels that are taken together: every expert answers all of them before any is learned."""
        was = learned.mixture.believed
        outputs = self.outputs(learned, x)
        answered = self.mixed(learned, outputs)
        if not np.isfinite(answered).all():
            answered = np.nan_to_num(answered)
        trusts = _credible(learned.recent, answered, targets, weights, task)
        apart = self._apart(learned, targets, task)  # before any of them learns: to go back is dear
        experts = self._taught(learned, x, targets, trusts)
        trial = learned.trial
        if trial is not None:
            trial = replace(trial, since=trial.since.put(labels, answered, ON_TRIAL))
        says = trusts > 0  # a label that is not trusted at all says nothing about anybody
        if not says.all():
            learned = replace(learned, experts=experts, trial=trial)
            if not says.any():
                return learned, []
            labels = Labelled(labels.features.chosen(says), labels.target[says], labels.weight[says])
            outputs, answered, targets, trusts = outputs[:, says], answered[says], targets[says], trusts[says]
            apart = None if apart is None else apart[:, says]
        usual = _usual_loss(learned.recent, outputs, targets, task)
        alike = mix.alike(learned.recent.answers, learned.recent.targets, task)
        counts = trusts * mix.counts(learned.recent.targets, learned.mixture.heard, targets, task)
        learned = replace(
            learned,
            experts=experts,
            trial=trial,
            mixture=mix.heard(learned.mixture, outputs, targets, counts, task, usual, alike, apart),
            recent=learned.recent.put(labels, answered, RECENT),
            since_drift=learned.since_drift + len(trusts),
        )
        learned, happened = drifting.watched(self, learned, answered, targets, trusts)
        learned = self._settled(learned, len(trusts))
        now = learned.mixture.believed
        if self.is_mixture and was != now:
            share = learned.mixture.weight_of(now)
            happened = [*happened, Happened("believed", f"{now} is believed most, {share:.0%}; before it was {was}")]
        return learned, happened

    def _apart(self, learned: Learned, targets: Targets, task: Task) -> mix.Weights | None:
        """See `edge.learning.mixture.apart`; None where late labels are mixed."""
        if not (self.is_mixture and task.is_classifier):
            return None
        asked = mix.one_class(learned.recent.targets, targets)
        known = self.known_samples.of(learned) if asked.any() else None
        return None if known is None else mix.apart(self.outputs(learned, known[0]), known[1], targets, asked)

    def _taught(self, learned: Learned, x: FloatArray, target: Targets, weight: FloatArray) -> dict[str, Any]:
        """The experts after every learner has learned samples; one that refuses stays as it was."""
        experts = dict(learned.experts)
        refused: list[LearningError] = []
        learners = [name for name, expert in experts.items() if not isinstance(expert, Head)]
        for name in learners:
            machine = self.loaded(learned, name)
            try:
                machine.learn_together(x, target, weight)
            except LearningError as exc:
                refused.append(exc)
                continue
            experts[name] = machine.value
        if len(refused) == len(learners):
            raise refused[0]
        return experts

    def _settled(self, learned: Learned, n: int) -> Learned:
        """What is looked at now and then: the trusted past, and whether a learner that began anew was right to.

        `n` is how many labels came since it was looked at last.
        """
        learned = drifting.settled(self, learned, n)
        mixture = learned.mixture
        is_time = mixture.labels // TRUST_EVERY != (mixture.labels - n) // TRUST_EVERY
        if is_time and mixture.trusts(self.task(learned)) and _go_on(learned.recent, self.task(learned)):
            best = mixture.believed
            if best != TRUSTED:
                head = Head({key: array.copy() for key, array in self.parameters(learned, best).items()})
                learned = replace(self.with_expert(learned, TRUSTED, head), trusted=best)
                learned = replace(learned, mixture=mix.renewed(mixture))
        return learned

    def _rolled_back(self, learned: Learned) -> Learned:
        if learned.trial is None:
            raise LearningError("there is no head on trial to go back from")
        before, since = learned.trial.before, learned.trial.since
        labels, start = since.labels(), 0
        for size in learned.trial.events.tolist():
            with suppress(LearningError):  # what only the head on trial could learn does not keep it
                before, _ = self._labelled(before, labels.rows(start, start + size))
            start += size
        return before


def _at_once(labels: int) -> int:
    """How many labels are taken together after so many: few where each may change much.

    None of them goes beyond the next look at what is trusted, and at the temperature.
    """
    return min(max(1, labels // 4), AT_ONCE - labels % AT_ONCE)


def _credible(recent: Recent, answered: FloatArray, targets: Targets, weights: FloatArray, task: Task) -> FloatArray:
    """``(n,)`` weights, less where the target of a quantity cannot be believed.

    Sums of squares never get over a target that is off by orders of magnitude. One whose loss is more than `OUTLIER`
    times the usual counts as if it were that far off: after a real change the usual loss soon rises.
    """
    if not task.is_regression or len(recent) < _NEW_LOSSES:
        return weights
    limit = OUTLIER * float(median(recent.last(_NEW_LOSSES).losses(task)))
    losses = task.losses(answered, targets)
    is_far = (losses > limit) & (limit > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return weights * np.where(is_far, limit / losses, 1.0).astype(np.float32)


def _go_on(recent: Recent, task: Task) -> bool:
    """Whether labels since the last look at what is trusted agree as those before; of classes the agreement says so."""
    late = recent.last(TRUST_EVERY)
    return not task.is_regression or goes_on(late.answers, late.targets, mix.TRUST_CORRELATION)


def _usual_loss(recent: Recent, outputs: FloatArray, targets: Targets, task: Task) -> float:
    """Of quantities, the median loss of late answers; of the experts for the first one, where there were none."""
    if not task.is_regression:
        return 0.0
    if len(recent):
        return float(median(recent.last(32).losses(task)))
    return float(median(task.losses(outputs[:, 0], np.repeat(targets[:1], len(outputs), axis=0))))
