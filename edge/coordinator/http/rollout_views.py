"""Rollouts for people: where they stand, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from edge.contract.errors import RolloutError
from edge.coordinator.records import as_dict
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.step import Rollout, Target
from edge.coordinator.store.store import Store
from edge.coordinator.turns import PAUSED, waited_for


def shown(store: Store, number: int) -> dict[str, Any]:
    """All that is known of a rollout.

    Raises:
        RolloutError: There is no such rollout.
    """
    with store.transaction():
        rollout, made = store.rollouts.get(number), store.rollouts.made(number)
        targets = store.rollouts.targets(number)
        looks = store.rollouts.looks(number)
        moved = store.rollouts.transitions(number)
        served = Counter(model.device for model in store.devices.models())
        paused = store.rollouts.setting(PAUSED)
        since_ms = waited_for(store).get(number, 0)
    if rollout is None or made is None:
        raise RolloutError(f"there is no rollout {number}; `edge-fleet rollout list` shows those that are")
    return {
        **summary(rollout),
        "author": made.author,
        "created_ms": made.created_ms,
        "seed": rollout.seed,
        "plan": plans.to_document(rollout.plan),
        "counts": dict(Counter(str(target.state) for target in targets)),
        "paused_all": paused,
        "merge_waits_since_ms": since_ms,
        "approvals": {"needed": rollout.plan.start.approvals, "by": [m.who for m in moved if m.event == "approve"]},
        "targets": [_shown(each) | {"of_several": served[each.device] > 1} for each in targets],
        "looks": [as_dict(each) for each in looks],
        "transitions": [as_dict(each) for each in moved],
    }


def summaries(store: Store) -> list[dict[str, Any]]:
    """All rollouts in short, newest first."""
    return [summary(rollout) for rollout in store.rollouts.all()]


def summary(rollout: Rollout) -> dict[str, Any]:
    """A rollout in short."""
    sized = rollout.sizes
    return {
        "id": rollout.id,
        "release": rollout.plan.release,
        "kind": rollout.kind,
        "state": str(rollout.state),
        "wave": rollout.wave + 1,
        "waves": [count for count, _ in sized],
        "devices": rollout.n_selected,
        "reason": rollout.reason,
        "version": rollout.version,
    }


def _shown(target: Target) -> dict[str, Any]:
    return {
        "device": target.device,
        "model": target.model,
        "wave": target.wave + 1,
        "state": str(target.state),
        "attempt": target.attempt,
        "detail": target.detail,
        "judged": target.is_judged,
        "pairs": asdict(target.pairs),
    }
