"""Whom a plan means, in which order they come, and what it would do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge.contract.clock import Now
from edge.contract.digest import short
from edge.coordinator.line import LineState
from edge.coordinator.records import APPROVED, Device, Model, Release, not_before
from edge.coordinator.releases.wanted import desired, fits
from edge.coordinator.releases.worth import judged_worse
from edge.coordinator.rollout import plan as plans
from edge.coordinator.rollout import query
from edge.coordinator.rollout.gates import MIN_JUDGES
from edge.coordinator.rollout.plan import Plan
from edge.coordinator.rollout.query import DeviceFacts
from edge.coordinator.rollout.states import RolloutState, TargetEvent, TargetState, target_after
from edge.coordinator.rollout.step import Key, Presence, Rollout, Target
from edge.coordinator.rollout.waves import shuffled, sizes
from edge.coordinator.rollout.window import offset_min
from edge.coordinator.store.store import Store


def selected(store: Store, plan: Plan, release: Release, line: LineState, now: Now) -> dict[Key, DeviceFacts]:
    """The models of devices that a release fits and the plan means.

    Raises:
        RolloutError: The plan asks what is not known now: which devices are online, without a line to them.
    """
    test = query.parse(plan.select)
    known, of_devices = store.devices.at_a_glance()
    devices = {each.id: each for each in known if each.born and each.admission == APPROVED}
    tags = store.devices.tags()
    models: dict[str, list[Model]] = {}
    for model in of_devices:
        models.setdefault(model.device, []).append(model)
    found = {}
    for name, device in devices.items():
        for model in models.get(name, []):
            if fits(release, model, is_only=len(models[name]) == 1):
                facts = _facts(device, model, tags.get(name, {}), line, now)
                if test(facts):
                    found[name, model.model] = facts
    return found


def chosen(store: Store, text: str, line: LineState, now: Now) -> frozenset[str]:
    """Devices of which a model, or where none is known they themselves, are as a query asks.

    Raises:
        ConfigError: It is none.
        NotKnownError: It asks what is not known now.
    """
    test, tags = query.parse(text), store.devices.tags()
    devices, of_devices = store.devices.at_a_glance()
    models: dict[str, list[Model]] = {}
    for model in of_devices:
        models.setdefault(model.device, []).append(model)
    return frozenset(
        device.id
        for device in devices
        for model in models.get(device.id, [Model(device=device.id)])
        if test(_facts(device, model, tags.get(device.id, {}), line, now))
    )


def for_nobody(store: Store, plan: Plan, release: Release, line: LineState, now: Now) -> str:
    """Why a plan means no device, in words: they are not approved, or the release does not fit them."""
    meant = chosen(store, plan.select, line, now)
    outside = meant & store.devices.not_approved()
    why = [not_before(each) for each in store.devices.all() if each.id in outside]
    whom = f" of {plan.select}" if plan.select else ""
    if why:
        more = f", and {len(why) - 1} more are not approved either" if len(why) > 1 else ""
        said = f"{why[0]}{more}"
    elif not meant:
        said = f"there is no device{whom}"
    elif release.kind == "head":
        of_model = f" in a model {release.model!r}" if release.model else ""
        said = f"no device{whom} runs its backbone {short(release.backbone)}{of_model}"
    else:
        said = f"no device{whom} has a model {release.model!r}"
    return f"this {release.kind} would go to nobody now: {said}; `edge-fleet devices` lists them"


def forecast(store: Store, plan: Plan, release: Release, size_bytes: int, line: LineState, now: Now) -> dict[str, Any]:
    """What a plan would do: who is in which wave, how many bytes, and what gates will be able to see."""
    found = selected(store, plan, release, line, now)
    sized = sizes(len(found), plan.waves)
    order = in_order(found, plan.seed or "unforeseeable")
    waves, before = [], 0
    for number, (count, of_plan) in enumerate(sized):
        has_gate = 0 < number < len(sized) - 1 and count >= MIN_JUDGES and not plan.model.off
        waves.append(
            {
                "devices": count - before,
                "cumulative": count,
                "bytes": (count - before) * size_bytes,
                "fetch_s": (count - before) * size_bytes / plan.pace.bytes_per_s if plan.pace.bytes_per_s else 0.0,
                "soak_s": plans.soak_s(plan, of_plan, len(found)),
                "gate": "model" if has_gate else "none" if plan.model.off else "screen",
            }
        )
        before = count
    devices = {each.id: each for each in store.devices.all()}
    without_zone = sorted({device for device, _ in found if offset_min(devices[device].hardware) is None})
    seeded = [f"{device}/{model}" if model else device for device, model in order] if plan.seed else []
    return {
        "release": release.counter,
        "kind": release.kind,
        "plan": plans.to_document(plan),
        "devices": len(found),
        "bytes": len(found) * size_bytes,
        "waves": waves,
        "order": seeded,
        "judged": judged_worse(store, release.digest),
        "agree": sum(devices[device].evaluates for device in {device for device, _ in found}),
        "without_local_time": without_zone if plan.window else [],
    }


def joined(store: Store, rollout: Rollout, targets: list[Target], line: LineState, now: Now) -> list[Target]:
    """The targets of a rollout by now, kept: who came to match is last, who matches no more and waits is out.

    Where nobody can tell who matches they stay as they are.
    """
    if not rollout.plan.start.join or rollout.state in (RolloutState.DRAFT, RolloutState.REVERTING):
        return targets
    release = store.releases.get(rollout.plan.release)
    if release is None:
        return targets
    try:
        matching = selected(store, rollout.plan, release, line, now)
    except query.NotKnownError:
        return targets
    known = {target.key for target in targets}
    last, place = len(rollout.sizes) - 1, len(targets)
    new = [
        Target(device=key[0], model=key[1], wave=last, place=place + i)
        for i, key in enumerate(sorted(matching.keys() - known))
    ]
    gone = [
        replace(target, state=target_after(target.state, TargetEvent.EXCLUDE), detail="it matches no more")
        for target in targets
        if target.state in (TargetState.WAITING, TargetState.ABSENT) and target.key not in matching
    ]
    if new or gone:
        store.rollouts.save(rollout, rollout, [*new, *gone])
    left = {target.key: target for target in gone}
    return [left.get(target.key, target) for target in targets] + new


def overtaken(store: Store, rollout: Rollout, targets: Iterable[Target]) -> str:
    """Why the devices of a rollout that wait for its release will not get it: they are given a newer one; "" else."""
    releases = store.releases.all()
    own = next((each for each in releases if each.counter == rollout.plan.release), None)
    if own is None or releases[0].counter == own.counter:  # newest first
        return ""
    models: dict[str, list[Model]] = {}
    for model in store.devices.models():
        models.setdefault(model.device, []).append(model)
    tags = store.devices.tags()
    for target in targets:
        if target.state not in (TargetState.WAITING, TargetState.OFFERED):
            continue
        theirs = models.get(target.device, [])
        for model in theirs:
            if target.model not in ("", model.model):
                continue
            tagged = tags.get(target.device, {})
            newest = desired(releases, model, tagged, is_only=len(theirs) == 1, targeted=[own])
            if newest is not None and newest.counter > own.counter:
                return (
                    f"overtaken: {target.device} and others that wait are given release {newest.counter} "
                    f"({newest.reason}), and take no older one: put the file into a new release with "
                    f"`edge-fleet release add` and begin anew, or revert"
                )
    return ""


def passed_by(store: Store, rollout: Rollout, targets: Iterable[Target]) -> list[Target]:
    """Targets of a rollout that is through whose models have dealt with a newer release: they take no older one."""
    release = rollout.plan.release
    newer = {(each.device, each.model) for each in store.devices.models() if each.release > release}
    devices = {device for device, _ in newer}
    return [
        each
        for each in targets
        if each.state in (TargetState.WAITING, TargetState.ABSENT, TargetState.OFFERED, TargetState.STAGED)
        and (each.key in newer or (each.model == "" and each.device in devices))
    ]


def in_order(found: Iterable[Key], seed: str) -> list[Key]:
    """The same order for the same seed."""
    by_name = {f"{device}\0{model}": (device, model) for device, model in found}
    return [by_name[name] for name in shuffled(list(by_name), seed)]


def _facts(device: Device, model: Model, tags: Mapping[str, str], line: LineState, now: Now) -> DeviceFacts:
    return DeviceFacts(
        id=device.id,
        profile=device.profile,
        bundle=model.bundle,
        backbone=model.backbone,
        head=model.head,
        release=model.release,
        agent=device.agent_version,
        state=model.state,
        online=line.is_online(device, now.wall_ms),
        deaf=line.says,
        heard_s=presence_of(device, line, now).heard_s,
        samples=model.samples,
        tags=tags,
    )


def presence_of(device: Device, line: LineState, now: Now) -> Presence:
    """What is known of a device, as steps want it: silence counts while the coordinator could have heard something."""
    if line.is_online(device, now.wall_ms):
        return Presence(is_online=True)
    until_ms = now.wall_ms if line.hears else line.since_ms
    return Presence(heard_s=max(0.0, (until_ms - device.last_seen_ms) / 1000))


def for_devices(devices: Sequence[str]) -> str:
    """The query that means these devices and tags; "" for all. A tag that is none means those without it.

    >>> for_devices(["cam-1", "cam-2", "tag.site=north"])
    'id in ("cam-1", "cam-2") or tag.site = "north"'
    >>> for_devices(["tag.site="])
    'not tag.site ~ "*"'
    """
    names = [name for name in devices if not name.startswith("tag.")]
    parts = [f"id in ({', '.join(_quoted(name) for name in names)})"] if names else []
    for each in devices:
        if each.startswith("tag."):
            key, _, value = each.partition("=")
            parts.append(f"{key} = {_quoted(value)}" if value else f'not {key} ~ "*"')
    return " or ".join(parts)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
