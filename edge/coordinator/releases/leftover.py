"""Which devices run what a rollout brought that never went through: its canaries, once it was stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edge.coordinator.records import Model, Release, is_merge
from edge.coordinator.rollout.states import RUNS, RolloutState, TargetState
from edge.coordinator.rollout.step import Key, Rollout, Target
from edge.coordinator.store.store import Store

# In these a rollout waits for a person, or has ended before it was through.
_STOPPED = (RolloutState.HELD, RolloutState.PAUSED, RolloutState.ABORTED, RolloutState.SUPERSEDED)
# A device in these has had the release.
_HAD = RUNS | {TargetState.REVERTING, TargetState.REVERTED}


def leftovers(store: Store) -> dict[Key, Rollout]:
    """By device and model, the rollout that was stopped before it was through, and whose release runs there."""
    completed = store.rollouts.completed()
    stopped = {each.id: each for each in store.rollouts.all() if each.state in _STOPPED and each.id not in completed}
    if not stopped:
        return {}
    running = [(stopped[number], key) for number, key in store.rollouts.running(stopped)]
    devices = {device for _, (device, _) in running}
    later = {device: store.rollouts.of_devices(device) for device in devices}
    running = [
        (rollout, key)
        for rollout, key in running
        if not any(_took_its_place(rollout, key, *each) for each in later[key[0]])
    ]
    models = [each for each in store.devices.models() if each.device in devices]
    return left(running, models, {each.counter: each for each in store.releases.all()})


def left(
    running: Iterable[tuple[Rollout, Key]], models: Iterable[Model], releases: Mapping[int, Release]
) -> dict[Key, Rollout]:
    """See `leftovers`.

    Args:
        running: Rollouts that were stopped, oldest first, with those that had activated their releases.
        models: Of these devices.
        releases: By their counters.
    """
    found: dict[Key, Rollout] = {}
    by_device: dict[str, list[Model]] = {}
    for model in models:
        by_device.setdefault(model.device, []).append(model)
    for rollout, (device, name) in running:
        for model in by_device.get(device, ()):
            if name in ("", model.model) and not _has_another(rollout, model, releases):
                found[model.device, model.model] = rollout
    return found


def _took_its_place(rollout: Rollout, key: Key, later: Rollout, target: Target) -> bool:
    """Whether a later rollout brought a device something in the place of what one brought, whatever became of it since.

    What a revert of that one brings back is not what fell before it, see `edge.coordinator.releases.way_back`.
    """
    is_newer = later.plan.release > rollout.plan.release
    is_alike = later.kind in ("bundle", rollout.kind) and (later.plan.use != "compete" or rollout.plan.use == "compete")
    return is_newer and is_alike and target.key == key and target.state in _HAD


def _has_another(rollout: Rollout, model: Model, releases: Mapping[int, Release]) -> bool:
    """Whether a model runs something newer in the place of what a rollout brought.

    A head leaves the bundle where it is, and a merge, which competes, leaves a head there that is none.
    """
    own = releases.get(rollout.plan.release)
    if own is not None and own.kind == "head" and own.backbone != model.backbone:
        return True
    if model.state not in RUNS or model.state_release <= rollout.plan.release:
        return model.went_back and model.release == rollout.plan.release
    newer = releases.get(model.state_release)
    if own is None or newer is None or newer.kind == "bundle":
        return True
    return own.kind == "head" and (is_merge(own) or not is_merge(newer))
