"""What the page of learning says: what devices contributed, and what became of the heads that were made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge.contract.errors import RolloutError
from edge.coordinator.artifacts import Artifact
from edge.coordinator.records import Contribution, LoggedEvent, Model, Release
from edge.coordinator.rollout.step import NOT_JUDGED
from edge.coordinator.store.store import Store
from edge.coordinator.turns import Turns
from edge.learning.exchange import HeadRelease

_MOST_MERGES = 5
_MOST_ROWS = 500
# Events by which devices say what became of a release.
_SAID = ("probation", "active", "rolled-back", "refused", "failed", "held")


def is_merge(release: Release) -> bool:
    """Whether it was made here, of contributions; what people push has a file, what goes back restores one."""
    return release.kind == "head" and not release.file and not release.restores and "merge" in release.reason


def learning(store: Store) -> dict[str, Any]:
    """All that the page shows."""
    with store.transaction():
        contributions = store.contributions.all()
        left_out = {(each.device, each.lineage): each.reason for each in store.contributions.refused()}
        releases = store.releases.all()
        models = store.devices.models()
        said = [each for state in _SAID for each in store.events.newest(_MOST_ROWS, name=state)]
        waits = store.events.newest(20, name="merge-waits")
        queue = Turns(store).waiting()
        faults = [*store.events.newest(10, name="merge-failed"), *store.events.newest(10, name="screening-undecided")]
    merges = [each for each in releases if is_merge(each)]
    rows = [(each, *_standing(each, left_out)) for each in contributions]
    return {
        "rows": sorted(rows, key=lambda row: row[0].received_ms, reverse=True)[:_MOST_ROWS],
        "n_contributions": len(contributions),
        "n_devices": len({each.device for each in contributions}),
        "n_samples": sum(each.n_samples for each in contributions),
        "merges": [_merge(each, contributions, models, said) for each in merges[:_MOST_MERGES]],
        "n_merges": len(merges),
        "waits": waits,
        "queue": queue,
        "faults": sorted(faults, key=lambda each: each.id, reverse=True),
    }


def _standing(one: Contribution, left_out: Mapping[tuple[str, str], str]) -> tuple[str, str]:
    """Where a contribution stands, and why."""
    why = left_out.get((one.device, one.lineage), "")
    if why:
        return "left-out", why
    if one.merged_version < 0:
        return "not-merged", ""
    return ("merged" if one.merged_version >= one.version else "newer"), ""


def _merge(
    release: Release, contributions: Sequence[Contribution], models: Sequence[Model], said: Sequence[LoggedEvent]
) -> dict[str, Any]:
    """A merge, whose labels are in it now, and what devices said of it last, whatever they run by now."""
    prefix = f"release {release.counter}: "
    newest: dict[tuple[str, str], LoggedEvent] = {}
    for each in sorted(said, key=lambda each: each.id):
        if each.detail.startswith(prefix):
            newest[each.device, each.model] = each
    found: dict[tuple[str, str], tuple[str, str, list[tuple[str, list[float]]]]] = {
        key: (each.name, each.detail.removeprefix(prefix), []) for key, each in newest.items()
    }
    for model in models:
        if model.state_release == release.counter:
            found[model.device, model.model] = (model.state, model.state_detail, by_share(model))
    verdicts = [
        {"device": name, "model": of, "detail": detail, "verdict": verdict(state, detail), "heads": heads}
        for (name, of), (state, detail, heads) in sorted(found.items())
    ]
    counted = {kind: sum(each["verdict"] == kind for each in verdicts) for kind in VERDICTS}
    return {
        "release": release,
        "parts": [each for each in contributions if each.merged_release == release.counter],
        "verdicts": sorted(verdicts, key=lambda each: VERDICTS.index(str(each["verdict"]))),
        "counted": counted,
    }


def by_share(model: Model) -> list[tuple[str, list[float]]]:
    """The heads of a model, the one with most say first: by name its share, how often it was right, on how many."""
    return sorted(model.experts.items(), key=lambda item: item[1][0], reverse=True)


# As devices say it: no label settled it, and how much say it has there shows what it is worth.
_COMPETES = "it competes"
VERDICTS = ("worse", "under-way", "not-judged", "competes", "better")


def verdict(state: str, detail: str) -> str:
    """What a device's own trial came to. Who was not judged did not pass."""
    if state in ("failed", "refused", "rolled-back", "held"):
        return "worse"
    if NOT_JUDGED in detail:
        return "not-judged"
    if state == "active" and _COMPETES in detail:
        return "competes"
    return "better" if state == "active" and detail else "not-judged" if state == "active" else "under-way"


def lineage(release: Release, artifact: Artifact, contributions: Sequence[Contribution]) -> dict[str, Any]:
    """Of which devices a head is made: the lineages in it, by the names that they have here.

    Raises:
        BundleError: It is damaged.
    """
    if release.kind != "head":
        raise RolloutError(f"release {release.counter} is a bundle: nothing that devices learned is in it")
    head = HeadRelease.decode(artifact.path.read_bytes(), f"release {release.counter}")
    owners = {each.lineage: each for each in contributions}
    parts = [
        {"lineage": name, "version": version, "device": owners[name].device if name in owners else ""}
        for name, version in sorted(head.included.items())
    ]
    return {"parts": parts, "samples": head.n_samples, "origin": head.origin, "outside": head.outside}
