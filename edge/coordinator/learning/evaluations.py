"""Cross-site evaluation: devices that agree try a head on their last labels before its rollout begins.

Theory of operation. A rollout whose plan says so (`start.judges`) is a draft until they have judged. Of its targets
those are asked that agree, are there, and have labels, twice as many as are needed: some will lie, have gone, or have
too few labels. A device of whose learning the head was made has seen the labels that it would judge by, and would speak
for what it poisoned: such are asked only as far as there are too few others, and it is told. One that the last merge
left out, as its labels do not go with those of others, would speak against what is right, and is asked last. When all
who are there have answered, or the time is over, the middle of them decides
(`edge.coordinator.rollout.gates.beforehand`): the rollout begins, or is aborted. Where too few have answered nothing
was judged: the plan says whether it is held then, and those who come late still count.

All of it is rows: whom it asked and what they said outlives the process, and a step is one transaction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge.channel.messages import Candidate, Pairs, Reply
from edge.contract.clock import Now
from edge.contract.errors import EdgeError
from edge.coordinator.events import Events
from edge.coordinator.learning.receipts import Receipts
from edge.coordinator.line import LineState
from edge.coordinator.records import APPROVED, Device, Evaluation, Judge, Model, Release
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.releases.forgotten import forgotten_in
from edge.coordinator.rollout.gates import MIN_PAIRS, Decision, beforehand
from edge.coordinator.rollout.states import RolloutEvent, RolloutState
from edge.coordinator.rollout.step import Rollout
from edge.coordinator.rollout.waves import shuffled
from edge.coordinator.rollouts import Rollouts, approvals_left
from edge.coordinator.selection import overtaken
from edge.coordinator.store.store import Store

LOOK_S = 5.0
# No device remembers so many labels.
MOST_LABELS = 10_000


def in_turn(
    found: Iterable[str], inside: Collection[str], left_out: Collection[str], seed: str, least: int, most: int
) -> list[str]:
    """Which devices are asked next.

    Args:
        found: Those that can be.
        inside: Those of whose learning the head was made: asked only where there are fewer than `least` others.
        left_out: Those whose learning the last merge left out: asked only where these, too, are too few.
        seed: That nobody knows, so that nobody foresees who judges.
        least: So many are needed.
        most: So many are asked, of the others.
    """
    order = shuffled(list(found), seed)
    last = [device for device in order if device in left_out]
    then = [device for device in order if device in inside and device not in left_out]
    first = [device for device in order if device not in inside and device not in left_out][:most]
    return first + (then + last)[: max(0, least - len(first))]


def counted(reply: Reply) -> dict[str, Any]:
    """The counts in an answer.

    Raises:
        ValueError: No device can count that.
    """
    labelled, *rest = (reply.out.get(key) for key in ("labelled", "both", "only_new", "only_old"))
    if type(labelled) is not int or not 0 <= labelled <= MOST_LABELS:
        raise ValueError(f"labelled: expected a whole number from 0 to {MOST_LABELS}, got {labelled!r:.40}")
    numbers = [float(each) for each in rest if isinstance(each, int | float) and not isinstance(each, bool)]
    if len(numbers) < 3 or not all(0 <= each <= labelled for each in numbers) or sum(numbers) > labelled + 1e-3:
        raise ValueError(f"both, only_new, only_old: expected counts of {labelled} labels, got {rest!r:.120}")
    return {"labelled": labelled, **dict(zip(("both", "only_new", "only_old"), numbers, strict=True))}


class Evaluations:
    """See the module.

    Args:
        store: The database.
        artifacts: What is sent.
        rollouts: That wait for it.
        receipts: Know whose learning is in a head.
        events: For what people should see.
        line: How the line to the broker is now.

    Attributes:
        to_tell: Devices that are asked now; the caller empties it.
    """

    def __init__(
        self,
        store: Store,
        artifacts: ArtifactStore,
        rollouts: Rollouts,
        receipts: Receipts,
        events: Events,
        line: Callable[[], LineState],
    ) -> None:
        self._store, self._log = store, store.evaluations
        self._artifacts, self._rollouts, self._receipts = artifacts, rollouts, receipts
        self._events, self._line = events, line
        self._next_s = -math.inf
        self.to_tell: set[str] = set()

    @property
    def next_deadline_s(self) -> float:
        """Call `tick` at this time at the latest."""
        return self._next_s

    def tick(self, now: Now) -> None:
        """Ask those who are to be asked, and decide what can be decided."""
        if now.s < self._next_s:
            return
        self._next_s = now.s + LOOK_S
        for each in self._log.under_way():
            left_s = each.due_s - self._rollouts.clock.s(now, is_watched=True)
            if left_s > 0:
                self._next_s = min(self._next_s, now.s + left_s)
            with self._events.survived("", "fault", f"what devices think of rollout {each.rollout}", now):
                with self._store.transaction():
                    happened = self._look(each, now)
                if happened is not None:  # told when it is kept
                    self._events.note("", f"candidate-{happened[0]}", happened[1], now)

    def _look(self, one: Evaluation, now: Now) -> tuple[str, str] | None:
        """Go on with one; what it has come to, in a word and in words, where there is something to tell."""
        rollout = self._store.rollouts.get(one.rollout)
        release = None if rollout is None else self._store.releases.get(rollout.plan.release)
        if rollout is None or release is None or rollout.state is not RolloutState.DRAFT:
            self._log.save(replace(one, state="dropped", detail="somebody decided before the devices did"))
            return None
        if release.backbone in self._store.contributions.to_be_unlearned() or forgotten_in(
            self._store, self._artifacts, release.digest
        ):
            return self._abort(one, "dropped", release, "something of what it was made of is to be forgotten", now)
        judges, there = self._log.judges(rollout.id), self._there(now)
        said = [each for each in judges if each.state == "answered" and each.labelled >= MIN_PAIRS]
        said = [each for each in said if each.device in there[1]]
        waits = [each for each in judges if each.state == "open" and each.device in there[0]]
        needed = rollout.plan.start.judges
        asked = self._ask(rollout, release, len(said) + len(waits), judges, there[0], now)
        is_over = self._rollouts.clock.s(now) >= one.due_s
        if (waits or asked) and not is_over and one.state == "asking":
            return None
        found = beforehand({each.device: _pairs(each) for each in said}, rollout.plan.model)
        if len(said) < needed or found.decision is Decision.UNDECIDED:
            is_told = one.state == "unjudged" or not is_over
            return None if is_told else self._unjudged(one, rollout, release, len(said), now)
        text = f"{found.detail}{_inside(said)}"
        if found.decision is Decision.STOP:
            return self._abort(one, "lost", release, f"worse on devices: {text}", now)
        return self._pass(replace(one, state="passed", detail=text), rollout, release, now)

    def _there(self, now: Now) -> tuple[dict[str, Device], set[str]]:
        """Approved devices that agree and are there, and all that are approved."""
        line, devices = self._line(), self._store.devices.presence()
        approved = [each for each in devices if each.born and each.admission == APPROVED]
        there = {each.id: each for each in approved if each.evaluates and line.is_online(each, now.wall_ms)}
        return there, {each.id for each in approved}

    def _ask(
        self, rollout: Rollout, release: Release, n: int, judges: Sequence[Judge], there: Mapping[str, Device], now: Now
    ) -> int:
        """Ask more than the `n` who have answered or will, where there are more; how many were asked."""
        known, needed = {each.device for each in judges}, rollout.plan.start.judges
        if n >= 2 * needed or there.keys() <= known:
            return 0
        targets = {target.key for target in self._store.rollouts.targets(rollout.id)}

        def can(model: Model) -> bool:
            is_target = (model.device, model.model) in targets or (model.device, "") in targets
            is_new = model.device in there and model.device not in known
            return is_new and is_target and model.backbone == release.backbone and model.samples >= MIN_PAIRS

        # A device has one voice, however many models it says it has.
        found = {model.device: model.model for model in self._store.devices.models() if can(model)}
        inside = self._inside(release) if found else set()
        left_out = {each.device for each in self._store.contributions.refused(release.backbone)} if found else set()
        chosen = in_turn(found, inside, left_out, rollout.seed, needed - n, 2 * needed - n)
        for device in chosen:
            judge = Judge(
                rollout=rollout.id, device=device, model=found[device], is_inside=device in inside, asked_ms=now.wall_ms
            )
            self._log.save_judge(judge)
        self.to_tell.update(chosen)
        return len(chosen)

    def _inside(self, release: Release) -> set[str]:
        """Devices of whose learning a head was made."""
        included = self._receipts.included(release)
        return {each.device for each in self._store.contributions.all(release.backbone) if each.lineage in included}

    # What comes of it

    def _pass(self, one: Evaluation, rollout: Rollout, release: Release, now: Now) -> tuple[str, str]:
        if why := overtaken(self._store, rollout, self._store.rollouts.targets(rollout.id)):
            return self._abort(one, "dropped", release, why, now)
        self._log.save(one)
        if left := approvals_left(self._store, rollout):
            return one.state, f"release {release.counter}: {one.detail}; {left} approvals are needed"
        self._rollouts.order(rollout.id, RolloutEvent.START, "", one.detail, now)
        return one.state, f"release {release.counter}: {one.detail}"

    def _abort(self, one: Evaluation, state: str, release: Release, why: str, now: Now) -> tuple[str, str]:
        self._log.save(replace(one, state=state, detail=why))
        self._rollouts.order(one.rollout, RolloutEvent.ABORT, "", why, now)
        return state, f"release {release.counter}: {why}: it is given to nobody"

    def _unjudged(
        self, one: Evaluation, rollout: Rollout, release: Release, answered: int, now: Now
    ) -> tuple[str, str]:
        start = rollout.plan.start
        why = f"not judged: {answered} of {start.judges} devices with labels answered within {start.within}"
        if start.unjudged == "go":
            going = replace(one, state="passed", detail=f"{why}; it goes all the same, by plan")
            return self._pass(going, rollout, release, now)
        self._log.save(replace(one, state="unjudged", detail=why))
        cure = f'`edge-fleet rollout resume {rollout.id} --reason "..."` or abort; who answers late still counts'
        return "unjudged", f"release {release.counter}: {why}: it is held; {cure}"

    # Devices

    def replied(self, device: str, reply: Reply) -> None:
        """A device answers; only the first answer counts."""
        kind, _, text = reply.id.partition("-")
        if kind != Candidate.word or not (text.isascii() and text.isdecimal() and len(text) < 16):
            return
        with self._store.transaction():
            open_ones = [each for each in self._log.judges(int(text)) if (each.device, each.state) == (device, "open")]
            for one in open_ones:
                self._next_s = -math.inf
                if reply.rc:
                    self._log.save_judge(replace(one, state="refused", detail=reply.detail[:500]))
                    continue
                try:
                    self._log.save_judge(replace(one, state="answered", **counted(reply)))
                except ValueError as exc:
                    self._log.save_judge(replace(one, state="refused", detail=f"what it said is no answer: {exc}"))

    def to_say(
        self, device: str | None, chunk_bytes: Callable[[str], int], now: Now
    ) -> Iterator[tuple[str, Candidate]]:
        """Those who have not answered, and what they are asked, of one device or of all.

        Args:
            device: None for all.
            chunk_bytes: Size of the chunks that arrive at a device.
            now: The time.
        """
        for one in self._log.to_say(device):
            rollout = self._store.rollouts.get(one.rollout)
            release = None if rollout is None else self._store.releases.get(rollout.plan.release)
            if release is None:
                continue
            try:
                artifact = self._artifacts.get(release.digest, chunk_bytes(one.device))
            except EdgeError as exc:
                self._events.fault(one.device, "artifact-missing", str(exc), now)
                continue
            yield (
                one.device,
                artifact.ordered(
                    Candidate, number=one.rollout, model=one.model, backbone=release.backbone, ts_ms=one.asked_ms
                ),
            )


def _pairs(one: Judge) -> Pairs:
    return Pairs(labelled=one.labelled, only_new=one.only_new, only_old=one.only_old)


def _inside(said: Sequence[Judge]) -> str:
    """How many of those who judge have seen labels that they judge by."""
    inside = sum(each.is_inside for each in said)
    return f", of which {inside} had lent it what they know" if inside else ""
