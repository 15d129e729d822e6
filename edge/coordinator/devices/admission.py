"""Whether a device belongs to the fleet: pending, approved, quarantined or decommissioned, and who decided so.

What is not approved is offered nothing, its contributions are not merged, and it judges no release. It is told so, and
heard all the same: what it says is shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from enum import StrEnum

from edge.contract.clock import Now
from edge.contract.errors import RolloutError
from edge.coordinator.events import Events
from edge.coordinator.records import APPROVED, DECOMMISSIONED, Device
from edge.coordinator.rollouts import Rollouts
from edge.coordinator.store.store import Store


class Admission(StrEnum):
    """Where a device stands."""

    PENDING = "pending"
    APPROVED = APPROVED
    QUARANTINED = "quarantined"
    DECOMMISSIONED = DECOMMISSIONED


class Decision(StrEnum):
    """What is decided about a device."""

    APPROVE = "approve"
    QUARANTINE = "quarantine"
    DECOMMISSION = "decommission"


_P, _A, _Q, _D = Admission
_AFTER: dict[tuple[Admission, Decision], Admission] = {
    (_P, Decision.APPROVE): _A, (_P, Decision.QUARANTINE): _Q, (_P, Decision.DECOMMISSION): _D,
    (_A, Decision.APPROVE): _A, (_A, Decision.QUARANTINE): _Q, (_A, Decision.DECOMMISSION): _D,
    (_Q, Decision.APPROVE): _A, (_Q, Decision.QUARANTINE): _Q, (_Q, Decision.DECOMMISSION): _D,
    (_D, Decision.DECOMMISSION): _D,
}  # fmt: skip


def after(admission: str, order: Decision, device: str) -> Admission:
    """Where a device stands then.

    Raises:
        RolloutError: That cannot be decided about it.

    >>> str(after("pending", Decision.APPROVE, "camera-1"))
    'approved'
    """
    found = _AFTER.get((Admission(admission), order))
    if found is None:
        raise RolloutError(
            f"{device} is {admission}, which nothing ends but new hardware: `edge-fleet device replace {device}` gives "
            f"a token"
        )
    return found


class Admissions:
    """See the module.

    Args:
        store: The database.
        events: For what people should see.
        rollouts: That a device which is not approved any more is taken out of.
        tell: Tells a device where it stands.
        clear: Has the broker forget what it keeps of a device.
    """

    def __init__(
        self,
        store: Store,
        events: Events,
        rollouts: Rollouts,
        tell: Callable[[str, Now], None],
        clear: Callable[[str], None],
    ) -> None:
        self._store = store
        self._events = events
        self._rollouts = rollouts
        self._tell = tell
        self._clear = clear

    def get(self, device: str) -> Device:
        """A device.

        Raises:
            RolloutError: It was never seen.
        """
        found = self._store.devices.get(device)
        if found is None:
            raise RolloutError(f"unknown device {device[:80]}; `edge-fleet device list` shows them")
        return found

    def order(self, device: str, order: Decision, who: str, why: str, now: Now) -> Device:
        """Decide about a device, in one transaction with what follows from it.

        Args:
            device: Its name.
            order: What.
            who: Decides; "" for the coordinator.
            why: For people.
            now: The time.

        Raises:
            RolloutError: It was never seen, or that cannot be decided about it.
        """
        with self._store.transaction():
            before = self.get(device)
            admission = after(before.admission, order, device)
            self._store.devices.change(device, admission=str(admission))
            if admission is not Admission.APPROVED:
                self._exclude(device, who, f"{admission}{f': {why}' if why else ''}", now)
            if admission is Admission.DECOMMISSIONED:
                self._store.enrolment.revoke_credentials(device, now.wall_ms, "decommissioned")
        if admission != before.admission:
            text = f"by {who or 'the coordinator'}{f': {why}' if why else ''}"
            self._events.note(device, str(admission), text, now)
            self._tell(device, now)
        if admission is Admission.DECOMMISSIONED:
            self._clear(device)
        self._rollouts.came()
        return self.get(device)

    def note(self, device: str, text: str) -> Device:
        """Write something of a device, in place of what was written.

        Raises:
            RolloutError: It was never seen.
        """
        self.get(device)
        self._store.devices.change(device, note=text)
        return self.get(device)

    def _exclude(self, device: str, who: str, why: str, now: Now) -> None:
        """Take it out of rollouts: it judges nothing, and what it does not do is no failure. What it runs stays."""
        numbers = [
            rollout.id
            for rollout in self._store.rollouts.open()
            if any(target.device == device for target in self._store.rollouts.targets(rollout.id))
        ]
        for number in numbers:
            with contextlib.suppress(RolloutError):  # it is out already
                self._rollouts.exclude(number, device, who, why, now, leaves=True)
