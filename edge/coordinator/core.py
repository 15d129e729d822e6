"""One coordinator: events of the broker and wishes of operators in, messages out.

Holds nothing in memory that is not also in its store, but for uploads on their way, which devices begin again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from edge.channel.transport import Connected, Publish, TransportEvent
from edge.contract.clock import Now
from edge.contract.errors import RolloutError
from edge.coordinator.alerts.alerts import Alerts
from edge.coordinator.carrying import Parts, carried_in, carried_out
from edge.coordinator.config import CoordinatorConfig
from edge.coordinator.devices.admission import Admission, Admissions, Decision
from edge.coordinator.devices.checkpoints import Checkpoints
from edge.coordinator.devices.enrolment import Enrolments
from edge.coordinator.devices.registry import Registry
from edge.coordinator.devices.sites import Sites
from edge.coordinator.dialogue import Dialogue
from edge.coordinator.events import Events
from edge.coordinator.learning.evaluations import Evaluations
from edge.coordinator.learning.holdout import Holdout
from edge.coordinator.learning.learning import Learning
from edge.coordinator.learning.merges import Merges
from edge.coordinator.learning.questions import Questions
from edge.coordinator.learning.receipts import Receipts
from edge.coordinator.line import LineState
from edge.coordinator.records import Device, Order, Release
from edge.coordinator.releases.artifacts import ArtifactStore
from edge.coordinator.releases.bundles import Bundles
from edge.coordinator.releases.intake import Intake
from edge.coordinator.releases.releases import KNOWN_THEN, MAX_COUNTER, RESTORED, Releases, add_release
from edge.coordinator.rollout.plan import Plan
from edge.coordinator.rollout.step import Rollout
from edge.coordinator.rollouts import Rollouts
from edge.coordinator.selection import for_devices
from edge.coordinator.signing.signing import NOT_SIGNED, Signing
from edge.coordinator.store.store import Store
from edge.coordinator.turns import in_the_way
from edge.coordinator.upstream.pools import Pools
from edge.learning.exchange import HeadRelease
from edge.merging.groups import EVERYBODY

HOUSEKEEPING_S = 600.0
# After a restore and a connection, until what the broker keeps of devices has come.
HEARD_S = 2.0
# Where coordinators share what comes in, the one that leads looks so often at what alerts are about.
WATCH_S, _MOST_WATCHED = 2.0, 20_000
AUTHORITY = "authority"  # folder with the key that signs certificates of devices


class CoordinatorCore:
    """Who is in the fleet, what it runs, what it learned, and the conversation with it; and when something is due.

    `transport` and `tick` raise nothing: what comes from outside may be anything, so a fault costs its message or its
    step and becomes an event.

    Args:
        config: Its options.
        store: Its database.
        artifacts: Its files.
        rng: For the noise of merges and the order of rollouts; nobody may foresee it.
        signing: Proves to devices what they are told; None for a fleet without keys.
        new_id: A random identity, 32 hexadecimal digits.

    Attributes:
        events: What people should see.
        registry: Who is in the fleet.
        releases: What devices should run.
        learning: What they learned.
        receipts: Of what was forgotten.
        checkpoints: All of what they learned, kept and given.
        rollouts: How releases go out.
        questions: Labels that help several devices.
        dialogue: The conversation with them.
        admissions: Whether they belong to the fleet.
        enrolments: How they join.
        alerts: What people are told of without asking.
        signing: Proves to them what they are told, or None.
        holdout: Samples on which merged heads are tested, or None.
        bundles: Those that are known.
        merges: That are made.
        room: On its disk.
        pools: At a site, what it gives the coordinator above and has from there; else None.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        store: Store,
        artifacts: ArtifactStore,
        rng: np.random.Generator | None = None,
        signing: Signing | None = None,
        new_id: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        self._config = config
        self._store = store
        self.signing = signing
        self.events = Events(store)
        self.bundles = bundles = Bundles(store, artifacts)
        self.holdout = None if config.evaluate is None else Holdout(config.evaluate)
        sites = Sites(store, self.events)
        self.pools = None if config.site is None else Pools(store, artifacts, new_id)
        self._artifacts = artifacts
        self.merges = merges = Merges(
            config.policy, store, artifacts, bundles, self.events, rng, config.release_policy, self.holdout,
            lambda plan, now: self.rollouts.start(plan, "", now, supersede=True), sites, self.pools,
        )  # fmt: skip
        self.room = artifacts.room
        own_disk = None if config.database else self.room

        def line() -> LineState:
            return self.dialogue.line.state

        self.alerts = Alerts(config.alerts, config.fleet, config.name, store, line)
        watch = None if config.is_shared else self.alerts.telemetry
        self._watched_id = -1  # of telemetry that others took in
        self.registry = Registry(store, self.events, config.unknown, self._clone, own_disk, watch)
        self._intake = Intake(store, artifacts, bundles)
        self.releases = Releases(store, artifacts, bundles, self.events)
        self.receipts = Receipts(config.fleet, config.data_dir, store, artifacts, self.events)
        self.learning = Learning(config, store, artifacts, bundles, merges, self.events, self.receipts, sites)
        self.checkpoints = Checkpoints(store, artifacts, self.events)
        draw = np.random.default_rng(0) if rng is None else rng
        self.rollouts = Rollouts(store, artifacts, bundles, self.events, lambda: draw.bytes(16).hex(), line)
        self.questions = Questions(store, bundles, self.events, config.ask_labels_s)
        self.evaluations = Evaluations(store, artifacts, self.rollouts, self.receipts, self.events, line)
        self.dialogue = Dialogue(
            config.fleet,
            store,
            artifacts,
            self.registry,
            self.releases,
            self.learning,
            self.checkpoints,
            self.rollouts,
            self.events,
            sites,
            self.questions,
            self.evaluations,
            signing,
            config.name,
            config.broker,
        )
        self.admissions = Admissions(store, self.events, self.rollouts, self.dialogue.decided, self.dialogue.clear)
        self.enrolments = Enrolments(
            config.fleet, config.name, config.data_dir / AUTHORITY, store, self.registry, self.admissions, self.events
        )
        self._parts = Parts(self.dialogue, self.releases, self.checkpoints, artifacts, store, signing)
        self._next_telling_s = -math.inf
        self._next_housekeeping_s = -math.inf
        self._next_watch_s = -math.inf
        self._aged_s: float | None = None  # monotonic
        self._is_restored = bool(store.rollouts.setting(RESTORED))
        self._connected_s: float | None = None

    def transport(self, event: TransportEvent, now: Now) -> None:
        """Take an event of the broker connection. A message that cannot be read or handled is dropped."""
        self.dialogue.transport(event, now)
        if isinstance(event, Connected):
            self._next_telling_s = now.s
            with self.events.survived("", "fault", "telling of alerts again", now):
                self.alerts.connected()

    # What operators ask for

    def add_artifact(self, data: bytes, path: Path, name: str = "") -> dict[str, Any]:
        """Take a bundle or a head, see `Intake.add_artifact`; a bundle may be what contributions wait for."""
        found = self._intake.add_artifact(data, path, name)
        self.learning.plan_soon()
        return found

    def push(
        self, digest: str, kind: str, backbone: str, devices: list[str], reason: str, now: Now, **options: Any
    ) -> Release:
        """Make an artifact what a model of devices should run, see `Releases.push`.

        Raises:
            RolloutError: As that, or it is a bundle that nobody signed, in a fleet with keys.
        """
        if self.signing is not None and kind == "bundle" and not self.signing.is_listed(kind, digest):
            name = options.get("file") or self.releases.called(kind, digest)
            raise RolloutError(f"{name} {NOT_SIGNED}")
        release = self.releases.push(digest, kind, backbone, devices, reason, now, **options)
        self._next_telling_s = now.s
        return release

    def rollback(self, now: Now, **options: Any) -> Release:
        """Push older bytes again, see `Releases.rollback`."""
        with self._store.transaction():
            release = self.releases.rollback(now, **options)
            self.rollouts.overtaken(release, now)
        self._next_telling_s = now.s
        return release

    def roll_out(
        self,
        digest: str,
        kind: str,
        backbone: str,
        devices: list[str],
        reason: str,
        now: Now,
        *,
        who: str = "",
        undoes: int = 0,
        **options: Any,
    ) -> tuple[Release, Rollout]:
        """Bring an artifact to devices by a rollout with the default plan; what was on its way there is overtaken.

        One that undoes another release goes to all of them in one wave: somebody wants that gone, no canary is asked.

        Raises:
            RolloutError: As `push`; nothing is released then.
        """
        with self._store.transaction():
            release = self.push(digest, kind, backbone, devices, reason, now, at_once=False, undoes=undoes, **options)
            plan = Plan(release=release.counter, select=for_devices(devices))
            if undoes:
                plan = replace(plan, waves=("100 %",))
            return release, self.rollouts.start(plan, who, now, supersede=True)

    def release_merge(self, head: HeadRelease, reason: str, now: Now) -> Release:
        """Give all devices a merge that was made above.

        Raises:
            ResourceError: There is no room for it.
        """
        digest = self._artifacts.put(head.encode()).digest
        release = add_release(
            self._store, self._artifacts, kind="head", digest=digest, backbone=head.backbone, devices=EVERYBODY,
            reason=reason, now_ms=now.wall_ms,
        )  # fmt: skip
        self.events.note("", "release", f"{release.counter}: {reason}", now)
        self._next_telling_s = now.s
        return release

    def room_for(self, size_bytes: int) -> None:
        """Raise ResourceError where there is too little room for so much."""
        self.room.check(size_bytes)

    def merge_now(self, now: Now, *, supersede: bool = False, who: str = "") -> list[Release]:
        """Merge everything that is new and push it, see `Learning.merge_now`.

        Args:
            now: The time.
            supersede: End rollouts that are under way on the same devices.
            who: Asks.
        """
        releases = self.learning.merge_now(now, supersede=supersede)
        made = {release.counter for release in releases}
        for release in releases:
            older = [each for each in in_the_way(self._store, release.backbone) if each.plan.release not in made]
            self.rollouts.make_way(older, release, who, now)
        if releases:
            self.receipts.complete(now)
            self._next_telling_s = now.s
        return releases

    def pause_all(self, who: str, why: str, now: Now, *, paused: bool = True) -> None:
        """Let nothing become live in the whole fleet, or let it go on, see `Rollouts.pause_all`; all are told."""
        self.rollouts.pause_all(who, why, now, paused=paused)
        self._next_telling_s = now.s

    def tag(self, device: str, tags: dict[str, str], now: Now) -> dict[str, str]:
        """Give a device tags, see `Registry.tag`; groups by such a tag are merged anew."""
        found = self.registry.tag(device, tags)
        self.learning.regroup(device, tags, now)
        self.rollouts.came()
        self._next_telling_s = now.s
        return found

    def decide(self, device: str, order: Decision, who: str, why: str, now: Now) -> Device:
        """Approve, quarantine or decommission a device, see `Admissions.order`."""
        found = self.admissions.order(device, order, who, why, now)
        if order is Decision.APPROVE:
            self.registry.lives.begin(device)  # what was before was looked at
            self.learning.plan_soon()
        self._next_telling_s = now.s
        return found

    def _clone(self, device: str, why: str, now: Now) -> None:
        """Several devices go by one name: nobody can tell whose words are whose."""
        if self.admissions.get(device).admission in (Admission.APPROVED, Admission.PENDING):
            self.admissions.order(device, Decision.QUARANTINE, "", why, now)

    def forget(self, device: str, now: Now) -> dict[str, Any]:
        """Delete what a device contributed, see `Learning.forget`, and what else is held of its samples and answers.

        Rollouts of heads that have it in end, see `Rollouts.forgotten`. What it is, runs and was told stays, and so do
        events.

        Returns:
            As `Learning.forget`, and how many ``checkpoints``, ``telemetry`` (messages) and ``shared_samples`` were
            deleted.
        """
        with self._store.transaction():
            found = self.learning.forget(device, now, self.rollouts.forgotten)
            deleted = {
                "checkpoints": self.checkpoints.forget(device),
                "telemetry": self.registry.forget(device),
                "shared_samples": self.questions.forget(device),
            }
            self._store.evaluations.forget(device)
            self.receipts.state(found["receipt"], {"deleted": deleted})
        self.receipts.complete(now)
        return found | deleted

    def ask(self, device: str, model: str, now: Now, kind: str) -> Order:
        """Have a device send what it learned, see `Checkpoints.ask`."""
        return self._told(self.checkpoints.ask(device, model, now, kind), now)

    def restore(self, device: str, source: str, now: Now, **options: Any) -> Order:
        """Have a device go on from a checkpoint, see `Checkpoints.restore`."""
        return self._told(self.checkpoints.restore(device, source, now, **options), now)

    def carry_out(self, devices: list[str], now: Now) -> bytes:
        """What devices should run, for a stick; see `edge.coordinator.carrying`."""
        return carried_out(self._config.fleet, devices, self._parts, now)

    def carry_in(self, path: Path, now: Now, name: str = "") -> dict[str, Any]:
        """Take what a device wrote onto a stick; see `edge.coordinator.carrying`."""
        found = carried_in(path, self._config.fleet, self.dialogue, now, name or str(path))
        self.learning.plan_soon()
        return found

    def _told(self, order: Order, now: Now) -> Order:
        self._next_telling_s = now.s
        return order

    # Time

    @property
    def next_deadline_s(self) -> float:
        """Call `tick` at this time at the latest."""
        telling_s = self._next_telling_s if self.dialogue.is_connected else math.inf
        rooms = (self.registry, self.learning, self.rollouts, self.alerts, self.questions, self.evaluations)
        heard_s = math.inf if self._connected_s is None else self._connected_s + HEARD_S
        return min(
            telling_s,
            heard_s,
            self._next_housekeeping_s,
            self.dialogue.line.next_deadline_s,
            *(room.next_deadline_s for room in rooms),
        )

    def tick(self, now: Now) -> list[Publish]:
        """Do what is due and give back what is to be sent. A step that fails is told, and those after it are done."""
        self.events.offer_again(now)
        self._heard_after_restore(now)
        self.room.look(self.events, now)
        self.dialogue.retry(now)
        self.registry.keep_telemetry(now)
        if self.learning.tick(now):
            self._next_telling_s = now.s
            self.receipts.complete(now)
        with self.events.survived("", "fault", "looking at rollouts", now):
            self.rollouts.tick(now)
        with self.events.survived("", "fault", "looking what devices think of candidates", now):
            self.evaluations.tick(now)
        if self.dialogue.is_connected:
            with self.events.survived("", "fault", "telling devices of a rollout what to run", now):
                self.dialogue.tell_some(self.rollouts.to_tell | self.evaluations.to_tell, now)
            self.rollouts.to_tell.clear()
            self.evaluations.to_tell.clear()
        with self.events.survived("", "fault", "looking at questions", now):
            self.questions.tick(now, is_connected=self.dialogue.is_connected)
        if self.dialogue.is_connected and now.s >= self._next_telling_s:
            self._next_telling_s = now.s + self._config.reassert_s
            with self.events.survived("", "fault", "telling devices what to run", now):
                self.dialogue.tell_all(now)
        if now.s >= self._next_housekeeping_s:
            self._next_housekeeping_s = now.s + HOUSEKEEPING_S
            with self.events.survived("", "fault", "deleting old telemetry", now):
                self._age(now)
            with self.events.survived("", "fault", "signing receipts", now):
                self.receipts.complete(now)
            if self.signing is not None:
                with self.events.survived("", "fault", "signing metadata anew", now):
                    self.signing.refresh(now)
        told: list[Publish] = []
        with self.events.survived("", "fault", "looking for alerts", now):
            if self._config.is_shared and now.s >= self._next_watch_s:
                self._watch(now)
            told = self.alerts.tick(now, is_connected=self.dialogue.is_connected)
        return self.dialogue.drain(now) + told

    def _heard_after_restore(self, now: Now) -> None:
        """What the broker keeps of devices comes with the connection: then the numbers of their releases are known."""
        if not self._is_restored or not self.dialogue.is_connected:
            self._connected_s = None
            return
        if self._connected_s is None:
            self._connected_s = now.s
        if now.s - self._connected_s >= HEARD_S:
            with self.events.survived("", "fault", "going on after a restore", now):
                with self._store.transaction():
                    named = self._store.devices.highest_named(MAX_COUNTER)
                    self._store.rollouts.set(KNOWN_THEN, str(named))
                    self._store.rollouts.set(RESTORED, "")
                self._is_restored = False

    def _watch(self, now: Now) -> None:
        """Look at the telemetry that came in by the door that coordinators share."""
        self._next_watch_s = now.s + WATCH_S
        if not self.alerts.needs_telemetry:
            return
        entries = self._store.telemetry.after(self._watched_id, 1 if self._watched_id < 0 else _MOST_WATCHED)
        for entry in entries:
            self.alerts.telemetry(entry.device, entry.values, now)
            self._watched_id = max(self._watched_id, entry.id)

    def close(self, now: Now) -> None:
        """Keep what waits."""
        self.registry.keep_telemetry(now, at_once=True)

    def _age(self, now: Now) -> None:
        more_s = 0.0 if self._aged_s is None else max(now.s - self._aged_s, 0.0)
        self._store.telemetry.aged(more_s, self._config.keep)
        self._aged_s = now.s
