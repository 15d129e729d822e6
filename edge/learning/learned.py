"""What a device has learned, as a value.

`Learned` is frozen: an event gives another one (`edge.learning.learning`), and the old one stays what it was. So a
batch that is refused leaves the old value, a rollback is the earlier value and the labels since, and what is on disk is
a value and the events that came after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.contract.training import FloatArray
from edge.learning.disclosure import Disclosed
from edge.learning.drift import Window
from edge.learning.mixture import MERGED, Mixture
from edge.learning.recent import Recent
from edge.learning.task import Scores
from edge.learning.tree import UNWRITTEN


@dataclass(frozen=True, slots=True)
class Happened:
    """Something that an operator wants to know.

    Attributes:
        kind: ``believed`` (another expert than before), or ``drift``.
        text: For people.
    """

    kind: str
    text: str


@dataclass(frozen=True, eq=False, slots=True)
class Head:
    """An expert that does not learn."""

    parameters: Mapping[str, FloatArray]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Trial:
    """A head that replaced everything, and may still go.

    Attributes:
        before: What was there before it.
        since: Labels that came since.
        events: ``(m,)`` int64, how many of them came together, oldest first.
    """

    before: Learned
    since: Recent
    events: npt.NDArray[np.int64]

    def with_event(self, size: int) -> Trial:
        """After an event of so many labels, which are in `since` by now; beyond what that holds the oldest go."""
        sizes: list[int] = [*self.events.tolist(), size]
        over = sum(sizes) - len(self.since)
        while over > 0:
            gone = min(over, sizes[0])
            sizes[0], over = sizes[0] - gone, over - gone
            if not sizes[0]:
                sizes.pop(0)
        return replace(self, events=np.array(sizes, np.int64))


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Learned:
    """All that a device knows beyond its bundle.

    Attributes:
        class_names: Of the bundle, and those that were added here; empty for quantities.
        lineage: Random identity of this history: what it contributed to the fleet is known by it.
        release: Counter of the release that it goes on from, 0 for the shipped head.
        experts: By name: a `Head`, or the value of a learner.
        mixture: How far each is believed.
        trusted: Name of the expert that the trusted past was taken from.
        merge_fits: Whether the samples of this device look like those of the merge that it has; None for who knows.
        recent: The labels that came last.
        drift: The window of `Adwin` over the errors of the answer.
        usual: ``(groups,)`` the usual error of each class.
        since_drift: Labels since the last change of the world.
        temperature: By which logits are divided for honest probabilities.
        trial: Of a head that replaced everything; None while there is none.
        disclosed: What is told of labelled samples under noise, where a device tells nothing without. It never goes
            back, so a trial has none.
        backbone: Digest of the frozen part whose features all of it is about. Who keeps it writes that beside it.
    """

    class_names: tuple[str, ...]
    lineage: str
    release: int
    experts: Mapping[str, Any]
    mixture: Mixture
    trusted: str
    merge_fits: bool | None
    recent: Recent
    drift: Window
    usual: Scores
    since_drift: int
    temperature: float
    trial: Trial | None
    disclosed: Disclosed | None = None
    backbone: str = field(default="", metadata=UNWRITTEN)

    @property
    def has_merge(self) -> bool:
        """Whether there is a merge among the experts."""
        return MERGED in self.experts
