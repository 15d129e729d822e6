"""Rollouts for people: where they stand, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from edge.contract.errors import RolloutError
from edge.coordinator.records import Evaluation, as_dict
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout.states import RolloutState
from edge.coordinator.rollout.step import Rollout, Target
from edge.coordinator.store.store import Store
from edge.coordinator.turns import PAUSED, RUN_CLOCK, waited_for


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
        evaluation, judges = store.evaluations.get(number), store.evaluations.judges(number)
        run_s = float(store.rollouts.setting(RUN_CLOCK) or 0.0)
    if rollout is None or made is None:
        raise RolloutError(f"there is no rollout {number}; `edge-fleet rollout list` shows those that are")
    return {
        **summary(rollout, evaluation),
        "author": made.author,
        "created_ms": made.created_ms,
        "seed": rollout.seed,
        "plan": plans.to_document(rollout.plan),
        "counts": dict(Counter(str(target.state) for target in targets)),
        "paused_all": paused,
        "merge_waits_since_ms": since_ms,
        "approvals": {"needed": rollout.plan.start.approvals, "by": [m.who for m in moved if m.event == "approve"]},
        "evaluation": None
        if evaluation is None
        else {
            "state": evaluation.state,
            "detail": evaluation.detail,
            "left_s": max(0.0, evaluation.due_s - run_s) if evaluation.state == "asking" else 0.0,
            "judges": [as_dict(each) for each in judges],
        },
        "targets": [_shown(each) | {"of_several": served[each.device] > 1} for each in targets],
        "looks": [as_dict(each) for each in looks],
        "transitions": [as_dict(each) for each in moved],
    }


def summaries(store: Store) -> list[dict[str, Any]]:
    """All rollouts in short, newest first."""
    under_way = {each.rollout: each for each in store.evaluations.under_way()}
    return [summary(rollout, under_way.get(rollout.id)) for rollout in store.rollouts.all()]


def summary(rollout: Rollout, evaluation: Evaluation | None = None) -> dict[str, Any]:
    """A rollout in short, with what its draft waits for where devices judge its head first."""
    sized = rollout.sizes
    is_waiting = evaluation is not None and rollout.state is RolloutState.DRAFT
    waits = (evaluation.detail or "devices judge its head first") if evaluation is not None and is_waiting else ""
    return {
        "id": rollout.id,
        "release": rollout.plan.release,
        "kind": rollout.kind,
        "state": str(rollout.state),
        "wave": rollout.wave + 1,
        "waves": [count for count, _ in sized],
        "devices": rollout.n_selected,
        "reason": rollout.reason or waits,
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
