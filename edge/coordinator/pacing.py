"""How fast rollouts may fetch: so many bytes a second in all, so many a day for each device. Who is too fast waits.

The limits hold for whatever a device fetches while it has a release of the rollout to fetch, the shorter ways to it
among that. A cap of the device's own it keeps itself: the lower one of the two stops first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge.contract.clock import Now
from edge.contract.durations import seconds
from edge.contract.errors import RolloutError
from edge.coordinator.rollout.plan import Plan
from edge.coordinator.rollout.states import TargetState
from edge.coordinator.rollout.step import Rollout
from edge.coordinator.store.store import Store

MB, DAY_S = 10**6, 86_400
_LOOK_S = 5.0
_FETCHING = (TargetState.OFFERED, TargetState.STAGED)
_USED = "sent "  # and the name of a device: a setting of the fleet, which a restart does not forget


def check_pace(plan: Plan, size_bytes: int, n_devices: int) -> None:
    """Refuse a plan by which devices would run out of time because of its own limits.

    Raises:
        RolloutError: They would.
    """
    pace, fetch_s = plan.pace, seconds(plan.deadline.fetch)
    a_day = pace.device_mb_per_day * MB
    days = -(-size_bytes // a_day) - 1 if a_day else 0  # the first part goes at once
    if days * DAY_S >= fetch_s:
        raise RolloutError(
            f"the release has {size_bytes} bytes: at {pace.device_mb_per_day} MB a day a device has it after {days} "
            f"days, and deadline.fetch is {plan.deadline.fetch}; give it more"
        )
    together_s = min(pace.transfers, n_devices) * size_bytes / pace.bytes_per_s if pace.bytes_per_s else 0.0
    if together_s >= fetch_s:
        raise RolloutError(
            f"{min(pace.transfers, n_devices)} devices that fetch {size_bytes} bytes each at {pace.bytes_per_s} bytes "
            f"a second in all need {together_s / 3600:.1f} h, and deadline.fetch is {plan.deadline.fetch}: lower "
            f"pace.transfers, or give it more"
        )


@dataclass(slots=True)
class _Day:
    """What a device was sent since it began, in milliseconds since 1970."""

    begin_ms: int
    used: int

    def of(self, now: Now) -> _Day:
        """The same, or the next one; a clock that was set back begins one, too."""
        return self if 0 <= now.wall_ms - self.begin_ms < DAY_S * 1000 else _Day(now.wall_ms, 0)


class Pacing:
    """See the module.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._limited: Sequence[Rollout] = ()
        self._next_look_s = float("-inf")
        self._paid_until_s: dict[int, float] = {}  # by rollout: what was sent is worth so long

    def allowed(self, device: str, now: Now) -> float:
        """How many bytes a device may be sent now; infinity where nothing limits it."""
        rollouts = self._of(device, now)
        if any(now.s < self._paid_until_s.get(each.id, now.s) for each in rollouts):
            return 0.0
        caps = [each.plan.pace.device_mb_per_day * MB for each in rollouts if each.plan.pace.device_mb_per_day]
        return max(0.0, min(caps) - self._day(device, now).used) if caps else float("inf")

    def sent(self, device: str, n_bytes: int, now: Now) -> None:
        """A device was sent so much."""
        rollouts = self._of(device, now) if n_bytes else ()
        for each in rollouts:
            if rate := each.plan.pace.bytes_per_s:
                self._paid_until_s[each.id] = max(now.s, self._paid_until_s.get(each.id, now.s)) + n_bytes / rate
        if any(each.plan.pace.device_mb_per_day for each in rollouts):
            day = self._day(device, now)
            self._store.rollouts.set(_USED + device, f"{day.begin_ms} {day.used + n_bytes}")

    def _day(self, device: str, now: Now) -> _Day:
        begin_ms, _, used = self._store.rollouts.setting(_USED + device).partition(" ")
        return _Day(int(begin_ms or 0), int(used or 0)).of(now)

    def _of(self, device: str, now: Now) -> Sequence[Rollout]:
        """Rollouts with limits by which a device has something to fetch."""
        if now.s >= self._next_look_s:
            self._next_look_s = now.s + _LOOK_S
            paces = [(each, each.plan.pace) for each in self._store.rollouts.open()]
            self._limited = [each for each, pace in paces if pace.bytes_per_s or pace.device_mb_per_day]
        if not self._limited:
            return ()
        limited = {each.id for each in self._limited}
        found = self._store.rollouts.of_devices(device)
        return [each for each, target in found if each.id in limited and target.state in _FETCHING]
