"""What a step of a rollout is made of: values, and how one thing that happens changes them.

A `Rollout` and its `Target`s are rows. A `Step` is the rows that changed, and what there is to tell. What devices
should run follows from the rows alone (`edge.coordinator.rollout.words.wants`), so that a step is complete when its
rows are written: a crash before that is a step that never was, and one after it costs a repetition.

Time is in seconds that coordinators of this fleet have run: no clock that is wrong by years makes a deadline, and a
coordinator that was away blames nobody for its silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from edge.channel.messages import Pairs
from edge.contract.durations import seconds
from edge.coordinator.rollout.gates import Verdict
from edge.coordinator.rollout.plan import Plan
from edge.coordinator.rollout.states import (
    BEFORE,
    NEXT,
    STOPPED,
    RolloutEvent,
    RolloutState,
    TargetEvent,
    TargetState,
    after,
    target_after,
)
from edge.coordinator.rollout.waves import sizes

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
        seen_s: When a person went on with it: failures up to then do not pause it again.
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
    seen_s: float = -1.0
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


class Work:
    """A step on its way: local to one function of this package, and never seen outside."""

    def __init__(self, rollout: Rollout, targets: Iterable[Target], now_s: float) -> None:
        self.rollout, self.now_s = rollout, now_s
        self.targets = {target.key: target for target in targets}
        self.changed: dict[Key, Target] = {}
        self.moved: list[Moved] = []
        self.looks: list[Look] = []

    def step(self) -> Step:
        """What it has come to."""
        return Step(
            rollout=self.rollout, targets=self.changed, moved=tuple(self.moved), looks=tuple(self.looks)
        )  # fmt: skip

    # Targets

    def put(self, target: Target) -> None:
        """Change a target."""
        if target != self.targets[target.key]:
            self.targets[target.key] = self.changed[target.key] = target

    def move(self, target: Target, event: TargetEvent, why: str = "", who: str = "") -> Target:
        """Let something happen to a target; what changes nothing leaves no trace."""
        state = target_after(target.state, event)
        if event is V.RETRY and self.rollout.state is S.REVERTING:
            state = T.REVERTING
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
        """Let something happen to all targets."""
        for target in list(self.targets.values()):
            self.move(target, event, why, who)

    def of_wave(self, wave: int) -> list[Target]:
        """Targets of one wave."""
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
