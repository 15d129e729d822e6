"""One step of a rollout, values in, values out: what time and the gates ask for, and what people ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

from edge.contract.durations import seconds
from edge.contract.errors import RolloutError
from edge.coordinator.rollout.gates import Decision
from edge.coordinator.rollout.judging import health, judge, reason, soak_s
from edge.coordinator.rollout.states import (
    ENDED,
    FAILURES,
    RUNS,
    UNSETTLED,
    RolloutEvent,
    RolloutState,
    TargetEvent,
    TargetState,
    after,
)
from edge.coordinator.rollout.step import Key, Moved, Presence, Rollout, Step, Target, Work

# A device that was not heard for so long is absent. It is no failure, and nobody waits for it.
ABSENT_S = 86_400.0

S, E, T, V = RolloutState, RolloutEvent, TargetState, TargetEvent


# Time


def advance(
    rollout: Rollout,
    targets: Iterable[Target],
    presence: Mapping[str, Presence],
    now_s: float,
    *,
    wall_ms: int = 0,
    groups: Mapping[str, Mapping[str, str]] | None = None,
    is_halted: bool = False,
) -> Step:
    """Do what is due.

    Args:
        rollout: It.
        targets: All of its targets.
        presence: By device; who is not in it is not known.
        now_s: Seconds that coordinators of this fleet have run.
        wall_ms: The time of day, for a start at a certain time only.
        groups: Tags by device, for gates that judge by them.
        is_halted: Everything of the fleet is paused: nothing is offered, and no wave opens.
    """
    work = Work(rollout, targets, now_s)
    if rollout.state in (S.DRAFT, *ENDED):
        return work.step()
    if rollout.state is S.READY and not is_halted and wall_ms >= rollout.plan.start.at_ms:
        work.happen(E.DUE)
    _run_down(work, presence)
    for _ in range(3 * len(rollout.sizes) + 3):  # waves without devices, or that soak for no time, follow at once
        _offer(work, is_halted=is_halted)
        if not _look(work, groups or {}, is_halted=is_halted):
            break
    return work.step()


def due_in(rollout: Rollout, targets: Iterable[Target], now_s: float) -> float:
    """After how many seconds time may bring something: the end of a soak or a deadline; infinite for nothing.

    Args:
        rollout: It.
        targets: All of its targets.
        now_s: As of `advance`.
    """
    left = [target.left_s - (now_s - target.counted_s) for target in targets if target.left_s > 0]
    if rollout.state is S.SOAKING:
        waits = (soak_s(rollout), seconds(rollout.plan.model.wait))
        left += [each - (now_s - rollout.since_s) for each in waits]
    return min((each for each in left if each > 0), default=math.inf)


_CONNECTED_ONLY = frozenset({T.OFFERED, T.STAGED, T.REVERTING})
_OVER = {
    T.OFFERED: "not fetched within {}, of the time that it was connected",
    T.STAGED: "not activated within {}, of the time that it was connected",
    T.PROBATION: "silent about the release that it activated for {}",
    T.REVERTING: "not back at the older bytes within 1 d, of the time that it was connected",
}


def _run_down(work: Work, presence: Mapping[str, Presence]) -> None:
    """Take time off deadlines, and see who is absent or over time."""
    deadline = work.rollout.plan.deadline
    texts = {T.OFFERED: deadline.fetch, T.STAGED: deadline.activate, T.PROBATION: deadline.probation}
    for target in list(work.targets.values()):
        there = presence.get(target.device, Presence(heard_s=float("inf")))
        if target.state in (T.WAITING, T.OFFERED) and there.heard_s >= ABSENT_S:
            work.move(target, V.ABSENT, "not heard for a day")
        elif target.state is T.ABSENT and there.heard_s < ABSENT_S:
            work.move(target, V.CAME)
        elif target.left_s > 0:
            spent = work.now_s - target.counted_s if there.is_online or target.state not in _CONNECTED_ONLY else 0.0
            left = target.left_s - max(spent, 0.0)
            if left <= 0:
                work.move(target, V.DEADLINE, _OVER[target.state].format(texts.get(target.state, "")))
            elif spent >= min(60.0, target.left_s / 10) or spent == 0.0 != work.now_s - target.counted_s:
                # Not each second: a row written is dearer than a minute of a day.
                work.put(replace(target, left_s=left, counted_s=work.now_s))


def _offer(work: Work, *, is_halted: bool) -> None:
    """Offer the release to devices of open waves that are there, as many as may fetch at one time."""
    rollout = work.rollout
    if not rollout.is_offering or is_halted:
        return
    places = rollout.plan.pace.transfers - sum(target.state is T.OFFERED for target in work.targets.values())
    waiting = (target for target in work.targets.values() if target.state is T.WAITING and target.wave <= rollout.wave)
    for target in sorted(waiting, key=lambda target: target.place)[: max(places, 0)]:
        work.move(target, V.OPEN)


def _look(work: Work, groups: Mapping[str, Mapping[str, str]], *, is_halted: bool) -> bool:
    """Let the wave settle, and the gates decide; whether something happened to the rollout."""
    rollout = work.rollout
    if rollout.state is S.REVERTING:
        is_over = not any(target.state is T.REVERTING for target in work.targets.values())
        return is_over and work.happen(E.SETTLED, rollout.reason)
    if rollout.state not in (S.OPENING, S.SOAKING, S.HELD, S.COMPLETED):
        return False
    wave = work.of_wave(rollout.wave)
    found = health(wave, work.targets.values(), rollout)
    if found.decision is Decision.STOP:
        return work.happen(E.STOP, reason(found), is_severe=found.is_severe)
    if rollout.state is S.OPENING:
        is_waiting = any(target.state in UNSETTLED or target.state is T.WAITING for target in wave)
        return not is_waiting and work.happen(E.SETTLED)
    if rollout.state is S.COMPLETED:
        return False
    verdict = judge(work, wave, groups)
    if verdict is None or (verdict.decision is Decision.PASS and is_halted):
        return False
    if verdict.decision is Decision.UNDECIDED and rollout.state is S.HELD:  # it stays so, for another reason
        work.rollout = replace(work.rollout, reason=reason(verdict), version=rollout.version + 1)
        return False
    event = {Decision.PASS: E.PASS, Decision.STOP: E.STOP, Decision.UNDECIDED: E.UNDECIDED}[verdict.decision]
    return work.happen(event, reason(verdict), is_severe=verdict.is_severe)


# People


def order(
    rollout: Rollout,
    targets: Iterable[Target],
    event: RolloutEvent,
    now_s: float,
    *,
    who: str = "",
    why: str = "",
    moved_on: Set[Key] = frozenset(),
) -> Step:
    """Do what a person asks for.

    Args:
        rollout: It.
        targets: All of its targets.
        event: What is asked for.
        now_s: As of `advance`.
        who: Asks.
        why: For people.
        moved_on: Targets that run what a newer rollout brought: there is nothing of this one to bring back.

    Raises:
        RolloutError: It cannot be done in this state, or needs a reason; nothing changed.
    """
    if event is E.RESUME and not why.strip():
        raise RolloutError("to resume needs a reason: what was looked at (--reason, or under Why on the page)")
    work = Work(rollout, targets, now_s)
    state = rollout.state
    if event is E.RETRY:
        after(state, event)
        is_back = state is S.REVERTING  # what failed then is the way back: nobody is offered the release again
        failed = [each for each in work.targets.values() if each.state in FAILURES and (each.restore or not is_back)]
        if not failed:
            raise RolloutError(f"rollout {rollout.id} has no failed device to try again")
        for target in failed:
            work.move(target, V.RETRY, why or "tried again", who)
    if event is E.REVERT and after(state, event) == S.REVERTING:
        running = [target for target in work.targets.values() if target.state in RUNS]
        passed = [target for target in running if target.key in moved_on]
        if len(passed) == len(running) and (passed or state in ENDED):
            raise RolloutError(
                f"no device runs release {rollout.plan.release} of rollout {rollout.id} any more: there is "
                f"nothing to bring back (`edge-fleet rollout status {rollout.id}`)"
            )
        for target in passed:
            work.move(target, V.LEAVE, "it runs what a newer rollout brought", who)
    if not work.happen(event, why or rollout.reason if event is E.RESUME else why, who) and event is not E.RETRY:
        raise RolloutError(f"rollout {rollout.id} is {state} already: {event} changes nothing")
    if event is E.RESUME:  # a person has looked: what failed by now stops it no more
        work.rollout = replace(work.rollout, seen_s=now_s)
    return work.step()


def left(rollout: Rollout, targets: Iterable[Target], now_s: float) -> Step:
    """Devices that were given a newer release take this one no more: they count neither way, and are no failures."""
    work = Work(rollout, targets, now_s)
    work.move_all(V.ABORT, "it was given a newer release before")
    return work.step()


def widen(
    rollout: Rollout, targets: Iterable[Target], count: int, now_s: float, *, who: str = "", why: str = ""
) -> Step:
    """Open more devices with the wave that is open: those that come next. The gate looks at them anew.

    Raises:
        RolloutError: It cannot be done in this state, or nobody is left; nothing changed.
    """
    work = Work(rollout, targets, now_s)
    after(rollout.state, E.WIDEN)
    later = sorted((t for t in work.targets.values() if t.wave > rollout.wave), key=lambda target: target.place)
    if not later:
        raise RolloutError(f"rollout {rollout.id} has no later wave to take devices from")
    for target in later[:count]:
        work.put(replace(target, wave=rollout.wave))
    text = why or f"{min(count, len(later))} more devices"
    if not work.happen(E.WIDEN, text, who):
        work.rollout = replace(rollout, version=rollout.version + 1)
        work.moved.append(Moved("", rollout.state, E.WIDEN, rollout.state, who, text))
    work.rollout = replace(work.rollout, looks=0)
    return work.step()


def exclude(
    rollout: Rollout, target: Target, now_s: float, *, who: str = "", why: str = "", leaves: bool = False
) -> Step:
    """Take one device out: it counts neither way. What it activated goes back, but for one that leaves the fleet."""
    if rollout.state in ENDED:
        raise RolloutError(f"rollout {rollout.id} is {rollout.state}: there is nothing to take a device out of")
    work = Work(rollout, [target], now_s)
    if work.move(target, V.LEAVE if leaves else V.EXCLUDE, why or "taken out", who) is target:
        raise RolloutError(f"{target.device} is {target.state}: it is out already")
    return work.step()
