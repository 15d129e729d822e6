"""Taking what an earlier bundle learned into a new one, where their features mean the same.

It comes as a merge of one does: it competes, late labels decide, and one event of the journal holds it. With features
that mean something else, a function may say what the old ones would be here; then the labelled samples that the old
model still has are learned once more. What does not fit is refused with what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.tensorspec import TensorSpec
from edge.contract.training import FloatArray
from edge.inference.onnx_session import golden_inputs
from edge.inference.session import sqnr_db
from edge.learning.closed_form import StatisticsKnowledge
from edge.learning.events import HeadOffered, Labelled
from edge.learning.exchange import HeadRelease
from edge.learning.mixture import ON_MERGE
from edge.learning.packing import pack
from edge.learning.sgd import SgdLearner
from edge.learning.task import Targets

if TYPE_CHECKING:
    from edge.agent.model.served_model import ServedModel
    from edge.contract.bundle import Bundle

# Features agree where 3 % of their variance is lost at most, as golden outputs may lose at opening. A network of digits
# in int8 and in float agrees to 40 dB, with another training of the same network to less than 1 dB.
LEAST_DB = 15.0
Mapped = Callable[[FloatArray], npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Warmed:
    """What was taken over.

    Attributes:
        how: ``statistics``, ``head`` or ``samples``.
        samples: Labelled samples behind it.
        agreement_db: How near the features of the two bundles are, about their means; None where the frozen part is the
            same, or a function maps them.
    """

    how: str
    samples: int
    agreement_db: float | None

    def __str__(self) -> str:
        """For people."""
        near = "" if self.agreement_db is None else f"; the features agree to {self.agreement_db:.1f} dB"
        what = {
            "statistics": "the statistics and the head of",
            "head": "the head of",
            "samples": "once more",
        }[self.how]
        return f"took over {what} {self.samples} labelled samples{near}"


def warm_start(
    model: ServedModel,
    other: ServedModel,
    *,
    class_names: Sequence[str] | Mapping[str, str] | None = None,
    features: Mapped | None = None,
) -> Warmed:
    """Take what another bundle's model learned into a model that has learned nothing yet.

    Args:
        model: Of the new bundle.
        other: Of the earlier bundle, with what it learned.
        class_names: What its classes are called here: names in the order of its classes, or new names by old ones.
        features: ``(n, *old)`` to ``(n, *new)``, where features do not mean the same; the samples are learned then.

    Raises:
        LearningError: They do not fit, there is nothing to take over, or it has learned already; nothing changed.
    """
    for each in (model, other):
        if not each.learns:
            raise LearningError(f"warm start: {each.manifest.name} has no trainable head; convert with --trainable")
    if model.n_samples:
        raise LearningError(f"warm start: the new bundle has learned {model.n_samples} samples already; reset it first")
    if not other.n_samples:
        raise LearningError(f"warm start: {other.manifest.name} has not learned anything")
    if other.task.recipe.loss != model.task.recipe.loss:
        raise LearningError(f"warm start: a head of {other.task.recipe.loss}, here it is {model.task.recipe.loss}")
    names = _renamed(other, model, class_names)
    if features is not None:
        return _learned_again(model, other, names, features)
    near = _agreement(model, other)
    release = _carried(model, other, names)
    try:
        model.happen(HeadOffered(release, model.learned.release, fits=True))
    except OSError as exc:
        raise LearningError(f"warm start: nothing was taken over, it cannot be saved: {exc.strerror}") from exc
    how = "statistics" if release.merged else "head"
    return Warmed(how=how, samples=other.n_samples, agreement_db=near)


def _renamed(
    other: ServedModel, model: ServedModel, given: Sequence[str] | Mapping[str, str] | None
) -> tuple[str, ...]:
    """What the classes of the other model are called here; the shipped ones must be classes here."""
    old, new = other.class_names, model.class_names
    if not model.task.is_classifier:
        if other.task.n_outputs != model.task.n_outputs:
            raise LearningError(f"warm start: it has {other.task.n_outputs} outputs, here are {model.task.n_outputs}")
        return ()
    if isinstance(given, Mapping):
        if unknown := sorted(set(given) - set(old)):
            raise LearningError(f"warm start: the old bundle has no class {unknown[0]!r}; it has {', '.join(old)}")
        found = tuple(given.get(name, name) for name in old)
    elif given is not None:
        found = tuple(given)
    elif old or new:
        found = old
    else:  # numbers: the first of one are the first of the other
        found = ()
    if len(found) != len(old) or len(set(found)) != len(found):
        raise LearningError(f"warm start: expected {len(old)} different class names, for {', '.join(old)}; got {found}")
    if not old and other.task.n_outputs != model.task.n_outputs:
        raise LearningError(f"warm start: it has {other.task.n_outputs} classes, here are {model.task.n_outputs}")
    missing = [name for name in found[: len(other.manifest.class_names)] if name not in new]
    if missing:
        raise LearningError(
            f"warm start: the new bundle has no class {missing[0]!r}, it has {', '.join(new) or 'no names'}; say what "
            f"the old classes are called here (class_names)"
        )
    return found


def _agreement(model: ServedModel, other: ServedModel) -> float | None:
    """How near features are on the golden samples of both bundles, in dB; None for the same frozen part."""
    if model.manifest.backbone_digest == other.manifest.backbone_digest:
        return None
    ours, theirs = _shape(model), _shape(other)
    if ours != theirs:
        raise LearningError(
            f"warm start: features of shape {theirs}, here of {ours}: they cannot mean the same; give a function that "
            f"maps them (features)"
        )
    found = min(_near(model, other, bundle) for bundle in (model.bundle, other.bundle))
    if found < LEAST_DB:
        raise LearningError(
            f"warm start: on the golden samples the features of the two bundles agree to {found:.1f} dB about their "
            f"means, {LEAST_DB:.0f} dB expected: they do not mean the same; give a function that maps them (features)"
        )
    return found


def _features(model: ServedModel) -> TensorSpec:
    head = model.manifest.head
    assert head is not None
    return head.features


def _shape(model: ServedModel) -> tuple[int, ...]:
    return _features(model).sample_shape


def _near(model: ServedModel, other: ServedModel, bundle: Bundle) -> float:
    """How near the features of two models are on the golden samples of a bundle."""
    given = list(golden_inputs(bundle).values())
    found = []
    for each in (model, other):
        specs = each.manifest.inputs
        inputs = {spec.name: array for spec, array in zip(specs, given, strict=False)}
        try:
            for spec in specs:
                spec.check(inputs[spec.name])
        except (KeyError, ValueError) as exc:
            raise LearningError(f"warm start: the two bundles do not take the same inputs: {exc}") from exc
        found.append(each.serving.session.served(inputs)[_features(each).name])
    ours, theirs = found
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("-inf")
    mean = ours.mean(axis=0)  # it is most of what features behind a ReLU are, of any network
    return sqnr_db(ours - mean, theirs - mean)


def _carried(model: ServedModel, other: ServedModel, names: tuple[str, ...]) -> HeadRelease:
    """What another model learned, as a merge of one."""
    learning, learned = other.learning, other.learned
    believed = learning.parameters(learned, learning.speaker(learned, is_plain=True))
    ours, theirs = _layers(model), _layers(other)
    if list(ours.values()) != list(theirs.values()):
        raise LearningError(f"warm start: the head has the layers {theirs}, here it has {ours}")
    names_there = [f"{each}{ON_MERGE}" for each in learning.learners] + list(learning.learners)
    plain = (each for each in names_there if each in learned.experts and learning.is_plain(learned, each))
    known = (learned.experts[each] for each in plain)
    sums = next((each for each in known if isinstance(each, StatisticsKnowledge) and each.n_known > 0), None)
    merged = {} if sums is None else (sums.settled().total() * (1.0 / sums.gain)).to_tensors()
    return HeadRelease(
        backbone=model.manifest.backbone_digest,
        parameters={name: believed[there] for name, there in zip(ours, theirs, strict=True)},
        merged=dict(merged),
        included={learned.lineage: other.n_samples},
        n_samples=other.n_samples,
        origin=f"warm start from {other.manifest.name}",
        class_names=names,
    )


def _layers(model: ServedModel) -> dict[str, tuple[int, ...]]:
    """Sizes of the head's parameters, but for classes that were added here."""
    head = model.manifest.head
    assert head is not None
    return {spec.name: tuple(spec.shape)[1:] for spec in head.parameters}


def _learned_again(model: ServedModel, other: ServedModel, names: tuple[str, ...], features: Mapped) -> Warmed:
    """Learn the labelled samples that the other model still has, with its features mapped."""
    old, targets = _kept(other)
    try:
        new = np.asarray(features(old), np.float32)
    except (TypeError, ValueError) as exc:
        raise LearningError(f"warm start: the function that maps features gave no numbers: {exc}") from exc
    if new.shape != (len(old), *_shape(model)) or not np.isfinite(new).all():
        raise LearningError(
            f"warm start: the function that maps features gave {new.shape}, expected {(len(old), *_shape(model))} of "
            f"finite numbers"
        )
    for name in names:
        if name not in model.class_names:
            model.add_class(name)
    if names:
        targets = np.array([model.class_names.index(name) for name in names], np.int64)[targets]
    order = np.random.default_rng(0).permutation(len(new))  # those for replay come class by class
    model.happen(Labelled(pack(new[order]), targets[order], np.ones(len(new), np.float32)))
    return Warmed(how="samples", samples=len(new), agreement_db=None)


def _kept(other: ServedModel) -> tuple[FloatArray, Targets]:
    """The labelled samples that a model still has: those for replay, or else those that came last."""
    learning, learned = other.learning, other.learned
    for name in learning.learners:
        machine = learning.loaded(learned, name)
        with suppress(LearningError):
            if isinstance(machine, SgdLearner) and len(machine.replayed()[0]) >= len(learned.recent):
                return machine.replayed()
    if not len(learned.recent):
        raise LearningError(f"warm start: {other.manifest.name} has no labelled samples any more")
    return learned.recent.features(_shape(other)), learned.recent.targets
