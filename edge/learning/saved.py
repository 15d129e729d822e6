"""What was learned, read from disk: what `edge.learning.tree` compares saved arrays with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.learning import migrate, tree
from edge.learning.closed_form import StatisticsKnowledge
from edge.learning.correlation import Correlation
from edge.learning.disclosure import Disclosed
from edge.learning.experts import Experts
from edge.learning.learned import Head, Learned, Trial
from edge.learning.lift import LIFTED
from edge.learning.mixture import MERGED, PUSHED, SHIPPED, TRUSTED, WARM
from edge.learning.recent import Recent

# Classes that a saved state can have.
_MOST_CLASSES = 1 << 16
_Arrays = Mapping[str, npt.NDArray[Any]]


def read(experts: Experts, arrays: _Arrays) -> Learned:
    """The value that `edge.learning.tree.flatten` gave these arrays of.

    Raises:
        LearningError: They are of other classes or learners, or damaged.
    """
    arrays = migrate.with_pieces(arrays)
    if experts.head is not None:
        arrays = migrate.without_wrapping(arrays, experts.head.weight)
    found = tree.build(template(experts, arrays), arrays)
    trial = found.trial
    if trial is not None:
        trial = replace(trial, before=experts.completed(_sharing(experts, trial.before)))
    return replace(experts.completed(_sharing(experts, found)), trial=trial)


def _sharing(experts: Experts, learned: Learned) -> Learned:
    """The same, complete; what learners began with is held once, as before it was written down."""
    begun, found = experts.begin("").experts, dict(learned.experts)
    for name, value in learned.experts.items():
        first = begun.get(name.split(" ")[0])
        if isinstance(value, StatisticsKnowledge) and isinstance(first, StatisticsKnowledge):
            found[name] = value.sharing(first)
    mixture, task = learned.mixture, experts.task(learned)
    if task.is_regression and mixture.correlation is None:  # written before it was asked
        mixture = replace(mixture, correlation=Correlation.none(len(mixture.names), task.n_outputs))
    return replace(learned, experts=found, mixture=mixture)


def check_own(experts: Experts, learned: Learned) -> None:
    """Raise LearningError unless a value is of this backbone, its classes and these learners."""
    if learned.backbone != experts.backbone:
        raise LearningError(f"it is of the backbone {learned.backbone[:12]}, here is {experts.backbone[:12]}")
    if learned.class_names[: len(experts.shipped_names)] != experts.shipped_names:
        raise LearningError("it is of other classes than those of the bundle")
    if missing := [name for name in experts.learners if name not in learned.experts]:
        raise LearningError(f"it is of other learners: {', '.join(missing)} is not among them")


def template(experts: Experts, arrays: _Arrays) -> Learned:
    """What `edge.learning.tree.build` compares saved arrays with: with the classes and experts that they name.

    Raises:
        LearningError: They are of other classes, or name an expert that there cannot be.
    """
    return replace(_value(experts, arrays, ""), trial=_trial(experts, arrays))


def _trial(experts: Experts, arrays: _Arrays) -> Trial:
    inside = "trial.before." if "trial.before.class_names" in arrays else ""
    before = _value(experts, arrays, inside)
    since = Recent.none(experts.shape, experts.task(before))
    return Trial(before=before, since=since, events=np.zeros(0, np.int64))


def _value(experts: Experts, arrays: _Arrays, path: str) -> Learned:
    found = arrays.get(f"{path}class_names")
    n_classes = int(found) if found is not None and found.shape == () else 0
    more = max(0, min(n_classes, _MOST_CLASSES) - len(experts.shipped_names))
    learned = experts.with_classes(experts.begin(""), (*experts.shipped_names, *(f" {i}" for i in range(more))))
    n_outputs, found_experts = experts.task(learned).n_outputs, {}
    for name in tree.keys(arrays, f"{path}experts"):
        if name in (TRUSTED, SHIPPED, MERGED, PUSHED, WARM):
            found_experts[name] = _head(experts, learned.experts[TRUSTED], arrays, f"{path}experts.{name}.parameters")
        elif name.split(" ")[0] in experts.learners:
            found_experts[name] = experts.machine(name).template(n_outputs)
        else:
            raise LearningError(f"there is an expert {name!r:.60}, which this bundle and these learners do not have")
    if TRUSTED not in found_experts:
        raise LearningError("there is no trusted past among the experts")
    told = Disclosed.nothing(0, 0)  # of any size: what does not fit these coordinates is begun anew
    learned = replace(learned, experts=found_experts, trusted=TRUSTED, merge_fits=True, disclosed=told)
    return experts.among(learned)


def _head(experts: Experts, plain: Head, arrays: _Arrays, path: str) -> Head:
    """The template of a head that does not learn: as the bundle's, or that of a learner on lifted features."""
    parameters = plain.parameters
    if LIFTED in tree.keys(arrays, path):
        n_outputs = len(next(iter(plain.parameters.values())))
        known = [experts.machine(name).template(n_outputs) for name in experts.learners]
        heads = [each.given for each in known if isinstance(each, StatisticsKnowledge) and each.given is not None]
        parameters = next((head for head in heads if LIFTED in head), {})
        if not parameters:
            raise LearningError("there is a head on lifted features, which these learners do not have")
    return Head(parameters)


def migrated(experts: Experts, name: str, arrays: _Arrays, n_outputs: int) -> Any:
    """The value of a learner whose arrays were written under the schema 2."""
    return migrate.of_schema_2(arrays, experts.machine(name).template(n_outputs))
