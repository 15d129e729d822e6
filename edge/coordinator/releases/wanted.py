"""What the models of a device should run: of the releases that are meant for it, and of those that rollouts bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edge.contract.names import level_of
from edge.coordinator.records import APPROVED, KnownDevice, Model, Release
from edge.merging.groups import is_meant


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a model of a device should run.

    Attributes:
        release: It.
        model: Of the device.
        level: Of its topics; "" where the device has one model.
        activate: ``now``, ``wait`` or ``never``, see `edge.channel.messages.Desired`.
        attempt: Goes up where it is to be tried once more.
        is_late: Whether the device has not dealt with it.
    """

    release: Release
    model: Model
    level: str
    activate: Literal["now", "wait", "never"] = "now"
    attempt: int = 1
    is_late: bool = True


@dataclass(frozen=True, slots=True)
class Targeted:
    """A release that a rollout has for a model of a device now, see `edge.coordinator.rollout.advance.wants`."""

    release: Release
    model: str
    activate: Literal["now", "wait", "never"]
    attempt: int
    is_on_its_way: bool


def fits(release: Release, model: Model, *, is_only: bool) -> bool:
    """Whether a release that is meant for a device is for this model of it, which `is_only` one there or not."""
    if release.kind == "head":
        return release.backbone == model.backbone and release.model in ("", model.model)
    return release.model == model.model or ("" in (release.model, model.model) and is_only)


def desired(
    releases: Sequence[Release],
    model: Model,
    tags: Mapping[str, str],
    *,
    is_only: bool,
    targeted: Sequence[Release] = (),
) -> Release | None:
    """What a model should run: the newest bundle meant for it until it has dealt with that, then the newest head.

    A head must not overtake a bundle: the model's counter would then be past the bundle's for ever.

    Args:
        releases: All, newest first.
        model: Of a device.
        tags: Of that device.
        is_only: Whether it is the only one there.
        targeted: What rollouts have for it.
    """
    meant = [each for each in releases if is_meant(each.devices, model.device, tags)]
    meant = sorted([*meant, *targeted], key=lambda each: -each.counter)
    meant = [each for each in meant if fits(each, model, is_only=is_only)]
    bundle = next((each for each in meant if each.kind == "bundle"), None)
    head = next((each for each in meant if each.kind == "head"), None)
    if bundle is None or (head is not None and model.release >= bundle.counter and head.counter > bundle.counter):
        return head
    return bundle


# A device that says one of these of a release has begun with it, and has not made it live.
_BEGUN = ("offered", "fetching", "verified", "staged", "held")


def wanted(
    releases: Sequence[Release],
    known: KnownDevice,
    tags: Mapping[str, str],
    targeted: Sequence[Targeted] = (),
    *,
    is_halted: bool = False,
) -> list[Wanted]:
    """What the models of a device should run; nothing for one that is not approved, or has not introduced itself.

    While the whole fleet is paused, what goes to all at once is fetched, and made live when that is over.
    """
    models = known.models if known.device.born and known.device.admission == APPROVED else ()
    found = []
    for model in models:
        level, is_only = level_of(model.model) if len(models) > 1 else "", len(models) == 1
        own = [each for each in targeted if each.model == model.model or (is_only and "" in (each.model, model.model))]
        wishes = {each.release.counter: each for each in own if each.activate != "never"}
        release = desired(releases, model, tags, is_only=is_only, targeted=[each.release for each in wishes.values()])
        if release is not None:
            wish = wishes.get(release.counter)
            is_late = model.release < release.counter
            if wish is None:
                found.append(Wanted(release, model, level, "wait" if is_halted and is_late else "now", is_late=is_late))
            else:
                is_late = is_late or wish.is_on_its_way
                found.append(Wanted(release, model, level, wish.activate, wish.attempt, is_late))
        found += [
            Wanted(each.release, model, level, "never")
            for each in own
            if each.activate == "never"
            and each.release.counter == model.state_release
            and model.state in _BEGUN
            and (release is None or release.counter != each.release.counter)
        ]
    return found
