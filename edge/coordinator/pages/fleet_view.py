"""What the page of the whole fleet says: who is there, what they run, and what waits for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from edge.contract.clock import Now
from edge.contract.digest import short
from edge.coordinator.devices.standings import admitted
from edge.coordinator.line import CONDITIONS, ONLINE, LineState
from edge.coordinator.pages.charts import shares
from edge.coordinator.pages.texts import text
from edge.coordinator.records import APPROVED, DECOMMISSIONED, Device, LoggedEvent, Model, is_merge
from edge.coordinator.releases.leftover import leftovers
from edge.coordinator.rollout.states import ENDED, RolloutState
from edge.coordinator.rollout.step import Key, Rollout
from edge.coordinator.store.store import Store
from edge.coordinator.turns import PAUSED, in_need
from edge.learning.trial import OVERTAKEN

PAGE = 50
# Of a device that does not belong to the fleet, or not now: more than how it is.
ADMISSIONS = ("pending", "quarantined", DECOMMISSIONED)
# States of a slot that a person should look at.
TROUBLED = frozenset({"failed", "refused", "rolled-back", "held"})
# Events of the last day that say that something does not work.
FAULTS = (
    "same-name", "merge-failed", "contribution-refused", "artifact-missing", "bundle-unusable", "unknown-backbone",
    "left-out", "model-fault", "broker-refused",
)  # fmt: skip
_DAY_MS, _MOST_NAMED, _MOST_VERSIONS, _MOST_ALIKE = 86_400_000, 5, 20, 3


@dataclass(frozen=True, slots=True)
class Wish:
    """Something that waits for a person: what, of whom, why, and where to look; of an alert its rule.

    Of many alike `subject` says how many, and `why` the first ones.
    """

    kind: str
    subject: str
    why: str
    href: str
    rule: str = ""

    @property
    def whose(self) -> str:
        """Whom it is about."""
        return self.subject.removeprefix(f"{self.rule}: ")


@dataclass(frozen=True, slots=True)
class FleetQuery:
    """Which devices to list, and how to group them."""

    q: str = ""
    condition: str = ""
    by: str = ""
    page: int = 1


def fleet(store: Store, query: FleetQuery, line: LineState, now: Now) -> dict[str, Any]:
    """All that the page shows."""
    with store.transaction():
        everyone, of_devices = store.devices.at_a_glance()
        devices = [each for each in everyone if each.admission != DECOMMISSIONED]  # who is gone for good is no number
        here = {each.id for each in devices}
        models, tags = _by_device([each for each in of_devices if each.device in here]), store.devices.tags()
        releases = {each.counter: each for each in store.releases.all()}
        names = {each.identity: each.name for each in store.releases.bundles() if each.identity}
        troubled = _troubled(store, models)
        left = leftovers(store)
        wishes = _wishes(store, devices, troubled, models, line, now) + _left_on(left)
    is_now = {device.id: line.condition(device, now.wall_ms) for device in everyone}
    counts = Counter(is_now[each] for each in here)
    keys = sorted({key for of_device in tags.values() for key in of_device})
    asked = everyone if query.condition == DECOMMISSIONED else devices
    chosen = [each for each in asked if _is_meant(each, is_now[each.id], tags.get(each.id, {}), query)]
    pages = max(1, -(-len(chosen) // PAGE))
    page = min(max(query.page, 1), pages)
    rows = [
        {
            "device": device,
            "condition": is_now[device.id],
            "tags": tags.get(device.id, {}),
            "models": models.get(device.id, ()),
        }
        for device in chosen[(page - 1) * PAGE : page * PAGE]
    ]
    agents = Counter(each.agent_version for each in devices if each.born)
    return {
        "counts": [(each, counts[each]) for each in CONDITIONS if counts[each] or (each == ONLINE and line.hears)],
        "admissions": [(each, n) for each in ADMISSIONS if (n := sum(d.admission == each for d in everyone))],
        "choices": (*CONDITIONS, *ADMISSIONS),
        "shares": shares([(each, counts[each]) for each in CONDITIONS], text("fleet.shares")),
        "total": len(devices),
        "wishes": _together(wishes),
        "versions": (versions := _versions(models, releases, names))[:_MOST_VERSIONS],
        "more_versions": sum(each["n"] for each in versions[_MOST_VERSIONS:]),
        "agents": sorted(agents.most_common(_MOST_VERSIONS), reverse=True),
        "more_agents": agents.total() - sum(n for _, n in agents.most_common(_MOST_VERSIONS)),
        "map": _map(devices, tags, is_now, {each.device for each in troubled}, query.by),
        "has_troubled": bool(troubled),
        "by": query.by,
        "tag_keys": keys,
        "rows": rows,
        "left": {key: rollout.id for key, rollout in left.items()},
        "found": len(chosen),
        "page": page,
        "pages": pages,
        "query": query,
    }


def _left_on(left: Mapping[Key, Rollout]) -> list[Wish]:
    """Of each rollout that has ended before it was through, which devices run its release all the same."""
    by_rollout: dict[int, set[str]] = {}
    ended = {rollout.id: rollout for rollout in left.values() if rollout.state in ENDED}
    for (device, _), rollout in left.items():
        by_rollout.setdefault(rollout.id, set()).add(device)
    return [
        Wish(
            "left-on",
            text("left-on", rollout=number, release=rollout.plan.release),
            _named(sorted(by_rollout[number])),
            f"/rollouts/{number}",
        )
        for number, rollout in sorted(ended.items())
    ]


def _troubled(store: Store, models: Mapping[str, Sequence[Model]]) -> list[Model]:
    """Models that stand where a person should look.

    Not those of a release that a person has given up since, nor of one that the next one has overtaken.
    """
    ended = (RolloutState.ABORTED, RolloutState.REVERTED)
    given_up = {each.plan.release for each in store.rollouts.all() if each.state in ended}
    found = (each for own in models.values() for each in own)
    return [
        each
        for each in found
        if each.state in TROUBLED and each.state_release not in given_up and each.state_detail != OVERTAKEN
    ]


def _by_device(models: Sequence[Model]) -> dict[str, list[Model]]:
    found: dict[str, list[Model]] = {}
    for model in models:
        found.setdefault(model.device, []).append(model)
    return found


def _is_meant(device: Device, is_now: str, tags: Mapping[str, str], query: FleetQuery) -> bool:
    if query.condition and query.condition not in (is_now, device.admission):
        return False
    if not (words := query.q.lower().split()):
        return True
    about = " ".join([device.id, device.profile, *(f"{key}={value}" for key, value in tags.items())]).lower()
    return all(word in about for word in words)


def _versions(
    models: Mapping[str, Sequence[Model]], releases: Mapping[int, Any], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """By model, bundle and release: how many run it, most first. Each device that learns has a head of its own soon."""
    found: dict[tuple[str, str, int, bool], Counter[str]] = {}
    for own in models.values():
        for each in own:
            heads = found.setdefault((each.model, each.bundle, each.release, each.went_back), Counter())
            heads[each.head] += 1
    return [
        {
            "model": model,
            "bundle": names.get(bundle, "") or short(bundle),
            "heads": [short(head) if head else "" for head in heads],
            "release": counter,
            "went_back": went_back,
            "reason": releases[counter].name or releases[counter].reason if counter in releases else "",
            "n": heads.total(),
        }
        for (model, bundle, counter, went_back), heads in sorted(found.items(), key=lambda item: -item[1].total())
    ]


def _map(
    devices: Sequence[Device],
    tags: Mapping[str, Mapping[str, str]],
    is_now: Mapping[str, str],
    in_trouble: Set[str],
    by: str,
) -> list[dict[str, Any]]:
    """Groups by the value of a tag: each device with the classes of its cell, and what that means in words.

    It is in trouble where one of its models is. There may be thousands: what cells have in common is made once.
    """
    said = {each: text(f"state.{each}") for each in CONDITIONS}
    troubled = {each: f"{shown}, {text('troubled')}" for each, shown in said.items()}
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for device in devices:
        how = is_now[device.id]
        is_troubled = device.id in in_trouble
        value = tags.get(device.id, {}).get(by, "") if by else ""
        cell = (device.id, f"is-{how} troubled", troubled[how]) if is_troubled else (device.id, f"is-{how}", said[how])
        groups.setdefault(value, []).append(cell)
    return [{"value": value, "cells": cells} for value, cells in sorted(groups.items())]


def _wishes(
    store: Store,
    devices: Sequence[Device],
    troubled: Sequence[Model],
    models: Mapping[str, Sequence[Model]],
    line: LineState,
    now: Now,
) -> list[Wish]:
    """What waits for a person, the most pressing first."""
    found = [Wish("line", line.address or text("line.broker"), each, "") for each in line.troubles]
    if why := store.rollouts.setting(PAUSED):
        found.append(Wish("paused-all", "", why, "/rollouts"))
    told = [each for each in store.alerts.open() if not each.acknowledged_ms and each.silenced_ms <= now.wall_ms]
    for alert in told:
        if alert.kind in ("threshold", "absence", "drift", "data-cap"):  # the others stand below with their own words
            said = f"{alert.rule}: {alert.subject}"
            found.append(Wish("alert", said, alert.detail, "/alerts", alert.rule))
    for admission in ("pending", "quarantined"):
        waiting = [each.id for each in devices if each.admission == admission]
        if len(waiting) == 1:
            why = admitted(store, waiting[0], admission)[1]
            found.append(Wish(f"admission-{admission}", waiting[0], why, f"/devices/{waiting[0]}"))
        elif waiting:
            kind = f"admissions-{admission}"
            found.append(Wish(kind, str(len(waiting)), _named(waiting), f"/?condition={admission}"))
    found += [
        Wish("rollout-unjudged", str(each.rollout), each.detail, f"/rollouts/{each.rollout}")
        for each in store.evaluations.under_way()
        if each.state == "unjudged"
    ]
    in_rollouts = set()
    for rollout in store.rollouts.open():
        here = f"/rollouts/{rollout.id}"
        if rollout.state in (RolloutState.HELD, RolloutState.PAUSED):
            found.append(Wish(f"rollout-{rollout.state}", str(rollout.id), rollout.reason, here))
        failed = store.rollouts.failures(rollout.id)
        in_rollouts |= set(failed)
        if failed:
            found.append(Wish("targets-failed", str(rollout.id), _named([device for device, _ in failed]), here))
    for rollout in in_need(store):
        why = f"{rollout.state}: {rollout.reason}".rstrip(": ")
        found.append(Wish("merge-waits", str(rollout.id), why, f"/rollouts/{rollout.id}"))
    for each in troubled:
        if not {(each.device, each.model), (each.device, "")} & in_rollouts:
            found.append(Wish(f"slot-{each.state}", each.device, each.state_detail, f"/devices/{each.device}"))
    seen, by_name = set(), {each.id: each for each in devices}
    for event in store.events.newest(200, since_ms=now.wall_ms - _DAY_MS):
        if event.name in FAULTS and (event.name, event.device) not in seen:
            seen.add((event.name, event.device))
            if _has_ended(store, event, by_name.get(event.device), models.get(event.device, ())):
                continue
            here = f"/devices/{event.device}" if event.device else "/learning"
            found.append(Wish(f"event-{event.name}", event.device, event.detail, here))
    return found


def _together(wishes: Sequence[Wish]) -> list[Wish]:
    """The same of many devices as one: a hundred with a drift must not hide the rollout that waits."""
    groups: dict[tuple[str, str], list[Wish]] = {}
    for each in wishes:
        is_alike = each.kind.startswith(("slot-", "event-", "alert"))
        groups.setdefault((each.kind, each.rule if is_alike else each.subject + each.why), []).append(each)
    found: list[Wish] = []
    for own in groups.values():
        found += own if len(own) <= _MOST_ALIKE else [_many(own)]
    return found


def _many(wishes: Sequence[Wish]) -> Wish:
    n, kind, rule = text("fleet.n-devices", n=len(wishes)), wishes[0].kind, wishes[0].rule
    why = _named(sorted(each.whose for each in wishes))
    return Wish(kind, f"{rule}: {n}" if rule else n, why, "/alerts" if rule else "", rule)


def _has_ended(store: Store, event: LoggedEvent, device: Device | None, models: Sequence[Model]) -> bool:
    """Whether what an event told of is over, as far as that can be told."""
    match event.name:
        case "same-name":  # it stands there as the quarantine that it led to, and a person has ended that
            return device is not None and (
                device.admission != APPROVED or admitted(store, event.device, APPROVED)[0] >= event.at_ms
            )
        case "left-out":
            return all(each.device != event.device for each in store.contributions.refused())
        case "unknown-backbone":
            return bool(models) and all(store.releases.bundle_of(each.backbone) for each in models)
        case "contribution-refused":
            mine = [each.received_ms for each in store.contributions.all() if each.device == event.device]
            return max(mine, default=0) > event.at_ms
        case "merge-failed":
            return any(is_merge(each) and each.created_ms > event.at_ms for each in store.releases.all())
    return False


def _named(devices: Sequence[str]) -> str:
    names = ", ".join(devices[:_MOST_NAMED])
    return names + (text("more", n=len(devices) - _MOST_NAMED) if len(devices) > _MOST_NAMED else "")
