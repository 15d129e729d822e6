"""Sites below this coordinator: each is a device that contributes the sum of its own devices.

A device is counted once, whichever way its learning comes. Nobody here can take one device out of a sum, but the site
that made the sum can: it is asked to (the command ``leave``), and until it has done so the device counts where it was
first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge.channel.messages import Command
from edge.contract.clock import Now
from edge.contract.errors import LearningError
from edge.coordinator.events import Events
from edge.coordinator.records import Contribution
from edge.coordinator.store.store import Store
from edge.learning.exchange import HeadUpdate

# The tag by which an operator says that a device is a site: nobody else may speak for others.
ROLE, SITE = "role", "site"
# A site that moved devices to itself tries again after this, whether the other has let them go.
CLAIM_AGAIN_S = 3600.0
LEAVE = "leave"
# Of a command, whose message has 64 KiB.
_MOST_LINEAGES = 500
_MOST_CLAIMS = 20_000


class Sites:
    """See the module.

    Args:
        store: The database.
        events: For what people should see.

    Attributes:
        to_say: By site, what it is asked for; the caller empties it.
    """

    def __init__(self, store: Store, events: Events) -> None:
        self._store = store
        self._events = events
        self.to_say: list[tuple[str, Command]] = []
        # By lineage: who has it, who wants it, with which version. After a restart those who want it say so again.
        self._claims: dict[str, tuple[str, str, int]] = {}

    def check(self, site: str, update: HeadUpdate, now: Now) -> None:
        """Look whether a site's contribution has somebody in it who is counted elsewhere, or is to be forgotten.

        Raises:
            LearningError: So it is. Whoever has the older version of each is asked to leave it out.
        """
        if not update.parts:
            return
        if not self.is_site(site):
            raise LearningError(
                f"it speaks for other devices, and nobody has said that it may: edge-fleet tag {site} {ROLE}={SITE}"
            )
        if gone := self._store.parts.forgotten(update.parts):
            self._ask(site, dict.fromkeys(gone, 2**53), 0.0, now)
            raise LearningError(f"an operator had {len(gone)} of its devices forgotten; it is asked to leave them out")
        held = self._store.parts.elsewhere(update.backbone, update.parts, site)
        if not held:
            return
        let_go: dict[str, dict[str, int]] = {}
        for lineage, (holder, version) in held.items():
            if update.parts[lineage] >= version:
                let_go.setdefault(holder, {})[lineage] = update.parts[lineage]
        for holder, lineages in let_go.items():
            self._ask(holder, lineages, 0.0, now)
            self._claims |= {lineage: (holder, site, version) for lineage, version in lineages.items()}
        self._claims = dict(list(self._claims.items())[-_MOST_CLAIMS:])
        moved = {lineage for each in let_go.values() for lineage in each}
        self._ask(site, {each: update.parts[each] for each in held if each not in moved}, 0.0, now)
        self._ask(site, {each: update.parts[each] for each in moved}, CLAIM_AGAIN_S, now)
        holders = ", ".join(sorted({holder for holder, _ in held.values()}))
        detail = f"{len(held)} of its devices are counted with {holders}"
        self._events.fault(site, "counted-elsewhere", f"{detail}, which is asked to let them go", now, kind=holders)
        raise LearningError(f"{detail}; it is asked to leave them out until they are let go there")

    def came(self, site: str, now: Now) -> None:
        """A device introduced itself: one that was not there is asked again for those who are wanted elsewhere."""
        if wanted := {lineage: version for lineage, (holder, _, version) in self._claims.items() if holder == site}:
            self._ask(site, wanted, 0.0, now)

    def kept(self, site: str, parts: Mapping[str, int], now: Now) -> None:
        """A site's contribution is kept: who wanted those that it let go is told at once."""
        gone = [each for each, (holder, *_) in self._claims.items() if holder == site and each not in parts]
        free: dict[str, dict[str, int]] = {}
        for lineage in gone:
            free.setdefault(self._claims.pop(lineage)[1], {})[lineage] = 0
        for claimer, lineages in free.items():
            self._ask(claimer, lineages, 0.0, now)

    def is_site(self, device: str) -> bool:
        """Whether an operator has said that a device is a site."""
        return self._store.devices.tags(device).get(device, {}).get(ROLE) == SITE

    def counted(self, backbone: str, rows: Sequence[Contribution], now: Now) -> list[Contribution]:
        """Contributions without those of which something is counted in another one."""
        out: set[tuple[str, str]] = set()
        direct = {row.lineage: row for row in rows}
        for lineage, site, version, newest in self._store.parts.also_direct(backbone):
            row = direct.get(lineage)
            if row is not None:
                out.add((row.device, lineage))
                if newest > version:
                    self._ask(site, {lineage: newest}, 0.0, now)
        by_key = {(row.device, row.lineage): row for row in rows}
        for site, first, second in self._store.parts.of_one_site(backbone):
            one, other = by_key.get((site, first)), by_key.get((site, second))
            if one is not None and other is not None:  # it was set up anew: the fuller one counts
                fewer = min(one, other, key=lambda row: (row.n_samples, row.received_ms))
                out.add((site, fewer.lineage))
                detail = f"a contribution of {fewer.n_samples} samples is not counted: another one has its devices in"
                self._events.fault(site, "counted-once", detail, now, kind=fewer.lineage)
        return [row for row in rows if (row.device, row.lineage) not in out]

    def _ask(self, site: str, lineages: dict[str, int], again_s: float, now: Now) -> None:
        names = list(lineages)
        for i in range(0, len(names), _MOST_LINEAGES):
            some = {name: lineages[name] for name in names[i : i + _MOST_LINEAGES]}
            args = {"lineages": some, "again_s": again_s}
            command = Command(id=f"{LEAVE}-{now.wall_ms}-{len(self.to_say)}", name=LEAVE, args=args, ttl_s=60.0)
            self.to_say.append((site, command))
