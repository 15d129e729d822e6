"""One release on its way to a slot: offered, fetched, tried, activated, watched.

Pure but for two things that it is given: `ModelHost`, which opens and swaps models, and its `Slots`, the files. Time
comes in; messages go out as values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from edge.agent.model import releases
from edge.agent.model.host import ModelHost
from edge.agent.model.on_device_model import OnDeviceModel
from edge.agent.model.recognition import Recognition, standing
from edge.agent.model.shadow import LABELS_OF_BUNDLE, Successor
from edge.agent.slots.fetching import Fetch
from edge.agent.slots.slots import MAX_NUMBER
from edge.agent.slots.states import SlotEvent, SlotState, transition
from edge.channel.frames import Frame
from edge.channel.messages import Desired, Pairs, Request, State
from edge.contract.errors import BundleError, EdgeError, LearningError
from edge.learning.exchange import HeadRelease
from edge.learning.trial import OVERTAKEN, Finding, Verdict

# States that a restart remembers; the release counter is durable with them, so none of these begins again. A failure
# (a full disk, a wrong digest) is not among them: the coordinator says its wish again, and the device tries again.
_SETTLED = {SlotState.PROBATION, SlotState.ACTIVE, SlotState.ROLLED_BACK}
# Counters go up by one; one that is so far ahead is no release's. It would be ahead of all real ones for ever.
_MAX_JUMP = 2**32


# States in which nothing is on its way or on trial.
_AT_REST = {SlotState.IDLE, SlotState.ACTIVE, SlotState.FAILED, SlotState.REFUSED, SlotState.ROLLED_BACK}
# A head that is held is looked at again after so many labels.
_LOOK_AGAIN = 8


class Deployment:
    """The state machine of `edge.agent.slots.states` with its hands.

    Args:
        host: Owner of the live model.
        probation_s: Longest probation.
        probation_labels: A probation is judged after so many labels.
        max_bytes: Largest artifact that this device takes.

    Attributes:
        state: Of the release that came last.
        outbox: Messages to publish; the caller empties it.
        unjudged: Why a probation whose time was over could not be judged; "" else.
    """

    def __init__(self, host: ModelHost, *, probation_s: float, probation_labels: int, max_bytes: int) -> None:
        self._host = host
        self._probation_s = probation_s
        self._probation_labels = probation_labels
        self._max_bytes = max_bytes
        # A release on its way when the agent stopped is offered again by the coordinator; a settled one is remembered.
        known = host.slots.record.state in set(SlotState)  # it was damaged else
        self.state = SlotState(host.slots.record.state) if known else SlotState.IDLE
        self.outbox: list[State | Request] = []
        self.alarms: list[str] = []
        self._desired: Desired | None = None
        self._fetch: Fetch | None = None
        self._detail = ""
        self._sequence = 0
        self._probation_end_s = -math.inf  # set by the next poll, which knows the time
        self._waits_for = ""  # why a download does not go on
        self._labels_before = 0
        self._held: releases.Offer | None = None
        self._staged: tuple[releases.Offer | None, str] | None = None  # what is ready, and why it passed
        self._pairs = Pairs()  # of what is live now and was before, as they were told last
        self._old_ms: float | None = None  # of the bundle before
        self._successor: Successor | None = None  # of it, the bundle that is live
        self._told_at = 0
        self._looked_at = 0  # labels when the head that is held was looked at last
        self.unjudged = ""
        # Whether anything spoke for what is in probation before it was live.
        self._was_judged = host.slots.record.judged
        self._replaces = host.slots.record.replaces
        self._recognition = Recognition(host)
        self._settle_trial()

    def _settle_trial(self) -> None:
        """End the trial of a head whose slot says something else: the agent was killed between the two."""
        model, record = self._host.model, self._host.slots.record
        if model.trial is None:
            return
        is_of_record = model.learned.release == record.release
        if is_of_record and self.state is SlotState.PROBATION:
            return
        if is_of_record and self.state is SlotState.ACTIVE:
            releases.confirm(model)
        else:  # it is offered again, and tried against what was before it
            releases.roll_back(model)

    def _enter(self, event: SlotEvent, detail: str = "") -> None:
        self.state = transition(self.state, event)
        self._detail = detail
        if self.state is SlotState.REFUSED:  # which changes nothing: no counter of a release that was not taken is kept
            if self._desired is not None and self._desired.release < MAX_NUMBER:
                self._host.slots.note(refused=self._desired.release)
        elif self.state in _SETTLED:
            release = self._host.slots.record.release if self._desired is None else self._desired.release
            notes: dict[str, str | bool] = {"judged": self._was_judged, "replaces": self._replaces, "slot": self._slot}
            if self._slot == "head" and self._desired is not None and self.state is SlotState.PROBATION:
                notes["head"] = self._desired.digest
            self._host.slots.note(release=release, state=str(self.state), **notes)
        self.report()

    @property
    def _slot(self) -> Literal["head", "bundle"]:
        """Of the release that came last."""
        known = self._host.slots.record.slot if self._desired is None else self._desired.kind
        return "bundle" if known == "bundle" else "head"

    def report(self) -> None:
        """Put the state on its way again, as after a new connection."""
        self._sequence += 1
        desired = self._desired
        self.outbox.append(
            State(
                ts_ms=0,  # the caller knows the time of day
                seq=self._sequence,
                slot=self._slot,
                state=str(self.state),
                release=self._host.slots.record.release if desired is None else desired.release,
                digest="" if desired is None else desired.digest,
                detail=self._detail[:500],
                model=self._host.name,
                pairs=self._pairs if self._pairs != Pairs() else None,
            )
        )

    @property
    def next_deadline_s(self) -> float:
        """Call `poll` at this time at the latest."""
        if self.state is SlotState.PROBATION:
            return self._probation_end_s
        return math.inf if self._fetch is None or self._waits_for else self._fetch.next_deadline_s

    def offer(self, desired: Desired, now_s: float) -> None:
        """Take a desired state. One whose counter was handled already, or is older, changes nothing."""
        again = self._desired is not None and desired.release == self._desired.release
        if desired.activate == "never":
            if again:
                self._withdraw()
            return
        if again and self._desired is not None:
            is_anew = self.state is SlotState.REFUSED and desired.attempt > self._desired.attempt
            self._desired = replace(self._desired, activate=desired.activate, attempt=desired.attempt)
            if self._staged is not None and desired.activate == "now":
                self._activate(*self._staged)
                return
            again = not is_anew
        if again and self._fetch is not None and self._fetch.is_recut(desired):
            self._desired = desired
            self._start_fetch(desired, now_s)
            return
        if again and self.state not in (SlotState.FAILED, SlotState.IDLE):
            return
        if desired.release <= self._host.slots.record.release:
            # After a restart it says what is live, if it is of that; an older one must not become what is on probation.
            if self._desired is None and desired.release == self._host.slots.record.release:
                self._desired = desired
            self.report()
            return
        is_refused = desired.release == self._host.slots.record.refused
        if is_refused and self._desired is None and desired.attempt <= 1:
            self.refuse(desired, "refused before the last restart")
            return
        if (why := _unfit(desired, self._host, self._max_bytes)) and self.state not in _AT_REST:
            self.refuse(desired, why)  # what is on its way, or on probation, goes on
            return
        on_trial = self.state is SlotState.PROBATION and not self._end_probation()
        if on_trial:
            # Who was not judged does not become what the next one is judged against.
            self.roll_back(OVERTAKEN)
        self._stop_fetch()
        self._held = self._staged = None
        self._pairs = Pairs()
        self._desired = desired
        self._enter(SlotEvent.OFFER_RECEIVED)
        if why:
            self._enter(SlotEvent.REFUSED, why)
            return
        self._enter(SlotEvent.FETCH_STARTED, _waiting(self._waits_for))
        self._start_fetch(desired, now_s)

    def _withdraw(self) -> None:
        """Give up a release that is not live yet; what is live is not touched."""
        on_its_way = (SlotState.OFFERED, SlotState.FETCHING, SlotState.VERIFIED, SlotState.STAGED, SlotState.HELD)
        if self.state in on_its_way:
            self._stop_fetch()
            self._held = self._staged = None
            self._enter(SlotEvent.WITHDRAWN, "the coordinator took it back")

    def refuse(self, desired: Desired, why: str) -> None:
        """Say that a release is refused; nothing else changes, whatever the slot does now."""
        self._sequence += 1
        self.outbox.append(
            State(
                ts_ms=0,  # the caller knows the time of day
                seq=self._sequence,
                slot=desired.kind,
                state=str(SlotState.REFUSED),
                release=desired.release,
                digest=desired.digest,
                detail=why,
                model=self._host.name,
            )
        )

    def _fail(self, detail: str) -> None:
        self._stop_fetch()
        self._enter(SlotEvent.FAILED, detail)

    def _stop_fetch(self) -> None:
        if self._fetch is not None:
            self._fetch.close()
        self._fetch = None

    def _start_fetch(self, desired: Desired, now_s: float) -> None:
        self._stop_fetch()
        try:
            self._fetch = Fetch(desired, self._host.slots, self._host.bases(), now_s)
        except (EdgeError, OSError) as exc:
            self._fail(f"fetch: {exc}")
        self._see()

    def frame(self, frame: Frame, now_s: float) -> None:
        """Take a frame of the download; others are ignored."""
        self._go_on(lambda fetch: fetch.frame(frame, now_s))

    def _go_on(self, step: Callable[[Fetch], None]) -> None:
        """Take a step of the fetch, if there is one."""
        if self._fetch is None:
            return
        try:
            step(self._fetch)
        except BundleError as exc:
            self._fail(f"verify: {exc}")
        except OSError as exc:
            self._fail(f"fetch: it could not be written: {exc.strerror}")
        self._see()

    def _see(self) -> None:
        """See what came of the fetch."""
        fetch = self._fetch
        if fetch is None:
            return
        if not self._waits_for:
            self.outbox += fetch.requests
        fetch.requests.clear()
        if fetch.slow:
            self.alarms.append(fetch.slow)
            fetch.slow = ""
        if fetch.warnings:
            self._detail = f"fetch: {fetch.warnings[-1]}"
            fetch.warnings.clear()
            self.report()
        if fetch.arrived is not None:
            self._try(fetch.desired, fetch.arrived)

    def _try(self, desired: Desired, path: Path) -> None:
        """Everything is here and proved: try it, activate it."""
        self._stop_fetch()
        self._enter(SlotEvent.DIGEST_VERIFIED)
        try:
            if desired.kind == "head":
                release = HeadRelease.decode(path.read_bytes(), "the pushed head")
                self._take(releases.look_at(self._host.model, release, competes=release.competes))
                return
            cost = self._host.try_bundle(desired.digest)
        except Exception as exc:  # noqa: BLE001  # what is wrong with a release is refused, whatever it raises
            self._enter(SlotEvent.REFUSED, f"trial: {_said(exc)}")
            return
        self._activate(None, f"trial: its golden outputs are right on this CPU; {cost.text}")

    def _take(self, offer: releases.Offer) -> None:
        """Refuse a head, hold it, or make it live."""
        verdict, self._looked_at = offer.verdict, self._host.model.metrics.labels
        assert self._desired is not None
        if _goes_back(self._host, self._desired, offer) and verdict.is_finite:  # no label speaks against going back
            self._held = None
            self._activate(offer, f"release {self._desired.undoes} is taken back")
        elif verdict.finding is Finding.WORSE and (not offer.competes or not verdict.is_finite):
            self._held = None
            self._enter(SlotEvent.REFUSED, f"trial: {verdict.reason}")
        elif verdict.finding is Finding.DIFFERENT and not offer.competes:
            if self._held is None:
                self._enter(SlotEvent.HELD, f"held: {verdict.reason}")
            self._held = offer
        elif verdict.finding is Finding.NOT_JUDGED and self._held is not None:
            return  # too few samples by now to look at it: what was seen before holds
        else:
            self._held = None
            self._activate(offer, f"trial: {verdict.reason}")

    def _activate(self, offer: releases.Offer | None, detail: str) -> None:
        """Make a head that was looked at live, or the bundle that was tried; or keep it ready, where it is to wait."""
        assert self._desired is not None
        if self._staged is None:
            self._enter(SlotEvent.TRIAL_PASSED, detail)
        if self._desired.activate == "wait":
            self._staged = (offer, detail)
            return
        self._staged = None
        self._enter(SlotEvent.ACTIVATION_STARTED)
        undoes = self._desired.undoes if offer is not None and _goes_back(self._host, self._desired, offer) else 0
        try:
            if offer is not None and undoes:
                detail = releases.bring_back(
                    self._host.model, offer, self._desired.release, undoes, anew=self._desired.anew
                )
            elif offer is not None:
                releases.take(self._host.model, offer, self._desired.release)
            else:
                self._old_ms = self._host.model.metrics.p99_ms()
                share = self._host.model.metrics.share_right(LABELS_OF_BUNDLE)
                self._host.activate_bundle(self._desired.digest)
                self._successor = None if share is None else Successor(share, self._host.model.metrics)
        except Exception as exc:  # noqa: BLE001  # else the slot would be activating for ever
            self._fail(f"activate: {_said(exc)}")
            return
        self._labels_before = self._host.model.metrics.labels
        self._told_at = 0
        if offer is None:
            self._pairs = Pairs()
        else:
            self._old_ms = self._successor = None
            self._pairs = releases.compared(self._host.model)
        self._probation_end_s = -math.inf  # set at the next poll
        self.unjudged = ""
        judged = (Finding.GOOD, Finding.WORSE)
        self._was_judged = offer is not None and offer.verdict.finding in judged
        self._replaces = offer is not None and not offer.competes
        self._enter(SlotEvent.ACTIVATED, detail)
        if undoes:
            self._enter(SlotEvent.PROBATION_PASSED, detail)
        self._host.slots.clean()

    def wait_for(self, why: str, now_s: float) -> None:
        """Ask for no more frames while there is a reason; without one ("") go on."""
        if why == self._waits_for:
            return
        self._waits_for = why
        if self._fetch is None:
            return
        self._detail = _waiting(self._waits_for)
        self.report()
        if not why:  # what was asked for before came long ago, or never
            self._start_fetch(self._fetch.desired, now_s)

    def poll(self, now_s: float) -> None:
        """Do what is due: ask again for missing frames, end a probation."""
        if not self._waits_for:
            self._go_on(lambda fetch: fetch.poll(now_s))
        self._tell_pairs()
        if self._recognition.look() and self.state in (SlotState.PROBATION, SlotState.ACTIVE):
            self._detail = standing(self._host.model)
            self.report()
        is_unjudged = self.state is SlotState.ACTIVE and self._slot == "bundle" and not self._was_judged
        if is_unjudged and (predictions := self._host.model.metrics.predictions):  # now something speaks for it
            self._was_judged = True
            self._host.slots.note(judged=True)
            self._detail = f"after probation: {predictions} predictions, no failure"
            self.report()
        labels = self._host.model.metrics.labels
        if self._held is not None and labels >= self._looked_at + _LOOK_AGAIN:
            held = self._held
            try:
                self._take(releases.look_at(self._host.model, held.release, competes=held.competes))
            except EdgeError as exc:
                self._held = None
                self._enter(SlotEvent.REFUSED, f"trial: {exc}")
        if self.state is SlotState.PROBATION:
            if self._probation_end_s == -math.inf:
                self._probation_end_s = now_s + self._probation_s
            enough = labels - self._labels_before >= self._probation_labels
            if (now_s >= self._probation_end_s or enough) and not self._end_probation():
                self._probation_end_s = now_s + self._probation_s  # ask again then

    def _tell_pairs(self) -> None:
        """Say how what is live compares with what was before, now and then."""
        if self.state not in (SlotState.PROBATION, SlotState.ACTIVE):
            return
        if self._old_ms is not None and (new_ms := self._host.model.metrics.p99_ms()) is not None:
            self._pairs = replace(self._pairs, old_ms=round(self._old_ms, 3), new_ms=round(new_ms, 3))
            self._old_ms = None
            self.report()
        if self._successor is not None and (news := self._successor.news(self._pairs)) is not None:
            self._pairs = news
            self.report()
        if not self._host.model.learns or (shadow := self._host.model.state.shadow) is None:
            return
        if shadow.told_at > self._told_at:
            self._told_at, self._pairs = shadow.told_at, shadow.pairs
            self.report()
        if shadow.is_over:
            self._host.model.state.shadow = None

    def _end_probation(self) -> bool:
        """Judge what is in probation; False where that cannot be done yet: then it is neither active nor gone."""
        model = self._host.model
        is_bundle = self._host.slots.record.trying
        labels = model.metrics.labels - self._labels_before
        if is_bundle:
            verdict = releases.judge_bundle(model, labels)
        elif self._replaces and model.trial is None:  # it ended, and the agent before it was written down
            is_here = model.release == self._host.slots.record.release
            verdict = Verdict(Finding.GOOD if is_here else Finding.WORSE, "it ended before a restart")
        else:
            verdict = releases.judge_taken(
                model, was_judged=self._was_judged, labels=labels, counter=self._host.slots.record.release
            )
        if verdict.finding is Finding.GOOD:
            if is_bundle:
                self._host.confirm_bundle()
                self._was_judged = model.metrics.predictions > 0
            releases.confirm(model)
            is_unjudged = verdict.reason.startswith(Finding.NOT_JUDGED)
            self._enter(SlotEvent.PROBATION_PASSED, verdict.reason if is_unjudged else f"probation: {verdict.reason}")
        elif verdict.finding is Finding.NOT_JUDGED:
            if self.unjudged != verdict.reason:
                self.unjudged = self._detail = verdict.reason
                self.report()
            return False
        else:
            self.roll_back(f"probation: {verdict.reason}")
        return True

    def give_way(self) -> None:
        """What was learned elsewhere has taken the place of all that was here, of what is in probation, too."""
        if self.state is SlotState.PROBATION:
            self._host.model.state.shadow = None
            self._enter(SlotEvent.PROBATION_PASSED, f"{self.unjudged}; a checkpoint has taken its place")

    def roll_back(self, why: str) -> None:
        """Bring back what was live before the release in probation."""
        if self._host.model.learns:
            self._host.model.state.shadow = None
        self._successor = None
        if self._host.slots.record.trying:
            self._host.roll_back_bundle()
        elif self._host.model.trial is not None:
            releases.roll_back(self._host.model)
        self._enter(SlotEvent.ROLLED_BACK, why)

    def go_back(self) -> dict[str, Any]:
        """Bring back what was there before the newest head or bundle that took its place: somebody asks for it.

        A merge takes nobody's place: it competes, and labels decide how far it is believed.

        Returns:
            ``slot``, and by ``was`` and ``now`` the release and bundle; how many labels are not ``kept``.

        Raises:
            LearningError: There is nothing to go back to; nothing changed.
        """
        was = _live(self._host.model)
        slot, labels = "head", self._host.model.n_samples
        if self._host.model.trial is not None:
            releases.roll_back(self._host.model)
        elif (before := self._host.model.before()) is not None:
            releases.go_back(self._host.model, before)
        elif self._host.slots.record.bundle:
            slot = "bundle"
            self._host.roll_back_bundle()
        else:
            raise LearningError(
                "there is nothing to go back to: no head and no bundle was pushed that took the place of what was here "
                "(a merge competes, and labels decide how far it is believed)"
            )
        is_last = self._slot == slot and (slot == "bundle" or self._replaces)
        if is_last and self.state in (SlotState.PROBATION, SlotState.ACTIVE):
            self._enter(SlotEvent.ROLLED_BACK, "somebody on the device asked for it")
        else:  # the release that came last is another one, and stays what it is
            self.report()
        lost = max(0, labels - self._host.model.n_samples) if slot == "head" else 0
        return {"slot": slot, "was": was, "now": _live(self._host.model), "labels_lost": lost}


def _unfit(desired: Desired, host: ModelHost, max_bytes: int) -> str:
    """Why a release is not for this device, as far as its description tells; "" where it may be."""
    backbone = host.model.manifest.backbone_digest
    if desired.release > host.slots.record.release + _MAX_JUMP:
        return f"its counter {desired.release} is no release's: the last one was {host.slots.record.release}"
    if desired.kind == "head" and desired.backbone != backbone:
        return f"the head belongs to the backbone {desired.backbone[:12]}, not {backbone[:12]}"
    if desired.size_bytes > max_bytes:
        return f"{desired.size_bytes} bytes, this device takes at most {max_bytes}"
    return ""


def _goes_back(host: ModelHost, desired: Desired, offer: releases.Offer) -> bool:
    """Whether a head is what was here before a release that is taken back, or stands for it.

    Who never had that release, as one that joins, has nothing to go back from: to it the head is one as any other. A
    head of the fleet's that is older still gives way where this very one is to be had: it may be what fell, or have
    something in that was forgotten.
    """
    if not desired.undoes:
        return False
    is_known = desired.anew or host.slots.record.release >= desired.undoes
    return (is_known and releases.has_any(host.model)) or releases.has(host.model, offer.release)


def _live(model: OnDeviceModel) -> dict[str, Any]:
    return {"name": model.manifest.name, "bundle": model.bundle.digest, "release": model.release}


def _waiting(why: str) -> str:
    return f"waits: {why}" if why else ""


def _said(exc: Exception) -> str:
    """What was raised; what is not raised on purpose needs its type to be understood."""
    return str(exc) if isinstance(exc, EdgeError | OSError) else f"{type(exc).__name__}: {exc}"
