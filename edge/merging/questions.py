"""Which one label would help most devices: samples of a fleet that are alike share one answer.

Samples are compared by their sketches (`edge.learning.sketches`). The samples around a possible question are those at
least as alike as `LEAST_ALIKE`; asked is for the sample around which most *devices* have one: samples of one device
are answered there, one by one, without anybody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge.learning.sketches import Codes, cosines

# Cosine of two sketches from which on one label is given to both. On ten real cameras 95 of 100 pairs as alike as this
# were of one class, of two cameras 97; from 0.7 on 84 and 91 (docs/learning.md).
LEAST_ALIKE = 0.8
# How much the label is trusted of a sample that was not the asked one.
SPREAD_WEIGHT = 0.75
# Sketches that are compared with one another: the work grows with the square.
MOST_COMPARED = 4096
_ROWS = 512


@dataclass(frozen=True, eq=False, slots=True)
class Sketch:
    """What a device says of a sample whose label would help.

    Attributes:
        device: That has the sample.
        model: Of that device.
        id: The sample's name there.
        at_ms: When it was answered, ms since 1970.
        answer: Name of the class that was answered.
        confidence: Of the answer, 0 to 1.
        codes: ``(LENGTH,)``.
    """

    device: str
    model: str
    id: str
    at_ms: int
    answer: str
    confidence: float
    codes: Codes


@dataclass(frozen=True, eq=False, slots=True)
class Question:
    """A label to ask for, and whom it helps.

    Attributes:
        asked: The sample that a person is asked about.
        alike: The others that its label is given to, most alike first, with how alike they are.
    """

    asked: Sketch
    alike: tuple[tuple[Sketch, float], ...]

    @property
    def n_devices(self) -> int:
        """Devices that learn from the answer."""
        return len({self.asked.device, *(each.device for each, _ in self.alike)})


def best_question(sketches: Sequence[Sketch], *, least_devices: int = 2) -> Question | None:
    """The question whose answer helps most devices.

    Of those that help as many it is the one with more samples around it, then the one that they are most alike to.

    Args:
        sketches: Of one backbone; the newest are the last. Of more than `MOST_COMPARED` the newest count.
        least_devices: A question that helps fewer is not worth a person's time.

    Returns:
        None where there is no such question.
    """
    known = sketches[-MOST_COMPARED:]
    if not known:
        return None
    codes = np.stack([each.codes for each in known])
    numbers = {name: i for i, name in enumerate(dict.fromkeys(each.device for each in known))}
    owners = np.array([numbers[each.device] for each in known])
    best, best_worth = -1, (least_devices, 0, 0.0)
    for start in range(0, len(known), _ROWS):
        alike = cosines(codes[start : start + _ROWS], codes)
        near = alike >= LEAST_ALIKE
        for row, (has, how) in enumerate(zip(near, alike, strict=True)):
            around = np.flatnonzero(has)
            worth = (len(np.unique(owners[around])), len(around), float(how[around].sum()))
            if worth > best_worth:
                best, best_worth = start + row, worth
    return None if best < 0 else around_of(known, best)


def around_of(sketches: Sequence[Sketch], which: int) -> Question:
    """The question about one of the sketches."""
    codes = np.stack([each.codes for each in sketches])
    alike = cosines(codes[which : which + 1], codes)[0]
    order = [int(i) for i in np.argsort(-alike, kind="stable") if i != which and alike[i] >= LEAST_ALIKE]
    return Question(sketches[which], tuple((sketches[i], float(alike[i])) for i in order))
