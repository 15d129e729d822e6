"""The live head, the candidates that learn in its shadow, and the rules by which one takes the place of the other.

Theory of operation. The live head either is *fixed* (as shipped, pushed, or put aside in an emergency) or *follows* a
candidate, which learns every label. For each label, every head answers first and learns afterwards, so that all are
judged on what they did not know; those paired comparisons are the evidence.

* A candidate is **promoted** when the evidence that it answers better than the live head is strong at any time
  (`edge.learning.evidence`), and it has not forgotten classes that did not come lately (the reserve, by class).
* The head it replaced is kept, answers along, and is **brought back** when the evidence turns round.
* **Drift**: when the live head's errors rise, by `Adwin` on what is above the usual errors of each class, then either
  the world has changed or the labels have gone bad. Nobody can tell from one label. So the live head goes back to how
  it was before that, the candidates distrust what they knew, and whoever is better on the labels since then is promoted
  again: at once after a real change, and never by random labels.

Pure: no clock, no file; the same calls give the same heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.errors import LearningError
from edge.contract.manifest import LinearLayer
from edge.contract.training import FloatArray, Parameters
from edge.learning.calibration import fit_temperature
from edge.learning.closed_form import grown
from edge.learning.drift import Adwin, Window
from edge.learning.evidence import ALPHA, Evidence
from edge.learning.gate import Reserve
from edge.learning.learner import Learner, State, part, take, take_integers, take_like
from edge.learning.migrate import is_schema_2, of_schema_2
from edge.learning.packing import PackedFeatures
from edge.learning.sgd import Run
from edge.learning.task import Scores, Targets, Task
from edge.learning.tree import build, flatten

# Of several candidates that would do, one that is this near to the best and stands before it is preferred.
NEAR = 0.05
# A candidate leads another one only if it is better by so much: what changes hands often is never settled.
WORTH_A_CHANGE = 0.02
# What a candidate may lose on the reserve by class.
TOLERATED_FORGETTING = 0.02
# Agreement with late labels, beyond chance, that a candidate must have to be promoted.
LEAST_AGREEMENT = 0.25
# Labels between two snapshots of a head that follows, and between two fits of its temperature.
SNAPSHOT_EVERY, CALIBRATE_EVERY = 32, 16
# A target of a quantity counts less where its loss is so many times the usual: six times its error.
OUTLIER = 36.0
# What is usual is the median of so many late labels: after half of them a change is no longer taken for an error.
_NEW_LOSSES = 8
# How fast the usual error of a class is learned, and what it is taken for at first.
_USUAL, _USUAL_FIRST = 0.05, 0.25
# A class is new for so many labels.
_NEW = 5
# Of `Adwin`. A false alarm costs little, a change that is missed much: with 0.002, four of ten classes that changed
# names 140 labels after a promotion were missed in 12 of 12 streams, with 0.05 in 2; no false alarm in either.
DRIFT_DELTA = 0.05


@dataclass(frozen=True, slots=True)
class Happened:
    """Something that an operator wants to know.

    Attributes:
        kind: ``promoted``, ``rolled-back`` or ``drift``.
        text: For people.
    """

    kind: str
    text: str


class Shadow:
    """See the module.

    Args:
        task: What the outputs mean.
        shape: Shape of one sample's features.
        shipped: The head to start with.
        candidates: By name, in order of preference.
        run: Outputs ``(batch, n_outputs)`` for features and parameters.
        gated: False lets the live head follow the first candidate from the beginning, whatever it learns.

    Attributes:
        temperature: By which outputs are to be divided for honest probabilities.
    """

    def __init__(
        self,
        task: Task,
        shape: tuple[int, ...],
        shipped: Parameters,
        candidates: Mapping[str, Learner],
        run: Run,
        gated: bool = True,
    ) -> None:
        self._task = task
        self._names = list(candidates)
        self.candidates = dict(candidates)
        self._run = run
        self._gated = gated
        self._fixed = dict(shipped)
        self._leader = "" if gated else self._names[0]
        self._snapshots: list[Parameters] = []
        self._evidence = {name: Evidence() for name in self._names}
        self._return = Evidence()
        self._drift = Adwin(DRIFT_DELTA)
        self._usual = np.full(task.n_groups, _USUAL_FIRST)
        self._heard = np.zeros(task.n_groups, np.int64)
        self._since = self._seen = 0
        self.reserve = Reserve(shape, task, len(self._names))
        self.temperature = 1.0

    @property
    def leader(self) -> str:
        """Name of the candidate that the live head follows; empty for a fixed one."""
        return self._leader

    @property
    def replaced(self) -> Parameters:
        """The head that the live one took the place of; the live one itself while it is fixed."""
        return self._fixed

    def live(self) -> Parameters:
        """The live head."""
        return self.candidates[self._leader].parameters() if self._leader else self._fixed

    def learn(
        self, packed: PackedFeatures, features: FloatArray, targets: Targets, weights: FloatArray
    ) -> list[Happened]:
        """Let every candidate learn a batch, sample by sample, and decide who is live.

        Args:
            packed: The features as they are kept.
            features: ``(batch, ...)``, unpacked from that.
            targets: As `Task.check` gives them.
            weights: ``(batch,)`` from 0 to 1.
        """
        happened: list[Happened] = []
        for i in range(len(features)):
            rows = slice(i, i + 1)
            one = PackedFeatures(packed.codes[rows], packed.scales[rows])
            happened += self._learn_one(one, features[rows], targets[rows], weights[rows])
        return happened

    def _learn_one(self, packed: PackedFeatures, x: FloatArray, target: Targets, weight: FloatArray) -> list[Happened]:
        answers = {name: self._run(x, learner.parameters()) for name, learner in self.candidates.items()}
        live = answers[self._leader] if self._leader else self._run(x, self._fixed)
        weight = weight * np.float32(self._credible(live, target))
        refused: list[LearningError] = []
        for learner in self.candidates.values():
            try:
                learner.learn_many(x, target, weight)
            except LearningError as exc:  # it stays as it was; the others go on
                refused.append(exc)
        if len(refused) == len(self.candidates):
            raise refused[0]
        if not weight[0]:  # a label that is not trusted at all says nothing about anybody
            return []
        self.reserve.put(packed, target, live[0], np.stack([answers[name][0] for name in self._names]))
        self._seen += 1
        self._since += 1
        happened: list[Happened] = []
        if self._gated:
            trust = float(weight[0])
            for name in self._names:
                if name != self._leader:
                    self._evidence[name].add(trust * float(self._task.gains(live, answers[name], target)[0]))
            if self._leader:
                back = self._task.gains(live, self._run(x, self._fixed), target)
                self._return.add(trust * float(back[0]))
            happened = self._decide() or self._watch(live, target, trust)
        if self._since % CALIBRATE_EVERY == 0 and not self._task.is_regression:
            _, targets, outputs, _ = self.reserve.recent()
            self.temperature = fit_temperature(outputs, targets, self._task)
        return happened

    def _credible(self, live: FloatArray, target: Targets) -> float:
        """How far the target of a quantity can be believed, from 0 to 1.

        Sums of squares never get over a target that is off by orders of magnitude. One whose loss is more than
        `OUTLIER` times the usual counts as if it were that far off: after a real change the usual loss soon rises.
        """
        if not self._task.is_regression or len(self.reserve) < _NEW_LOSSES:
            return 1.0
        _, targets, answers, _ = self.reserve.recent(_NEW_LOSSES)
        limit = OUTLIER * float(np.median(self._task.losses(answers, targets)))
        loss = float(self._task.losses(live, target)[0])
        return limit / loss if loss > limit > 0 else 1.0

    # Who is live

    def _decide(self) -> list[Happened]:
        if self._leader and self._return.exceeds(ALPHA):
            text = f"{self._leader} answers worse than the head before it; that one is live again"
            self._lead("")
            return [Happened("rolled-back", text)]
        found = self._best()
        if not found:
            return []
        if self._leader and self._is_worse_than_before(found):
            text = f"{self._leader} answers worse than {found}, and both worse than the head before; that is live again"
            self._lead("")
            return [Happened("rolled-back", text)]
        gain, n = self._evidence[found].mean, int(self._evidence[found].n)
        other = self._leader or "the fixed head"
        text = f"{found} answers better than {other}: mean gain {gain:.2f} over {n} labels"
        self._lead(found)
        return [Happened("promoted", text)]

    def _best(self) -> str:
        """The candidate to promote, or nothing."""
        level = ALPHA / len(self._names)
        least = WORTH_A_CHANGE if self._leader else 0.0
        others = {name: evidence for name, evidence in self._evidence.items() if name != self._leader}
        strong = [n for n, e in others.items() if e.exceeds(level) and e.mean > least and self._agrees(n)]
        if not strong:
            return ""
        best = max(others[name].mean for name in strong)
        # The first in the order of preference, also one whose evidence is not quite as strong yet.
        near = (name for name in others if others[name].mean >= best - NEAR and others[name].exceeds(level**0.5))
        found = next((name for name in near if self._remembers(name)), "")
        return found or next((name for name in strong if self._remembers(name)), "")

    def _is_worse_than_before(self, name: str) -> bool:
        """Whether a candidate that beats its leader is itself worse than the head which that one replaced."""
        features, targets, _, shadows = self.reserve.recent(int(self._evidence[name].n))
        before = self._run(features, self._fixed)
        gains = self._task.gains(before, shadows[:, self._names.index(name)], targets)
        return len(gains) > 0 and float(gains.mean()) < -NEAR

    def _agrees(self, name: str) -> bool:
        """Whether a candidate agrees with the labels beyond chance; where labels are random, nobody is to win by luck.

        Cohen's kappa with classes equally likely: ``(a - 1/C) / (1 - 1/C)`` for the accuracy a on late labels.
        """
        if not self._task.is_classifier:
            return True
        count = int(min(len(self.reserve), self._evidence[name].n))
        _, targets, _, shadows = self.reserve.recent(count)
        accuracy = float(self._task.right(shadows[:, self._names.index(name)], targets).mean())
        chance = 1.0 / self._task.n_outputs
        return (accuracy - chance) / (1.0 - chance) >= LEAST_AGREEMENT

    def _remembers(self, name: str) -> bool:
        """Whether a candidate is no worse than the live head on samples of all classes, also those from long ago."""
        features, targets = self.reserve.balanced()
        if not len(features):
            return True
        gains = self._task.gains(
            self._run(features, self.live()), self._run(features, self.candidates[name].parameters()), targets
        )
        groups = self._task.groups(targets)
        means = [float(gains[groups == group].mean()) for group in np.unique(groups)]
        return float(np.mean(means)) >= -TOLERATED_FORGETTING

    def _lead(self, name: str) -> None:
        """Let the live head follow another candidate; the one before is kept. Nobody: the one before is live again."""
        if name:
            self._fixed = {key: array.copy() for key, array in self.live().items()}
        self._leader = name
        self._settle()

    def _settle(self) -> None:
        """Begin to judge anew: another head is live."""
        for evidence in (*self._evidence.values(), self._return):
            evidence.reset()
        self._drift.reset()
        self._usual[:] = _USUAL_FIRST
        self._snapshots = []
        self._since = 0

    # Whether the world is still the same

    def _watch(self, live: FloatArray, target: Targets, trust: float) -> list[Happened]:
        if self._leader and self._since % SNAPSHOT_EVERY == 0:
            self._snapshots = [*self._snapshots[-1:], {k: a.copy() for k, a in self.live().items()}]
        group = int(self._task.groups(target)[0])
        error = float(self._losses(live, target)[0])
        heard, self._heard[group] = int(self._heard[group]), self._heard[group] + 1
        if heard < _NEW:  # a class that had not come before: to be wrong about it says nothing about the world
            self._usual[group] = max(_USUAL_FIRST, (heard * self._usual[group] + error) / (heard + 1))
            return []
        above = max(0.0, error - self._usual[group])
        self._usual[group] += _USUAL * trust * (error - self._usual[group])
        if self._drift.add(trust * above) <= 0.0:
            return []
        leader = self._leader
        _, targets, answers, _ = self.reserve.recent()
        width = _since_the_change(self._losses(answers, targets))
        features, targets, _, shadows = self.reserve.recent(width)
        if self._leader:
            if self._snapshots:
                self._fixed = self._snapshots[0]
            self._leader = ""
        self._settle()
        # The heads as they were answered honestly: each before it learned the sample.
        answers = self._run(features, self._fixed)
        for i, name in enumerate(self._names):
            for gain in self._task.gains(answers, shadows[:, i], targets):
                self._evidence[name].add(float(gain))
            self.candidates[name].distrust_the_past(features, targets)
        happened = [Happened("drift", f"the errors of {leader or 'the fixed head'} have risen over {width} labels")]
        return happened + self._decide()

    def _losses(self, outputs: FloatArray, targets: Targets) -> Scores:
        """``(n,)`` from 0 to 1: how wrong; of quantities, the loss against the median of late ones."""
        if not self._task.is_regression:
            return 1.0 - self._task.right(outputs, targets)
        _, late_targets, late, _ = self.reserve.recent(32)
        losses = self._task.losses(outputs, targets)
        return np.asarray(losses / (losses + float(np.median(self._task.losses(late, late_targets))) + 1e-12))

    # From outside

    def place(self, parameters: Mapping[str, FloatArray]) -> None:
        """Make a head that somebody pushed the live one; the candidates were rebased onto it."""
        self._fixed = {name: np.array(array, np.float32) for name, array in parameters.items()}
        self._leader = "" if self._gated else self._names[0]
        self._settle()
        self.reserve.forget_answers()

    def grow(self, n_classes: int, head: LinearLayer) -> None:
        """Add classes to the live head, whose last layer is given, to the candidates and the reserve."""
        for learner in self.candidates.values():
            learner.grow(n_classes)
        more = n_classes - self._task.n_groups
        self._fixed = grown(self._fixed, head, more)
        self._snapshots = [grown(snapshot, head, more) for snapshot in self._snapshots]
        self._task = Task(self._task.recipe, n_classes)
        self.reserve.grow(n_classes)
        self._usual = np.concatenate([self._usual, np.full(more, _USUAL_FIRST)])
        self._heard = np.concatenate([self._heard, np.zeros(more, np.int64)])

    def state(self) -> State:
        """Everything, for saving."""
        number = self._names.index(self._leader) + 1 if self._leader else 0
        state: State = {
            "counts": np.array([number, self._since, self._seen, len(self._snapshots)], np.int64),
            "usual": self._usual.copy(),
            "heard": self._heard.copy(),
            "temperature": np.array([self.temperature]),
        }
        heads = {"fixed": self._fixed, "live": self.live()} | {
            f"snapshot{i}": head for i, head in enumerate(self._snapshots)
        }
        parts: dict[str, Mapping[str, npt.NDArray[Any]]] = {**heads}
        parts |= {f"evidence{i}": self._evidence[name].state() for i, name in enumerate(self._names)}
        parts |= {"return": self._return.state(), "drift": flatten(self._drift.value), "reserve": self.reserve.state()}
        parts |= {f"candidate.{name}": flatten(learner.value) for name, learner in self.candidates.items()}
        return state | {f"{name}.{key}": array for name, found in parts.items() for key, array in found.items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take back what `state` gave, with the same candidates and as many classes.

        Raises:
            LearningError: It is not a state of these candidates; then this object must not be used any more.
        """

        def head(prefix: str) -> Parameters:
            return {name: take_like(state, f"{prefix}.{name}", array) for name, array in self._fixed.items()}

        number, since, seen, n_snapshots = take_integers(state, "counts", 4)
        temperature = take(state, "temperature")
        if number > len(self._names) or temperature.shape != (1,) or not temperature[0] > 0:
            raise LearningError("the saved state is of other learners")
        usual, heard = take_like(state, "usual", self._usual), take_like(state, "heard", self._heard)
        fixed, snapshots = head("fixed"), [head(f"snapshot{i}") for i in range(n_snapshots)]
        for i, name in enumerate(self._names):
            known, like = part(state, f"candidate.{name}."), self.candidates[name].template(self._task.n_outputs)
            self.candidates[name].load(of_schema_2(known, like) if is_schema_2(known) else build(like, known))
            self._evidence[name].restore(part(state, f"evidence{i}."))
        self._return.restore(part(state, "return."))
        self._drift.load(build(Window(), part(state, "drift.")))
        self.reserve.restore(part(state, "reserve."))
        self._leader = self._names[number - 1] if number else ""
        self._fixed, self._snapshots, self._usual, self._heard = fixed, snapshots, usual, heard
        self._since, self._seen, self.temperature = since, seen, float(temperature[0])
        if not self._gated and not self._leader:  # saved with a gate, and nobody decides any more
            self._leader = self._names[0]


def _since_the_change(errors: Scores) -> int:
    """How many of the last values belong to the new regime: the cut that tells the two means apart best."""
    n = len(errors)
    best, width = 0.0, n
    for late in range(5, n - 4):
        before, after = errors[: n - late], errors[n - late :]
        rise = float(after.mean() - before.mean())
        score = rise * abs(rise) * late * (n - late)
        if score > best:
            best, width = score, late
    return width
