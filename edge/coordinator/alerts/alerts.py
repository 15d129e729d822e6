"""Alerts: what holds now is one row each until it ends, and each row knows who was told of it.

What must survive a restart is in the row: when it began, when it was last seen, and what the broker and the webhook
were told last. In memory is only since when a threshold is passed that has not lasted long enough.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge.channel.topics import coordinator_alert_topic
from edge.channel.transport import Publish
from edge.contract.clock import Now
from edge.contract.durations import seconds
from edge.contract.errors import RolloutError
from edge.coordinator.alerts.rules import EVENTS, AlertRules, Rule
from edge.coordinator.line import LineState
from edge.coordinator.records import DECOMMISSIONED, Alert, LoggedEvent, as_dict
from edge.coordinator.rollout.query import NotKnownError
from edge.coordinator.rollout.states import RolloutState
from edge.coordinator.rollout.step import Rollout
from edge.coordinator.selection import chosen
from edge.coordinator.store.store import Store

FIRING, RESOLVED = "firing", "resolved"
LOOK_S = 10.0
MAX_SILENCE_S = 30 * 86_400.0
# Between tries of the webhook: the first, and the longest.
_AGAIN_S, _LAST_AGAIN_S = 10.0, 3600.0
_MAX_OPEN, _MAX_EVENTS = 5000, 1000
_SEEN_EVENT = "alerts_event"
Key = tuple[str, str]
"""A rule, and what it holds of."""


class Alerts:
    """See the module.

    Args:
        rules: What to tell of.
        fleet: Its name.
        name: Of the coordinator.
        store: The database.
        line: How the line to the broker is now.
    """

    def __init__(self, rules: AlertRules, fleet: str, name: str, store: Store, line: Callable[[], LineState]) -> None:
        self.rules, self._line = rules, line
        self._fleet, self._name, self._store = fleet, name, store
        self._thresholds = [rule for rule in rules.rule if rule.kind == "threshold"]
        self._passed: dict[Key, tuple[float, str]] = {}  # since when, and how far
        self._well: set[Key] = set()
        self._next_s = -math.inf
        self._started_s: float | None = None
        self._tries: dict[int, tuple[int, float]] = {}  # of the webhook, by alert: how often, and when again

    @property
    def next_deadline_s(self) -> float:
        """Call `tick` at this time at the latest."""
        return self._next_s

    @property
    def needs_telemetry(self) -> bool:
        """Whether a rule is about it."""
        return bool(self._thresholds)

    def telemetry(self, device: str, values: Mapping[str, Any], now: Now) -> None:
        """A device measured something: thresholds that it passes, and those that it does not pass any more."""
        for rule in self._thresholds:
            value = values.get(rule.key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            model = str(values.get("model", "")) if len(self._passed) < _MAX_OPEN else ""
            key = (rule.name, f"{device} {model}".strip())
            if excess := rule.excess(float(value)):
                self._passed[key] = (self._passed.get(key, (now.s, ""))[0], excess)
                self._well.discard(key)
            else:
                self._passed.pop(key, None)
                self._well.add(key)

    def tick(self, now: Now, *, is_connected: bool) -> list[Publish]:
        """Look what holds, keep it, and give back what is to be published."""
        if self._started_s is None:
            self._started_s = now.s
        if now.s < self._next_s:
            return []
        self._next_s = now.s + LOOK_S
        with self._store.transaction():
            self._look(now)
            return self._publish(now) if is_connected and self.rules.mqtt else []

    def connected(self) -> None:
        """The broker may have lost what it kept: it is told of all that is open once more."""
        with self._store.transaction():
            self._store.alerts.save(*(replace(each, told_mqtt="") for each in self._store.alerts.open()))

    # What holds

    def _look(self, now: Now) -> None:
        devices = self._store.devices.presence()
        gone = {each.id for each in devices if each.admission == DECOMMISSIONED}  # of them nobody waits for anything
        heard_ms = {each.id: each.last_seen_ms for each in devices if each.id not in gone}
        happened = self._happened()
        before = {(each.rule, each.subject): each for each in self._store.alerts.open()}
        known = dict(before)
        for rule in self.rules.rule:
            try:
                meant = chosen(self._store, rule.select, self._line(), now) if rule.select else None
            except NotKnownError:  # nobody can tell whom it means
                continue
            for subject, detail in self._holds(rule, heard_ms, happened, now).items():
                first = subject.split(" ")[0]
                if first in gone and rule.kind != "rollout-held":
                    continue
                device = first if first in heard_ms else ""  # what is of the fleet is meant where no devices are chosen
                if (meant is None or device in meant) and len(known) < _MAX_OPEN:
                    known[rule.name, subject] = self._hold(rule, subject, device, detail, known, now)
        by_name = {rule.name: rule for rule in self.rules.rule}
        for key, each in known.items():
            if each.device in gone or self._is_over(each, by_name.get(each.rule), now):
                known[key] = replace(each, state=RESOLVED, ended_ms=now.wall_ms)
                self._tries.pop(each.id, None)
        self._store.alerts.save(*(each for key, each in known.items() if each != before.get(key)))
        self._well.clear()

    def _holds(
        self, rule: Rule, heard_ms: Mapping[str, int], happened: Sequence[LoggedEvent], now: Now
    ) -> dict[str, str]:
        """What a rule holds of now, and why."""
        if rule.kind == "threshold":
            lasting_s = seconds(rule.lasting)
            own = [(key[1], each) for key, each in self._passed.items() if key[0] == rule.name]
            return {subject: excess for subject, (since_s, excess) in own if now.s - since_s >= lasting_s}
        if rule.kind == "absence":
            away = [name for name, last_ms in heard_ms.items() if self._is_away(rule, last_ms, now)]
            return dict.fromkeys(away, f"not heard for {rule.after}")
        if rule.kind == "rollout-held":
            held = [each for each in self._store.rollouts.open() if _waits(each)]
            unjudged = [each for each in self._store.evaluations.under_way() if each.state == "unjudged"]
            return {f"rollout {each.id}": each.reason or str(each.state) for each in held} | {
                f"rollout {each.rollout}": each.detail for each in unjudged
            }
        names = EVENTS[rule.kind]
        return {_subject(each): f"{each.name}: {each.detail}" for each in happened if each.name in names}

    def _is_away(self, rule: Rule, last_ms: int, now: Now) -> bool:
        """Whether it was not heard for long; a coordinator that was away itself blames nobody."""
        after_s = seconds(rule.after)
        is_long = now.wall_ms - last_ms >= 1000 * after_s
        return is_long and self._started_s is not None and now.s - self._started_s >= min(after_s, 600.0)

    def _happened(self) -> list[LoggedEvent]:
        """Events since the last look, oldest first."""
        known = self._store.rollouts.setting(_SEEN_EVENT)
        found = self._store.events.newest(_MAX_EVENTS, after_id=int(known or 0)) if known else []
        newest = found[:1] or self._store.events.newest(1)
        self._store.rollouts.set(_SEEN_EVENT, str(newest[0].id) if newest else known or "0")
        return list(found)[::-1]

    def _hold(self, rule: Rule, subject: str, device: str, detail: str, known: Mapping[Key, Alert], now: Now) -> Alert:
        before = known.get((rule.name, subject))
        if before is not None:
            return replace(before, seen_ms=now.wall_ms, detail=detail[:500])
        last = self._store.alerts.last(rule.name, subject)
        silenced = (last.silenced_ms, last.silenced_by) if last is not None else (0, "")
        return self._store.alerts.add(
            Alert(
                rule=rule.name, kind=rule.kind, subject=subject, device=device, detail=detail[:500], state=FIRING,
                since_ms=now.wall_ms, seen_ms=now.wall_ms, silenced_ms=silenced[0], silenced_by=silenced[1],
            )
        )  # fmt: skip

    def _is_over(self, alert: Alert, rule: Rule | None, now: Now) -> bool:
        """Whether what an alert tells of has ended: a rule that is there no more holds of nothing."""
        if rule is None:
            return True
        if rule.kind == "threshold":
            return (alert.rule, alert.subject) in self._well
        if rule.kind in EVENTS:
            return now.wall_ms - alert.seen_ms >= 1000 * seconds(rule.after)
        return alert.seen_ms != now.wall_ms

    # Who is told

    def _publish(self, now: Now) -> list[Publish]:
        effects = []
        for each in self._store.alerts.untold("mqtt"):
            if each.silenced_ms > now.wall_ms:
                continue
            topic = coordinator_alert_topic(self._fleet, self._name, each.id)
            if each.state == FIRING or each.told_mqtt:
                effects.append(Publish(topic=topic, payload=self.document(each), qos=1, retain=each.state == FIRING))
            if each.state == RESOLVED and each.told_mqtt:  # what the broker keeps of it
                effects.append(Publish(topic=topic, payload=b"", qos=1, retain=True))
            self._store.alerts.save(replace(each, told_mqtt=each.state))
        return effects

    def document(self, alert: Alert) -> bytes:
        """What the broker and the webhook are told."""
        shown = {key: value for key, value in as_dict(alert).items() if not key.startswith("told_")}
        return json.dumps({"fleet": self._fleet, **shown}, sort_keys=True).encode()

    def due(self, now: Now) -> list[tuple[Alert, bytes]]:
        """What the webhook is to be told now."""
        if not self.rules.webhook:
            return []
        found = []
        for each in self._store.alerts.untold("webhook"):
            if each.silenced_ms > now.wall_ms or now.s < self._tries.get(each.id, (0, -math.inf))[1]:
                continue
            if each.state == RESOLVED and not each.told_webhook:  # it ended before anybody was told
                self._store.alerts.save(replace(each, told_webhook=RESOLVED))
                continue
            found.append((each, self.document(each)))
        return found[:20]

    def told(self, alert: Alert, now: Now, *, failed: bool) -> None:
        """The webhook was told of an alert as it was; or it did not take it, and is told again later."""
        if failed:
            count = self._tries.get(alert.id, (0, 0.0))[0] + 1
            self._tries[alert.id] = (count, now.s + min(_AGAIN_S * 2.0 ** (count - 1), _LAST_AGAIN_S))
            return
        self._tries.pop(alert.id, None)
        known = self._store.alerts.get(alert.id)
        if known is not None:
            self._store.alerts.save(replace(known, told_webhook=alert.state))

    # What people do

    def acknowledge(self, number: int, who: str, now: Now) -> Alert:
        """Somebody has seen it.

        Raises:
            RolloutError: There is no such alert.
        """
        with self._store.transaction():
            found = replace(self._get(number), acknowledged_by=who or "somebody", acknowledged_ms=now.wall_ms)
            self._store.alerts.save(found)
        return found

    def silence(self, number: int, length_s: float, who: str, now: Now) -> Alert:
        """Tell nobody of it for a while, also if it ends and begins anew; 0 tells again.

        Raises:
            RolloutError: There is no such alert, or no such time.
        """
        if not 0 <= length_s <= MAX_SILENCE_S:
            raise RolloutError(f"an alert is silenced for 0 to {MAX_SILENCE_S:g} s, got {length_s:g}")
        with self._store.transaction():
            until_ms = now.wall_ms + int(1000 * length_s) if length_s else 0
            found = replace(self._get(number), silenced_ms=until_ms, silenced_by=who)
            self._store.alerts.save(found)
        return found

    def _get(self, number: int) -> Alert:
        found = self._store.alerts.get(number)
        if found is None:
            raise RolloutError(f"there is no alert {number}")
        return found


def _waits(rollout: Rollout) -> bool:
    """Whether it waits for a person whom nobody told: held, or paused by a gate, whose reasons begin with a code."""
    is_stopped = rollout.state is RolloutState.PAUSED and ":" in rollout.reason
    return is_stopped or rollout.state is RolloutState.HELD


def _subject(event: LoggedEvent) -> str:
    return f"{event.device} {event.model}".strip() or "coordinator"
