"""Rollouts at work: plans become rows, words of devices and the clock become steps, and steps are kept.

Decides nothing itself: `edge.coordinator.rollout` does, and here its values are read, stepped and written, each step in
one transaction. What devices should run is read from the rows by whoever tells them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge.channel.messages import Pairs, State
from edge.contract.clock import Now
from edge.contract.durations import seconds
from edge.contract.errors import ConflictError, RolloutError
from edge.coordinator.events import Events
from edge.coordinator.line import LineState
from edge.coordinator.pacing import check_pace
from edge.coordinator.records import UNDECIDED, Evaluation, Release, Transition
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.releases.bundles import Bundles
from edge.coordinator.releases.forgotten import check_release, forgotten_in
from edge.coordinator.releases.going_back import brought_by_rollouts, is_alike, undone_by_rollbacks
from edge.coordinator.releases.way_back import WayBack
from edge.coordinator.rollout import advance as steps
from edge.coordinator.rollout.plan import Plan
from edge.coordinator.rollout.query import DeviceFacts
from edge.coordinator.rollout.states import ENDED, RUNS, UNDER_WAY, RolloutEvent, RolloutState, TargetEvent, TargetState
from edge.coordinator.rollout.step import Key, Moved, Rollout, Step, Target
from edge.coordinator.rollout.waves import sizes, wave_of
from edge.coordinator.rollout.words import Report, is_on_its_way, reported, reverted
from edge.coordinator.run_clock import RunClock
from edge.coordinator.selection import (
    for_nobody,
    forecast,
    in_order,
    joined,
    overtaken,
    passed_by,
    presence_of,
    selected,
)
from edge.coordinator.store.rollouts import Made
from edge.coordinator.store.store import Store
from edge.coordinator.turns import PAUSED
from edge.learning.exchange import HeadRelease

# Between two looks at the clock, where nothing that a plan waits for is due before.
LOOK_S = 5.0
# Whether other devices match by now is looked at when one comes or is tagged, and so often.
JOIN_S = 60.0
# Nobody needs an answer sooner; a fleet of thousands is not read for each message.
_SOONEST_S, _TARGETS_PER_S = 0.25, 2000.0
_APPROVE = "approve"
# What changes what a device should run; it knows already what it said itself.
_TELLING = frozenset({"open", "deadline", "retry", "abort", "revert", "exclude", "leave"})
# What people ask for that lets more devices have the release.
_GIVES_AGAIN = (RolloutEvent.START, RolloutEvent.RESUME, RolloutEvent.RETRY)
_GOING = (RolloutState.READY, RolloutState.OPENING, RolloutState.SOAKING, RolloutState.HELD)
# A device runs the release: it has activated it.
_RUNS = ("probation", "active")


class Rollouts:
    """See the module.

    Args:
        store: The database.
        artifacts: Files by digest.
        bundles: Those that are known.
        events: For what people should see.
        draw: Draws a seed that nobody can foresee.
        line: How the line to the broker is now.

    Attributes:
        to_tell: Devices that are to be told anew what they should run; the caller empties it.
        clock: What plans are counted in.
    """

    def __init__(
        self, store: Store, artifacts: ArtifactStore, bundles: Bundles, events: Events, draw: Callable[[], str],
        line: Callable[[], LineState],
    ) -> None:  # fmt: skip
        self._store = store
        self._artifacts = artifacts
        self._way_back = WayBack(store, artifacts, bundles, events)
        self._events = events
        self._draw, self._line = draw, line
        self.to_tell: set[str] = set()
        self.clock = RunClock(store, lambda: line().hears)
        self._is_to_join, self._next_join_s = True, -math.inf
        self._next_s = -math.inf
        self._soonest_s = -math.inf

    # Making one

    def plan(self, plan: Plan, now: Now) -> dict[str, Any]:
        """What a plan would do: who is in which wave, how many bytes, and what gates will be able to see.

        Raises:
            RolloutError: There is no such release, or `start` would refuse it whatever else is under way.
        """
        release = _released(self._store, self._artifacts, plan)
        _check(self._artifacts, plan, release, selected(self._store, plan, release, self._line(), now))
        return forecast(self._store, plan, release, self._artifacts.get(release.digest).size_bytes, self._line(), now)

    def start(self, plan: Plan, who: str, now: Now, *, supersede: bool = False, begin: bool = True) -> Rollout:
        """Make a rollout of a plan, and start it.

        Args:
            plan: The plan; its release is there.
            who: Its author.
            now: The time.
            supersede: End the rollouts of the same kind and devices that are under way.
            begin: False leaves it a draft, as does a plan that others have to approve, or devices to judge.

        Raises:
            RolloutError: No such release or devices, or another rollout is under way there; nothing changed.
        """
        release = _released(self._store, self._artifacts, plan)
        with self._store.transaction():
            found = selected(self._store, plan, release, self._line(), now)
            if not found:
                raise RolloutError(for_nobody(self._store, plan, release, self._line(), now))
            _check(self._artifacts, plan, release, found)
            older = self._in_the_way(release, set(found), supersede=supersede)
            seed = plan.seed or self._draw()
            sized = sizes(len(found), plan.waves)
            rollout = Rollout(
                id=self._store.rollouts.next_id(), plan=plan, kind=release.kind, seed=seed, n_selected=len(found)
            )
            targets = [
                Target(device=device, model=model, wave=wave_of(place, sized), place=place)
                for place, (device, model) in enumerate(in_order(found, seed))
            ]
            self._store.rollouts.add(rollout, targets, Made(who, now.wall_ms))
            self._events.note("", "rollout", f"{rollout.id}: release {release.counter} to {len(found)} devices", now)
            if begin and plan.start.judges:
                due_s = self.clock.s(now) + seconds(plan.start.within)
                self._store.evaluations.save(Evaluation(rollout=rollout.id, due_s=due_s))
                self.clock.keep()
            elif begin and not plan.start.approvals:
                self.make_way(older, release, who, now)
                step = steps.order(rollout, targets, RolloutEvent.START, self.clock.s(now), who=who)
                self._keep(rollout, step, now)
                rollout = step.rollout
        self._hurry()
        return rollout

    def _in_the_way(self, release: Release, wanted: set[Key], *, supersede: bool, but: int = 0) -> list[Rollout]:
        """Rollouts of the same kind and devices that have not ended; refuses where one is under way and may go on."""
        older = []
        for rollout in self._store.rollouts.open():
            if rollout.id == but:
                continue
            theirs = {target.key for target in self._store.rollouts.targets(rollout.id)}
            if rollout.kind == release.kind and theirs & wanted:
                older.append(rollout)
        in_the_way = [rollout for rollout in older if rollout.state in UNDER_WAY]
        if in_the_way and not supersede:
            said = ", ".join(f"{rollout.id} ({rollout.state})" for rollout in in_the_way)
            raise RolloutError(
                f"the rollout {said} of a {release.kind} is under way on the same devices: wait for it, end it with "
                f"`edge-fleet rollout abort {in_the_way[0].id}`, or give --supersede"
            )
        return older

    def make_way(self, older: Sequence[Rollout], release: Release, who: str, now: Now) -> None:
        """End rollouts whose devices are given a newer release now.

        Raises:
            RolloutError: One of them is bringing older bytes back, which nothing may overtake; nothing changed.
        """
        with self._store.transaction():
            for rollout in older:
                if rollout.state is RolloutState.REVERTING:
                    raise RolloutError(f"rollout {rollout.id} is reverting on the same devices: wait until it is done")
                is_draft = rollout.state is RolloutState.DRAFT
                event = RolloutEvent.ABORT if is_draft else RolloutEvent.OVERTAKEN
                targets, why = self._store.rollouts.targets(rollout.id), f"release {release.counter} takes its place"
                self._keep(rollout, steps.order(rollout, targets, event, self.clock.s(now), who=who, why=why), now)
        self._hurry()

    def forgotten(self, device: str, now: Now) -> list[int]:
        """End rollouts that bring a head which has something in that is forgotten by now: nobody else is given it.

        Who has it already is given the next merge, which need not wait for them. One that brings older bytes back goes
        on, and what devices judge is ended by those who asked them.

        Returns:
            Their numbers.
        """
        ended = []
        for rollout in self._store.rollouts.open():
            release = self._store.releases.get(rollout.plan.release)
            is_under_way = rollout.state in UNDER_WAY and rollout.state is not RolloutState.REVERTING
            if release is None or not is_under_way or waits_for_judges(self._store, rollout.id):
                continue
            if release.kind == "head" and forgotten_in(self._store, self._artifacts, release.digest):
                why = f"release {release.counter} has in it what {device} learned, which is forgotten"
                targets = self._store.rollouts.targets(rollout.id)
                self._keep(rollout, steps.order(rollout, targets, RolloutEvent.ABORT, self.clock.s(now), why=why), now)
                ended.append(rollout.id)
        self._hurry()
        return ended

    # What people ask for

    def order(
        self,
        number: int,
        event: RolloutEvent,
        who: str,
        why: str,
        now: Now,
        *,
        version: int | None = None,
        supersede: bool = True,
    ) -> Rollout:
        """Do what a person asks for, or what devices found that judged the head of a draft.

        Args:
            number: Of the rollout.
            event: What is asked for.
            who: Asks.
            why: For people.
            now: The time.
            version: Of the rollout that they saw; None for whatever it is now.
            supersede: Of a draft that begins: end the rollouts of the same kind and devices that are under way.

        Raises:
            RolloutError: There is no such rollout, or it cannot be done in its state; nothing changed.
            ConflictError: It has another version.
        """
        with self._store.transaction():
            rollout, targets = self._get(number, version), self._store.rollouts.targets(number)
            moved_on = self._moved_on(rollout, targets) if event is RolloutEvent.REVERT else frozenset[Key]()
            step = steps.order(rollout, targets, event, self.clock.s(now), who=who, why=why, moved_on=moved_on)
            if event in _GIVES_AGAIN and (brought := self._store.releases.get(rollout.plan.release)) is not None:
                check_release(self._store, self._artifacts, brought)
            if rollout.state is RolloutState.DRAFT and event in (RolloutEvent.START, RolloutEvent.RESUME):
                if approvals_left(self._store, rollout) > 0:
                    raise RolloutError(
                        f"rollout {number} begins when others have approved it: edge-fleet rollout approve"
                    )
                if event is RolloutEvent.START and waits_for_judges(self._store, number):
                    raise RolloutError(
                        f"rollout {number} begins when devices have judged its head; to go on without them: "
                        f'edge-fleet rollout resume {number} --reason "..."'
                    )
                if why_not := overtaken(self._store, rollout, targets):
                    raise RolloutError(f"rollout {number} cannot begin any more: {why_not}")
                release = _released(self._store, self._artifacts, rollout.plan)
                older = self._in_the_way(release, {each.key for each in targets}, supersede=supersede, but=number)
                self.make_way(older, release, who, now)
            self._events.note("", "rollout", f"{number}: {event}{_by(who, why)}", now)
            self._keep(rollout, step, now)
        self._hurry()
        return step.rollout

    def _moved_on(self, rollout: Rollout, targets: Sequence[Target]) -> frozenset[Key]:
        """Models of devices that run what a newer rollout of the same kind brought.

        Raises:
            RolloutError: One that took the place of this one is under way, and would bring those its release that are
                to go back.
        """
        found = frozenset(
            target.key
            for other, target in self._store.rollouts.of_devices()
            if other.kind == rollout.kind
            and other.plan.release > rollout.plan.release
            and target.state in RUNS
            and other.plan.use != "compete"  # what competes joins what is there
        )
        left = {target.key for target in targets if target.state in RUNS} - found
        for other in self._store.rollouts.open() if rollout.state in ENDED else ():
            theirs = {target.key for target in self._store.rollouts.targets(other.id)}
            if other.kind == rollout.kind and other.state in UNDER_WAY and left & theirs:
                raise RolloutError(
                    f"rollout {other.id} ({other.state}) brings release {other.plan.release} to the same devices: wait "
                    f"for it, or end it first with `edge-fleet rollout abort {other.id}` or revert"
                )
        return found

    def widen(self, number: int, count: int, who: str, why: str, now: Now, *, version: int | None = None) -> Rollout:
        """Open so many more devices with the wave that is open; raises as `order`."""
        with self._store.transaction():
            rollout = self._get(number, version)
            step = steps.widen(
                rollout, self._store.rollouts.targets(number), count, self.clock.s(now), who=who, why=why
            )
            self._keep(rollout, step, now)
        self._hurry()
        return step.rollout

    def approve(
        self, number: int, who: str, why: str, now: Now, *, supersede: bool = False, version: int | None = None
    ) -> Rollout:
        """Approve a rollout that its plan lets begin only then; with the last approval it begins.

        Args:
            number: Of the rollout.
            who: Approves; not its author.
            why: For people.
            now: The time.
            supersede: End the rollouts of the same kind and devices that are under way.
            version: Of the rollout that they saw; None for whatever it is now.

        Raises:
            RolloutError: It needs none, not theirs, or another rollout is in its way; nothing changed.
            ConflictError: It has another version.
        """
        with self._store.transaction():
            rollout, made = self._get(number, version), self._store.rollouts.made(number)
            by, needed = _approvers(self._store, number), rollout.plan.start.approvals
            if rollout.state is not RolloutState.DRAFT or not needed:
                raise RolloutError(f"rollout {number} is {rollout.state}: it waits for no approval")
            if not who or made is None or who == made.author or who in by:
                whose = "its author cannot" if made is not None and who == made.author else f"{who or 'nobody'} cannot"
                again = ", they did already" if who in by else ""
                raise RolloutError(f"{whose} approve rollout {number}{again}: somebody else has to")
            left = needed - len(by) - 1
            approved = replace(rollout, version=rollout.version + 1, reason=f"approved by {', '.join([*by, who])}")
            if left:
                approved = replace(approved, reason=f"{approved.reason}; {left} more needed")
            moved = (Moved("", rollout.state, _APPROVE, rollout.state, who, why),)
            self._keep(rollout, Step(rollout=approved, moved=moved), now)
            if not left and not waits_for_judges(self._store, number):
                approved = self.order(number, RolloutEvent.START, made.author, "", now, supersede=supersede)
        self._hurry()
        return approved

    def exclude(
        self,
        number: int,
        device: str,
        who: str,
        why: str,
        now: Now,
        *,
        version: int | None = None,
        leaves: bool = False,
    ) -> None:
        """Take a device out of a rollout; it goes back to what it ran before, but where it leaves the fleet.

        Raises:
            RolloutError: There is no such rollout, or the device is not in it or out already; nothing changed.
        """
        with self._store.transaction():
            rollout = self._get(number, version)
            theirs = [target for target in self._store.rollouts.targets(number) if target.device == device]
            if not theirs:
                raise RolloutError(
                    f"{device} is not in rollout {number}; `edge-fleet rollout status {number}` lists all"
                )
            for target in theirs:
                step = steps.exclude(rollout, target, self.clock.s(now), who=who, why=why, leaves=leaves)
                self._keep(rollout, step, now)
        self._hurry()

    def overtaken(self, release: Release, now: Now) -> None:
        """A release goes to everybody at once: what is on its way of older ones for the same slot is over.

        So is what is through, where a rollback undid it: who comes later, or was away, is not given it any more.
        """
        undone = undone_by_rollbacks(self._store.releases.all(), brought_by_rollouts(self._store))
        for rollout in self._store.rollouts.open():
            if rollout.plan.release >= release.counter:
                continue
            if rollout.state is RolloutState.COMPLETED and rollout.plan.release not in undone:
                continue
            older = self._store.releases.get(rollout.plan.release)
            if older is None or not is_alike(older, release):
                continue
            is_to_abort = rollout.state in (RolloutState.DRAFT, RolloutState.REVERTING)
            if rollout.state is not RolloutState.REVERTING:
                event = RolloutEvent.ABORT if is_to_abort else RolloutEvent.OVERTAKEN
                targets, why = self._store.rollouts.targets(rollout.id), f"release {release.counter} takes its place"
                self._keep(rollout, steps.order(rollout, targets, event, self.clock.s(now), why=why), now)

    def pause_all(self, who: str, why: str, now: Now, *, paused: bool = True) -> None:
        """Let nothing be offered and no wave open in the whole fleet; or let it go on. No rollout loses its state.

        Raises:
            RolloutError: It is so already.
        """
        with self._store.transaction():
            was = self._store.rollouts.setting(PAUSED)
            if bool(was) == paused:
                raise RolloutError(f"the fleet is paused already: {was}" if was else "the fleet is not paused")
            self._store.rollouts.set(PAUSED, why or "by a person" if paused else "")
            event, after = ("pause-all", "paused") if paused else ("resume-all", "open")
            before = "paused" if was else "open"
            moved = Transition(
                rollout=0, subject="", before=before, event=event, now=after, who=who, why=why, at_ms=now.wall_ms
            )
            self._store.rollouts.log([moved])
        self._events.note("", event, f"the whole fleet{_by(who, why)}", now)
        self._hurry()

    @property
    def paused(self) -> str:
        """Why the whole fleet is paused; "" where it is not."""
        return self._store.rollouts.setting(PAUSED)

    def _get(self, number: int, version: int | None = None) -> Rollout:
        rollout = self._store.rollouts.get(number)
        if rollout is None:
            raise RolloutError(f"there is no rollout {number}; `edge-fleet rollout list` shows those that are")
        if version is not None and rollout.version != version:
            raise ConflictError(
                f"rollout {number} has version {rollout.version} by now, and not {version}: it is {rollout.state}, "
                f"wave {rollout.wave + 1}{f' ({rollout.reason})' if rollout.reason else ''}"
            )
        return rollout

    # What devices say

    def state(self, device: str, message: State, now: Now) -> None:
        """Take what a device says of a release, where that is one of a rollout, or brings older bytes back."""
        with self._store.transaction():
            for rollout, target in self._store.rollouts.of_devices(device):
                if message.model not in ("", target.model) and target.model != "":
                    continue
                step = self._said(rollout, target, message, now)
                if step is not None and step.targets:
                    self._keep(rollout, step, now)
                    self.to_tell |= self._way_back.restore(step.rollout, now)  # of one that has ended nobody else does
                    self._hurry()

    def not_sent(self, device: str, release: int, why: str) -> None:
        """A device cannot be sent a release that a rollout has for it: its status says so."""
        with self._store.transaction():
            for rollout, target in self._store.rollouts.of_devices(device):
                waits = target.state is TargetState.REVERTING and target.restore == release
                if waits and why not in target.detail:
                    self._store.rollouts.save(
                        rollout, rollout, [replace(target, detail=f"{target.detail}; {why}"[:500])]
                    )

    def _said(self, rollout: Rollout, target: Target, message: State, now: Now) -> Step | None:
        if message.release == rollout.plan.release:
            report = Report(state=message.state, detail=message.detail, pairs=_pairs(message))
            return reported(rollout, target, report, self.clock.s(now))
        if message.release != target.restore or target.state is not TargetState.REVERTING:
            return None
        if message.state in _RUNS:
            return reverted(rollout, target, self.clock.s(now), message.detail)
        if message.state in ("failed", "refused"):
            return reported(rollout, target, Report(state="failed", detail=message.detail), self.clock.s(now))
        return None

    def came(self) -> None:
        """A device connected, or is known anew or by other tags: look soon."""
        self._is_to_join = True
        self._hurry()

    # Time

    @property
    def next_deadline_s(self) -> float:
        """Call `tick` at this time at the latest."""
        return max(self._next_s, self._soonest_s)

    def _hurry(self) -> None:
        self._next_s = -math.inf

    def tick(self, now: Now) -> None:
        """Do what is due. The clock stands still while no device can be heard: nobody is late, and nothing is seen."""
        self.clock.s(now)
        if now.s < self.next_deadline_s:
            return
        self._next_s, n_targets = now.s + LOOK_S, 0
        due_s = LOOK_S
        is_to_join = self._is_to_join or now.s >= self._next_join_s
        if is_to_join:
            self._is_to_join, self._next_join_s = False, now.s + JOIN_S
        for rollout in self._store.rollouts.open():
            with self._events.survived("", "fault", f"rollout {rollout.id}", now):
                n, soon_s = self._advance(rollout, now, is_to_join=is_to_join)
                n_targets, due_s = n_targets + n, min(due_s, soon_s)
        self._next_s = min(self._next_s, now.s + due_s)
        self._soonest_s = now.s + _SOONEST_S + n_targets / _TARGETS_PER_S

    def _advance(self, rollout: Rollout, now: Now, *, is_to_join: bool) -> tuple[int, float]:
        """Do what is due; how many targets there were, and after how many seconds something is due again."""
        line = self._line()
        with self._store.transaction():
            targets = list(self._store.rollouts.targets(rollout.id))
            if is_to_join:
                targets = joined(self._store, rollout, targets, line, now)
                if rollout.state is RolloutState.COMPLETED and (gone := passed_by(self._store, rollout, targets)):
                    self._keep(rollout, steps.left(rollout, gone, self.clock.s(now)), now)
                    targets = list(self._store.rollouts.targets(rollout.id))
                if rollout.state in _GOING and (why := overtaken(self._store, rollout, targets)):
                    self._keep(
                        rollout, steps.order(rollout, targets, RolloutEvent.PAUSE, self.clock.s(now), why=why), now
                    )
                    return len(targets), LOOK_S
            presence = {each.id: presence_of(each, line, now) for each in self._store.devices.presence()}
            step = steps.advance(
                rollout,
                targets,
                presence,
                self.clock.s(now),
                wall_ms=now.wall_ms,
                groups=self._store.devices.tags() if rollout.plan.model.judge_by else None,
                is_halted=bool(self.paused),
            )
            self._keep(rollout, step, now)
            self._hear_again(rollout, step, now)
            self.to_tell |= self._way_back.restore(step.rollout, now)
        moved = [step.targets.get(target.key, target) for target in targets]
        return len(targets), steps.due_in(step.rollout, moved, self.clock.s(now))

    def _hear_again(self, rollout: Rollout, step: Step, now: Now) -> None:
        """Take what devices said of the release before they were offered it: one that runs it does not say so again."""
        for device in {moved.subject for moved in step.moved if moved.event == TargetEvent.OPEN}:
            for model in self._store.devices.models(device):
                if model.state in _RUNS and model.state_release == rollout.plan.release:
                    message = State(
                        ts_ms=0,
                        seq=0,
                        slot="bundle" if rollout.kind == "bundle" else "head",
                        state=model.state,
                        release=model.state_release,
                        digest="",
                        detail=model.state_detail,
                        model=model.model,
                    )
                    self.state(device, message, now)

    def _keep(self, before: Rollout, step: Step, now: Now) -> None:
        """Write a step. Where another coordinator stepped in between, that one counts, and this is done anew."""
        if step.rollout == before and not step.targets and not step.moved:
            return
        opened = {moved.subject for moved in step.moved if moved.event == TargetEvent.OPEN}
        former = self._way_back.with_former
        changed = [former(before, each) if each.device in opened else each for each in step.targets.values()]
        if not self._store.rollouts.save(step.rollout, before, changed):
            raise RolloutError(f"rollout {before.id} was changed by somebody else meanwhile; look at it and try again")
        self._store.rollouts.log_step(step, now.wall_ms)
        self.clock.keep()
        self.to_tell |= {moved.subject for moved in step.moved if moved.subject and moved.event in _TELLING}
        if step.rollout.state is not before.state:
            self.to_tell |= {
                target.device for target in self._store.rollouts.targets(before.id) if is_on_its_way(target)
            }
        for moved in step.moved:
            if not moved.subject:
                text = f"{before.id}: {moved.before} -> {moved.now}{f', {moved.why}' if moved.why else ''}"
                self._events.note("", "rollout", text, now)


def _released(store: Store, artifacts: ArtifactStore, plan: Plan) -> Release:
    """The release of a plan, which may be given, and as the plan says."""
    release = store.releases.get(plan.release)
    if release is None:
        raise RolloutError(f"there is no release {plan.release}; `edge-fleet release list` shows those that are")
    artifacts.get(release.digest)
    check_release(store, artifacts, release)
    if plan.use == "compete" and release.kind == "head":
        head = HeadRelease.decode(artifacts.get(release.digest).path.read_bytes(), "the head")
        if not head.competes:
            raise RolloutError(f"release {release.counter} is a head that replaces; only a rival or a merge competes")
    if plan.start.judges and release.kind != "head":
        raise RolloutError(
            f"start.judges: devices try heads before they go out, and release {release.counter} is a {release.kind}"
        )
    return release


def _check(artifacts: ArtifactStore, plan: Plan, release: Release, found: Mapping[Key, DeviceFacts]) -> None:
    """Raise RolloutError where those that a plan means would not take its release, or not in time."""
    newer = sorted({device for (device, _), facts in found.items() if facts.release > release.counter})
    if newer:  # they would take no notice of it, and the rollout would wait for them
        raise RolloutError(
            f"release {release.counter} is older than what {', '.join(newer[:5])} "
            f"{'and others ' if len(newer) > 5 else ''}had since: make a new one of its file with "
            f"`edge-fleet release add`, or go back with `edge-fleet rollback --to {release.counter}`"
        )
    check_pace(plan, artifacts.get(release.digest).size_bytes, len(found))


def _approvers(store: Store, number: int) -> list[str]:
    """Who has approved a rollout."""
    return [each.who for each in store.rollouts.transitions(number) if each.event == _APPROVE]


def approvals_left(store: Store, rollout: Rollout) -> int:
    """How many have still to approve a rollout."""
    return rollout.plan.start.approvals - len(_approvers(store, rollout.id))


def waits_for_judges(store: Store, number: int) -> bool:
    """Whether devices have still to judge the head of a draft."""
    found = store.evaluations.get(number)
    return found is not None and found.state in UNDECIDED


def _pairs(message: State) -> Pairs | None:
    found = message.pairs
    if found is None or found.only_new + found.only_old > found.labelled or found.differ > found.compared:
        return None  # no device can count that
    return found


def _by(who: str, why: str) -> str:
    """Who asked for something, where somebody did and said who they are, and why."""
    return f"{f' by {who}' if who else ''}{f': {why}' if why else ''}"
