"""What pages say of answers against labels: by class how many were right, what was taken for what, and where."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.channel.confusion import OTHERS, Counts, together, total
from edge.coordinator.learning.confusions import by_backbone, in_order, names_of, summed
from edge.coordinator.records import Confusion, FleetQuestion, Model
from edge.coordinator.store.store import Store

_MOST_CLASSES, _WIDE = 32, 11
_MOST_BACKBONES, _MOST_DEVICES, _MOST_MIXED, _MOST_ASKED = 3, 25, 12, 200
_SHADES = 5


@dataclass(frozen=True, slots=True)
class Cell:
    """Samples of one class that were answered as another one, or as the same.

    Attributes:
        n: How many.
        shade: From 0 for none to 5 for all of the class.
        said: What was answered.
    """

    n: int
    shade: int
    said: str


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class.

    Attributes:
        label: Its name.
        n: Labels.
        right: Of those, how many were answered so before the label came.
        taken_for: What it was answered as most often instead, with how often; None where it never was.
        cells: By column of the matrix.
    """

    label: str
    n: int
    right: int
    taken_for: tuple[str, int] | None
    cells: Sequence[Cell]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Answers against labels.

    Attributes:
        columns: What was answered, in the order of the rows; the last one may be `OTHERS`.
        rows: By class; classes without a label have none.
        n: Labels.
        right: Of those whose class is told.
        untold: Labels of classes for which there was no room.
        is_drawn: Whether it is small enough to be drawn.
        is_wide: Whether it is too wide for a phone.
    """

    columns: Sequence[str]
    rows: Sequence[ClassRow]
    n: int
    right: int
    untold: int
    is_drawn: bool
    is_wide: bool


def matrix(counts: Counts) -> Matrix | None:
    """Of what one model said, or several together; None for nothing."""
    found = summed(counts)
    if not found.n:
        return None
    labels = [each.label for each in found.classes]
    said = {answer for label in labels for answer in counts[label]}
    columns = [*sorted({*labels, *said} - {OTHERS}, key=in_order), *([OTHERS] if OTHERS in said else [])]
    return Matrix(
        columns=columns,
        rows=[_row(label, counts[label], columns) for label in labels],
        n=found.n,
        right=found.right,
        untold=found.untold,
        is_drawn=len(columns) <= _MOST_CLASSES + 1,
        is_wide=len(columns) > _WIDE,
    )


def _row(label: str, row: Mapping[str, int], columns: Sequence[str]) -> ClassRow:
    n = total(row)
    wrong = [(count, said) for said, count in row.items() if said not in (label, OTHERS)]
    most, taken_for = max(wrong, default=(0, ""))
    cells = [Cell(row.get(said, 0), -(-_SHADES * row.get(said, 0) // n), said) for said in columns]
    return ClassRow(label, n, row.get(label, 0), (taken_for, most) if most else None, cells)


def of_device(said: Sequence[Confusion]) -> dict[str, tuple[Confusion, Matrix | None]]:
    """By model of one device what it said last, and that as a matrix."""
    return {each.model: (each, matrix(each.counts)) for each in said}


def of_fleet(store: Store, models: Sequence[Model]) -> dict[str, Any]:
    """By backbone what all devices answered together, and each of them; and samples that people would look at.

    Args:
        store: The database.
        models: All of the fleet.
    """
    names = names_of(store)
    groups = by_backbone(store.confusions.all(), models)
    told = sum(map(len, groups.values()))
    return {
        "confusions": [
            {
                "name": names.get(backbone, "") or own[0].model,
                "backbone": backbone,
                "matrix": matrix(together(each.counts for each in own)),
                "devices": _by_device(own),
                "n_devices": len(own),
            }
            for backbone, own in list(groups.items())[:_MOST_BACKBONES]
        ],
        "n_groups": len(groups),
        "n_told": told,
        "n_untold": len(models) - told,
        "mixed": _mixed([each for own in groups.values() for each in own]),
        "contradicted": _contradicted(store),
    }


def _by_device(said: Sequence[Confusion]) -> list[dict[str, Any]]:
    """Those with most wrong answers first, as many as are shown."""
    first = sorted(said, key=lambda each: (-_wrong(each.counts), each.device))[:_MOST_DEVICES]
    return [{"said": each, "matrix": matrix(each.counts), "mixes": next(iter(_mixed([each])), None)} for each in first]


def _wrong(counts: Counts) -> int:
    """Labels of classes that are told, and that were answered otherwise."""
    return sum(total(row) - row.get(label, 0) for label, row in counts.items() if label != OTHERS)


@dataclass(frozen=True, slots=True)
class Mixed:
    """Samples of one class that a device answered as another one.

    Attributes:
        said: By whom this was told, and when.
        label: The class.
        answer: The other one.
        n: How many.
        of: Labels of the class there.
    """

    said: Confusion
    label: str
    answer: str
    n: int
    of: int


def _mixed(said: Sequence[Confusion]) -> list[Mixed]:
    """Which device answered which class as which other one most often."""
    found = [
        (-count, total(row), each.device, each.model, label, answer, each)
        for each in said
        for label, row in each.counts.items()
        if label != OTHERS
        for answer, count in row.items()
        if answer not in (label, OTHERS)
    ]
    first = heapq.nsmallest(_MOST_MIXED, found, key=lambda each: each[:-1])
    return [Mixed(each, label, answer, -n, of) for n, of, _, _, label, answer, each in first]


def _contradicted(store: Store) -> list[FleetQuestion]:
    """Samples that devices shared, and that a person gave another class than was answered: the surest answers first."""
    asked = store.questions.newest(_MOST_ASKED)
    wrong = [each for each in asked if each.state == "answered" and each.label != each.said]
    return sorted(wrong, key=lambda each: -each.confidence)[:_MOST_MIXED]
