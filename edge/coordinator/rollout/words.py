"""What devices say of a release, and what they are told of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edge.channel.messages import Pairs
from edge.coordinator.rollout.states import (
    DESIRED,
    RUNS,
    TAKEN_BACK,
    RolloutState,
    TargetEvent,
    TargetState,
    target_after,
)
from edge.coordinator.rollout.step import NOT_JUDGED, Rollout, Step, Target, Work

S, T, V = RolloutState, TargetState, TargetEvent


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a device said of the release.

    Attributes:
        state: Of its slot, as on ``up/state``.
        detail: With it.
        pairs: Sums, or None where it said none.
        is_held: It looked at the release, and waits for labels that vouch for it.
    """

    state: str
    detail: str = ""
    pairs: Pairs | None = None


_SAID = {
    "staged": V.STAGED,
    "probation": V.PROBATION,
    "active": V.ACTIVE,
    "refused": V.REFUSED,
    "held": V.REFUSED,  # nothing vouches for it there: it waits for labels, and a later word corrects this
    "failed": V.FAILED,
    "rolled-back": V.ROLLED_BACK,
}


def reported(rollout: Rollout, target: Target, report: Report, now_s: float) -> Step:
    """Take what a device says of the release; repeats and old words change nothing."""
    work = Work(rollout, [target], now_s)
    event = _SAID.get(report.state)
    is_unjudged = report.state == "probation" and report.detail.startswith(NOT_JUDGED)
    found = target
    if event is not None:
        found = work.move(found, event, report.detail)
    if is_unjudged:  # it has run the release for the whole of its probation, and is well
        found = work.move(found, V.ACTIVE, report.detail)
    if found.state is target.state and report.detail and report.detail != found.detail and event is not None:
        is_same = target_after(found.state, event) is found.state
        if is_same and found.state.value == report.state:
            work.put(replace(found, detail=report.detail[:500]))
    found = work.targets[target.key]
    # After a restart a device begins to count anew: the larger sums are kept.
    if report.pairs is not None and _size(report.pairs) >= _size(found.pairs):
        work.put(replace(found, pairs=report.pairs))
    if rollout.state in TAKEN_BACK and found.state in RUNS:  # it activated what was taken back before it heard of that
        work.move(work.targets[target.key], V.REVERT, rollout.reason)
    return work.step()


def _size(pairs: Pairs) -> float:
    return pairs.labelled + pairs.compared


def reverted(rollout: Rollout, target: Target, now_s: float, why: str = "") -> Step:
    """The older bytes are live again on a device."""
    work = Work(rollout, [target], now_s)
    work.move(target, V.REVERTED, why)
    return work.step()


def is_on_its_way(target: Target) -> bool:
    """Whether a device has begun with the release, and has not activated it."""
    return target.state in (T.OFFERED, T.STAGED)


def wants(
    rollout: Rollout, target: Target, *, is_halted: bool = False, is_open: bool = True
) -> Literal["now", "wait", "never", ""]:
    """What a device is told: ``now``, ``wait`` (fetch, do not activate), ``never``, or "" for nothing.

    Args:
        rollout: It.
        target: A model of the device in it.
        is_halted: The whole fleet is paused.
        is_open: It is in the window of the plan, by the device's local time.
    """
    if target.state in DESIRED:
        may_not = is_halted or not is_open or rollout.state in (S.PAUSED, S.HELD, S.READY)
        return "wait" if may_not and is_on_its_way(target) else "now"
    return "never" if target.state in (T.SUPERSEDED, T.EXCLUDED, T.TIMED_OUT) else ""
