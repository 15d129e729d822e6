"""Answers against labels, counted: by class how many were right, and which models of the fleet count together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge.channel.confusion import OTHERS, Counts, total
from edge.coordinator.records import Confusion, Model
from edge.coordinator.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassSum:
    """One class: its labels, and how many of them were answered so before the label came."""

    label: str
    n: int
    right: int
    accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Summed:
    """All labels.

    Attributes:
        n: How many.
        right: Of those whose class is told, how many were answered so.
        untold: Labels of classes for which a message had no room.
        classes: Those that are told, by name; numbers in names by their size.
    """

    n: int
    right: int
    untold: int
    classes: Sequence[ClassSum]


def summed(counts: Counts) -> Summed:
    """Of what one model said, or several together."""
    told = [label for label in sorted(counts, key=in_order) if label != OTHERS and total(counts[label])]
    classes = [_of_class(label, total(counts[label]), counts[label].get(label, 0)) for label in told]
    untold = total(counts.get(OTHERS, {}))
    return Summed(
        n=sum(each.n for each in classes) + untold,
        right=sum(each.right for each in classes),
        untold=untold,
        classes=classes,
    )


def _of_class(label: str, n: int, right: int) -> ClassSum:
    return ClassSum(label=label, n=n, right=right, accuracy=right / n)


def in_order(name: str) -> list[tuple[bool, int, str]]:
    """A key to sort by: the alphabet, and numbers in names as numbers."""
    return [
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part.casefold())
        for part in re.split(r"([0-9]+)", name)
        if part
    ]


def by_backbone(said: Iterable[Confusion], models: Sequence[Model]) -> dict[str, list[Confusion]]:
    """What models said that have one, by backbone: those with most labels first.

    Args:
        said: As it is kept.
        models: That are there now; what others said is left out.
    """
    backbones = {(model.device, model.model): model.backbone for model in models}
    groups: dict[str, list[Confusion]] = {}
    for each in said:
        if each.counts and (backbone := backbones.get((each.device, each.model))) is not None:
            groups.setdefault(backbone, []).append(each)
    return dict(sorted(groups.items(), key=lambda item: -sum(total(r) for e in item[1] for r in e.counts.values())))


def names_of(store: Store) -> dict[str, str]:
    """What backbones are called, of the bundles that are known."""
    return {each.backbone: each.name for each in store.releases.bundles()}
