"""What the page of learning says: what devices contributed, and what became of the heads that were made of it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.contract.errors import EdgeError, RolloutError
from edge.coordinator.pages import confusion_view
from edge.coordinator.records import AlikeSample, Contribution, LoggedEvent, Model, Release, is_merge
from edge.coordinator.releases.artifacts import Artifact
from edge.coordinator.releases.releases import Releases
from edge.coordinator.rollout.step import NOT_JUDGED
from edge.coordinator.store.store import Store
from edge.coordinator.turns import Turns
from edge.learning.exchange import HeadRelease, Outside
from edge.learning.trial import COMPETES, OVERTAKEN

_MOST_MERGES, _MOST_QUESTIONS = 5, 10
_MOST_ROWS, _MOST_CONTRIBUTIONS = 500, 50
# Devices that are shown of the newest merge, and of each one before.
_MOST_VERDICTS, _MOST_BEFORE = 10, 3
# Events by which devices say what became of a release.
_SAID = ("probation", "active", "rolled-back", "refused", "failed", "held")


def words(store: Store) -> list[LoggedEvent]:
    """What devices said of releases lately."""
    return [each for state in _SAID for each in store.events.newest(_MOST_ROWS, name=state)]


def learning(store: Store, of: Releases) -> dict[str, Any]:
    """All that the page shows.

    Args:
        store: The database.
        of: What the releases hold.
    """
    with store.transaction():
        contributions = store.contributions.all()
        left_out = {(each.device, each.lineage): each.reason for each in store.contributions.refused()}
        releases = store.releases.all()
        models = store.devices.models()
        said = words(store)
        waits = _last_of({each.device for each in contributions if each.merged_version < 0}, "merge-waits", store)
        out = _last_of({device for device, _ in left_out}, "left-out", store)
        queue = Turns(store).waiting()
        merges = [each for each in releases if is_merge(each)]
        newest = {each.counter for each in merges[:_MOST_MERGES]}
        rollouts = {each.plan.release: each.id for each in store.rollouts.all() if each.plan.release in newest}
        evaluations = {counter: store.evaluations.get(number) for counter, number in rollouts.items()}
        asked = store.questions.newest(_MOST_QUESTIONS)
        against = confusion_view.of_fleet(store, models)
        faults = [*store.events.newest(10, name="merge-failed"), *store.events.newest(10, name="screening-undecided")]
    shown = [
        _merge(each, of, contributions, models, said) | {"evaluation": evaluations.get(each.counter)}
        for each in merges[:_MOST_MERGES]
    ]
    for i, each in enumerate(shown):
        each["shown"] = each["verdicts"][: _MOST_BEFORE if i else _MOST_VERDICTS]
    told_ms = {
        device: _told_ms(store, device)
        for device in sorted({v["device"] for m in shown for v in m["shown"] if v["heads"]})
    }
    rows = [(each, *standing(each, left_out)) for each in contributions]
    return {
        **against,
        "told_ms": told_ms,
        "rows": sorted(rows, key=lambda row: row[0].received_ms, reverse=True)[:_MOST_CONTRIBUTIONS],
        "n_contributions": len(contributions),
        "n_devices": len({each.device for each in contributions}),
        "n_samples": sum(each.n_samples for each in contributions),
        "merges": shown,
        "n_merges": len(merges),
        "queue": queue,
        "questions": [(each, _given(store.questions.samples(each.number))) for each in asked],
        "faults": sorted([*faults, *waits, *out], key=lambda each: (each.at_ms, each.id), reverse=True)[:20],
    }


def _last_of(devices: Collection[str], name: str, store: Store) -> list[LoggedEvent]:
    """Of events of this name the last one of each of these devices, and the last one of nobody."""
    last = {each.device: each for each in reversed(store.events.newest(_MOST_ROWS, name=name))}
    return [each for device, each in last.items() if not device or device in devices]


def _told_ms(store: Store, device: str) -> int:
    """When a device said last how its models are."""
    known = store.devices.get(device)
    return 0 if known is None else store.telemetry.heard_ms(device, known.state_id)


def _given(alike: Sequence[AlikeSample]) -> tuple[int, int]:
    """How many samples of a question have its label by now, and on how many devices."""
    taken = [each.device for each in alike if each.state == "taken"]
    return len(taken), len(set(taken))


def standing(one: Contribution, left_out: Mapping[tuple[str, str], str]) -> tuple[str, str]:
    """Where a contribution stands, and why."""
    why = left_out.get((one.device, one.lineage), "")
    if why:
        return "left-out", why
    if one.merged_version < 0:
        return "not-merged", ""
    return ("merged" if one.merged_version >= one.version else "newer"), ""


def _merge(
    release: Release,
    of: Releases,
    contributions: Sequence[Contribution],
    models: Sequence[Model],
    said: Sequence[LoggedEvent],
) -> dict[str, Any]:
    """A merge: by device what it has of it, what the merge of the others gives it, and what it said of it."""
    verdicts = {(each["device"], each["model"]): each for each in said_of(release, models, said)}
    inside: Inside | None = None
    with contextlib.suppress(EdgeError):  # its file is gone: what devices said is told all the same
        inside = inside_of(release, of.artifact(release.counter))
    for one in contributions:
        if inside is not None and one.lineage in inside.included:
            row = verdicts.setdefault((one.device, one.model), _unsaid(one.device, one.model))
            row["labels"] = inside.included[one.lineage]
            row["gain"] = inside.gains.get(one.lineage)
    counted = {kind: sum(each["verdict"] == kind for each in verdicts.values()) for kind in VERDICTS}
    return {
        "release": release,
        "inside": inside,
        "verdicts": sorted(verdicts.values(), key=lambda each: (VERDICTS.index(each["verdict"]), each["device"])),
        "counted": {kind: n for kind, n in counted.items() if n},
    }


def said_of(release: Release, models: Sequence[Model], said: Sequence[LoggedEvent]) -> list[dict[str, Any]]:
    """By device and model the newest word on a release, whatever runs there by now, and what its trial came to."""
    prefix = f"release {release.counter}: "
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for each in sorted(said, key=lambda each: each.id):
        if each.detail.startswith(prefix):
            row = found.setdefault((each.device, each.model), _unsaid(each.device, each.model))
            _take(row, each.name, each.detail.removeprefix(prefix))
    for model in models:
        if model.state_release == release.counter:
            row = found.setdefault((model.device, model.model), _unsaid(model.device, model.model))
            if model.state_detail or row["state"] != model.state:  # after a restart it says no more why
                _take(row, model.state, model.state_detail)
            row["heads"] = by_share(model)
    return [row for _, row in sorted(found.items())]


def _unsaid(device: str, model: str) -> dict[str, Any]:
    return {
        "device": device, "model": model, "state": "", "detail": "", "trial": "", "verdict": "unsaid", "heads": [],
        "labels": None, "gain": None,
    }  # fmt: skip


def _take(row: dict[str, Any], state: str, detail: str) -> None:
    row["state"], row["verdict"], row["detail"] = state, verdict(state, detail), detail
    if _TRIED in detail:
        row["trial"], row["detail"] = detail, ""


@dataclass(frozen=True, slots=True)
class Inside:
    """What is in the file of a merge.

    Attributes:
        included: By lineage up to which label.
        gains: By lineage that was left out in turn, what the merge of the others gives it.
        origin: In words.
        samples: Labelled samples behind it.
        outside: What it is worth on devices that are not in it.
    """

    included: Mapping[str, int]
    gains: Mapping[str, float]
    origin: str
    samples: int
    outside: Outside | None


def inside_of(release: Release, artifact: Artifact) -> Inside:
    """Read what is in a merge; it is kept, since its bytes never change.

    Raises:
        BundleError: It is damaged.
    """
    return _inside(artifact.path, release.digest)


@functools.lru_cache(maxsize=256)
def _inside(path: Path, digest: str) -> Inside:
    head = HeadRelease.decode(path.read_bytes(), digest[:12])
    gains = {} if head.outside is None else head.outside.each
    return Inside(head.included, gains, head.origin, head.n_samples, head.outside)


def by_share(model: Model) -> list[tuple[str, list[float]]]:
    """The heads of a model, the one with most say first: by name its share, how often it was right, on how many."""
    return sorted(model.experts.items(), key=lambda item: item[1][0], reverse=True)


# As the trial of a device says it, see `edge.learning.trial`; what came of it later has other words.
_TRIED = "recent labels"
VERDICTS = ("worse", "under-way", "not-judged", "competes", "better", "unsaid")


def verdict(state: str, detail: str) -> str:
    """What a device's own trial came to. Who was not judged did not pass."""
    if NOT_JUDGED in detail or OVERTAKEN in detail:
        return "not-judged"
    if state in ("failed", "refused", "rolled-back", "held"):
        return "worse"
    if state == "active" and COMPETES in detail:
        return "competes"
    return "better" if state == "active" and detail else "not-judged" if state == "active" else "under-way"


def lineage(release: Release, artifact: Artifact, contributions: Sequence[Contribution]) -> dict[str, Any]:
    """Of which devices a head is made: the lineages in it, by the names that they have here.

    Raises:
        BundleError: It is damaged.
    """
    if release.kind != "head":
        raise RolloutError(f"release {release.counter} is a bundle: nothing that devices learned is in it")
    head = inside_of(release, artifact)
    owners = {each.lineage: each for each in contributions}
    parts = [
        {
            "lineage": name,
            "version": version,
            "device": owners[name].device if name in owners else "",
            "gain": head.gains.get(name),
        }
        for name, version in sorted(head.included.items())
    ]
    return {"parts": parts, "samples": head.samples, "origin": head.origin, "outside": head.outside}
