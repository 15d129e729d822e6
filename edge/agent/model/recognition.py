"""Whether a merge is a picture of the world that a device sees, asked until the device has seen enough to tell.

A device that is new gets the fleet's merge before its first sample. Nobody can tell then whose world it is in, so that
the shipped head answers; the samples that come answer that, without any label: see `edge.learning.familiarity`.
"""

from __future__ import annotations

import numpy as np

from edge.agent.model.candidates import shipped_statistics
from edge.agent.model.host import ModelHost
from edge.agent.model.on_device_model import OnDeviceModel
from edge.contract.errors import BundleError, LearningError
from edge.learning.events import MergeRecognized
from edge.learning.exchange import HeadRelease
from edge.learning.experts import on_merge
from edge.learning.familiarity import MIN_SAMPLES, fits
from edge.learning.learned import Happened
from edge.learning.mixture import TRUSTED
from edge.learning.statistics import HeadStatistics
from edge.learning.trial import COMPETES, MIN_LABELS

# Labels for each class, on average, from which a merge is taken for a picture of a world.
_LABELS_OF_A_WORLD = 20
# Late samples that are looked at, at most: when a merge comes, and while nobody can tell.
_LATE, _LATE_AGAIN = 64, 256


def fits_here(model: OnDeviceModel, release: HeadRelease, most: int = _LATE) -> bool | None:
    """Whether a merge is a picture of the world that the last samples are of; None where nobody can tell.

    Args:
        model: Has seen them.
        release: The merge.
        most: Samples that are looked at, at most.
    """
    head, task = model.manifest.head, model.learning.shipped_task
    assert head is not None
    shipped = shipped_statistics(model.bundle, task) if task.is_classifier else None
    if not release.merged or shipped is None:
        return None
    n_outputs = len(release.class_names) or task.n_outputs
    if release.n_samples < _LABELS_OF_A_WORLD * n_outputs:
        return None
    recent = model.learned.recent.features(head.features.sample_shape)
    features = np.concatenate([recent, model.answering.late_features(most)])[-most:]
    try:
        projection = head.project()
        new = HeadStatistics.from_tensors(release.merged, head.n_statistics, n_outputs, is_classifier=True)
        if projection is not None:
            features = projection.features(features)
        labelled = len(recent) >= MIN_LABELS
        return fits(features, new, shipped.projected(projection), release.outside, labelled=labelled)
    except LearningError:
        return None


class Recognition:
    """Asks again about the merge that a device has; see the module.

    Args:
        host: Of the model, with the file of the newest head.
    """

    def __init__(self, host: ModelHost) -> None:
        self._host = host
        self._release, self._next = 0, MIN_SAMPLES

    def look(self) -> bool:
        """Ask, where enough was seen since; whether it is known now and was not before."""
        model = self._host.model
        if not model.learns:
            return False
        learned = model.learned
        if not learned.has_merge or learned.merge_fits is not None or learned.mixture.labels >= MIN_LABELS:
            return False
        if learned.release != self._release:
            self._release, self._next = learned.release, MIN_SAMPLES
        seen = min(_LATE_AGAIN, len(model.answering.ring) + len(learned.recent))
        if seen < self._next:
            return False
        self._next = 2 * seen if seen < _LATE_AGAIN else _LATE_AGAIN + 1  # what these do not tell, labels will
        release = self._newest()
        found = None if release is None or not release.is_merge else fits_here(model, release, _LATE_AGAIN)
        if found is None:
            return False
        model.happen(MergeRecognized(found))
        model.events.append(Happened("merge-recognized", standing(model)))
        return True

    def _newest(self) -> HeadRelease | None:
        """The merge, from the file that is kept of it; None where another release came behind it."""
        slots, learned = self._host.slots, self._host.model.learned
        path = slots.artifact(slots.record.head) if slots.record.release == learned.release else None
        try:
            return None if path is None else HeadRelease.decode(path.read_bytes(), "the newest merge")
        except (BundleError, OSError):
            return None


def standing(model: OnDeviceModel) -> str:
    """Whether the newest merge answers here, and why, for people; "" where there is none."""
    learned = model.learned
    if not learned.has_merge:
        return ""
    labels, says = learned.mixture.labels, zip(learned.mixture.names, model.learning.says(learned), strict=True)
    share = sum(float(each) for name, each in says if on_merge(learned.trusted if name == TRUSTED else name))
    if share < 0.01 and not labels:
        seen = len(model.answering.ring)
        if learned.merge_fits is False:
            why = "it is no picture of what is seen here, or gained nothing on devices that were left out"
        elif seen < MIN_SAMPLES:
            why = f"{seen} samples were seen so far, and {MIN_SAMPLES} show whether it fits here"
        else:
            why = "from samples alone nobody can tell whether it fits here"
        return f"the merge runs, but does not answer yet: no labels here, and {why}"
    known = ", the samples here look like those that it was learned from" if learned.merge_fits else ""
    return f"the merge {COMPETES} with what builds on it has {share:.0%} of the say after {labels} labels{known}"
