"""One step of a rollout: values in, values out.

A `Rollout` and its `Target`s are rows. `advance` does what time and the gates ask for, `order` what a person asks for,
`reported` and `came` what devices say. Each returns a `Step`: the rows that changed, and what there is to tell. What
devices should run follows from the rows alone (`edge.coordinator.rollout.states.DESIRED`), so that a step is complete
when its rows are written: a crash before that is a step that never was, and one after it costs a repetition.

Time is in seconds that coordinators of this fleet have run: no clock that is wrong by years makes a deadline, and a
coordinator that was away blames nobody for its silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from edge.contract.errors import RolloutError
from edge.coordinator.rollout import gates
from edge.coordinator.rollout.gates import Decision, Pairs, Verdict
from edge.coordinator.rollout.plan import Plan, seconds, soak_s
from edge.coordinator.rollout.states import (
    BEFORE,
    DESIRED,
    ENDED,
    FAILURES,
    NEXT,
    STOPPED,
    UNCOUNTED,
    UNSETTLED,
    RolloutEvent,
    RolloutState,
    TargetEvent,
    TargetState,
    after,
    target_after,
)
from edge.coordinator.rollout.waves import sizes

# A device that was not heard for so long is absent. It is no failure, and nobody waits for it.
ABSENT_S = 86_400.0
REVERT_S = 86_400.0
# The first words of a device whose probation is over, and in which nothing could speak for or against the release.
NOT_JUDGED = "not judged"

S, E, T, V = RolloutState, RolloutEvent, TargetState, TargetEvent
Key = tuple[str, str]
"""A device, and a model of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One model of one device in a rollout.

    Attributes:
        device: Its name.
        model: Of the device; "" for the only one.
        wave: From 0.
        place: In the order in which they come.
        state: Where it stands.
        attempt: Goes up with each retry.
        since_s: When it came to this state.
        left_s: What is left of its deadline; only connected time uses it up where the state says so.
        counted_s: Up to when time was taken off it.
        former: Digest of what it ran before, in this slot; "" for what it came with.
        restore: Counter of the release that brings the older bytes back; 0 for none.
        detail: What the device said, or why it is where it is.
        pairs: Sums that the device reported.
    """

    device: str
    model: str
    wave: int
    place: int
    state: TargetState = T.WAITING
    attempt: int = 1
    since_s: float = 0.0
    left_s: float = 0.0
    counted_s: float = 0.0
    former: str = ""
    restore: int = 0
    detail: str = ""
    pairs: Pairs = field(default_factory=Pairs)

    @property
    def key(self) -> Key:
        """What tells it apart."""
        return self.device, self.model

    @property
    def is_judged(self) -> bool:
        """Whether anything spoke for or against the release on the device itself."""
        return not self.detail.startswith(NOT_JUDGED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One plan applied to one release.

    Attributes:
        id: Number.
        plan: It.
        kind: Of the release, ``head`` or ``bundle``.
        seed: That orders the devices.
        state: Where it stands.
        before: What it was before it was paused; the same as `state` else.
        n_selected: Devices when it was planned; waves are shares of them.
        wave: The last one that is open, from 0; -1 before the first.
        since_s: When this state began.
        looks: Of the gate at this wave, that are over.
        reason: Why it is where it is, for people; begins with a code where there is one.
        version: Goes up with each step.
    """

    id: int
    plan: Plan
    kind: str
    seed: str
    n_selected: int
    state: RolloutState = S.DRAFT
    before: RolloutState = S.DRAFT
    wave: int = -1
    since_s: float = 0.0
    looks: int = 0
    reason: str = ""
    version: int = 0

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Of its waves, see `edge.coordinator.rollout.waves.sizes`."""
        return sizes(self.n_selected, self.plan.waves)

    @property
    def is_last(self) -> bool:
        """Whether its last wave is open."""
        return self.wave >= len(self.sizes) - 1

    @property
    def is_offering(self) -> bool:
        """Whether devices of open waves may be offered the release now."""
        return self.state in (S.OPENING, S.SOAKING, S.HELD, S.COMPLETED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Presence:
    """What is known of a device now.

    Attributes:
        is_online: Whether it is connected.
        heard_s: Seconds since it was heard.
    """

    is_online: bool = False
    heard_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Moved:
    """A transition, for the record.

    Attributes:
        subject: "" for the rollout itself, else a device.
        before: State.
        event: That made it.
        now: State.
        who: Asked for it; "" for what nobody asked for.
        why: For people.
    """

    subject: str
    before: str
    event: str
    now: str
    who: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What the gate saw.

    Attributes:
        wave: Of the canaries.
        number: From 1; 0 for the screen of the first wave.
        verdict: What it came to.
    """

    wave: int
    number: int
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a step makes of a rollout.

    Attributes:
        rollout: As it is now.
        targets: Those that changed.
        moved: What happened.
        looks: What gates saw.
    """

    rollout: Rollout
    targets: Mapping[Key, Target] = field(default_factory=dict)
    moved: tuple[Moved, ...] = ()
    looks: tuple[Look, ...] = ()


class _Work:
    """A step on its way: local to a function of this module, and never seen outside."""

    def __init__(self, rollout: Rollout, targets: Iterable[Target], now_s: float) -> None:
        self.rollout, self.now_s = rollout, now_s
        self.targets = {target.key: target for target in targets}
        self.changed: dict[Key, Target] = {}
        self.moved: list[Moved] = []
        self.looks: list[Look] = []

    def step(self) -> Step:
        return Step(
            rollout=self.rollout, targets=self.changed, moved=tuple(self.moved), looks=tuple(self.looks)
        )  # fmt: skip

    # Targets

    def put(self, target: Target) -> None:
        if target != self.targets[target.key]:
            self.targets[target.key] = self.changed[target.key] = target

    def move(self, target: Target, event: TargetEvent, why: str = "", who: str = "") -> Target:
        """Let something happen to a target; what changes nothing leaves no trace."""
        state = target_after(target.state, event)
        if state is target.state:
            return target
        found = replace(
            target,
            state=state,
            since_s=self.now_s,
            counted_s=self.now_s,
            left_s=_deadline_s(state, self.rollout.plan),
            detail=why[:500],
            attempt=target.attempt + (event is V.RETRY),
        )
        if event is V.RETRY:
            found = replace(found, pairs=Pairs())
        self.moved.append(Moved(target.device, target.state, event, state, who, why))
        self.put(found)
        return found

    def move_all(self, event: TargetEvent, why: str, who: str = "") -> None:
        for target in list(self.targets.values()):
            self.move(target, event, why, who)

    def of_wave(self, wave: int) -> list[Target]:
        return [target for target in self.targets.values() if target.wave == wave]

    # The rollout

    def happen(self, event: RolloutEvent, why: str = "", who: str = "", *, is_severe: bool = False) -> bool:
        """Let something happen to the rollout; False where that changes nothing."""
        was = self.rollout
        found = after(was.state, event)
        wave, before = was.wave, was.before
        if found == NEXT:
            found, wave = (S.COMPLETED, wave) if was.is_last else (S.OPENING, wave + 1)
        elif found == STOPPED:
            found = S.REVERTING if is_severe or was.plan.on_stop == "revert" else S.PAUSED
        elif found == BEFORE:
            found = was.before
        state = RolloutState(found)
        if state is S.OPENING and wave < 0:
            wave = 0
        if state is not S.PAUSED:
            before = state
        elif was.state is not S.PAUSED:
            before = was.state
        if (state, wave) == (was.state, was.wave):
            return False
        self.rollout = replace(
            was,
            state=state,
            before=before,
            wave=wave,
            since_s=self.now_s,
            looks=was.looks if wave == was.wave else 0,
            reason=why,
            version=was.version + 1,
        )
        self.moved.append(Moved("", was.state, event, state, who, why))
        if state is S.REVERTING:
            self.move_all(V.REVERT, why, who)
        elif state is S.ABORTED or state is S.SUPERSEDED:
            self.move_all(V.ABORT, why, who)
        return True


def _deadline_s(state: TargetState, plan: Plan) -> float:
    deadline = plan.deadline
    texts = {T.OFFERED: deadline.fetch, T.STAGED: deadline.activate, T.PROBATION: deadline.probation}
    if state is T.REVERTING:
        return REVERT_S
    return seconds(texts[state]) if state in texts else 0.0


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
    work = _Work(rollout, targets, now_s)
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


_CONNECTED_ONLY = frozenset({T.OFFERED, T.STAGED, T.REVERTING})
_OVER = {
    T.OFFERED: "not fetched within {}, of the time that it was connected",
    T.STAGED: "not activated within {}, of the time that it was connected",
    T.PROBATION: "silent about the release that it activated for {}",
    T.REVERTING: "not back at the older bytes within 1 d, of the time that it was connected",
}


def _run_down(work: _Work, presence: Mapping[str, Presence]) -> None:
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


def _offer(work: _Work, *, is_halted: bool) -> None:
    """Offer the release to devices of open waves that are there, as many as may fetch at one time."""
    rollout = work.rollout
    if not rollout.is_offering or is_halted:
        return
    places = rollout.plan.pace.transfers - sum(target.state is T.OFFERED for target in work.targets.values())
    waiting = (target for target in work.targets.values() if target.state is T.WAITING and target.wave <= rollout.wave)
    for target in sorted(waiting, key=lambda target: target.place)[: max(places, 0)]:
        work.move(target, V.OPEN)


def _look(work: _Work, groups: Mapping[str, Mapping[str, str]], *, is_halted: bool) -> bool:
    """Let the wave settle, and the gates decide; whether something happened to the rollout."""
    rollout = work.rollout
    if rollout.state is S.REVERTING:
        is_over = not any(target.state is T.REVERTING for target in work.targets.values())
        return is_over and work.happen(E.SETTLED, rollout.reason)
    if rollout.state not in (S.OPENING, S.SOAKING, S.HELD, S.COMPLETED):
        return False
    wave = work.of_wave(rollout.wave)
    found = _health(wave, work.targets.values(), rollout.plan)
    if found.decision is Decision.STOP:
        return work.happen(E.STOP, _reason(found), is_severe=found.is_severe)
    if rollout.state is S.OPENING:
        is_waiting = any(target.state in UNSETTLED or target.state is T.WAITING for target in wave)
        return not is_waiting and work.happen(E.SETTLED)
    if rollout.state is S.COMPLETED:
        return False
    verdict = _judge(work, wave, groups)
    if verdict is None or (verdict.decision is Decision.PASS and is_halted):
        return False
    event = {Decision.PASS: E.PASS, Decision.STOP: E.STOP, Decision.UNDECIDED: E.UNDECIDED}[verdict.decision]
    return work.happen(event, _reason(verdict), is_severe=verdict.is_severe)


def _soak_s(rollout: Rollout) -> float:
    return soak_s(rollout.plan, rollout.sizes[rollout.wave][1], rollout.n_selected)


def _reason(verdict: Verdict) -> str:
    return f"{verdict.code}: {verdict.detail}" if verdict.code else verdict.detail


def _health(wave: list[Target], everyone: Iterable[Target], plan: Plan) -> Verdict:
    """Of this wave, and of all that were touched: what is one in twenty of many may be all of a few."""
    parts = (wave, [target for target in everyone if target.state not in (T.WAITING, T.ABSENT)])
    for part in parts:
        counted = [target for target in part if target.state not in UNCOUNTED]
        failed = [target for target in counted if target.state in FAILURES]
        found = gates.health(len(counted), len(failed), plan.health)
        if found.decision is Decision.STOP:
            return replace(found, detail=f"{found.detail}: {_named(failed)}")
    return gates.PASSED


def _named(targets: list[Target]) -> str:
    named = [
        f"{target.device} {target.state}{f' ({target.detail[:120]})' if target.detail else ''}" for target in targets
    ]
    return ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")


def _judge(work: _Work, wave: list[Target], groups: Mapping[str, Mapping[str, str]]) -> Verdict | None:
    """What gates say of a wave that has settled; None while it soaks, or while there is nothing new to see."""
    rollout, plan = work.rollout, work.rollout.plan
    soaked = work.now_s - rollout.since_s
    is_held = rollout.state is S.HELD
    opened = [target for target in work.targets.values() if target.wave <= rollout.wave]
    canaries = {_name(target): target.pairs for target in opened if target.state in (T.ACTIVE, T.PROBATION)}
    counted = [target for target in wave if target.state not in (T.EXCLUDED, T.SUPERSEDED)]
    if not is_held and soaked < _soak_s(rollout):
        # Bad news needs no patience.
        return _early(work, canaries, groups) if _is_gated(rollout) else None
    absent = sum(target.state is T.ABSENT for target in counted)
    if counted and absent > (1.0 - plan.health.quorum) * len(counted):
        if is_held:
            return None
        return Verdict(Decision.UNDECIDED, "quorum", f"{absent} of {len(counted)} devices of the wave are absent")
    if plan.model.off or rollout.is_last:
        return gates.PASSED
    if _is_gated(rollout):
        return _early(work, canaries, groups) or _run_out(work, canaries, groups, soaked, is_held=is_held)
    if is_held:  # by the screen or the quorum: a person decides, or more devices come
        return gates.PASSED if rollout.reason.startswith("quorum") else None
    is_alone = not any(_has_gate(rollout, each) for each in range(len(rollout.sizes)))
    if is_alone and canaries and not any(target.is_judged for target in opened if target.state is T.ACTIVE):
        detail = f"none of {len(canaries)} canaries could judge it: no labels came, and too few samples to compare"
        return Verdict(Decision.UNDECIDED, "few-judges", detail)
    found = gates.screen(canaries, plan.model)
    work.looks.append(Look(wave=rollout.wave, number=0, verdict=found))
    return found


def _is_gated(rollout: Rollout) -> bool:
    """Whether the model gate looks at the open wave, and not only the screen."""
    return _has_gate(rollout, rollout.wave) and not rollout.plan.model.off


def _has_gate(rollout: Rollout, wave: int) -> bool:
    """All waves but the first and the last have one, where there are judges enough for it."""
    return 0 < wave < len(rollout.sizes) - 1 and rollout.sizes[wave][0] >= gates.MIN_JUDGES


def _early(work: _Work, canaries: Mapping[str, Pairs], groups: Mapping[str, Mapping[str, str]]) -> Verdict | None:
    """Another look of the model gate, where canaries have enough new pairs and it comes to something."""
    rollout = work.rollout
    looks = gates.look(canaries, rollout.looks)
    if looks == rollout.looks:
        return None
    found = _by_group(work, canaries, groups)
    work.rollout = replace(rollout, looks=looks)
    work.looks.append(Look(wave=rollout.wave, number=looks, verdict=found))
    soaked = work.now_s - rollout.since_s
    is_soaking = soaked < _soak_s(rollout)
    if found.decision is Decision.STOP:
        return found
    if found.decision is Decision.PASS:
        if is_soaking:  # what it saw stays true: it is looked at again when the time is over
            work.rollout = rollout
            work.looks.pop()
            return None
        return found
    return found if looks == len(gates.LOOKS) and not is_soaking else None


def _run_out(
    work: _Work,
    canaries: Mapping[str, Pairs],
    groups: Mapping[str, Mapping[str, str]],
    soaked: float,
    *,
    is_held: bool,
) -> Verdict | None:
    """Hold what nothing could judge: at once where no canary says anything, else when the time for it is over."""
    plan = work.rollout.plan
    if is_held:
        return None
    found = _by_group(work, canaries, groups)
    has_labels = any(pairs.labelled > 0 for pairs in canaries.values())
    is_over = soaked >= seconds(plan.model.wait) or work.rollout.looks == len(gates.LOOKS)
    if is_over or not has_labels:
        # Whatever it would say now, it is no look: those are counted.
        code = found.code if found.decision is Decision.UNDECIDED else "undecided"
        return Verdict(Decision.UNDECIDED, code, found.detail)
    return None


def _by_group(work: _Work, canaries: Mapping[str, Pairs], groups: Mapping[str, Mapping[str, str]]) -> Verdict:
    plan = work.rollout.plan
    members: dict[str, list[str]] = {}
    for tag in plan.model.judge_by:
        for name in canaries:
            value = groups.get(name.partition("/")[0], {}).get(tag, "")
            members.setdefault(f"tag.{tag} = {value}", []).append(name)
    return gates.model(canaries, plan.model, members)


def _name(target: Target) -> str:
    return f"{target.device}/{target.model}" if target.model else target.device


# Devices


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
    work = _Work(rollout, [target], now_s)
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
    return work.step()


def _size(pairs: Pairs) -> float:
    return pairs.labelled + pairs.compared


def reverted(rollout: Rollout, target: Target, now_s: float, why: str = "") -> Step:
    """The older bytes are live again on a device."""
    work = _Work(rollout, [target], now_s)
    work.move(target, V.REVERTED, why)
    return work.step()


# People


def order(
    rollout: Rollout, targets: Iterable[Target], event: RolloutEvent, now_s: float, *, who: str = "", why: str = ""
) -> Step:
    """Do what a person asks for.

    Raises:
        RolloutError: It cannot be done in this state, or needs a reason; nothing changed.
    """
    if event is E.RESUME and not why.strip():
        raise RolloutError('to resume needs a reason: --reason "what was looked at"')
    work = _Work(rollout, targets, now_s)
    state = rollout.state
    if event is E.RETRY:
        after(state, event)
        failed = [target for target in work.targets.values() if target.state in FAILURES]
        if not failed:
            raise RolloutError(f"rollout {rollout.id} has no failed device to try again")
        for target in failed:
            work.move(target, V.RETRY, why or "tried again", who)
    if not work.happen(event, why or rollout.reason if event is E.RESUME else why, who) and event is not E.RETRY:
        raise RolloutError(f"rollout {rollout.id} is {state} already: {event} changes nothing")
    return work.step()


def exclude(rollout: Rollout, target: Target, now_s: float, *, who: str = "", why: str = "") -> Step:
    """Take one device out: what it activated goes back, and it counts neither way."""
    if rollout.state in ENDED:
        raise RolloutError(f"rollout {rollout.id} is {rollout.state}: there is nothing to take a device out of")
    work = _Work(rollout, [target], now_s)
    if work.move(target, V.EXCLUDE, why or "taken out", who) is target:
        raise RolloutError(f"{target.device} is {target.state}: it is out already")
    return work.step()


def is_on_its_way(target: Target) -> bool:
    """Whether a device has begun with the release, and has not activated it."""
    return target.state in (T.OFFERED, T.STAGED)


def wants(rollout: Rollout, target: Target, *, is_halted: bool = False) -> Literal["now", "wait", "never", ""]:
    """What a device is told: ``now``, ``wait`` (fetch, do not activate), ``never``, or "" for nothing."""
    if target.state in DESIRED:
        may_not = is_halted or rollout.state in (S.PAUSED, S.HELD, S.READY)
        return "wait" if may_not and is_on_its_way(target) else "now"
    return "never" if target.state in (T.SUPERSEDED, T.EXCLUDED, T.TIMED_OUT) else ""
