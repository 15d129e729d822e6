"""Whole heads that answer side by side: those that learn are machines around values, the others stay as they are.

What is dear to compute again (the factor of a solver, what a training step holds) is a cache inside the learners:
`Learner.load` gives them a value, `Learner.value` takes the next one out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.contract.training import FloatArray, Parameters
from edge.learning import mixture as mix
from edge.learning.closed_form import PRIOR_SAMPLES, grown
from edge.learning.compression import EXACT, Compression, Packed
from edge.learning.disclosure import Disclosing
from edge.learning.drift import Adwin, Window
from edge.learning.known import KnownSamples
from edge.learning.learned import Head, Learned
from edge.learning.learner import Learner
from edge.learning.lift import LIFTED, Lift
from edge.learning.mixture import MERGED, ON_MERGE, ON_WARM, PUSHED, SHIPPED, TRUSTED, WARM, Known
from edge.learning.recalled import Samples
from edge.learning.recent import Recent
from edge.learning.sgd import Run
from edge.learning.solve import UNSEEN_LOGIT
from edge.learning.task import Task

# Start weights: of the trusted past and the head that learners start from each, as a share of what no merge has; what
# is left is the learners'. Of a merge and all that builds on it, half and half, if the samples of this device look like
# those that it was learned from, if nobody can tell, and if they do not. Of a head that was pushed to compete.
START_TRUSTED, START_BASE = 0.25, 0.25
START_MERGE: Mapping[bool | None, float] = {True: 0.7, None: 0.4, False: 0.1}
START_PUSHED = 0.3
# These are for a device without labels. With n of them they are `PRIOR_SAMPLES` / (`PRIOR_SAMPLES` + n) of that, as the
# samples of others are worth less beside one's own: a merge of other worlds cost a device with 115 labels 1.8 points
# before, and 4.7 after as many labels again (benchmarks/devices.py).
# Of `Adwin`. A false alarm costs little, a change that is missed much.
DRIFT_DELTA = 0.05
# What the usual error of a class is taken for at first.
USUAL_FIRST = 0.25


class Product:
    """A head that is one linear layer: a product of matrices is faster than asking a runtime for it.

    Args:
        layer: Its names.
        lift: Of features, for heads that have `LIFTED` weights; None where there are none.
    """

    def __init__(self, layer: LinearLayer, lift: Lift | None = None) -> None:
        self._layer = layer
        self._lift = lift

    def __call__(self, features: FloatArray, parameters: Parameters) -> FloatArray:
        """Outputs ``(batch, n_outputs)``."""
        weight, bias = self._layer.weight, self._layer.bias
        with np.errstate(all="ignore"):  # what is not finite is looked for by who asks
            found: FloatArray = features @ parameters[weight].T
            if self._lift is not None and LIFTED in parameters:
                found += self._lift.features(features) @ parameters[LIFTED].T
            return found if bias is None else found + parameters[bias]

    def each(self, features: FloatArray, heads: Sequence[Parameters]) -> FloatArray:
        """Outputs ``(k, batch, n_outputs)`` of k heads, in one product."""
        weights = np.concatenate([head[self._layer.weight] for head in heads])
        with np.errstate(all="ignore"):
            found: FloatArray = features @ weights.T
            if self._layer.bias is not None:
                found += np.concatenate([head[self._layer.bias] for head in heads])
            each = np.ascontiguousarray(
                found.reshape(len(features), len(heads), len(weights) // len(heads)).transpose(1, 0, 2)
            )
            lifted = [k for k, head in enumerate(heads) if LIFTED in head]
            if lifted and self._lift is not None:
                waves = self._lift.features(features)
                for k in lifted:
                    each[k] += waves @ heads[k][LIFTED].T
        return each


class Experts:
    """The experts of one bundle's head: machines around the values in a `Learned`. Holds nothing but caches.

    Args:
        task: What the outputs mean, as shipped.
        shape: Shape of one sample's features.
        shipped: The head as shipped.
        class_names: As shipped.
        head: The last layer, where that is linear.
        learners: By name, in order of preference, what makes one.
        run: Outputs ``(batch, n_outputs)`` for features and parameters.
        mixture: False lets the first learner answer alone, whatever it learns.
        shares: ``(n_classes,)`` of the classes in the statistics that were shipped, or None.
        disclosing: Where nothing is to be sent to the fleet without noise.
        backbone: Digest of the frozen part.
        imagined: Draws samples of the shipped statistics, see `edge.learning.recalled`; None where there are none.

    Attributes:
        shipped_task: What the outputs mean, as shipped.
        shipped_names: Names of the classes, as shipped.
        backbone: Digest of the frozen part.
        learners: Their names, in order of preference.
        adwin: Watches the errors.
        known_samples: By which experts are asked whether they still tell classes apart.
    """

    def __init__(
        self,
        task: Task,
        shape: tuple[int, ...],
        shipped: Parameters,
        class_names: tuple[str, ...],
        head: LinearLayer | None,
        learners: Mapping[str, Callable[[], Learner]],
        run: Run,
        *,
        mixture: bool = True,
        shares: npt.NDArray[np.float64] | None = None,
        disclosing: Disclosing | None = None,
        backbone: str = "",
        imagined: Callable[[], Samples | None] | None = None,
    ) -> None:
        self.shipped_task = task
        self.shape = shape
        self._shipped = dict(shipped)
        self.shipped_names = class_names
        self.head = head
        self._make = dict(learners)
        self.learners = tuple(learners)
        self.run = run
        self.is_mixture = mixture
        self.shares = shares
        self.disclosing = disclosing
        self.backbone = backbone
        self.known_samples = KnownSamples(shape, imagined)
        self.adwin = Adwin(DRIFT_DELTA)
        self._machines: dict[str, Learner] = {}
        self._begun: dict[str, Any] = {}

    def shipped_answer(self, features: FloatArray) -> FloatArray:
        """``(batch, n_outputs)`` of the head as shipped."""
        return self.run(features, self._shipped)

    @property
    def kind(self) -> str:
        """``statistics`` or ``delta``: what is contributed to a merge."""
        return "statistics" if any(self.machine(name).kind == "statistics" for name in self._make) else "delta"

    def task(self, learned: Learned) -> Task:
        """What the outputs mean, with the classes that were added."""
        shipped, n = self.shipped_task, len(learned.class_names)
        return Task(shipped.recipe, n) if shipped.is_classifier and n > shipped.n_outputs else shipped

    def machine(self, name: str) -> Learner:
        """The one for an expert of this name, whatever value it holds."""
        if name not in self._machines:
            self._machines[name] = self._make[name.split(" ", maxsplit=1)[0]]()
        return self._machines[name]

    def loaded(self, learned: Learned, name: str) -> Learner:
        """The machine of an expert that learns, with its value."""
        machine = self.machine(name)
        machine.load(learned.experts[name])
        return machine

    def parameters(self, learned: Learned, name: str) -> Parameters:
        """The head of an expert."""
        expert = learned.experts[name]
        return dict(expert.parameters) if isinstance(expert, Head) else self.loaded(learned, name).parameters()

    def is_plain(self, learned: Learned, name: str) -> bool:
        """Whether the head of an expert has the form of the bundle's, so that it can leave the device."""
        expert = learned.experts[name]
        return LIFTED not in expert.parameters if isinstance(expert, Head) else bool(self.machine(name).kind)

    def speaker(self, learned: Learned, *, is_plain: bool = False) -> str:
        """The expert that is believed most, as far as labels are believed; for the rest it is whose head is trusted.

        That differs from the largest share that `says` tells: there the trusted past counts for whose head it is
        always. One of several learners that say nearly the same would have to outdo both.

        Args:
            learned: What is known.
            is_plain: Only of those whose head has the form of the bundle's.
        """
        names, mixture = learned.mixture.names, learned.mixture
        found = self.says(learned)
        if self.is_mixture:
            credit = mixture.credit(self.task(learned), _alone(learned))
            found = credit * mixture.weights
            found[_of_past(learned)] += 1.0 - credit
        return mix.leading(names, found, [not is_plain or self.is_plain(learned, name) for name in names])

    def reads(self, learners: Sequence[str]) -> bool:
        """Whether what these learners knew can be gone on from: who sends nothing may begin anew beside the others."""
        own = [name for name in self.learners if name in learners or self.machine(name).kind]
        return list(learners) == own

    def completed(self, learned: Learned) -> Learned:
        """With the learners that were not there yet."""
        new = [name for name in self.learners if name not in learned.experts]
        if not new:
            return learned
        begun, more = self.begin(""), len(learned.class_names) - len(self.shipped_names)
        if more > 0:
            begun = self.with_classes(begun, learned.class_names)
        return self.among(replace(learned, experts={**learned.experts, **{name: begun.experts[name] for name in new}}))

    def contributor(self, learned: Learned) -> str:
        """The learner whose knowledge is sent to the fleet: of statistics where there are any, they merge exactly.

        A change is counted from the newest merge.
        """
        for name in self._make:
            if self.machine(name).kind == "statistics":
                return name
        first = next(iter(self._make))
        return first + ON_MERGE if first + ON_MERGE in learned.experts else first

    def n_samples(self, learned: Learned) -> int:
        """Labelled samples learned so far."""
        return self.loaded(learned, self.contributor(learned)).n_samples

    def n_contributed(self, learned: Learned) -> int:
        """Labelled samples behind what `contribution` would give, or what is told under noise."""
        if self.disclosing is not None:
            told = learned.disclosed
            return 0 if told is None or self.disclosing.coordinates is None else told.n_tellable
        return self.loaded(learned, self.contributor(learned)).n_contributed

    def contribution(self, learned: Learned, compression: Compression = EXACT) -> tuple[str, Packed]:
        """What is sent to the fleet: its kind, and the tensors; `Contributed` is to follow."""
        machine = self.loaded(learned, self.contributor(learned))
        return machine.kind, machine.contribution(compression)

    def begin(self, lineage: str) -> Learned:
        """What a device knows at first."""
        names = (TRUSTED, SHIPPED, *self._make)
        experts: dict[str, Any] = {TRUSTED: Head(self._shipped), SHIPPED: Head(self._shipped)}
        experts |= {name: self._first(name) for name in self._make}
        return Learned(
            class_names=self.shipped_names,
            lineage=lineage,
            release=0,
            experts=experts,
            mixture=mix.mixture_of(names, start_weights(names), self.shipped_task),
            trusted=SHIPPED,
            merge_fits=None,
            recent=Recent.none(self.shape, self.shipped_task),
            drift=Window(),
            usual=np.full(self.shipped_task.n_groups, USUAL_FIRST),
            since_drift=0,
            temperature=1.0,
            trial=None,
            backbone=self.backbone,
        )

    def _first(self, name: str) -> Any:
        """What a learner knows before anything came. To make one takes longer than to load what it knows."""
        if name not in self._begun:
            self._machines[name] = self._make[name]()
            self._begun[name] = self._machines[name].value
        return self._begun[name]

    def outputs(self, learned: Learned, features: FloatArray) -> FloatArray:
        """``(k, batch, n_outputs)`` of every expert."""
        heads = [self.parameters(learned, name) for name in learned.mixture.names]
        if isinstance(self.run, Product):
            return self.run.each(features, heads)
        return np.array([self.run(features, head) for head in heads])

    def answer(self, learned: Learned, features: FloatArray) -> FloatArray:
        """``(batch, n_outputs)`` of all together, see `edge.learning.mixture.answer`."""
        if not self.is_mixture:
            return self.run(features, self.parameters(learned, next(iter(self._make))))
        return self.mixed(learned, self.outputs(learned, features))

    def mixed(self, learned: Learned, outputs: FloatArray) -> FloatArray:
        """The same, from what `outputs` gave."""
        if not self.is_mixture:
            found: FloatArray = outputs[learned.mixture.names.index(next(iter(self._make)))]
            return found
        task, alone = self.task(learned), _alone(learned)
        return mix.answer(learned.mixture, outputs, self._known(learned), task, alone=alone)

    def says(self, learned: Learned) -> mix.Weights:
        """``(k,)`` how much each expert counts in an answer, their sum is 1.

        The weights count as far as labels agree with somebody; for the rest the trusted past answers. Where that is the
        very head of another expert, as at first, it is that one who speaks.
        """
        mixture = learned.mixture
        if not self.is_mixture:
            return np.array([float(name == next(iter(self._make))) for name in mixture.names])
        credit = mixture.credit(self.task(learned), _alone(learned))
        found = credit * mixture.weights
        found[0] += 1.0 - credit
        if at := _of_past(learned):
            found[0], found[at] = 0.0, found[0] + found[at]
        return found

    def _known(self, learned: Learned) -> Known | None:
        """``(k, n_outputs)`` which class each expert can know; None where all know all.

        Not one that its head never answers; and not one that this device has had fewer than two labels of, where a
        merge brings what others have seen.
        """
        task, names = self.task(learned), learned.mixture.names
        has_added = self.head is not None and self.head.bias is not None
        has_added = has_added and task.n_outputs > self.shipped_task.n_outputs
        has_special = learned.has_merge and bool(learned.merge_fits)
        if not task.is_classifier or not (has_added or has_special):
            return None
        known = np.ones((len(names), task.n_outputs), bool)
        if has_added and self.head is not None and self.head.bias is not None:
            for k, name in enumerate(names):
                known[k] = self.parameters(learned, name)[self.head.bias] > UNSEEN_LOGIT / 2
        if has_special:
            seldom = learned.mixture.heard < mix.KNOWN_FROM
            for k, name in enumerate(names):
                whose = learned.trusted if name == TRUSTED else name
                if not on_merge(whose) and whose != WARM and ON_WARM not in whose:
                    known[k] &= ~seldom
        return known

    def with_expert(self, learned: Learned, name: str, expert: Any) -> Learned:
        """With another value or head of an expert."""
        return replace(learned, experts={**learned.experts, name: expert})

    def among(self, learned: Learned, weights: Mapping[str, float] | None = None) -> Learned:
        """With a mixture of the experts that there are."""
        # Those that were there first: a mapping that was read from disk has another order.
        stay = [name for name in learned.mixture.names if name in learned.experts]
        names = (*stay, *sorted(learned.experts.keys() - set(stay)))
        given = None if weights is None else np.array([weights[name] for name in names])
        return replace(
            learned,
            mixture=mix.with_experts(
                learned.mixture, names, start_weights(names, learned.merge_fits, learned.mixture.labels), given
            ),
        )

    def with_classes(self, learned: Learned, class_names: tuple[str, ...]) -> Learned:
        """With room for further classes, which come after those that there are."""
        more = len(class_names) - len(learned.class_names)
        if more <= 0:
            return learned
        if self.head is None or not self.shipped_task.is_classifier:
            raise LearningError("no class can be added to this head: its last layer is not a linear one of classes")
        experts: dict[str, Any] = {}
        for name, expert in learned.experts.items():
            if isinstance(expert, Head):
                experts[name] = Head(grown(expert.parameters, self.head, more))
            else:
                machine = self.loaded(learned, name)
                machine.grow(len(class_names))
                experts[name] = machine.value
        trial = learned.trial
        if trial is not None:
            since = trial.since.grown(len(class_names))
            trial = replace(trial, before=self.with_classes(trial.before, class_names), since=since)
        return replace(
            learned,
            class_names=class_names,
            experts=experts,
            mixture=mix.with_classes(learned.mixture, len(class_names)),
            recent=learned.recent.grown(len(class_names)),
            disclosed=None if learned.disclosed is None else learned.disclosed.grown(len(class_names)),
            usual=np.concatenate([learned.usual, np.full(more, USUAL_FIRST)]),
            trial=trial,
        )


def _of_past(learned: Learned) -> int:
    """The place of the expert whose very head the trusted past is; of itself where that went on since."""
    source, past = learned.experts.get(learned.trusted), learned.experts[TRUSTED].parameters
    if not isinstance(source, Head):
        return 0
    is_same = all(np.array_equal(array, past[key]) for key, array in source.parameters.items())
    return learned.mixture.names.index(learned.trusted) if is_same else 0


def _alone(learned: Learned) -> float:
    """How far labels are all of one class, from 0 to 1: late ones, and half of all so far; of what is no class 0."""
    late, heard = learned.recent.targets, learned.mixture.heard
    if late.ndim != 1 or not len(late):
        return 0.0
    share = float(heard[late[-1]]) / max(float(heard.sum()), 1.0)
    return float(mix.one_class(late, late[-1:])[0]) * min(1.0, 2.0 * share)


def on_merge(name: str) -> bool:
    """Whether an expert is the merge, or goes on from it."""
    return name == MERGED or ON_MERGE in name


def start_weights(names: tuple[str, ...], fits: bool | None = None, labels: int = 0) -> npt.NDArray[np.float64]:
    """``(k,)`` start weights of experts, see `START_TRUSTED`.

    Args:
        names: Of the experts.
        fits: Whether samples of this device look like those of the merge.
        labels: That this device has had.
    """
    of_merge = START_MERGE[fits] * PRIOR_SAMPLES / (PRIOR_SAMPLES + labels) if MERGED in names else 0.0
    trusted, base = START_TRUSTED * (1.0 - of_merge), START_BASE * (1.0 - of_merge)
    own = [name for name in names if name not in (TRUSTED, SHIPPED, PUSHED) and not on_merge(name)]
    building = [name for name in names if ON_MERGE in name]
    is_base = PUSHED in names and SHIPPED not in names
    found = {TRUSTED: trusted, SHIPPED: base, PUSHED: base if is_base else START_PUSHED, MERGED: of_merge / 2}
    found |= {name: of_merge / 2 / len(building) for name in building}
    found |= {name: (1.0 - of_merge - trusted - base) / len(own) for name in own}
    start = np.array([found[name] for name in names])
    found_weights: npt.NDArray[np.float64] = start / start.sum()
    return found_weights
