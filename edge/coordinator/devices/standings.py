"""Telling devices whether they belong to the fleet, where they do not know it.

A device says what it was told last in each birth, and answers when it is told. Where that differs from the database it
is told, at once and with each round of what devices should run. What devices believe is in memory only: after a restart
those that are not approved are told once more.
"""

from __future__ import annotations

from collections.abc import Iterator

from edge.channel.messages import ADMISSIONS, APPROVED, Birth, Command, Reply
from edge.contract.clock import Now
from edge.coordinator.recent import MAX_REMEMBERED, Recent
from edge.coordinator.records import DECOMMISSIONED
from edge.coordinator.store.store import Store

_COMMAND, _TTL_S = "admission", 60.0


class Standings:
    """See the module.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._believed = Recent[str](MAX_REMEMBERED)

    def born(self, device: str, message: Birth) -> None:
        """A device said what it believes; one that knows of no such word believes to be approved."""
        self._believed[device] = message.admission or APPROVED

    def replied(self, device: str, reply: Reply) -> None:
        """A device was told; an older one that does not understand it is not told again before its next birth."""
        name, _, rest = reply.id.partition("-")
        if name == _COMMAND and (told := rest.partition("-")[0]) in ADMISSIONS:
            self._believed[device] = told

    def decided(self, device: str) -> None:
        """It was decided where a device stands: it is told whatever it believes."""
        self._believed[device] = ""

    def to_say(self, device: str | None, now: Now) -> Iterator[tuple[str, Command]]:
        """Whom to tell of one device, or of all that are online, and what."""
        if device is not None:
            meant = frozenset([device])
        else:
            meant = self._store.devices.not_approved() | {
                name for name, believed in self._believed.items() if believed != APPROVED
            }
        for name, known in sorted(self._store.devices.known_of(meant).items()):
            admission, believed = known.device.admission, self._believed.get(name, APPROVED)
            is_out_of_reach = not known.device.online or admission == DECOMMISSIONED
            if believed == admission or (device is None and is_out_of_reach):
                continue
            since_ms, why = admitted(self._store, name, admission)
            args = {"admission": admission, "why": why, "since_ms": since_ms}
            yield name, Command(id=f"{_COMMAND}-{admission}-{now.wall_ms}", name=_COMMAND, args=args, ttl_s=_TTL_S)


def admitted(store: Store, device: str, admission: str) -> tuple[int, str]:
    """Since when a device stands so, and who decided it why; 0 and "" where that is not kept any more."""
    newest = next(iter(store.events.newest(1, device=device, name=admission)), None)
    return (0, "") if newest is None else (newest.at_ms, newest.detail)
