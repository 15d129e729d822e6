"""The states of a rollout, and of a target (one model of one device in one rollout): one table each.

Theory of operation. A rollout opens a wave: its targets are offered the release, and each of them ends sooner or later:
by the device's word, or by a deadline. A wave none of whose targets waits for its device is *settled*. It soaks; then
the gates look at it and let the next wave open, stop the rollout, or hold it because they cannot tell. A person may
pause, abort or revert at any time. Whatever happens, nothing that a device did is forgotten, and a late report
corrects what silence was taken for.

In the tables ``-`` is an event that cannot happen: it raises, and the state stays. ``.`` changes nothing.
"""

from __future__ import annotations

from enum import StrEnum

from edge.contract.errors import RolloutError


class RolloutState(StrEnum):
    """Where a rollout stands."""

    DRAFT = "draft"
    READY = "ready"
    OPENING = "opening"
    SOAKING = "soaking"
    HELD = "held"
    PAUSED = "paused"
    COMPLETED = "completed"
    REVERTING = "reverting"
    ABORTED = "aborted"
    REVERTED = "reverted"
    SUPERSEDED = "superseded"


class RolloutEvent(StrEnum):
    """What happens to a rollout."""

    START = "start"
    DUE = "due"
    SETTLED = "settled"
    PASS = "pass"  # noqa: S105  # a verdict
    STOP = "stop"
    UNDECIDED = "undecided"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    ABORT = "abort"
    REVERT = "revert"
    OVERTAKEN = "overtaken"
    WIDEN = "widen"


class TargetState(StrEnum):
    """Where a target stands."""

    WAITING = "waiting"
    ABSENT = "absent"
    OFFERED = "offered"
    STAGED = "staged"
    PROBATION = "probation"
    ACTIVE = "active"
    REFUSED = "refused"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"
    TIMED_OUT = "timed-out"
    REVERTING = "reverting"
    REVERTED = "reverted"
    SUPERSEDED = "superseded"
    EXCLUDED = "excluded"


class TargetEvent(StrEnum):
    """What happens to a target. The first is the rollout's turn, then come the device's words, the clock, people."""

    OPEN = "open"
    STAGED = "staged"
    PROBATION = "probation"
    ACTIVE = "active"
    REFUSED = "refused"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"
    ABSENT = "absent"
    CAME = "came"
    DEADLINE = "deadline"
    RETRY = "retry"
    ABORT = "abort"
    REVERT = "revert"
    REVERTED = "reverted"
    EXCLUDE = "exclude"
    LEAVE = "leave"


# What depends on more than state and event.
NEXT = "next"  # the next wave; after the last one it is completed
STOPPED = "stopped"  # paused, or reverting where the plan or the number of failures says so
BEFORE = "before"  # what it was before the pause
_NOTHING, _NEVER = ".", "-"

_ROLLOUTS = """
           start due     settled  pass stop    undecided pause  resume retry     abort   revert    overtaken  widen
draft      ready -       -        -    -       -         -      ready  -         aborted -         -          -
ready      .     opening -        -    -       -         paused .      -         aborted -         superseded -
opening    .     .       soaking  .    stopped .         paused .      opening   aborted reverting superseded .
soaking    .     .       .        next stopped held      paused .      opening   aborted reverting superseded opening
held       .     .       .        next stopped .         paused next   opening   aborted reverting superseded opening
paused     .     .       .        .    .       .         .      before paused    aborted reverting superseded .
completed  .     .       .        .    stopped .         paused .      completed -       reverting superseded -
reverting  -     .       reverted .    .       .         -      .      reverting -       .         -          -
aborted    -     -       .        .    .       .         -      -      -         .       reverting .          -
reverted   -     .       .        .    .       .         -      -      -         -       .         .          -
superseded -     .       .        .    .       .         -      -      -         -       reverting .          -
"""

# A device may say anything at any time: what does not fit is old, and changes nothing. Failures and time-outs are
# corrected by a later word. `reverting` is what a device does that had the release live; `superseded` one that had not.
# Who is excluded goes back; a device that leaves, in quarantine or for good, goes on with what it runs.
_TARGETS = """
            open     staged  probation  active  refused  failed  rolled-back  absent  came     deadline   retry    abort       revert      reverted  exclude    leave
waiting     offered  .       probation  active  refused  failed  .            absent  .        .          -        superseded  superseded  -         excluded   excluded
absent      offered  staged  probation  active  refused  failed  rolled-back  .       waiting  .          -        superseded  superseded  -         excluded   excluded
offered     .        staged  probation  active  refused  failed  rolled-back  absent  .        timed-out  -        superseded  superseded  -         excluded   excluded
staged      .        .       probation  active  refused  failed  rolled-back  .       .        timed-out  -        superseded  superseded  -         excluded   excluded
probation   .        .       .          active  failed   failed  rolled-back  .       .        timed-out  -        .           reverting   -         reverting  excluded
active      .        .       .          .       .        .       rolled-back  .       .        .          -        .           reverting   -         reverting  excluded
refused     .        staged  probation  active  .        .       rolled-back  .       .        .          offered  .           .           -         excluded   excluded
failed      .        .       probation  active  refused  .       rolled-back  .       .        .          offered  .           .           -         excluded   excluded
rolled-back .        .       probation  active  .        .       .            .       .        .          offered  .           .           -         excluded   excluded
timed-out   .        staged  probation  active  refused  failed  rolled-back  .       .        .          offered  .           .           -         excluded   excluded
reverting   .        .       .          .       .        failed  reverted     .       .        failed     -        .           .           reverted  .          .
reverted    .        .       .          .       .        .       .            .       .        .          -        .           .           .         excluded   excluded
superseded  .        .       probation  active  .        .       .            .       .        .          -        .           .           .         excluded   excluded
excluded    offered  .       .          .       .        .       .            .       .        .          -        .           .           .         .          .
"""  # noqa: E501


def _read(table: str) -> dict[tuple[str, str], str]:
    heading, *rows = (line.split() for line in table.strip().splitlines())
    return {(state, event): after for state, *cells in rows for event, after in zip(heading, cells, strict=True)}


ROLLOUTS: dict[tuple[str, str], str] = _read(_ROLLOUTS)
TARGETS: dict[tuple[str, str], str] = _read(_TARGETS)

# A target that waits for its device, so that its wave is not settled.
UNSETTLED = frozenset({TargetState.OFFERED, TargetState.STAGED, TargetState.PROBATION})
# A failure: it waits for a person.
FAILURES = frozenset({TargetState.REFUSED, TargetState.FAILED, TargetState.ROLLED_BACK, TargetState.TIMED_OUT})
# Its device should run the release.
DESIRED = frozenset({TargetState.OFFERED, TargetState.STAGED, TargetState.PROBATION, TargetState.ACTIVE})
# Its device runs the release.
RUNS = frozenset({TargetState.PROBATION, TargetState.ACTIVE})
# Counts neither way.
UNCOUNTED = frozenset({TargetState.ABSENT, TargetState.EXCLUDED, TargetState.SUPERSEDED})
# A rollout that nothing is offered by any more.
ENDED = frozenset({RolloutState.ABORTED, RolloutState.REVERTED, RolloutState.SUPERSEDED})
# A rollout whose release was taken back from those that had it.
TAKEN_BACK = frozenset({RolloutState.REVERTING, RolloutState.REVERTED})
# A rollout that another one of the same kind and devices would get in the way of.
UNDER_WAY = frozenset(RolloutState) - ENDED - {RolloutState.COMPLETED}


def after(state: RolloutState, event: RolloutEvent) -> str:
    """The state of a rollout after an event, or one of `NEXT`, `STOPPED` and `BEFORE`.

    Raises:
        RolloutError: The event cannot happen in this state.
    """
    found = ROLLOUTS[state, event]
    if found == _NEVER:
        can = ", ".join(e for e in RolloutEvent if e in _ASKED and ROLLOUTS[state, e] not in (_NEVER, _NOTHING))
        raise RolloutError(f"a rollout that is {state} cannot take {event}; it can take: {can or 'nothing any more'}")
    return state if found == _NOTHING else found


# What people ask for.
_ASKED = frozenset({"start", "pause", "resume", "retry", "abort", "revert", "widen"})


def target_after(state: TargetState, event: TargetEvent) -> TargetState:
    """The state of a target after an event.

    Raises:
        RolloutError: The event cannot happen in this state.
    """
    found = TARGETS[state, event]
    if found == _NEVER:
        raise RolloutError(f"a target that is {state} cannot take {event}")
    return state if found == _NOTHING else TargetState(found)
