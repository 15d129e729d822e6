"""What the pages of releases say: which there are, what became of each, and in what two differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from edge.contract.errors import RolloutError
from edge.coordinator.pages.learning_view import lineage, said_of, words
from edge.coordinator.records import Release
from edge.coordinator.releases.differences import contents, difference
from edge.coordinator.releases.releases import Releases
from edge.coordinator.rollout.step import Target
from edge.coordinator.signing.signing import Signing
from edge.coordinator.store.store import Store

_MOST = 200


def releases(store: Store) -> dict[str, Any]:
    """All of them, newest first, with how many models run each."""
    with store.transaction():
        found, models = store.releases.all(), store.devices.models()
        ids = {each.digest: each.identity for each in store.releases.bundles()}
    runs = Counter(each.release for each in models)
    return {"releases": [(each, runs[each.counter]) for each in found[:_MOST]], "n": len(found), "ids": ids}


def release(store: Store, of: Releases, signing: Signing | None, counter: int) -> dict[str, Any]:
    """One of them.

    Raises:
        RolloutError: There is none of that number, or its bytes are gone.
    """
    one = of.get(counter)
    artifact = of.artifact(counter)
    made_of = lineage(one, artifact, store.contributions.all()) if one.kind == "head" else None
    return {**_fate(store, of, signing, one), "made_of": made_of}


def compare(store: Store, of: Releases, signing: Signing | None, one: int, other: int) -> dict[str, Any]:
    """Two of them, side by side.

    Raises:
        RolloutError: There is none of that number, or its bytes are gone.
    """
    if one == other:
        raise RolloutError(f"release {one} and itself: choose two")
    pair = [_fate(store, of, signing, of.get(each)) for each in (one, other)]
    found = [contents(of.get(each), of.artifact(each)) for each in (one, other)]
    differs = difference((of.get(one), found[0]), (of.get(other), found[1]))
    parameters = [(name, moved) for name, moved in differs["parameters"].items()]
    return {"pair": pair, "changed": differs["changed"], "same": differs["same_bytes"], "parameters": parameters}


def _fate(store: Store, of: Releases, signing: Signing | None, one: Release) -> dict[str, Any]:
    """A release: what is in it, who let it go out, and what became of it on devices."""
    rollouts = [each for each in store.rollouts.all() if each.plan.release == one.counter]
    approvals = []
    targets: list[Target] = []
    for rollout in rollouts:
        made = store.rollouts.made(rollout.id)
        approvals.append((rollout, "" if made is None else made.author, _decisions(store, rollout.id)))
        targets += store.rollouts.targets(rollout.id)
    models = store.devices.models()
    said = said_of(one, models, words(store))
    return {
        "release": one,
        "facts": contents(one, of.artifact(one.counter)).facts,
        "signed": None if signing is None else signing.is_listed(one.kind, one.digest),
        "approvals": approvals,
        "verdicts": Counter(each["verdict"] for each in said),
        "trials": [each for each in said if each["trial"]],
        "evidence": _evidence(targets),
        "runs": sum(each.release == one.counter for each in models),
    }


def _decisions(store: Store, rollout: int) -> list[tuple[str, str, str]]:
    """What people decided of a rollout: who, what, why."""
    moved = store.rollouts.transitions(rollout)
    return [(each.who, each.event, each.why) for each in moved if each.who and not each.subject]


def _evidence(targets: Sequence[Target]) -> dict[str, Any]:
    """Sums of what old and new answered to the same samples, over all devices of its rollouts."""
    pairs = [each.pairs for each in targets]
    labelled, compared = sum(each.labelled for each in pairs), sum(each.compared for each in pairs)
    times = [(each.old_ms, each.new_ms) for each in pairs if each.old_ms > 0 and each.new_ms > 0]
    gained = sum(each.only_new - each.only_old for each in pairs)
    return {
        "labelled": labelled,
        "judges": sum(each.labelled > 0 for each in pairs),
        "gain": gained / labelled if labelled else None,
        "compared": compared,
        "differ": sum(each.differ for each in pairs) / compared if compared else None,
        "old_ms": median(old for old, _ in times) if times else None,
        "new_ms": median(new for _, new in times) if times else None,
        "timed": len(times),
    }
