"""What a device and its fleet give each other: contributions up, heads down; the heads are judged before they answer.

A *merge* competes: it becomes one more expert. A head that an operator pushes *replaces* everything, on trial: what was
there before comes back when labels say so. See `edge.learning.trial` for what a judgement can come to.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from edge.agent.model.on_device_model import OnDeviceModel
from edge.agent.model.recognition import fits_here, standing
from edge.agent.model.served_model import NO_HEAD
from edge.agent.model.shadow import Shadow
from edge.agent.model.standing import expert_weights, head_digest
from edge.channel.messages import Pairs
from edge.contract.bundle import check_parameters
from edge.contract.errors import BundleError, LearningError
from edge.contract.training import FloatArray
from edge.inference.onnx_session import golden_inputs
from edge.learning.arrivals import aligned
from edge.learning.compression import EXACT, Compression
from edge.learning.disclosure import SEED_BYTES, Disclosing
from edge.learning.events import Confirmed, Contributed, HeadOffered, HeadReplaced, RolledBack
from edge.learning.exchange import HeadRelease, HeadUpdate, Noised, is_class_name
from edge.learning.learned import Learned, Trial
from edge.learning.mixture import MERGED, PUSHED, SHIPPED
from edge.learning.statistics import HeadStatistics
from edge.learning.trial import COMPETES, MIN_LABELS, MIN_SAMPLES, Finding, Verdict, compare, judge

__all__ = [
    "Offer", "bring_back", "compared", "confirm", "contribution", "expert_weights", "fitted", "go_back",
    "head_digest", "judge_bundle", "judge_taken", "look_at", "newest", "roll_back", "take",
]  # fmt: skip

# Samples without labels that heads are compared on, and what those of this device are called.
_COMPARED, _OWN = 64, "samples"


def contribution(
    model: OnDeviceModel, name: str = "", state_id: str = "", compression: Compression = EXACT
) -> HeadUpdate:
    """What a model of this name learned, for the coordinator; after a restart it still knows what is on its way.

    Where that is told under noise, it must not leave before the state says that it is safe: else the same samples could
    be told again with other noise.
    """
    learning, learned = model.learning, model.learned
    if learning.disclosing is not None:
        return _noised(model, learning.disclosing, name, state_id)
    kind, packed = learning.contribution(learned, compression)
    update = HeadUpdate(
        learner=kind,
        backbone=model.manifest.backbone_digest,
        lineage=learned.lineage,
        version=model.n_samples,
        n_samples=learning.n_contributed(learned),
        base_release=learned.release,
        tensors=packed.tensors,
        packed=packed,
        class_names=model.class_names if model.class_names != model.manifest.class_names else (),
        model=name,
        state_id=state_id,
    )
    model.happen(Contributed(update.version, compression))
    return update


def newest(model: OnDeviceModel) -> int:
    """The version of what `contribution` would give now."""
    told = model.learned.disclosed
    return model.n_samples if model.learning.disclosing is None or told is None or told.is_due else told.version


def _noised(model: OnDeviceModel, disclosing: Disclosing, name: str, state_id: str) -> HeadUpdate:
    if disclosing.coordinates is None:
        raise LearningError(f"nothing can be told under noise: {disclosing.why_not}")
    told = model.learned.disclosed
    if told is not None and told.is_due:
        model.happen(Contributed(model.n_samples, EXACT, disclosing.noise, os.urandom(SEED_BYTES)))
        told = model.learned.disclosed
    if told is None or not told.n_told:
        raise LearningError("there are no labelled samples to tell of")
    return HeadUpdate(
        learner="statistics",
        backbone=model.manifest.backbone_digest,
        lineage=model.learned.lineage,
        version=told.version,
        n_samples=told.n_told,
        base_release=model.learned.release,
        tensors=dict(told.tensors),
        class_names=model.class_names if model.class_names != model.manifest.class_names else (),
        model=name,
        state_id=state_id,
        noised=Noised(
            epsilon=told.epsilon, delta=told.delta, variance=told.variance, frame=disclosing.coordinates.frame
        ),
    )


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Offer:
    """A head that was looked at, and not taken in yet.

    Attributes:
        release: It.
        verdict: What there is to say about it on this device.
        competes: Whether it becomes one more expert, or replaces everything.
    """

    release: HeadRelease
    verdict: Verdict
    competes: bool


def fitted(model: OnDeviceModel, release: HeadRelease) -> HeadRelease:
    """A head from elsewhere in the order of this device's classes.

    Raises:
        BundleError: There is no head here, it belongs to another backbone, or its parameters are not this head's.
    """
    manifest = model.manifest
    if not model.learns:
        raise BundleError(NO_HEAD)
    if release.backbone != manifest.backbone_digest:
        raise BundleError("the offered head belongs to another backbone")
    check_parameters(release.parameters, manifest, "the offered head", len(release.class_names) or None)
    if not all(is_class_name(name) for name in release.class_names):
        raise BundleError("the offered head has classes whose names are none")
    head = manifest.head
    assert head is not None
    if release.merged and head.linear is not None:
        n_outputs, is_classifier = len(release.class_names) or len(manifest.class_names), model.task.is_classifier
        n_outputs = n_outputs if is_classifier and n_outputs else model.learning.shipped_task.n_outputs
        try:
            HeadStatistics.from_tensors(release.merged, head.n_statistics, n_outputs, is_classifier=is_classifier)
        except LearningError as exc:
            raise BundleError(f"the offered head: {exc}") from exc
    return aligned(model.learning, model.learned, release)


def look_at(model: OnDeviceModel, release: HeadRelease, *, competes: bool) -> Offer:
    """Judge an offered head by the labels that came last, else by the samples that did; changes nothing.

    The samples of the bundle alone say that a head is another one, but not that one which competes is of use here.

    Raises:
        BundleError: As `fitted`.
    """
    here, learned = fitted(model, release), model.learned

    def answers(features: FloatArray) -> FloatArray:
        with np.errstate(all="ignore"):  # a verdict says what is not finite
            return model.learning.run(features, here.parameters)

    recent, labelled = learned.recent, learned.recent.features(model.learning.shape)
    verdict = judge(recent.answers, answers(labelled), recent.targets, model.task)
    if verdict.finding is Finding.NOT_JUDGED:
        # Also those that have a label by now: too few to judge by are enough to see that a head is another one.
        features, whose = _compared_on(model, labelled)
        if len(features):
            found = compare(model.answer(features), answers(features), model.task, whose)
            if competes and whose != _OWN and found.finding is Finding.GOOD:
                found = Verdict(Finding.NOT_JUDGED, f"{Finding.NOT_JUDGED}: {found.reason}")
            verdict = verdict if found.finding is Finding.NOT_JUDGED and len(recent) else found
    return Offer(release=release, verdict=verdict, competes=competes)


def _compared_on(model: OnDeviceModel, *own: FloatArray) -> tuple[FloatArray, str]:
    """Features of samples without labels that heads are compared on, and what they are called.

    A device that has seen too few samples has those that came with its bundle: few and of another place, but a head
    that answers them otherwise is another head.
    """
    features = np.concatenate([*own, model.answering.late_features(_COMPARED)])[-_COMPARED:]
    if len(features) >= MIN_SAMPLES:
        return features, _OWN
    golden = model.serving.session.features(golden_inputs(model.bundle))  # each with a state of its own
    return np.concatenate([golden, features]), f"samples, {len(golden)} of them of the bundle"


def take(model: OnDeviceModel, offer: Offer, counter: int) -> None:
    """Take a head in that was looked at; safe from a power cut when this returns.

    Args:
        model: Takes it.
        offer: The head.
        counter: Its release counter, the base of later contributions.

    Raises:
        OSError: It cannot be kept; nothing changed.
    """
    before = model.learned
    if offer.competes:
        model.happen(HeadOffered(offer.release, counter, fits=fits_here(model, offer.release)))
    else:
        model.happen(HeadReplaced(offer.release, counter))
        model.metrics.forget_judgements()
    late = model.answering.late_features(_COMPARED)
    model.state.shadow = Shadow(model.learning, before, model.learned, counter, late)


def bring_back(model: OnDeviceModel, offer: Offer, counter: int, undoes: int, *, anew: bool = False) -> str:
    """Take a release back: what was here before it answers again; where that is not known any more, the older head.

    Somebody decided so: nothing is on trial afterwards.

    Args:
        model: Has nothing on trial.
        offer: The older head, looked at.
        counter: Of the release that takes the other one back.
        undoes: The release that is taken back.
        anew: It is the older head itself that is to answer, and not what was here before: that may be of another
            release, or have something in that was forgotten since.

    Returns:
        What was done, in words.

    Raises:
        LearningError: It cannot be used or kept; nothing changed.
        OSError: The same.
    """
    learned = model.learned
    if learned.release != undoes and has(model, offer.release):
        model.restore(replace(learned, release=counter))
        return f"release {undoes} is not live here: what is here stays"
    if not anew and learned.release == undoes and (before := model.state.before(undoes)) is not None:
        go_back(model, replace(before, release=counter))
        model.state.shadow = None
        return f"release {undoes} is taken back: what was here before it answers"
    take(model, offer, counter)
    confirm(model)
    return f"release {undoes} is taken back: the older head {'competes again' if offer.competes else 'answers'}"


def has_any(model: OnDeviceModel) -> bool:
    """Whether a head that came from the fleet is among those that compete here."""
    return not {MERGED, PUSHED}.isdisjoint(model.learned.mixture.names)


def has(model: OnDeviceModel, release: HeadRelease) -> bool:
    """Whether a head is among those that compete here, and no pushed one beside it, which may be what is taken back.

    Rows of classes that were added here since do not count.
    """
    competing = model.learned.mixture.names
    names = {PUSHED} if PUSHED in competing else {MERGED, SHIPPED}.intersection(competing)
    heads = [model.learning.parameters(model.learned, name) for name in names]
    return any(
        head.keys() == release.parameters.keys()
        and all(np.array_equal(head[name][: len(array)], array) for name, array in release.parameters.items())
        for head in heads
    )


def compared(model: OnDeviceModel) -> Pairs:
    """How what is live answers beside what was before it, so far."""
    return Pairs() if model.state.shadow is None else model.state.shadow.pairs


def judge_taken(model: OnDeviceModel, *, was_judged: bool, labels: int, counter: int) -> Verdict:
    """Whether a head that was taken in holds up, on what came since.

    Args:
        model: Has it.
        was_judged: Whether labels or samples spoke for a competing head before it was taken in.
        labels: That came since.
        counter: Of its release: a merge that came after a pushed head is what is judged, and not that head.
    """
    if model.trial is not None:
        return _judge_trial(model, model.trial)
    text, is_known = standing(model), model.learned.merge_fits is not None
    if PUSHED in model.learned.mixture.names and model.learned.release != counter:
        share = float(model.learning.says(model.learned)[model.learned.mixture.names.index(PUSHED)])
        text, is_known = f"it {COMPETES} has {share:.0%} of the say after {labels} labels", False
    if was_judged or is_known or labels >= MIN_LABELS:
        return Verdict(Finding.GOOD, text)
    return Verdict(Finding.NOT_JUDGED, f"not judged: {text}; {MIN_LABELS} labels would tell")


def judge_bundle(model: OnDeviceModel, labels: int) -> Verdict:
    """Whether a bundle that was made live holds up: it does until a prediction fails or is not finite.

    Only that can speak for or against one that does not learn: no label will. One that learns does not wait for it,
    since heads for it may come, and says that nothing spoke for it.

    Args:
        model: Of it; its figures began with it.
        labels: That came since.
    """
    predictions = model.metrics.predictions
    if not predictions:
        finding = Finding.GOOD if model.learns else Finding.NOT_JUDGED
        return Verdict(finding, f"{Finding.NOT_JUDGED}: nothing was predicted since it is live")
    return Verdict(Finding.GOOD, f"{predictions} predictions and {labels} labels, no failure")


def _judge_trial(model: OnDeviceModel, trial: Trial) -> Verdict:
    """The head on trial against what was before it: by the labels since, or else with those before, or by answers."""
    head = model.manifest.head
    assert head is not None
    learning, before, since, task = model.learning, trial.before, trial.since, model.task
    shape, recent = head.features.sample_shape, trial.before.recent
    features = since.features(shape)
    then = learning.answer(before, features)
    verdict = judge(then, since.answers, since.targets, task)
    if verdict.finding is not Finding.NOT_JUDGED:
        return verdict
    old_features = recent.features(shape)
    pushed = learning.run(old_features, learning.parameters(model.learned, PUSHED))
    older = judge(
        np.concatenate([recent.answers, then]),
        np.concatenate([pushed, since.answers]),
        np.concatenate([recent.targets, since.targets]),
        task,
    )
    if older.finding is not Finding.NOT_JUDGED:
        return older
    features, whose = _compared_on(model, old_features, features)
    if not len(features):
        return verdict
    found = compare(learning.answer(before, features), model.answer(features), task, whose)
    return verdict if found.finding is Finding.NOT_JUDGED and len(since) else found


def confirm(model: OnDeviceModel) -> None:
    """The head on trial stays; what was before it is put aside for who wants to go back."""
    if model.trial is not None:
        model.state.put_aside(model.trial.before, model.release)
        model.happen(Confirmed())


def go_back(model: OnDeviceModel, before: Learned) -> None:
    """Go back to what was there before a head that has its probation behind it.

    Raises:
        LearningError: It cannot be used or kept any more; nothing changed.
    """
    waiting = list(model.state.waiting)  # of these nothing was learned yet
    model.restore(before)
    for label, answer in waiting:
        with suppress(LearningError):  # of a class that is not known any more
            model.state.wait(label, answer)
    model.metrics.forget_judgements()


def roll_back(model: OnDeviceModel) -> None:
    """Bring back what was before the head on trial; it learns the labels that came since.

    Raises:
        LearningError: There is none on trial.
    """
    model.happen(RolledBack())
    model.metrics.forget_judgements()
