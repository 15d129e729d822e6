"""Whose turn it is, a merge's or a rollout's: a merge that goes out by itself waits until rollouts of its devices end.

Devices take no older release. A merge that they were given while they wait for their wave would leave that rollout
without devices, and one that comes to canaries while they are watched takes what is watched away. So a merge waits as
long as there is a rollout that would get in another one's way (`UNDER_WAY`): from the draft, whose approval must not be
in vain, to the last device that is brought back.

What waits is not made yet. When its turn comes it is made of what devices have sent by then: the queue has one place,
what is newer takes it, and a head that nobody is given costs no contribution and no privacy.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from edge.contract.clock import Now
from edge.coordinator.rollout.states import UNDER_WAY, RolloutState
from edge.coordinator.rollout.step import Rollout
from edge.coordinator.store.store import Store

# A rollout that only a person leads on, and a merge that waits for it, need that person after so long.
PATIENCE_S = 86_400.0
# Settings of the fleet: merges that wait, how long coordinators have run, and why all is paused ("": it is not).
_WAITING, RUN_CLOCK, PAUSED = "merges-waiting", "run_s", "paused"
_PERSONS = (RolloutState.DRAFT, RolloutState.HELD, RolloutState.PAUSED)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A merge that waits.

    Attributes:
        backbone: Of the heads that are merged.
        rollout: For which it waits; 0: the whole fleet is paused.
        since_ms: It was due.
    """

    backbone: str
    rollout: int
    since_ms: int


def in_the_way(store: Store, backbone: str) -> Sequence[Rollout]:
    """Rollouts whose devices would be given a merge of this backbone before they have the release, oldest first."""
    found = []
    for rollout in store.rollouts.open():
        release = store.releases.get(rollout.plan.release) if rollout.state in UNDER_WAY else None
        if release is not None and (release.backbone == backbone or _touches(store, rollout, backbone)):
            found.append(rollout)
    return found


def _touches(store: Store, rollout: Rollout, backbone: str) -> bool:
    """Whether a bundle goes to a model that runs a head of this backbone by now."""
    if rollout.kind != "bundle":
        return False
    theirs = {(each.device, each.model) for each in store.devices.models() if each.backbone == backbone}
    devices = {device for device, _ in theirs}
    targets = store.rollouts.targets(rollout.id)
    return any(each.key in theirs or (each.model == "" and each.device in devices) for each in targets)


def named(rollouts: Sequence[Rollout]) -> str:
    """Rollouts with their states, for people."""
    return ", ".join(f"rollout {each.id} of release {each.plan.release} ({each.state})" for each in rollouts)


class Turns:
    """Which merges wait, and for what: kept, so that a restart changes nothing.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def waiting(self) -> Sequence[Waiting]:
        """Merges that wait, by backbone."""
        document = json.loads(self._store.rollouts.setting(_WAITING) or "{}")
        return [Waiting(backbone, rollout, since_ms) for backbone, (rollout, since_ms) in sorted(document.items())]

    def must_wait(self, backbone: str, now: Now) -> tuple[bool, str]:
        """Whether a merge that is due has to wait.

        Returns:
            Whether it does, and for what; "" where that was told before.
        """
        with self._store.transaction():
            known = {each.backbone: each for each in self.waiting()}
            before = known.get(backbone)
            rollouts = in_the_way(self._store, backbone)
            is_paused = bool(self._store.rollouts.setting(PAUSED))
            if not rollouts and not is_paused:
                self.keep_only(known.keys() - {backbone})
                return False, ""
            first = rollouts[0].id if rollouts else 0
            if before is not None and before.rollout == first:
                return True, ""
            since_ms = now.wall_ms if before is None else before.since_ms
            self._keep([*(each for each in known.values() if each is not before), Waiting(backbone, first, since_ms)])
        if not rollouts:
            return True, "the whole fleet is paused; it is made when that is over, of what came by then"
        why = f"for {named(rollouts)}, whose devices it would be given before; it is made when that has ended, of what"
        return True, f"{why} came by then. `edge-fleet merge --supersede` ends the rollout instead"

    def keep_only(self, backbones: Collection[str]) -> None:
        """No other merge is due any more."""
        known = self.waiting()
        left = [each for each in known if each.backbone in backbones]
        if len(left) < len(known):
            self._keep(left)

    def _keep(self, waiting: Sequence[Waiting]) -> None:
        document = {each.backbone: (each.rollout, each.since_ms) for each in waiting}
        self._store.rollouts.set(_WAITING, json.dumps(document, sort_keys=True))


def waited_for(store: Store) -> dict[int, int]:
    """By rollout that a merge waits for, since when, in milliseconds."""
    found: dict[int, int] = {}
    for each in Turns(store).waiting():
        for rollout in in_the_way(store, each.backbone):
            found[rollout.id] = min(each.since_ms, found.get(rollout.id, each.since_ms))
    return found


def in_need(store: Store) -> Sequence[Rollout]:
    """Rollouts that a merge waits for, and that only a person leads on, as for a day already."""
    run_s = float(store.rollouts.setting(RUN_CLOCK) or 0.0)
    rollouts = [store.rollouts.get(number) for number in waited_for(store)]
    return [
        each for each in rollouts if each is not None and each.state in _PERSONS and run_s - each.since_s >= PATIENCE_S
    ]
