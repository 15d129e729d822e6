"""Whether an answer should be "none of these": the samples that a model has learned say how far is too far.

Of the learners with sums of the features the statistics are those of the one that is believed most, else the shipped
ones; the threshold is counted on the labels that came last, else on what the converter counted. Where there is neither
it cannot be judged, and that is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edge.agent.model.candidates import shipped_distances, shipped_statistics
from edge.contract.bundle import Bundle
from edge.contract.errors import LearningError
from edge.contract.projection import Projection
from edge.contract.training import FloatArray
from edge.learning.closed_form import StatisticsKnowledge
from edge.learning.experts import on_merge
from edge.learning.learned import Learned
from edge.learning.learning import Learning
from edge.learning.novelty import Distances, Novelty, calibrated

# Labels after which it is made anew, for the price of a new head; and the share of them all, where they are many.
_EVERY, _SHARE_ANEW = 16, 8


@dataclass(frozen=True, eq=False, slots=True)
class _Made:
    """What was made, and of what.

    Attributes:
        of: The statistics, the release and the classes.
        labels: That had come.
        found: How samples are judged, or why they are not.
    """

    of: tuple[str, int, int, int]
    labels: int
    found: Novelty | str


class Rejection:
    """See the module.

    Args:
        bundle: With a head.
        learning: Its rules.
        share: Of known samples that may be rejected; 0 rejects nothing.
    """

    def __init__(self, bundle: Bundle, learning: Learning, share: float) -> None:
        head = bundle.manifest.head
        assert head is not None
        self.share = share
        self._head, self._bundle, self._learning = head, bundle, learning
        self._projection: Projection | None = head.project() if share else None
        self._made: _Made | None = None
        self.rejected = 0

    def novelty(self, learned: Learned, features: FloatArray) -> FloatArray | None:
        """``(n,)`` distances of features from all classes, above 1 for none of them; None where nobody can tell."""
        judge = self.judge(learned)
        return None if isinstance(judge, str) else judge.of(self._rows(features)).astype(np.float32)

    def status(self, learned: Learned) -> dict[str, object]:
        """For people."""
        judge = self.judge(learned)
        said = {"why": judge} if isinstance(judge, str) else {"counted_on": judge.basis}
        return {"share": self.share, **said, "rejected": self.rejected}

    def _rows(self, features: FloatArray) -> FloatArray:
        rows = features.reshape(len(features), math.prod(features.shape[1:]))
        return rows if self._projection is None else self._projection.features(rows)

    def judge(self, learned: Learned) -> Novelty | str:
        """How samples are judged now, or why they cannot be."""
        if not self.share:
            return "not asked for (reject_unknown)"
        labels, name = learned.mixture.labels, self._believed(learned)
        of, made = (name, learned.release, len(learned.class_names), learned.since_drift // 64), self._made
        if made is None or made.of != of or not 0 <= labels - made.labels < max(_EVERY, made.labels // _SHARE_ANEW):
            try:
                found: Novelty | str = self._judge(learned, name)
            except LearningError as exc:
                found = str(exc)
            made = self._made = _Made(of, labels, found)
        return made.found

    def _believed(self, learned: Learned) -> str:
        """The expert that sums up statistics of the features as they are, and is believed most; "" for none."""
        names = [n for n, value in learned.experts.items() if isinstance(value, StatisticsKnowledge)]
        names = [name for name in names if self._learning.is_plain(learned, name)]
        return max(names, key=learned.mixture.weight_of, default="")

    def _judge(self, learned: Learned, name: str) -> Novelty | str:
        task = self._learning.shipped_task
        if not task.is_classifier:
            return "the head gives no classes"
        of_features, shape = not self._head.is_linear, self._head.features.sample_shape
        shipped = shipped_statistics(self._bundle, task, of_features)
        recent = learned.recent.last(max(1, learned.since_drift))
        features, basis = self._rows(recent.features(shape)), f"the last {len(recent)} labels of this device"
        found = None
        if name:
            value: StatisticsKnowledge = learned.experts[name].settled()
            if value.n_known > 0:
                known = Distances(value.total() * (1.0 / value.gain))
                found = calibrated(known, known.without(features, recent.targets, recent.weights), self.share, basis)
        elif shipped is not None and len(recent):  # it has no samples of this device in it
            known = Distances(shipped.projected(self._projection))
            found = calibrated(known, known.of(features), self.share, basis)
        if found is not None:
            return found
        if on_merge(learned.trusted):
            return f"a merge answers here, and {len(recent)} labels do not say what is known to it"
        counted = shipped_distances(self._bundle, of_features)
        if shipped is None or counted is None:
            return f"{len(recent)} labels are too few, and the bundle says nothing of known samples"
        known, basis = Distances(shipped.projected(self._projection)), f"{len(counted)} samples of the bundle"
        said = f"{len(counted)} known samples are too few, or too much alike, for a share of {self.share:g}"
        return calibrated(known, counted, self.share, basis) or said
