"""Room on the disk: when it runs out artifacts stop first, telemetry next, so that what decides can still be written.

It is looked at before each write, so what stopped goes on by itself once there is room again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from edge.contract.clock import Now
from edge.contract.errors import ResourceError
from edge.coordinator.events import Events

_MIB = 1 << 20
# Telemetry goes on until so small a part of what is kept free for all else is left.
_TELEMETRY_PART = 4
# Of a disk that is not said more of: that much is kept free, of a small one so small a part.
USUAL_BYTES, USUAL_PART = 256 * _MIB, 0.05


class Level(IntEnum):
    """What there is room for."""

    ALL = 2
    NO_ARTIFACTS = 1
    NO_TELEMETRY = 0


@dataclass(slots=True)
class Room:
    """See the module.

    Attributes:
        free_bytes: On the disk of the data folder, now.
        keep_bytes: That artifacts leave free; 0 lets everything through.
        where: The folder, for messages.
        level: As it was looked at last.
    """

    free_bytes: Callable[[], int] = lambda: 1 << 62
    keep_bytes: int = 0
    where: str = ""
    level: Level = Level.ALL

    def now(self) -> Level:
        """What there is room for. A disk that cannot be asked says so when it is written to."""
        try:
            free = self.free_bytes()
        except OSError:
            return Level.ALL
        if free < self.keep_bytes // _TELEMETRY_PART:
            return Level.NO_TELEMETRY
        return Level.NO_ARTIFACTS if free < self.keep_bytes else Level.ALL

    def check(self, n_bytes: int) -> None:
        """Raise ResourceError where an artifact of this size would leave too little."""
        if not self.keep_bytes:
            return
        try:
            free = self.free_bytes()
        except OSError:
            return
        if free - n_bytes < self.keep_bytes:
            raise ResourceError(
                f"{free // _MIB} MiB are free in {self.where}, and {self.keep_bytes // _MIB} are kept for what must be "
                f"written: an artifact of {n_bytes / _MIB:.1f} MiB is not taken; make room, or choose --keep-free"
            )

    def look(self, events: Events, now: Now) -> Level:
        """Look, and tell what changed."""
        before, self.level = self.level, self.now()
        if self.level is before:
            return self.level
        if self.level is Level.ALL:
            events.note("", "disk-healed", f"there is room in {self.where} again: everything is taken", now)
        else:
            events.note("", "disk-full", self._says(self.level), now)
        return self.level

    @property
    def says(self) -> str:
        """What stops for want of room now, in words; "" for nothing."""
        level = self.now()
        return "" if level is Level.ALL else self._says(level)

    def _says(self, level: Level) -> str:
        stops = "artifacts (uploads, pushes, merges)" + ("" if level is Level.NO_ARTIFACTS else " and telemetry")
        return f"the disk of {self.where} is nearly full: {stops} stop; make room, and they go on by themselves"
